"""affectome probe, affectome predict, affectome persistence, affectome report."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.labels import print_predictions, print_sets, print_values, tell_what_is_left_out
from cluster.commands.options import (
    AddressOption,
    BalanceOption,
    JsonOption,
    KindOption,
    LabelOption,
    LayersOption,
    MaybeKindOption,
    RunArgument,
    SiteOption,
    SolverOption,
    StoreArgument,
    StrengthOption,
    WorkersOption,
    chosen_layers,
)
from cluster.console import Row, note, print_json, print_rows
from cluster.execution import Execution
from extract.decoding import Decoding

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from analyze.curves import Curve
    from analyze.persistence import PersistenceResult
    from analyze.probes import ProbeResult
    from analyze.query import Run
    from analyze.scores import Interval

DEFAULT_PASSAGE = "bus-timetable-route-14"
DEFAULT_PER_LABEL = 24


def probe(
    store: StoreArgument,
    run: RunArgument,
    site: SiteOption = "resid.last",
    layers: LayersOption = "all",
    label: LabelOption = "label",
    kind: MaybeKindOption = None,
    strength: StrengthOption = None,
    balance: BalanceOption = "none",
    solver: SolverOption = "affectome",
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a probe on each layer, score it on the test split and keep both."""
    from analyze.columns import usual_kind
    from analyze.multilabel import MultiLabelResult
    from analyze.probes import ProbeResult, ProbeSpec
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    chosen = chosen_layers(opened, site, layers)
    spec = ProbeSpec(kind or usual_kind(opened, label), strength, balance, solver, label)
    result = pipeline.probe_column(opened, site, chosen, spec, Execution(workers, address))
    if isinstance(result, ProbeResult):
        _tell_left_out(result)
    else:
        tell_what_is_left_out(result)
    if as_json:
        print_json(asdict(result))
    elif isinstance(result, ProbeResult):
        print_probe(result)
    elif isinstance(result, MultiLabelResult):
        print_sets(result)
    else:
        print_values(result)


def predict(
    store: StoreArgument,
    run: RunArgument,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to read.", show_default=False)] = None,
    corpus: Annotated[str | None, typer.Option(help="A corpus file to read instead of texts.", show_default=False)] = None,
    site: SiteOption = "resid.last",
    layer: Annotated[int | None, typer.Option(help="Which layer; without it, the best.", show_default=False)] = None,
    label: LabelOption = "label",
    kind: MaybeKindOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read new text with a probe that `affectome probe` kept, of all layers of the site."""
    from analyze import results
    from analyze.columns import form_of, usual_kind
    from analyze.extracting import require_model
    from analyze.probes import ProbeSpec
    from analyze.query import open_store
    from analyze.saved import load_probes
    from analyze.saved import predict as read_texts
    from extract.corpus import read_corpus

    if (not texts) == (corpus is None):
        raise ValueError("give either texts to read or a --corpus of them")
    opened = open_store(store).run(run)
    require_model(opened)
    spec = ProbeSpec(kind or usual_kind(opened, label), column=label)
    layers = opened.layers_of(site)
    made, probes = load_probes(opened, site, layers, spec)
    if layer is None:
        kept = [result for result in results.probes_of_any(opened) if (result.site, result.spec) == (site, spec)]
        full = [result for result in kept if tuple(entry.layer for entry in result.layers) == layers]
        if not full:
            raise ValueError("the scores of these probes are not kept, so which layer is best is not known; give --layer")
        layer = full[0].best_layer
    if layer not in probes:
        raise ValueError(f"there is no probe of layer {layer}; choose from {', '.join(map(str, probes))}")
    asked = texts or read_corpus(str(corpus)).table["text"].to_pylist()
    said = read_texts(opened, made, probes[layer], layer, asked)
    title = f"{site}, layer {layer}, {spec.kind} probe of run {opened.run_id}"
    print_predictions(title, form_of(opened, label), made, asked, said, as_json)


def persistence(
    store: StoreArgument,
    run: RunArgument,
    layers: Annotated[str | None, typer.Option(help="Which layers; without it, the best for resid.last.")] = None,
    passage: Annotated[str, typer.Option(help="Which built-in neutral passage to continue with.")] = DEFAULT_PASSAGE,
    reply: Annotated[
        int | None,
        typer.Option(help="Let the model reply instead, in at most so many tokens, such as 512.", show_default=False),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Of what is replied to, such as chat; without it, the run's own.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of replies; 0 takes the likeliest tokens.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw replies from the likeliest tokens of this much together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of replies.")] = 0,
    per_label: Annotated[int, typer.Option(min=5, help="Most utterances of each label.")] = DEFAULT_PER_LABEL,
    kind: KindOption = "linear",
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Force the same neutral continuation after every utterance, or let the model reply, and probe along it."""
    from analyze.extracting import require_model
    from analyze.query import open_store
    from cluster import pipeline

    if reply is None and (template is not None or temperature or seed or top_p != 1):
        raise ValueError("--template, --temperature, --top-p and --seed are of replies; add --reply TOKENS")
    opened = open_store(store).run(run)
    require_model(opened)  # before minutes of probing
    execution = Execution(workers, address)
    chosen = (best_last_layer(opened, kind, execution),) if layers is None else chosen_layers(opened, "resid.last", layers)
    if reply is None:
        measured = pipeline.persistence(opened, chosen, passage, per_label, kind, store, execution)
    else:
        decoding = Decoding(reply, temperature, top_p, seed)
        measured = pipeline.reply_persistence(opened, chosen, decoding, template, per_label, kind, store, execution)
    if as_json:
        print_json([asdict(result) for result in measured])
        return
    for result in measured:
        print_persistence(result)


def report(
    store: StoreArgument,
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; without it, in the run's own, or here for a remote store.")
    ] = None,
) -> None:
    """Write report.html and its pictures, and print where."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    typer.echo(pipeline.report(opened, out or pipeline.report_directory(opened)))


def best_last_layer(run: "Run", kind: str, execution: Execution) -> int:
    """The best layer for `resid.last`, from probes kept with the run or made now."""
    from analyze.probes import ProbeSpec
    from cluster import pipeline

    return pipeline.probe(run, "resid.last", run.layers_of("resid.last"), ProbeSpec(kind), execution).best_layer


def print_probe(result: "ProbeResult") -> None:
    """Print a table of layers."""
    rows: list[Row] = [
        {
            "layer": entry.layer,
            "accuracy_[95%]": _with_interval(entry.test.accuracy),
            "macro_f1": entry.test.macro_f1.value,
            "auroc": entry.test.auroc.value,
            "shuffled_accuracy": entry.control.accuracy.value,
            "selectivity": entry.selectivity.value,
            "": "<- best" if entry.layer == result.best_layer else "",
        }
        for entry in result.layers
    ]
    sizes = f"{result.n_train:,} train, {result.n_test:,} test"
    title = f"{result.site}, {result.kind} probe: {sizes}, chance {result.chance:.3f}"
    print_rows(title, rows, as_json=False)


def print_persistence(result: "PersistenceResult") -> None:
    """Print a table of readers and emotions: scores along what follows, half-lives and areas."""
    shown = [("all", reader) for reader in result.readers]
    shown += [(emotion, reader) for reader in ("refit", "offset-0") for emotion in result.emotions]
    rows: list[Row] = [
        {"reader": curve.reader, "emotion": curve.emotion}
        | {f"@{offset}": curve.auroc[index].value for index, offset in enumerate(result.offsets) if index % 2 == 0}
        | {"area": curve.area.value, "half_life": half_life_text(curve, result.offsets[-1])}
        for curve in (result.curve(emotion, reader) for emotion, reader in shown)
    ]
    where = "the continuation" if result.decoding is None else "the model's own replies"
    title = f"AUROC along {where}, layer {result.layer}, {result.n_utterances:,} utterances, chance 0.5"
    print_rows(title, rows, as_json=False)
    if result.beyond_words is not None:
        reached: list[Row] = [
            {"offset": offset, "utterances": n, "refit_less_words_[95%]": _with_interval(beyond)}
            for offset, n, beyond in zip(result.offsets, result.n_at, result.beyond_words, strict=True)
        ]
        print_rows("What the state tells beyond the reply's words", reached, as_json=False)


def half_life_text(curve: "Curve", last_offset: int) -> str:
    """A half-life in tokens with its interval, for people."""
    from analyze.plots import token_count

    half_life = curve.half_life
    if not half_life.above_chance:
        return "not above chance at 0"
    ends = (half_life.tokens, half_life.low, half_life.high)
    value, low, high = (f">{last_offset}" if end is None else token_count(end) for end in ends)
    return f"{value} [{low}, {high}]"


def _with_interval(interval: "Interval") -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _tell_left_out(result: "ProbeResult") -> None:
    if result.n_unlabelled:
        note(f"left out {result.n_unlabelled:,} rows because they carry no single label")
    if result.n_other_split:
        note(f"left out {result.n_other_split:,} rows because their split is neither train nor test")
