"""SQL over a store: one SELECT statement over the tables of analyze.views, of which only those are read that it names.

The statement runs in a DuckDB that sees nothing else (analyze.sealed), within a time and a memory, and its rows come as they
are made, so that whoever shows fifty never holds a million. Returning one table was rejected for that: a join without a
condition would fill the memory before anybody could count its rows.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from analyze.query import Store
from analyze.sealed import MEMORY, check_bounds, first_line, sealed, show, stopped_after
from analyze.statement import tables_of
from analyze.views import VIEWS

TIMEOUT_S = 60.0
"""Seconds a statement may take, once its tables are read."""

_ROWS_AT_ONCE = 8192
_CHANGED_BY_ARROW = re.compile(r"\b(UHUGEINT|BIGNUM|BIT|TIME WITH TIME ZONE)\b")  # 2^128 - 1 would come out as -1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement gives, to be read while it is open."""

    schema: pa.Schema
    """Its columns; of those that are called alike, the later ones have a number behind the name."""
    batches: Iterator[pa.RecordBatch]
    """Its rows, as they are made."""

    def table(self) -> pa.Table:
        """All rows that are left."""
        return pa.Table.from_batches(self.batches, self.schema)


@contextmanager
def answer(store: Store, sql: str, *, timeout_s: float = TIMEOUT_S, memory: str = MEMORY) -> Iterator[Answer]:
    """Run a SELECT statement over a store.

    Args:
        sql: one SELECT over the tables of analyze.views.VIEWS.
        timeout_s: seconds it may take, once its tables are read.
        memory: what it may take beside its tables, such as `4GB`.

    Raises:
        ValueError: it is not one SELECT statement over these tables, or what it reads is damaged.
        TimeoutError: it takes longer.
        TooMuchMemoryError: it takes more memory.
    """
    with sealed({}, memory) as connection:
        tables = tables_for(store, sql, connection)
        show(connection, tables)
        with answering(connection, tables, sql, timeout_s, memory) as found:
            yield found


def tables_for(store: Store, sql: str, connection: duckdb.DuckDBPyConnection) -> dict[str, pa.Table]:
    """The tables that a statement names, read.

    Args:
        connection: any; nothing but the parser is run on it.

    Raises:
        ValueError: as from `answer`.
    """
    return {name: VIEWS[name].read(store) for name in sorted(tables_of(connection, sql, VIEWS))}


@contextmanager
def answering(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pa.Table], sql: str, timeout_s: float, memory: str
) -> Iterator[Answer]:
    """Run a statement that was checked, on a connection that sees the tables it names and was given that memory.

    Raises:
        ValueError, TimeoutError, TooMuchMemoryError: as from `answer`.
    """
    with stopped_after(timeout_s, connection):
        with _told(tables, timeout_s, memory):
            relation = connection.sql(sql)
            _check_types(relation)
            reader = relation.to_arrow_reader(_ROWS_AT_ONCE)
        schema = _distinct(reader.schema)
        yield Answer(schema, _batches(reader, schema, tables, timeout_s, memory))


def _batches(
    reader: pa.RecordBatchReader, schema: pa.Schema, tables: Mapping[str, pa.Table], timeout_s: float, memory: str
) -> Iterator[pa.RecordBatch]:
    exact = any(pa.types.is_decimal(kind) and kind.precision == 38 for kind in _types(schema))  # a HUGEINT may have 39 digits
    while True:
        with _told(tables, timeout_s, memory):
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            if exact:
                _check_values(batch)
        yield batch.rename_columns(schema.names)


def _types(schema: pa.Schema) -> Iterator[pa.DataType]:
    """The types of columns, and of what they hold."""
    waiting = list(schema.types)
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += [kind.field(index).type for index in range(kind.num_fields)]


def _check_types(relation: duckdb.DuckDBPyRelation) -> None:
    for name, kind in zip(relation.columns, map(str, relation.types), strict=True):
        if _CHANGED_BY_ARROW.search(kind):
            raise ValueError(f"column {name!r} is of type {kind}, which does not leave SQL unchanged; cast it to VARCHAR")


def _check_values(batch: pa.RecordBatch) -> None:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{first_line(error)}: it does not leave SQL unchanged; cast it to VARCHAR") from error


def _distinct(schema: pa.Schema) -> pa.Schema:
    """The columns with names of their own; `SELECT a.*, b.*` gives run_id twice."""
    names: list[str] = []
    for name in schema.names:
        others = (f"{name}_{number}" for number in itertools.count(1))
        names.append(next(each for each in others if each not in {*names, *schema.names}) if name in names else name)
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


@contextmanager
def _told(tables: Mapping[str, pa.Table], timeout_s: float, memory: str) -> Iterator[None]:
    """Say what DuckDB says, in one sentence with a remedy."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
        check_bounds(error, timeout_s, memory)
        columns = "; ".join(f"{name}: {', '.join(table.column_names)}" for name, table in tables.items())
        raise ValueError(
            f"cannot answer this SQL: {first_line(error)}" + (f" (columns of {columns})" if columns else "")
        ) from error
