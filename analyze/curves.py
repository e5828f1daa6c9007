"""A score against token offset: curves with intervals, how high they stand above chance, and where that height has halved.

Utterances may be absent from some offsets on, as those whose reply has ended; each point is scored on who is there. Intervals
of half-life and area come from each utterance's influence on all points of a curve: one utterance is read at all of them.

Shape suffixes: N utterances, M of them that are there, O offsets, K emotions, S curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.examples import Examples
from analyze.moments import Floats
from analyze.scores import (
    Interval,
    Measure,
    area_intervals,
    areas,
    mean_measure,
    out_of_fold_factor,
    shuffled_area_intervals,
    standard_error,
)

CHANCE = 0.5
"""What one-vs-rest AUROC scores without signal."""
ALL_EMOTIONS = "all"
"""Name of the curve that averages over emotions."""

_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class HalfLife:
    """The offset at which a score above chance has halved, in tokens, linear between the offsets measured."""

    tokens: float | None
    """None when the score never halved within the grid, or was not above chance at offset 0."""
    low: float | None
    """Lower end of the 95% interval; None as above."""
    high: float | None
    """Upper end; None as above."""
    above_chance: bool
    """Whether the score at offset 0 was above chance, interval and all."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Score against offset for one emotion and one reader."""

    emotion: str
    """A label, or `all` for their mean."""
    reader: str
    """How the score is read: one of analyze.persistence.READERS."""
    auroc: tuple[Interval, ...]
    """One-vs-rest AUROC at each offset."""
    area: Interval
    """Mean height above chance from the first offset to the last, each token counted once; in units of AUROC."""
    half_life: HalfLife
    """Of this curve."""


def curves_of(
    reader: str,
    probability: Sequence[Floats],
    present_NO: NDArray[np.bool_],
    examples: Examples,
    offsets: Sequence[int],
) -> list[Curve]:
    """The curves of one reader: each emotion's, then that of their mean.

    Args:
        probability: class probabilities (N, O, K), out of fold; several for a reader that is the mean of several. Anything
            where an utterance is absent.
        present_NO: which utterances are there; at every offset some of each emotion.
        examples: the utterances.
    """
    points = [
        _Point.of([said[:, index] for said in probability], here_N, examples) for index, here_N in enumerate(present_NO.T)
    ]
    curves = []
    for label, emotion in enumerate((*examples.classes, ALL_EMOTIONS)):
        whole = label == len(examples.classes)
        auroc = tuple(point.macro if whole else point.of_each[label] for point in points)
        measures = [mean_measure(point.parts) if whole else point.parts[label] for point in points]
        area, life = _area(offsets, measures, examples.groups), _half_life_interval(offsets, auroc, measures, examples.groups)
        curves.append(Curve(emotion, reader, auroc, area, life))
    return curves


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """What a reader scores at one offset."""

    macro: Interval
    of_each: tuple[Interval, ...]
    parts: list[Measure]
    """Of each emotion, with influences of all N utterances: those of absent ones are 0."""

    @classmethod
    def of(cls, said: Sequence[Floats], here_N: NDArray[np.bool_], examples: Examples) -> "_Point":
        truth_M, groups_M = examples.truth[here_N], examples.groups[here_N]
        said_M = [one[here_N] for one in said]
        if len(said_M) == 1:
            macro, of_each = area_intervals(truth_M, said_M[0], groups_M, out_of_fold=True)
        else:
            macro, of_each = shuffled_area_intervals(truth_M, said_M, groups_M)
        parts = [mean_measure(several) for several in zip(*(areas(truth_M, one) for one in said_M), strict=True)]
        return cls(macro, of_each, [Measure(part.value, _among_all(part.influence_N, here_N)) for part in parts])


def _among_all(influence_M: Floats, here_N: NDArray[np.bool_]) -> Floats:
    """Influences on the mean over those that are there, as influences on a mean over all."""
    influence_N = np.zeros(len(here_N))
    influence_N[here_N] = influence_M * len(here_N) / len(influence_M)
    return influence_N


def half_life(offsets: Sequence[int], score_SO: Floats) -> Floats:
    """First offset at which score above chance is half of what it was at the first offset, linear between offsets.

    Returns:
        For each curve the half-life in tokens; infinity where the score never halved, NaN where it began at or below chance.
    """
    return np.where(score_SO[:, 0] > CHANCE, _crossing(offsets, _excess(score_SO)), np.nan)


def mean_height(offsets: Sequence[int], score_SO: Floats) -> Floats:
    """Mean height above chance between the first offset and the last, by trapezoids over tokens; (S,)."""
    if len(offsets) == 1:
        return score_SO[:, 0] - CHANCE
    mean_S: Floats = np.asarray(np.trapezoid(score_SO - CHANCE, offsets, axis=1)) / (offsets[-1] - offsets[0])
    return mean_S


def _area(offsets: Sequence[int], measures: Sequence[Measure], groups_N: NDArray[np.int64]) -> Interval:
    """The mean height is linear in the points, and so is an utterance's influence on it."""
    value = float(mean_height(offsets, np.array([[measure.value for measure in measures]]))[0])
    influence_N = mean_height(offsets, CHANCE + np.stack([measure.influence_N for measure in measures], axis=1))
    half = _NORMAL_95 * standard_error(influence_N, groups_N) * out_of_fold_factor(CHANCE + value) ** 0.5
    return Interval(value, max(-CHANCE, value - half), min(CHANCE, value + half))


def _excess(score_SO: Floats) -> Floats:
    """What a score has above half of its height above chance at the first offset."""
    above_SO = score_SO - CHANCE
    return above_SO - above_SO[:, :1] / 2


def _crossing(offsets: Sequence[int], excess_SO: Floats) -> Floats:
    """First offset at which something is not above 0; infinity where it always is."""
    result_S = np.full(len(excess_SO), np.inf)
    for index in range(len(offsets) - 1, 0, -1):
        before_S, after_S = excess_SO[:, index - 1], excess_SO[:, index]
        crosses_S = (before_S > 0) & (after_S <= 0)
        share_S = np.divide(before_S, before_S - after_S, out=np.zeros_like(before_S), where=crosses_S)
        result_S = np.where(crosses_S, offsets[index - 1] + share_S * (offsets[index] - offsets[index - 1]), result_S)
    return np.where(excess_SO[:, 0] > 0, result_S, float(offsets[0]))


def _half_life_interval(
    offsets: Sequence[int], auroc: Sequence[Interval], measures: Sequence[Measure], groups_N: NDArray[np.int64]
) -> HalfLife:
    """The offsets at which the score cannot be told from half of its height, as Fieller (1954) inverts the test of a ratio.

    They go from where the lower end of what the score has above half is first not above 0, to where the upper end is.
    Percentiles of resampled half-lives were rejected: noise lets a flat curve cross early, and a resample has more of it.
    """
    if auroc[0].low <= CHANCE:
        return HalfLife(None, None, None, above_chance=False)
    value_1O = np.array([[measure.value for measure in measures]])
    half_O = np.array(
        [
            _NORMAL_95
            * standard_error(measure.influence_N - measures[0].influence_N / 2, groups_N)
            * out_of_fold_factor(measure.value) ** 0.5
            for measure in measures
        ]
    )
    excess_1O = _excess(value_1O)
    low, high = _crossing(offsets, np.concatenate([excess_1O - half_O, excess_1O + half_O]))
    return HalfLife(_finite(half_life(offsets, value_1O)[0]), _finite(low), _finite(high), above_chance=True)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
