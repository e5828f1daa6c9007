"""Every kind of probe is what scikit-learn makes of the same rows, and what is gathered once serves every fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyze.fitting import Fit, Prepared, prepare, read, read_probabilities, solve
from analyze.linear import LinearProbe
from analyze.mapping import one_thread
from analyze.moments import Target, Values, gather
from analyze.states import States, states_in, states_of
from tests.analyze.conftest import Plant

Floats = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
WIDTH = 12


def hidden_like(
    seed: int, n_rows: int = 240, width: int = 12, n_classes: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """States as models have them: correlated, of very different spread, one of them huge and nearly constant."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n_rows) % n_classes)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * 10.0 ** rng.uniform(-1, 1, WIDTH)
    states = (rng.standard_normal((n_rows, WIDTH)) + rng.standard_normal((n_classes, WIDTH))[truth]) @ mixing
    states[:, 0] += 5000
    return states.astype(np.float32), truth


def linear_of(prepared: Prepared, index: int, strength: float, kind: str, solver: str = "affectome") -> LinearProbe:
    (probe,) = solve(prepared, [(index, strength)], kind, solver)
    assert isinstance(probe, LinearProbe)
    return probe


def standardised(states: NDArray[np.float32], rows: NDArray[np.bool_]) -> Floats:
    scaled: Floats = StandardScaler().fit(states[rows].astype(np.float64)).transform(states.astype(np.float64))
    return scaled


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([1e-3, 0.1, 1.0]), st.integers(2, 4))
def test_discriminant_analysis_is_that_of_scikit_learn(seed: int, shrinkage: float, n_classes: int) -> None:
    states, truth = hidden_like(seed, n_classes=n_classes)
    rows = np.random.default_rng(seed).random(len(truth)) < 0.8
    probe = linear_of(prepare(states_in(states), [Fit(rows, Target(truth, n_classes))]), 0, shrinkage, "linear")
    scaled = standardised(states, rows)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaled[rows], truth[rows])
    scores = states.astype(np.float64) @ probe.weight_DK + probe.bias_K
    np.testing.assert_allclose(softmax(scores, axis=1), oracle.predict_proba(scaled), atol=1e-5)
    weight = probe.weight_DK * states[rows].std(axis=0, dtype=np.float64)[:, None]
    expected = oracle.coef_.T if n_classes > 2 else oracle.coef_.T * [[-0.5, 0.5]]
    centred = weight - weight.mean(axis=1, keepdims=True)  # softmax does not see what all classes share
    expected = expected - expected.mean(axis=1, keepdims=True)
    assert np.linalg.norm(centred - expected) <= 1e-4 * np.linalg.norm(expected)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([1e-2, 1.0, 300.0]))
def test_ridge_on_classes_and_on_values_is_that_of_scikit_learn(seed: int, alpha: float) -> None:
    states, truth = hidden_like(seed)
    rng = np.random.default_rng(seed)
    rows, value = rng.random(len(truth)) < 0.8, rng.standard_normal(len(truth)) + states[:, 1] / states[:, 1].std()
    prepared = prepare(states_in(states), [Fit(rows, Target(truth, 3)), Fit(rows, Values(value))])
    scaled = standardised(states, rows)
    classes, values = linear_of(prepared, 0, alpha, "ridge"), linear_of(prepared, 1, alpha, "ridge")
    classifier = RidgeClassifier(alpha=alpha).fit(scaled[rows], truth[rows])
    regressor = Ridge(alpha=alpha).fit(scaled[rows], value[rows])
    spread = states[rows].std(axis=0, dtype=np.float64)[:, None]
    for ours, theirs in (
        (classes.weight_DK * spread, classifier.coef_.T),
        (values.weight_DK * spread, regressor.coef_[:, None]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())
    (said,) = read(states_in(states), [(values, np.arange(len(truth)))])
    np.testing.assert_allclose(said[:, 0], regressor.predict(scaled), atol=1e-3)


def losses(log_probability: Floats, truth: NDArray[np.int64]) -> Floats:
    """Minus the logarithm of the true class's probability, row by row."""
    return np.asarray(-np.take_along_axis(log_probability, truth[:, None], 1)[:, 0])


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([1e-3, 1e-1, 10.0]), st.integers(2, 4))
def test_logistic_regression_reaches_the_optimum_that_scikit_learn_reaches(seed: int, c: float, n_classes: int) -> None:
    states, truth = hidden_like(seed, n_classes=n_classes)
    rows = np.random.default_rng(seed).random(len(truth)) < 0.8
    probe = linear_of(prepare(states_in(states), [Fit(rows, Target(truth, n_classes))]), 0, c, "logistic")
    scaled = standardised(states, rows)
    oracle = LogisticRegression(C=c, max_iter=10_000, tol=1e-9).fit(scaled[rows], truth[rows])
    ours = losses(log_softmax(states.astype(np.float64) @ probe.weight_DK + probe.bias_K, axis=1), truth)
    theirs = losses(oracle.predict_log_proba(scaled), truth)
    assert ours.mean() == pytest.approx(theirs.mean(), rel=5e-3, abs=1e-3)
    weight = probe.weight_DK * states[rows].std(axis=0, dtype=np.float64)[:, None]
    reached = ours[rows].sum() + (weight**2).sum() / (2 * c)
    best = theirs[rows].sum() + (oracle.coef_**2).sum() / (2 * c)
    assert reached <= best * (1 + 1e-4) + 1e-2


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_the_difference_of_means_points_from_all_others_to_the_class(seed: int) -> None:
    states, truth = hidden_like(seed, n_classes=2)
    everyone = np.ones(len(truth), np.bool_)
    probe = linear_of(prepare(states_in(states), [Fit(everyone, Target(truth, 2))]), 0, 0.0, "difference")
    (said,) = read(states_in(states), [(probe, np.arange(len(truth)))])
    scaled = standardised(states, everyone)
    assert (
        said.argmax(axis=1) == NearestCentroid().fit(scaled, truth).predict(scaled)
    ).mean() > 0.99  # but for ties in float32


@pytest.mark.parametrize("kind", ["linear", "ridge", "logistic"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_both_solvers_say_the_same_of_every_row(kind: str, n_classes: int, weighted: bool) -> None:
    states, truth = hidden_like(7, n_classes=n_classes)
    rng = np.random.default_rng(0)
    rows, weight = rng.random(len(truth)) < 0.7, rng.integers(1, 4, len(truth)).astype(np.float64)
    prepared = prepare(states_in(states), [Fit(rows, Target(truth, n_classes))], weight if weighted else None)
    if kind == "linear" and weighted:
        pytest.skip("scikit-learn's discriminant analysis takes no weights; duplicates are its oracle below")
    ours, theirs = (linear_of(prepared, 0, 0.1, kind, solver) for solver in ("affectome", "scikit-learn"))
    first, second = read_probabilities(states_in(states), [(ours, np.arange(len(truth))), (theirs, np.arange(len(truth)))])
    if kind == "ridge" and n_classes == 2:  # one vector there, two opposite ones here
        first, second = first.argmax(axis=1), second.argmax(axis=1)
    np.testing.assert_allclose(first, second, atol=2e-3)


@pytest.mark.parametrize("kind", ["linear", "ridge", "difference", "logistic"])
def test_a_weight_of_two_is_a_duplicate_and_a_weight_of_nothing_an_absence(kind: str) -> None:
    states, truth = hidden_like(3)
    count = np.random.default_rng(1).integers(0, 3, len(truth))
    everyone = np.ones(len(truth), np.bool_)
    weighted = prepare(states_in(states), [Fit(everyone, Target(truth, 3))], count.astype(np.float64))
    repeated, labels = np.repeat(states, count, axis=0), np.repeat(truth, count)
    duplicated = prepare(states_in(repeated), [Fit(np.ones(len(labels), np.bool_), Target(labels, 3))])
    one, other = (linear_of(prepared, 0, 0.1, kind) for prepared in (weighted, duplicated))
    scale = abs(other.weight_DK).max()
    np.testing.assert_allclose(one.weight_DK / scale, other.weight_DK / scale, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_moments_of_every_set_of_rows_are_those_of_its_rows(seed: int, n_sets: int) -> None:
    states, truth = hidden_like(seed, n_rows=60)
    rng = np.random.default_rng(seed)
    sets = [rng.random(60) < 0.5 for _ in range(n_sets)]
    value, weight = rng.standard_normal(60), rng.random(60)
    found = gather(states_in(states), sets, [Target(truth, 3), Values(value)], weight)
    centred = states.astype(np.float64) - states_in(states).origin_D
    for rows, (classes, values) in zip(sets, found, strict=True):
        x, w = centred[rows], weight[rows]
        one_hot = np.eye(3)[truth[rows]]
        assert classes.weight == pytest.approx(w.sum())
        np.testing.assert_allclose(classes.x_D, w @ x, atol=1e-2)
        np.testing.assert_allclose(classes.xx_DD, (x * w[:, None]).T @ x, rtol=1e-5, atol=1e-5 * abs(x).max() ** 2)
        np.testing.assert_allclose(classes.xy_DT, (x * w[:, None]).T @ one_hot, rtol=1e-5, atol=1e-4 * abs(x).max())
        np.testing.assert_allclose(values.y_T, [w @ value[rows]], atol=1e-9)


def test_a_layer_in_the_store_and_one_in_memory_are_the_same_however_it_is_cut(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, truth = hidden_like(5, n_rows=500)
    run = plant(states[None], {"label": [str(label) for label in truth]}, stored_dtype="bfloat16", rows_per_shard=64)
    rows = np.flatnonzero(np.random.default_rng(0).random(500) < 0.6)
    whole = run.hidden_rows("resid.last", 0, rows)

    def collected(source: States) -> NDArray[np.float32]:
        parts = [(part, block + source.origin_D) for part, block in source.blocks()]
        assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts[:-1])]
        return np.concatenate([block for _, block in parts])

    for block_bytes, kept_bytes in ((1 << 25, 1 << 30), (4 * WIDTH * 7, 1 << 30), (4 * WIDTH * 7, 0)):
        monkeypatch.setattr("analyze.states._BLOCK_BYTES", block_bytes)
        monkeypatch.setattr("analyze.states._MOST_KEPT_BYTES", kept_bytes)
        np.testing.assert_allclose(collected(states_of(run, "resid.last", 0, rows)), whole, atol=1e-3)
        np.testing.assert_allclose(collected(states_in(whole)), whole, atol=1e-3)


def test_problems_solved_side_by_side_end_where_each_ends_alone() -> None:
    states, truth = hidden_like(11, n_rows=400)
    rng = np.random.default_rng(2)
    targets = (Target(truth, 3), Target(truth, 3), Target(rng.permutation(truth), 3))
    fits = [Fit(rng.random(400) < share, target) for share, target in zip((0.8, 0.5, 0.8), targets, strict=True)]
    prepared = prepare(states_in(states), fits)
    wanted = [(index, c) for index in range(3) for c in (0.01, 1.0)]
    together = solve(prepared, wanted, "logistic")
    for (index, c), probe in zip(wanted, together, strict=True):
        alone = linear_of(prepared, index, c, "logistic")
        assert isinstance(probe, LinearProbe)
        said = read_probabilities(states_in(states), [(probe, np.arange(400)), (alone, np.arange(400))])
        np.testing.assert_allclose(said[0], said[1], atol=5e-3)


def test_the_papers_probe_learns_what_no_line_can_tell_apart() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3000, 4)).astype(np.float32)
    truth = (states[:, 0] * states[:, 1] > 0).astype(np.int64)
    rows = np.arange(3000) < 2000
    prepared = prepare(states_in(states), [Fit(rows, Target(truth, 2))])
    held_out = np.arange(2000, 3000)
    right = {}
    for kind, strength in (("mlp", 40.0), ("linear", 0.1)):
        with one_thread():
            (probe,) = solve(prepared, [(0, strength)], kind)
        (said,) = read(states_in(states), [(probe, held_out)])
        right[kind] = (said.argmax(axis=1) == truth[held_out]).mean()
    assert right["mlp"] > 0.85
    assert right["linear"] < 0.6


def test_probes_read_only_the_rows_they_are_asked_for_in_one_pass() -> None:
    states, truth = hidden_like(9)
    prepared = prepare(states_in(states), [Fit(np.ones(len(truth), np.bool_), Target(truth, 3))])
    linear, ridge = linear_of(prepared, 0, 0.1, "linear"), linear_of(prepared, 0, 1.0, "ridge")
    (mlp,) = solve(prepared, [(0, 1.0)], "mlp")
    some = np.array([3, 4, 50, 239])
    passes = []

    def counted(start: int, stop: int) -> NDArray[np.float32]:
        passes.append((start, stop))
        return states[start:stop].copy()

    source = States(len(states), WIDTH, np.zeros(WIDTH, np.float32), counted)
    said = read(source, [(linear, some), (mlp, some), (ridge, np.arange(len(truth)))])
    assert passes == [(0, len(states))]
    np.testing.assert_allclose(said[0], states[some] @ linear.weight_DK + linear.bias_K, atol=1e-2)
    assert [scores.shape for scores in said] == [(4, 3), (4, 3), (240, 3)]


def test_a_pipeline_of_scikit_learn_gives_the_same_probabilities_end_to_end() -> None:
    states, truth = hidden_like(21)
    rows = np.arange(len(truth)) < 180
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000))
    pipeline.fit(states[rows].astype(np.float64), truth[rows])
    prepared = prepare(states_in(states), [Fit(rows, Target(truth, 3))])
    (said,) = read_probabilities(states_in(states), [(linear_of(prepared, 0, 0.1, "logistic"), np.flatnonzero(~rows))])
    np.testing.assert_allclose(said, pipeline.predict_proba(states[~rows].astype(np.float64)), atol=3e-3)


def test_an_optimum_that_is_not_reached_is_said_and_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    states, truth = hidden_like(4)
    everyone = np.ones(len(truth), np.bool_)
    prepared = prepare(states_in(states), [Fit(everyone, Target(truth, 3))])
    for limit in ("_MOST_ROUNDS", "_STEPS_A_ROUND"):
        monkeypatch.setattr(f"analyze.logistic.{limit}", 1)
    with pytest.raises(RuntimeError, match="did not converge in 1 steps; use a stronger penalty"):
        solve(prepared, [(0, 1.0)], "logistic")
