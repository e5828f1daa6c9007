"""A corpus: a table of utterances, checked before anything is computed from it.

Reads Parquet, JSONL and CSV through fsspec, so a local path, `s3://`, `gs://` and `hf://` are one thing. Columns:
`text` is required; `utterance_id` is made from the row number where it is missing; `label` (null where a text has no
single label) is needed only by analyses; every other column is kept. Cleaning texts here was rejected: what the model
reads is what the user wrote.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

BUILTIN = "builtin"
"""Name of the corpus that ships with affectome."""

_STRING_COLUMNS = ("utterance_id", "text", "label")
_BLANK_IS_ABSENT = ("label", "split", "pair_id")
_LARGEST_LINE = 1 << 26


@dataclass(frozen=True, slots=True)
class Corpus:
    """Utterances in a fixed order."""

    name: str
    """Where it came from: `builtin` or the path or URL given."""
    table: pa.Table
    """Columns `utterance_id` and `text` (string, no nulls), perhaps `label` (string, nulls allowed), and the user's own."""

    @property
    def n_rows(self) -> int:
        """Number of utterances."""
        return int(self.table.num_rows)

    @property
    def digest(self) -> str:
        """SHA-256 over row ids and texts in order, each with its length in front so that no two corpora run together."""
        return texts_digest(self.table)

    def take(self, rows: list[int]) -> "Corpus":
        """The utterances at these row numbers, in the order given."""
        return Corpus(self.name, self.table.take(pa.array(rows, pa.int64())))

    def head(self, limit: int) -> "Corpus":
        """The first `limit` utterances.

        Raises:
            ValueError: the limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"a limit of {limit} leaves no utterance; give 1 or more")
        return Corpus(self.name, self.table.slice(0, limit))


def texts_digest(table: pa.Table) -> str:
    """The digest of a table's `utterance_id` and `text` columns (see Corpus.digest)."""
    digest = hashlib.sha256()
    for identifier, text in zip(table["utterance_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        for value in (identifier.encode(), text.encode()):
            digest.update(struct.pack("<Q", len(value)))
            digest.update(value)
    return digest.hexdigest()


def read_corpus(source: str) -> Corpus:
    """Read and check a corpus.

    Args:
        source: `builtin`, or a path or URL ending in .parquet, .jsonl, .ndjson or .csv.

    Raises:
        ValueError: there is no such file, it cannot be read, or it breaks one of the rules above; the message names the row.
    """
    if source == BUILTIN:
        return _check(BUILTIN, parquet_table(builtin_bytes("corpus.parquet")))
    suffix = PurePosixPath(source).suffix.lower()
    if suffix not in _PARSERS:
        raise ValueError(f"cannot tell the format of corpus {source!r}; it must end in {', '.join(sorted(_PARSERS))}")
    data = _read_bytes(source)
    try:
        table = _PARSERS[suffix](data)
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"corpus {source} is not a readable {suffix} file: {_first_line(error)}") from error
    return _check(source, table)


def read_passages() -> pa.Table:
    """The neutral passages that ship with affectome: columns `passage_id`, `title`, `text`."""
    return parquet_table(builtin_bytes("passages.parquet"))


def builtin_bytes(name: str) -> bytes:
    """The bytes of a file that ships in `extract/builtin`."""
    return resources.files("extract").joinpath("builtin", name).read_bytes()


def _read_bytes(source: str) -> bytes:
    try:
        with fsspec.open(source, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise ValueError(f"there is no corpus at {source}; give a file, or {BUILTIN!r} for the built-in one") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ValueError(f"cannot read corpus {source}: {error.strerror or error}") from error
    except Exception as error:  # each filesystem of fsspec has transport errors of its own; all mean the same here
        raise ValueError(f"cannot read corpus {source}: {_first_line(error)}") from error


def parquet_table(data: bytes) -> pa.Table:
    """The table in a Parquet file."""
    return pyarrow.parquet.ParquetFile(_in_arrows_memory(data)).read()  # read_table would load pandas where it is installed


def _in_arrows_memory(data: bytes) -> pa.BufferReader:
    """A file that Arrow reads without Python.

    To let go of Python's memory, or of a Python file, Arrow's threads need the interpreter, and where that happens while the
    process ends, it aborts: of commands that end soon after reading, one in fifty ("terminate called without an active
    exception", apache/arrow issues 34314 and 50482).
    """
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return pa.BufferReader(buffer)


def _parse_jsonl(data: bytes) -> pa.Table:
    if not data.strip():
        return pa.table({"text": pa.array([], pa.string())})
    return pyarrow.json.read_json(
        _in_arrows_memory(data),
        pyarrow.json.ReadOptions(block_size=_LARGEST_LINE),
        pyarrow.json.ParseOptions(explicit_schema=_json_schema(data)),
    )


def _json_schema(data: bytes) -> pa.Schema:
    """Strings for texts, ids and labels that are strings in the first line: Arrow would read dates out of them."""
    try:
        first = json.loads(data.lstrip().partition(b"\n")[0])
    except ValueError:
        first = None
    names = [name for name in _STRING_COLUMNS if isinstance(first, dict) and isinstance(first.get(name), str)]
    return pa.schema([(name, pa.string()) for name in names])


def _parse_csv(data: bytes) -> pa.Table:
    if not data.strip():
        return pa.table({"text": pa.array([], pa.string())})
    return pyarrow.csv.read_csv(
        _in_arrows_memory(data.rstrip(b"\r\n") + b"\n"),
        pyarrow.csv.ReadOptions(block_size=_LARGEST_LINE),
        pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_STRING_COLUMNS, pa.string())),
    )


_PARSERS: dict[str, Callable[[bytes], pa.Table]] = {
    ".parquet": parquet_table,
    ".jsonl": _parse_jsonl,
    ".ndjson": _parse_jsonl,
    ".csv": _parse_csv,
}


def _check(name: str, table: pa.Table) -> Corpus:
    repeated = sorted({column for column in table.column_names if table.column_names.count(column) > 1})
    if repeated:
        raise ValueError(f"corpus {name} has more than one column {repeated[0]!r}; rename or drop one")
    taken = sorted({"row", "n_tokens"} & set(table.column_names))
    if taken:
        raise ValueError(f"corpus {name} has a column {taken[0]!r}, a name that runs use for their own; rename it")
    if "text" not in table.column_names:
        raise ValueError(f"corpus {name} has no column 'text'; its columns are {', '.join(table.column_names) or 'none'}")
    if table.num_rows == 0:
        raise ValueError(f"corpus {name} is empty; it needs at least one utterance")
    if "utterance_id" not in table.column_names:
        numbered = pa.array([f"row-{row:08d}" for row in range(table.num_rows)])
        table = table.add_column(0, "utterance_id", numbered)
    for column in _STRING_COLUMNS:
        if column in table.column_names:
            table = _as_strings(name, table, column)
    _check_texts(name, table)
    _check_ids(name, table)
    for column in _BLANK_IS_ABSENT:  # in a CSV an absent string is an empty field
        if column in table.column_names and pa.types.is_string(table.schema.field(column).type):
            values = table[column]
            blank = pc.equal(pc.utf8_trim_whitespace(values), "")
            table = _set_column(table, column, pc.if_else(blank, pa.scalar(None, pa.string()), values))
    return Corpus(name, table.combine_chunks())


def _as_strings(name: str, table: pa.Table, column: str) -> pa.Table:
    kind = table.schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    convertible = any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    )
    if column != "text":  # ids and class numbers are often integers; a text never is
        convertible = convertible or pa.types.is_integer(kind)
    if not convertible:
        raise ValueError(f"column {column!r} of corpus {name} holds {kind}; it must hold one string a row")
    return _set_column(table, column, table[column].cast(pa.string()))


def _check_texts(name: str, table: pa.Table) -> None:
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(table["text"]), ""), True).to_pylist()
    rows = [row for row, is_blank in enumerate(blank) if is_blank]
    if rows:
        identifier = table["utterance_id"][rows[0]].as_py()
        raise ValueError(
            f"{len(rows):,} of {table.num_rows:,} utterances of corpus {name} have no text "
            f"(first: row {rows[0]:,}, id {identifier!r}); remove them or give them a text"
        )


def _check_ids(name: str, table: pa.Table) -> None:
    ids = table["utterance_id"].to_pylist()
    first_row: dict[str | None, int] = {}
    for row, identifier in enumerate(ids):
        if identifier is None or not identifier:
            raise ValueError(f"row {row:,} of corpus {name} has no utterance_id; give every row one, or drop the column")
        if first_row.setdefault(identifier, row) != row:
            raise ValueError(
                f"utterance_id {identifier!r} of corpus {name} stands at rows {first_row[identifier]:,} and {row:,} "
                f"({table.num_rows - len(set(ids)):,} repeats in all); ids must be unique"
            )


def _set_column(table: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
