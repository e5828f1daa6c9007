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
from extract.encoding import METADATA_KEY, Layout, Values, decode_into
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

    def read_entries(self, index: int, entries_N: NDArray[np.int64], hidden: Values) -> None:
        """Read some entries of a layer, and no chunk that holds none of them.

        Args:
            index: as in `read_layer`.
            entries_N: positions on the array's second axis, ascending.
            hidden: as in `read_layer`.

        Raises:
            ValueError: the object is missing or damaged.
        """
        entry, layout = self._entry(index), self.layout
        chunk_N = entries_N // layout.chunk
        chunks, begins = np.unique(chunk_N, return_index=True)
        ends = [*begins[1:].tolist(), len(entries_N)]
        try:
            (tail,) = self.objects.read_ranges(entry.path, [(entry.size - layout.index_bytes, entry.size)])
            places = layout.read_index(tail, entry.size)[chunks].tolist()
            read = self.objects.read_ranges(entry.path, [(offset, offset + length) for offset, length in places])
            for number, data, begin, end in zip(chunks.tolist(), read, begins.tolist(), ends, strict=True):
                values = layout.decode(np.frombuffer(data, np.uint8), number)
                wanted = values[entries_N[begin:end] - number * layout.chunk]
                decode_into(hidden[begin:end], wanted, layout.stored_dtype)
        except (FileNotFoundError, ValueError) as error:
            raise self._problem(entry, error) from error

    def _entry(self, index: int) -> StoredObject:
        return self.entries[f"{self.prefix}/{self.layout.key(index)}"]

    def _problem(self, entry: StoredObject, error: Exception) -> ValueError:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        return ValueError(f"{self.objects.url(entry.path)} {what}; see affectome verify --repair")


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
