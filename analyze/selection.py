"""Choose how strongly a probe is regularised: by what it reads of training utterances it was not fitted on.

Shape suffixes: N rows, S strengths.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from analyze.fitting import PATHS, Prepared, Probe, read, solve
from analyze.moments import Target


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
        fold_fits: positions in `prepared.fits` of the fits that leave out a fold each; all of one target.
        held_out: the rows each of them leaves out, ascending.
        strength: the only one to try; None for the path of the kind.

    Returns:
        The strength, and for every row whether the probe that had left it out was right about it; False for rows in no fold.
    """
    target = prepared.fits[fold_fits[0]].target
    assert isinstance(target, Target), "classes are chosen by log loss or accuracy"
    path = PATHS[kind] if strength is None else (strength,)
    probes = solve(prepared, [(fit, each) for each in path for fit in fold_fits], kind, solver)
    rows_of = list(held_out) * len(path)
    said = read(prepared.states, list(zip(probes, rows_of, strict=True)))
    n_rows = prepared.states.n_rows
    weight_N = np.ones(n_rows) if prepared.weight_N is None else prepared.weight_N
    loss_S, right_SN = np.zeros(len(path)), np.zeros((len(path), n_rows), np.bool_)
    for index, (probe, rows, scores) in enumerate(zip(probes, rows_of, said, strict=True)):
        place, truth = index // len(held_out), target.code_N[rows]
        right_SN[place, rows] = scores.argmax(axis=1) == truth
        loss_S[place] += weight_N[rows] @ _losses(probe, scores, truth)
    best = int(loss_S.argmin())
    return path[best], right_SN[best]


def _losses(probe: Probe, scores: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    if probe.gives == "logits":
        log_share_NK = log_softmax(scores.astype(np.float64), axis=1)
        loss_N: NDArray[np.float64] = -log_share_NK[np.arange(len(truth)), truth]
        return loss_N
    wrong_N: NDArray[np.bool_] = scores.argmax(axis=1) != truth
    return wrong_N.astype(np.float64)
