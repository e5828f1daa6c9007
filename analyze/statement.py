"""Which tables a SQL statement reads, and whether it is one that may be run: by the tree that DuckDB's own parser makes of it.

Rejected: searching the text for words, which a string or a comment fools; and letting DuckDB bind the statement first, which
needs the tables that are to be read only if the statement names them. What is allowed is listed, not what is forbidden: kinds
of queries, tables, functions that make tables.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

from analyze.sealed import first_line

_QUERIES = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
_TABLE_FUNCTIONS = ("generate_series", "range", "unnest")
_OF_THE_PROCESS = frozenset(("current_setting", "getenv", "getvariable", "write_log"))

_Names = frozenset[str]


def tables_of(connection: duckdb.DuckDBPyConnection, sql: str, tables: Collection[str]) -> frozenset[str]:
    """Check a statement, and say which of some tables it reads.

    Args:
        connection: any; nothing is run on it but the parser.
        tables: those there are.

    Raises:
        ValueError: it is not one SELECT statement, or reads something else than these tables.
    """
    try:
        sql.encode()
        return frozenset(_references(_tree(connection, sql), tables))
    except UnicodeEncodeError as error:
        raise ValueError(f"this SQL is not text: {error}") from error
    except RecursionError as error:
        raise ValueError("this SQL is nested too deeply; join its conditions by IN, or its queries by WITH") from error


def _tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise ValueError(_syntax_error(connection, sql, error)) from error
    if len(statements) != 1:
        raise ValueError(f"give one SELECT statement; this is {len(statements) or 'none'}")
    kind = statements[0].type.name
    if kind == "MULTI":
        raise ValueError("this PIVOT must say which columns it makes: PIVOT ... ON column IN ('one', 'other') USING ...")
    if kind != "SELECT":
        raise ValueError(f"a store is only read: give a SELECT statement; this is {kind}")
    tree = _parsed(connection, sql)
    if tree["error"]:
        raise ValueError(f"cannot read this SQL: {tree['error_message']}")
    return tree["statements"]


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    ((text,),) = connection.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()
    return json.loads(text)


def _syntax_error(connection: duckdb.DuckDBPyConnection, sql: str, error: duckdb.Error) -> str:
    """The sentence of the parser, with the place it speaks of."""
    found = _parsed(connection, sql)
    if "position" not in found:
        return f"cannot read this SQL: {first_line(error)}"
    before = sql.encode()[: int(found["position"])].decode(errors="ignore")
    place = f"line {before.count(chr(10)) + 1}, character {len(before) - before.rfind(chr(10))}"
    message = found["error_message"].partition("\n")[0]
    hint = '; a column named offset is written "offset", as that is a word of SQL too' if "offset" in sql.lower() else ""
    return f"cannot read this SQL: {message} ({place}){hint}"


def _references(tree: Any, tables: Collection[str]) -> Iterator[str]:
    """The tables a statement names; a name that WITH gave before stands for that."""
    waiting: list[tuple[Any, _Names]] = [(tree, frozenset())]
    while waiting:
        node, given = waiting.pop()
        if isinstance(node, list):
            waiting += ((each, given) for each in node)
        elif isinstance(node, dict):
            for entry in node.get("cte_map", {"map": []})["map"]:  # each sees those before it
                waiting.append((entry["value"], given))
                given |= {_folded(entry["key"])}
            kind = node.get("type")
            if kind == "RECURSIVE_CTE_NODE":
                given |= {_folded(node["cte_name"])}
            if kind == "BASE_TABLE":
                yield from _table(node, given, tables)
            _check(node, tables)
            waiting += ((child, given) for name, child in node.items() if name != "cte_map")


def _table(node: dict[str, Any], given: _Names, tables: Collection[str]) -> Iterator[str]:
    path = [name for name in (node["catalog_name"], node["schema_name"], node["table_name"]) if name]
    name = _folded(path[-1]) if path else ""  # "" is a name to the parser
    if len(path) > 1 or name not in {*tables, *given}:
        raise ValueError(f"there is no table {'.'.join(path)!r} in a store; choose from {', '.join(tables)}")
    if name not in given:
        yield name


def _check(node: dict[str, Any], tables: Collection[str]) -> None:
    kind = node.get("type")
    if not isinstance(kind, str):
        return
    if kind.endswith("_NODE") and kind not in _QUERIES:
        raise ValueError(f"a store is only read; this SQL holds {kind.partition('_')[0]}")
    if kind == "SHOW_REF" and node["query"] is None:
        raise ValueError(f"DESCRIBE takes one of {', '.join(tables)}")
    if kind == "TABLE_FUNCTION" and _folded(node["function"]["function_name"]) not in _TABLE_FUNCTIONS:
        raise ValueError(
            f"{node['function']['function_name']}() makes no table here; choose from {', '.join(tables)}, "
            f"or of functions {', '.join(_TABLE_FUNCTIONS)}"
        )
    if kind == "FUNCTION" and _folded(node["function_name"]) in _OF_THE_PROCESS:
        raise ValueError(f"{node['function_name']}() speaks of the process and not of the store; leave it out")


def _folded(name: str) -> str:
    """A name as DuckDB compares it: of capitals only A to Z are alike."""
    return name.encode(errors="replace").lower().decode()
