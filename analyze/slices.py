"""Plan a read of some rows at some layers, and do it: which shards hold them, which chunks, and where each row goes.

A plan comes from receipts and metadata alone, so what a read touches is known without it. Rows come in the order asked for:
each chunk is read once, and its rows are put where they belong. Reading in the order of the bytes and putting all in order
at the end was rejected, because it holds the states twice.

Shape suffixes: L layers, N rows asked for, T entries that come back (rows, or tokens of an `all` site), D width.
"""

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.arrays import StoredArray, open_array
from extract.documents import Receipt
from extract.encoding import Layout, Values
from extract.sites import Site
from extract.stored_run import StoredRun


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read touches and what comes back."""

    n_objects: int
    """Objects with states: one for each layer of each shard that holds a row asked for."""
    n_chunks: int
    """Chunks of these objects that are read."""
    n_bytes: int
    """Bytes that are read of these objects, with their indexes. Receipts, metadata and the utterances come besides."""
    shape: tuple[int, ...]
    """Shape of the array that comes back."""

    @property
    def memory_bytes(self) -> int:
        """Size of that array as float32."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is read of one shard."""

    array: StoredArray
    """The shard's array of the site."""
    entries: NDArray[np.int64]
    """Positions on its second axis, ascending; repeated only where places are listed."""
    places: slice | NDArray[np.int64]
    """Where they go on the second axis of what comes back."""

    @property
    def whole(self) -> bool:
        """Whether it is all there is of the shard, in the order of its bytes."""
        return isinstance(self.places, slice) and len(self.entries) == self.array.layout.shape[1]

    def read(self, index: int, hidden_TD: Values) -> None:
        if not isinstance(self.places, slice):
            self.array.read_entries(index, self.entries, hidden_TD, self.places)
        elif self.whole:
            self.array.read_layer(index, hidden_TD[self.places])
        else:
            self.array.read_entries(index, self.entries, hidden_TD[self.places])

    def touched(self, index: int) -> tuple[int, int]:
        """Chunks and bytes that `read` reads."""
        return self.array.size_of_layer(index) if self.whole else self.array.size_of_entries(index, self.entries)


@dataclass(frozen=True, slots=True)
class Plan:
    """A read of some rows at one site, for any of its layers."""

    parts: tuple[_Part, ...]
    """What is read of each shard that holds a row."""
    lengths_N: NDArray[np.int64]
    """How many entries come back for each row: tokens at an `all` site, otherwise one."""
    readers: int = field(repr=False)
    """How many objects are read at once."""

    @property
    def n_entries(self) -> int:
        """Entries that come back for each layer, T."""
        return int(self.lengths_N.sum())

    def read(self, indexes_L: Sequence[int], entry_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Values:
        """Read layers, (L, T, ...), all their objects beside each other.

        Args:
            indexes_L: positions of the layers on the arrays' first axis.
            entry_shape: (D,), or (O, D) for a grid of offsets.
            dtype: float32, or the stored form's.

        Raises:
            ValueError: an object is missing or damaged.
        """
        hidden_LTD = np.empty((len(indexes_L), self.n_entries, *entry_shape), dtype)
        tasks = list(itertools.product(self.parts, zip(indexes_L, hidden_LTD, strict=True)))
        with ThreadPoolExecutor(self.readers) as pool:
            list(pool.map(lambda task: task[0].read(*task[1]), tasks))
        return hidden_LTD

    def touched(self, indexes_L: Sequence[int]) -> tuple[int, int, int]:
        """Objects, chunks and bytes that `read` reads; for this only the indexes of compressed objects are.

        Raises:
            ValueError: an index is missing or damaged.
        """
        tasks = list(itertools.product(self.parts, indexes_L))
        with ThreadPoolExecutor(self.readers) as pool:
            sizes = list(pool.map(lambda task: task[0].touched(task[1]), tasks))
        return len(sizes), sum(chunks for chunks, _ in sizes), sum(size for _, size in sizes)


@dataclass(frozen=True, slots=True)
class SiteArrays:
    """The arrays of one site of a complete run."""

    stored: StoredRun
    """The run."""
    receipts: Sequence[Receipt]
    """The receipt of every shard, in order."""
    site: Site
    """The site."""
    layouts: dict[str, Layout]
    """Layouts that were read before, by digest; added to here."""

    def plan(self, rows_N: NDArray[np.int64]) -> Plan:
        """Plan a read of rows of the run, in any order and as often as they are named.

        Raises:
            ValueError: metadata is missing or damaged.
        """
        ordered = not bool((np.diff(rows_N) <= 0).any())
        order_N = np.arange(len(rows_N)) if ordered else np.argsort(rows_N, kind="stable")
        held = self._held(rows_N[order_N])
        lengths_N = np.empty(len(rows_N), np.int64)
        first_N = np.empty(len(rows_N), np.int64)  # entries, in the order of the bytes
        for array, span, rows in held:
            first_N[span], lengths_N[order_N[span]] = _entries(array.layout, rows)
        places_N = (np.cumsum(lengths_N) - lengths_N)[order_N]
        parts = []
        for array, span, _ in held:
            lengths = lengths_N[order_N[span]]
            entries = _runs(first_N[span], lengths)
            if ordered:
                begin = int(places_N[span.start])
                parts.append(_Part(array, entries, slice(begin, begin + len(entries))))
            else:
                of_bytes = np.argsort(entries, kind="stable")  # a row named twice repeats its tokens, all before any again
                parts.append(_Part(array, entries[of_bytes], _runs(places_N[span], lengths)[of_bytes]))
        return Plan(tuple(parts), lengths_N, self.stored.objects.readers)

    def chunks(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which chunk holds each row, in any order, counted over the whole run; numbers are left out between shards.

        Raises:
            ValueError: metadata is missing or damaged.
        """
        assert self.site.position != "all", "there rows go through several chunks"
        order_N = np.argsort(rows_N, kind="stable")
        chunk_N = np.empty(len(rows_N), np.int64)
        for array, span, rows in self._held(rows_N[order_N]):
            start = rows_N[order_N[span.start]] - rows[0]  # a shard has no more chunks than rows
            chunk_N[order_N[span]] = start + rows // array.layout.chunk
        return chunk_N

    def _held(self, rows_N: NDArray[np.int64]) -> list[tuple[StoredArray, slice, NDArray[np.int64]]]:
        """For each shard that holds some of ascending rows: its array, which of them, and their numbers within the shard."""
        bounds = np.searchsorted(rows_N, [receipt.start for receipt in self.receipts] + [self.stored.manifest.n_rows])
        spans = [
            (receipt, slice(begin, end))
            for receipt, (begin, end) in zip(self.receipts, itertools.pairwise(bounds.tolist()), strict=True)
            if begin < end
        ]
        with ThreadPoolExecutor(self.stored.objects.readers) as pool:
            arrays = pool.map(lambda each: open_array(self.stored.objects, each[0], str(self.site), self.layouts), spans)
            return [(array, span, rows_N[span] - receipt.start) for array, (receipt, span) in zip(arrays, spans, strict=True)]


def _entries(layout: Layout, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first entry of an array that belongs to each of some rows of its shard, and how many do."""
    if layout.row_offsets is None:
        return rows, np.ones(len(rows), np.int64)
    bounds = np.asarray(layout.row_offsets, np.int64)
    return bounds[rows], bounds[rows + 1] - bounds[rows]


def _runs(first: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs of consecutive numbers, one after another."""
    ends = np.cumsum(lengths)
    return np.repeat(first - (ends - lengths), lengths) + np.arange(lengths.sum())
