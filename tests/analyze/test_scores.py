"""Scores agree with scikit-learn, and their intervals with slower ways to the same thing and with what an interval is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from analyze.scores import Interval, difference_interval, score

Floats = NDArray[np.float64]
Predictions = tuple[NDArray[np.int64], Floats]


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """A truth in which every class occurs, and scores with many ties or none."""
    n_classes = draw(st.integers(2, 5))
    extra = draw(st.lists(st.integers(0, n_classes - 1), max_size=40))
    truth = np.array([*range(n_classes), *extra], np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rng.shuffle(truth)
    values = rng.random((len(truth), n_classes)) + draw(st.sampled_from([0.0, 0.5, 2.0])) * np.eye(n_classes)[truth]
    levels = draw(st.sampled_from([1, 2, 4, None]))
    return truth, values if levels is None else np.floor(values * levels)


def slow_areas(truth: NDArray[np.int64], values: Floats) -> tuple[float, float]:
    """Macro one-vs-rest AUROC and its DeLong variance, from all pairs of a positive and a negative.

    A class's share of the variance is a sample's, over n - 1; a class of one example has none to show.
    """

    def root(n_examples: int) -> float:
        return float((n_examples * max(n_examples - 1, 1)) ** 0.5)

    n_classes = values.shape[1]
    areas = []
    contribution = np.zeros(len(truth))
    for label in range(n_classes):
        positives, negatives = np.flatnonzero(truth == label), np.flatnonzero(truth != label)
        wins = np.array(
            [
                [float(values[p, label] > values[q, label]) + 0.5 * (values[p, label] == values[q, label]) for q in negatives]
                for p in positives
            ]
        )
        areas.append(wins.mean())
        contribution[positives] += (wins.mean(axis=1) - wins.mean()) / root(len(positives)) / n_classes
        contribution[negatives] += (wins.mean(axis=0) - wins.mean()) / root(len(negatives)) / n_classes
    return float(np.mean(areas)), float((contribution**2).sum())


@settings(max_examples=50, deadline=None)
@given(predictions())
def test_accuracy_macro_f1_auroc_and_confusion_equal_those_of_scikit_learn(case: Predictions) -> None:
    truth, values = case
    scores = score(truth, values, ranks_only=True)
    labels = list(range(values.shape[1]))
    predicted = values.argmax(axis=1)
    assert scores.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
    assert scores.macro_f1.value == pytest.approx(f1_score(truth, predicted, labels=labels, average="macro", zero_division=0))
    areas = [roc_auc_score(truth == label, values[:, label]) for label in labels]
    assert [interval.value for interval in scores.class_auroc] == pytest.approx(areas)
    assert scores.auroc.value == pytest.approx(np.mean(areas))
    assert scores.confusion == tuple(map(tuple, confusion_matrix(truth, predicted, labels=labels).tolist()))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.floats(0.0, 1.0))
def test_with_many_examples_the_auroc_interval_is_delongs_over_all_pairs(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(400) % 2)
    evidence = rng.standard_normal(400) + shift * truth
    values = np.stack([-evidence, evidence], axis=1)
    area, variance = slow_areas(truth, values)
    half = norm.ppf(0.975) * variance**0.5
    interval = score(truth, values, ranks_only=True).auroc
    assert interval.value == pytest.approx(area)
    assert (interval.low, interval.high) == pytest.approx((area - half, area + half), abs=0.1 * half)


@pytest.mark.parametrize("n_positive", [1, 3, 10])
def test_a_class_of_few_examples_all_ranked_right_does_not_claim_certainty(n_positive: int) -> None:
    truth = np.array([1] * n_positive + [0] * 400)
    (_, interval) = score(truth, np.stack([1.0 - truth, truth], axis=1)).class_auroc
    assert interval.value == interval.high == 1
    assert interval.low < 1 - 1 / (1 + 2 * n_positive)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_the_accuracy_interval_is_wilsons(n_right: int, n_wrong: int) -> None:
    truth = np.array([0, 1, *[0] * n_right, *[1] * n_wrong], np.int64)  # 0 is always named, so the first is right, too
    accuracy = score(truth, np.tile([0.75, 0.25], (len(truth), 1))).accuracy
    expected = binomtest(n_right + 1, len(truth)).proportion_ci(method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_every_interval_holds_its_value_and_stays_within_0_and_1(case: Predictions) -> None:
    scores = score(*case, ranks_only=True)
    for interval in (scores.accuracy, scores.macro_f1, scores.auroc, *scores.class_auroc):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


@settings(max_examples=30, deadline=None)
@given(predictions(), st.integers(0, 99))
def test_the_order_of_examples_and_any_growing_map_of_a_class_leave_the_areas_alone(case: Predictions, seed: int) -> None:
    truth, values = case
    order = np.random.default_rng(seed).permutation(len(truth))
    before, after = score(truth, values, ranks_only=True), score(truth[order], np.exp(values[order]) - 3, ranks_only=True)
    for old, new in zip(before.class_auroc, after.class_auroc, strict=True):
        assert (new.value, new.low, new.high) == pytest.approx((old.value, old.low, old.high))


@pytest.mark.parametrize("seed", range(3))
def test_the_macro_f1_interval_agrees_with_resampling_the_examples_themselves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, 250, p=[0.6, 0.3, 0.1])
    values = rng.random((250, 3)) + 0.5 * np.eye(3)[truth]
    predicted = values.argmax(axis=1)
    f1s = []
    for _ in range(1500):
        drawn = rng.integers(0, 250, 250)
        confusion = np.bincount(3 * truth[drawn] + predicted[drawn], minlength=9).reshape(3, 3)
        f1s.append(np.mean(2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))))
    interval = score(truth, values).macro_f1
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(f1s, (2.5, 97.5))), abs=0.012)


def test_intervals_hold_the_truth_in_about_95_of_100_simulations() -> None:
    rng = np.random.default_rng(1)
    n, n_simulations, shift = 120, 400, 1.2
    right = norm.cdf(shift / 2)
    f1_0 = 2 * 0.5 * right / (0.5 + 0.5 * right + 0.5 * (1 - right))  # balanced and symmetric: both classes alike
    true = {"accuracy": right, "macro_f1": f1_0, "auroc": norm.cdf(shift / 2**0.5)}
    held = dict.fromkeys(true, 0)
    for _ in range(n_simulations):
        truth = rng.permutation(np.arange(n) % 2)
        evidence = rng.standard_normal(n) + shift * (truth - 0.5)
        scores = score(truth, norm.cdf(np.stack([-evidence, evidence], axis=1)))
        for name, value in true.items():
            interval: Interval = getattr(scores, name)
            held[name] += interval.low <= value <= interval.high
    assert all(0.90 <= count / n_simulations <= 0.99 for count in held.values()), held


def test_an_accuracy_of_10_in_10_does_not_claim_certainty() -> None:
    truth = np.arange(10) % 2
    accuracy = score(truth, np.eye(2)[truth]).accuracy
    assert accuracy.value == 1
    assert accuracy.low < 0.9


def test_situations_of_several_examples_widen_the_intervals_as_a_bootstrap_over_situations_does() -> None:
    generator = np.random.default_rng(5)
    truth = np.repeat(generator.integers(0, 3, 80), 3)  # three tellings of a situation, read alike
    probability = np.eye(3)[truth] * 0.4 + np.repeat(generator.random((80, 3)), 3, axis=0)
    groups = np.repeat(np.arange(80), 3)
    alone, together = score(truth, probability), score(truth, probability, groups)
    drawn = generator.integers(0, 80, (4000, 80))
    right = (probability.argmax(axis=1) == truth).reshape(80, 3)[:, 0]
    expected = np.diff(np.percentile(right[drawn].mean(axis=1), (2.5, 97.5)))[0]
    assert together.accuracy.value == alone.accuracy.value
    assert (together.accuracy.high - together.accuracy.low) == pytest.approx(expected, rel=0.15)
    for wide, narrow in (
        (together.accuracy, alone.accuracy),
        (together.macro_f1, alone.macro_f1),
        (together.auroc, alone.auroc),
    ):
        assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(3), rel=0.1)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_differences_that_all_agree_have_an_interval_all_the_same(n: int) -> None:
    for value in (1.0, 0.0, -1.0):
        interval = difference_interval(np.full(n, value))
        assert interval.value == value
        assert -1 <= interval.low <= value <= interval.high <= 1
        assert interval.high - interval.low > 1 / n
    assert difference_interval(np.ones(1)).low == -1
