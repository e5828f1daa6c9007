"""A process that answers queries in SQL for a service, so that none of them can take the service with it.

DuckDB bounds its own buffers and can be interrupted between two vectors, but one call such as `repeat(text, 100000000)` is
neither counted nor interrupted: forty rows took 12 GB and 44 seconds of a service that allowed 256 MB and one. Here the kernel
bounds the memory, and whoever asked ends the process when the time is over.
"""

import logging
import re
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import pyarrow as pa

from analyze.condition import matching
from analyze.exporting import json_rows
from analyze.query import Store, open_store
from analyze.sealed import TooMuchMemoryError, sealed
from analyze.service.answers import columns_of, json_text
from analyze.service.limits import OverLimitError, check_bytes
from analyze.sql import Answer, answering, tables_for

_LOGGER = logging.getLogger("affectome.service")
_SLACK_BYTES = 256 << 20  # stacks of threads, and what Arrow and Python need beside DuckDB
_ROWS_AT_ONCE = 64
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a query may take."""

    timeout_s: float
    """Seconds, once its tables are read."""
    memory: str
    """Memory beside its tables, such as `1GB`."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Asks which rows of a run match; the reply is their numbers, int64, as bytes."""

    run_id: str
    """The run."""
    where: str
    """The condition."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Asks for the first rows of what a SELECT gives; the reply is an Arrow IPC stream or JSON, and whether there are more."""

    sql: str
    """The statement."""
    limit: int
    """Most rows."""
    most_bytes: int
    """Most bytes of them."""
    as_json: bool = False
    """Whether as the JSON of an AnswerDocument: a value of one byte, such as one of an ENUM, may be a long text there."""


Query = Condition | Statement


@dataclass(frozen=True, slots=True)
class Begun:
    """Says that the tables are read and the time runs."""


@dataclass(frozen=True, slots=True)
class Done:
    """The reply to a query."""

    data: bytes
    """As the query says."""
    more: bool
    """Whether there are more rows."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a query is not answered."""

    error: Exception
    """What was raised."""


Reply = Begun | Done | Failed


def work(connection: Connection, location: str, bounds: Bounds) -> None:
    """Answer the queries that come, one after another, until nobody is there to ask.

    Args:
        location: of the store.
        bounds: of each query.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the service ends this one
    store = open_store(location)
    with sealed({}) as parser:
        while True:
            try:
                query: Query = connection.recv()
            except EOFError:
                return
            connection.send(_reply(store, parser, query, bounds, lambda: connection.send(Begun())))


def _reply(
    store: Store, parser: duckdb.DuckDBPyConnection, query: Query, bounds: Bounds, begin: Callable[[], None]
) -> Done | Failed:
    try:
        if isinstance(query, Condition):
            return _condition(store, query, bounds, begin)
        return _statement(store, parser, query, bounds, begin)
    except MemoryError:
        return Failed(TooMuchMemoryError(f"the query takes more memory than {bounds.memory}; ask for less, or raise --memory"))
    except (ValueError, OSError, TooMuchMemoryError) as error:
        kinds = (OverLimitError, ValueError, TimeoutError, OSError, TooMuchMemoryError)
        return Failed(next(kind for kind in kinds if isinstance(error, kind))(str(error)))  # others may not travel
    except Exception as error:  # a bug, which is no reason to fail the next query too
        _LOGGER.exception("a query failed")
        return Failed(RuntimeError(f"{type(error).__name__}: {error}"))
    finally:
        _bound_memory(None)


def _condition(store: Store, query: Condition, bounds: Bounds, begin: Callable[[], None]) -> Done:
    utterances = store.run(query.run_id).utterances()
    _bound_memory(memory_bytes(bounds.memory))
    begin()
    rows = matching(utterances, query.where, timeout_s=bounds.timeout_s, memory=bounds.memory)
    return Done(rows.tobytes(), False)


def _statement(
    store: Store, parser: duckdb.DuckDBPyConnection, query: Statement, bounds: Bounds, begin: Callable[[], None]
) -> Done:
    tables = tables_for(store, query.sql, parser)
    _bound_memory(memory_bytes(bounds.memory))
    begin()
    with (
        sealed(tables, bounds.memory) as connection,
        answering(connection, tables, query.sql, bounds.timeout_s, bounds.memory) as found,
    ):
        if query.as_json:
            return _json(found, query.limit, query.most_bytes)
        table, more = _first(found, query.limit, query.most_bytes)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Done(sink.getvalue().to_pybytes(), more)


def _json(found: Answer, limit: int, most_bytes: int) -> Done:
    """The first rows of an answer as JSON."""
    parts, n_rows, n_bytes, more = [], 0, 0, False
    for batch in _small(found.batches):
        kept = batch.slice(0, limit - n_rows)
        for row in json_rows(kept):
            parts.append(json_text(row))
            n_bytes += len(parts[-1])
            check_bytes(n_bytes, most_bytes)
        n_rows += kept.num_rows
        if kept.num_rows < batch.num_rows:
            more = True
            break
    columns, rows = json_text(columns_of(found.schema)), b",".join(parts)
    return Done(b'{"columns":%b,"rows":[%b],"truncated":%b}' % (columns, rows, json_text(more)), more)


def _small(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Few rows at once: as Python's objects they may take a thousand times the memory."""
    for batch in batches:
        yield from (batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE))


def _first(found: Answer, limit: int, most_bytes: int) -> tuple[pa.Table, bool]:
    """The first rows of an answer, and whether there are more."""
    batches: list[pa.RecordBatch] = []
    n_rows = n_bytes = 0
    for batch in found.batches:
        kept = batch.slice(0, limit - n_rows)
        batches.append(kept)
        n_rows += kept.num_rows
        n_bytes += kept.nbytes
        check_bytes(n_bytes, most_bytes)
        if kept.num_rows < batch.num_rows:
            return pa.Table.from_batches(batches, found.schema), True
    return pa.Table.from_batches(batches, found.schema), False


def memory_bytes(text: str) -> int:
    """How many bytes an amount such as `1GB` or `512MiB` is.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower(), re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; say it as in 1GB or 512MiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])


def _bound_memory(n_bytes: int | None) -> None:
    """Let this process take so much more memory than it has, where the kernel can tell; None for no bound."""
    if not _STATUS.exists():  # no Linux
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard
    if n_bytes is not None:
        held = re.search(r"^VmData:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        assert held is not None, "Linux says so of every process"
        soft = 1024 * int(held[1]) + n_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
