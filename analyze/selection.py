"""Choose how strongly a probe is regularised: by what it reads of training utterances it was not fitted on.

Shape suffixes: N rows, K columns of a target, S strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from analyze.fitting import PATHS, Fit, Prepared, Probe, prepare, read, solve
from analyze.moments import Floats, Labels, Target, Values, Wanted
from analyze.states import States


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """Probes of a strength that cross-validation chose."""

    probes: tuple[Probe, ...]
    """Of each target, fitted to all training rows."""
    strength: float
    """The strength, chosen for the first target."""
    held_out_NK: NDArray[np.float32]
    """What the first target's probes say of the rows they had left out; NaN for rows in no fold."""


def fit_validated(
    states: States,
    train_N: NDArray[np.bool_],
    held_out: Sequence[NDArray[np.int64]],
    targets: Sequence[Wanted],
    kind: str,
    strength: float | None,
    solver: str,
) -> Validated:
    """Fit a probe of every target to the training rows, all as strongly regularised as suits the first.

    Args:
        held_out: the folds of the training rows, each ascending.
        strength: the only one to try; None for the path of the kind.
    """
    left_N = [train_N.copy() for _ in held_out]
    for mine_N, rows in zip(left_N, held_out, strict=True):
        mine_N[rows] = False
    fits = [Fit(train_N, target) for target in targets] + [Fit(mine_N, targets[0]) for mine_N in left_N]
    prepared, fold_fits = prepare(states, fits), range(len(targets), len(fits))
    chosen, held_out_NK = _held_out(prepared, fold_fits, held_out, kind, strength, solver)
    probes = solve(prepared, [(index, chosen) for index in range(len(targets))], kind, solver)
    return Validated(tuple(probes), chosen, held_out_NK)


def choose_strength(
    prepared: Prepared,
    fold_fits: Sequence[int],
    held_out: Sequence[NDArray[np.int64]],
    kind: str,
    strength: float | None,
    solver: str,
) -> tuple[float, NDArray[np.bool_]]:
    """The strength with the least log loss on held-out rows; the highest accuracy for probes that only rank.

    Args:
        fold_fits: positions in `prepared.fits` of the fits that leave out a fold each; all of one target of classes.
        held_out: the rows each of them leaves out, ascending.
        strength: the only one to try; None for the path of the kind.

    Returns:
        The strength, and for every row whether the probe that had left it out was right about it; False for rows in no fold.
    """
    target = prepared.fits[fold_fits[0]].target
    assert isinstance(target, Target), "only of a class a probe is right or wrong"
    chosen, said_NK = _held_out(prepared, fold_fits, held_out, kind, strength, solver)
    right_N = np.zeros(len(said_NK), np.bool_)
    for rows in held_out:
        right_N[rows] = said_NK[rows].argmax(axis=1) == target.code_N[rows]
    return chosen, right_N


def _held_out(
    prepared: Prepared,
    fold_fits: Sequence[int],
    held_out: Sequence[NDArray[np.int64]],
    kind: str,
    strength: float | None,
    solver: str,
) -> tuple[float, NDArray[np.float32]]:
    """The strength with the least loss on held-out rows, and what its probes say of them (N, K); NaN for rows in no fold."""
    target = prepared.fits[fold_fits[0]].target
    path = PATHS[kind] if strength is None else (strength,)
    probes = solve(prepared, [(fit, each) for each in path for fit in fold_fits], kind, solver)
    rows_of = list(held_out) * len(path)
    said = read(prepared.states, list(zip(probes, rows_of, strict=True)))
    n_rows, n_folds = prepared.states.n_rows, len(held_out)
    weight_N = np.ones(n_rows) if prepared.weight_N is None else prepared.weight_N
    loss_S = np.zeros(len(path))
    for index, (probe, rows, scores) in enumerate(zip(probes, rows_of, said, strict=True)):
        loss_S[index // n_folds] += weight_N[rows] @ _losses(probe, scores, target, rows)
    best = int(loss_S.argmin())
    said_NK = np.full((n_rows, target.n_classes), np.nan, np.float32)
    for rows, scores in zip(held_out, said[best * n_folds :], strict=False):
        said_NK[rows] = scores
    return path[best], said_NK


def _losses(probe: Probe, scores: NDArray[np.float32], target: Wanted, rows: NDArray[np.int64]) -> Floats:
    """Of each row: the squared error of numbers, the log loss of what gives probabilities, and of margins what they are fitted
    to or judged by, the squared error for labels and 1 for a wrong class."""
    if isinstance(target, Values):
        return np.asarray((scores[:, 0] - target.value_N[rows]) ** 2)
    if isinstance(target, Labels):
        sign_NK = np.where(target.has_NK[rows], 1.0, -1.0)
        loss_NK = np.logaddexp(0, -sign_NK * scores) if probe.gives == "log-odds" else (scores - sign_NK) ** 2
        return np.asarray(loss_NK.sum(axis=1))
    truth = target.code_N[rows]
    if probe.gives == "logits":
        log_share_NK = log_softmax(scores.astype(np.float64), axis=1)
        return np.asarray(-log_share_NK[np.arange(len(truth)), truth])
    return np.asarray(scores.argmax(axis=1) != truth, np.float64)
