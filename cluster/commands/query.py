"""affectome query: SQL over everything in a store that is not a tensor; and any slice of a run's states, as an array."""

import itertools
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import JsonOption, StoreArgument
from cluster.console import Fact, Row, in_one_line, note, print_json, print_rows, visible

if TYPE_CHECKING:  # they take seconds to load
    from analyze.exporting import Slice
    from analyze.query import Store

DEFAULT_SITE = "resid.last"
DEFAULT_ROWS = 50
DEFAULT_TIMEOUT_S = 60.0  # analyze.sql.TIMEOUT_S
DEFAULT_MEMORY = "4GB"  # analyze.sealed.MEMORY
_ROWS_OF_STATES = 5
_NUMBERS_SHOWN = 4


def query(
    store: StoreArgument,
    sql: Annotated[
        str | None,
        typer.Argument(
            metavar="[SQL]",
            help="A SELECT over runs, utterances, replies, receipts, probes, scores and more (docs/query.md).",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Instead of SQL, states of this run: its id, or how it begins.", show_default=False),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="With --run: where; resid.last without it.", show_default=False)
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="With --run: which layer.", show_default=False)] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="With --run: a SQL condition over the utterances' columns.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Write it all here: .parquet, .csv or .json; of states .npy, .parquet or .safetensors."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Most rows to print; 50 of a table and all with --json.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that SQL may take.")] = DEFAULT_TIMEOUT_S,
    memory: Annotated[str, typer.Option("--memory", help="Memory that SQL may take.")] = DEFAULT_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Ask a store in SQL, or take any slice of a run's states."""
    from analyze.query import open_store

    if (sql is None) == (run is None):
        raise ValueError(
            'give either a SELECT, as in affectome query STORE "SELECT * FROM runs", or --run RUN and --layer LAYER'
        )
    if run is None:
        assert sql is not None, "one of the two is given"
        misplaced = [name for name, value in (("--site", site), ("--layer", layer), ("--where", where)) if value is not None]
        if misplaced:
            raise ValueError(f"{' and '.join(misplaced)} choose states of a --run; in SQL, write a WHERE")
        _ask(open_store(store), sql, out, limit, timeout, memory, as_json)
    else:
        _slice(open_store(store), run, site or DEFAULT_SITE, layer, where, out, limit, as_json)


def _ask(store: "Store", sql: str, out: str | None, limit: int | None, timeout: float, memory: str, as_json: bool) -> None:
    from analyze.exporting import ANSWERS, json_rows, json_text, target, write_answer
    from analyze.sql import answer

    path = None if out is None else target(out, ANSWERS, store.stored.objects)
    with answer(store, sql, timeout_s=timeout, memory=memory) as found:
        if path is not None:
            n_rows = write_answer(found, path)
            note(f"wrote {n_rows:,} rows to {path}")
            return
        if as_json and limit is None:
            for piece in json_text(found):
                sys.stdout.write(piece)
            return
        most = limit or DEFAULT_ROWS
        rows: list[dict[str, Any]] = []
        for batch in found.batches:
            rows += json_rows(batch.slice(0, most + 1 - len(rows)))
            if len(rows) > most:
                break
        shown = rows[:most]
        if as_json:
            print_json(shown)
        elif shown:
            print_rows(f"{len(shown):,} row{'s' * (len(shown) > 1)}", [_cells(row) for row in shown], as_json=False, exact=True)
        else:
            note(f"no rows (columns: {', '.join(found.schema.names)})")
    if len(rows) > most:
        note(f"there are more rows than these {most:,}; --limit shows more of them, --out FILE.parquet keeps all")


def _slice(
    store: "Store",
    run: str,
    site: str,
    layer: int | None,
    where: str | None,
    out: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    from analyze.exporting import SLICES, Slice, target, write_slice

    path = None if out is None else target(out, SLICES, store.stored.objects)
    opened = store.run(run)
    if layer is None:
        raise ValueError(f"give --layer, one of {', '.join(map(str, opened.layers_of(site)))} of {site}")
    states = Slice.of(opened, site, layer, where)
    if path is not None:
        shape = write_slice(states, path)
        note(f"wrote {_shape(shape)} of {states.rows.num_rows:,} utterances to {path}")
    else:
        _show(states, limit or _ROWS_OF_STATES, as_json)


def _show(states: "Slice", n_shown: int, as_json: bool) -> None:
    """A few utterances and how their states begin; no other states are read."""
    shown = states.head(n_shown)
    hidden, row_offsets = shown.hidden()
    n_rows = states.rows.num_rows
    per_row = hidden if row_offsets is None else [hidden[a:b] for a, b in itertools.pairwise(row_offsets)]
    shape = [n_rows, *hidden.shape[1:]] if row_offsets is None else [None, hidden.shape[1]]
    rows: list[dict[str, Any]] = [
        {**{name: row[name] for name in ("row", "utterance_id", "label", "text") if name in row}, "hidden": each.tolist()}
        for row, each in zip(shown.rows.to_pylist(), per_row, strict=True)
    ]
    if as_json:
        print_json({**states.provenance, "n_utterances": n_rows, "shape": shape, "rows": rows})
        return
    size = (
        f"{n_rows:,} utterances of varying length, each token {hidden.shape[1]:,} numbers" if row_offsets is not None else None
    )
    title = f"run {states.run.run_id}, {states.site}, layer {states.layer}: {size or _shape(tuple(shape))}"
    print_rows(title, [_begins(row) for row in rows], as_json=False, exact=True)
    if n_rows > len(rows):
        note(f"these are the first {len(rows):,}; --out FILE.npy, .parquet or .safetensors keeps all")


def _begins(row: dict[str, Any]) -> Row:
    numbers = row["hidden"]
    while numbers and isinstance(numbers[0], list):
        numbers = numbers[0]
    begins = " ".join(f"{number:.3g}" for number in numbers[:_NUMBERS_SHOWN])
    return {**row, "text": in_one_line(str(row["text"])), "hidden": f"{begins} …"}


def _cells(row: dict[str, Any]) -> Row:
    """Values as a table shows them."""
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> Fact:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return [visible(str(each)) for each in value]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)
