"""Random SQL conditions over a table of utterances, and what each says of a row by plain Python.

The oracle is SQL's three-valued logic written down here: a comparison with NULL is unknown, NOT of unknown is unknown, AND is
false where either side is, OR is true where either side is, and a row is chosen where the condition is true. Asking a second
database was rejected as an oracle, because two of them may share a misreading.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Row = Mapping[str, Any]
Verdict = bool | None
"""None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Predicate:
    """A condition in both languages."""

    sql: str
    """For `where`."""
    holds: Callable[[Row], Verdict]
    """For a row."""

    def chosen(self, rows: Sequence[Row]) -> list[int]:
        """Which rows it chooses, ascending."""
        return [number for number, row in enumerate(rows) if self.holds(row)]

    def __repr__(self) -> str:
        return self.sql


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def _compared(symbol: str, left: Any, right: Any) -> Verdict:
    return None if left is None or right is None else _COMPARE[symbol](left, right)


def _not(verdict: Verdict) -> Verdict:
    return None if verdict is None else not verdict


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    return False if False in verdicts else None if None in verdicts else True


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    return _not(_all([_not(verdict) for verdict in verdicts]))


def _like(text: str | None, pattern: str) -> Verdict:
    if text is None:
        return None
    parts = {"%": ".*", "_": "."}
    return re.fullmatch("".join(parts.get(each) or re.escape(each) for each in pattern), text, re.DOTALL) is not None


def comparison(column: str, symbol: str, value: Any) -> Predicate:
    return Predicate(f"{column} {symbol} {_literal(value)}", lambda row: _compared(symbol, row[column], value))


def of_two_columns(left: str, symbol: str, right: str) -> Predicate:
    return Predicate(f"{left} {symbol} {right}", lambda row: _compared(symbol, row[left], row[right]))


def between(column: str, low: Any, high: Any) -> Predicate:
    return Predicate(
        f"{column} BETWEEN {_literal(low)} AND {_literal(high)}",
        lambda row: _all([_compared(">=", row[column], low), _compared("<=", row[column], high)]),
    )


def one_of(column: str, values: Sequence[Any]) -> Predicate:
    return Predicate(
        f"{column} IN ({', '.join(map(_literal, values))})",
        lambda row: _any([_compared("=", row[column], value) for value in values]),
    )


def like(column: str, pattern: str) -> Predicate:
    return Predicate(f"{column} LIKE {_literal(pattern)}", lambda row: _like(row[column], pattern))


def is_null(column: str) -> Predicate:
    return Predicate(f"{column} IS NULL", lambda row: row[column] is None)


def negated(one: Predicate) -> Predicate:
    return Predicate(f"NOT ({one.sql})", lambda row: _not(one.holds(row)))


def both(one: Predicate, other: Predicate) -> Predicate:
    return Predicate(f"({one.sql}) AND ({other.sql})", lambda row: _all([one.holds(row), other.holds(row)]))


def either(one: Predicate, other: Predicate) -> Predicate:
    return Predicate(f"({one.sql}) OR ({other.sql})", lambda row: _any([one.holds(row), other.holds(row)]))


def predicates(texts: Mapping[str, Sequence[str]], numbers: Mapping[str, Sequence[float]]) -> st.SearchStrategy[Predicate]:
    """Conditions over columns of text and of numbers, nested.

    Args:
        texts: for each column, what it is compared with.
        numbers: as well.
    """
    symbols = st.sampled_from(list(_COMPARE))
    leaves = [st.builds(is_null, st.sampled_from([*texts, *numbers]))]
    for column, values in {**texts, **numbers}.items():
        named, drawn = st.just(column), st.sampled_from(list(values))
        leaves += [
            st.builds(comparison, named, symbols, drawn),
            st.builds(between, named, drawn, drawn),
            st.builds(one_of, named, st.lists(drawn | st.none(), min_size=1, max_size=3)),
        ]
    pieces = sorted({piece for values in texts.values() for value in values for piece in (value[:2], value[-2:])})
    pattern = st.lists(st.sampled_from(["%", "_", *pieces]), max_size=4).map("".join)
    leaves += [st.builds(like, st.sampled_from(list(texts)), pattern)]
    leaves += [st.builds(of_two_columns, name, symbols, name) for name in map(st.sampled_from, (list(texts), list(numbers)))]
    return st.recursive(
        st.one_of(leaves),
        lambda inner: st.builds(negated, inner) | st.builds(both, inner, inner) | st.builds(either, inner, inner),
        max_leaves=6,
    )
