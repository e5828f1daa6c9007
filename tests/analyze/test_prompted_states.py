"""States under several conditions: planted moves are found as large as they are, and nothing is found where nothing moved."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from analyze.examples import folds
from analyze.prompted_states import compare, displacement, read_along
from analyze.scores import Interval

WIDTH = 12
SPREAD = np.geomspace(0.1, 50, WIDTH)
"""Standard deviation of each feature: one is not like another."""

Drawn = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def drawn(rng: np.random.Generator, move_D: NDArray[np.float64], noise: float = 0.3, n_situations: int = 60) -> Drawn:
    """States of situations told twice, before and after a move that is not the same for every situation."""
    groups_N = np.repeat(np.arange(n_situations), 2)
    own_GD, moved_GD = rng.standard_normal((2, n_situations, WIDTH))
    start_ND = 0.8 * own_GD[groups_N] + 0.6 * rng.standard_normal((len(groups_N), WIDTH))
    end_ND = start_ND + move_D + noise * (0.8 * moved_GD[groups_N] + 0.6 * rng.standard_normal(start_ND.shape))
    return (100 + start_ND * SPREAD).astype(np.float32), (100 + end_ND * SPREAD).astype(np.float32), groups_N


def found(start_ND: NDArray[np.float32], end_ND: NDArray[np.float32], groups_N: NDArray[np.int64]) -> tuple[Interval, float]:
    distance, p_value = displacement(start_ND, end_ND, start_ND, groups_N)
    assert distance is not None
    assert p_value is not None
    return distance, p_value


@pytest.mark.parametrize("move", [np.full(WIDTH, 0.1), np.full(WIDTH, 1.0), 3.0 * (np.arange(WIDTH) == 2)], ids=str)
def test_the_interval_of_a_distance_covers_the_planted_one_nineteen_times_of_twenty(move: NDArray[np.float64]) -> None:
    rng, truth = np.random.default_rng(1), float(np.sqrt(np.square(move).mean()))
    distances = [found(*drawn(rng, move))[0] for _ in range(300)]
    assert 0.9 <= np.mean([each.low <= truth <= each.high for each in distances]) <= 0.995
    assert np.mean([each.value**2 for each in distances]) == pytest.approx(truth**2, rel=0.04)


def test_where_nothing_moves_p_is_below_a_twentieth_one_time_of_twenty_and_the_distance_is_about_0() -> None:
    rng = np.random.default_rng(2)
    results = [found(*drawn(rng, np.zeros(WIDTH))) for _ in range(300)]
    assert 0.02 <= np.mean([p_value <= 0.05 for _, p_value in results]) <= 0.085
    assert np.mean([distance.low == 0 for distance, _ in results]) >= 0.95
    assert max(distance.value for distance, _ in results) < 0.06


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=5, max_size=8), seed=st.integers(0, 99))
def test_a_distance_is_made_of_products_of_different_situations_alone(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    start_ND, end_ND = rng.standard_normal((2, len(groups_N), 3)).astype(np.float32)
    end_ND += 2
    change_ND = (end_ND - start_ND) / start_ND.std(axis=0)
    products = [
        float((change_ND[one] * change_ND[other]).mean())
        for one in range(len(groups_N))
        for other in range(len(groups_N))
        if groups_N[one] != groups_N[other]
    ]
    expected = np.mean(products) * (len(sizes) - 3) / len(sizes)
    assert found(start_ND, end_ND, groups_N)[0].value ** 2 == pytest.approx(max(0, expected), rel=1e-4)


def test_states_that_do_not_vary_have_no_distance_and_states_that_stay_have_none_to_tell() -> None:
    rng = np.random.default_rng(0)
    start_ND, _, groups_N = drawn(rng, np.zeros(WIDTH))
    assert displacement(start_ND, start_ND, start_ND, groups_N) == (Interval(0, 0, 0), 1.0)
    same_ND = np.full_like(start_ND, 7)
    assert displacement(same_ND, start_ND, same_ND, groups_N) == (None, None)


def test_a_feature_that_varies_in_one_situation_alone_leaves_numbers_finite() -> None:
    start_ND, end_ND, groups_N = drawn(np.random.default_rng(0), np.ones(WIDTH))
    start_ND[:, 0] = groups_N == 7
    end_ND[:, 0] = 1 + start_ND[:, 0]
    distance, _ = found(start_ND, end_ND, groups_N)
    assert 0 <= distance.low <= distance.value <= distance.high < np.inf


def emotional(rng: np.random.Generator, n_rows: int = 210) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Three emotions along the first three features; pairs of rows tell one situation."""
    groups_N = np.arange(n_rows) // 2
    truth_N = groups_N % 3
    states_ND = rng.standard_normal((n_rows, WIDTH))
    states_ND[np.arange(n_rows), truth_N] += 3
    return states_ND, truth_N, groups_N


def test_a_move_towards_an_emotion_is_told_from_one_that_has_nothing_to_do_with_any() -> None:
    states_ND, truth_N, groups_N = emotional(np.random.default_rng(3))
    towards, aside = 2.0 * (np.arange(WIDTH) == 1), 2.0 * (np.arange(WIDTH) == 7)
    hidden = [(states_ND + move).astype(np.float32) for move in (np.zeros(WIDTH), towards, aside)]
    readings, shifts = compare(("none", "towards", "aside"), hidden, truth_N, groups_N, "resid.last", 4)
    assert [(shift.start, shift.end) for shift in shifts] == [("none", "towards"), ("none", "aside"), ("towards", "aside")]
    to_emotion, to_side, between = shifts
    assert to_emotion.moves[1].low > 0.1
    assert max(to_emotion.moves[0].high, to_emotion.moves[2].high) < 0
    assert all(abs(move.value) < 0.05 for move in to_side.moves)
    assert between.moves[1].value == pytest.approx(to_side.moves[1].value - to_emotion.moves[1].value)
    assert sum(move.value for move in to_emotion.moves) == pytest.approx(0, abs=1e-6)
    assert all(shift.p_value == 0.001 for shift in shifts)
    none, moved, moved_aside = readings
    assert none.change == none.loss == moved.change == Interval(0, 0, 0)  # the same states but for a constant
    assert moved.accuracy == none.accuracy == none.first_accuracy
    assert moved.loss.low > 0.05
    assert moved.first_accuracy.value == pytest.approx(moved.accuracy.value - moved.loss.value)
    assert abs(moved_aside.loss.value) < 0.03


def test_a_condition_under_which_nothing_can_be_read_loses_what_none_has() -> None:
    rng = np.random.default_rng(4)
    states_ND, truth_N, groups_N = emotional(rng)
    hidden = [states_ND.astype(np.float32), rng.standard_normal(states_ND.shape).astype(np.float32)]
    (none, noise), _ = compare(("none", "noise"), hidden, truth_N, groups_N, "resid.last", 4)
    assert none.auroc.low > 0.95
    assert noise.auroc.low < 0.5 < noise.auroc.high
    assert noise.change.high < -0.4
    assert noise.change.value == pytest.approx(noise.accuracy.value - none.accuracy.value)


def oracle(hidden_ND: NDArray[np.float32], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which utterances scikit-learn's discriminant analysis is right about, each held out."""
    right_N = np.zeros(len(truth_N), np.bool_)
    for train, test in folds(truth_N, groups_N, 5):
        scaler = StandardScaler().fit(hidden_ND[train])
        x, y = scaler.transform(hidden_ND[train]).astype(np.float64), truth_N[train]
        means = np.stack([x[y == label].mean(axis=0) for label in range(truth_N.max() + 1)])
        shrinkage = LedoitWolf(assume_centered=True).fit(x - means[y]).shrinkage_
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
        right_N[test] = model.predict(scaler.transform(hidden_ND[test])) == truth_N[test]
    return right_N


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), width=st.sampled_from([4, 30]))
def test_own_probes_are_scikit_learns_discriminant_analysis_out_of_fold(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    groups_N = np.arange(60) // 2
    truth_N = groups_N % 3
    hidden_ND = (rng.standard_normal((60, width)) + 0.8 * rng.standard_normal((3, width))[truth_N]).astype(np.float32)
    (reading,), shifts = compare(("none",), [hidden_ND], truth_N, groups_N, "resid.last", 0)
    assert reading.accuracy.value == pytest.approx(oracle(hidden_ND, truth_N, groups_N).mean())
    assert shifts == []


def test_states_that_are_all_the_same_are_read_at_chance() -> None:
    _, truth_N, groups_N = emotional(np.random.default_rng(5))
    same_ND = np.ones((len(truth_N), WIDTH), np.float32)
    readings, (shift,) = compare(("none", "other"), [same_ND, same_ND], truth_N, groups_N, "resid.prompt_last", 0)
    assert all(reading.accuracy.value <= 0.4 for reading in readings)
    assert (shift.distance, shift.p_value) == (None, None)
    assert all(move.value == 0 for move in shift.moves)


@pytest.mark.parametrize(
    ("left", "is_read"), [((12, 12, 10), True), ((12, 12, 9), True), ((12, 12, 8), False), ((9, 12, 0), False)]
)
def test_a_place_where_a_label_has_fewer_than_five_situations_left_is_not_scored(left: Sequence[int], is_read: bool) -> None:
    states_ND, truth_N, groups_N = emotional(np.random.default_rng(6))
    kept = np.concatenate([np.flatnonzero(truth_N == label)[:count] for label, count in enumerate(left)])
    kept.sort()
    auroc = read_along(states_ND[kept].astype(np.float32), truth_N[kept], groups_N[kept], 3)
    assert (auroc is not None) == is_read
    assert auroc is None or auroc.value > 0.9
