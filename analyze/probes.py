"""A probe on every layer: how well a reader of one site tells the labels apart, and where it does so best.

Each layer's states are standardised by the rows a probe is fitted on. Cross-validation inside the training split chooses the
regularisation and the best layer, so that no test score is the luckiest of many. Beside every score stand three controls:
shuffled labels (what does a probe of this size get from nothing?), a control task (a random class for every first word,
Hewitt & Liang 2019: how much can it read that is mere lexical identity?), and emotion against neutral as a question of its own.

Shape suffixes: N utterances, M those of them that train, K classes, R shuffles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.balance import BALANCES, NEUTRAL, balance
from analyze.columns import LABEL
from analyze.examples import SEED, Examples, Split, folds, labelled_examples, split_examples
from analyze.fitting import SOLVERS, Fit, Probe, check_kind, prepare, read_probabilities, solve
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats, Target
from analyze.query import Run
from analyze.scores import (
    Interval,
    Scores,
    difference_interval,
    mean_over_shuffles,
    score,
    share_interval,
    shuffled_area_intervals,
)
from analyze.selection import choose_strength
from analyze.states import states_of
from analyze.where import Where, locate
from extract.identity import sha256_hex
from extract.sites import Site

AFFECT = (NEUTRAL, "emotion")
"""The two classes of the binary question."""
N_SHUFFLES = 5
"""How often labels are shuffled."""
N_FOLDS = 5
"""Folds of the training split."""

_PUNCTUATION = ".,;:!?\"'()"


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """Which probe to fit, and how."""

    kind: str = "linear"
    """One of KINDS."""
    strength: float | None = None
    """Shrinkage of `linear`, alpha of `ridge`, C of `logistic`, epochs of `mlp`; None: cross-validation chooses."""
    balance: str = "none"
    """One of BALANCES."""
    solver: str = SOLVERS[0]
    """One of SOLVERS."""
    column: str = LABEL
    """The column of the corpus that says what is to be read."""

    def check(self) -> None:
        """Make sure that there is such a probe.

        Raises:
            ValueError: there is not.
        """
        check_kind(self.kind, self.solver)
        if self.balance not in BALANCES:
            raise ValueError(f"there is no balance {self.balance!r}; choose from {', '.join(BALANCES)}")
        if self.strength is not None:
            _check_strength(self.kind, self.strength)


DEFAULT = ProbeSpec()
"""The probe that is fitted when nobody says which."""


@dataclass(frozen=True, slots=True)
class Control:
    """What the same probes get from shuffled labels: the mean over shuffles, with an interval over situations and shuffles."""

    accuracy: Interval
    """Share of test examples whose likeliest class is the true one."""
    auroc: Interval
    """Mean over classes of the one-vs-rest area under the ROC curve."""


@dataclass(frozen=True, slots=True)
class LayerScores:
    """One layer's probe."""

    layer: int
    """The layer it reads."""
    test: Scores
    """On the test split."""
    control: Control
    """On the test split, fitted to shuffled labels."""
    task: Interval
    """Accuracy on the test split of a probe of the control task."""
    selectivity: Interval
    """Accuracy less that of the control task, paired by utterance."""
    affect: Scores | None
    """On the test split, emotion against neutral; None where the labels lack `neutral` or are only two."""
    strength: float
    """The regularisation used."""
    selection_accuracy: float
    """By cross-validation inside the training split, for choosing the layer."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Probes of one site of one run."""

    run_id: str
    """The run."""
    site: str
    """Where the states were read."""
    spec: ProbeSpec
    """Which probe."""
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
    where: Where | None
    """Onset, peak and plateau; None where nothing is above chance."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.spec.kind

    @property
    def best(self) -> LayerScores:
        """The scores of the best layer."""
        return next(scores for scores in self.layers if scores.layer == self.best_layer)


@dataclass(frozen=True, slots=True)
class Probed:
    """Probes and what they score."""

    result: ProbeResult
    """The numbers."""
    probes: tuple[Probe, ...]
    """The probe of each layer, of raw states."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is known of one layer."""

    scores: LayerScores
    probe: Probe
    right_M: NDArray[np.bool_]
    """Whether cross-validation was right about each training utterance."""


def probe_layers(
    run: Run,
    site: str,
    layers: Sequence[int],
    spec: ProbeSpec = DEFAULT,
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> Probed:
    """Fit and score a probe on each layer.

    Args:
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: the run is not complete, has no usable labels, or lacks the site or a layer; or there is no such probe.
    """
    spec.check()
    require_vectors(site)
    run.require_complete()
    examples = labelled_examples(run, spec.column)
    split = split_examples(examples)
    balanced = balance(examples, split, spec.balance)
    scored_N = balanced.scored_N
    done = mapper(_Work(run, site, spec, examples, split), layers, on_layer)
    scores = tuple(layer.scores for layer in done)
    truth_N, train_N = examples.truth, ~split.test
    commonest = int(np.bincount(truth_N[train_N]).argmax())
    weight_M = None if balanced.weight_N is None else balanced.weight_N[train_N]
    result = ProbeResult(
        run_id=run.run_id,
        site=site,
        spec=spec,
        classes=examples.classes,
        n_train=int(train_N.sum()),
        n_test=int(scored_N.sum()),
        n_test_situations=len(np.unique(examples.groups[scored_N])),
        n_unlabelled=examples.n_unlabelled,
        n_other_split=examples.n_other_split,
        split=split.made,
        chance=float(np.mean(truth_N[scored_N] == commonest)),
        layers=scores,
        best_layer=max(scores, key=lambda entry: (entry.selection_accuracy, -entry.layer)).layer,
        where=locate(
            [entry.layer for entry in scores],
            np.stack([layer.right_M for layer in done], axis=1),
            examples.groups[train_N],
            _chance(truth_N[train_N], weight_M),
            weight_M,
        ),
    )
    return Probed(result, tuple(layer.probe for layer in done))


def require_vectors(site: str) -> None:
    """Refuse a site that has no single vector for each utterance.

    Raises:
        ValueError: it has none.
    """
    if not Site.parse(site).pooled:
        raise ValueError(
            f"{site} has no single vector for each utterance, which a probe reads; choose a site such as resid.last"
        )


class _Work:
    """What is done to each layer."""

    def __init__(self, run: Run, site: str, spec: ProbeSpec, examples: Examples, split: Split) -> None:
        self._run, self._site, self._spec, self._examples = run, site, spec, examples
        self._balance = balance(examples, split, spec.balance)
        self._train_N = ~split.test
        self._scored = np.flatnonzero(self._balance.scored_N)
        self._truth = Target(examples.truth, len(examples.classes))
        train = np.flatnonzero(self._train_N)
        parts = folds(examples.truth[train], examples.groups[train], N_FOLDS)
        self._held_out = [train[held_out] for _, held_out in parts]
        self._task = Target(_control_task(run, examples, self._train_N), len(examples.classes))
        self._affect = _affect(examples)

    def __call__(self, layer: int) -> _Layer:
        """Fit and score one layer."""
        states = states_of(self._run, self._site, layer, self._examples.rows)
        shuffled = [self._shuffled(layer, index) for index in range(N_SHUFFLES)]
        whole = [self._truth, self._task, *shuffled, *([] if self._affect is None else [self._affect])]
        fits = [Fit(self._train_N, target) for target in whole] + [
            Fit(self._train_N & ~_mask(held_out, len(self._train_N)), self._truth) for held_out in self._held_out
        ]
        prepared = prepare(states, fits, self._balance.weight_N)
        spec, fold_fits = self._spec, range(len(whole), len(fits))
        strength, right_N = choose_strength(prepared, fold_fits, self._held_out, spec.kind, spec.strength, spec.solver)
        probes = solve(prepared, [(index, strength) for index in range(len(whole))], spec.kind, spec.solver)
        said = read_probabilities(states, [(probe, self._scored) for probe in probes])
        right_M = right_N[self._train_N]
        return _Layer(self._scores(layer, strength, right_M, probes[0], said), probes[0], right_M)

    def _shuffled(self, layer: int, index: int) -> Target:
        """Labels shuffled among the training utterances; differently on every layer, else their controls would err alike."""
        code_N = self._examples.truth.copy()
        code_N[self._train_N] = np.random.default_rng((SEED, layer, index)).permutation(code_N[self._train_N])
        return Target(code_N, self._truth.n_classes)

    def _scores(
        self, layer: int, strength: float, right_M: NDArray[np.bool_], probe: Probe, said: Sequence[Floats]
    ) -> LayerScores:
        truth_N, groups_N = self._truth.code_N[self._scored], self._examples.groups[self._scored]
        ranks_only = probe.gives != "logits"
        main, task, shuffled = said[0], said[1], said[2 : 2 + N_SHUFFLES]
        right_of_main_N = main.argmax(axis=1) == truth_N
        right_of_task_N = task.argmax(axis=1) == self._task.code_N[self._scored]
        affect = None
        if self._affect is not None:
            affect = score(self._affect.code_N[self._scored], said[-1], groups_N, ranks_only)
        weight_M = np.ones(len(right_M)) if self._balance.weight_N is None else self._balance.weight_N[self._train_N]
        return LayerScores(
            layer=layer,
            test=score(truth_N, main, groups_N, ranks_only),
            control=_control(truth_N, shuffled, groups_N),
            task=share_interval(right_of_task_N, groups_N),
            selectivity=difference_interval(right_of_main_N.astype(np.float64) - right_of_task_N, groups_N),
            affect=affect,
            strength=strength,
            selection_accuracy=float(np.average(right_M, weights=weight_M)),
        )


def _chance(truth_M: NDArray[np.int64], weight_M: Floats | None) -> float:
    """Weighted accuracy of always naming the class that weighs most."""
    weighs_K = np.bincount(truth_M, weight_M)
    return float(weighs_K.max() / weighs_K.sum())


def _mask(rows: NDArray[np.int64], n_rows: int) -> NDArray[np.bool_]:
    chosen_N = np.zeros(n_rows, np.bool_)
    chosen_N[rows] = True
    return chosen_N


def _affect(examples: Examples) -> Target | None:
    """Neutral or not; None where that is no question of its own."""
    if NEUTRAL not in examples.classes or len(examples.classes) < 3:
        return None
    return Target((examples.labels != NEUTRAL).astype(np.int64), len(AFFECT))


def _control_task(run: Run, examples: Examples, train_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A class for every utterance that depends on nothing but its first word, drawn for each word as labels are frequent."""
    texts = run.utterances()["text"].take(pa.array(examples.rows)).to_pylist()
    first_words = [(text.split() or [""])[0].casefold().strip(_PUNCTUATION) for text in texts]
    draw = {word: int(sha256_hex(word.encode())[:12], 16) / 16**12 for word in set(first_words)}
    shares_K = np.bincount(examples.truth[train_N], minlength=len(examples.classes)) / train_N.sum()
    drawn_N = np.array([draw[word] for word in first_words])
    return np.minimum(np.searchsorted(np.cumsum(shares_K), drawn_N, side="right"), len(shares_K) - 1)


def _control(truth_N: NDArray[np.int64], said: Sequence[Floats], groups_N: NDArray[np.int64]) -> Control:
    """Mean scores over shuffles; the interval covers the test situations and, between shuffles, the luck of one shuffle."""
    right_RN = np.stack([scores.argmax(axis=1) == truth_N for scores in said]).astype(np.float64)
    return Control(
        accuracy=mean_over_shuffles(
            right_RN.mean(axis=1), (right_RN - right_RN.mean(axis=1, keepdims=True)).mean(axis=0), groups_N
        ),
        auroc=shuffled_area_intervals(truth_N, said, groups_N)[0],
    )


def _check_strength(kind: str, strength: float) -> None:
    fits = {
        "linear": 0 <= strength <= 1,
        "mlp": strength >= 1 and strength == int(strength),
    }.get(kind, strength > 0 or kind == "difference")
    if not (np.isfinite(strength) and fits):
        what = {
            "linear": "a shrinkage from 0 to 1",
            "ridge": "an alpha above 0",
            "logistic": "a C above 0",
            "mlp": "a whole number of epochs, 1 or more",
        }[kind]
        raise ValueError(f"a regularisation of {strength:g} does not suit a {kind} probe; give {what}")
