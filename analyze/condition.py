"""The rows that a condition in SQL chooses of a table of utterances.

A condition is one expression: the engine's filter takes no more, while pasted into a statement it could close the clause and go
on. It may ask of the utterances themselves, within a time and a memory, and of nothing else.
"""

import math

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.sealed import MEMORY, check_bounds, first_line, sealed, stopped_after
from analyze.statement import tables_of

_TABLE = "utterances"


def matching(utterances: pa.Table, where: str, *, timeout_s: float = math.inf, memory: str = MEMORY) -> NDArray[np.int64]:
    """The rows of a condition, ascending.

    Args:
        utterances: with a column `row`.
        where: such as `label = 'fear' and split = 'test'`.
        timeout_s: seconds it may take.
        memory: what it may take beside the table, such as `4GB`.

    Raises:
        ValueError: the condition is not SQL over these columns.
        TimeoutError: it takes longer.
        TooMuchMemoryError: it takes more memory.
    """
    with sealed({_TABLE: utterances}, memory) as connection, stopped_after(timeout_s, connection):
        try:
            chosen = connection.view(_TABLE).filter(where)
            tables_of(connection, f"SELECT 1 FROM {_TABLE} WHERE {where}", (_TABLE,))  # noqa: S608 - only parsed
            rows = chosen.project("row").fetchnumpy()["row"]
        except (duckdb.Error, RuntimeError, ValueError) as error:  # text that is none is a ValueError
            check_bounds(error, timeout_s, memory)
            columns = ", ".join(utterances.column_names)
            raise ValueError(f"cannot use where={where!r}: {first_line(error)} (columns: {columns})") from error
    return np.sort(np.asarray(rows, np.int64))
