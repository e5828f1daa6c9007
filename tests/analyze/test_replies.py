"""Persistence in replies: what was planted in states and words is told apart, and replies that end are left out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from analyze.curves import ALL_EMOTIONS
from analyze.persistence import WORDS, PersistenceResult, measure_persistence, replied_request
from analyze.query import Run
from analyze.report.persistence import leaks, persistence_sections
from extract.corpus import read_corpus
from extract.decoding import Decoding
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from tests.analyze.conftest import Plant

OFFSETS = (0, 1, 4, 16)
N_ROWS = 120
LABELS = ["fear", "joy", "anger"]


def replied(
    plant: Plant, *, in_states: float, leaking: bool, lengths: NDArray[np.int64] | None = None, seed: int = 0
) -> PersistenceResult:
    """Replies whose states, words, or both tell which of three labels an utterance has."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(N_ROWS) % 3)
    states = rng.standard_normal((1, N_ROWS, len(OFFSETS), 6)) + in_states * np.eye(3, 6)[truth][None, :, None]
    lengths = np.full(N_ROWS, OFFSETS[-1]) if lengths is None else lengths
    replies = [rng.integers(10, 60, n).tolist() for n in lengths.tolist()]
    if leaking:
        for reply, label in zip(replies, truth.tolist(), strict=True):
            reply[2:3] = [label] * len(reply[2:3])
    run = plant(
        states.astype(np.float32),
        {"label": [LABELS[label] for label in truth]},
        offsets=OFFSETS,
        replies=replies,
        rows_per_shard=50,
    )
    return measure_persistence(run, run, 0)


def auroc(result: PersistenceResult, reader: str) -> list[float]:
    return [point.value for point in result.curve(ALL_EMOTIONS, reader).auroc]


def test_a_reply_that_leaks_its_label_in_words_is_flagged_and_states_are_not_said_to_tell_more(plant: Plant) -> None:
    result = replied(plant, in_states=0.0, leaking=True)
    assert leaks(result) == [4, 16]  # the word is the third
    assert auroc(result, WORDS)[:1] == [0.5]
    assert min(auroc(result, WORDS)[2:]) > 0.9
    assert result.beyond_words is not None
    assert all(beyond.high < 0 for beyond in result.beyond_words[2:])
    said = " ".join(persistence_sections([result], 0)[0].findings)
    assert "leak the label in their words (at offsets 4, 16" in said
    assert "not shown to be more than the words" in said


def test_states_that_tell_what_the_words_do_not_are_said_to_tell_more(plant: Plant) -> None:
    result = replied(plant, in_states=2.0, leaking=False)
    assert result.beyond_words is not None
    assert all(beyond.low > 0.2 for beyond in result.beyond_words)
    said = " ".join(persistence_sections([result], 0)[0].findings)
    assert "more than the words, interval and all" in said


def test_words_that_say_nothing_are_flagged_no_more_often_than_chance(plant: Plant) -> None:
    """Each of three offsets has 1 chance in 40."""
    flagged = [leaks(replied(plant, in_states=0.0, leaking=False, seed=seed)) for seed in range(1, 11)]
    assert sum(bool(offsets) for offsets in flagged) <= 3


def test_one_probe_for_all_offsets_reads_better_than_one_for_each_where_the_direction_stays(plant: Plant) -> None:
    result = replied(plant, in_states=0.6, leaking=False)
    assert np.mean(auroc(result, "offset-aware")) > np.mean(auroc(result, "refit"))


def test_utterances_whose_reply_has_ended_are_left_out_and_offsets_that_too_few_reach_as_well(plant: Plant) -> None:
    lengths = np.where(np.arange(N_ROWS) % 2 == 0, 6, 2)
    lengths[:4] = 16
    result = replied(plant, in_states=1.0, leaking=False, lengths=lengths)
    assert result.offsets == (0, 1, 4)
    assert result.n_at == (120, 120, int((lengths >= 4).sum()))
    assert len(result.curves[0].auroc) == 3


def test_what_is_stored_where_a_reply_has_ended_counts_for_nothing(plant: Plant) -> None:
    lengths = np.where(np.arange(N_ROWS) % 3 == 0, 2, 16)
    one = replied(plant, in_states=1.0, leaking=False, lengths=lengths)
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(N_ROWS) % 3)
    states = rng.standard_normal((1, N_ROWS, len(OFFSETS), 6)) + 1.0 * np.eye(3, 6)[truth][None, :, None]
    states[0][lengths < 4, 2:] = 1e6
    replies = [rng.integers(10, 60, n).tolist() for n in lengths.tolist()]
    labels = [LABELS[label] for label in truth]
    run = plant(states.astype(np.float32), {"label": labels}, offsets=OFFSETS, replies=replies, rows_per_shard=50)
    assert measure_persistence(run, run, 0).curves == one.curves


def test_replies_that_end_at_once_are_refused(plant: Plant) -> None:
    with pytest.raises(ValueError, match="half of the replies have fewer than 1 tokens"):
        replied(plant, in_states=1.0, leaking=False, lengths=np.where(np.arange(N_ROWS) < 3, 16, 0))


def test_a_real_model_replies_and_is_read_along_its_replies(
    writing_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    location = str(tmp_path_factory.mktemp("real") / "store")
    corpus = read_corpus("builtin").head(300)
    plan = plan_run(Request(writing_model.name, corpus, layers="2", sites="resid.last", compute_dtype="float32"), location)
    extract_missing(plan)
    run = Run(plan.run)
    request = replied_request(run, (1, 2), Decoding(12, temperature=1.0), 12, template="chat", offsets=(0, 1, 2, 400))
    assert (request.offsets, request.template, request.layers) == ((0, 1, 2), "chat", "1,2")
    along = plan_run(request, location)
    extract_missing(along)
    results = [measure_persistence(run, Run(along.run), layer) for layer in (1, 2)]
    assert [result.layer for result in results] == [1, 2]
    assert results[0].decoding == Decoding(12, temperature=1.0)
    assert results[0].n_at[0] == results[0].n_utterances > results[0].n_at[-1]
    first, second = (result.curve(ALL_EMOTIONS, WORDS) for result in results)
    assert first == second  # words know no layers
