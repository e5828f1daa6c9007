"""A score against token offset: curves with intervals, how high they stand above chance, and where that height has halved.

Utterances may be absent from some offsets on, as those whose reply has ended; each point is scored on who is there. Half-life
and area resample situations, the same resample at every offset, because one utterance is read at all of them.

Shape suffixes: N utterances, O offsets, K emotions, S resamples, G situations, P of an emotion, Q of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.examples import SEED, Examples
from analyze.moments import Floats
from analyze.scores import Interval, area_intervals

CHANCE = 0.5
"""What one-vs-rest AUROC scores without signal."""
ALL_EMOTIONS = "all"
"""Name of the curve that averages over emotions."""

_N_RESAMPLES = 500


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
    reader: str, probability_NOK: Floats, present_NO: NDArray[np.bool_], examples: Examples, offsets: Sequence[int]
) -> list[Curve]:
    """The curves of one reader: each emotion's, then that of their mean.

    Args:
        probability_NOK: class probabilities; anything where an utterance is absent.
        present_NO: which utterances are there; at every offset some of each emotion.
        examples: the utterances.
    """
    truth_N, emotions = examples.truth, examples.classes
    points = [
        area_intervals(truth_N[here_N], probability_NOK[here_N, index], examples.groups[here_N])
        for index, here_N in enumerate(present_NO.T)
    ]
    area_SOK = _resampled_areas(probability_NOK, present_NO, truth_N, examples.groups)
    curves = []
    for label, emotion in enumerate((*emotions, ALL_EMOTIONS)):
        whole = label == len(emotions)
        auroc = tuple(mean if whole else each[label] for mean, each in points)
        area_SO = area_SOK.mean(axis=2) if whole else area_SOK[:, :, label]
        curves.append(
            Curve(emotion, reader, auroc, _area(offsets, auroc, area_SO), _half_life_interval(offsets, auroc, area_SO))
        )
    return curves


def half_life(offsets: Sequence[int], score_SO: Floats) -> Floats:
    """First offset at which score above chance is half of what it was at the first offset, linear between offsets.

    Returns:
        For each resample the half-life in tokens; infinity where the score never halved, NaN where it began at or below chance.
    """
    above_SO = score_SO - CHANCE
    excess_SO = above_SO - above_SO[:, :1] / 2
    result_S = np.full(len(score_SO), np.inf)
    for index in range(len(offsets) - 1, 0, -1):
        before_S, after_S = excess_SO[:, index - 1], excess_SO[:, index]
        crosses_S = (before_S > 0) & (after_S <= 0)
        share_S = np.divide(before_S, before_S - after_S, out=np.zeros_like(before_S), where=crosses_S)
        result_S = np.where(crosses_S, offsets[index - 1] + share_S * (offsets[index] - offsets[index - 1]), result_S)
    return np.where(above_SO[:, 0] > 0, result_S, np.nan)


def mean_height(offsets: Sequence[int], score_SO: Floats) -> Floats:
    """Mean height above chance between the first offset and the last, by trapezoids over tokens; (S,)."""
    if len(offsets) == 1:
        return score_SO[:, 0] - CHANCE
    mean_S: Floats = np.asarray(np.trapezoid(score_SO - CHANCE, offsets, axis=1)) / (offsets[-1] - offsets[0])
    return mean_S


def _area(offsets: Sequence[int], auroc: Sequence[Interval], area_SO: Floats) -> Interval:
    value = float(mean_height(offsets, np.array([[point.value for point in auroc]]))[0])
    low, high = np.percentile(mean_height(offsets, area_SO), (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _half_life_interval(offsets: Sequence[int], auroc: Sequence[Interval], area_SO: Floats) -> HalfLife:
    if auroc[0].low <= CHANCE:
        return HalfLife(None, None, None, above_chance=False)
    estimate = half_life(offsets, np.array([[point.value for point in auroc]]))[0]
    resampled_S = np.sort(np.nan_to_num(half_life(offsets, area_SO), nan=0.0, posinf=np.inf))
    low, high = resampled_S[[int(0.025 * _N_RESAMPLES), int(0.975 * _N_RESAMPLES)]]
    return HalfLife(_finite(estimate), _finite(low), _finite(high), above_chance=True)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _resampled_areas(
    probability_NOK: Floats, present_NO: NDArray[np.bool_], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64]
) -> Floats:
    """One-vs-rest AUROC (S, O, K) over bootstrap resamples of situations, the same resample at every offset."""
    _, n_offsets, n_emotions = probability_NOK.shape
    situation_N = np.unique(groups_N, return_inverse=True)[1]
    n_situations = int(situation_N.max()) + 1
    generator = np.random.default_rng(SEED)
    drawn_SG = generator.multinomial(n_situations, np.full(n_situations, 1 / n_situations), size=_N_RESAMPLES)
    weight_SN = drawn_SG[:, situation_N].astype(np.float64)
    area_SOK = np.empty((_N_RESAMPLES, n_offsets, n_emotions))
    for index, label in np.ndindex(n_offsets, n_emotions):
        positive_N, negative_N = present_NO[:, index] & (truth_N == label), present_NO[:, index] & (truth_N != label)
        weight_SP, weight_SQ = weight_SN[:, positive_N], weight_SN[:, negative_N]
        value_P, value_Q = probability_NOK[positive_N, index, label], probability_NOK[negative_N, index, label]
        difference_PQ = value_P[:, None] - value_Q[None, :]
        wins_PQ = (difference_PQ > 0) + 0.5 * (difference_PQ == 0)
        pairs_S = weight_SP.sum(axis=1) * weight_SQ.sum(axis=1)
        wins_S = np.einsum("sp,pq,sq->s", weight_SP, wins_PQ, weight_SQ, optimize=True)
        area_SOK[:, index, label] = np.where(pairs_S > 0, wins_S / np.maximum(pairs_S, 1), CHANCE)  # nobody was drawn
    return area_SOK
