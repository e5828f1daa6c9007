"""Parameters that several routes share."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from fastapi import Path, Query
from numpy.typing import NDArray

from analyze.query import Run
from analyze.service.shelf import Shelf

MOST = 2**63 - 1
"""Largest number of a row: they are of 64 bits."""
MOST_SQL = 20_000
"""Longest SQL in characters: reading it is not bounded as running it is, and takes memory by the square of its WITHs."""

RunName = Annotated[str, Path(description="A run's id, or how it begins.", max_length=64)]
SiteName = Annotated[str, Query(description="Where states were read, such as resid.last.", max_length=64)]
LayerNumber = Annotated[int, Query(description="0 for the embedding output, i for block i.", ge=0, le=MOST)]
Condition = Annotated[
    str | None, Query(description="A SQL condition over the utterances' columns, such as label = 'fear'.", max_length=MOST_SQL)
]
Form = Literal["json", "arrow"]


@dataclass(frozen=True, slots=True)
class Which:
    """Which utterances of a run."""

    where: Condition = None
    """A SQL condition over their columns."""
    rows: Annotated[
        list[Annotated[int, Query(ge=0, le=MOST)]] | None,
        Query(description="Row numbers instead of where; repeat it for more."),
    ] = None
    """Row numbers instead; they come in the order given."""
    offset: Annotated[int, Query(description="How many of them to leave out first.", ge=0, le=MOST)] = 0
    """How many of them to leave out first."""
    limit: Annotated[int | None, Query(description="How many of the others come at most.", ge=0, le=MOST)] = None
    """How many of the others come at most."""

    def chosen(self, shelf: Shelf, run: Run) -> NDArray[np.int64]:
        """The rows of a run, before offset and limit.

        Raises:
            ValueError: the condition is not SQL over the columns; where and rows are both given; or there is no such row.
            OverLimitError: the condition takes too much time or memory.
        """
        if self.where is not None and self.rows is not None:
            raise ValueError("where and rows both say which rows; give one of them")
        n_rows = run.manifest.n_rows
        if self.rows is not None:
            absent = next((row for row in self.rows if row >= n_rows), None)
            if absent is not None:
                raise ValueError(f"run {run.run_id} has no row {absent}; its rows are 0 to {n_rows - 1:,}")
            return np.asarray(self.rows, np.int64)
        return np.arange(n_rows) if self.where is None else shelf.queries.matching(run.run_id, self.where)

    def page(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those rows that offset and limit leave."""
        return chosen[self.offset : None if self.limit is None else self.offset + self.limit]


def taken(utterances: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows of the utterances, which are in the order of their numbers."""
    return utterances.take(pa.array(rows))
