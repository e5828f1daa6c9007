"""affectome transfer: does what a probe learned in one place hold in another?"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import (
    AddressOption,
    JsonOption,
    KindOption,
    LayersOption,
    SiteOption,
    StoreArgument,
    StrengthOption,
    WorkersOption,
    chosen_layers,
)
from cluster.console import Row, print_json, print_rows
from cluster.execution import Execution

if TYPE_CHECKING:  # it takes seconds to load
    from analyze.scores import Interval
    from analyze.transfer import TransferResult


def transfer(
    store: StoreArgument,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to train on and to test on.", show_default=False)],
    by: Annotated[
        str | None,
        typer.Option(help="With one run: a column whose values are the conditions, such as keyword.", show_default=False),
    ] = None,
    site: SiteOption = "resid.last",
    layers: LayersOption = "all",
    kind: KindOption = "linear",
    strength: StrengthOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a probe on each of several runs, or conditions of one, and test it on every one."""
    from analyze.probes import ProbeSpec
    from analyze.query import open_store
    from analyze.transfer import Source, by_values
    from cluster import pipeline

    if (by is None) == (len(runs) == 1):
        raise ValueError("give two runs or more, or one run and --by COLUMN")
    opened = [open_store(store).run(run) for run in runs]
    sources = [Source(run.run_id, run) for run in opened] if by is None else by_values(opened[0], by)
    chosen = chosen_layers(opened[0], site, layers)
    result = pipeline.transfer(sources, site, chosen, ProbeSpec(kind, strength), Execution(workers, address))
    if as_json:
        print_json(asdict(result))
    else:
        print_transfer(result)


def print_transfer(result: "TransferResult") -> None:
    """Print a table of every pair of sources, at the layer that is best for the source trained on."""
    rows: list[Row] = []
    for train, layer in zip(result.sources, result.best_layers, strict=True):
        for test in result.sources:
            cell = result.cell(layer, train, test)
            affect: Row = {} if cell.affect_auroc is None else {"emotion_or_neutral_auroc": _text(cell.affect_auroc)}
            rows.append(
                {
                    "trained_on": train,
                    "layer": layer,
                    "tested_on": test,
                    "accuracy_[95%]": _text(cell.accuracy),
                    "auroc_[95%]": _text(cell.auroc),
                    "less_than_its_own": _text(cell.loss),
                    **affect,
                }
            )
    print_rows(f"{result.site}, {result.spec.kind} probe, {len(result.classes)} labels", rows, as_json=False)


def _text(interval: "Interval") -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
