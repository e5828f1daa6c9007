"""Answers and slices of states as files: each is written beside and takes its name when it is whole.

Rows of an answer go to disk as they are made. Of a slice every format but .npy says which run, site, layer and rows it is of;
.npy holds the array alone, for whoever wants nothing else.

Shape suffixes: N utterances, T tokens, O offsets, D width.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from analyze.sql import Answer
from extract import durable
from extract.encoding import Values
from extract.objects import LocalObjects, Objects
from extract.sites import Site

ANSWERS = (".parquet", ".csv", ".json")
"""What the name of a file with an answer may end in."""
SLICES = (".npy", ".parquet", ".safetensors")
"""What the name of a file with states may end in."""

HIDDEN = "hidden"
"""The column or tensor of the states."""

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
    """Rows as JSON has them: NaN and infinities as null, times in ISO 8601, bytes in hex, what else JSON lacks as text.

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
            return int(value) if value.as_tuple().exponent == 0 else float(value)
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
    """States of some utterances at one layer of one site, and whose they are."""

    run: Run
    """The run."""
    site: str
    """Such as `resid.last`."""
    layer: int
    """0 for the embedding output, i for block i."""
    where: str | None
    """The condition that chose the utterances."""
    rows: pa.Table
    """The utterances, N of them, with all their columns."""

    @classmethod
    def of(cls, run: Run, site: str, layer: int, where: str | None = None) -> "Slice":
        """The slice that a condition chooses; no state is read yet.

        Raises:
            ValueError: the condition is not SQL over the columns of the utterances.
        """
        return cls(run, site, layer, where, run.utterances(where))

    def head(self, n: int) -> "Slice":
        """The first utterances of it."""
        return Slice(self.run, self.site, self.layer, self.where, self.rows.slice(0, n))

    @property
    def of_tokens(self) -> bool:
        """Whether the site keeps every token of an utterance."""
        return Site.parse(self.site).position == "all"

    def hidden(self, dtype: str = "float32") -> tuple[Values, NDArray[np.int64] | None]:
        """(N, D) or (N, O, D) and None; or, where every token is kept, (T, D) and where the tokens of each utterance begin.

        Args:
            dtype: as for Run.hidden.

        Raises:
            ValueError: as from Run.hidden.
        """
        numbers = self.rows["row"].to_pylist()
        if not self.of_tokens:
            return self.run.hidden_rows(self.site, self.layer, np.asarray(numbers, np.int64), dtype), None
        whole = len(numbers) == self.run.manifest.n_rows  # the rows themselves: a condition may choose others the next time
        chosen = None if whole else f"row IN ({', '.join(map(str, numbers)) or 'NULL'})"
        states = self.run.hidden_tokens(self.site, self.layer, chosen, dtype)
        return states.hidden, states.row_offsets

    @property
    def provenance(self) -> dict[str, Any]:
        """What the states are of."""
        manifest = self.run.manifest
        identity = manifest.identity
        return {
            "run_id": self.run.run_id,
            "site": self.site,
            "layer": self.layer,
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
    """Write states as .npy, .parquet or .safetensors, and say of which shape they are.

    Raises:
        ValueError: as from Run.hidden; or the format cannot hold them.
    """
    write = {".npy": _slice_npy, ".parquet": _slice_parquet, ".safetensors": _slice_safetensors}[path.suffix.lower()]
    with durable.replacing(path) as file:
        return write(states, file)


def _slice_npy(states: Slice, file: BinaryIO) -> tuple[int, ...]:
    if states.of_tokens:
        raise ValueError(
            f"{states.site} keeps every token, and .npy cannot say where an utterance ends; write .parquet or .safetensors"
        )
    hidden, _ = states.hidden()
    np.lib.format.write_array(file, hidden, allow_pickle=False)
    return hidden.shape


def _slice_parquet(states: Slice, file: BinaryIO) -> tuple[int, ...]:
    if HIDDEN in states.rows.column_names:
        raise ValueError(
            f"the corpus has a column {HIDDEN!r} of its own, so the states cannot be called that; write .safetensors"
        )
    hidden, row_offsets = states.hidden()
    column = pa.array(hidden.reshape(-1))
    for length in reversed(hidden.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, int(length))
    if row_offsets is not None:
        column = pa.LargeListArray.from_arrays(pa.array(row_offsets), column)
    table = states.rows.append_column(HIDDEN, column)
    table = table.replace_schema_metadata({"affectome": json.dumps(states.provenance)})
    row_bytes = max(1, hidden.nbytes // max(1, table.num_rows))
    with pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=max(1, _GROUP_BYTES // row_bytes))
    return hidden.shape


def _slice_safetensors(states: Slice, file: BinaryIO) -> tuple[int, ...]:
    """The header by hand: the library wants every tensor as bytes, which doubles what a slice of gigabytes needs."""
    as_stored = states.run.manifest.identity.stored_dtype == "bfloat16"
    hidden, row_offsets = states.hidden("stored" if as_stored else "float32")
    tensors = {HIDDEN: ("BF16" if as_stored else "F32", hidden), "row": ("I64", states.rows["row"].to_numpy())}
    if row_offsets is not None:
        tensors["row_offsets"] = ("I64", row_offsets)
    header: dict[str, Any] = {"__metadata__": {"affectome": json.dumps(states.provenance)}}
    end = 0
    for name, (kind, values) in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, values in tensors.values():
        file.write(np.ascontiguousarray(values).data)
    return hidden.shape
