"""Probes of labels of which any number may hold at once: each label against its absence, on every layer.

One probe of each label reads a layer; together they say which set of labels an utterance has. A class for every combination of
labels was rejected: most combinations are too rare to learn, and which single label can be read is what is asked. As for
single labels (analyze.probes), cross-validation inside the training split chooses the regularisation, one for all labels of a
layer, and the best layer; the control is what the same probes get from shuffled sets of labels.

Shape suffixes: N utterances, M those of them that train, K labels, R shuffles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.annotations import LabelSets, LeftOut, deal_sets, label_sets
from analyze.examples import SEED
from analyze.fitting import Probe, read
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats, Labels
from analyze.probes import N_FOLDS, N_SHUFFLES, ProbeSpec, require_vectors
from analyze.query import Run
from analyze.scores import Interval, Measure, mean_measure, mean_over_shuffles
from analyze.selection import fit_validated
from analyze.set_scores import SetScores, measure_sets, score_sets
from analyze.states import states_of


@dataclass(frozen=True, slots=True)
class SetControl:
    """What the same probes get from shuffled sets of labels: the mean over shuffles, with an interval as in probes.Control."""

    auroc: Interval
    """Mean over labels of the area under the ROC curve."""
    macro_f1: Interval
    """Mean over labels of the F1 score."""
    micro_f1: Interval
    """F1 score of all labels together."""
    exact: Interval
    """Share of test examples whose set of labels is named."""


@dataclass(frozen=True, slots=True)
class LayerSetScores:
    """One layer's probes."""

    layer: int
    """The layer they read."""
    test: SetScores
    """On the test split."""
    control: SetControl
    """On the test split, fitted to shuffled sets."""
    strength: float
    """The regularisation used."""
    selection_auroc: float
    """Mean over labels of the area by cross-validation inside the training split, for choosing the layer."""


@dataclass(frozen=True, slots=True)
class MultiLabelResult:
    """Probes of labels that may hold together, at one site of one run."""

    run_id: str
    """The run."""
    site: str
    """Where the states were read."""
    spec: ProbeSpec
    """Which probe, of which column."""
    classes: tuple[str, ...]
    """The labels that are asked about, in the order of every score of one label."""
    left_out: tuple[LeftOut, ...]
    """The labels that are not, because too few utterances carry them (or too few do not)."""
    n_train: int
    """Utterances fitted on."""
    n_test: int
    """Utterances scored on."""
    n_test_situations: int
    """Situations they tell; intervals are over these."""
    n_without: int
    """Of both, utterances that carry none of the labels."""
    n_unlabelled: int
    """Utterances left out because they have no list of labels; an empty list is one."""
    n_other_split: int
    """Utterances left out because their `split` is neither train nor test."""
    split: str
    """How the split was made."""
    n_carrying: tuple[int, ...]
    """Test utterances that carry each label."""
    chance: float
    """Share of test utterances whose labels are the commonest set of the training split."""
    layers: tuple[LayerSetScores, ...]
    """Ascending."""
    best_layer: int
    """The layer with the highest selection AUROC."""

    @property
    def best(self) -> LayerSetScores:
        """The scores of the best layer."""
        return next(scores for scores in self.layers if scores.layer == self.best_layer)


@dataclass(frozen=True, slots=True)
class ProbedSets:
    """Probes and what they score."""

    result: MultiLabelResult
    """The numbers."""
    probes: tuple[Probe, ...]
    """Of each layer, of raw states; a column for each label."""


def probe_sets(
    run: Run,
    site: str,
    layers: Sequence[int],
    spec: ProbeSpec,
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> ProbedSets:
    """Fit and score probes of every label of a column of lists, on each layer.

    Args:
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: the run is not complete, has no usable labels, or lacks the site or a layer; or there is no such probe.
    """
    check_for_sets(spec)
    require_vectors(site)
    run.require_complete()
    examples = label_sets(run, spec.column)
    done = mapper(_Work(run, site, spec, examples), layers, on_layer)
    scores = tuple(entry for entry, _ in done)
    usable, test_N, has_NK = examples.usable, examples.split.test, examples.has_NK
    sets, number_N = np.unique(has_NK, axis=0, return_inverse=True)
    commonest = int(np.bincount(number_N.ravel()[~test_N], minlength=len(sets)).argmax())
    result = MultiLabelResult(
        run_id=run.run_id,
        site=site,
        spec=spec,
        classes=examples.labels,
        left_out=examples.left_out,
        n_train=int((~test_N).sum()),
        n_test=int(test_N.sum()),
        n_test_situations=len(np.unique(usable.groups[test_N])),
        n_without=int((~has_NK.any(axis=1)).sum()),
        n_unlabelled=usable.n_unlabelled,
        n_other_split=usable.n_other_split,
        split=examples.split.made,
        n_carrying=tuple(has_NK[test_N].sum(axis=0).tolist()),
        chance=float(np.mean(number_N.ravel()[test_N] == commonest)),
        layers=scores,
        best_layer=max(scores, key=lambda entry: (entry.selection_auroc, -entry.layer)).layer,
    )
    return ProbedSets(result, tuple(probe for _, probe in done))


def check_for_sets(spec: ProbeSpec) -> None:
    """Make sure that there is such a probe of lists of labels.

    Raises:
        ValueError: there is not.
    """
    spec.check()
    if spec.kind == "mlp":
        raise ValueError(
            f"an mlp probe names one class, and column {spec.column!r} holds lists of labels; "
            "choose from linear, ridge, difference, logistic"
        )
    if spec.balance != "none":
        raise ValueError(f"column {spec.column!r} holds lists of labels, which cannot be balanced; leave --balance away")


class _Work:
    """What is done to each layer."""

    def __init__(self, run: Run, site: str, spec: ProbeSpec, examples: LabelSets) -> None:
        self._run, self._site, self._spec, self._examples = run, site, spec, examples
        self._train_N = ~examples.split.test
        self._scored, train = np.flatnonzero(examples.split.test), np.flatnonzero(self._train_N)
        parts = deal_sets(examples.has_NK[train], examples.usable.groups[train], N_FOLDS)
        self._held_out = [train[part] for part in parts]

    def __call__(self, layer: int) -> tuple[LayerSetScores, Probe]:
        """Fit and score one layer."""
        examples, spec = self._examples, self._spec
        states = states_of(self._run, self._site, layer, examples.usable.rows)
        targets = [Labels(examples.has_NK), *(self._shuffled(layer, index) for index in range(N_SHUFFLES))]
        fitted = fit_validated(states, self._train_N, self._held_out, targets, spec.kind, spec.strength, spec.solver)
        said = read(states, [(probe, self._scored) for probe in fitted.probes])
        has_TK, groups_T = examples.has_NK[self._scored], examples.usable.groups[self._scored]
        validated = measure_sets(examples.has_NK[self._train_N], fitted.held_out_NK[self._train_N])
        scores = LayerSetScores(
            layer=layer,
            test=score_sets(has_TK, said[0], groups_T),
            control=_control(has_TK, said[1:], groups_T),
            strength=fitted.strength,
            selection_auroc=mean_measure(validated.auroc)[0],
        )
        return scores, fitted.probes[0]

    def _shuffled(self, layer: int, index: int) -> Labels:
        """Whole sets shuffled among the training utterances, so that labels go together as often as they do."""
        has_NK = self._examples.has_NK.copy()
        has_NK[self._train_N] = np.random.default_rng((SEED, layer, index)).permutation(has_NK[self._train_N], axis=0)
        return Labels(has_NK)


def _control(has_NK: NDArray[np.bool_], said: Sequence[NDArray[np.float32]], groups_N: NDArray[np.int64]) -> SetControl:
    measures = [measure_sets(has_NK, score_NK) for score_NK in said]
    return SetControl(
        auroc=_over_shuffles([mean_measure(each.auroc) for each in measures], groups_N),
        macro_f1=_over_shuffles([mean_measure(each.f1) for each in measures], groups_N),
        micro_f1=_over_shuffles([each.micro_f1 for each in measures], groups_N),
        exact=_over_shuffles([_share(each.exact_N) for each in measures], groups_N),
    )


def _share(right_N: NDArray[np.bool_]) -> Measure:
    exact_N: Floats = right_N.astype(np.float64)
    return Measure(float(exact_N.mean()), exact_N - exact_N.mean())


def _over_shuffles(measures: Sequence[Measure], groups_N: NDArray[np.int64]) -> Interval:
    return mean_over_shuffles(np.array([value for value, _ in measures]), mean_measure(measures)[1], groups_N)
