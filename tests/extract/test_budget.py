"""What is measured when a run is created, and pinned in it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import extract.budget
from extract.budget import CPU_TOKENS, fastest_dtype, tokens_that_fit
from extract.corpus import read_corpus
from extract.engine import default_device
from extract.models import Model
from extract.request import Request
from extract.run import plan_run


@given(free=st.integers(0, 10**12), per_token=st.floats(1, 1e8))
def test_what_fits_is_a_power_of_two_that_leaves_memory(free: int, per_token: float) -> None:
    tokens = tokens_that_fit(free, per_token)
    assert tokens & (tokens - 1) == 0
    assert tokens == 1 or tokens * per_token <= 0.6 * free
    assert tokens == 65_536 or 2 * tokens * per_token > 0.6 * free


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(1.0, 2.0, "float32"), (1.0, 0.9, "float32"), (2.0, 1.0, "bfloat16")]
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(
    float32: float, bfloat16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract.budget, "_product_seconds", lambda _device: (float32, bfloat16))
    assert fastest_dtype.__wrapped__("cpu") == chosen


def test_what_was_measured_is_pinned_in_the_run(tiny_model: Model, tmp_path: Path) -> None:
    request = Request(tiny_model.name, read_corpus("builtin").head(2), truncate=True)
    manifest = plan_run(request, str(tmp_path)).run.manifest
    assert manifest.identity.compute_dtype == fastest_dtype(default_device())
    assert default_device() != "cpu" or manifest.token_budget == CPU_TOKENS


def test_a_stopwatch_that_runs_differently_finds_the_run_again(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(tiny_model.name, read_corpus("builtin").head(2), truncate=True)
    found = set()
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr("extract.run.fastest_dtype", lambda _device, dtype=dtype: dtype)
        found.add(plan_run(request, str(tmp_path)).run.run_id)
    assert len(found) == 1
