"""affectome nearest, affectome along: the utterances whose states are most alike, and those at both ends of a direction."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import (
    BalanceOption,
    JsonOption,
    MaybeKindOption,
    RunArgument,
    SiteOption,
    SolverOption,
    StoreArgument,
    StrengthOption,
)
from cluster.console import Row, in_one_line, note, print_json, print_rows

if TYPE_CHECKING:  # they take seconds to load
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from analyze.directions import ProbeDirection
    from analyze.query import Run

DEFAULT_COLUMN = "label"
DEFAULT_BALANCE = "none"
DEFAULT_SOLVER = "affectome"
_SHOWN = ("score", "row", "utterance_id", "label", "text")

LayerOption = Annotated[int, typer.Option("--layer", help="Which layer; 0 is the embedding output.", show_default=False)]
CountOption = Annotated[int, typer.Option("-k", min=1, help="How many utterances.")]
OutOption = Annotated[
    str | None, typer.Option("--out", help="Write the utterances with all their columns here: .parquet, .csv or .json.")
]


def nearest(
    store: StoreArgument,
    run: RunArgument,
    layer: LayerOption,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="A new text, which the run's own model reads.", show_default=False)
    ] = None,
    rows: Annotated[list[int] | None, typer.Option("--row", help="A row of the run.", show_default=False)] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE.npy", help="A vector, or several.", show_default=False)
    ] = None,
    site: SiteOption = "resid.last",
    k: CountOption = 10,
    metric: Annotated[str, typer.Option("--metric", help="cosine, dot or euclidean.")] = "cosine",
    scaling: Annotated[
        str, typer.Option("--scaling", help="none; centred (less the run's mean); standardised (and by its deviations).")
    ] = "none",
    where: Annotated[
        str | None, typer.Option("--where", help="Only utterances that fulfil this SQL condition.", show_default=False)
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the utterances whose states are nearest to those of a text, a row or a vector."""
    from analyze.exporting import ANSWERS, target
    from analyze.query import open_store
    from analyze.similarity import check_search

    if sum(given is not None for given in (texts or None, rows or None, vector)) != 1:
        raise ValueError("give one of --text, --row and --vector; --text and --row may be repeated")
    opened_store = open_store(store)
    path = None if out is None else target(out, ANSWERS, opened_store.stored.objects)
    opened = opened_store.run(run)
    check_search(opened, site, k, metric)
    queries = texts or (opened.hidden(site, layer, rows=rows) if rows else _read_vectors(vector))
    found = opened.nearest(site, layer, queries, k, where, metric=metric, scaling=scaling)
    shown: tuple[str, ...] = ("query", *_SHOWN)
    if not any(found["query"].to_pylist()):  # one query needs no number
        found, shown = found.drop_columns(["query"]), _SHOWN
    if path is not None:
        _write(found, path)
        return
    scored = metric if scaling == "none" else f"{scaling} {metric}"
    asked = {"text": texts or None, "row": rows or None, "vector": None if vector is None else str(vector)}
    how = {"metric": metric, "scaling": scaling, **asked, "where": where}
    _show(opened, site, layer, found.select([name for name in shown if name in found.column_names]), scored, how, as_json)


def along(
    store: StoreArgument,
    run: RunArgument,
    layer: LayerOption,
    label: Annotated[
        str | None, typer.Option("--label", help="A class of a probe that affectome probe kept.", show_default=False)
    ] = None,
    column: Annotated[
        str, typer.Option("--column", help="The column that the probe reads; for numbers instead of --label.")
    ] = DEFAULT_COLUMN,
    kind: MaybeKindOption = None,
    balance: BalanceOption = DEFAULT_BALANCE,
    strength: StrengthOption = None,
    solver: SolverOption = DEFAULT_SOLVER,
    where: Annotated[
        str | None,
        typer.Option("--where", help="With --other: to the mean of these, a SQL condition.", show_default=False),
    ] = None,
    other: Annotated[
        str | None, typer.Option("--other", help="With --where: from the mean of these.", show_default=False)
    ] = None,
    site: SiteOption = "resid.last",
    k: CountOption = 10,
    among: Annotated[
        str | None, typer.Option("--among", help="Only utterances that fulfil this SQL condition.", show_default=False)
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the utterances at both ends of a direction: of a probe's class, or from one mean state to another."""
    from analyze.directions import mean_difference, probe_direction
    from analyze.exporting import ANSWERS, target
    from analyze.query import open_store

    settings = (column, kind, balance, strength, solver)
    of_probe = label is not None or settings != (DEFAULT_COLUMN, None, DEFAULT_BALANCE, None, DEFAULT_SOLVER)
    of_means = where is not None and other is not None
    if of_probe == of_means or (where is None) != (other is None):
        raise ValueError(
            "give a --label of a kept probe (or its --column of numbers), or both --where and --other; --among says which "
            "utterances are found"
        )
    opened_store = open_store(store)
    path = None if out is None else target(out, ANSWERS, opened_store.stored.objects)
    opened = opened_store.run(run)
    if where is not None and other is not None:
        direction_D = mean_difference(opened, site, layer, where, other)
        of: dict[str, Any] = {"where": where, "other": other}
        scored = f"projection from {other!r} to {where!r}"
    else:
        probe = probe_direction(
            opened, site, layer, label, column=column, kind=kind, balance=balance, strength=strength, solver=solver
        )
        direction_D, of, scored = probe.vector_D, {"label": probe.label, **asdict(probe.spec)}, _along(probe)
    found = opened.along(site, layer, direction_D, k, among)
    if len(set(found["row"].to_pylist())) < len(found):
        note(f"there are fewer than twice {k:,} utterances, so some are at both ends")
    if path is not None:
        _write(found, path)
        return
    shown = found.select([name for name in ("end", *_SHOWN) if name in found.column_names])
    _show(opened, site, layer, shown, scored, {"of": of, "among": among}, as_json)


def _along(probe: "ProbeDirection") -> str:
    """What a score along a probe's direction is, with the settings of the probe that are not the usual ones."""
    spec = probe.spec
    said = (
        f"balance {spec.balance}" if spec.balance != DEFAULT_BALANCE else "",
        "" if spec.strength is None else f"regularisation {spec.strength:g}",
        f"solver {spec.solver}" if spec.solver != DEFAULT_SOLVER else "",
    )
    label = "" if probe.label is None else f"{probe.label!r} of "
    return ", ".join(filter(None, (f"projection along {label}the {spec.kind} probe of {spec.column!r}", *said)))


def _read_vectors(path: Path | None) -> "NDArray[np.float64]":
    import numpy as np

    assert path is not None, "one of the three is given"
    try:
        with path.open("rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"cannot read numbers from {path}: {error}; save them with numpy.save") from error


def _write(found: "pa.Table", path: Path) -> None:
    from analyze.exporting import write_answer
    from analyze.sql import Answer

    n_rows = write_answer(Answer(found.schema, iter(found.to_batches())), path)
    note(f"wrote {n_rows:,} rows to {path}")


def _show(run: "Run", site: str, layer: int, found: "pa.Table", scored: str, how: dict[str, Any], as_json: bool) -> None:
    rows = found.to_pylist()
    if as_json:
        print_json({"run_id": run.run_id, "site": site, "layer": layer, "score": scored, **how, "utterances": rows})
    elif rows:
        title = f"{scored}, {site}, layer {layer}, run {run.run_id}"
        print_rows(title, [_brief(row) for row in rows], as_json=False, exact=True)
    else:
        note(f"no utterance of run {run.run_id} fulfils the condition")


def _brief(row: dict[str, Any]) -> Row:
    return {name: in_one_line(value) if isinstance(value, str) else value for name, value in row.items()}
