"""Hidden states in batches, for what does not fit in memory: in order or shuffled, shared by ranks and by a loader's workers.

The order of an epoch is one list of row numbers, the same for any number of ranks and workers: each takes a stretch of it
and reads it buffer after buffer, one ahead of the one in use. What is shuffled are chunks, because a chunk is what a read
costs, and then the rows of a buffer. Drawing single rows from the whole run was rejected: every row would cost its chunk,
200 times the bytes for two-byte states of a width of 576.

Shape suffixes: N rows of the epoch, B rows of a batch, D width.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from extract.encoding import Values

if TYPE_CHECKING:
    from analyze.query import Run

BUFFER_BYTES = 64 << 20
"""Of the store, in a buffer where nobody says how many rows; some 250 chunks."""


class Streaming(TypedDict, total=False):
    """How rows are streamed."""

    rows: ArrayLike | None
    """Row numbers instead of `where`."""
    shuffle_seed: int | None
    """Without it rows come in the order of `Run.hidden`; with it in another one each epoch."""
    buffer_rows: int | None
    """Rows that are read at once, and shuffled among each other; without it as many as make 64 MiB in the store."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows and their states, the caller's own."""

    rows: NDArray[np.int64]
    """Row numbers, (B,)."""
    hidden: Values
    """As from `Run.hidden`: (B, D), (B, O, D) on a grid of offsets, with an axis of layers before for several layers."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows of a run, epoch after epoch."""

    run: "Run"
    """Where states are read."""
    site: str
    """A site with one vector, or one grid of vectors, for each utterance."""
    layer: int | Sequence[int]
    """One layer, or several."""
    dtype: str
    """`float32` or `stored`."""
    size: int
    """Rows of a batch, B."""
    rows_N: NDArray[np.int64] = field(repr=False)
    """The rows of an epoch, in the order asked for."""
    chunk_N: NDArray[np.int64] | None = field(repr=False)
    """Which chunk holds each; None where nothing is shuffled."""
    shuffle_seed: int | None
    """What the orders are drawn from; None for the order asked for."""
    buffer_rows: int
    """Rows that are read at once, and shuffled among each other."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.buffer_rows < 1:
            raise ValueError(f"a batch and a buffer have a row at least: size={self.size}, buffer_rows={self.buffer_rows}")
        if self.shuffle_seed is not None and self.shuffle_seed < 0:
            raise ValueError(f"shuffle_seed is a whole number from 0, not {self.shuffle_seed}")

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch in its order, (N,).

        With a seed: the chunks in a random order and the rows of each in a random order; then that cut into buffers, and the
        rows of each buffer in a random order. Where one buffer holds every row, any order is as likely as any other.
        """
        if self.chunk_N is None:
            return self.rows_N
        rng = np.random.default_rng([self.shuffle_seed or 0, epoch])
        chunks, chunk_of_N = np.unique(self.chunk_N, return_inverse=True)
        order_N = rng.permutation(len(self.rows_N))
        order_N = order_N[np.argsort(rng.permutation(len(chunks))[chunk_of_N[order_N]], kind="stable")]
        for start in range(0, len(order_N), self.buffer_rows):
            rng.shuffle(order_N[start : start + self.buffer_rows])
        return self.rows_N[order_N]

    def batches(self, epoch: int = 0, part: int = 0, n_parts: int = 1) -> Iterator[Batch]:
        """The batches of one of several equal parts of an epoch; parts differ by a row at most.

        Raises:
            ValueError: there is no such epoch or part.
        """
        if epoch < 0:
            raise ValueError(f"epochs count from 0, so there is no epoch {epoch}")
        if not 0 <= part < n_parts:
            raise ValueError(f"ranks count from 0 to world_size - 1: there is no rank {part} of {n_parts}")
        n_rows = len(self.rows_N)
        start, stop = part * n_rows // n_parts, (part + 1) * n_rows // n_parts
        # Buffers lie at the same rows for every part, so that a part's batches are shuffled as the epoch is.
        inner = range((start // self.buffer_rows + 1) * self.buffer_rows, stop, self.buffer_rows)
        order_N = self.order(epoch)
        pieces = [order_N[low:high] for low, high in itertools.pairwise([start, *inner, stop]) if low < high]
        return self._batches(pieces)

    def _batches(self, pieces: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        parts: list[Batch] = []
        n_held = 0
        for buffer in self._buffers(pieces):
            start = 0
            while start < len(buffer.rows):
                stop = min(start + self.size - n_held, len(buffer.rows))
                parts.append(self._copied(buffer, start, stop))  # a view would keep the buffer for as long as the batch lives
                n_held, start = n_held + stop - start, stop
                if n_held == self.size:
                    yield self._joined(parts)
                    parts, n_held = [], 0
            del buffer  # before the one after the next is read
        if parts:
            yield self._joined(parts)

    def _buffers(self, pieces: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """What is read at once, the next while the caller works with the one before."""
        if not pieces:
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, pieces[0])
            for piece in pieces[1:]:
                buffer = ahead.result()
                ahead = pool.submit(self._read, piece)
                yield buffer
            yield ahead.result()

    def _read(self, rows: NDArray[np.int64]) -> Batch:
        return Batch(rows, self.run.hidden(self.site, self.layer, dtype=self.dtype, rows=rows))

    @property
    def _axis(self) -> int:
        """The axis of rows."""
        return 0 if isinstance(self.layer, (int, np.integer)) else 1

    def _copied(self, buffer: Batch, start: int, stop: int) -> Batch:
        rows = slice(start, stop)
        return Batch(buffer.rows[rows].copy(), buffer.hidden[(slice(None),) * self._axis + (rows,)].copy())

    def _joined(self, parts: Sequence[Batch]) -> Batch:
        if len(parts) == 1:
            return parts[0]
        hidden = np.concatenate([part.hidden for part in parts], axis=self._axis)
        return Batch(np.concatenate([part.rows for part in parts]), hidden)
