"""affectome probe, affectome persistence, affectome report."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import (
    AddressOption,
    JsonOption,
    KindOption,
    LayersOption,
    RunArgument,
    StoreArgument,
    WorkersOption,
)
from cluster.console import Row, note, print_json, print_rows
from cluster.execution import Execution
from extract.sites import parse_layers

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from analyze.persistence import Curve, PersistenceResult
    from analyze.probes import ProbeResult
    from analyze.query import Run
    from analyze.scores import Interval

DEFAULT_PASSAGE = "bus-timetable-route-14"
DEFAULT_PER_LABEL = 24


def probe(
    store: StoreArgument,
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Where to read, such as resid.last.")] = "resid.last",
    layers: LayersOption = "all",
    kind: KindOption = "linear",
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a probe on each layer and score it on the test split."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    chosen = opened.layers_of(site) if layers == "all" else parse_layers(layers, opened.manifest.n_layers)
    result = pipeline.probe(opened, site, chosen, kind, Execution(workers, address))
    _tell_left_out(result)
    if as_json:
        print_json(asdict(result))
    else:
        print_probe(result)


def persistence(
    store: StoreArgument,
    run: RunArgument,
    layer: Annotated[int | None, typer.Option(help="Which layer; without it, the best for resid.last.")] = None,
    passage: Annotated[str, typer.Option(help="Which built-in neutral passage to continue with.")] = DEFAULT_PASSAGE,
    per_label: Annotated[int, typer.Option(min=5, help="Most utterances of each label.")] = DEFAULT_PER_LABEL,
    kind: KindOption = "linear",
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Force the same neutral continuation after every utterance and probe along it."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    execution = Execution(workers, address)
    chosen = layer if layer is not None else best_last_layer(opened, kind, execution)
    result = pipeline.persistence(opened, chosen, passage, per_label, kind, store, execution)
    if as_json:
        print_json(asdict(result))
    else:
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
    from cluster import pipeline

    return pipeline.probe(run, "resid.last", run.layers_of("resid.last"), kind, execution).best_layer


def print_probe(result: "ProbeResult") -> None:
    """Print a table of layers."""
    rows: list[Row] = [
        {
            "layer": entry.layer,
            "accuracy_[95%]": _with_interval(entry.test.accuracy),
            "macro_f1": entry.test.macro_f1.value,
            "auroc": entry.test.auroc.value,
            "shuffled_accuracy": entry.control.accuracy.value,
            "": "<- best" if entry.layer == result.best_layer else "",
        }
        for entry in result.layers
    ]
    sizes = f"{result.n_train:,} train, {result.n_test:,} test"
    title = f"{result.site}, {result.kind} probe: {sizes}, chance {result.chance:.3f}"
    print_rows(title, rows, as_json=False)


def print_persistence(result: "PersistenceResult") -> None:
    """Print a table of emotions: scores along the continuation and half-lives."""
    curves = [result.curve(emotion, reader) for reader in ("refit", "offset-0") for emotion in ("all", *result.emotions)]
    rows: list[Row] = [
        {"reader": curve.reader, "emotion": curve.emotion}
        | {f"@{offset}": curve.auroc[index].value for index, offset in enumerate(result.offsets) if index % 2 == 0}
        | {"half_life": half_life_text(curve, result.offsets[-1])}
        for curve in curves
    ]
    title = f"AUROC along the continuation, layer {result.layer}, {result.n_utterances:,} utterances, chance 0.5"
    print_rows(title, rows, as_json=False)


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
