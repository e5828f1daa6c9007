"""The native code between matrix products (kernels.cpp): built once on each machine, kept in its cache, never required.

Compiled by the machine's own compiler the first time a process wants it, in about a second. Shipping it built was
rejected: there would be many wheels, and none would use all that a processor has. torch.compile was rejected for this: it
takes half a minute in every process, and its attention pads. OpenMP's threads are torch's own, whose library is loaded.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
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

SOURCE = Path(__file__).with_name("kernels.cpp")
"""What is built."""
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
"""How."""
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
        rows, shape = (_POINTER, _POINTER, _INTEGER), (*[_INTEGER] * 4, _REAL, _REAL)
        self._attend = function("attend", *rows, *[_POINTER] * 6, *shape, _POINTER, _POINTER, _INTEGER, _INTEGER)
        self._room = library.attend_room
        self._room.argtypes, self._room.restype = (_INTEGER, _INTEGER), _INTEGER
        self._scratch = torch.empty(0)

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
        n_threads, room = torch.get_num_threads(), self._room(turns_2TK.shape[1], width)
        scratch = self._scratch_for(n_threads * room)
        self._attend(
            _at(qkv_NX), _at(begin_B), len(begin_B) - 1, _at(turns_2TK[0]), _at(turns_2TK[1]), _at(norms[0]), _at(norms[1]),
            _at(keys), _at(values), n_shared, n_heads, n_groups, width, scale, epsilon, _at(out_NHK),
            _at(scratch), n_threads, room,
        )  # fmt: skip

    def _scratch_for(self, n_floats: int) -> torch.Tensor:
        """Memory that is taken here and not by the threads, which could not say that there is none; kept from call to call."""
        if len(self._scratch) < n_floats:
            self._scratch = torch.empty(0)  # first, or both would be there at once
            self._scratch = torch.empty(n_floats)
        return self._scratch


@lru_cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """The functions for a dtype; None where there is no compiler for them, or nowhere to keep what it makes."""
    if dtype not in _NAMES:
        return None
    try:
        return Kernels(_library(), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        _logger.warning("native code is not used, so that this is slower: %s %s", error, said[:500])
        return None


def _library() -> ctypes.CDLL:
    """The library, built where it is not there, or is there and broken."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise FileNotFoundError("there is no C++ compiler; install one (on Debian: apt-get install g++)")
    path = cache_directory() / "native" / f"{_name_of_build(compiler)}.so"
    if path.exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    _build([*compiler, *OPTIONS, str(SOURCE)], path)
    return ctypes.CDLL(str(path))


def _name_of_build(compiler: list[str]) -> str:
    """A digest of all that decides what is built, so that no machine runs another's."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False, timeout=_SECONDS).stdout  # noqa: S603
    made_of = "\n".join([*compiler, *OPTIONS, platform.platform(), _processor()]).encode()
    return hashlib.sha256(made_of + version + SOURCE.read_bytes()).hexdigest()[:32]


def _build(command: list[str], path: Path) -> None:
    """Build beside and rename: several processes may build at once, and any may die; each puts a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        subprocess.run([*command, "-o", str(built)], check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)


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
