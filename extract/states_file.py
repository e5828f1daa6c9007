"""A file of hidden states made elsewhere, .npy or .safetensors: its header says what it holds, and rows are read as asked for.

Nothing in it is run or trusted: pickled arrays are refused, and what the header says must be what the file's size allows.
Reading .npz, Parquet or PyTorch's own files was rejected: the two formats are what others write, and can be mapped. To touch
what was cut off a mapped file kills the process, so before each read size and time of change are held against those at the
opening; a file that is cut in the very moment of a read is not caught.

Shape suffixes: L layers, N rows, D width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from extract.encoding import Values, numpy_dtype

TENSOR = "hidden"
"""What a tensor of states is called where nobody says."""

_NPY = {"float16": "float16", "float32": "float32"}
_SAFETENSORS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of its states, as affectome query writes it into one; None where it says nothing."""

    site: str | None = None
    """Where they were read."""
    layers: tuple[int, ...] | None = None
    """Which layers they are of."""
    n_layers: int | None = None
    """Blocks of the model."""


@dataclass(frozen=True, slots=True)
class StatesFile:
    """States of some rows at some layers, in a file."""

    path: Path
    """Where."""
    shape: tuple[int, int, int]
    """(L, N, D)."""
    stored_dtype: str
    """One of extract.encoding.STORED_DTYPES: the file's own."""
    said: Said
    """What it says of them; it may be wrong."""
    _opened: tuple[int, int] = field(repr=False)
    _read: Callable[[int, int], Values] = field(repr=False)

    def read(self, start: int, stop: int) -> Values:
        """Rows from `start` to before `stop`, (L, stop - start, D), contiguous and in stored form.

        Raises:
            ValueError: the file was written to since it was opened, or removed.
        """
        try:
            changed = _written(self.path) != self._opened
        except FileNotFoundError:
            changed = True
        if changed:
            raise ValueError(f"{self.path} changed while it was imported; import it again once nobody writes to it")
        return np.ascontiguousarray(self._read(start, stop), numpy_dtype(self.stored_dtype))


def open_states(name: str, tensor: str = TENSOR) -> StatesFile:
    """Open a file of states; no state is read yet.

    Args:
        name: a local file that ends in .npy or .safetensors, of (N, D) for one layer or (L, N, D).
        tensor: which tensor of a .safetensors.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds no such states.
    """
    path = Path(name).expanduser().absolute()
    openers = {".npy": _open_npy, ".safetensors": lambda each: _open_safetensors(each, tensor)}
    if path.suffix.lower() not in openers:
        raise ValueError(f"cannot tell the format of states {name!r}; the name must end in {', '.join(openers)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path} on this machine; give a local file of states")
    return openers[path.suffix.lower()](path)


def _written(path: Path) -> tuple[int, int]:
    """How many bytes it has and when it was last written to, in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _open_npy(path: Path) -> StatesFile:
    opened = _written(path)
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a hostile header fails in many ways, and all mean the same
        raise ValueError(f"{path} is not a readable .npy file of numbers: {error}") from error
    surplus = opened[0] - values.offset - values.nbytes
    if surplus:
        raise ValueError(f"{path} is damaged: it holds {surplus:,} bytes more than its header says")
    shape, dtype = _shape(path, values.shape), _npy_dtype(path, values.dtype)
    values_LND = values.reshape(shape) if values.ndim == 3 else values[None]
    return StatesFile(path, shape, dtype, Said(), opened, lambda start, stop: values_LND[:, start:stop])


def _npy_dtype(path: Path, dtype: np.dtype[Any]) -> str:
    if dtype.name in _NPY:
        return _NPY[dtype.name]
    if dtype.name == "float64":
        raise ValueError(f"{path} holds float64, which a store does not keep; save it anew with .astype(numpy.float32)")
    bits = "; bfloat16 is known from a .safetensors" if dtype.itemsize == 2 else ""
    raise ValueError(f"{path} holds {dtype.name}; states are float16 or float32{bits}")


def _open_safetensors(path: Path, tensor: str) -> StatesFile:
    opened = _written(path)
    try:
        file = safe_open(path, framework="pt")  # numpy has no bfloat16
        names = sorted(file.keys())
        if tensor not in names:
            some = f"{', '.join(map(repr, names[:5]))}{', ...' * (len(names) > 5)}"
            raise ValueError(f"{path} has no tensor {tensor!r}; name one of its {len(names)} with --tensor: {some}")
        part = file.get_slice(tensor)
        kind, lengths = part.get_dtype(), tuple(part.get_shape())
        said = (file.metadata() or {}).get("affectome", "") if tensor == TENSOR else ""
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
    if kind not in _SAFETENSORS:
        remedy = "save it anew with .float()" if kind == "F64" else "states are BF16, F16 or F32"
        raise ValueError(f"tensor {tensor!r} of {path} holds {kind}, which a store does not keep; {remedy}")
    shape, dtype = _shape(path, lengths), _SAFETENSORS[kind]

    def read(start: int, stop: int) -> Values:
        import torch

        rows = part[:, start:stop] if len(lengths) == 3 else part[start:stop][None]
        values: Values = (rows.contiguous().view(torch.uint16) if dtype == "bfloat16" else rows).numpy()
        return values

    return StatesFile(path, shape, dtype, _said(said), opened, read)


def _shape(path: Path, lengths: Sequence[int]) -> tuple[int, int, int]:
    if len(lengths) not in (2, 3) or 0 in lengths:
        raise ValueError(
            f"{path} holds an array of shape {tuple(lengths)}; states are (utterances, width) of one layer, or (layers, "
            "utterances, width)"
        )
    n_layers, n_rows, width = (1, *lengths)[-3:]
    return int(n_layers), int(n_rows), int(width)


def _said(text: str) -> Said:
    """What affectome wrote into a file; whatever has another form says nothing."""
    try:
        meta = json.loads(text)
        site, layers, n_layers = meta.get("site"), meta.get("layers", [meta.get("layer")]), meta.get("n_layers")
    except (ValueError, AttributeError, RecursionError):
        return Said()
    named = isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    return Said(
        site if isinstance(site, str) else None, tuple(layers) if named else None, n_layers if type(n_layers) is int else None
    )
