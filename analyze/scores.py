"""Scores of a classifier, each with a 95% interval over situations.

Utterances of one situation (a pair) rise and fall together, so the situation is what an interval resamples; where every
utterance is its own, this is the usual interval. Accuracy and AUROC are shares, of examples and of pairs of examples, and have
Wilson's interval (1927) with an effective sample size. AUROC's size comes from the variance of its influence function (DeLong,
DeLong & Clarke-Pearson 1988; summed over clusters as in Obuchowski 1997). The plain interval on that variance was rejected:
near 1, or with ten examples of a class, it held the truth in 55 to 85 of 100 simulations, and it is a point where all is
ranked right. Macro-F1 depends on a situation only through its hits and names of each class, so resampling the distinct
patterns of these is the bootstrap, at a cost that does not grow with the number of situations. Log loss is a mean, and
calibration error one but for the signs of its bins. tests/analyze/test_honesty.py counts how often each interval holds the
truth.

Shape suffixes: N examples, G situations, P distinct patterns, K classes, B bins, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from scipy.stats import t as student

N_RESAMPLES = 2000
_NORMAL_95 = 1.959964
_N_BINS = 15


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

    It is above 0 by chance even for a calibrated probe, the more so the fewer the examples; its interval allows for that.
    """
    confusion: tuple[tuple[int, ...], ...]
    """Number of examples by true class (rows) and predicted class (columns)."""


class Measure(NamedTuple):
    """A score, or a mean of several."""

    value: float
    """The score."""
    influence_N: NDArray[np.float64]
    """Each example's influence on it, of which the mean's variance is the score's."""


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
    situation_N = numbered(groups_N, len(truth_N))
    predicted_N = probability_NK.argmax(axis=1)
    confusion_KK = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion_KK, (truth_N, predicted_N), 1)
    macro_auroc, class_auroc = area_intervals(truth_N, probability_NK, groups_N)
    return Scores(
        accuracy=share_interval(truth_N == predicted_N, situation_N),
        macro_f1=_macro_f1(truth_N, predicted_N, situation_N, n_classes),
        auroc=macro_auroc,
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
    return _macro_f1(truth_N, predicted_N, numbered(groups_N, len(truth_N)), n_classes)


def numbered(groups_N: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    """The situation of each example, from 0."""
    return np.arange(n) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]


def _log_loss(truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating], situation_N: NDArray[np.int64]) -> Interval:
    """The interval is Wilson's idea for a mean of few large losses, whose variance grows with it.

    The variance is at least what a calibrated probe's would be: a sample without a mistake does not know what mistakes cost.
    """
    loss_NK = -np.log(np.maximum(probability_NK.astype(np.float64), np.finfo(np.float64).tiny))
    expected_N = (probability_NK * loss_NK).sum(axis=1)
    spread_N = np.maximum((probability_NK * loss_NK**2).sum(axis=1) - expected_N**2, 0)
    loss = _mean(loss_NK[np.arange(len(truth_N)), truth_N], situation_N, float(spread_N.sum()) / len(truth_N) ** 2)
    if loss.value <= 0:
        return loss
    half, shift = loss.high - loss.value, (loss.high - loss.value) ** 2 / (2 * loss.value)
    half = float(np.sqrt(half**2 + shift**2))
    return Interval(loss.value, max(0.0, loss.value + shift - half), loss.value + shift + half)


def _calibration_error(
    truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating], situation_N: NDArray[np.int64]
) -> Interval:
    """A bin's error is taken without its sign, so that chance adds to it; the lower end gives back what chance adds.

    That is the mean of the absolute value of a normal variable less the absolute value of its mean: as much as 0.8 standard
    errors in a bin without error, next to nothing in one with much. No variance is less than a calibrated probe's.
    """
    confidence_N = probability_NK.max(axis=1).astype(np.float64)
    too_sure_N = confidence_N - (probability_NK.argmax(axis=1) == truth_N)
    spread_N = np.maximum(confidence_N * (1 - confidence_N), 0)
    bin_N = np.minimum((confidence_N * _N_BINS).astype(np.int64), _N_BINS - 1)
    gap_B = np.bincount(bin_N, too_sure_N, minlength=_N_BINS)
    met, place_N = np.unique(situation_N * _N_BINS + bin_N, return_inverse=True)
    clustered_B = np.bincount(met % _N_BINS, np.bincount(place_N, too_sure_N) ** 2, minlength=_N_BINS)
    variance_B = np.maximum(clustered_B, np.bincount(bin_N, spread_N, minlength=_N_BINS))
    error_B, spread_B = (
        np.sqrt(np.maximum(gap_B**2 - variance_B, 0)),
        np.sqrt(np.maximum(variance_B, np.finfo(np.float64).tiny)),
    )
    by_chance_B = 2 * (spread_B * norm.pdf(error_B / spread_B) - error_B * norm.cdf(-error_B / spread_B))
    error = _mean(too_sure_N * np.sign(gap_B)[bin_N], situation_N, float(spread_N.sum()) / len(truth_N) ** 2)
    low = error.low - float(by_chance_B.sum()) / len(truth_N)
    return Interval(error.value, max(0.0, low), error.high)


def mean_interval(value_N: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None) -> Interval:
    """A mean with Student's interval over situations."""
    return _mean(value_N, numbered(groups_N, len(value_N)))


def difference_interval(value_N: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None) -> Interval:
    """A mean of differences from -1 to 1, such as of being right, with Student's interval over situations.

    The variance is at least that of one situation that differs: a sample in which all agree does not know how rare others are.
    """
    situation_N = numbered(groups_N, len(value_N))
    interval = _mean(value_N, situation_N, 1 / (int(situation_N.max()) + 1) ** 2)
    return Interval(interval.value, max(-1.0, interval.low), min(1.0, interval.high))


def _mean(value_N: NDArray[np.floating], situation_N: NDArray[np.int64], least_variance: float = 0.0) -> Interval:
    freedom = max(int(situation_N.max()), 1)
    mean = float(value_N.mean(dtype=np.float64))
    variance = clustered_variance(value_N - mean, situation_N) * (freedom + 1) / freedom
    half = _student(freedom) * float(np.sqrt(max(variance, least_variance)))
    return Interval(mean, mean - half, mean + half)


def share_interval(right_N: NDArray[np.bool_], groups_N: NDArray[np.int64] | None = None) -> Interval:
    """A share of examples with Wilson's interval, which unlike the bootstrap's is not a point where all or none are right.

    Situations of several examples that are right or wrong together count for less than as many single examples: the sample
    size is divided by the design effect (Kish 1965).
    """
    situation_N = numbered(groups_N, len(right_N))
    share = float(right_N.mean())
    variance = clustered_variance(right_N - share, situation_N)
    n_effective = _effective(share, variance, int(situation_N.max()) + 1, 1.0)
    return _wilson(share, min(n_effective, float(len(right_N))))


def area_interval(
    truth_N: NDArray[np.int64],
    score_NK: NDArray[np.floating],
    groups_N: NDArray[np.int64] | None = None,
    out_of_fold: bool = False,
) -> Interval:
    """The first of `area_intervals`."""
    return area_intervals(truth_N, score_NK, groups_N, out_of_fold)[0]


def area_intervals(
    truth_N: NDArray[np.int64],
    score_NK: NDArray[np.floating],
    groups_N: NDArray[np.int64] | None = None,
    out_of_fold: bool = False,
) -> tuple[Interval, tuple[Interval, ...]]:
    """The macro AUROC with its interval over situations, and that of each class.

    Args:
        out_of_fold: whether examples were scored by probes fitted to the others; see `out_of_fold_factor`.
    """
    situation_N = numbered(groups_N, len(truth_N))
    parts, scarce_K = areas(truth_N, score_NK), _scarce(truth_N, situation_N, score_NK.shape[1])
    # the mean over classes: as of independent ones, halved because every error is one between two classes
    together = len(parts) ** 2 / float(np.sum(1 / scarce_K)) / 2
    of_each = tuple(
        one_area_interval(part, situation_N, float(scarce), out_of_fold) for part, scarce in zip(parts, scarce_K, strict=True)
    )
    return one_area_interval(mean_measure(parts), situation_N, together, out_of_fold), of_each


def one_area_interval(part: Measure, situation_N: NDArray[np.int64], scarce: float, out_of_fold: bool = False) -> Interval:
    """An AUROC with its interval.

    Args:
        scarce: the number of situations on the scarcer of its two sides.
        out_of_fold: as in `area_intervals`.
    """
    factor = out_of_fold_factor(part.value) if out_of_fold else 1.0
    # an area varies at most as trials of the scarcer side, and half as much near 1 (Hanley & McNeil 1982)
    n_effective = _effective(part.value, clustered_variance(part.influence_N, situation_N) * factor, scarce, 0.5)
    return _wilson(part.value, n_effective)


def area_difference(
    truth_N: NDArray[np.int64],
    score_NK: NDArray[np.floating],
    other_NK: NDArray[np.floating],
    groups_N: NDArray[np.int64] | None = None,
) -> Interval:
    """The macro AUROC of out-of-fold scores less that of others, paired by example (DeLong et al. 1988)."""
    one, other = mean_measure(areas(truth_N, score_NK)), mean_measure(areas(truth_N, other_NK))
    factor = out_of_fold_factor((one.value + other.value) / 2)
    half = _NORMAL_95 * standard_error(one.influence_N - other.influence_N, groups_N) * factor**0.5
    value = one.value - other.value
    return Interval(value, value - half, value + half)


def shuffled_area_intervals(
    truth_N: NDArray[np.int64], score_RNK: Sequence[NDArray[np.floating]], groups_N: NDArray[np.int64] | None = None
) -> tuple[Interval, tuple[Interval, ...]]:
    """As `area_intervals`, the mean over what probes of several shuffles of the labels score."""
    parts_RK = [areas(truth_N, score_NK) for score_NK in score_RNK]

    def over_shuffles(parts_R: Sequence[Measure]) -> Interval:
        return mean_over_shuffles(np.array([part.value for part in parts_R]), mean_measure(parts_R).influence_N, groups_N)

    of_each = tuple(over_shuffles(parts_R) for parts_R in zip(*parts_RK, strict=True))
    return over_shuffles([mean_measure(parts_K) for parts_K in parts_RK]), of_each


def mean_over_shuffles(
    value_R: NDArray[np.float64],
    influence_N: NDArray[np.float64],
    groups_N: NDArray[np.int64] | None = None,
    least: float = 0.0,
) -> Interval:
    """The mean of a score over shuffles of the labels.

    Its interval covers both chances: which situations were scored (the mean influence of each example), and which shuffles were
    drawn (how much they differ). Shuffles are few, so the quantile is Student's with the degrees of freedom of Welch (1947) and
    Satterthwaite (1946).

    Args:
        least: the lowest value that the score can have; the highest is 1.
    """
    situation_N = numbered(groups_N, len(influence_N))
    n_situations = int(situation_N.max()) + 1
    parts = np.array([clustered_variance(influence_N, situation_N), float(value_R.var(ddof=1)) / len(value_R)])
    freedom = np.array([max(n_situations - 1, 1), len(value_R) - 1])
    variance = float(parts.sum())
    half = _student(variance**2 / float(np.sum(parts**2 / freedom)) if variance > 0 else 1.0) * float(np.sqrt(variance))
    mean = float(value_R.mean())
    return Interval(mean, max(least, mean - half), min(1.0, mean + half))


def _student(freedom: float) -> float:
    return float(student.ppf(0.975, freedom))


def areas(truth_N: NDArray[np.int64], score_NK: NDArray[np.floating]) -> list[Measure]:
    """Each class's one-vs-rest AUROC."""
    return [auroc(truth_N == label, score_NK[:, label]) for label in range(score_NK.shape[1])]


def mean_measure(parts: Sequence[Measure]) -> Measure:
    """The mean of scores of the same examples."""
    influence_N: NDArray[np.float64] = np.mean([part.influence_N for part in parts], axis=0)
    return Measure(float(np.mean([part.value for part in parts])), influence_N)


def out_of_fold_factor(area: float) -> float:
    """By how much the variance of an AUROC grows when examples are scored by probes fitted to the others.

    An example's score and the part that it has in the others' scores go together, and all five probes share the luck of most of
    their training examples. At chance this is the correction of Nadeau & Bengio (2003) for five folds, 1 + 5 / 4; near 1, where
    probes hardly differ, it is none.
    """
    return 1 + 5 * area * (1 - area)


def standard_error(influence_N: NDArray[np.float64], groups_N: NDArray[np.int64] | None = None) -> float:
    """Of whatever examples have this influence on, over situations."""
    return float(np.sqrt(clustered_variance(influence_N, numbered(groups_N, len(influence_N)))))


def _resample(
    truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hits of each class, and how often it is true or predicted, (S, K), of bootstrap resamples of situations.

    Args:
        predicted_N: `n_classes` for none of them.
    """
    counts_GC = np.zeros((int(situation_N.max()) + 1, 2 * n_classes), np.int32)
    hit_N, named_N = truth_N == predicted_N, predicted_N < n_classes
    np.add.at(counts_GC, (situation_N[hit_N], truth_N[hit_N]), 1)
    np.add.at(counts_GC, (situation_N, n_classes + truth_N), 1)
    np.add.at(counts_GC, (situation_N[named_N], n_classes + predicted_N[named_N]), 1)
    pattern_PC, how_often_P = np.unique(counts_GC, axis=0, return_counts=True)
    drawn_SP = np.random.default_rng(0).multinomial(len(counts_GC), how_often_P / len(counts_GC), size=N_RESAMPLES)
    resampled_SC = drawn_SP.astype(np.float64) @ pattern_PC
    return resampled_SC[:, :n_classes], resampled_SC[:, n_classes:]


def _wilson(share: float, n_effective: float) -> Interval:
    z2 = _NORMAL_95**2
    middle = (share + z2 / (2 * n_effective)) / (1 + z2 / n_effective)
    half = _NORMAL_95 * np.sqrt(share * (1 - share) / n_effective + z2 / (4 * n_effective**2)) / (1 + z2 / n_effective)
    return Interval(share, min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half))))


def _effective(share: float, variance: float, n: float, ratio: float) -> float:
    """To how many independent trials a share with this variance amounts.

    The variance is some multiple of that of `n` trials. Where few trials came out either way an estimate of it is worth little,
    so the multiple is averaged with what it is at most or by a model, `ratio`, which counts as much as one such trial.
    """
    return n * (n * share * (1 - share) + 1) / (n**2 * variance + ratio)


def clustered_variance(influence_N: NDArray[np.floating], situation_N: NDArray[np.int64]) -> float:
    """Variance of a mean-like estimate from the influence of its examples, summed within situations."""
    return float(np.sum(np.bincount(situation_N, influence_N) ** 2)) / len(influence_N) ** 2


def _macro_f1(
    truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int
) -> Interval:
    """Its interval adds a prior to the bootstrap, without which 0 of 10 hits would stay 0 in all resamples.

    As in Goutte & Gaussier (2005), the prior's hits and errors are gamma distributed: for each class one situation that scores
    as the classes do on average, and a share of an error.
    """
    hits_K = np.bincount(truth_N[truth_N == predicted_N], minlength=n_classes)
    sizes_K = np.bincount(truth_N, minlength=n_classes) + np.bincount(predicted_N, minlength=n_classes)[:n_classes]
    value = float(np.mean(2 * hits_K / np.maximum(sizes_K, 1)))
    hits_SK, sizes_SK = _resample(truth_N, predicted_N, situation_N, n_classes)
    per_situation = len(truth_N) / (int(situation_N.max()) + 1)
    generator, shape = np.random.default_rng(1), hits_SK.shape
    twice_hits_SK = 2 * (hits_SK + per_situation * generator.gamma(value, size=shape))
    errors_SK = sizes_SK - 2 * hits_SK + per_situation * generator.gamma(2 * (1 - value) + 1 / n_classes, size=shape)
    interval = percentiles(
        value, (twice_hits_SK / np.maximum(twice_hits_SK + errors_SK, np.finfo(np.float64).tiny)).mean(axis=1)
    )
    return Interval(value, min(value, interval.low), max(value, interval.high))


def auroc(positive_N: NDArray[np.bool_], score_N: NDArray[np.floating]) -> Measure:
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
    return Measure(area, toward_N * unbiased_N * len(score_N) / size_N)


def _scarce(truth_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """For each class the number of situations of it, or of the rest, whichever is less."""
    sides = [(situation_N[truth_N == label], situation_N[truth_N != label]) for label in range(n_classes)]
    return np.array([min(len(np.unique(side)) for side in both) for both in sides])


def percentiles(value: float, resampled_S: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled_S, (2.5, 97.5))
    return Interval(float(value), float(low), float(high))
