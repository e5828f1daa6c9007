"""affectome query: SQL over everything in a store that is not a tensor; and any slice of a run's states, as an array."""

import itertools
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.options import JsonOption, StoreArgument, chosen_layers
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
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", help="With --run: a layer, or several as in 8,12 or 0:12, ascending, or all.", show_default=False
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="With --run: a SQL condition over the utterances' columns.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", help="Write it all here: .parquet, .csv or .json; of states .npy, .parquet, .safetensors or .dataset."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Most rows to print; 50 of a table and all with --json.", show_default=False),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="With --run: print what would be read, and read no states.")
    ] = False,
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
    if out is not None and explain:
        raise ValueError("--explain reads no states, so there is nothing for --out to write; leave out one of the two")
    if out is not None and limit is not None:
        raise ValueError("--limit is of rows that are printed, and --out writes all; choose rows by LIMIT in SQL or by --where")
    opened = open_store(store)
    if run is None:
        assert sql is not None, "one of the two is given"
        misplaced = [name for name, value in (("--site", site), ("--layer", layer), ("--where", where)) if value is not None]
        if misplaced:
            raise ValueError(f"{' and '.join(misplaced)} choose states of a --run; in SQL, write a WHERE")
        if explain:
            raise ValueError("--explain says what reading states of a --run would touch; SQL reads none")
        _ask(opened, sql, out, limit, timeout, memory, as_json)
        return
    states = _slice(opened, run, site or DEFAULT_SITE, layer, where)
    if explain:
        _explain(states, as_json)
    elif out is not None:
        _write(states, out, opened)
    else:
        _show(states, limit or _ROWS_OF_STATES, as_json)


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


def _slice(store: "Store", run: str, site: str, layer: str | None, where: str | None) -> "Slice":
    from analyze.exporting import Slice

    opened = store.run(run)
    if layer is None:
        raise ValueError(f"give --layer, one or several of {', '.join(map(str, opened.layers_of(site)))} of {site}")
    layers = chosen_layers(opened, site, layer)
    if layers != tuple(each for part in layer.split(",") for each in chosen_layers(opened, site, part)):
        ascending = ",".join(map(str, layers))
        raise ValueError(f"layers come in ascending order, each once; write --layer {ascending} instead of {layer}")
    return Slice.of(opened, site, layers[0] if len(layers) == 1 else layers, where)


def _write(states: "Slice", out: str, store: "Store") -> None:
    from analyze.exporting import SLICES, target, write_slice

    path = target(out, SLICES, store.stored.objects)
    shape = write_slice(states, path)
    note(f"wrote {_shape(shape)} of {states.rows.num_rows:,} utterances at {_layers(states)} to {path}")


def _explain(states: "Slice", as_json: bool) -> None:
    """What reading would touch and give."""
    reading = states.explain()
    facts: dict[str, Any] = {
        "objects": reading.n_objects,
        "chunks": reading.n_chunks,
        "bytes": reading.n_bytes,
        "memory_bytes": reading.memory_bytes,
    }
    if as_json:
        print_json({**states.provenance, "n_utterances": states.rows.num_rows, "shape": list(reading.shape), **facts})
    else:
        print_rows(_title(states, _shape(reading.shape)), [facts], as_json=False)


def _show(states: "Slice", n_shown: int, as_json: bool) -> None:
    """A few utterances and how their states begin; no other states are read."""
    shown, n_rows = states.head(n_shown), states.rows.num_rows
    rows: list[dict[str, Any]] = []
    for of_layer in shown.by_layer.values():
        hidden, row_offsets = of_layer.hidden()
        named = {"layer": of_layer.layer} if isinstance(states.layer, tuple) else {}
        per_row = hidden if row_offsets is None else [hidden[a:b] for a, b in itertools.pairwise(row_offsets)]
        rows += [
            {
                **{name: row[name] for name in ("row", "utterance_id", "label", "text") if name in row},
                **named,
                "hidden": each.tolist(),
            }
            for row, each in zip(shown.rows.to_pylist(), per_row, strict=True)
        ]
    rows.sort(key=lambda row: row["row"])
    layers = [len(states.layers)] if isinstance(states.layer, tuple) else []
    shape = [*layers, n_rows, *hidden.shape[1:]] if row_offsets is None else [*layers, None, hidden.shape[1]]
    if as_json:
        print_json({**states.provenance, "n_utterances": n_rows, "shape": shape, "rows": rows})
        return
    of_tokens = f"{n_rows:,} utterances of varying length, each token {hidden.shape[-1]:,} numbers"
    title = _title(states, _shape(tuple(shape)) if row_offsets is None else of_tokens)
    if not rows:
        note(f"{title}; no utterance fulfils the condition")
        return
    print_rows(title, [_begins(row) for row in rows], as_json=False, exact=True)
    if n_rows > shown.rows.num_rows:
        note(f"these are the first {shown.rows.num_rows:,}; --out FILE.npy, .parquet, .safetensors or .dataset keeps all")


def _title(states: "Slice", size: str) -> str:
    return f"run {states.run.run_id}, {states.site}, {_layers(states)}: {size}"


def _layers(states: "Slice") -> str:
    return f"layer{'s' * (len(states.layers) > 1)} {', '.join(map(str, states.layers))}"


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
