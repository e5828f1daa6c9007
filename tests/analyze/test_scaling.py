"""Means and deviations are numpy's of all rows, however large the states are beside their spread; constant features stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import similarity
from analyze.query import Run
from analyze.scaling import moments, scaling_of
from tests.analyze.conftest import Plant

SITE, N_ROWS, WIDTH = "resid.last", 500, 6
MASSIVE = np.array([0, 1e6, -3e5, 7, 0.25, 0])


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    """The last two features are constant."""
    hidden = np.random.default_rng(0).standard_normal((1, N_ROWS, WIDTH)) * [1, 1, 3, 1e-3, 0, 0] + MASSIVE
    return plant(hidden.astype(np.float32), {}, rows_per_shard=150)


@given(block_rows=st.integers(1, N_ROWS), stop=st.integers(1, N_ROWS))
@settings(max_examples=25, deadline=None)
def test_moments_are_those_of_numpy(run: Run, block_rows: int, stop: int) -> None:
    exact = run.hidden(SITE, 0).astype(np.float64)[:stop]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK_BYTES", 1)
        patch.setattr(similarity, "_FEWEST_ROWS", block_rows)
        found = moments(run, SITE, 0, f"row < {stop}")
    assert found.n == stop
    np.testing.assert_allclose(found.mean_D, exact.mean(axis=0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.variance_D, exact.var(axis=0), rtol=1e-7, atol=1e-13)


def test_scaled_states_are_centred_and_of_deviation_1_but_for_constant_features(run: Run) -> None:
    exact = run.hidden(SITE, 0).astype(np.float64)
    assert scaling_of(run, SITE, 0, "none") is None
    centred, standardised = scaling_of(run, SITE, 0, "centred"), scaling_of(run, SITE, 0, "standardised")
    assert centred is not None
    assert standardised is not None
    np.testing.assert_allclose(centred.seen(exact), exact - exact.mean(axis=0), atol=1e-9)
    seen = standardised.seen(exact)
    np.testing.assert_allclose(seen.mean(axis=0), np.zeros(WIDTH), atol=1e-9)
    np.testing.assert_allclose(seen.std(axis=0), [1, 1, 1, 1, 0, 0], atol=1e-6)


def test_what_cannot_be_scaled_is_refused_in_one_sentence(run: Run) -> None:
    with pytest.raises(ValueError, match="there is no scaling 'rogue'; choose from none, centred, standardised"):
        scaling_of(run, SITE, 0, "rogue")
    with pytest.raises(ValueError, match=f"no utterance of run {run.run_id} fulfils 'false'"):
        moments(run, SITE, 0, "false")
    with pytest.raises(ValueError, match="keeps several states of an utterance"):
        moments(run, "resid.all", 0)
