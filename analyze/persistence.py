"""For how long a state carries an emotion: probes along the tokens that follow an utterance.

*Forced*: the same neutral continuation stands after every utterance, so nothing but the state can tell the emotions apart.
*Replied*: the model's own reply does. Its words may carry the emotion too, so reading the emotion there does not show that the
state kept it; beside the probes a bag of the reply's words says what words alone give. Measuring on replies alone, as the paper
does (arXiv 2510.04064), was rejected for that reason.

At each offset several readers are scored on utterances they were not fitted on, states standardised at each offset:

    refit         fitted at that offset: is the emotion there in any linear form?
    offset-0      fitted at the first offset: is it there in the same form?
    offset-aware  fitted at all offsets at once: the linear form of the paper's probe, whose learned embedding of the offset is
                  a shift of the state by offset, which standardising takes out
    shuffled      refit on shuffled labels: what does nothing score? The mean of five: one shuffle that happens to lie along the
                  emotions scores far from chance, above it or below
    words         replies only: TF-IDF of the reply's tokens so far and logistic regression

Shape suffixes: N utterances, M of them, O offsets, K emotions, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyze.curves import ALL_EMOTIONS, Curve, curves_of
from analyze.examples import FEWEST_SITUATIONS, SEED, Examples, Fold, folds, labelled_examples
from analyze.extracting import same_way, stratified_sample
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats
from analyze.probes import N_SHUFFLES
from analyze.query import Run
from analyze.scores import Interval, area_difference
from extract.corpus import Corpus
from extract.decoding import Decoding
from extract.request import Request

OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400)
"""Token offsets: from the last token of the utterance where a continuation is forced, from that of the prompt in replies."""
KINDS = ("linear", "logistic")
"""Probes to choose from: samples are small, so discriminant analysis has Ledoit-Wolf's shrinkage, which needs no validation."""
WORDS = "words"
"""The reader of a reply's words."""
READERS = ("refit", "offset-0", "offset-aware", "shuffled")
"""The readers of states; see the top of this file."""

_N_FOLDS = 5
_LOGISTIC_C = 0.01
_WORDS_C = 10.0


@dataclass(frozen=True, slots=True)
class PersistenceResult:
    """Persistence of one site at one layer of one run."""

    run_id: str
    """The run whose utterances were continued."""
    continued_run_id: str
    """The run with what follows them."""
    site: str
    """Where the states were read: `resid.offset` in a forced continuation, `resid.reply` in the model's own replies."""
    layer: int
    """Which layer."""
    kind: str
    """Kind of probe."""
    offsets: tuple[int, ...]
    """Tokens from the last token of the utterance, or in replies of the prompt."""
    emotions: tuple[str, ...]
    """The labels."""
    n_utterances: int
    """How many were continued."""
    n_at: tuple[int, ...]
    """How many of them reach each offset; fewer where replies have ended."""
    curves: tuple[Curve, ...]
    """For every reader, `all` and each emotion."""
    beyond_words: tuple[Interval, ...] | None
    """AUROC of `refit` less that of `words` at each offset, paired by utterance; None where a continuation is forced."""
    decoding: Decoding | None
    """How the replies were drawn; None where a continuation is forced."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Who was scored."""
        return READERS if self.decoding is None else (*READERS, WORDS)

    def curve(self, emotion: str, reader: str) -> Curve:
        """The curve of one emotion and one reader."""
        return next(curve for curve in self.curves if (curve.emotion, curve.reader) == (emotion, reader))


def continued_request(
    run: Run, layers: Sequence[int], passage: str, per_label: int, offsets: Sequence[int] = OFFSETS
) -> Request:
    """What to extract to measure forced persistence: a stratified sample of the run's utterances, continued.

    Args:
        passage: text forced after every utterance, after a blank line.
        per_label: most utterances of each label, of as many situations as there are.

    Raises:
        ValueError: the run has no usable labels.
    """
    corpus = sample(run, per_label)
    return same_way(run, corpus, "resid.offset", _list(layers), continuation=f"\n\n{passage}", offsets=tuple(offsets))


def replied_request(
    run: Run,
    layers: Sequence[int],
    decoding: Decoding,
    per_label: int,
    template: str | None = None,
    offsets: Sequence[int] = OFFSETS,
) -> Request:
    """What to extract to measure persistence in replies: a stratified sample of the run's utterances, replied to.

    Args:
        decoding: how replies are drawn.
        per_label: as in `continued_request`.
        template: of the prompts, such as `chat`; the run's own without it.

    Raises:
        ValueError: the run has no usable labels.
    """
    reached = tuple(offset for offset in offsets if offset <= decoding.max_tokens)
    own = {} if template is None else {"template": template}
    return same_way(run, sample(run, per_label), "resid.reply", _list(layers), offsets=reached, reply=decoding, **own)


def sample(run: Run, per_label: int) -> Corpus:
    """A stratified sample of a run's labelled utterances.

    Raises:
        ValueError: the run has no usable labels, or so few of each are asked for that nothing can be measured.
    """
    examples = labelled_examples(run)
    if ALL_EMOTIONS in examples.classes:
        raise ValueError(f"a label is called {ALL_EMOTIONS!r}, which persistence calls the mean over labels; rename it")
    return stratified_sample(run, examples, per_label)


def measure_persistence(
    run: Run,
    continued: Run,
    layer: int,
    kind: str = "linear",
    on_offset: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> PersistenceResult:
    """Score readers along what follows the utterances.

    Args:
        run: the run whose utterances were continued, for the record.
        continued: a run made from `continued_request` or `replied_request`.
        on_offset: called with the number of offsets done, as they are done.
        mapper: where offsets are done; the numbers are the same everywhere.

    Raises:
        ValueError: the continued run is not complete or has too few examples of a label, or replies end too early.
    """
    continued.require_complete()
    identity = continued.manifest.identity
    if not identity.offsets or identity.offsets[0] != 0:
        raise ValueError(f"run {continued.run_id} holds offsets {identity.offsets}; persistence needs a grid that starts at 0")
    examples = labelled_examples(continued)
    site = "resid.offset" if identity.reply is None else "resid.reply"
    replies = None if identity.reply is None else continued.replies()["ids"].take(pa.array(examples.rows)).to_pylist()
    present_NO = _present(examples, identity.offsets, replies)
    offsets = identity.offsets[: present_NO.shape[1]]
    hidden_NOD = continued.hidden_rows(site, layer, examples.rows)[:, : len(offsets)]
    readings = _Readings(hidden_NOD, present_NO, examples, offsets, kind, replies)
    probability = readings.all(on_offset, mapper)
    beyond_words = None
    if replies is not None:
        beyond_words = tuple(
            area_difference(
                examples.truth[here_N],
                probability["refit"][0][here_N, index],
                probability[WORDS][0][here_N, index],
                examples.groups[here_N],
            )
            for index, here_N in enumerate(present_NO.T)
        )
    return PersistenceResult(
        run_id=run.run_id,
        continued_run_id=continued.run_id,
        site=site,
        layer=layer,
        kind=kind,
        offsets=offsets,
        emotions=examples.classes,
        n_utterances=len(examples.rows),
        n_at=tuple(int(count) for count in present_NO.sum(axis=0)),
        curves=tuple(
            curve for reader, said in probability.items() for curve in curves_of(reader, said, present_NO, examples, offsets)
        ),
        beyond_words=beyond_words,
        decoding=identity.reply,
    )


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


def read_probabilities(probe: Any, features: Any, n_classes: int) -> Floats:
    """A fitted classifier's class probabilities (M, K) of M rows; 0 for a class it was never shown."""
    said_MC = probe.predict_proba(features)
    probability_MK = np.zeros((len(said_MC), n_classes))
    probability_MK[:, probe.classes_] = said_MC
    return probability_MK


class _Readings:
    """What every reader says of every utterance at every offset, read by those of the folds it is not in."""

    def __init__(
        self,
        hidden_NOD: NDArray[np.float32],
        present_NO: NDArray[np.bool_],
        examples: Examples,
        offsets: Sequence[int],
        kind: str,
        replies: list[list[int]] | None,
    ) -> None:
        self._hidden_NOD, self._present_NO, self._offsets, self._kind = hidden_NOD, present_NO, offsets, kind
        self._truth_N, self._n_emotions, self._replies = examples.truth, len(examples.classes), replies
        self._folds: list[Fold] = folds(examples.truth, examples.groups, _N_FOLDS)
        self._readers = READERS if replies is None else (*READERS, WORDS)

    def all(self, on_offset: Callable[[int], None], mapper: Mapper) -> dict[str, list[Floats]]:
        """Class probabilities (N, O, K) of each reader; several of the shuffled one, one for each shuffle."""
        self._shared = mapper(self._fit_shared, range(len(self._folds)))
        by_offset = mapper(self._read, range(len(self._offsets)), on_offset)
        return {
            reader: [np.stack(parts, axis=1) for parts in zip(*(said[reader] for said in by_offset), strict=True)]
            for reader in self._readers
        }

    def _fit_shared(self, fold: int) -> tuple[Any, Any]:
        """The probes of a fold that serve all offsets: that of the first one, and the one fitted to all."""
        parts = [(self._standardised(index, fold)[0], self._sides(index, fold)[0]) for index in range(len(self._offsets))]
        at_zero = make_classifier(self._kind).fit(parts[0][0], self._truth_N[parts[0][1]])
        truth = np.concatenate([self._truth_N[train] for _, train in parts])
        return at_zero, make_classifier(self._kind).fit(np.concatenate([states for states, _ in parts]), truth)

    def _read(self, index: int) -> dict[str, list[Floats]]:
        """Class probabilities (N, K) of each reader at one offset; those of absent utterances are 0."""
        shape = len(self._truth_N), self._n_emotions
        said = {reader: [np.zeros(shape) for _ in range(_times(reader))] for reader in self._readers}
        shuffles = [self._shuffled(index, number) for number in range(N_SHUFFLES)]
        for fold, (at_zero, aware) in enumerate(self._shared):
            train, test = self._sides(index, fold)
            if not len(test):
                continue
            fitted_on, held_out = self._standardised(index, fold)
            refit, *by_chance = (
                make_classifier(self._kind).fit(fitted_on, truth_N[train]) for truth_N in (self._truth_N, *shuffles)
            )
            for reader, probes in zip(READERS, ([refit], [at_zero], [aware], by_chance), strict=True):
                for place, probe in enumerate(probes):
                    said[reader][place][test] = read_probabilities(probe, held_out, self._n_emotions)
            if self._replies is not None:
                said[WORDS][0][test] = self._read_words(index, train, test)
        return said

    def _shuffled(self, index: int, number: int) -> NDArray[np.int64]:
        """Labels shuffled among who is there; differently at every offset, else all their controls would err alike."""
        shuffled_N, here = self._truth_N.copy(), np.flatnonzero(self._present_NO[:, index])
        shuffled_N[here] = np.random.default_rng((SEED, index, number)).permutation(self._truth_N[here])
        return shuffled_N

    def _read_words(self, index: int, train: NDArray[np.int64], test: NDArray[np.int64]) -> Floats:
        assert self._replies is not None
        n_words = self._offsets[index]
        if not n_words:  # nothing is said yet; the shares of labels in a fold would tell what is left for the others
            return np.full((len(test), self._n_emotions), 1 / self._n_emotions)
        fitted_on, held_out = ([self._replies[row][:n_words] for row in rows.tolist()] for rows in (train, test))
        bag = TfidfVectorizer(analyzer=_as_they_are, sublinear_tf=True)
        reader = make_pipeline(bag, LogisticRegression(C=_WORDS_C, max_iter=1000)).fit(fitted_on, self._truth_N[train])
        return read_probabilities(reader, held_out, self._n_emotions)

    def _sides(self, index: int, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Who of a fold's two sides is there at an offset."""
        train, test = self._folds[fold]
        here_N = self._present_NO[:, index]
        return train[here_N[train]], test[here_N[test]]

    def _standardised(self, index: int, fold: int) -> tuple[Floats, Floats]:
        """States of both sides of a fold at an offset, by mean and spread of the first."""
        train, test = self._sides(index, fold)
        scaler = StandardScaler().fit(self._hidden_NOD[train, index])
        held_out = scaler.transform(self._hidden_NOD[test, index]) if len(test) else np.zeros((0, self._hidden_NOD.shape[2]))
        return scaler.transform(self._hidden_NOD[train, index]), held_out


def _present(examples: Examples, offsets: Sequence[int], replies: list[list[int]] | None) -> NDArray[np.bool_]:
    """Who is there at each offset, (N, O), up to the last at which there are enough of each label to be measured."""
    if replies is None:
        return np.ones((len(examples.rows), len(offsets)), np.bool_)
    length_N = np.array([len(ids) for ids in replies])
    present_NO = length_N[:, None] >= np.asarray(offsets)
    groups, labels = examples.groups, examples.labels
    enough = [
        all(len(np.unique(groups[here_N & (labels == name)])) >= FEWEST_SITUATIONS for name in examples.classes)
        for here_N in present_NO.T
    ]
    n_offsets = enough.index(False) if False in enough else len(offsets)
    if n_offsets < 2:
        raise ValueError(
            f"half of the replies have fewer than {int(np.median(length_N)) + 1} tokens, so no offset behind the prompt has "
            f"{FEWEST_SITUATIONS} situations of each label; take more utterances or another template"
        )
    return present_NO[:, :n_offsets]


def _times(reader: str) -> int:
    """How many readings a reader's score is the mean of."""
    return N_SHUFFLES if reader == "shuffled" else 1


def _as_they_are(tokens: list[int]) -> list[int]:
    return tokens


def _list(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
