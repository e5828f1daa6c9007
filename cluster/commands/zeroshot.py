"""affectome zero-shot: what the model answers when it is asked for the emotion, beside what a probe reads in it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import JsonOption, KindOption, RunArgument, SiteOption, StoreArgument
from cluster.console import Row, note, print_json, print_rows

if TYPE_CHECKING:  # it takes seconds to load
    from analyze.scores import Interval
    from analyze.zeroshot import ZeroShotResult

DEFAULT_MAX_TOKENS = 24  # analyze.zeroshot.MAX_TOKENS, which takes seconds to load


def zero_shot(
    store: StoreArgument,
    run: RunArgument,
    site: SiteOption = "resid.last",
    kind: KindOption = "linear",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = DEFAULT_MAX_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Ask the run's model for the emotion of each test utterance, and hold its answers against a kept probe."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    result = pipeline.zero_shot(opened, site, kind, max_tokens, store)
    if result.n_truncated:
        note(f"cut the end of {result.n_truncated:,} utterances that do not fit into the model's context beside the question")
    if result.beside is None:
        note(
            f"no {kind} probe of {site} is kept to hold the answers against; make one: "
            f"affectome probe {store} {opened.run_id} --site {site} --kind {kind}"
        )
    if as_json:
        print_json(asdict(result))
    else:
        print_zero_shot(result)


def print_zero_shot(result: "ZeroShotResult") -> None:
    """Print the accuracies, then a table of labels."""
    beside, of_valid = result.beside, result.accuracy_of_valid
    title = f"{result.n_utterances:,} test utterances, {_text(result.coverage)} with a valid answer, chance {result.chance:.3f}"
    ways = [_way("all, invalid is wrong", result.n_utterances, result.accuracy)]
    if of_valid:
        ways.append(_way("valid alone", sum(sum(cells[:-1]) for cells in result.confusion), of_valid))
    if beside:
        title += f"; probe: {beside.spec.kind}, {beside.site}, layer {beside.layer}"
        held = ((beside.accuracy, beside.difference), (beside.accuracy_of_valid, beside.difference_of_valid))
        ways = [
            {**way, "probe_[95%]": _text(probe), "probe_less_zero_shot": _text(difference)}
            for way, (probe, difference) in zip(ways, held, strict=False)
        ]
    print_rows(title, ways, as_json=False)
    labels: list[Row] = [
        {
            "label": label,
            "utterances": sum(cells),
            "recall_[95%]": _text(recall),
            "answered": sum(row[index] for row in result.confusion),
            "without_valid_answer": cells[-1],
        }
        for index, (label, recall, cells) in enumerate(zip(result.classes, result.recall, result.confusion, strict=True))
    ]
    print_rows(f"by label, macro-F1 {_text(result.macro_f1)}", labels, as_json=False)
    for reply, n in result.invalid_replies:
        typer.echo(f"{n:,} without a valid answer: {reply!r}")


def _way(counted: str, n: int, accuracy: "Interval") -> Row:
    return {"answers": counted, "n": n, "zero_shot_[95%]": _text(accuracy)}


def _text(interval: "Interval | None") -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
