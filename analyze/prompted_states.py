"""How a condition, such as a system prompt, moves hidden states, and whether an emotion stays readable in them: of arrays.

The same utterances are there under every condition, so everything is paired by utterance. Probes are discriminant analyses
with Ledoit and Wolf's shrinkage (2004) of the within-class covariance: samples are small, and it needs no validation. Every
utterance is read by probes of the folds it is not in, under whatever condition it is read.

How far states move is a length, and an estimated length is never 0: the mean of noise has one. So products of different
situations alone are added up, which leaves 0 on average where nothing moved. Its interval leaves out each situation in turn
(jackknife); a bootstrap was rejected, since situations that it draws twice bring the noise back.

Shape suffixes: N utterances, K classes, D width, G situations, S samples of them, P permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.covariance import ledoit_wolf_shrinkage

from analyze.examples import FEWEST_SITUATIONS, SEED, Fold, folds
from analyze.fitting import Fit, Probe, prepare, read_probabilities, solve
from analyze.moments import Floats, Target
from analyze.scores import Interval, area_interval, mean_interval, share_interval
from analyze.states import states_in

N_PERMUTATIONS = 999
"""Sign flips of the test that states moved at all."""

_N_FOLDS = 5
_NOISE = 1e-12  # share of the second moment below which a variance is rounding


@dataclass(frozen=True, slots=True)
class Reading:
    """What probes read of one condition's states. The first condition is what the others are held against."""

    condition: str
    """Which."""
    site: str
    """Where the states were read."""
    layer: int
    """Which layer."""
    accuracy: Interval
    """Of the condition's own probe, on utterances it was not fitted to."""
    auroc: Interval
    """Of the same: mean over labels of the one-vs-rest area under the ROC curve."""
    change: Interval
    """Accuracy less that of the first condition's own probe on its own states; paired by utterance."""
    first_accuracy: Interval
    """Of the first condition's probe on this condition's states, on utterances it was not fitted to."""
    first_auroc: Interval
    """Of the same."""
    loss: Interval
    """Accuracy of the condition's own probe less that of the first condition's; paired by utterance."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How states move from one condition to another."""

    start: str
    """The condition moved from."""
    end: str
    """The condition moved to."""
    site: str
    """Where the states were read."""
    layer: int
    """Which layer."""
    distance: Interval | None
    """Mean displacement of a feature, in standard deviations of that feature over utterances under the first condition; the
    root of the mean square over features. None where states do not vary there."""
    p_value: float | None
    """Share of sign flips of whole situations that displace states as far: 1/1000 is the least. None as above."""
    moves: tuple[Interval, ...]
    """For each label, by how much the first condition's probe changes its mean probability; paired by utterance."""


@dataclass(frozen=True, slots=True)
class Along:
    """What a probe reads at one place of the replies."""

    condition: str
    """Under which condition."""
    layer: int
    """Which layer."""
    offset: int
    """Tokens from the prompt's last token."""
    n_utterances: int
    """How many replies are that long."""
    auroc: Interval | None
    """Of a probe fitted there, on utterances it was not fitted to; None where a label has fewer than five situations left."""


def compare(
    names: Sequence[str],
    hidden: Sequence[NDArray[np.float32]],
    truth_N: NDArray[np.int64],
    groups_N: NDArray[np.int64],
    site: str,
    layer: int,
) -> tuple[list[Reading], list[Shift]]:
    """Read and compare the states of the same utterances under several conditions.

    Args:
        names: of the conditions; the first is what the others are held against.
        hidden: states (N, D) under each.
        truth_N: each utterance's label, from 0; every label is there in two situations or more.
        groups_N: number of each utterance's situation.
        site, layer: for the record.

    Returns:
        A reading of every condition, and the shift between each two, in order.
    """
    splits = folds(truth_N, groups_N, _N_FOLDS)
    probes = [_fitted(hidden_ND, truth_N, splits) for hidden_ND in hidden]
    own = [_read(each, hidden_ND, splits) for each, hidden_ND in zip(probes, hidden, strict=True)]
    by_first = [_read(probes[0], hidden_ND, splits) for hidden_ND in hidden]
    first_right_N = own[0].argmax(axis=1) == truth_N
    readings = []
    for name, own_NK, first_NK in zip(names, own, by_first, strict=True):
        right_N, transferred_N = own_NK.argmax(axis=1) == truth_N, first_NK.argmax(axis=1) == truth_N
        readings.append(
            Reading(
                condition=name,
                site=site,
                layer=layer,
                accuracy=share_interval(right_N, groups_N),
                auroc=area_interval(truth_N, own_NK, groups_N, out_of_fold=True),
                change=mean_interval(right_N.astype(np.float64) - first_right_N, groups_N),
                first_accuracy=share_interval(transferred_N, groups_N),
                first_auroc=area_interval(truth_N, first_NK, groups_N, out_of_fold=True),
                loss=mean_interval(right_N.astype(np.float64) - transferred_N, groups_N),
            )
        )
    shifts = []
    for start in range(len(names)):
        for end in range(start + 1, len(names)):
            distance, p_value = displacement(hidden[start], hidden[end], hidden[0], groups_N)
            moves = paired_changes(by_first[start], by_first[end], groups_N)
            shifts.append(Shift(names[start], names[end], site, layer, distance, p_value, moves))
    return readings, shifts


def read_along(
    hidden_ND: NDArray[np.float32], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64], n_classes: int
) -> Interval | None:
    """AUROC of a probe on utterances it was not fitted to; None where a label has too few situations among them."""
    if any(len(np.unique(groups_N[truth_N == label])) < FEWEST_SITUATIONS for label in range(n_classes)):
        return None
    splits = folds(truth_N, groups_N, _N_FOLDS)
    return area_interval(truth_N, _read(_fitted(hidden_ND, truth_N, splits), hidden_ND, splits), groups_N, out_of_fold=True)


def paired_changes(start_NK: Floats, end_NK: Floats, groups_N: NDArray[np.int64]) -> tuple[Interval, ...]:
    """By how much each column's mean changes, with intervals over situations."""
    return tuple(mean_interval(change_N, groups_N) for change_N in (end_NK - start_NK).T)


def displacement(
    start_ND: NDArray[np.float32], end_ND: NDArray[np.float32], reference_ND: NDArray[np.float32], groups_N: NDArray[np.int64]
) -> tuple[Interval | None, float | None]:
    """How far states move on average, in standard deviations of the reference, and the p-value of no move at all.

    Args:
        start_ND, end_ND: states of the same utterances, before and after.
        reference_ND: states whose spread over utterances is the unit.

    Returns:
        The root mean square over features, and the share of sign flips of whole situations that give as much; None for both
        where no feature of the reference varies.
    """
    spread_ND = reference_ND.astype(np.float64) - reference_ND.mean(axis=0, dtype=np.float64)
    variance_D = np.square(spread_ND).mean(axis=0)
    varies_D = variance_D > _NOISE * np.square(reference_ND, dtype=np.float64).mean(axis=0)
    if not varies_D.any():
        return None, None
    unit_D = np.sqrt(variance_D[varies_D])
    change_ND = (end_ND[:, varies_D].astype(np.float64) - start_ND[:, varies_D]) / unit_D
    spread_ND = spread_ND[:, varies_D] / unit_D
    situation_N = np.unique(groups_N, return_inverse=True)[1]
    size_G = np.bincount(situation_N).astype(np.float64)
    change_GD, spread_GD, square_GD = (_sums(part, situation_N) for part in (change_ND, spread_ND, np.square(spread_ND)))
    parts = (size_G[:, None], np.square(size_G)[:, None], change_GD, np.square(change_GD), spread_GD, square_GD)
    whole = [part.sum(axis=0, keepdims=True) for part in parts]
    n_situations = len(size_G)
    square = float(_squared_distance(n_situations, *whole)[0])
    without_G = _squared_distance(n_situations - 1, *(total - part for total, part in zip(whole, parts, strict=True)))
    error = np.sqrt((n_situations - 1) / n_situations * np.square(without_G - without_G.mean()).sum())
    half = float(student.ppf(0.975, n_situations - 1) * error)
    ends = (square, square - half, square + half)
    return Interval(*(float(np.sqrt(max(0.0, end))) for end in ends)), _p_value(change_GD)


def _sums(value_ND: Floats, situation_N: NDArray[np.int64]) -> Floats:
    sums_GD = np.zeros((int(situation_N.max()) + 1, value_ND.shape[1]))
    np.add.at(sums_GD, situation_N, value_ND)
    return sums_GD


def _squared_distance(
    n_situations: int,
    size_S1: Floats,
    sizes_S1: Floats,
    change_SD: Floats,
    changes_SD: Floats,
    spread_SD: Floats,
    square_SD: Floats,
) -> Floats:
    """From sums over situations: of sizes, their squares, changes, squares of a situation's change, spread and its squares."""
    product_SD = (np.square(change_SD) - changes_SD) / (np.square(size_S1) - sizes_S1)
    variance_SD = square_SD / size_S1 - np.square(spread_SD / size_S1)
    unbiased = (n_situations - 3) / n_situations  # one over a sample's variance is too large by this where features are normal
    varies_SD = variance_SD > _NOISE  # a feature may vary through a single situation, and that one be left out
    ratio_SD = np.divide(product_SD, variance_SD, out=np.zeros_like(product_SD), where=varies_SD)
    squared_S: Floats = unbiased * ratio_SD.mean(axis=1)
    return squared_S


def _p_value(change_GD: Floats) -> float:
    product_GG = change_GD @ change_GD.T
    np.fill_diagonal(product_GG, 0)
    sign_PG = np.random.default_rng(SEED).choice((-1.0, 1.0), size=(N_PERMUTATIONS, len(product_GG)))
    flipped_P = np.einsum("pg,pg->p", sign_PG @ product_GG, sign_PG)
    observed = product_GG.sum()
    as_far = flipped_P >= observed - 1e-9 * np.abs(product_GG).sum()
    return (1 + int(as_far.sum())) / (N_PERMUTATIONS + 1)


def _fitted(hidden_ND: NDArray[np.float32], truth_N: NDArray[np.int64], splits: Sequence[Fold]) -> list[Probe]:
    """A probe for each fold, fitted to the others."""
    target = Target(truth_N, int(truth_N.max()) + 1)
    fits = [Fit(np.isin(np.arange(len(truth_N)), train), target) for train, _ in splits]
    wanted = [(fold, _shrinkage(hidden_ND[train], truth_N[train])) for fold, (train, _) in enumerate(splits)]
    return solve(prepare(states_in(hidden_ND), fits), wanted, "linear")


def _shrinkage(hidden_ND: NDArray[np.float32], truth_N: NDArray[np.int64]) -> float:
    """Ledoit and Wolf's, of what is left of standardised states when the mean of their class is taken off."""
    centred_ND = hidden_ND.astype(np.float64) - hidden_ND.mean(axis=0, dtype=np.float64)
    variance_D = np.square(centred_ND).mean(axis=0)
    varies_D = variance_D > _NOISE * np.square(hidden_ND, dtype=np.float64).mean(axis=0)
    for label in np.unique(truth_N):
        centred_ND[truth_N == label] -= centred_ND[truth_N == label].mean(axis=0)
    residual_ND = np.where(varies_D, centred_ND, 0) / np.sqrt(np.where(varies_D, variance_D, 1))
    return float(ledoit_wolf_shrinkage(residual_ND, assume_centered=True))


def _read(probes: Sequence[Probe], hidden_ND: NDArray[np.float32], splits: Sequence[Fold]) -> Floats:
    """Class probabilities (N, K), every utterance read by the probe of the fold that it is in."""
    said = read_probabilities(states_in(hidden_ND), [(probe, test) for probe, (_, test) in zip(probes, splits, strict=True)])
    probability_NK = np.empty((len(hidden_ND), said[0].shape[1]))
    for (_, test), said_MK in zip(splits, said, strict=True):
        probability_NK[test] = said_MK
    return probability_NK
