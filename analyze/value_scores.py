"""Scores of predicted numbers, such as valence, each with a 95% interval over situations.

Shape suffixes: N examples, G situations, S resamples, C sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.scores import N_RESAMPLES, Interval, Measure, numbered, percentiles

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ValueScores:
    """How well predicted numbers fit the true ones."""

    r2: Interval
    """Share of the variance explained, against the mean of the scored examples."""
    correlation: Interval
    """Pearson's r."""


def score_values(
    truth_N: NDArray[np.floating], predicted_N: NDArray[np.floating], groups_N: NDArray[np.int64] | None = None
) -> ValueScores:
    """Score predicted numbers; the intervals resample situations, and only resamples in which the truth varies count.

    Args:
        truth_N: true number of each example; they vary.
        predicted_N: predicted number of each example.
        groups_N: number of each example's situation; each its own without it.
    """
    situation_N = numbered(groups_N, len(truth_N))
    t_N, p_N = truth_N - truth_N.mean(), _centred(predicted_N)
    parts_NC = np.stack([np.ones(len(t_N)), t_N, p_N, t_N**2, p_N**2, t_N * p_N, (truth_N - predicted_N) ** 2], axis=1)
    parts_GC = np.zeros((int(situation_N.max()) + 1, parts_NC.shape[1]))
    np.add.at(parts_GC, situation_N, parts_NC)
    generator = np.random.default_rng(0)
    drawn_SC = np.stack([parts_GC[generator.integers(0, len(parts_GC), len(parts_GC))].sum(axis=0) for _ in range(N_RESAMPLES)])
    varies_S = drawn_SC[:, 3] - drawn_SC[:, 1] ** 2 / drawn_SC[:, 0] > _ROUNDING * parts_GC[:, 3].sum()
    whole, resampled = _fit_of_values(parts_GC.sum(axis=0)[None]), _fit_of_values(drawn_SC[varies_S])
    return ValueScores(*(percentiles(float(one[0]), many) for one, many in zip(whole, resampled, strict=True)))


def measure_values(truth_N: NDArray[np.floating], predicted_N: NDArray[np.floating]) -> tuple[Measure, Measure]:
    """R2 and Pearson's r of predicted numbers, before intervals are made."""
    t_N, p_N, error_N = truth_N - truth_N.mean(), _centred(predicted_N), truth_N - predicted_N
    spread_t, spread_p = float(np.mean(t_N**2)), float(np.mean(p_N**2))
    left = float(np.mean(error_N**2)) / spread_t
    r2 = Measure(1 - left, (left * t_N**2 - error_N**2) / spread_t)
    if spread_p == 0:
        return r2, Measure(0.0, np.zeros(len(t_N)))
    t_N, p_N = t_N / np.sqrt(spread_t), p_N / np.sqrt(spread_p)
    r = float(np.mean(t_N * p_N))
    return r2, Measure(r, t_N * p_N - r * (t_N**2 + p_N**2) / 2)


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
