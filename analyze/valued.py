"""A probe of a number, such as valence, arousal or dominance, on every layer: how much of it a linear reader explains.

Ridge regression in closed form, its alpha and the best layer by cross-validation inside the training split, by squared error.
Cutting numbers into classes was rejected: where to cut is arbitrary, and what lies near a cut counts as all wrong or all right.
The control is what the same probes get from shuffled numbers.

Shape suffixes: N utterances, R shuffles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.annotations import Numbers, deal_numbers, numbers
from analyze.examples import SEED
from analyze.fitting import Probe, read
from analyze.linear import LinearProbe
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats, Values
from analyze.probes import N_FOLDS, N_SHUFFLES, ProbeSpec, require_vectors
from analyze.query import Run
from analyze.scores import Interval, Measure, mean_measure, mean_over_shuffles
from analyze.selection import fit_validated
from analyze.states import states_of
from analyze.value_scores import ValueScores, measure_values, score_values

KIND = "ridge"
"""The kind of probe that numbers are read with."""


@dataclass(frozen=True, slots=True)
class ValueControl:
    """What the same probes get from shuffled numbers: the mean over shuffles, with an interval as in probes.Control."""

    r2: Interval
    """Share of the variance explained; below 0 where the mean of the test split would have been the better guess."""
    correlation: Interval
    """Pearson's r."""


@dataclass(frozen=True, slots=True)
class LayerValueScores:
    """One layer's probe."""

    layer: int
    """The layer it reads."""
    test: ValueScores
    """On the test split."""
    control: ValueControl
    """On the test split, fitted to shuffled numbers."""
    strength: float
    """The alpha used."""
    selection_r2: float
    """Share of the variance of the training split that cross-validation explains, for choosing the layer."""


@dataclass(frozen=True, slots=True)
class ValueResult:
    """Probes of a number, at one site of one run."""

    run_id: str
    """The run."""
    site: str
    """Where the states were read."""
    spec: ProbeSpec
    """Which probe, of which column."""
    n_train: int
    """Utterances fitted on."""
    n_test: int
    """Utterances scored on."""
    n_test_situations: int
    """Situations they tell; intervals are over these."""
    n_unlabelled: int
    """Utterances left out because they have no number."""
    n_other_split: int
    """Utterances left out because their `split` is neither train nor test."""
    split: str
    """How the split was made."""
    mean: float
    """Of the numbers of the training split."""
    spread: float
    """Their standard deviation."""
    layers: tuple[LayerValueScores, ...]
    """Ascending."""
    best_layer: int
    """The layer with the highest selection R2."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the single column of a probe stands for."""
        return (self.spec.column,)

    @property
    def best(self) -> LayerValueScores:
        """The scores of the best layer."""
        return next(scores for scores in self.layers if scores.layer == self.best_layer)


@dataclass(frozen=True, slots=True)
class ProbedValues:
    """Probes and what they score."""

    result: ValueResult
    """The numbers."""
    probes: tuple[Probe, ...]
    """Of each layer, of raw states."""


def probe_values(
    run: Run,
    site: str,
    layers: Sequence[int],
    spec: ProbeSpec,
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> ProbedValues:
    """Fit and score a probe of a column of numbers, on each layer.

    Args:
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: the run is not complete, has no usable numbers, or lacks the site or a layer; or there is no such probe.
    """
    check_for_values(spec)
    require_vectors(site)
    run.require_complete()
    examples = numbers(run, spec.column)
    work = _Work(run, site, spec, examples)
    done = mapper(work, layers, on_layer)
    scores = tuple(entry for entry, _ in done)
    usable, test_N = examples.usable, examples.split.test
    result = ValueResult(
        run_id=run.run_id,
        site=site,
        spec=spec,
        n_train=int((~test_N).sum()),
        n_test=int(test_N.sum()),
        n_test_situations=len(np.unique(usable.groups[test_N])),
        n_unlabelled=usable.n_unlabelled,
        n_other_split=usable.n_other_split,
        split=examples.split.made,
        mean=work.mean,
        spread=work.spread,
        layers=scores,
        best_layer=max(scores, key=lambda entry: (entry.selection_r2, -entry.layer)).layer,
    )
    return ProbedValues(result, tuple(probe for _, probe in done))


def check_for_values(spec: ProbeSpec) -> None:
    """Make sure that there is such a probe of numbers.

    Raises:
        ValueError: there is not.
    """
    spec.check()
    if spec.kind != KIND:
        raise ValueError(
            f"column {spec.column!r} holds numbers, which a {spec.kind} probe does not predict; "
            f"choose {KIND}, or leave --kind away"
        )
    if spec.balance != "none":
        raise ValueError(f"column {spec.column!r} holds numbers, which cannot be balanced; leave --balance away")


class _Work:
    """What is done to each layer. Numbers are fitted in units of their spread: float32 scores keep their digits so."""

    def __init__(self, run: Run, site: str, spec: ProbeSpec, examples: Numbers) -> None:
        self._run, self._site, self._spec, self._examples = run, site, spec, examples
        self._train_N = ~examples.split.test
        self._scored, train = np.flatnonzero(examples.split.test), np.flatnonzero(self._train_N)
        parts = deal_numbers(examples.value_N[train], examples.usable.groups[train], N_FOLDS)
        self._held_out = [train[part] for part in parts]
        self.mean, self.spread = float(examples.value_N[train].mean()), float(examples.value_N[train].std())
        self._value_N = (examples.value_N - self.mean) / self.spread

    def __call__(self, layer: int) -> tuple[LayerValueScores, Probe]:
        """Fit and score one layer."""
        spec, usable = self._spec, self._examples.usable
        states = states_of(self._run, self._site, layer, usable.rows)
        targets = [Values(self._value_N), *(self._shuffled(layer, index) for index in range(N_SHUFFLES))]
        fitted = fit_validated(states, self._train_N, self._held_out, targets, spec.kind, spec.strength, spec.solver)
        said = [scores_N1[:, 0] for scores_N1 in read(states, [(probe, self._scored) for probe in fitted.probes])]
        truth_T, groups_T = self._value_N[self._scored], usable.groups[self._scored]
        (validated, _), _ = measure_values(self._value_N[self._train_N], fitted.held_out_NK[self._train_N, 0])
        scores = LayerValueScores(
            layer=layer,
            test=score_values(truth_T, said[0], groups_T),
            control=_control(truth_T, said[1:], groups_T),
            strength=fitted.strength,
            selection_r2=validated,
        )
        return scores, self._in_own_units(fitted.probes[0])

    def _shuffled(self, layer: int, index: int) -> Values:
        value_N = self._value_N.copy()
        value_N[self._train_N] = np.random.default_rng((SEED, layer, index)).permutation(value_N[self._train_N])
        return Values(value_N)

    def _in_own_units(self, probe: Probe) -> LinearProbe:
        assert isinstance(probe, LinearProbe), "numbers are fitted by ridge"
        return LinearProbe(probe.weight_DK * self.spread, probe.bias_K * self.spread + self.mean, probe.gives)


def _control(truth_N: Floats, said: Sequence[NDArray[np.float32]], groups_N: NDArray[np.int64]) -> ValueControl:
    measures = [measure_values(truth_N, said_N) for said_N in said]
    return ValueControl(
        r2=_over_shuffles([r2 for r2, _ in measures], groups_N, -np.inf),
        correlation=_over_shuffles([r for _, r in measures], groups_N, -1.0),
    )


def _over_shuffles(measures: Sequence[Measure], groups_N: NDArray[np.int64], least: float) -> Interval:
    return mean_over_shuffles(np.array([value for value, _ in measures]), mean_measure(measures)[1], groups_N, least)
