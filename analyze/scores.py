"""Scores of a classifier, each with a 95% interval over situations.

Utterances of one situation (a pair) rise and fall together, so the situation is what an interval resamples; where every
utterance is its own, this is the usual interval. Accuracy has Wilson's with the effective sample size. Macro-F1 depends
on a situation only through its cells of the confusion matrix, so resampling the distinct patterns of cells is the
bootstrap, at a cost that does not grow with their number. AUROC is a U-statistic; its interval comes from its influence
function (DeLong, DeLong & Clarke-Pearson 1988; summed over clusters as in Obuchowski 1997) and needs no resampling.

Shape suffixes: N examples, G situations, P distinct patterns, K classes, S resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

N_RESAMPLES = 2000
_NORMAL_95 = 1.959964


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
    confusion: tuple[tuple[int, ...], ...]
    """Number of examples by true class (rows) and predicted class (columns)."""


def score(
    truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> Scores:
    """Score class probabilities.

    Args:
        truth_N: true class of each example, as a column of `probability_NK`; every class occurs.
        probability_NK: probability (or any score that ranks examples) of each class.
        groups_N: number of each example's situation; each its own without it.
    """
    n_classes = probability_NK.shape[1]
    situation_N = np.unique(np.arange(len(truth_N)) if groups_N is None else groups_N, return_inverse=True)[1]
    predicted_N = probability_NK.argmax(axis=1)
    confusion_KK = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion_KK, (truth_N, predicted_N), 1)
    resampled_SKK = _resample(truth_N * n_classes + predicted_N, situation_N, n_classes)
    parts = [_auroc(truth_N == label, probability_NK[:, label]) for label in range(n_classes)]
    influence_N = np.mean([influence for _, influence in parts], axis=0)
    return Scores(
        accuracy=_wilson(truth_N == predicted_N, situation_N),
        macro_f1=_percentiles(_macro_f1(confusion_KK[None])[0], _macro_f1(resampled_SKK)),
        auroc=_normal_interval(float(np.mean([area for area, _ in parts])), influence_N, situation_N),
        class_auroc=tuple(_normal_interval(area, influence, situation_N) for area, influence in parts),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion_KK),
    )


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
