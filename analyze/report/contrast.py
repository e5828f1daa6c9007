"""Conditions of one run beside each other, such as texts with the emotion's keyword and without: what a probe takes along.

The two questions of "Whether, Not Which" (arXiv 2603.22295) stand side by side: which emotion, and whether there is any.
"""

from analyze import drawing, geometry_plots
from analyze.report.page import Picture, Section, Table
from analyze.report.words import score, share, share_cell, signed_share, signed_share_cell
from analyze.scores import Interval
from analyze.transfer import TransferCell, TransferResult, in_words

_CHANCE = 0.5


def contrast_section(result: TransferResult) -> Section:
    """Everything the page says about a transfer between conditions."""
    return Section(f"{_between(result)}: {result.site}", (_picture(result),), _findings(result), (_table(result),))


def _between(result: TransferResult) -> str:
    *others, last = map(in_words, result.sources)
    said = f"{', '.join(others)} and {last}"
    return said[0].upper() + said[1:]


def _picture(result: TransferResult) -> Picture:
    sizes = "; ".join(
        f"{in_words(name)}: {n_train:,} train, {n_test:,} test"
        for name, n_train, n_test in zip(result.sources, result.n_train, result.n_test, strict=True)
    )
    return Picture(
        png=drawing.png(geometry_plots.contrast(result)),
        alternative="AUROC by layer of probes trained on each condition and tested on each.",
        caption=(
            "Probes trained on the training utterances of each condition and scored on the test utterances of each (n = "
            f"{sizes}; "
            "neutral ones belong to all), with 95% bands over situations. Solid: tested where it was trained; dashed: "
            "elsewhere."
        ),
    )


def _findings(result: TransferResult) -> tuple[str, ...]:
    return tuple(sentence for train in result.sources for sentence in _of_source(result, train))


def _of_source(result: TransferResult, train: str) -> list[str]:
    layer = result.best_layers[result.sources.index(train)]
    own, said = result.cell(layer, train, train), []
    for test in result.sources:
        if test == train:
            continue
        cell = result.cell(layer, train, test)
        there = result.cell(layer, test, test)
        said.append(
            f"Which label: at layer {layer}, its best, the probe trained {in_words(train)} names {share(own.accuracy)} there "
            f"and {share(cell.accuracy)} {in_words(test)}, where the probe trained there names {share(there.accuracy)}: "
            f"{signed_share(cell.loss)} lost. {_loss_words(cell.loss)}"
        )
        said += _whether(train, test, own, cell)
    return said


def _loss_words(loss: Interval) -> str:
    if loss.low > 0:
        return "That is less than the probe trained there, which may have had more utterances to learn from."
    return "It reads better than the probe trained there." if loss.high < 0 else "A loss is not shown."


def _whether(train: str, test: str, own: TransferCell, cell: TransferCell) -> list[str]:
    if own.affect_auroc is None or cell.affect_auroc is None:
        return []
    affect = cell.affect_auroc
    return [
        f"Emotion or neutral: the probe trained {in_words(train)} gets AUROC {score(own.affect_auroc)} there and "
        f"{score(affect)} "
        f"{in_words(test)}, {'above chance' if affect.low > _CHANCE else 'not told from chance'}; for which label it gets "
        f"{score(own.auroc)} and {score(cell.auroc)}. {_compared(affect, cell.auroc)}"
    ]


def _compared(affect: Interval, which: Interval) -> str:
    if affect.low > which.high:
        return "Whether is read better there than which, interval and all."
    if which.low > affect.high:
        return "Which is read better there than whether, interval and all."
    return "The intervals overlap: neither is shown to be read better there."


def _table(result: TransferResult) -> Table:
    rows = []
    for train, layer in zip(result.sources, result.best_layers, strict=True):
        for test in result.sources:
            cell = result.cell(layer, train, test)
            affect = [] if cell.affect_auroc is None else [score(cell.affect_auroc)]
            where = in_words(train), str(layer), in_words(test)
            rows.append((*where, share_cell(cell.accuracy), score(cell.auroc), signed_share_cell(cell.loss), *affect))
    header = ("trained on", "layer", "tested on", "accuracy", "AUROC", "less than its own, points")
    with_affect = result.cells[0].affect_auroc is not None
    return Table("At each one's best layer", (*header, *(["emotion or neutral: AUROC"] if with_affect else [])), tuple(rows))
