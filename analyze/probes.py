"""A probe on every layer: how well a linear reader of one site tells the emotions apart, and where it does so best.

Each layer's states are standardised by the training split and read by one of two linear classifiers of scikit-learn:
`linear` is discriminant analysis with Ledoit-Wolf shrinkage, which has nothing to tune; `logistic` is multinomial
logistic regression. The best layer is chosen by cross-validation inside the training split, so that its test score
is not the luckiest of many. A control is fitted to shuffled labels: what it scores is what a probe of this size gets from
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analyze.examples import SEED, Examples, Split, folds, labelled_examples, split_examples
from analyze.mapping import Mapper, ignore, in_threads
from analyze.query import Run
from analyze.scores import Scores, score

KINDS = ("linear", "logistic")
"""Probes to choose from."""

_LOGISTIC_C = 0.01
_N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class LayerScores:
    """One layer's probe."""

    layer: int
    """The layer it reads."""
    test: Scores
    """On the test split."""
    control: Scores
    """On the test split, fitted to shuffled labels."""
    selection_accuracy: float
    """By cross-validation inside the training split, for choosing the layer."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Probes of one site of one run."""

    run_id: str
    """The run."""
    site: str
    """Where the states were read."""
    kind: str
    """One of KINDS."""
    classes: tuple[str, ...]
    """The labels, in the order of every matrix here."""
    n_train: int
    """Utterances fitted on."""
    n_test: int
    """Utterances scored on."""
    n_test_situations: int
    """Situations they tell; intervals are over these."""
    n_unlabelled: int
    """Utterances left out because they carry no single label."""
    n_other_split: int
    """Utterances left out because their `split` is neither train nor test."""
    split: str
    """How the split was made."""
    chance: float
    """Accuracy of always naming the commonest class of the training split."""
    layers: tuple[LayerScores, ...]
    """Ascending."""
    best_layer: int
    """The layer with the highest selection accuracy."""

    @property
    def best(self) -> LayerScores:
        """The scores of the best layer."""
        return next(scores for scores in self.layers if scores.layer == self.best_layer)


def make_probe(kind: str) -> Pipeline:
    """An unfitted probe: standardisation by the training states, then a classifier.

    Raises:
        ValueError: there is no such kind.
    """
    return make_pipeline(StandardScaler(), make_classifier(kind))


def make_classifier(kind: str) -> Any:
    """An unfitted classifier of standardised states.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "linear":
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    if kind == "logistic":
        return LogisticRegression(C=_LOGISTIC_C, max_iter=1000)
    raise ValueError(f"there is no probe {kind!r}; choose from {', '.join(KINDS)}")


def probe_layers(
    run: Run,
    site: str,
    layers: Sequence[int],
    kind: str = "linear",
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> ProbeResult:
    """Fit and score a probe on each layer.

    Args:
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: the run is not complete, has no usable labels, or lacks the site or a layer.
    """
    run.require_complete()
    make_probe(kind)
    examples = labelled_examples(run)
    split = split_examples(examples)

    def probe(layer: int) -> LayerScores:
        return _probe_layer(run.hidden_rows(site, layer, examples.rows), layer, examples, split, kind)

    scores = mapper(probe, layers, on_layer)
    _, counts = np.unique(examples.labels[~split.test], return_counts=True)
    commonest = examples.classes[int(np.argmax(counts))]
    return ProbeResult(
        run_id=run.run_id,
        site=site,
        kind=kind,
        classes=examples.classes,
        n_train=int((~split.test).sum()),
        n_test=int(split.test.sum()),
        n_test_situations=len(np.unique(examples.groups[split.test])),
        n_unlabelled=examples.n_unlabelled,
        n_other_split=examples.n_other_split,
        split=split.made,
        chance=float(np.mean(examples.labels[split.test] == commonest)),
        layers=tuple(scores),
        best_layer=max(scores, key=lambda entry: (entry.selection_accuracy, -entry.layer)).layer,
    )


def read_probabilities(probe: Any, hidden_ND: NDArray[Any], n_classes: int) -> NDArray[np.float64]:
    """A fitted classifier's class probabilities (N, K); 0 for a class it was never shown."""
    probability_NK = np.zeros((len(hidden_ND), n_classes))
    probability_NK[:, probe.classes_] = probe.predict_proba(hidden_ND)
    return probability_NK


def _probe_layer(hidden_ND: NDArray[np.float32], layer: int, examples: Examples, split: Split, kind: str) -> LayerScores:
    truth_N, train, test = examples.truth, ~split.test, split.test
    shuffled_N = np.random.default_rng((SEED, layer)).permutation(truth_N[train])  # else every layer's control errs alike

    def scores_of(labels_N: NDArray[np.int64]) -> Scores:
        probe = make_probe(kind).fit(hidden_ND[train], labels_N)
        return score(truth_N[test], read_probabilities(probe, hidden_ND[test], len(examples.classes)), examples.groups[test])

    return LayerScores(
        layer=layer,
        test=scores_of(truth_N[train]),
        control=scores_of(shuffled_N),
        selection_accuracy=_selection_accuracy(hidden_ND[train], truth_N[train], examples.groups[train], kind),
    )


def _selection_accuracy(
    hidden_ND: NDArray[np.float32], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64], kind: str
) -> float:
    right_N = np.zeros(len(truth_N), np.bool_)
    for fitted, held_out in folds(truth_N, groups_N, _N_FOLDS):
        probe = make_probe(kind).fit(hidden_ND[fitted], truth_N[fitted])
        right_N[held_out] = probe.predict(hidden_ND[held_out]) == truth_N[held_out]
    return float(right_N.mean())
