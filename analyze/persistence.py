"""For how long a state carries an emotion: the same neutral continuation after every utterance, and probes along it.

Because every utterance is followed by the very same tokens, nothing but the state can tell the emotions apart there.
Measuring on generated replies was rejected as the first measure: their own words carry the emotion, so decoding it
shows nothing about the state.

At each offset three readers are scored on utterances they were not fitted on: `refit`, fitted at that offset (is the
emotion there in any linear form?); `offset-0`, fitted at the utterance's last token (is it there in the same form?),
with states standardised at each offset; and `shuffled`, refit on shuffled labels (what does nothing score?), the mean of
five: one shuffle that happens to lie along the emotions scores far from chance, above it or below.

Shape suffixes: R readers, N utterances, O offsets, K emotions, D width, S curves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analyze.examples import FEWEST_SITUATIONS, SEED, Examples, folds, labelled_examples
from analyze.extracting import same_way
from analyze.mapping import Mapper, ignore, in_threads
from analyze.probes import N_SHUFFLES
from analyze.query import Run
from analyze.scores import (
    Area,
    Interval,
    area_intervals,
    areas,
    mean_area,
    out_of_fold_factor,
    shuffled_area_intervals,
    standard_error,
)
from extract.corpus import Corpus
from extract.identity import sha256_hex
from extract.request import Request

OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400)
"""Token offsets from the last token of the utterance."""
KINDS = ("linear", "logistic")
"""Probes to choose from: samples are small, so discriminant analysis has Ledoit-Wolf's shrinkage, which needs no validation."""
READERS = ("refit", "offset-0", "shuffled")
"""How the score at an offset is read; see the top of this file."""
CHANCE = 0.5
"""What one-vs-rest AUROC scores without signal."""
ALL_EMOTIONS = "all"
"""Name of the curve that averages over emotions."""

_N_FOLDS = 5
_LOGISTIC_C = 0.01
_NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class HalfLife:
    """The offset at which a score above chance has halved, in tokens, linear between the offsets measured."""

    tokens: float | None
    """None when the score never halved within the grid, or was not above chance at offset 0."""
    low: float | None
    """Lower end of the 95% interval; None as above."""
    high: float | None
    """Upper end; None as above."""
    above_chance: bool
    """Whether the score at offset 0 was above chance, interval and all."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Score against offset for one emotion and one reader."""

    emotion: str
    """A label, or `all` for their mean."""
    reader: str
    """One of READERS."""
    auroc: tuple[Interval, ...]
    """One-vs-rest AUROC at each offset."""
    half_life: HalfLife
    """Of this curve."""


@dataclass(frozen=True, slots=True)
class PersistenceResult:
    """Persistence of one site at one layer of one run."""

    run_id: str
    """The run whose utterances were continued."""
    continued_run_id: str
    """The run with the continuation."""
    site: str
    """Where the states were read."""
    layer: int
    """Which layer."""
    kind: str
    """Kind of probe."""
    offsets: tuple[int, ...]
    """Tokens from the last token of the utterance."""
    emotions: tuple[str, ...]
    """The labels."""
    n_utterances: int
    """How many were continued."""
    curves: tuple[Curve, ...]
    """For every reader, `all` and each emotion."""

    def curve(self, emotion: str, reader: str) -> Curve:
        """The curve of one emotion and one reader."""
        return next(curve for curve in self.curves if (curve.emotion, curve.reader) == (emotion, reader))


def continued_request(run: Run, layer: int, passage: str, per_label: int, offsets: Sequence[int] = OFFSETS) -> Request:
    """What to extract so that persistence can be measured: a stratified sample of the run's utterances, continued.

    Args:
        passage: text forced after every utterance, after a blank line.
        per_label: most utterances of each label, of as many situations as there are.

    Raises:
        ValueError: the run has no usable labels.
    """
    if per_label < FEWEST_SITUATIONS:
        raise ValueError(f"{per_label} utterances of each label are too few; take {FEWEST_SITUATIONS} or more")
    examples = labelled_examples(run)
    if ALL_EMOTIONS in examples.classes:
        raise ValueError(f"a label is called {ALL_EMOTIONS!r}, which persistence calls the mean over labels; rename it")
    table = run.utterances()
    chosen = [int(row) for label in examples.classes for row in _sample(examples, table, label)[:per_label]]
    corpus = Corpus(f"{run.run_id} sample", table.drop_columns(["row", "n_tokens"])).take(sorted(chosen))
    return same_way(run, corpus, "resid.offset", str(layer), f"\n\n{passage}", offsets)


def measure_persistence(
    run: Run,
    continued: Run,
    layer: int,
    kind: str = "linear",
    on_offset: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> PersistenceResult:
    """Score probes along the continuation.

    Args:
        run: the run whose utterances were continued, for the record.
        continued: a run made from `continued_request`.
        on_offset: called with the number of offsets done, as they are done.
        mapper: where offsets are done; the numbers are the same everywhere.

    Raises:
        ValueError: the continued run is not complete or has too few examples of a label.
    """
    continued.require_complete()
    offsets = continued.manifest.identity.offsets
    if not offsets or offsets[0] != 0:
        raise ValueError(f"run {continued.run_id} holds offsets {offsets}; persistence needs a grid that starts at 0")
    examples = labelled_examples(continued)
    truth_N = examples.truth
    hidden_NOD = continued.hidden_rows("resid.offset", layer, examples.rows)
    probability = _out_of_fold(hidden_NOD, truth_N, examples.groups, kind, on_offset, mapper)
    curves = [curve for reader in READERS for curve in _curves(reader, probability[reader], examples, offsets)]
    return PersistenceResult(
        run_id=run.run_id,
        continued_run_id=continued.run_id,
        site="resid.offset",
        layer=layer,
        kind=kind,
        offsets=offsets,
        emotions=examples.classes,
        n_utterances=len(examples.rows),
        curves=tuple(curves),
    )


def half_life(offsets: Sequence[int], score_SO: NDArray[np.float64]) -> NDArray[np.float64]:
    """First offset at which score above chance is half of what it was at the first offset, linear between offsets.

    Returns:
        For each row the half-life in tokens; infinity where the score never halved, NaN where it began at or below chance.
    """
    return np.where(score_SO[:, 0] > CHANCE, _crossing(offsets, _excess(score_SO)), np.nan)


def _excess(score_SO: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a score has above half of its height above chance at the first offset."""
    above_SO = score_SO - CHANCE
    return above_SO - above_SO[:, :1] / 2


def _crossing(offsets: Sequence[int], excess_SO: NDArray[np.float64]) -> NDArray[np.float64]:
    """First offset at which something is not above 0; infinity where it always is."""
    result_S = np.full(len(excess_SO), np.inf)
    for index in range(len(offsets) - 1, 0, -1):
        before_S, after_S = excess_SO[:, index - 1], excess_SO[:, index]
        crosses_S = (before_S > 0) & (after_S <= 0)
        share_S = np.divide(before_S, before_S - after_S, out=np.zeros_like(before_S), where=crosses_S)
        result_S = np.where(crosses_S, offsets[index - 1] + share_S * (offsets[index] - offsets[index - 1]), result_S)
    return np.where(excess_SO[:, 0] > 0, result_S, float(offsets[0]))


def make_classifier(kind: str) -> Any:
    """An unfitted classifier of standardised states.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "linear":
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    if kind == "logistic":
        return LogisticRegression(C=_LOGISTIC_C, max_iter=1000)
    raise ValueError(f"persistence has no probe {kind!r}; choose from {', '.join(KINDS)}")


def read_probabilities(probe: Any, hidden_ND: NDArray[Any], n_classes: int) -> NDArray[np.float64]:
    """A fitted classifier's class probabilities (N, K); 0 for a class it was never shown."""
    probability_NK = np.zeros((len(hidden_ND), n_classes))
    probability_NK[:, probe.classes_] = probe.predict_proba(hidden_ND)
    return probability_NK


def _sample(examples: Examples, table: pa.Table, label: str) -> NDArray[np.int64]:
    """The rows of a label in an order that depends on their ids alone, first one of every situation, then the rest."""
    mine = examples.labels == label
    rows, groups = examples.rows[mine], examples.groups[mine]
    digests = [sha256_hex(name.encode()) for name in table["utterance_id"].take(pa.array(rows)).to_pylist()]
    order = np.argsort(digests)
    first_of_each = np.sort(np.unique(groups[order], return_index=True)[1])
    ranked: NDArray[np.int64] = rows[np.concatenate([order[first_of_each], np.delete(order, first_of_each)])]
    return ranked


def _out_of_fold(
    hidden_NOD: NDArray[np.float32],
    truth_N: NDArray[np.int64],
    groups_N: NDArray[np.int64],
    kind: str,
    on_offset: Callable[[int], None],
    mapper: Mapper,
) -> dict[str, list[NDArray[np.float64]]]:
    """Class probabilities (N, O, K) of each reader, every utterance read by probes of the folds it is not in.

    The shuffled reader's are several, one for each shuffle.
    """
    n_utterances, n_offsets, _ = hidden_NOD.shape
    splits = folds(truth_N, groups_N, _N_FOLDS)
    n_emotions = int(truth_N.max()) + 1

    def standardised(index: int, fold: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        train, test = splits[fold]
        scaler = StandardScaler().fit(hidden_NOD[train, index])
        return scaler.transform(hidden_NOD[train, index]), scaler.transform(hidden_NOD[test, index])

    def fit_at_zero(fold: int) -> Any:
        return make_classifier(kind).fit(standardised(0, fold)[0], truth_N[splits[fold][0]])

    def read(index: int) -> NDArray[np.float64]:
        probability_RNK = np.empty((2 + N_SHUFFLES, n_utterances, n_emotions))
        shuffles = [  # others for every offset, else their controls would err alike
            np.random.default_rng((SEED, index, number)).permutation(truth_N) for number in range(N_SHUFFLES)
        ]
        for fold, (train, test) in enumerate(splits):
            fitted, held_out = standardised(index, fold)
            refit, *shuffled = (make_classifier(kind).fit(fitted, labels_N[train]) for labels_N in (truth_N, *shuffles))
            for place, probe in enumerate((refit, at_zero[fold], *shuffled)):
                probability_RNK[place, test] = read_probabilities(probe, held_out, n_emotions)
        return probability_RNK

    at_zero = mapper(fit_at_zero, range(len(splits)))  # the grid starts at offset 0
    refit, fixed, *shuffled = np.stack(mapper(read, range(n_offsets), on_offset), axis=2)
    return dict(zip(READERS, ([refit], [fixed], shuffled), strict=True))


def _curves(
    reader: str,
    probability: Sequence[NDArray[np.float64]],
    examples: Examples,
    offsets: tuple[int, ...],
) -> list[Curve]:
    """The curves of a reader, from its class probabilities (N, O, K); their mean where it is several."""
    truth_N, groups_N, emotions = examples.truth, examples.groups, examples.classes
    at_each_O = [[one[:, index] for one in probability] for index in range(len(offsets))]
    intervals_O = [
        area_intervals(truth_N, said[0], groups_N, out_of_fold=True)
        if len(said) == 1
        else shuffled_area_intervals(truth_N, said, groups_N)
        for said in at_each_O
    ]
    parts_OK = [[mean_area(parts) for parts in zip(*(areas(truth_N, one) for one in said), strict=True)] for said in at_each_O]
    curves = []
    for label, emotion in enumerate((*emotions, ALL_EMOTIONS)):
        whole = label == len(emotions)
        auroc = tuple(macro if whole else of_each[label] for macro, of_each in intervals_O)
        area_O = [mean_area(parts_K) if whole else parts_K[label] for parts_K in parts_OK]
        curves.append(Curve(emotion, reader, auroc, _half_life_interval(offsets, auroc, area_O, groups_N)))
    return curves


def _half_life_interval(
    offsets: tuple[int, ...], auroc: tuple[Interval, ...], area_O: Sequence[Area], groups_N: NDArray[np.int64]
) -> HalfLife:
    """The offsets at which the score cannot be told from half of its height, as Fieller (1954) inverts the test of a ratio.

    They go from where the lower end of what the score has above half is first not above 0, to where the upper end is.
    Percentiles of resampled half-lives were rejected: noise lets a flat curve cross early, and a resample has more of it.
    """
    if auroc[0].low <= CHANCE:
        return HalfLife(None, None, None, above_chance=False)
    value_1O = np.array([[area.value for area in area_O]])
    half_O = np.array(
        [
            _NORMAL_95
            * standard_error(area.influence_N - area_O[0].influence_N / 2, groups_N)
            * out_of_fold_factor(area.value) ** 0.5
            for area in area_O
        ]
    )
    excess_1O = _excess(value_1O)
    low, high = _crossing(offsets, np.concatenate([excess_1O - half_O, excess_1O + half_O]))
    return HalfLife(_finite(half_life(offsets, value_1O)[0]), _finite(low), _finite(high), above_chance=True)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
