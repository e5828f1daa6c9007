"""A DuckDB that sees the tables it is given and nothing else.

It opens no file and no socket, reads no variable of the Python around it, loads no extension, spills nothing to disk, and none
of that can be set otherwise. A list of forbidden words was rejected: what the engine cannot do needs no list.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import duckdb
import pyarrow as pa

MEMORY = "4GB"
"""What a query may take beside its tables, unless somebody says otherwise."""

_S_BETWEEN_INTERRUPTS = 0.05
_SEALED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}

_KIND = re.compile(r"^[A-Z][A-Za-z ]* Error: ")
_ABSENT = re.compile(r'Referenced column "(.*)" not found in FROM clause!')


@contextmanager
def sealed(tables: Mapping[str, pa.Table], memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a database in memory that holds these tables.

    Args:
        memory: most that a query may take, such as `4GB`.

    Raises:
        ValueError: that is no amount of memory, or a column is of a type that DuckDB does not know.
    """
    try:
        connection = duckdb.connect(config=_SEALED | {"memory_limit": memory})
    except duckdb.Error as error:
        raise ValueError(f"cannot give a query {memory!r} of memory: {first_line(error)}; say it as in {MEMORY}") from error
    with connection:
        show(connection, tables)
        connection.execute("SET lock_configuration = true")
        yield connection


def show(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table]) -> None:
    """Let a connection see more tables.

    Raises:
        ValueError: a column is of a type that DuckDB does not know.
    """
    for name, table in tables.items():
        try:
            connection.register(name, table)
        except duckdb.Error as error:
            kinds = ", ".join(f"{field.name} {field.type}" for field in table.schema)
            raise ValueError(f"SQL cannot read the table {name} ({kinds}): {first_line(error)}") from error


@contextmanager
def stopped_after(timeout_s: float, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupt what runs on a connection after a time, again and again: one that falls between two steps is lost."""
    ended = threading.Event()

    def watch() -> None:
        if not ended.wait(min(timeout_s, threading.TIMEOUT_MAX)):
            while not ended.wait(_S_BETWEEN_INTERRUPTS):
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="query timeout", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class TooMuchMemoryError(RuntimeError):
    """A query takes more memory than it was given."""


def check_bounds(error: Exception, timeout_s: float, memory: str) -> None:
    """Say so where what DuckDB raised means that a query ran out of its time or memory.

    Raises:
        TimeoutError: it ran out of its time.
        TooMuchMemoryError: it ran out of its memory.
    """
    if isinstance(error, duckdb.InterruptException) or "INTERRUPT Error" in str(error):
        raise TimeoutError(f"the query takes longer than {timeout_s:g} seconds; ask for less, or raise --timeout") from error
    if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error):
        raise TooMuchMemoryError(f"the query takes more memory than {memory}; ask for less, or raise --memory") from error


def first_line(error: Exception) -> str:
    """What DuckDB says, without the kind of the error, the hints and the quotation below it."""
    line = _KIND.sub("", str(error).strip().partition("\n")[0])
    return _ABSENT.sub(r"""there is no column "\1" (text stands in single quotes: '\1')""", line) or type(error).__name__
