"""affectome compare: runs of the same utterances beside each other."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import AddressOption, KindOption, StoreArgument, WorkersOption
from cluster.execution import Execution


def compare(
    store: StoreArgument,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="The first is set beside the others.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("affectome-comparison"),
    kind: KindOption = "linear",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Set runs of the same utterances beside each other by relative depth; write comparison.md and print where."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = [open_store(store).run(run) for run in runs]
    typer.echo(pipeline.compare_runs(opened, kind, out, Execution(workers, address)))
