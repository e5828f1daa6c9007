"""Files of states with known numbers, in every format that an import reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray


def numbers(shape: Sequence[int], dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Random states."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).to(getattr(torch, dtype))


def bits(values: torch.Tensor) -> NDArray[Any]:
    """What equal numbers have in common, and NaNs and zeros of either sign too."""
    found: NDArray[Any] = values.contiguous().view(torch.uint16 if values.element_size() == 2 else torch.int32).numpy()
    return found


def saved(values: torch.Tensor, path: Path, order: str = "C", endian: str = "<") -> Path:
    """A file of states; .npy in any order and of either endian."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({"hidden": values.contiguous(), "other": torch.zeros(3)}, path)
    else:
        array = values.numpy()
        np.save(path, np.asarray(array, array.dtype.newbyteorder(endian), order=order))  # type: ignore[call-overload, arg-type]
    return path
