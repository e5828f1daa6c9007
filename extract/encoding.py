"""Hidden states to Zarr v3 bytes and back: bfloat16 as its 16 bits, chunks by layer, a checksum on every chunk.

zarr-python cannot hold bfloat16, so an array of `uint16` carries the bits and the attribute `stored_dtype` says so.
float16 is refused where a value does not fit, because clipping or infinity would be a wrong number in silence.

An array is encoded in memory and its objects are handed out as bytes: whoever writes them hashes exactly what reaches
the disk.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore

STORED_DTYPES = ("bfloat16", "float16", "float32")
"""How hidden states may be kept."""

_NUMPY_DTYPES: dict[str, type[np.generic]] = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32}
_CHUNK_BYTES = 1 << 18

Values = NDArray[Any]
"""Hidden states in their stored form: axis 0 layers, axis 1 rows, last axis width."""


class UnfitValueError(ValueError):
    """A hidden state that the stored dtype cannot hold, by its index (layer, row, ...) in the tensor."""

    def __init__(self, value: float, index: tuple[int, ...]) -> None:
        super().__init__(f"{value:g} at {index}")
        self.value = value
        self.index = index


def to_stored(states: torch.Tensor, stored_dtype: str) -> Values:
    """Convert hidden states to the form they are kept in, on the host.

    Raises:
        UnfitValueError: a state is not finite, or becomes infinite in the stored dtype.
    """
    stored = states.to(getattr(torch, stored_dtype))
    fits = stored.isfinite()
    if not bool(fits.all()):
        index = tuple(int(axis) for axis in torch.nonzero(~fits)[0])
        raise UnfitValueError(float(states[index]), index)
    return (stored.view(torch.uint16) if stored_dtype == "bfloat16" else stored).cpu().numpy()


def to_float32(values: Values, stored_dtype: str) -> NDArray[np.float32]:
    """Decode stored hidden states; exact for every stored dtype."""
    if stored_dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def encode(values: Values, stored_dtype: str, dimension_names: tuple[str, ...]) -> dict[str, bytes]:
    """Encode one array as Zarr v3: one object per layer, cut inside into chunks of rows so that a few rows can be read alone.

    Returns:
        The array's objects by key, such as `zarr.json` and `c/0/0/0`.
    """
    _, n_rows, *rest = values.shape
    row_bytes = int(np.prod(rest)) * values.itemsize
    rows_per_chunk = max(1, min(n_rows, _CHUNK_BYTES // row_bytes))
    rows_per_object = -(-n_rows // rows_per_chunk) * rows_per_chunk
    objects: dict[str, Buffer] = {}
    array = zarr.create_array(
        MemoryStore(objects),
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, rows_per_chunk, *rest),
        shards=(1, rows_per_object, *rest),
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
        dimension_names=dimension_names,
        attributes={"stored_dtype": stored_dtype},
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return {key: buffer.to_bytes() for key, buffer in objects.items()}


def open_array(directory: Path) -> zarr.Array[Any]:
    """Open an encoded array on disk, read-only; nothing but its metadata is read.

    Raises:
        ValueError: there is no readable array.
    """
    try:
        return zarr.open_array(LocalStore(directory, read_only=True), mode="r")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{directory} is not a readable array: {error}") from error
