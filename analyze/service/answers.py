"""What a service answers with: JSON, or Arrow as a stream.

A response is written as it is sent: of a slice of states, Arrow needs no second copy of it, nor JSON all of its text at once.

Shape suffixes: N rows.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from fastapi import Response
from fastapi.responses import StreamingResponse

from analyze.exporting import json_rows

ARROW = "application/vnd.apache.arrow.stream"
"""Media type of an Arrow IPC stream."""

_PIECE_BYTES = 1 << 20


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON; half a surrogate pair, which a request may hold and UTF-8 cannot, becomes a question mark."""
    return Response(_json(value).encode(errors="replace"), status, dict(headers or {}), "application/json")


def refusal(sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """What every request gets that is not answered: one sentence."""
    return json_answer({"error": " ".join(sentence.split())}, status, headers)


def arrow_answer(table: pa.Table) -> Response:
    """A table as an Arrow IPC stream."""
    return StreamingResponse(_arrow_pieces(table), media_type=ARROW)


def rows_answer(table: pa.Table) -> Response:
    """`{"rows": [...]}`, an object for each row; for tables without times, which may be beyond what JSON can be told."""
    return StreamingResponse(_json_pieces(table), media_type="application/json")


def columns_of(schema: pa.Schema) -> list[dict[str, str]]:
    """Names and types of a table's columns, for JSON."""
    return [{"name": field.name, "type": str(field.type)} for field in schema]


def _arrow_pieces(table: pa.Table) -> Iterator[bytes]:
    written = _Written()
    with pa.ipc.new_stream(pa.PythonFile(written, mode="w"), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=_rows_of_piece(table)):
            writer.write_batch(batch)
            yield written.taken()
    yield written.taken()


def _json_pieces(table: pa.Table) -> Iterator[bytes]:
    before = '{"rows":['
    for batch in table.to_batches(max_chunksize=_rows_of_piece(table)):
        yield (before + ",".join(map(_json, json_rows(batch)))).encode()
        before = ","
    yield b"]}" if before == "," else b'{"rows":[]}'


def _rows_of_piece(table: pa.Table) -> int:
    n_bytes: int = table.nbytes
    n_rows: int = table.num_rows
    return max(1, _PIECE_BYTES * n_rows // max(1, n_bytes))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Written:
    """A file for Arrow to write to, whose bytes are taken away as they come."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(bytes(data))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
