"""Scores of labels of which any number may hold, each with a 95% interval over situations.

AUROC is as in analyze.scores; F1 is a ratio of means, whose interval comes from its influence function, as do those of means
over labels.

Shape suffixes: N examples, K labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.scores import Interval, Measure, auroc, mean_measure, numbered, one_area_interval, share_interval, standard_error

_NORMAL_95 = 1.959964


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


def score_sets(
    has_NK: NDArray[np.bool_], score_NK: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> SetScores:
    """Score labels of which any number may hold.

    Args:
        has_NK: whether each label holds for each example; every one does for some and not for others.
        score_NK: above 0 where it is said to hold, the more so the higher.
        groups_N: number of each example's situation; each its own without it.
    """
    situation_N = numbered(groups_N, len(has_NK))
    measures = measure_sets(has_NK, score_NK)
    return SetScores(
        auroc=one_area_interval(mean_measure(measures.auroc), situation_N, _together(has_NK, situation_N)),
        label_auroc=tuple(
            one_area_interval(measure, situation_N, _scarce(has_N, situation_N))
            for measure, has_N in zip(measures.auroc, has_NK.T, strict=True)
        ),
        macro_f1=_interval(mean_measure(measures.f1), situation_N),
        label_f1=tuple(_interval(measure, situation_N) for measure in measures.f1),
        micro_f1=_interval(measures.micro_f1, situation_N),
        exact=share_interval(measures.exact_N, situation_N),
    )


def measure_sets(has_NK: NDArray[np.bool_], score_NK: NDArray[np.floating]) -> SetMeasures:
    """As `score_sets`, before intervals are made."""
    named_NK = score_NK > 0
    hits_NK, both_NK = (has_NK & named_NK).astype(np.float64), has_NK.astype(np.float64) + named_NK
    return SetMeasures(
        auroc=tuple(auroc(has_N, score_N) for has_N, score_N in zip(has_NK.T, score_NK.T, strict=True)),
        f1=tuple(_f1(hits_N, both_N) for hits_N, both_N in zip(hits_NK.T, both_NK.T, strict=True)),
        micro_f1=_f1(hits_NK.sum(axis=1), both_NK.sum(axis=1)),
        exact_N=(has_NK == named_NK).all(axis=1),
    )


def _interval(measure: Measure, situation_N: NDArray[np.int64]) -> Interval:
    half = _NORMAL_95 * standard_error(measure.influence_N, situation_N)
    return Interval(measure.value, max(0.0, measure.value - half), min(1.0, measure.value + half))


def _together(has_NK: NDArray[np.bool_], situation_N: NDArray[np.int64]) -> float:
    """Of the mean over labels: as of independent ones."""
    scarce_K = np.array([_scarce(has_N, situation_N) for has_N in has_NK.T])
    return float(len(scarce_K) ** 2 / np.sum(1 / scarce_K))


def _scarce(has_N: NDArray[np.bool_], situation_N: NDArray[np.int64]) -> float:
    """Situations in which a label holds, or in which it does not, whichever are fewer."""
    return float(min(len(np.unique(situation_N[side_N])) for side_N in (has_N, ~has_N)))


def _f1(hits_N: NDArray[np.float64], both_N: NDArray[np.float64]) -> Measure:
    """The F1 score, 0 where nothing holds and nothing is named.

    Args:
        hits_N: labels of each example that hold and are named.
        both_N: those that hold and those that are named, added up.
    """
    if not both_N.any():
        return Measure(0.0, np.zeros(len(both_N)))
    value = 2 * float(hits_N.sum()) / float(both_N.sum())
    return Measure(value, (2 * hits_N - value * both_N) / both_N.mean())
