"""The report of a run: one HTML file that stands alone, and its pictures beside it.

Every sentence that claims something is computed from the results, intervals included: where two intervals overlap the
report says that nothing is decided. Fixed prose around inserted numbers was rejected, because it goes on saying
"best" and "far above chance" about a run where neither is true.
"""

import base64
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from analyze import plots
from analyze.persistence import ALL_EMOTIONS, CHANCE, HalfLife, PersistenceResult
from analyze.probes import LayerScores, ProbeResult
from analyze.projection import Projection
from analyze.query import Run, open_store
from analyze.scores import Interval
from extract import durable
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_passages
from extract.request import DEFAULT_ROWS_PER_SHARD, DEFAULT_TOKEN_BUDGET
from extract.sites import Site
from extract.store import Manifest, Receipt

REPORT_FILE = "report.html"

_QUANTISED_MODEL = "smollm2-135m-instruct"
_FEW_EXAMPLES = 100

_LAYER_ZERO = {
    "mean": "the mean of the token embeddings: a bag of words, so what it gives is lexical",
    "last": "the embedding of the last token alone",
    "first": "the embedding of the first token alone",
    "prompt_last": "the embedding of the prompt's last token alone",
    "prompt_mean": "the mean of the prompt's token embeddings: a bag of words, so what it gives is lexical",
}
"""What the embedding output is at each position."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page shows it."""

    uri: str
    """The PNG as a data URI."""
    alternative: str
    """What it shows, for those who do not see it."""
    caption: str
    """How to read it."""
    width: int
    """Pixels on the page."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the page shows it."""

    caption: str
    """What stands above it; empty for nothing."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, row by row."""
    marked: tuple[int, ...] = ()
    """Rows that are set off from the others, counted from 0."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of what was run."""

    name: str
    """What it says."""
    value: str
    """The value."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a persistence measurement was made, read back from the run with the continuation."""

    text: str
    """What was forced after every utterance."""
    passage_id: str | None
    """The built-in passage it is, if it is one."""
    per_label: int
    """Utterances of the commonest label."""


@dataclass(frozen=True, slots=True)
class PersistenceSection:
    """One persistence measurement on the page."""

    picture: Picture
    """Its curves."""
    findings: tuple[str, ...]
    """What they say."""
    half_lives: Table
    """The same in numbers."""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows."""

    title: str
    """Names the model and the corpus."""
    headline: str
    """The result in one sentence or two."""
    lead: tuple[str, ...]
    """What a reader needs beside the headline."""
    layer_map: Picture
    """Accuracy and AUROC by layer."""
    best_layers: Table
    """The best layer of every probe."""
    every_layer: tuple[Table, ...]
    """All layers, one table for each probe."""
    where: tuple[str, ...]
    """Onset, best layer and layer 0 in words."""
    persistence: tuple[PersistenceSection, ...]
    """Empty where it was not measured."""
    persistence_command: str
    """How to measure it."""
    confusion: Picture
    """What is taken for what."""
    projection: Picture
    """The utterances in the plane."""
    limits: tuple[str, ...]
    """What the numbers show, and what they do not."""
    facts: tuple[Fact, ...]
    """What was run."""
    work: Table
    """Where it was computed, and how long that took."""
    commands: tuple[str, ...]
    """How to do it again."""


def write_report(
    run: Run,
    probes: Sequence[ProbeResult],
    persistence: Sequence[PersistenceResult],
    projection: Projection,
    directory: Path,
) -> Path:
    """Write report.html and its pictures.

    Args:
        run: the run the results are of.
        probes: one or more, such as one for each site.
        persistence: may be empty; then the report says how to measure it.
        directory: made where there is nothing yet; files of these names are replaced.

    Returns:
        Where report.html is.

    Raises:
        ValueError: there are no probes.
    """
    if not probes:
        raise ValueError(
            f"there is nothing to report on run {run.run_id}; make probes first: affectome probe STORE {run.run_id}"
        )
    pictures = _draw(probes, persistence, projection)
    continuations = [_continuation(run, result) for result in persistence]
    page = _page(run, list(run.stored.receipts()), probes, persistence, continuations, projection, pictures)
    durable.ensure_directory(directory)
    for name, data in pictures.items():
        durable.replace(directory / name, data)
    if not persistence:
        (directory / _persistence_file(0)).unlink(missing_ok=True)  # of an earlier report, which had curves
    path = directory / REPORT_FILE
    durable.replace(path, _render(page).encode())
    return path


def headline_probe(probes: Sequence[ProbeResult]) -> ProbeResult:
    """The probe the report is about: that of the highest selection accuracy, which the test split has no part in."""
    return max(probes, key=lambda probe: probe.best.selection_accuracy)


def headline(probe: ProbeResult, n_layers: int) -> str:
    """The result in plain numbers.

    Args:
        n_layers: blocks of the model.
    """
    test, control = probe.best.test.accuracy, probe.best.control.accuracy
    sentence = (
        f"At layer {probe.best_layer} of {n_layers}, a {probe.kind} probe on {probe.site} names the {_noun(probe.classes)} of "
        f"{test.value:.0%} of {probe.n_test:,} unseen utterances (95% interval {_share_range(test)}); "
        f"chance is {probe.chance:.0%}, a probe fitted to shuffled labels gets {control.value:.0%}."
    )
    if test.low <= control.high:
        sentence += " The intervals of the two overlap: nothing is shown to be readable here."
    return sentence


def onset(probe: ProbeResult) -> LayerScores | None:
    """The first layer whose accuracy interval lies above that of its control."""
    return next((entry for entry in probe.layers if entry.test.accuracy.low > entry.control.accuracy.high), None)


def half_life_words(half_life: HalfLife, last_offset: int) -> str:
    """A half-life for people: `49 tokens`, `more than 400`, or why there is none."""
    if not half_life.above_chance:
        return "not above chance at offset 0"
    return f"more than {last_offset}" if half_life.tokens is None else f"{plots.token_count(half_life.tokens)} tokens"


def _render(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("analyze"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(page=page)


def _draw(probes: Sequence[ProbeResult], persistence: Sequence[PersistenceResult], projection: Projection) -> dict[str, bytes]:
    """The PNG files of a report by name."""
    best = headline_probe(probes)
    title = (
        f"Where {'an' if _noun(best.classes) == 'emotion' else 'a'} {_noun(best.classes)} can be read: a probe on every layer"
    )
    figures = {
        "layer-map.png": plots.layer_map(probes, title),
        "confusion.png": plots.confusion_matrix(best),
        "projection.png": plots.projection(projection),
    } | {_persistence_file(index): plots.persistence_curves(result) for index, result in enumerate(persistence)}
    return {name: plots.png(figure) for name, figure in figures.items()}


def _persistence_file(index: int) -> str:
    return f"persistence-{index + 1}.png" if index else "persistence.png"


def _continuation(run: Run, result: PersistenceResult) -> Continuation | None:
    """What the continued run of a measurement says about it; None where that run is not in the store."""
    try:
        continued = open_store(str(_store_directory(run))).run(result.continued_run_id)
    except ValueError:
        return None
    text = continued.manifest.identity.continuation.strip()
    passages = read_passages().to_pylist()
    passage_id = next((str(passage["passage_id"]) for passage in passages if passage["text"].strip() == text), None)
    labels = Counter(label for label in continued.utterances()["label"].to_pylist() if label)
    return Continuation(text, passage_id, max(labels.values()))


def _store_directory(run: Run) -> Path:
    return run.stored.directory.parents[1]


def _page(
    run: Run,
    receipts: Sequence[Receipt],
    probes: Sequence[ProbeResult],
    persistence: Sequence[PersistenceResult],
    continuations: Sequence[Continuation | None],
    projection: Projection,
    pictures: dict[str, bytes],
) -> Page:
    manifest, best, store = run.manifest, headline_probe(probes), str(_store_directory(run))
    sections = (_persistence_section(result, pictures[_persistence_file(index)]) for index, result in enumerate(persistence))
    return Page(
        title=f"Where {_noun(best.classes)} can be read in {manifest.model}, on {_corpus_words(manifest)}",
        headline=headline(best, manifest.n_layers),
        lead=_lead(best, probes),
        layer_map=_layer_picture(probes, pictures["layer-map.png"]),
        best_layers=_best_table(probes),
        every_layer=tuple(_layer_table(probe, name) for probe, name in zip(probes, plots.probe_names(probes), strict=True)),
        where=_where(probes),
        persistence=tuple(sections),
        persistence_command="\n".join(
            shlex.join(("affectome", command, store, run.run_id)) for command in ("persistence", "report")
        ),
        confusion=_confusion_picture(best, pictures["confusion.png"]),
        projection=_projection_picture(projection, pictures["projection.png"]),
        limits=_limits(manifest, probes, persistence),
        facts=_facts(run, receipts, best, persistence, continuations),
        work=_work(receipts),
        commands=_commands(run, probes, persistence, continuations),
    )


def _corpus_words(manifest: Manifest) -> str:
    return "the built-in corpus" if manifest.corpus == BUILTIN_CORPUS else manifest.corpus


def _lead(best: ProbeResult, probes: Sequence[ProbeResult]) -> tuple[str, ...]:
    others = [(probe, name) for probe, name in zip(probes, plots.probe_names(probes), strict=True) if probe is not best]
    name = plots.probe_names(probes)[list(probes).index(best)]
    return tuple(_comparison(best, name, other, other_name) for other, other_name in others)


def _comparison(best: ProbeResult, name: str, other: ProbeResult, other_name: str) -> str:
    mine, theirs = best.best.test.accuracy, other.best.test.accuracy
    said = f"{other_name} is best at layer {other.best_layer}, with {_share(theirs)}"
    if mine.low > theirs.high:
        return f"{said}: less than {name}."
    if theirs.low > mine.high:
        return f"{said}: more than {name}, although {name} was ahead on the utterances the layers are chosen by."
    return f"{said}. The intervals overlap, so these results do not say which of {name} and {other_name} is better."


def _where(probes: Sequence[ProbeResult]) -> tuple[str, ...]:
    names = plots.probe_names(probes)
    return tuple(f"{name}: {sentence}" for probe, name in zip(probes, names, strict=True) for sentence in _where_one(probe))


def _where_one(probe: ProbeResult) -> list[str]:
    noun, first, top = _noun(probe.classes), onset(probe), probe.best
    if first is None:
        sentences = ["no layer's accuracy interval lies above that of the same probe on shuffled labels, so there is no onset."]
    else:
        sentences = [
            f"onset at layer {first.layer}, the first layer whose accuracy, {_share(first.test.accuracy)}, lies above that "
            f"of the same probe on shuffled labels, {_share(first.control.accuracy)}, interval and all."
        ]
    near = [entry.layer for entry in probe.layers if _overlap(entry.test.accuracy, top.test.accuracy)]
    sentences.append(
        f"best layer {top.layer}, with {_share(top.test.accuracy)}, macro-F1 {_score(top.test.macro_f1)} and AUROC "
        f"{_score(top.test.auroc)}. " + _neighbours(near, top.layer) + _luckiest(probe)
    )
    zero = probe.layers[0]
    if zero.layer == 0:
        sentences.append(_layer_zero(probe, zero, noun))
    return sentences


def _neighbours(near: Sequence[int], best: int) -> str:
    if len(near) == 1:
        return "No other layer's interval overlaps its interval."
    return f"The intervals of layers {_ranges([layer for layer in near if layer != best])} overlap its interval."


def _luckiest(probe: ProbeResult) -> str:
    highest = max(probe.layers, key=lambda entry: entry.test.accuracy.value)
    if highest.test.accuracy.value <= probe.best.test.accuracy.value:
        return ""
    return (
        f" Layer {highest.layer} scores higher on the test utterances, {_share(highest.test.accuracy)}, but choosing it for "
        "that would be choosing the luckiest of many."
    )


def _layer_zero(probe: ProbeResult, zero: LayerScores, noun: str) -> str:
    what = _LAYER_ZERO.get(Site.parse(probe.site).position, "the embedding output")
    said = f"layer 0 is {what}. It already gives {_share(zero.test.accuracy)}"
    if zero.test.accuracy.low <= zero.control.accuracy.high:
        said = f"layer 0 is {what}. It gives {_share(zero.test.accuracy)}, not shown to be above its control"
    better = [entry.layer for entry in probe.layers if entry.test.accuracy.low > zero.test.accuracy.high]
    if not better:
        return (
            f"{said}. No layer's interval lies above that: these results do not show that the blocks make the {noun} more "
            "readable."
        )
    if better[0] == probe.best_layer:
        return f"{said}. The first layer whose interval lies above that is the best layer, {probe.best_layer}."
    ahead = "does too" if probe.best_layer in better else "does not"
    return (
        f"{said}. The first layer whose interval lies above that is {better[0]}; that of the best layer, {probe.best_layer}, "
        f"{ahead}."
    )


def _layer_picture(probes: Sequence[ProbeResult], data: bytes) -> Picture:
    best = headline_probe(probes)
    return Picture(
        uri=_data_uri(data),
        alternative=f"Accuracy and AUROC of probes against layer. {best.site} is best at layer {best.best_layer}.",
        caption=(
            f"Top: accuracy on {best.n_test:,} test utterances with 95% intervals over utterances; dashed, the same probes "
            "fitted to shuffled labels. Below: how well each label is told from all others at each layer (area under the "
            "ROC curve; 0.5 is chance). The best layer is chosen on a held-out part of the training split."
        ),
        width=1000,
    )


def _best_table(probes: Sequence[ProbeResult]) -> Table:
    rows = (
        (
            name,
            str(probe.best_layer),
            *_layer_cells(probe.best),
            "none" if (first := onset(probe)) is None else str(first.layer),
        )
        for probe, name in zip(probes, plots.probe_names(probes), strict=True)
    )
    header = ("site", "best layer", "accuracy", "macro-F1", "AUROC", "control accuracy", "onset layer")
    return Table("", header, tuple(rows))


def _layer_table(probe: ProbeResult, name: str) -> Table:
    layers = [entry.layer for entry in probe.layers]
    return Table(
        caption=f"{name}, {probe.kind} probe; chance {probe.chance:.1%}; the best layer is set off",
        header=("layer", "accuracy", "macro-F1", "AUROC", "control accuracy"),
        rows=tuple((str(entry.layer), *_layer_cells(entry)) for entry in probe.layers),
        marked=(layers.index(probe.best_layer),),
    )


def _layer_cells(entry: LayerScores) -> tuple[str, ...]:
    test, control = entry.test, entry.control.accuracy
    return _percents(test.accuracy), _score(test.macro_f1), _score(test.auroc), _percents(control)


def _persistence_section(result: PersistenceResult, data: bytes) -> PersistenceSection:
    last = result.offsets[-1]
    return PersistenceSection(
        picture=Picture(
            uri=_data_uri(data),
            alternative=f"AUROC against token offset, from 0 to {last}, for the mean over labels and for each label.",
            caption=(
                f"{result.n_utterances:,} utterances at layer {result.layer}, each followed by the same neutral text; every "
                "score is of utterances the probe was not fitted on, with 95% bands. Solid: a probe fitted at that offset. "
                "Dashed: the probe fitted at the utterance's last token. Dash-dotted: labels shuffled. The diamond marks a "
                "half-life, the line through it its 95% interval."
            ),
            width=1000,
        ),
        findings=_persistence_findings(result),
        half_lives=_half_life_table(result),
    )


def _persistence_findings(result: PersistenceResult) -> tuple[str, ...]:
    refit, fixed = (result.curve(ALL_EMOTIONS, reader) for reader in ("refit", "offset-0"))
    first, last = refit.auroc[0], result.offsets[-1]
    ends = refit.auroc[-1], fixed.auroc[-1]
    return (
        f"Mean AUROC over labels is {_score(first)} at offset {result.offsets[0]}. {last} tokens later, a probe fitted there "
        f"gets {_score(ends[0])}, {_against_chance(ends[0])}; the probe fitted at offset {result.offsets[0]} gets "
        f"{_score(ends[1])}, {_against_chance(ends[1])}.",
        f"Half-life of the mean: {_half_life_sentence(refit.half_life, last)} for a probe refit at each offset (information "
        f"is there in some linear form); {_half_life_sentence(fixed.half_life, last)} for the probe of offset 0 (it is there "
        "in the same form).",
        _same_form(*ends, last),
    )


def _against_chance(score: Interval) -> str:
    if score.low > CHANCE:
        return "above chance"
    return "below chance" if score.high < CHANCE else "not told from chance"


def _same_form(refit: Interval, fixed: Interval, last: int) -> str:
    if refit.low > fixed.high and refit.low > CHANCE:
        return (
            f"At offset {last} the refit probe is ahead of the probe of offset 0, interval and all: what can be read there "
            "is, in part, no longer in the form it had at the utterance's last token."
        )
    return f"At offset {last} the intervals of the two probes overlap: a change of form is not shown there."


def _half_life_sentence(half_life: HalfLife, last: int) -> str:
    words = half_life_words(half_life, last)
    if not half_life.above_chance:
        return words
    if half_life.low is None:
        return f"{words} tokens, the whole 95% interval included,"
    return f"{words} (95% interval {_half_life_range(half_life, last)})"


def _half_life_range(half_life: HalfLife, last: int) -> str:
    ends = (half_life.low, half_life.high)
    return " to ".join(f"more than {last}" if end is None else plots.token_count(end) for end in ends)


def _half_life_cell(half_life: HalfLife, last: int) -> str:
    words = half_life_words(half_life, last)
    return (
        words
        if half_life.low is None
        else f"{words.removesuffix(' tokens')} ({_half_life_range(half_life, last).replace('more than', '>')})"
    )


def _half_life_table(result: PersistenceResult) -> Table:
    last = result.offsets[-1]
    rows = []
    for emotion in (ALL_EMOTIONS, *result.emotions):
        curves = [result.curve(emotion, reader) for reader in ("refit", "offset-0")]
        cells = [(_half_life_cell(curve.half_life, last), _score(curve.auroc[-1])) for curve in curves]
        rows.append((emotion, _score(curves[0].auroc[0]), *cells[0], *cells[1]))
    columns = (f"{reader}: {what}" for reader in ("refit", "offset-0") for what in ("half-life", f"AUROC at {last}"))
    caption = (
        "Half-life in tokens, with 95% intervals: where the score above chance first halves; a curve may rise again after it"
    )
    return Table(caption, ("label", f"AUROC at {result.offsets[0]}", *columns), tuple(rows), marked=(0,))


def _confusion_picture(best: ProbeResult, data: bytes) -> Picture:
    return Picture(
        uri=_data_uri(data),
        alternative=f"Confusion matrix of {best.site} at layer {best.best_layer}.",
        caption=f"Test utterances by true label (rows) and by the label the probe names. {_worst_mistake(best)}",
        width=min(760, 300 + 62 * max(len(best.classes), 4)),
    )


def _worst_mistake(probe: ProbeResult) -> str:
    cells = [
        (count, true, named)
        for true, row in zip(probe.classes, probe.best.test.confusion, strict=True)
        for named, count in zip(probe.classes, row, strict=True)
        if named != true
    ]
    count, true, named = max(cells, key=lambda cell: cell[0])
    if not count:
        return "There is no mistake."
    size = sum(probe.best.test.confusion[probe.classes.index(true)])
    return f"The commonest mistake: {true} taken for {named}, {count:,} of {size:,}."


def _projection_picture(projection: Projection, data: bytes) -> Picture:
    return Picture(
        uri=_data_uri(data),
        alternative=f"Two projections of the test utterances of {projection.site} at layer {projection.layer}.",
        caption=(
            f"{projection.site}, layer {projection.layer}, test utterances only. Left: principal components of the "
            f"standardised hidden states, {sum(projection.states_variance):.0%} of their variance; axes of large variance "
            "need not be those that separate labels. Right: principal components of the probe's class probabilities, "
            f"{sum(projection.probabilities_variance):.0%} of their variance; the probe was fitted to pull labels apart, so "
            "distances there are its own and not the model's."
        ),
        width=1000,
    )


def _limits(manifest: Manifest, probes: Sequence[ProbeResult], persistence: Sequence[PersistenceResult]) -> tuple[str, ...]:
    best = headline_probe(probes)
    noun = _noun(best.classes)
    rarest = min(sum(row) for row in best.best.test.confusion)
    said = [
        f"A linear probe shows that the {noun} can be read from the states, not that the model uses it, feels it, or acts on "
        "it. Only an intervention could show use.",
        "Intervals are over test utterances only. They do not cover other seeds, prompts, templates, corpora or models, and "
        "each layer's control is one shuffle. Intervals that overlap are called undecided here; a paired test could be "
        "sharper.",
        "The best layer is chosen on a held-out part of the training split, so its test score is not the luckiest of many. "
        "Which layer wins is itself uncertain: see the layers whose intervals overlap.",
    ]
    if manifest.corpus == BUILTIN_CORPUS:
        said.append("Labels are what the author of each utterance intended, not what a reader or a speaker felt.")
    else:
        said.append("Labels are the corpus's own; how they were made, and by whom, bounds what any probe of them can mean.")
    if any(Site.parse(probe.site).position.endswith("mean") for probe in probes):
        said.append(
            "Layer 0 of a mean site is lexical: word embeddings without order or context (and, in some models, position "
            "embeddings). Only what a later layer adds to it can come from the blocks."
        )
    if rarest < _FEW_EXAMPLES:
        said.append(
            f"Samples are small: the rarest label has {rarest:,} test utterance{'s' if rarest != 1 else ''}, so scores of "
            "single labels move a lot by chance."
        )
    if persistence:
        said += _persistence_limits(persistence)
    if "bfloat16" in (manifest.identity.compute_dtype, manifest.identity.stored_dtype):
        said.append(
            f"Numbers are rounded: computed in {manifest.identity.compute_dtype}, stored in "
            f"{manifest.identity.stored_dtype}; bfloat16 keeps 8 significant bits, and another kind of device may give other "
            "last bits."
        )
    if manifest.model == _QUANTISED_MODEL:
        said.append(
            f"The weights of {_QUANTISED_MODEL} were dequantised from a 4-bit GGUF file: these are not the numbers of the "
            "model in full precision."
        )
    return tuple(said)


def _persistence_limits(persistence: Sequence[PersistenceResult]) -> list[str]:
    last = max(result.offsets[-1] for result in persistence)
    return [
        "A score after a forced continuation can come from attention looking back at the utterance, not from a state that "
        "is carried along: the utterance is still in the context.",
        "The refit probe shows that information is present; the probe of offset 0 shows that it is present in the same "
        "form. A lower score of the second alone is a change of form, not forgetting.",
        f"A half-life not reached within the grid is a lower bound: more than {last} tokens, no value. One neutral text was "
        "forced; another may give other half-lives.",
        f"The curves rest on {min(result.n_utterances for result in persistence):,} utterances; the layer may have been "
        "chosen by training utterances that are among them.",
    ]


def _facts(
    run: Run,
    receipts: Sequence[Receipt],
    best: ProbeResult,
    persistence: Sequence[PersistenceResult],
    continuations: Sequence[Continuation | None],
) -> tuple[Fact, ...]:
    manifest = run.manifest
    identity = manifest.identity
    truncated = sum(receipt.n_truncated for receipt in receipts)
    pairs = [
        ("run", f"{run.run_id}, created {manifest.created}"),
        ("model", f"{manifest.model}: {manifest.n_layers} blocks, width {manifest.width:,}"),
        ("weights", identity.weights),
        ("tokenizer", f"sha256:{identity.tokenizer}"),
        ("template", f"{manifest.template}: {identity.template}"),
        ("corpus", f"{manifest.corpus}, {manifest.n_rows:,} rows, sha256:{identity.corpus}"),
        ("labels", ", ".join(best.classes)),
        ("split", f"{best.split}: {best.n_train:,} train, {best.n_test:,} test"),
        ("left out", _left_out(best)),
        ("sites", ", ".join(identity.sites)),
        ("layers", _ranges(identity.layers)),
        ("precision", f"computed in {identity.compute_dtype}, stored in {identity.stored_dtype}"),
        ("attention", identity.attention),
        ("cut at the context", f"{truncated:,} utterances" if identity.truncate else "not allowed"),
        ("batches", f"shards of {manifest.rows_per_shard:,} rows, {manifest.token_budget:,} tokens a batch"),
    ]
    pairs += [("finished", _finished(receipts)), ("libraries", _libraries(receipts))]
    for result, continuation in zip(persistence, continuations, strict=True):
        text = "text not in this store" if continuation is None else _excerpt(continuation)
        pairs.append(
            ("continuation", f"run {result.continued_run_id}, layer {result.layer}, {result.n_utterances:,} utterances; {text}")
        )
    return tuple(Fact(name, value) for name, value in pairs)


def _left_out(probe: ProbeResult) -> str:
    return (
        f"{probe.n_unlabelled:,} utterances without a single label, {probe.n_other_split:,} of another split than train and "
        "test"
    )


def _excerpt(continuation: Continuation) -> str:
    name = f"passage {continuation.passage_id}, " if continuation.passage_id else ""
    text = " ".join(continuation.text.split())
    return f"{name}\N{LEFT DOUBLE QUOTATION MARK}{text[:90]}\N{HORIZONTAL ELLIPSIS}\N{RIGHT DOUBLE QUOTATION MARK}"


def _work(receipts: Sequence[Receipt]) -> Table:
    """Receipts summed by where they were made."""
    groups: dict[tuple[str, str], list[Receipt]] = {}
    for receipt in receipts:
        groups.setdefault((receipt.device, receipt.host), []).append(receipt)
    stages = list(dict.fromkeys(stage for receipt in receipts for stage in receipt.seconds))
    return Table(
        caption=f"Where it was computed: {sum(receipt.n_tokens for receipt in receipts):,} tokens, {len(receipts):,} receipts",
        header=("device", "host", "receipts", "rows", "tokens", *(f"{stage}, s" for stage in stages)),
        rows=tuple((*place, *_work_cells(made, stages)) for place, made in groups.items()),
    )


def _work_cells(receipts: Sequence[Receipt], stages: Sequence[str]) -> tuple[str, ...]:
    return (
        f"{len(receipts):,}",
        f"{sum(receipt.stop - receipt.start for receipt in receipts):,}",
        f"{sum(receipt.n_tokens for receipt in receipts):,}",
        *(f"{sum(receipt.seconds.get(stage, 0.0) for receipt in receipts):,.1f}" for stage in stages),
    )


def _libraries(receipts: Sequence[Receipt]) -> str:
    """Versions that made the receipts; more than one set where machines differ."""
    made = {", ".join(f"{library} {version}" for library, version in sorted(receipt.versions.items())) for receipt in receipts}
    return "; or ".join(sorted(made)) or "none recorded"


def _finished(receipts: Sequence[Receipt]) -> str:
    times = sorted({receipt.finished for receipt in receipts})
    return " to ".join(dict.fromkeys((times[0], times[-1]))) if times else "nothing yet"


def _commands(
    run: Run,
    probes: Sequence[ProbeResult],
    persistence: Sequence[PersistenceResult],
    continuations: Sequence[Continuation | None],
) -> tuple[str, ...]:
    store = str(_store_directory(run))
    lines = [shlex.join(_extract_command(run.manifest, store))]
    for probe in probes:
        layers = [entry.layer for entry in probe.layers]
        chosen = () if tuple(layers) == run.layers else ("--layers", ",".join(map(str, layers)))
        command = ("affectome", "probe", store, run.run_id, "--site", probe.site, "--kind", probe.kind)
        lines.append(shlex.join((*command, *chosen)))
    for result, continuation in zip(persistence, continuations, strict=True):
        command = ("affectome", "persistence", store, run.run_id, "--layer", str(result.layer), "--kind", result.kind)
        lines.append(shlex.join(command) + _continuation_options(result, continuation))
    return (*lines, shlex.join(("affectome", "report", store, run.run_id)))


def _continuation_options(result: PersistenceResult, continuation: Continuation | None) -> str:
    if continuation is None:
        return f"  # what run {result.continued_run_id} was continued with is not in this store"
    if continuation.passage_id is None:
        return f"  # run {result.continued_run_id} was continued with a text that is no built-in passage"
    return " " + shlex.join(("--passage", continuation.passage_id, "--per-label", str(continuation.per_label)))


def _extract_command(manifest: Manifest, store: str) -> tuple[str, ...]:
    identity = manifest.identity
    everything = identity.layers == tuple(range(manifest.n_layers + 1))
    command = ["affectome", "extract", "--store", store, "--model", manifest.model, "--corpus", manifest.corpus]
    command += ["--limit", str(manifest.n_rows)]  # the corpus may have been longer, or have grown
    command += ["--sites", ",".join(identity.sites), "--layers", "all" if everything else ",".join(map(str, identity.layers))]
    command += ["--template", manifest.template, "--dtype", identity.compute_dtype, "--stored-dtype", identity.stored_dtype]
    command += ["--attention", identity.attention]
    if identity.truncate:
        command.append("--truncate")
    if manifest.rows_per_shard != DEFAULT_ROWS_PER_SHARD:
        command += ["--rows-per-shard", str(manifest.rows_per_shard)]
    if manifest.token_budget != DEFAULT_TOKEN_BUDGET:
        command += ["--token-budget", str(manifest.token_budget)]
    return tuple(command)


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _noun(classes: Iterable[str]) -> str:
    """`emotion` where the labels are those of the built-in corpus, otherwise `label`."""
    return "emotion" if all(name in plots.EMOTION_COLOURS for name in classes) else "label"


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _share(share: Interval) -> str:
    return f"{share.value:.0%} ({_share_range(share)})"


def _share_range(share: Interval) -> str:
    return f"{100 * share.low:.0f}\N{EN DASH}{share.high:.0%}"


def _percents(share: Interval) -> str:
    return f"{share.value:.1%} ({100 * share.low:.1f}\N{EN DASH}{100 * share.high:.1f})"


def _score(score: Interval) -> str:
    return f"{score.value:.2f} ({score.low:.2f}\N{EN DASH}{score.high:.2f})"


def _ranges(layers: Sequence[int]) -> str:
    """Ascending layers for people, such as `0 to 3 and 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
