"""Directions in the space of a layer: what a kept probe reads a class along, and how the means of two conditions differ.

Shape suffixes: D width, K classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.columns import LABEL, NUMBERS, form_of, usual_kind
from analyze.linear import LinearProbe
from analyze.probes import DEFAULT, ProbeSpec
from analyze.query import Run
from analyze.saved import Made, kept_probes, load_probes
from analyze.scaling import moments
from analyze.similarity import check_one_state

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ProbeDirection:
    """A direction, and which probe it is of."""

    vector_D: Floats
    """The direction in raw states, of any length."""
    label: str | None
    """The class along which it leads; None of a probe of numbers."""
    spec: ProbeSpec
    """The probe."""


def probe_direction(
    run: Run,
    site: str,
    layer: int,
    label: str | None = None,
    *,
    column: str = LABEL,
    kind: str | None = None,
    balance: str = DEFAULT.balance,
    strength: float | None = DEFAULT.strength,
    solver: str = DEFAULT.solver,
) -> ProbeDirection:
    """The direction in raw states along which a probe that `affectome probe` kept says more and more of one of its classes.

    Of a probe whose scores are margins or log-odds, a class each, it is the class's weights; of one of numbers, the weights. A
    softmax says the same whatever is added to the weights of all classes, so of a probe with logits it is the class's weights
    less the mean of all classes': what raises this class against the others.

    Args:
        site, layer: what the probe reads.
        label: the class, or the label of lists; None for a column of numbers.
        column: the column that the probe was fitted to.
        kind, balance, strength, solver: as in ProbeSpec; a kind of None is what `affectome probe` fits when nobody says.

    Raises:
        ValueError: there is no such probe, none is kept, it has no such class, or it is an MLP, which has no direction.
    """
    check_one_state(run, site)
    form, kind = form_of(run, column), kind or usual_kind(run, column)
    if kind == "mlp":
        raise ValueError("an MLP reads no direction; choose from linear, ridge, difference, logistic")
    spec = ProbeSpec(kind, strength, balance, solver, column)
    spec.check()
    made, probe = _kept(run, site, layer, spec)
    if form == NUMBERS:
        if label not in (None, column):
            raise ValueError(f"column {column!r} holds numbers, so its probe has one direction and no class {label!r}")
        return ProbeDirection(probe.weight_DK[:, 0].copy(), None, spec)
    if label not in made.classes:
        asked = "has several classes" if label is None else f"has no class {label!r}"
        raise ValueError(f"the probe of {column!r} {asked}; choose from {', '.join(made.classes)}")
    weight_D = probe.weight_DK[:, made.classes.index(label)].copy()
    direction_D = weight_D - probe.weight_DK.mean(axis=1) if probe.gives == "logits" else weight_D
    return ProbeDirection(direction_D, label, spec)


def mean_difference(run: Run, site: str, layer: int, where: str, other: str) -> Floats:
    """From the mean state of some utterances to that of others: mean of `where` less mean of `other`, (D,).

    Args:
        where, other: SQL conditions, as in Run.utterances; an utterance may fulfil both.

    Raises:
        ValueError: as from Run.hidden; or no utterance fulfils one of the conditions.
    """
    return moments(run, site, layer, where).mean_D - moments(run, site, layer, other).mean_D


def _kept(run: Run, site: str, layer: int, spec: ProbeSpec) -> tuple[Made, LinearProbe]:
    """The probe of a layer: of several, one of the file with most layers, and of those the newest."""
    alike = [
        made for _, made in kept_probes(run) if (made.site, made.spec.kind, made.spec.column) == (site, spec.kind, spec.column)
    ]
    fitting = [made for made in alike if made.spec == spec]
    if alike and not fitting:
        choices = "; ".join(sorted({_said(made.spec) for made in alike}))
        raise ValueError(
            f"run {run.run_id} has no {_said(spec)} kept of {spec.column!r} at {site}; make it with affectome probe, or choose "
            f"from {choices}"
        )
    if not fitting:
        load_probes(run, site, run.layers_of(site), spec)  # says what to do
    layers = sorted({kept for made in fitting for kept in made.layers})
    if layer not in layers:
        raise ValueError(f"there is no {spec.kind} probe of layer {layer} of {site}; choose from {', '.join(map(str, layers))}")
    chosen = max((made for made in fitting if layer in made.layers), key=lambda made: (len(made.layers), made.made))
    made, probes = load_probes(run, site, chosen.layers, spec)
    probe = probes[layer]
    assert isinstance(probe, LinearProbe), "only an MLP is not"
    return made, probe


def _said(spec: ProbeSpec) -> str:
    """A probe in words, as its settings are called."""
    strength = "chosen" if spec.strength is None else f"{spec.strength:g}"
    return f"{spec.kind} probe (strength {strength}, balance {spec.balance}, solver {spec.solver})"
