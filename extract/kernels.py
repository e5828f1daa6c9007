"""The native code between matrix products (kernels.cpp): built once on each machine, kept in its cache, never required.

Compiled by the machine's own compiler the first time a process wants it, in about a second. Shipping it built was
rejected: there would be many wheels, and none would use all that a processor has. torch.compile was rejected for this: it
takes half a minute in every process, and its attention pads. OpenMP's threads are torch's own, whose library is loaded.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from extract.models import cache_directory

LANES = 16
"""Numbers of a vector; every width must be a multiple."""

_SOURCE = Path(__file__).with_name("kernels.cpp")
_COMMAND = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_SECONDS = 120
_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_POINTER, _INTEGER, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

_logger = logging.getLogger(__name__)


class Kernels:
    """The functions of kernels.cpp for one dtype. All tensors are contiguous, on the CPU, and of that dtype where not said."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        def function(name: str, *arguments: Any) -> Any:
            found = getattr(library, f"{name}_{_NAMES[dtype]}")
            found.argtypes, found.restype = arguments, None
            return found

        self._add_norm = function("add_norm", *[_POINTER] * 3, _REAL, _POINTER, _INTEGER, _INTEGER)
        self._silu_mul = function("silu_mul", _POINTER, _POINTER, _INTEGER, _INTEGER)
        self._span_mean = function("span_mean", *[_POINTER] * 4, _INTEGER, _INTEGER)
        self._attend = function(
            "attend", _POINTER, _POINTER, _INTEGER, *[_POINTER] * 6, *[_INTEGER] * 4, _REAL, _REAL, _POINTER
        )

    def add_norm(
        self,
        x_ND: torch.Tensor,
        delta_ND: torch.Tensor | None,
        weight_D: torch.Tensor | None,
        epsilon: float,
        normed_ND: torch.Tensor,
    ) -> None:
        """Add `delta_ND` to `x_ND` in place, then write its RMSNorm to `normed_ND`; a part that is None is left out."""
        normed = None if weight_D is None else normed_ND
        self._add_norm(_at(x_ND), _at(delta_ND), _at(weight_D), epsilon, _at(normed), *x_ND.shape)

    def silu_mul(self, gate_up_N2M: torch.Tensor, out_NM: torch.Tensor) -> None:
        """Write silu(gate) * up to `out_NM`."""
        self._silu_mul(_at(gate_up_N2M), _at(out_NM), *out_NM.shape)

    def span_mean(self, hidden_ND: torch.Tensor, start_B: torch.Tensor, stop_B: torch.Tensor) -> torch.Tensor:
        """Means over tokens start to stop (int64), (B, D) in float32."""
        mean_BD = torch.empty(len(start_B), hidden_ND.shape[1])
        self._span_mean(_at(hidden_ND), _at(start_B), _at(stop_B), _at(mean_BD), *mean_BD.shape)
        return mean_BD

    def attend(
        self,
        qkv_NX: torch.Tensor,
        begin_B: torch.Tensor,
        turns_2TK: torch.Tensor,
        norms: tuple[torch.Tensor | None, torch.Tensor | None],
        prefix: tuple[torch.Tensor, torch.Tensor] | None,
        scale: float,
        epsilon: float,
        out_NHK: torch.Tensor,
    ) -> None:
        """Causal attention inside each row.

        Args:
            qkv_NX: queries, keys and values as the products give them, X = (H + 2 G) K.
            begin_B: where each row begins and the last ends, B + 1 of them, int64.
            turns_2TK: cosines and sines of the rotary embedding by position, the prefix's positions included, float32.
            norms: weights of the norms of a query's and a key's head, (K,) each, where the model has them.
            prefix: keys, turned, and values, (1, G, P, K) each, that come before every row.
            scale: what scores are multiplied with.
            epsilon: of the norms.
            out_NHK: where the result goes.
        """
        n_heads, width = out_NHK.shape[1:]
        n_groups = (qkv_NX.shape[1] // width - n_heads) // 2
        keys, values = prefix or (None, None)
        n_shared = 0 if keys is None else keys.shape[2]
        self._attend(
            _at(qkv_NX), _at(begin_B), len(begin_B) - 1, _at(turns_2TK[0]), _at(turns_2TK[1]), _at(norms[0]), _at(norms[1]),
            _at(keys), _at(values), n_shared, n_heads, n_groups, width, scale, epsilon, _at(out_NHK),
        )  # fmt: skip


@lru_cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """The functions for a dtype; None where there is no compiler for them, or nowhere to keep what it makes."""
    if dtype not in _NAMES:
        return None
    try:
        return Kernels(ctypes.CDLL(str(_library())), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or b""
        _logger.info("native code is not used: %s %s", error, stderr.decode(errors="replace").strip()[:500])
        return None


def _library() -> Path:
    """The built library. What it is named after is all that decides what is built, so that no machine runs another's."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler; to be faster, install one (on Debian: apt-get install g++)")
    made_of = "\n".join([compiler, *_COMMAND, platform.platform(), _processor()]).encode() + _SOURCE.read_bytes()
    path = cache_directory() / "native" / f"{hashlib.sha256(made_of).hexdigest()[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            built = Path(directory) / path.name
            command = [compiler, *_COMMAND, str(_SOURCE), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603 - our own file
            built.replace(path)  # several processes may build at once; each puts a whole one
    return path


def _processor() -> str:
    """What the processor can do, for what is built for it runs nowhere else."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}))


def _at(tensor: torch.Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous(), "kernels read memory from its beginning"
    return tensor.data_ptr()
