"""The plane of states is that of scikit-learn's PCA over standardised states, in memory that does not grow with them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from analyze import plane
from analyze.plane import fit_plane, place_states
from tests.analyze.conftest import Plant


def states(n: int, width: int, seed: int) -> NDArray[np.float32]:
    """States with two strong directions, one coordinate far from 0 and one that is constant."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, width)) + rng.standard_normal((n, 2)) * [6, 3] @ rng.standard_normal((2, width))
    hidden[:, 0] += 1000
    hidden[:, -1] = 7.3
    return hidden.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 60), width=st.integers(3, 12) | st.just(90), seed=st.integers(0, 100), size=st.integers(1, 60))
def test_the_plane_is_that_of_scikit_learn_however_the_states_are_cut_into_blocks(
    n: int, width: int, seed: int, size: int
) -> None:
    hidden = states(n, width, seed)
    found = fit_plane(hidden[begin : begin + size] for begin in range(0, n, size))
    standard = StandardScaler().fit_transform(hidden.astype(np.float64))
    peer = PCA(n_components=2, svd_solver="full").fit(standard)
    assert found.variance == pytest.approx(peer.explained_variance_ratio_, abs=1e-4)
    gap = peer.singular_values_**2
    if gap[1] > 0.9 * gap[0] or (width > 4 and n > 4 and _third(standard) > 0.9 * gap[1]):
        return  # where two axes are alike, which two there are is a matter of rounding
    expected = peer.transform(standard)
    np.testing.assert_allclose(np.abs(found.place(hidden)), np.abs(expected), atol=2e-2 * np.abs(expected).max())


def _third(standard: NDArray[np.float64]) -> float:
    values = np.linalg.svd(standard, compute_uv=False) ** 2
    return float(values[2]) if len(values) > 2 else 0.0


def test_the_sign_of_an_axis_makes_its_largest_weight_positive() -> None:
    hidden = states(50, 8, 0)
    found, turned = fit_plane([hidden]), fit_plane([-hidden])
    for weight_D2 in (found.weight_D2, turned.weight_D2):
        scaled = weight_D2 * hidden.std(axis=0)[:, None]
        assert (scaled[np.abs(scaled).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.parametrize("n", [1, 5])
def test_states_that_are_all_alike_lie_on_one_point(n: int) -> None:
    hidden = np.full((n, 4), 0.1, np.float32)
    found = fit_plane([hidden])
    assert found.variance == (0.0, 0.0)
    assert not found.place(hidden).any()


@pytest.mark.parametrize("width", [3, 300])
def test_two_states_lie_on_a_line(width: int) -> None:
    hidden = np.full((2, width), 1, np.float32)
    hidden[:, [0, 2]] = [[0, 5], [2, 7]]
    hidden[1, 3:] = 4
    found = fit_plane([hidden])
    assert found.variance == pytest.approx((1.0, 0.0), abs=1e-9)
    distance = (width - 1) ** 0.5  # one standard deviation along each coordinate that varies
    np.testing.assert_allclose(np.abs(found.place(hidden)), [[distance, 0]] * 2, atol=1e-4)


def test_what_has_no_plane_is_said() -> None:
    with pytest.raises(ValueError, match="no utterance is chosen"):
        fit_plane([])
    with pytest.raises(ValueError, match="not finite"):
        fit_plane([np.array([[1, np.inf]], np.float32)])


def test_rows_are_placed_in_their_order_and_offsets_are_asked_for(plant: Plant) -> None:
    hidden = np.random.default_rng(0).standard_normal((2, 30, 5)).astype(np.float32)
    run = plant(hidden, {"label": ["a"] * 30}, rows_per_shard=8)
    rows = np.array([4, 9, 10, 29])
    placed = place_states(run, "resid.last", 1, rows)
    assert placed.rows_N.tolist() == rows.tolist()
    np.testing.assert_allclose(placed.points_N2, fit_plane([hidden[1, rows]]).place(hidden[1, rows]), atol=1e-5)
    with pytest.raises(ValueError, match="leave at out"):
        place_states(run, "resid.last", 1, rows, at=0)
    grid = np.random.default_rng(1).standard_normal((2, 30, 3, 5)).astype(np.float32)
    run = plant(grid, {"label": ["a"] * 30}, offsets=(0, 1, 4))
    placed = place_states(run, "resid.offset", 1, rows, at=4)
    np.testing.assert_allclose(placed.points_N2, fit_plane([grid[1, rows, 2]]).place(grid[1, rows, 2]), atol=1e-5)
    for at in (None, 2):
        with pytest.raises(ValueError, match="one of 0, 1, 4"):
            place_states(run, "resid.offset", 1, rows, at=at)


def test_of_too_many_rows_a_sample_stands_for_all_also_where_classes_alternate(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = states(400, 6, 3)[None].repeat(2, axis=0)
    hidden[:, ::2, 1] += 50  # what every other row shares would be no axis of every fourth row
    run = plant(hidden, {"label": ["a"] * 400})
    whole = place_states(run, "resid.last", 1, np.arange(400))
    assert whole.n_fitted == 400
    monkeypatch.setattr(plane, "MOST_PRODUCTS", 100 * 36)
    placed = place_states(run, "resid.last", 1, np.arange(400))
    assert placed.n_fitted == 100
    assert len(placed.points_N2) == 400
    for axis in (0, 1):
        assert abs(np.corrcoef(placed.points_N2[:, axis], whole.points_N2[:, axis])[0, 1]) > 0.95
    again = place_states(run, "resid.last", 1, np.arange(400))
    np.testing.assert_array_equal(again.points_N2, placed.points_N2)


def test_states_too_wide_for_their_moments_are_refused_before_they_are_read(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant(np.ones((1, 4, 8), np.float32), {"label": ["a"] * 4})
    monkeypatch.setattr(plane, "MOST_WIDTH", 7)
    with pytest.raises(ValueError, match="are 8 wide, and a plane is found of at most 7"):
        place_states(run, "resid.last", 0, np.arange(4))


def test_the_moments_are_held_once() -> None:
    width = 1200
    hidden = np.random.default_rng(0).standard_normal((50, width)).astype(np.float32)
    fit_plane([hidden])  # what is imported and kept
    tracemalloc.start()
    fit_plane([hidden])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 8 * width**2
