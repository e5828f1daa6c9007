"""Answers and slices of states as files: each is written beside and takes its name when it is whole.

Rows of an answer go to disk as they are made, and states layer by layer or some rows at a time. Of a slice every format but
.npy says which run, site, layers and rows it is of; .npy holds the array alone, for whoever wants nothing else.

Shape suffixes: N utterances, T tokens, O offsets, D width.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from analyze.query import Run
from analyze.slices import Reading
from analyze.sql import Answer
from extract import durable
from extract.encoding import Values
from extract.objects import LocalObjects, Objects
from extract.sites import Site

ANSWERS = (".parquet", ".csv", ".json")
"""What the name of a file with an answer may end in."""
DATASET = ".dataset"
"""What the name of a directory with a dataset of Hugging Face's ends in."""
SLICES = (".npy", ".parquet", ".safetensors", DATASET)
"""What the name of a file with states may end in."""

HIDDEN = "hidden"
"""The column or tensor of the states; of several layers the columns are called `hidden_8` and so on."""

_SAFETENSORS = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
"""What a stored dtype is called there, and how many bytes a number of it has."""
_GROUP_BYTES = 64 << 20
_NESTED = (pa.types.is_nested, pa.types.is_map, pa.types.is_binary, pa.types.is_interval)


def target(out: str, suffixes: Sequence[str], store: Objects) -> Path:
    """The file a name stands for, before anything is computed for it.

    Raises:
        ValueError: its ending says no format, it cannot be written there, or it would lie inside the store.
    """
    path = Path(out).expanduser().absolute()
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot tell what to write to {out!r}; let its name end in {', '.join(suffixes)}")
    if "://" in out or not path.parent.is_dir():
        raise ValueError(f"there is no directory {path.parent} on this machine; make it first, or write to another")
    if path.suffix.lower() == DATASET and path.exists():
        raise ValueError(f"there is something at {path} already; remove it, or give another name")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a name in it")
    if isinstance(store, LocalObjects) and path.resolve().is_relative_to(store.root.resolve()):
        raise ValueError(f"{path} would lie inside the store, which only affectome writes to; give a place outside of it")
    return path


def write_answer(answer: Answer, path: Path) -> int:
    """Write an answer's rows as .parquet, .csv, or a JSON list of objects, and say how many they were."""
    write = {".parquet": _answer_parquet, ".csv": _answer_csv, ".json": _answer_json}[path.suffix.lower()]
    with durable.replacing(path) as file:
        return write(answer, file)


def json_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as JSON has them: NaN and infinities as null, times in ISO 8601, bytes in hex, decimals that no number holds and
    what else JSON lacks as text.

    Raises:
        ValueError: a time is beyond what Python knows.
    """
    try:
        return [{name: _plain(value) for name, value in row.items()} for row in batch.to_pylist()]
    except (OverflowError, ValueError) as error:
        raise ValueError(f"a time cannot be said in ISO 8601: {error}; cast its column to VARCHAR") from error


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case pa.MonthDayNano():
            return {"months": value.months, "days": value.days, "nanoseconds": value.nanoseconds}
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() if value and all(type(each) is tuple for each in value):  # Arrow has maps as pairs
            return {str(_plain(key)): _plain(each) for key, each in value}
        case list() | tuple():
            return [_plain(each) for each in value]
    return str(value)


def _number(value: Decimal) -> int | float | str:
    """A decimal as a number where that says all of its digits, else as text."""
    if value.as_tuple().exponent == 0:
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _answer_parquet(answer: Answer, file: BinaryIO) -> int:
    schema, n_rows = _as_text(answer.schema, pa.types.is_interval), 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in _texts(answer, schema):
            writer.write_batch(batch)
            n_rows += batch.num_rows
    return n_rows


def _answer_csv(answer: Answer, file: BinaryIO) -> int:
    schema, n_rows = _as_text(answer.schema, lambda kind: any(holds(kind) for holds in _NESTED)), 0
    with pyarrow.csv.CSVWriter(file, schema) as writer:
        for batch in _texts(answer, schema):
            writer.write_batch(batch)
            n_rows += batch.num_rows
    return n_rows


def _answer_json(answer: Answer, file: BinaryIO) -> int:
    n_rows = -2  # the list is opened and closed
    for piece in json_text(answer):
        file.write(piece.encode())
        n_rows += 1
    return n_rows


def json_text(answer: Answer) -> Iterator[str]:
    """A JSON list of objects: what opens the list, each object, and what closes it."""
    yield "["
    before = "\n"
    for batch in answer.batches:
        for row in json_rows(batch):
            yield f"{before} {json.dumps(row, ensure_ascii=False, allow_nan=False)}"
            before = ",\n"
    yield "\n]\n"


def _as_text(schema: pa.Schema, told: Callable[[pa.DataType], bool]) -> pa.Schema:
    """The schema with text where a file has no such type."""
    return pa.schema([field.with_type(pa.string()) if told(field.type) else field for field in schema])


def _texts(answer: Answer, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows with JSON where the schema wants text of what is none."""
    for batch in answer.batches:
        columns = [
            column if column.type == field.type else pa.array([_json(value) for value in column.to_pylist()], pa.string())
            for column, field in zip(batch.columns, schema, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _json(value: Any) -> str | None:
    plain = _plain(value)
    return plain if plain is None or isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """States of some utterances at one layer of one site, or at several, and whose they are."""

    run: Run
    """The run."""
    site: str
    """Such as `resid.last`."""
    layer: int | tuple[int, ...]
    """0 for the embedding output, i for block i; or several, ascending."""
    where: str | None
    """The condition that chose the utterances."""
    rows: pa.Table
    """The utterances, N of them, with all their columns."""

    @classmethod
    def of(cls, run: Run, site: str, layer: int | tuple[int, ...], where: str | None = None) -> "Slice":
        """The slice that a condition chooses; no state is read yet.

        Raises:
            ValueError: the condition is not SQL over the columns of the utterances.
        """
        return cls(run, site, layer, where, run.utterances(where))

    def head(self, n: int) -> "Slice":
        """The first utterances of it."""
        return replace(self, rows=self.rows.slice(0, n))

    def pieces(self) -> Iterator["Slice"]:
        """Slices of consecutive utterances, each of about 64 MiB as float32; one where there are no utterances.

        Raises:
            ValueError: as from Run.explain.
        """
        n_rows = max(1, self.rows.num_rows)
        step = max(1, _GROUP_BYTES * n_rows // max(1, self.explain().memory_bytes))
        for start in range(0, n_rows, step):
            yield replace(self, rows=self.rows.slice(start, step))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer, or all of them."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @property
    def by_layer(self) -> Mapping[str, "Slice"]:
        """For each layer the name of its column, `hidden` where it is alone and else such as `hidden_8`, and its slice."""
        if isinstance(self.layer, int):
            return {HIDDEN: self}
        return {f"{HIDDEN}_{layer}": replace(self, layer=layer) for layer in self.layer}

    @property
    def of_tokens(self) -> bool:
        """Whether the site keeps every token of an utterance."""
        return Site.parse(self.site).position == "all"

    def explain(self) -> Reading:
        """What reading it touches and gives; no state is read for it.

        Raises:
            ValueError: as from Run.explain.
        """
        return self.run.explain(self.site, self.layer, rows=self._numbers)

    def hidden(self, dtype: str = "float32") -> tuple[Values, NDArray[np.int64] | None]:
        """(N, D) or (N, O, D) and None; or, where every token is kept, (T, D) and where the tokens of each utterance begin.

        Several layers are an axis before.

        Args:
            dtype: as for Run.hidden.

        Raises:
            ValueError: as from Run.hidden.
        """
        if not self.of_tokens:
            return self.run.hidden_rows(self.site, self.layer, self._numbers, dtype), None
        states = self.run.hidden_tokens(self.site, self.layer, dtype=dtype, rows=self._numbers)
        return states.hidden, states.row_offsets

    @property
    def _numbers(self) -> NDArray[np.int64]:
        """The rows themselves: a condition may choose others the next time."""
        return np.asarray(self.rows["row"].to_numpy(), np.int64)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the states are of; `layer`, or `layers` where they are several."""
        manifest = self.run.manifest
        identity = manifest.identity
        return {
            "run_id": self.run.run_id,
            "site": self.site,
            **({"layer": self.layer} if isinstance(self.layer, int) else {"layers": list(self.layer)}),
            "n_layers": manifest.n_layers,
            "where": self.where,
            "model": manifest.model,
            "weights": identity.weights,
            "corpus": manifest.corpus,
            "template": manifest.template,
            "system": manifest.system,
            "offsets": list(identity.offsets) if Site.parse(self.site).on_grid else [],
            "compute_dtype": identity.compute_dtype,
            "stored_dtype": identity.stored_dtype,
        }


def write_slice(states: Slice, path: Path) -> tuple[int, ...]:
    """Write states as .npy, .parquet, .safetensors or .dataset, and say of which shape they are.

    No more is in memory than one layer, or a piece of 64 MiB for formats that have a row for each utterance.

    Raises:
        ValueError: as from Run.hidden; or the format cannot hold them.
    """
    shape = states.explain().shape
    if path.suffix.lower() == DATASET:
        from analyze.hub_dataset import write_dataset  # which builds on this

        write_dataset(states, path)
        return shape
    write = {".npy": _slice_npy, ".parquet": _slice_parquet, ".safetensors": _slice_safetensors}[path.suffix.lower()]
    with durable.replacing(path) as file:
        write(states, file, shape)
    return shape


def _slice_npy(states: Slice, file: BinaryIO, shape: tuple[int, ...]) -> None:
    if states.of_tokens:
        raise ValueError(
            f"{states.site} keeps every token, and .npy cannot say where an utterance ends; write .parquet or .safetensors"
        )
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for of_layer in states.by_layer.values():
        file.write(of_layer.hidden()[0].data)


def _slice_parquet(states: Slice, file: BinaryIO, _: tuple[int, ...]) -> None:
    found = tables(states, "write .safetensors")
    first = next(found)
    with pyarrow.parquet.ParquetWriter(file, first.schema, compression="zstd") as writer:
        for table in itertools.chain([first], found):
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def tables(states: Slice, instead: str) -> Iterator[pa.Table]:
    """The utterances with their states, piece after piece: `hidden`, or a column such as `hidden_8` for each of several layers.

    Args:
        instead: what to do where the corpus has such a column.

    Raises:
        ValueError: the corpus has a column called so; or as from Run.hidden.
    """
    taken = sorted(states.by_layer.keys() & set(states.rows.column_names))
    if taken:
        raise ValueError(f"the corpus has a column {taken[0]!r} of its own, so the states cannot be called that; {instead}")
    for piece in states.pieces():
        table = piece.rows
        for name, of_layer in piece.by_layer.items():
            table = table.append_column(name, _column(*of_layer.hidden()))
        yield table.replace_schema_metadata({"affectome": json.dumps(states.provenance)})


def _column(hidden: Values, row_offsets: NDArray[np.int64] | None) -> pa.Array:
    column = pa.array(hidden.reshape(-1))
    for length in reversed(hidden.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, int(length))
    return column if row_offsets is None else pa.LargeListArray.from_arrays(pa.array(row_offsets), column)


def _slice_safetensors(states: Slice, file: BinaryIO, shape: tuple[int, ...]) -> None:
    """The header by hand: the library wants every tensor as bytes, which doubles what a slice of gigabytes needs."""
    kind, itemsize = _SAFETENSORS[states.run.manifest.identity.stored_dtype]
    n_rows = states.rows.num_rows
    sizes = {HIDDEN: (kind, shape, itemsize), "row": ("I64", (n_rows,), 8)}
    if states.of_tokens:
        sizes["row_offsets"] = ("I64", (n_rows + 1,), 8)
    header: dict[str, Any] = {"__metadata__": {"affectome": json.dumps(states.provenance)}}
    end = 0
    for name, (of_kind, lengths, n_bytes) in sizes.items():
        begin, end = end, end + math.prod(lengths) * n_bytes
        header[name] = {"dtype": of_kind, "shape": list(lengths), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for of_layer in states.by_layer.values():
        hidden, row_offsets = of_layer.hidden("stored")
        file.write(hidden.data)
    file.write(states.rows["row"].to_numpy().data)
    if row_offsets is not None:
        file.write(row_offsets.data)
