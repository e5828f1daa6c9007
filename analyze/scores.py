"""Scores of a classifier, each with a 95% interval over utterances.

The interval of accuracy is Wilson's. Macro-F1 depends on an example only through its cell in the confusion matrix, so
resampling the cells is the bootstrap over utterances, at a cost that does not grow with their number. AUROC is a
U-statistic; its interval comes from its influence function (DeLong, DeLong & Clarke-Pearson 1988), which needs one
sort and no resampling.

Shape suffixes: N examples, K classes, S resamples.
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


def score(truth_N: NDArray[np.int64], probability_NK: NDArray[np.floating]) -> Scores:
    """Score class probabilities.

    Args:
        truth_N: true class of each example, as a column of `probability_NK`; every class occurs.
        probability_NK: probability (or any score that ranks examples) of each class.
    """
    n_classes = probability_NK.shape[1]
    confusion_KK = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion_KK, (truth_N, probability_NK.argmax(axis=1)), 1)
    resampled_SKK = _resample(confusion_KK)
    parts = [_auroc(truth_N == label, probability_NK[:, label]) for label in range(n_classes)]
    influence_N = np.mean([influence for _, influence in parts], axis=0)
    return Scores(
        accuracy=_wilson(int(np.trace(confusion_KK)), int(confusion_KK.sum())),
        macro_f1=_percentiles(_macro_f1(confusion_KK[None])[0], _macro_f1(resampled_SKK)),
        auroc=_normal_interval(float(np.mean([area for area, _ in parts])), influence_N),
        class_auroc=tuple(_normal_interval(area, influence) for area, influence in parts),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion_KK),
    )


def _resample(confusion_KK: NDArray[np.int64]) -> NDArray[np.int64]:
    total = int(confusion_KK.sum())
    generator = np.random.default_rng(0)
    cells = generator.multinomial(total, confusion_KK.ravel() / total, size=N_RESAMPLES)
    return cells.reshape(N_RESAMPLES, *confusion_KK.shape)


def _wilson(n_right: int, n_examples: int) -> Interval:
    """Wilson's score interval (1927), which unlike the bootstrap's is not a point where all or no examples are right."""
    share, z2 = n_right / n_examples, _NORMAL_95**2
    middle = (share + z2 / (2 * n_examples)) / (1 + z2 / n_examples)
    half = _NORMAL_95 * np.sqrt(share * (1 - share) / n_examples + z2 / (4 * n_examples**2)) / (1 + z2 / n_examples)
    return Interval(share, min(share, max(0.0, float(middle - half))), max(share, min(1.0, float(middle + half))))


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


def _normal_interval(value: float, influence_N: NDArray[np.float64]) -> Interval:
    half = _NORMAL_95 * float(np.sqrt(np.mean(influence_N**2) / len(influence_N)))
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _percentiles(value: float, resampled_S: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled_S, (2.5, 97.5))
    return Interval(float(value), float(low), float(high))
