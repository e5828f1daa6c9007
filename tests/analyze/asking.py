"""Asking a store in SQL, as tests do."""

from typing import Any

import pytest

from analyze.query import Store
from analyze.sql import answer


def asked(store: Store, sql: str, **bounds: Any) -> list[dict[str, Any]]:
    with answer(store, sql, **bounds) as found:
        rows: list[dict[str, Any]] = found.table().to_pylist()
    return rows


def count_rows(store: Store, sql: str, **bounds: Any) -> int:
    with answer(store, sql, **bounds) as found:
        return sum(batch.num_rows for batch in found.batches)


def refusal(store: Store, sql: str, **bounds: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - whoever asks looks at what it says
        asked(store, sql, **bounds)
    assert "\n" not in str(caught.value)
    return str(caught.value)
