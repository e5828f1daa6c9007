"""The hidden states of one layer, block after block, so that no analysis holds a large layer as floating-point numbers.

A layer is read from the store once and kept in its stored form, two bytes a value for bfloat16; where even that is too much
it is read again on every pass, in larger pieces than blocks. Blocks are given around an origin near their mean: some models
carry activations a thousand times their spread, and sums of squares and float32 products around 0 would lose the digits
that tell utterances apart.

Shape suffixes: N rows, B rows of a block, D width.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyze.query import Run
from extract.encoding import to_float32

_BLOCK_BYTES = 4 << 20  # what a processor's caches hold: products of tall blocks take three times as long
_PIECE_BYTES = 64 << 20
_MOST_KEPT_BYTES = 1 << 30
_ROWS_OF_ORIGIN = 1024


@dataclass(frozen=True, slots=True)
class States:
    """The hidden states of some rows at one layer."""

    n_rows: int
    """How many, N."""
    width: int
    """Values of each, D."""
    origin_D: NDArray[np.float32]
    """What blocks are given around."""
    _read: Callable[[int, int], NDArray[np.float32]]
    """Rows from one to before another, (B, D), for this reader to keep."""

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Rows in order: which they are, and their states less the origin, (B, D), for the caller to write on."""
        n_block = max(1, _BLOCK_BYTES // (4 * self.width))
        for start in range(0, self.n_rows, n_block):
            stop = min(start + n_block, self.n_rows)
            block_BD = self._read(start, stop)
            block_BD -= self.origin_D
            yield slice(start, stop), block_BD


def states_in(hidden_ND: NDArray[np.floating[Any]]) -> States:
    """States that are in memory already."""
    return _around_origin(len(hidden_ND), hidden_ND.shape[1], lambda start, stop: hidden_ND[start:stop].astype(np.float32))


def states_of(run: Run, site: str, layer: int, rows_N: NDArray[np.int64]) -> States:
    """States of a run's rows, which ascend without repeats, at a site with one vector for each utterance.

    Raises:
        ValueError: as from Run.hidden_rows, once they are read.
    """
    stored_dtype, width = run.manifest.identity.stored_dtype, run.manifest.width
    row_bytes = width * (4 if stored_dtype == "float32" else 2)
    n_piece = len(rows_N) if len(rows_N) * row_bytes <= _MOST_KEPT_BYTES else max(1, _PIECE_BYTES // row_bytes)
    kept: dict[int, NDArray[Any]] = {}

    def piece(number: int) -> NDArray[Any]:
        if number not in kept:
            kept.clear()
            kept[number] = run.hidden_rows(site, layer, rows_N[number * n_piece : (number + 1) * n_piece], "stored")
        return kept[number]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        bounds = [start, *range((start // n_piece + 1) * n_piece, stop, n_piece), stop]
        parts = [piece(low // n_piece)[low % n_piece :][: high - low] for low, high in itertools.pairwise(bounds)]
        return to_float32(parts[0] if len(parts) == 1 else np.concatenate(parts), stored_dtype)

    return _around_origin(len(rows_N), width, read)


def _around_origin(n_rows: int, width: int, read: Callable[[int, int], NDArray[np.float32]]) -> States:
    first_ND = read(0, min(n_rows, _ROWS_OF_ORIGIN))
    return States(n_rows, width, first_ND.mean(axis=0, dtype=np.float64).astype(np.float32), read)
