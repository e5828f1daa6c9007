"""Fit any kind of probe to a layer: which rows, which labels, how strongly regularised; and read states with it.

What all kinds share is here: the moments of a layer are gathered once for everything that will be fitted to it, and a
pass that reads states serves many probes. What a kind does is in its own module. scikit-learn's solvers stand beside
ours, as the oracle of the tests and for whoever wants them.

Shape suffixes: N rows, B rows of a block, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from analyze.linear import LinearProbe, Spectrum, difference, discriminant, discriminants, ridge, spectrum, standardise
from analyze.logistic import Problem, fit_logistic
from analyze.mlp import MlpProbe, MlpProblem, fit_mlp
from analyze.moments import Floats, Labels, Moments, Target, Values, Wanted, gather
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
_MOST_SIDE_BY_SIDE = 128  # of many labels: each takes memory by row and by width


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What one probe is fitted to."""

    rows_N: NDArray[np.bool_]
    """The rows."""
    target: Wanted
    """Their classes, values or labels."""


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
    """As `read`, with logits and log-odds as probabilities; margins and values as they are."""
    return [_probabilities(probe, scores) for (probe, _), scores in zip(readings, read(states, readings), strict=True)]


def _probabilities(probe: Probe, scores_NK: NDArray[np.float32]) -> Floats:
    exact_NK: Floats = scores_NK.astype(np.float64)
    if probe.gives == "logits":
        exact_NK = softmax(exact_NK, axis=1)
    elif probe.gives == "log-odds":
        exact_NK = expit(exact_NK)
    return exact_NK


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
    """Those of the same rows one after another: discriminants of labels share a spectrum, and one at a time is held."""
    found: dict[int, LinearProbe] = {}
    shared: tuple[int, Spectrum] | None = None
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place][0]):
        index, strength = wanted[place]
        fit, moments = prepared.fits[index], prepared.moments[index]
        if kind == "linear" and isinstance(fit.target, Labels):
            if shared is None or shared[0] != id(fit.rows_N):
                shared = id(fit.rows_N), spectrum(moments)
            found[place] = discriminants(moments, shared[1], strength)
        else:
            found[place] = _closed_form(moments, fit.target, strength, kind)
    return [found[place] for place in range(len(wanted))]


def _closed_form(moments: Moments, target: Wanted, strength: float, kind: str) -> LinearProbe:
    if isinstance(target, Values) or kind == "ridge":
        return ridge(moments, strength, "values" if isinstance(target, Values) else "margins")
    return discriminant(moments, strength) if kind == "linear" else difference(moments)


def _together(prepared: Prepared, wanted: Sequence[tuple[int, float]], kind: str) -> list[Probe]:
    """Those of as many classes side by side; labels are each of two."""
    sizes = [_n_of_one(prepared.fits[index].target) for index, _ in wanted]
    found: dict[int, Probe] = {}
    for n_classes in sorted(set(sizes)):
        places = [place for place, size in enumerate(sizes) if size == n_classes]
        chosen = [wanted[place] for place in places]
        probes = _logistic(prepared, chosen) if kind == "logistic" else _mlp(prepared, chosen)
        found |= dict(zip(places, probes, strict=True))
    return [found[place] for place in range(len(wanted))]


def _n_of_one(target: Wanted) -> int:
    return 2 if isinstance(target, Labels) else target.n_classes


def _logistic(prepared: Prepared, wanted: Sequence[tuple[int, float]]) -> Sequence[Probe]:
    problems = []
    for index, c in wanted:
        fit, moments = prepared.fits[index], prepared.moments[index]
        unit = standardise(moments)
        assert not isinstance(fit.target, Values), "values are fitted by ridge"
        problems += [Problem(fit.rows_N, target, unit, moments.weight, c) for target in _alone(fit.target)]
    parts = [problems[begin : begin + _MOST_SIDE_BY_SIDE] for begin in range(0, len(problems), _MOST_SIDE_BY_SIDE)]
    solved = iter([probe for part in parts for probe in fit_logistic(prepared.states, part, prepared.weight_N)])
    targets = [prepared.fits[index].target for index, _ in wanted]
    return [
        _side_by_side([next(solved) for _ in _alone(target)]) if isinstance(target, Labels) else next(solved)
        for target in targets
    ]


def _alone(target: Target | Labels) -> list[Target]:
    return [target.alone(label) for label in range(target.n_classes)] if isinstance(target, Labels) else [target]


def _side_by_side(probes: Sequence[LinearProbe]) -> LinearProbe:
    """What probes of a label's absence and presence say of presence, a column for each."""
    gives = "log-odds" if probes[0].gives == "logits" else probes[0].gives
    return LinearProbe(
        np.stack([probe.weight_DK[:, 1] - probe.weight_DK[:, 0] for probe in probes], axis=1),
        np.array([probe.bias_K[1] - probe.bias_K[0] for probe in probes]),
        gives,
    )


def _mlp(prepared: Prepared, wanted: Sequence[tuple[int, float]]) -> Sequence[Probe]:
    problems = []
    (epochs,) = {int(strength) for _, strength in wanted}
    for index, _ in wanted:
        fit = prepared.fits[index]
        assert isinstance(fit.target, Target), "it tells classes apart"
        problems.append(MlpProblem(fit.rows_N, fit.target, standardise(prepared.moments[index])))
    return fit_mlp(prepared.states, problems, epochs, prepared.weight_N)


def _scikit_learn(prepared: Prepared, index: int, strength: float, kind: str) -> LinearProbe:
    fit = prepared.fits[index]
    if isinstance(fit.target, Labels):
        alone = [Fit(fit.rows_N, target) for target in _alone(fit.target)]
        each = replace(prepared, fits=tuple(alone), moments=(prepared.moments[index],) * len(alone))
        return _side_by_side([_scikit_learn(each, label, strength, kind) for label in range(len(alone))])
    unit = standardise(prepared.moments[index])
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
