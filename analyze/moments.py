"""Sums over rows from which every closed-form probe follows: one pass over a layer, whatever is fitted on which of its rows.

Rows that the same fits use form a *cell*; the sums of a fit are those of its cells added up. So cross-validation, shuffled
labels and contrasts between conditions cost one pass together. Sums are float64: the products of 400,000 rows in float32
would leave coefficients with three digits.

Shape suffixes: N rows, B rows of a block, D width, T columns of targets, F fits.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.states import States

Floats = NDArray[np.float64]
_MOST_ROW_SETS = 62
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted sums over some rows, of states x around the origin and of target columns y; they add."""

    weight: float
    """Of 1."""
    x_D: Floats
    """Of x."""
    xx_DD: Floats
    """Of x x'."""
    y_T: Floats
    """Of y."""
    xy_DT: Floats
    """Of x y'."""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.weight + other.weight,
            self.x_D + other.x_D,
            self.xx_DD + other.xx_DD,
            self.y_T + other.y_T,
            self.xy_DT + other.xy_DT,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What probes are fitted to, for every row."""

    code_N: NDArray[np.int64]
    """The class of each row, from 0; anything for rows that no fit uses."""
    n_classes: int
    """How many classes there are."""


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A number to predict for every row, such as valence."""

    value_N: Floats
    """Finite wherever a fit uses the row."""
    n_classes: int = 1
    """One column."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of which any number may hold for a row; each is told from its absence."""

    has_NK: NDArray[np.bool_]
    """Whether each label holds for each row."""

    @property
    def n_classes(self) -> int:
        """How many labels there are."""
        return int(self.has_NK.shape[1])

    def alone(self, label: int) -> Target:
        """One of them, as two classes: absent and present."""
        return Target(self.has_NK[:, label].astype(np.int64), 2)


Wanted = Target | Values | Labels


def gather(
    states: States, row_sets: Sequence[NDArray[np.bool_]], targets: Sequence[Wanted], weight_N: Floats | None = None
) -> list[list[Moments]]:
    """The moments of each set of rows with each target, in one pass.

    Args:
        row_sets: masks (N,), one or more.
        weight_N: how much each row counts; 1 each without it.

    Returns:
        By row set, then by target.
    """
    distinct = list({id(rows_N): rows_N for rows_N in row_sets}.values())
    cell_N, members_CF = _cells(distinct)
    cells = _sums(states, cell_N, len(members_CF), targets, weight_N)
    bounds = np.cumsum([0, *(target.n_classes for target in targets)])
    of_set: dict[int, Moments] = {}
    for index, rows_N in enumerate(distinct):
        mine = [cell for cell, member in zip(cells, members_CF[:, index].tolist(), strict=True) if member]
        of_set[id(rows_N)] = sum(mine[1:], mine[0])
    return [[_of_target(of_set[id(rows_N)], begin, end) for begin, end in itertools.pairwise(bounds)] for rows_N in row_sets]


def columns(target: Wanted, rows: slice) -> Floats:
    """A target's columns for some rows, (B, T): the one-hot class, the number itself, or 1 for each label that holds."""
    if isinstance(target, Values):
        return target.value_N[rows, None]
    if isinstance(target, Labels):
        return target.has_NK[rows].astype(np.float64)
    one_hot: Floats = (target.code_N[rows, None] == np.arange(target.n_classes)).astype(np.float64)
    return one_hot


def _cells(row_sets: Sequence[NDArray[np.bool_]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The cell of each row (N,), -1 for rows in no set; and which sets each cell belongs to, (C, F)."""
    assert len(row_sets) <= _MOST_ROW_SETS, "a row's sets are the bits of one integer"
    key_N = np.zeros(len(row_sets[0]), np.int64)
    for bit, rows_N in enumerate(row_sets):
        key_N |= rows_N.astype(np.int64) << bit
    keys, cell_N = np.unique(key_N, return_inverse=True)
    if keys[0] == 0:
        keys, cell_N = keys[1:], cell_N - 1
    return cell_N, (keys[:, None] >> np.arange(len(row_sets)) & 1).astype(np.bool_)


def _sums(
    states: States, cell_N: NDArray[np.int64], n_cells: int, targets: Sequence[Wanted], weight_N: Floats | None
) -> list[Moments]:
    n_columns = sum(target.n_classes for target in targets)
    cells = [_Cell(states.width, n_columns) for _ in range(n_cells)]
    for rows, block_BD in states.blocks():
        y_BT = np.concatenate([columns(target, rows) for target in targets], axis=1)
        cell_B = cell_N[rows]
        weight_B = np.ones(len(cell_B)) if weight_N is None else weight_N[rows]
        for number in np.unique(cell_B[cell_B >= 0]).tolist():
            mine = np.flatnonzero(cell_B == number)
            cells[number].add(block_BD[mine], y_BT[mine], weight_B[mine])
    return [cell.moments() for cell in cells]


class _Cell:
    """The sums of one cell. Rows wait until there are enough of them for a matrix product to be worth its while."""

    def __init__(self, width: int, n_columns: int) -> None:
        self._waiting: list[tuple[NDArray[np.float32], Floats, Floats]] = []
        self._n_waiting = 0
        self._sum = Moments(0.0, np.zeros(width), np.zeros((width, width)), np.zeros(n_columns), np.zeros((width, n_columns)))

    def add(self, x_MD: NDArray[np.float32], y_MT: Floats, weight_M: Floats) -> None:
        """Take in rows."""
        self._waiting.append((x_MD, y_MT, weight_M))
        self._n_waiting += len(x_MD)
        if self._n_waiting >= _ROWS_AT_ONCE:
            self._sum_up()

    def moments(self) -> Moments:
        """Those of all rows taken in."""
        if self._waiting:
            self._sum_up()
        return self._sum

    def _sum_up(self) -> None:
        x_MD, y_MT, weight_M = (np.concatenate(parts).astype(np.float64) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._n_waiting, total = [], 0, self._sum
        weight, x_D, y_T = total.weight + float(weight_M.sum()), total.x_D + weight_M @ x_MD, total.y_T + weight_M @ y_MT
        if (weight_M != 1).any():
            x_MD *= np.sqrt(weight_M)[:, None]
            y_MT *= np.sqrt(weight_M)[:, None]
        total.xx_DD.__iadd__(x_MD.T @ x_MD)  # numpy sees that this is symmetric and does half of the work
        total.xy_DT.__iadd__(x_MD.T @ y_MT)
        self._sum = Moments(weight, x_D, total.xx_DD, y_T, total.xy_DT)


def _of_target(moments: Moments, begin: int, end: int) -> Moments:
    return Moments(moments.weight, moments.x_D, moments.xx_DD, moments.y_T[begin:end], moments.xy_DT[:, begin:end])
