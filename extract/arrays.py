"""Read hidden states of one site of one shard: a layer in full, or a few of its entries, and only the bytes that needs.

Every byte that becomes a number was checked: the metadata against the digest in the receipt, chunks and indexes against
their checksums, and the length of an object that is read whole against the receipt. Reading through zarr-python was
rejected: it takes a missing object for zeros and reads at less than a quarter of the speed (benchmarks/store.py).

Shape suffixes: N entries (rows, or tokens of an `all` site), C entries of a chunk, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from extract.documents import Receipt, StoredObject
from extract.encoding import METADATA_KEY, Layout, Values, decode_into, to_float32
from extract.objects import Objects
from extract.stored_run import attempt_prefix, read_checked


@dataclass(frozen=True, slots=True)
class StoredArray:
    """The array of one site of one shard."""

    objects: Objects = field(repr=False)
    """The run's place."""
    prefix: str
    """Where the array is in it."""
    layout: Layout
    """How its bytes lie."""
    entries: Mapping[str, StoredObject] = field(repr=False)
    """The objects of its shard by path."""

    def read_layer(self, index: int, hidden: Values) -> None:
        """Read a whole layer.

        Args:
            index: the layer's position in the run's layers.
            hidden: (N, D) or (N, O, D), float32 or of the stored form's dtype; filled here.

        Raises:
            ValueError: the object is missing or damaged.
        """
        entry = self._entry(index)
        try:
            with self.objects.open_whole(entry.path) as file:
                self.layout.read_object(file, entry.size, hidden)
        except (FileNotFoundError, ValueError) as error:
            raise self._problem(entry, error) from error

    def read_entries(
        self, index: int, entries_N: NDArray[np.int64], hidden: Values, places_N: NDArray[np.int64] | None = None
    ) -> None:
        """Read some entries of a layer, and no chunk that holds none of them.

        Args:
            index: as in `read_layer`.
            entries_N: positions on the array's second axis, ascending; they may repeat.
            hidden: as in `read_layer`.
            places_N: where in `hidden` each goes; without them one after another.

        Raises:
            ValueError: the object is missing or damaged.
        """
        entry, layout = self._entry(index), self.layout
        chunk_N = entries_N // layout.chunk
        chunks, begins = np.unique(chunk_N, return_index=True)
        ends = [*begins[1:].tolist(), len(entries_N)]
        try:
            places = self._chunk_places(entry)[chunks].tolist()
            read = self.objects.read_ranges(entry.path, [(offset, offset + length) for offset, length in places])
            for number, data, begin, end in zip(chunks.tolist(), read, begins.tolist(), ends, strict=True):
                values = layout.decode(np.frombuffer(data, np.uint8), number)
                wanted = values[_consecutive(entries_N[begin:end] - number * layout.chunk)]
                if places_N is None:
                    decode_into(hidden[begin:end], wanted, layout.stored_dtype)
                else:
                    as_asked = wanted if hidden.dtype == layout.dtype else to_float32(wanted, layout.stored_dtype)
                    hidden[places_N[begin:end]] = as_asked
        except (FileNotFoundError, ValueError) as error:
            raise self._problem(entry, error) from error

    def size_of_layer(self, index: int) -> tuple[int, int]:
        """How many chunks and bytes `read_layer` reads."""
        return self.layout.n_chunks, self._entry(index).size

    def size_of_entries(self, index: int, entries_N: NDArray[np.int64]) -> tuple[int, int]:
        """How many chunks and bytes `read_entries` reads, with the index; that is read here where chunks are compressed.

        Raises:
            ValueError: the index is missing or damaged.
        """
        entry, chunks = self._entry(index), np.unique(entries_N // self.layout.chunk)
        n_bytes = len(chunks) * self.layout.chunk_bytes
        if self.layout.compression != "none":
            try:
                n_bytes = int(self._chunk_places(entry)[chunks, 1].sum())
            except (FileNotFoundError, ValueError) as error:
                raise self._problem(entry, error) from error
        return len(chunks), n_bytes + self.layout.index_bytes

    def _chunk_places(self, entry: StoredObject) -> NDArray[np.uint64]:
        """Offset and length of each chunk."""
        (tail,) = self.objects.read_ranges(entry.path, [(entry.size - self.layout.index_bytes, entry.size)])
        return self.layout.read_index(tail, entry.size)

    def _entry(self, index: int) -> StoredObject:
        return self.entries[f"{self.prefix}/{self.layout.key(index)}"]

    def _problem(self, entry: StoredObject, error: Exception) -> ValueError:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        return ValueError(f"{self.objects.url(entry.path)} {what}; see affectome verify --repair")


def _consecutive(entries_N: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """The same as a slice where that says it, which numpy need not copy."""
    first, last = int(entries_N[0]), int(entries_N[-1])
    return slice(first, last + 1) if last - first + 1 == len(entries_N) and (np.diff(entries_N) == 1).all() else entries_N


def open_array(objects: Objects, receipt: Receipt, site: str, known: dict[str, Layout]) -> StoredArray:
    """The array of one site of one shard.

    Args:
        known: layouts by the digest of their metadata, added to here; shards of one shape share theirs, which is read once.

    Raises:
        ValueError: its metadata is missing or damaged.
    """
    prefix = f"{attempt_prefix(receipt.shard, receipt.attempt)}/{site}"
    entries = {entry.path: entry for entry in receipt.objects}
    metadata = entries[f"{prefix}/{METADATA_KEY}"]
    layout = known.get(metadata.sha256)
    if layout is None:
        try:
            layout = known[metadata.sha256] = Layout.read(read_checked(objects, metadata))
        except ValueError as error:
            raise ValueError(f"{objects.url(prefix)}: {error}; see affectome verify --repair") from error
    return StoredArray(objects, prefix, layout, entries)
