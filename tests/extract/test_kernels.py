"""The native code against the same in torch, and what happens where it cannot be built."""

import ctypes
import itertools
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from extract.kernels import OPTIONS, SOURCE, Kernels, kernels

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=["native", "x86-64-v2"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The code as it is built for this processor, and for one that knows no wide vectors."""
    if request.param != "native" and platform.machine() != "x86_64":
        pytest.skip("another kind of processor")
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    options = [f"-march={request.param}" if option.startswith("-march") else option for option in OPTIONS]
    subprocess.run(["c++", *options, str(SOURCE), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    assert (ours.float() - theirs.float()).abs().max() <= TOLERANCE[dtype] * theirs.float().abs().max()


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), 1e-5)


@needs_compiler
@dtypes
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), width=st.sampled_from([16, 48, 576]), seed=st.integers(0, 99))
def test_sums_norms_and_gates(library: ctypes.CDLL, dtype: torch.dtype, n: int, width: int, seed: int) -> None:
    native, generator = Kernels(library, dtype), torch.Generator().manual_seed(seed)
    x, delta, weight = (random(generator, dtype, *shape) for shape in ((n, width), (n, width), (width,)))
    added, normed = x.clone(), torch.empty_like(x)
    native.add_norm(added, delta, weight, 1e-5, normed)
    assert torch.equal(added, x + delta)
    assert_close(normed, rms_norm(x + delta, weight), dtype)
    native.add_norm(added, None, weight, 1e-5, normed)
    assert torch.equal(added, x + delta)
    native.add_norm(added, delta, None, 1e-5, normed)
    assert torch.equal(added, x + delta + delta)
    gate_up = random(generator, dtype, n, 2 * width) * 30
    out = torch.empty_like(x)
    native.silu_mul(gate_up, out)
    gate, up = gate_up.float().chunk(2, dim=1)
    assert_close(out, functional.silu(gate) * up, dtype)


@needs_compiler
@dtypes
def test_extreme_gates_keep_their_limits_and_what_is_not_finite_stays_so(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    gates = torch.tensor([-3e38, -100, -87.5, -20, 0, 20, 88, 100, 3e38, torch.inf, torch.nan, -1, 1, 2, 3, 4]).to(dtype)
    out = torch.empty(1, 16, dtype=dtype)
    Kernels(library, dtype).silu_mul(torch.cat([gates, torch.ones(16, dtype=dtype)])[None], out)
    expected = functional.silu(gates.float())
    assert torch.allclose(out[0].float(), expected.to(dtype).float(), rtol=1e-2, atol=1e-30, equal_nan=True)


@needs_compiler
@dtypes
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_means_over_spans(library: ctypes.CDLL, dtype: torch.dtype, lengths: list[int], seed: int) -> None:
    hidden = random(torch.Generator().manual_seed(seed), dtype, sum(lengths) + 3, 48)
    stop = torch.tensor(lengths).cumsum(0) + 2
    start = stop - torch.tensor(lengths)
    ours = Kernels(library, dtype).span_mean(hidden, start, stop)
    theirs = torch.stack([hidden[a:b].double().mean(dim=0) for a, b in zip(start, stop, strict=True)])
    assert (ours - theirs).abs().max() < 1e-5


@needs_compiler
@dtypes
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=70),
    n_shared=st.sampled_from([0, 0, 5, 33]),
    heads=st.sampled_from([(9, 3, 64), (4, 4, 32), (8, 1, 96), (2, 1, 128)]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention(
    library: ctypes.CDLL,
    dtype: torch.dtype,
    lengths: list[int],
    n_shared: int,
    heads: tuple[int, int, int],
    normed: bool,
    seed: int,
) -> None:
    n_heads, n_groups, width = heads
    generator = torch.Generator().manual_seed(seed)
    qkv = random(generator, dtype, sum(lengths), (n_heads + 2 * n_groups) * width)
    keys, values = (random(generator, dtype, 1, n_groups, n_shared, width) for _ in range(2))
    norms = (random(generator, dtype, width), random(generator, dtype, width)) if normed else (None, None)
    angles = torch.randn(n_shared + max(lengths), width // 2, generator=generator).repeat(1, 2)
    turns = torch.stack([angles.cos(), angles.sin()])
    begin = torch.tensor([0, *lengths]).cumsum(0)
    out = torch.empty(sum(lengths), n_heads, width, dtype=dtype)
    scale = width**-0.5
    prefix = (keys, values) if n_shared else None
    Kernels(library, dtype).attend(qkv, begin, turns, norms, prefix, scale, 1e-5, out)
    for first, last in itertools.pairwise(begin):
        parts = qkv[first:last].float().view(-1, n_heads + 2 * n_groups, width)
        query, key, value = torch.split(parts, [n_heads, n_groups, n_groups], dim=1)
        cos, sin = turns[:, n_shared : n_shared + len(parts), None]
        query, key = (_turned(x, norm, cos, sin) for x, norm in zip((query, key), norms, strict=True))
        key = torch.cat([keys[0].float(), key.transpose(0, 1)], dim=1)
        value = torch.cat([values[0].float(), value.transpose(0, 1)], dim=1)
        seen = torch.ones(len(parts), n_shared + len(parts), dtype=torch.bool).tril(n_shared)
        theirs = functional.scaled_dot_product_attention(
            query.transpose(0, 1), key, value, attn_mask=seen, scale=scale, enable_gqa=True
        )
        assert_close(out[first:last], theirs.transpose(0, 1), dtype)


def _turned(x: torch.Tensor, norm: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = x if norm is None else rms_norm(x, norm)
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-other, one], dim=-1) * sin


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """What was built is looked for again."""
    kernels.cache_clear()
    yield
    kernels.cache_clear()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_there_are_none(compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels(torch.bfloat16) is None
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.usefixtures("_forgotten")
def test_where_nothing_can_be_kept_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "affectome").write_text("a file where the cache should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels(torch.bfloat16) is None


@needs_compiler
@pytest.mark.usefixtures("_forgotten")
def test_they_are_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels(torch.bfloat16) is not None
    (built,) = tmp_path.rglob("*.so")
    before = built.stat().st_mtime_ns
    kernels.cache_clear()
    assert kernels(torch.float32) is not None
    assert built.stat().st_mtime_ns == before
    broken = tmp_path / "broken"
    broken.write_bytes(built.read_bytes()[:100])
    broken.replace(built)  # what a power cut may leave
    kernels.cache_clear()
    assert kernels(torch.bfloat16) is not None
