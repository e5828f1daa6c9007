"""Scores of a classifier, each with a 95% interval over situations.

Utterances of one situation (a pair) rise and fall together, so the situation is what an interval resamples; where every
utterance is its own, this is the usual interval. Accuracy has Wilson's with the effective sample size. Macro-F1 depends
on a situation only through its cells of the confusion matrix, so resampling the distinct patterns of cells is the
bootstrap, at a cost that does not grow with their number. AUROC is a U-statistic; its interval comes from its influence
function (DeLong, DeLong & Clarke-Pearson 1988; summed over clusters as in Obuchowski 1997) and needs no resampling. So do
those of the log loss, a mean, and of the calibration error, which is one but for the signs of its bins; and the F1 of labels
that may hold together, a ratio of means.

Shape suffixes: N examples, G situations, P distinct patterns, K classes, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

N_RESAMPLES = 2000
_NORMAL_95 = 1.959964
_N_BINS = 15
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How well class probabilities fit the truth."""

    accuracy: Interval
    """Share of examples whose likeliest class is the true one."""
    macro_f1: Interval
    """Mean over classes of the F1 score."""
    auroc: Interval
    """Mean over classes of the one-vs-rest area under the ROC curve."""
    class_auroc: tuple[Interval, ...]
    """That area for each class, in the order of the classes."""
    log_loss: Interval | None
    """Mean of minus the natural logarithm of the true class's probability; None for a probe that only ranks."""
    calibration_error: Interval | None
    """Expected calibration error of the likeliest class over 15 equal bins (Guo et al. 2017); None as above.

    It is above 0 by chance even for a calibrated probe, the more so the fewer the examples.
    """
    confusion: tuple[tuple[int, ...], ...]
    """Number of examples by true class (rows) and predicted class (columns)."""


@dataclass(frozen=True, slots=True)
class SetScores:
    """How well scores fit labels of which any number may hold; a label is named where its score is above 0."""

    auroc: Interval
    """Mean over labels of the area under the ROC curve."""
    label_auroc: tuple[Interval, ...]
    """That area for each label, in the order of the labels."""
    macro_f1: Interval
    """Mean over labels of the F1 score."""
    label_f1: tuple[Interval, ...]
    """The F1 score of each label, in the order of the labels."""
    micro_f1: Interval
    """F1 score of all labels of all examples together."""
    exact: Interval
    """Share of examples of which all labels that hold are named and no other (subset accuracy)."""


Measure = tuple[float, NDArray[np.float64]]
"""A score, and each example's influence on it."""


@dataclass(frozen=True, slots=True, eq=False)
class SetMeasures:
    """What SetScores gives intervals to."""

    auroc: tuple[Measure, ...]
    """Of each label."""
    f1: tuple[Measure, ...]
    """Of each label."""
    micro_f1: Measure
    """Of all together."""
    exact_N: NDArray[np.bool_]
    """Whether the labels named are those that hold."""


@dataclass(frozen=True, slots=True)
class ValueScores:
    """How well predicted numbers fit the true ones."""

    r2: Interval
    """Share of the variance explained, against the mean of the scored examples."""
    correlation: Interval
    """Pearson's r."""


def score(
    truth_N: NDArray[np.int64],
    probability_NK: NDArray[np.floating],
    groups_N: NDArray[np.int64] | None = None,
    ranks_only: bool = False,
) -> Scores:
    """Score class probabilities.

    Args:
        truth_N: true class of each example, as a column of `probability_NK`; every class occurs.
        probability_NK: probability (or any score that ranks examples) of each class.
        groups_N: number of each example's situation; each its own without it.
        ranks_only: whether these are such scores and no probabilities.
    """
    n_classes = probability_NK.shape[1]
    situation_N = _numbered(groups_N, len(truth_N))
    predicted_N = probability_NK.argmax(axis=1)
    confusion_KK = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion_KK, (truth_N, predicted_N), 1)
    resampled_SKK = _resample(truth_N * n_classes + predicted_N, situation_N, n_classes)
    auroc, class_auroc = area_intervals(truth_N, probability_NK, situation_N)
    return Scores(
        accuracy=_wilson(truth_N == predicted_N, situation_N),
        macro_f1=_percentiles(_macro_f1(confusion_KK[None])[0], _macro_f1(resampled_SKK)),
        auroc=auroc,
        class_auroc=class_auroc,
        log_loss=None if ranks_only else _log_loss(truth_N, probability_NK, situation_N),
        calibration_error=None if ranks_only else _calibration_error(truth_N, probability_NK, situation_N),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion_KK),
    )


def macro_f1_interval(
    truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], n_classes: int, groups_N: NDArray[np.int64] | None = None
) -> Interval:
    """Mean over classes of the F1 score where some examples are put in none of them.

    Args:
        predicted_N: predicted class of each example; `n_classes` for none.
    """
    n_cells = n_classes + 1
    cell_N = truth_N * n_cells + predicted_N
    whole_1KK = np.bincount(cell_N, minlength=n_cells**2).reshape(1, n_cells, n_cells)
    resampled_SKK = _resample(cell_N, _numbered(groups_N, len(truth_N)), n_cells)
    over_classes = n_cells / n_classes  # "none" is true of no example and scores 0; the mean is over the others
    return _percentiles(over_classes * _macro_f1(whole_1KK)[0], over_classes * _macro_f1(resampled_SKK))


def score_sets(
    has_NK: NDArray[np.bool_], score_NK: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> SetScores:
    """Score labels of which any number may hold.

    Args:
        has_NK: whether each label holds for each example; every one does for some and not for others.
        score_NK: above 0 where it is said to hold, the more so the higher.
        groups_N: number of each example's situation; each its own without it.
    """
    situation_N = _numbered(groups_N, len(has_NK))
    measures = measure_sets(has_NK, score_NK)
    return SetScores(
        auroc=_normal_interval(*mean_measure(measures.auroc), situation_N),
        label_auroc=tuple(_normal_interval(*measure, situation_N) for measure in measures.auroc),
        macro_f1=_normal_interval(*mean_measure(measures.f1), situation_N),
        label_f1=tuple(_normal_interval(*measure, situation_N) for measure in measures.f1),
        micro_f1=_normal_interval(*measures.micro_f1, situation_N),
        exact=_wilson(measures.exact_N, situation_N),
    )


def measure_sets(has_NK: NDArray[np.bool_], score_NK: NDArray[np.floating]) -> SetMeasures:
    """As `score_sets`, before intervals are made."""
    named_NK = score_NK > 0
    hits_NK, both_NK = (has_NK & named_NK).astype(np.float64), has_NK.astype(np.float64) + named_NK
    return SetMeasures(
        auroc=tuple(_auroc(has_N, score_N) for has_N, score_N in zip(has_NK.T, score_NK.T, strict=True)),
        f1=tuple(_f1(hits_N, both_N) for hits_N, both_N in zip(hits_NK.T, both_NK.T, strict=True)),
        micro_f1=_f1(hits_NK.sum(axis=1), both_NK.sum(axis=1)),
        exact_N=(has_NK == named_NK).all(axis=1),
    )


def score_values(
    truth_N: NDArray[np.floating], predicted_N: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> ValueScores:
    """Score predicted numbers; the intervals resample situations, and only resamples in which the truth varies count.

    Args:
        truth_N: true number of each example; they vary.
        predicted_N: predicted number of each example.
        groups_N: number of each example's situation; each its own without it.
    """
    situation_N = _numbered(groups_N, len(truth_N))
    t_N, p_N = truth_N - truth_N.mean(), _centred(predicted_N)
    parts_NC = np.stack([np.ones(len(t_N)), t_N, p_N, t_N**2, p_N**2, t_N * p_N, (truth_N - predicted_N) ** 2], axis=1)
    parts_GC = np.zeros((int(situation_N.max()) + 1, parts_NC.shape[1]))
    np.add.at(parts_GC, situation_N, parts_NC)
    generator = np.random.default_rng(0)
    drawn_SC = np.stack([parts_GC[generator.integers(0, len(parts_GC), len(parts_GC))].sum(axis=0) for _ in range(N_RESAMPLES)])
    varies_S = drawn_SC[:, 3] - drawn_SC[:, 1] ** 2 / drawn_SC[:, 0] > _ROUNDING * parts_GC[:, 3].sum()
    whole, resampled = _fit_of_values(parts_GC.sum(axis=0)[None]), _fit_of_values(drawn_SC[varies_S])
    return ValueScores(*(_percentiles(float(one[0]), many) for one, many in zip(whole, resampled, strict=True)))


def measure_values(truth_N: NDArray[np.floating], predicted_N: NDArray[np.floating]) -> tuple[Measure, Measure]:
    """R2 and Pearson's r of predicted numbers, before intervals are made."""
    t_N, p_N, error_N = truth_N - truth_N.mean(), _centred(predicted_N), truth_N - predicted_N
    spread_t, spread_p = float(np.mean(t_N**2)), float(np.mean(p_N**2))
    left = float(np.mean(error_N**2)) / spread_t
    r2 = 1 - left, (left * t_N**2 - error_N**2) / spread_t
    if spread_p == 0:
        return r2, (0.0, np.zeros(len(t_N)))
    t_N, p_N = t_N / np.sqrt(spread_t), p_N / np.sqrt(spread_p)
    r = float(np.mean(t_N * p_N))
    return r2, (r, t_N * p_N - r * (t_N**2 + p_N**2) / 2)


def _centred(predicted_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Less their mean; exactly 0 where they are all the same."""
    centred_N: NDArray[np.float64] = predicted_N.astype(np.float64) - predicted_N.mean(dtype=np.float64)
    return centred_N if np.ptp(predicted_N) > 0 else np.zeros(len(predicted_N))


def _fit_of_values(parts_SC: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R2 and r from sums of 1, t, p, t t, p p, t p and squared errors."""
    n, t, p, tt, pp, tp, errors = parts_SC.T
    spread_t, spread_p = tt - t * t / n, pp - p * p / n
    product = np.sqrt(np.maximum(spread_t * spread_p, 0))
    together = np.divide(tp - t * p / n, product, out=np.zeros_like(product), where=product > 0)
    return 1 - errors / spread_t, np.clip(together, -1, 1)


def _numbered(groups_N: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    """The situation of each example, from 0."""
    return np.arange(n) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]


def _log_loss(truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating], situation_N: NDArray[np.int64]) -> Interval:
    of_true_N = probability_NK[np.arange(len(truth_N)), truth_N].astype(np.float64)
    return mean_interval(-np.log(np.maximum(of_true_N, np.finfo(np.float64).tiny)), situation_N)


def _calibration_error(
    truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating], situation_N: NDArray[np.int64]
) -> Interval:
    confidence_N = probability_NK.max(axis=1)
    too_sure_N = confidence_N - (probability_NK.argmax(axis=1) == truth_N)
    bin_N = np.minimum((confidence_N * _N_BINS).astype(np.int64), _N_BINS - 1)
    sign_B = np.sign(np.bincount(bin_N, too_sure_N, minlength=_N_BINS))
    error = mean_interval(too_sure_N * sign_B[bin_N], situation_N)
    return Interval(error.value, max(0.0, error.low), error.high)


def mean_interval(value_N: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None) -> Interval:
    """A mean with its normal interval over situations."""
    mean = float(value_N.mean(dtype=np.float64))
    half = _NORMAL_95 * float(np.sqrt(_clustered_variance(value_N - mean, _numbered(groups_N, len(value_N)))))
    return Interval(mean, mean - half, mean + half)


def share_interval(true_N: NDArray[np.bool_], groups_N: NDArray[np.int64] | None = None) -> Interval:
    """A share with Wilson's interval over situations."""
    return _wilson(true_N, _numbered(groups_N, len(true_N)))


def macro_area(truth_N: NDArray[np.int64], score_NK: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
    """Mean over classes of the one-vs-rest AUROC, and each example's influence on it."""
    return mean_measure([_auroc(truth_N == label, score_NK[:, label]) for label in range(score_NK.shape[1])])


def area_interval(
    truth_N: NDArray[np.int64], score_NK: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> Interval:
    """The macro AUROC with its interval over situations."""
    return area_intervals(truth_N, score_NK, groups_N)[0]


def area_intervals(
    truth_N: NDArray[np.int64], score_NK: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> tuple[Interval, tuple[Interval, ...]]:
    """The macro AUROC and that of each class, with intervals over situations; every class occurs."""
    situation_N = _numbered(groups_N, len(truth_N))
    parts = [_auroc(truth_N == label, score_NK[:, label]) for label in range(score_NK.shape[1])]
    of_each = tuple(_normal_interval(area, influence_N, situation_N) for area, influence_N in parts)
    return _normal_interval(*mean_measure(parts), situation_N), of_each


def area_difference(
    truth_N: NDArray[np.int64],
    score_NK: NDArray[np.floating],
    other_NK: NDArray[np.floating],
    groups_N: NDArray[np.int64] | None = None,
) -> Interval:
    """The macro AUROC of some scores less that of others of the same examples, by their influences (DeLong et al. 1988)."""
    (area, influence_N), (other, other_N) = macro_area(truth_N, score_NK), macro_area(truth_N, other_NK)
    half = _NORMAL_95 * float(np.sqrt(_clustered_variance(influence_N - other_N, _numbered(groups_N, len(truth_N)))))
    return Interval(area - other, area - other - half, area - other + half)


def mean_over_shuffles(
    value_R: NDArray[np.float64],
    influence_N: NDArray[np.float64],
    groups_N: NDArray[np.int64] | None = None,
    least: float = 0.0,
) -> Interval:
    """The mean of a score over shuffles of the labels.

    Its interval covers both chances: which situations were scored (the mean influence of each example), and which shuffles were
    drawn (how much they differ).

    Args:
        least: the lowest value that the score can have; the highest is 1.
    """
    situation_N = _numbered(groups_N, len(influence_N))
    variance = _clustered_variance(influence_N, situation_N) + float(value_R.var(ddof=1)) / len(value_R)
    half = _NORMAL_95 * float(np.sqrt(variance))
    mean = float(value_R.mean())
    return Interval(mean, max(least, mean - half), min(1.0, mean + half))


def mean_measure(parts: Sequence[Measure]) -> Measure:
    """The mean of some scores, and each example's influence on it."""
    return float(np.mean([value for value, _ in parts])), np.asarray(np.mean([influence for _, influence in parts], axis=0))


def _resample(cell_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Confusion matrices (S, K, K) of bootstrap resamples of situations."""
    n_cells = n_classes**2
    pairs, counts = np.unique(situation_N * n_cells + cell_N, return_counts=True)
    cells_GC = np.zeros((int(situation_N.max()) + 1, n_cells), np.int64)
    cells_GC[pairs // n_cells, pairs % n_cells] = counts
    pattern_PC, how_often_P = np.unique(cells_GC, axis=0, return_counts=True)
    generator = np.random.default_rng(0)
    drawn_SP = generator.multinomial(len(cells_GC), how_often_P / len(cells_GC), size=N_RESAMPLES)
    return (drawn_SP @ pattern_PC).reshape(N_RESAMPLES, n_classes, n_classes)


def _wilson(right_N: NDArray[np.bool_], situation_N: NDArray[np.int64]) -> Interval:
    """Wilson's score interval (1927), which unlike the bootstrap's is not a point where all or no examples are right.

    Situations of several examples that are right or wrong together count for less than as many single examples: the sample
    size is divided by the design effect (Kish 1965) where that is above 1.
    """
    share = float(right_N.mean())
    independent = share * (1 - share) / len(right_N)
    clustered = _clustered_variance(right_N - share, situation_N)
    n_effective = len(right_N) / max(1.0, clustered / independent if independent > 0 else 1.0)
    z2 = _NORMAL_95**2
    middle = (share + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    half = _NORMAL_95 * np.sqrt(share * (1 - share) / n_effective + z2 / (4 * n_effective**2)) / (1 + z2 / n_effective)
    return Interval(share, min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half))))


def _clustered_variance(influence_N: NDArray[np.floating], situation_N: NDArray[np.int64]) -> float:
    """Variance of a mean-like estimate from the influence of its examples, summed within situations."""
    return float(np.sum(np.bincount(situation_N, influence_N) ** 2)) / len(influence_N) ** 2


def _f1(hits_N: NDArray[np.float64], both_N: NDArray[np.float64]) -> Measure:
    """The F1 score, 0 where nothing holds and nothing is named.

    Args:
        hits_N: labels of each example that hold and are named.
        both_N: those that hold and those that are named, added up.
    """
    if not both_N.any():
        return 0.0, np.zeros(len(both_N))
    value = 2 * float(hits_N.sum()) / float(both_N.sum())
    return value, (2 * hits_N - value * both_N) / both_N.mean()


def _macro_f1(confusion_SKK: NDArray[np.int64]) -> NDArray[np.float64]:
    hits_SK = np.diagonal(confusion_SKK, axis1=1, axis2=2)
    sizes_SK = confusion_SKK.sum(axis=1) + confusion_SKK.sum(axis=2)
    f1_SK: NDArray[np.float64] = 2 * hits_SK / np.maximum(sizes_SK, 1)
    mean_S: NDArray[np.float64] = f1_SK.mean(axis=1)
    return mean_S


def _auroc(positive_N: NDArray[np.bool_], score_N: NDArray[np.floating]) -> tuple[float, NDArray[np.float64]]:
    """The area, and each example's influence on it: its placement among the other class, less the area, over its share."""
    n_positive, n_negative = int(positive_N.sum()), int((~positive_N).sum())
    rank_N = rankdata(score_N)
    within_N = np.empty(len(score_N))
    within_N[positive_N] = rankdata(score_N[positive_N])
    within_N[~positive_N] = rankdata(score_N[~positive_N])
    placement_N = (rank_N - within_N) / np.where(positive_N, n_negative, n_positive)  # share of the other class ranked below
    area = float(placement_N[positive_N].mean())
    toward_N = np.where(positive_N, placement_N - area, (1 - placement_N) - area)
    size_N = np.where(positive_N, n_positive, n_negative)
    unbiased_N = np.sqrt(size_N / np.maximum(size_N - 1, 1))  # the variance within each class is a sample's
    return area, toward_N * unbiased_N * len(score_N) / size_N


def _normal_interval(value: float, influence_N: NDArray[np.float64], situation_N: NDArray[np.int64]) -> Interval:
    half = _NORMAL_95 * float(np.sqrt(_clustered_variance(influence_N, situation_N)))
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _percentiles(value: float, resampled_S: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled_S, (2.5, 97.5))
    return Interval(float(value), float(low), float(high))
