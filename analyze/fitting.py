"""Fit any kind of probe to a layer: which rows, which labels, how strongly regularised; and read states with it.

What all kinds share is here: the moments of a layer are gathered once for everything that will be fitted to it, and a
pass that reads states serves many probes. What a kind does is in its own module. scikit-learn's solvers stand beside
ours, as the oracle of the tests and for whoever wants them.

Shape suffixes: N rows, B rows of a block, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from analyze.linear import LinearProbe, difference, discriminant, ridge, standardise
from analyze.logistic import Problem, fit_logistic
from analyze.mlp import MlpProbe, MlpProblem, fit_mlp
from analyze.moments import Floats, Moments, Target, Values, Wanted, gather
from analyze.states import States

PATHS: dict[str, tuple[float, ...]] = {
    "linear": (0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 0.8, 0.95),
    "ridge": (1.0, 10.0, 100.0, 1e3, 1e4, 1e5),
    "difference": (0.0,),
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "mlp": (1.0,),
}
"""The strengths that cross-validation chooses from: shrinkage, alpha, nothing, C, epochs."""
KINDS = tuple(PATHS)
"""Kinds of probe."""
SOLVERS = ("affectome", "scikit-learn")
"""Who fits them."""

Probe = LinearProbe | MlpProbe


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What one probe is fitted to."""

    rows_N: NDArray[np.bool_]
    """The rows."""
    target: Wanted
    """Their classes, or values."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A layer and what will be fitted to it."""

    states: States
    """The layer."""
    fits: tuple[Fit, ...]
    """What to fit."""
    moments: tuple[Moments, ...]
    """Of each fit."""
    weight_N: Floats | None
    """How much each row counts; None for 1 each."""


def prepare(states: States, fits: Sequence[Fit], weight_N: Floats | None = None) -> Prepared:
    """Gather the moments of all fits in one pass."""
    row_sets = list({id(fit.rows_N): fit.rows_N for fit in fits}.values())
    targets = list({id(fit.target): fit.target for fit in fits}.values())
    found = gather(states, row_sets, targets, weight_N)
    set_of = {id(rows_N): index for index, rows_N in enumerate(row_sets)}
    target_of = {id(target): index for index, target in enumerate(targets)}
    moments = tuple(found[set_of[id(fit.rows_N)]][target_of[id(fit.target)]] for fit in fits)
    return Prepared(states, tuple(fits), moments, weight_N)


def check_kind(kind: str, solver: str = SOLVERS[0]) -> None:
    """Make sure that there is such a probe.

    Raises:
        ValueError: there is not; the message names the choices.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no probe {kind!r}; choose from {', '.join(KINDS)}")
    if solver not in SOLVERS:
        raise ValueError(f"there is no solver {solver!r}; choose from {', '.join(SOLVERS)}")
    if solver == "scikit-learn" and kind in ("difference", "mlp"):
        raise ValueError(f"scikit-learn does not fit {kind!r} probes; choose from linear, ridge, logistic, or solver affectome")


def solve(prepared: Prepared, wanted: Sequence[tuple[int, float]], kind: str, solver: str = SOLVERS[0]) -> list[Probe]:
    """Fit probes.

    Args:
        wanted: positions in `prepared.fits`, each with a strength.
        kind: one of KINDS.
        solver: one of SOLVERS.

    Returns:
        For each wanted one a probe of raw states.
    """
    if solver == "scikit-learn":
        return [_scikit_learn(prepared, index, strength, kind) for index, strength in wanted]
    around = _together(prepared, wanted, kind) if kind in ("logistic", "mlp") else _one_by_one(prepared, wanted, kind)
    return [probe.around(-prepared.states.origin_D) for probe in around]


def read(states: States, readings: Sequence[tuple[Probe, NDArray[np.int64]]]) -> list[NDArray[np.float32]]:
    """What probes say of some rows, all in one pass.

    Args:
        readings: each a probe and the rows, ascending, that it reads.

    Returns:
        For each its scores, (rows, K).
    """
    said = [np.empty((len(rows), _n_columns(probe)), np.float32) for probe, rows in readings]
    of_rows: dict[int, list[int]] = {}
    for index, (_, rows) in enumerate(readings):
        of_rows.setdefault(id(rows), []).append(index)
    stacks = [
        (readings[mine[0]][1], mine, _Stack([readings[index][0].around(states.origin_D) for index in mine], states.width))
        for mine in of_rows.values()
    ]
    for block, x_BD in states.blocks():
        for rows, mine, stack in stacks:
            begin, end = np.searchsorted(rows, (block.start, block.stop))
            if begin < end:
                for index, scores in zip(mine, stack.scores(x_BD[rows[begin:end] - block.start]), strict=True):
                    said[index][begin:end] = scores
    return said


def read_probabilities(states: States, readings: Sequence[tuple[Probe, NDArray[np.int64]]]) -> list[Floats]:
    """As `read`, with logits as probabilities; margins and values as they are."""
    return [
        softmax(scores.astype(np.float64), axis=1) if probe.gives == "logits" else scores.astype(np.float64)
        for (probe, _), scores in zip(readings, read(states, readings), strict=True)
    ]


class _Stack:
    """Probes that read the same rows: the linear ones as one matrix product."""

    def __init__(self, probes: Sequence[Probe], width: int) -> None:
        self._probes = probes
        linear = [probe for probe in probes if isinstance(probe, LinearProbe)]
        self._weight_DC = np.concatenate([np.zeros((width, 0)), *(probe.weight_DK for probe in linear)], axis=1).astype(
            np.float32
        )
        self._bias_C = np.concatenate([np.zeros(0), *(probe.bias_K for probe in linear)]).astype(np.float32)

    def scores(self, x_BD: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        together_BC, begin = x_BD @ self._weight_DC + self._bias_C, 0
        for probe in self._probes:
            if isinstance(probe, LinearProbe):
                yield together_BC[:, begin : begin + _n_columns(probe)]
                begin += _n_columns(probe)
            else:
                yield np.maximum(x_BD @ probe.weight_DH + probe.bias_H, 0) @ probe.out_HK + probe.out_K


def _n_columns(probe: Probe) -> int:
    return len(probe.bias_K) if isinstance(probe, LinearProbe) else len(probe.out_K)


def _one_by_one(prepared: Prepared, wanted: Sequence[tuple[int, float]], kind: str) -> list[LinearProbe]:
    return [_closed_form(prepared.moments[index], prepared.fits[index].target, strength, kind) for index, strength in wanted]


def _closed_form(moments: Moments, target: Wanted, strength: float, kind: str) -> LinearProbe:
    if isinstance(target, Values) or kind == "ridge":
        return ridge(moments, strength, "values" if isinstance(target, Values) else "margins")
    return discriminant(moments, strength) if kind == "linear" else difference(moments)


def _together(prepared: Prepared, wanted: Sequence[tuple[int, float]], kind: str) -> list[Probe]:
    """Those of as many classes side by side."""
    found: dict[int, Probe] = {}
    for n_classes in sorted({prepared.fits[index].target.n_classes for index, _ in wanted}):
        places = [place for place, (index, _) in enumerate(wanted) if prepared.fits[index].target.n_classes == n_classes]
        chosen = [wanted[place] for place in places]
        probes = _logistic(prepared, chosen) if kind == "logistic" else _mlp(prepared, chosen)
        found |= dict(zip(places, probes, strict=True))
    return [found[place] for place in range(len(wanted))]


def _logistic(prepared: Prepared, wanted: Sequence[tuple[int, float]]) -> Sequence[Probe]:
    problems = []
    for index, c in wanted:
        fit, moments = prepared.fits[index], prepared.moments[index]
        assert isinstance(fit.target, Target), "values are fitted by ridge"
        problems.append(Problem(fit.rows_N, fit.target, standardise(moments), moments.weight, c))
    return fit_logistic(prepared.states, problems, prepared.weight_N)


def _mlp(prepared: Prepared, wanted: Sequence[tuple[int, float]]) -> Sequence[Probe]:
    problems = []
    (epochs,) = {int(strength) for _, strength in wanted}
    for index, _ in wanted:
        fit = prepared.fits[index]
        assert isinstance(fit.target, Target), "values are fitted by ridge"
        problems.append(MlpProblem(fit.rows_N, fit.target, standardise(prepared.moments[index])))
    return fit_mlp(prepared.states, problems, epochs, prepared.weight_N)


def _scikit_learn(prepared: Prepared, index: int, strength: float, kind: str) -> LinearProbe:
    fit, unit = prepared.fits[index], standardise(prepared.moments[index])
    x_MD = np.concatenate([block_BD[fit.rows_N[rows]] for rows, block_BD in prepared.states.blocks()]).astype(np.float64)
    x_MD = (x_MD - unit.mean_D) / unit.scale_D
    weights = {} if prepared.weight_N is None else {"sample_weight": prepared.weight_N[fit.rows_N]}
    if isinstance(fit.target, Values):
        model = Ridge(alpha=strength).fit(x_MD, fit.target.value_N[fit.rows_N], **weights)
        weight_DK, bias_K, gives = model.coef_[:, None], np.array([model.intercept_]), "values"
        return _raw(weight_DK, bias_K, gives, unit.mean_D + prepared.states.origin_D, unit.scale_D)
    code_M = fit.target.code_N[fit.rows_N]
    if kind == "linear":
        shares = unit.y_K if prepared.weight_N is not None else None
        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=strength, priors=shares).fit(x_MD, code_M)
    elif kind == "ridge":
        classifier = RidgeClassifier(alpha=strength).fit(x_MD, code_M, **weights)
    else:
        classifier = LogisticRegression(C=strength, max_iter=10_000, tol=1e-6).fit(x_MD, code_M, **weights)
    weight_DK, bias_K = np.zeros((len(unit.mean_D), fit.target.n_classes)), np.full(fit.target.n_classes, -np.inf)
    if len(classifier.classes_) == 2:  # one vector: of the second class against the first
        weight_DK[:, classifier.classes_[1]] = np.ravel(classifier.coef_)
        bias_K[classifier.classes_] = 0.0, np.ravel(classifier.intercept_)[0]
    else:
        weight_DK[:, classifier.classes_] = classifier.coef_.T
        bias_K[classifier.classes_] = classifier.intercept_
    gives = "margins" if kind == "ridge" else "logits"
    return _raw(weight_DK, bias_K, gives, unit.mean_D + prepared.states.origin_D, unit.scale_D)


def _raw(weight_DK: Floats, bias_K: Floats, gives: str, mean_D: Floats, scale_D: Floats) -> LinearProbe:
    raw_DK = weight_DK / scale_D[:, None]
    return LinearProbe(raw_DK, bias_K - mean_D @ raw_DK, gives)
