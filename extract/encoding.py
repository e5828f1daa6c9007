"""Hidden states to Zarr v3 bytes and back: bfloat16 as its 16 bits, an object for each layer, a checksum on every chunk.

zarr-python cannot hold bfloat16, so an array of `uint16` carries the bits and the attribute `stored_dtype` says so.
float16 is refused where a value does not fit, because clipping or infinity would be a wrong number in silence.

The bytes are zarr-python's own, to the last bit (a test compares them), but made and read here: through zarr a layer reads
at less than a quarter of the speed (benchmarks/store.py), and here whoever writes can hash exactly what reaches the disk.
Metadata does go through zarr.

Shape suffixes: N entries of an array's second axis (rows, or tokens of an `all` site), C entries of a chunk.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from extract.durable import Part

if TYPE_CHECKING:  # it takes seconds to load, and whoever reads a store needs none of it
    import torch

STORED_DTYPES = ("bfloat16", "float16", "float32")
"""How hidden states may be kept."""

COMPRESSIONS = ("none", "lz4")
"""How chunks may be compressed; `lz4` is Blosc's with bitshuffle (benchmarks/compression.py)."""

METADATA_KEY = "zarr.json"

_NUMPY_DTYPES: dict[str, str] = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4"}
_CHUNK_BYTES = 1 << 18
_INDEX_DTYPE = np.dtype("<u8")
_CRC_BYTES = 4

Values = NDArray[Any]
"""Hidden states in their stored form: axis 0 layers, axis 1 rows or tokens, last axis width."""


class UnfitValueError(ValueError):
    """A hidden state that the stored dtype cannot hold, by its index (layer, row, ...) in the tensor."""

    def __init__(self, value: float, index: tuple[int, ...]) -> None:
        super().__init__(f"{value:g} at {index}")
        self.value = value
        self.index = index


def to_stored(states: "torch.Tensor", stored_dtype: str) -> Values:
    """Convert hidden states to the form they are kept in, on the host.

    Raises:
        UnfitValueError: a state is not finite, or becomes infinite in the stored dtype.
    """
    import torch

    stored = states.to(getattr(torch, stored_dtype))
    fits = stored.isfinite()
    if not bool(fits.all()):
        index = tuple(int(axis) for axis in torch.nonzero(~fits)[0])
        raise UnfitValueError(float(states[index]), index)
    return _on_host(stored.view(torch.uint16) if stored_dtype == "bfloat16" else stored).numpy()


def _on_host(values: "torch.Tensor") -> "torch.Tensor":
    """The values in host memory; from a GPU through pinned memory and on the stream in use, so that other streams go on."""
    if values.device.type != "cuda":
        return values.cpu()
    import torch

    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned


def to_torch(values: Values, stored_dtype: str) -> "torch.Tensor":
    """Stored hidden states in the precision they are kept in; the tensor and the array are one memory."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if stored_dtype == "bfloat16" else tensor


def numpy_dtype(stored_dtype: str) -> np.dtype[Any]:
    """numpy's dtype of the stored form."""
    return np.dtype(_NUMPY_DTYPES[stored_dtype])


def to_float32(values: Values, stored_dtype: str) -> NDArray[np.float32]:
    """Decode stored hidden states; exact for every stored dtype."""
    decoded = np.empty(values.shape, np.float32)
    decode_into(decoded, values, stored_dtype)
    return decoded


def decode_into(decoded: Values, values: Values, stored_dtype: str) -> None:
    """As `to_float32`, into memory that is there already; memory of the stored form's own dtype gets that form."""
    if stored_dtype == "bfloat16" and decoded.dtype == np.float32:
        bits = decoded.view(np.uint32)
        np.copyto(bits, values)
        bits <<= 16
    else:
        np.copyto(decoded, values)


def is_finite(values: Values, stored_dtype: str) -> bool:
    """Whether every stored hidden state is a number; bfloat16 is looked at in its bits."""
    if stored_dtype == "bfloat16":
        return bool((values & 0x7FFF).max(initial=0) < 0x7F80)
    return bool(np.isfinite(values).all())


@dataclass(frozen=True)
class Layout:
    """How one array lies in objects: everything its `zarr.json` says."""

    shape: tuple[int, ...]
    """(L, N, ...): layers first."""
    stored_dtype: str
    """One of STORED_DTYPES."""
    compression: str
    """One of COMPRESSIONS."""
    row_offsets: tuple[int, ...] | None
    """For an array of tokens, where each row begins and where the last one ends; None for an array of rows."""
    chunk: int = 1
    """Entries of the second axis in a chunk, C."""

    @classmethod
    def plan(
        cls, shape: tuple[int, ...], stored_dtype: str, compression: str, row_offsets: Sequence[int] | None = None
    ) -> "Layout":
        """The layout of a new array: chunks as even as can be and of about 256 KiB."""
        offsets = None if row_offsets is None else tuple(row_offsets)
        layout = cls(shape, stored_dtype, compression, offsets)
        n_chunks = max(1, math.ceil(shape[1] * layout.entry_bytes / _CHUNK_BYTES))
        return replace(layout, chunk=max(1, math.ceil(shape[1] / n_chunks)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy's dtype of the stored form."""
        return numpy_dtype(self.stored_dtype)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of the second axis."""
        return math.prod(self.shape[2:]) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk that is not compressed, with its crc32c."""
        return self.chunk * self.entry_bytes + _CRC_BYTES

    @property
    def n_chunks(self) -> int:
        """Chunks of one layer."""
        return max(1, math.ceil(self.shape[1] / self.chunk))

    @property
    def index_bytes(self) -> int:
        """Bytes of an object's index: offset and length of each chunk, and a crc32c."""
        return self.n_chunks * 2 * _INDEX_DTYPE.itemsize + _CRC_BYTES

    def key(self, layer: int) -> str:
        """The object of the layer at a position of the first axis."""
        return ".".join(("c", str(layer), *("0" for _ in self.shape[1:])))

    @cached_property
    def metadata(self) -> bytes:
        """The array's `zarr.json`, made by zarr."""
        objects: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(objects),
            shape=self.shape,
            dtype=self.dtype,
            chunks=(1, self.chunk, *self.shape[2:]),
            shards=(1, self.chunk * self.n_chunks, *self.shape[2:]),
            serializer=BytesCodec(),
            compressors=[*self._compressors(), Crc32cCodec()],
            filters=None,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=self._axes(),
            attributes=self._attributes(),
            config={"write_empty_chunks": True},
        )
        data: bytes = objects[METADATA_KEY].to_bytes()
        return data

    @classmethod
    def read(cls, metadata: bytes) -> "Layout":
        """The layout a `zarr.json` describes.

        Raises:
            ValueError: it is not the metadata of an array that this version writes.
        """
        try:
            buffer = default_buffer_prototype().buffer.from_bytes(metadata)
            array = zarr.open_array(MemoryStore({METADATA_KEY: buffer}), mode="r")
            compressed = any(isinstance(codec, BloscCodec) for codec in array.compressors)
            offsets: Any = array.attrs.get("row_offsets")
            row_offsets = None if offsets is None else tuple(offsets)
            dtype = str(array.attrs["stored_dtype"])
            layout = cls(array.shape, dtype, COMPRESSIONS[compressed], row_offsets, array.chunks[1])
            as_written = layout.metadata
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"not the metadata of a stored array: {error}") from error
        if json.loads(as_written) != json.loads(metadata):  # another zarr may space its JSON otherwise
            raise ValueError("not the metadata of an array as this version writes it")
        return layout

    def encode(self, values: Values) -> Iterator[Part]:
        """The object of one layer, in pieces: its chunks, each with its crc32c, and their index.

        Args:
            values: (N, ...), contiguous, in stored form.
        """
        index = np.empty((self.n_chunks, 2), _INDEX_DTYPE)
        written = 0
        for number in range(self.n_chunks):
            data = self._compressed(self._filled(values[number * self.chunk : (number + 1) * self.chunk]))
            index[number] = written, len(data) + _CRC_BYTES
            written += len(data) + _CRC_BYTES
            yield data
            yield _crc(data)
        yield index.view(np.uint8).reshape(-1)
        yield _crc(index.view(np.uint8).reshape(-1))

    def read_index(self, data: bytes, size: int) -> NDArray[np.uint64]:
        """Offset and length of each chunk, (n_chunks, 2), from the end of an object of `size` bytes.

        Raises:
            ValueError: its checksum does not fit, or it points outside of the object.
        """
        if len(data) != self.index_bytes or _crc(data[:-_CRC_BYTES]) != data[-_CRC_BYTES:]:
            raise ValueError("the checksum of its index does not fit")
        index = np.frombuffer(data, _INDEX_DTYPE, self.n_chunks * 2).reshape(-1, 2)
        if (index > size).any() or (index.sum(axis=1) > size).any():
            raise ValueError("its index points outside of it")
        return index

    def decode(self, chunk: NDArray[np.uint8], number: int) -> Values:
        """A chunk's values, (C, ...) or fewer at the end of the array, from its bytes.

        Raises:
            ValueError: its checksum does not fit.
        """
        data = chunk[:-_CRC_BYTES]
        self._check(data, chunk[-_CRC_BYTES:].tobytes(), number)
        raw = data if self.compression == "none" else np.frombuffer(_BLOSC[self.compression].decode(data), np.uint8)
        values = raw.view(self.dtype).reshape(self.chunk, *self.shape[2:])
        return values[: self.shape[1] - number * self.chunk]

    def read_object(self, file: BinaryIO, size: int, hidden: Values) -> None:
        """Read a whole layer from its object, chunk by chunk.

        A chunk that needs no decoding is read to where it belongs. Any other goes through one buffer for all of them, which
        stays in the processor's cache: both matter, because a disk's cache is about as fast as copying (benchmarks/store.py).

        Args:
            size: bytes that were written.
            hidden: (N, ...), float32 or of the stored form's dtype; filled here.

        Raises:
            ValueError: the object has another size, or a checksum does not fit.
        """
        held = file.seek(0, os.SEEK_END)
        if held != size:
            raise ValueError(f"it holds {held:,} bytes, not the {size:,} that were written")
        file.seek(max(0, size - self.index_bytes))
        tail = np.empty(min(self.index_bytes, size), np.uint8)
        _fill(file, tail)
        index = self.read_index(tail.tobytes(), size)
        buffer, crc = np.empty(index[:, 1].max(), np.uint8), np.empty(_CRC_BYTES, np.uint8)
        for number, (offset, length) in enumerate(index.tolist()):
            place = hidden[number * self.chunk : (number + 1) * self.chunk]
            file.seek(offset)
            if self._is_stored_as(place, length):
                data = place.reshape(-1).view(np.uint8)
                _fill(file, data)
                _fill(file, crc)
                self._check(data, crc.tobytes(), number)
            else:
                _fill(file, buffer[:length])
                decode_into(place, self.decode(buffer[:length], number), self.stored_dtype)

    def _is_stored_as(self, place: Values, length: int) -> bool:
        """Whether the bytes of a chunk are those of its values in memory."""
        same = self.compression == "none" and place.dtype == self.dtype and place.flags.c_contiguous
        return same and place.nbytes + _CRC_BYTES == length

    def _check(self, data: Part, crc: bytes, number: int) -> None:
        if _crc(data) != crc:
            raise ValueError(f"the checksum of its chunk {number} does not fit")

    def _axes(self) -> tuple[str, ...]:
        entry = "row" if self.row_offsets is None else "token"
        return ("layer", entry, *(("offset",) if len(self.shape) == 4 else ()), "width")

    def _attributes(self) -> dict[str, Any]:
        offsets = {} if self.row_offsets is None else {"row_offsets": list(self.row_offsets)}
        return {"stored_dtype": self.stored_dtype, **offsets}

    def _compressors(self) -> list[BloscCodec]:
        codec = _BLOSC.get(self.compression)
        if codec is None:
            return []
        return [BloscCodec(cname="lz4", clevel=codec.clevel, shuffle="bitshuffle", typesize=self.dtype.itemsize)]

    def _compressed(self, values: Values) -> NDArray[np.uint8]:
        if self.compression == "none":
            return values.reshape(-1).view(np.uint8)
        return np.frombuffer(_BLOSC[self.compression].encode(values), np.uint8)

    def _filled(self, values: Values) -> Values:
        """The last chunk is as long as the others; what follows the array's end is never read."""
        if len(values) == self.chunk:
            return values
        filled = np.zeros((self.chunk, *self.shape[2:]), self.dtype)
        filled[: len(values)] = values
        return filled


_BLOSC = {"lz4": Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)}


def _fill(file: BinaryIO, buffer: NDArray[np.uint8]) -> None:
    filled = 0
    while filled < len(buffer):  # a network mount may give less at a time
        n_read = file.readinto(buffer[filled:].data)  # type: ignore[attr-defined]  # every file here has it
        if not n_read:
            raise ValueError("it ends too early")
        filled += n_read


def _crc(data: Part) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")
