"""Half-lives and persistence curves: of numbers, of planted states, and of a real run end to end."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from analyze.curves import ALL_EMOTIONS, half_life
from analyze.examples import labelled_examples
from analyze.persistence import READERS, PersistenceResult, continued_request, measure_persistence
from analyze.query import Run
from extract.corpus import Corpus, read_corpus, read_passages
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from tests.analyze.conftest import Plant

OFFSETS = (0, 1, 2, 4, 8, 16, 32)
HALF = 6.0
"""Planted: AUROC above chance is 0.4 at offset 0 and halves every 6 tokens."""


def area(offset: int) -> float:
    return float(0.5 + 0.4 * 2 ** (-offset / HALF))


def planted_run(plant: Plant, seed: int, *, rotates: bool, n_rows: int = 400, width: int = 4) -> Run:
    """Two emotions whose distance decays with the offset, along one direction or along a new one at every offset."""
    rng = np.random.default_rng(seed)
    sign = rng.permutation(np.arange(n_rows) % 2) * 2 - 1
    states = rng.standard_normal((1, n_rows, len(OFFSETS), width))
    for index, offset in enumerate(OFFSETS):
        strength = norm.ppf(0.9 if rotates else area(offset)) / 2**0.5
        states[0, :, index, index % width if rotates else 0] += strength * sign
        states[0, :, index] *= 1 + offset  # states may grow along the text; a reader must not care
    labels = ["joy" if value > 0 else "fear" for value in sign]
    return plant(states.astype(np.float32), {"label": labels}, offsets=OFFSETS, rows_per_shard=150)


def brute_half_life(offsets: list[int], scores: list[float]) -> float:
    """Walk the curve in a million steps until the height above chance is half of the first."""
    if scores[0] <= 0.5:
        return float("nan")
    grid = np.linspace(offsets[0], offsets[-1], 1_000_001)
    below = np.flatnonzero(np.interp(grid, offsets, scores) - 0.5 <= (scores[0] - 0.5) / 2)
    return float(grid[below[0]]) if len(below) else float("inf")


_hundredths = st.integers(0, 100).map(lambda value: value / 100)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), _hundredths), min_size=1, max_size=8), _hundredths)
@example([(1, 0.9), (1, 0.9)], 0.9)
@example([(1, 0.9), (1, 0.4)], 0.5)
@example([(1, 0.9), (1, 0.9)], 0.3)
@example([(1, 0.6), (1, 0.9), (1, 0.5)], 0.9)
@example([(1, 0.7), (1, 0.7)], 0.9)
def test_half_life_is_the_first_place_where_the_height_above_chance_has_halved(
    steps: list[tuple[int, float]], first: float
) -> None:
    offsets = np.cumsum([0, *(gap for gap, _ in steps)]).tolist()
    scores = [first, *(value for _, value in steps)]
    found = half_life(offsets, np.array([scores, scores]))
    expected = brute_half_life(offsets, scores)
    assert found == pytest.approx([expected, expected], abs=1e-3, nan_ok=True)


@pytest.fixture(scope="module")
def decaying(plant: Plant) -> PersistenceResult:
    run = planted_run(plant, 0, rotates=False)
    return measure_persistence(run, run, 0)


def test_a_planted_decay_is_measured_and_its_half_life_lies_in_the_interval(decaying: PersistenceResult) -> None:
    true = float(half_life(OFFSETS, np.array([[area(offset) for offset in OFFSETS]]))[0])
    for emotion in (ALL_EMOTIONS, "joy", "fear"):
        curve = decaying.curve(emotion, "refit")
        assert [point.value for point in curve.auroc] == pytest.approx([area(offset) for offset in OFFSETS], abs=0.08)
        life = curve.half_life
        assert life.above_chance
        low, tokens, high = (float("nan") if value is None else value for value in (life.low, life.tokens, life.high))
        assert low <= true <= high
        assert low <= tokens <= high < 2 * true


def test_where_the_direction_stays_the_reader_of_offset_0_reads_as_well_as_the_refit_one(decaying: PersistenceResult) -> None:
    refit, fixed = decaying.curve(ALL_EMOTIONS, "refit"), decaying.curve(ALL_EMOTIONS, "offset-0")
    assert fixed.auroc[0] == refit.auroc[0]
    assert [point.value for point in fixed.auroc] == pytest.approx([point.value for point in refit.auroc], abs=0.08)


def test_shuffled_labels_are_read_at_chance_and_have_no_half_life(decaying: PersistenceResult) -> None:
    curve = decaying.curve(ALL_EMOTIONS, "shuffled")
    assert np.mean([point.value for point in curve.auroc]) == pytest.approx(0.5, abs=0.06)
    assert not curve.half_life.above_chance
    assert curve.half_life.tokens is curve.half_life.low is curve.half_life.high is None


def test_a_direction_that_rotates_is_lost_to_the_reader_of_offset_0_but_not_to_the_refit_one(plant: Plant) -> None:
    run = planted_run(plant, 1, rotates=True, n_rows=240, width=len(OFFSETS))
    result = measure_persistence(run, run, 0)
    refit, fixed = result.curve(ALL_EMOTIONS, "refit"), result.curve(ALL_EMOTIONS, "offset-0")
    assert all(point.low > 0.75 for point in refit.auroc)
    assert fixed.auroc[0].low > 0.75
    assert all(point.value < 0.62 for point in fixed.auroc[1:])
    assert refit.half_life.above_chance
    assert refit.half_life.tokens is None
    assert 0 < (fixed.half_life.tokens or 0) < 1


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_a_measurement_is_the_same_twice_and_calls_back_once_an_offset(plant: Plant, kind: str) -> None:
    run = planted_run(plant, 2, rotates=False, n_rows=60)
    amounts: list[int] = []
    first = measure_persistence(run, run, 0, kind, on_offset=lambda amount: amounts.append(amount))
    assert amounts == [1] * len(OFFSETS)
    assert measure_persistence(run, run, 0, kind) == first
    assert {(curve.emotion, curve.reader) for curve in first.curves} == {
        (emotion, reader) for emotion in ("joy", "fear", ALL_EMOTIONS) for reader in READERS
    }


def test_a_sample_without_test_utterances_is_measured_because_folds_need_no_split(plant: Plant) -> None:
    states = np.random.default_rng(0).standard_normal((1, 40, 2, 3)).astype(np.float32)
    run = plant(states, {"label": ["joy", "fear"] * 20, "split": ["train"] * 40}, offsets=(0, 1))
    assert measure_persistence(run, run, 0).n_utterances == 40


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_states_that_are_all_alike_score_chance_and_have_no_half_life(plant: Plant, kind: str) -> None:
    run = plant(np.full((1, 40, 2, 3), 7, np.float32), {"label": ["joy", "fear"] * 20}, offsets=(0, 1))
    for curve in measure_persistence(run, run, 0, kind).curves:
        assert all(point.low < point.value == 0.5 < point.high for point in curve.auroc)
        assert not curve.half_life.above_chance


def test_a_label_within_one_pair_is_refused_by_name(plant: Plant) -> None:
    states = np.random.default_rng(0).standard_normal((1, 46, 2, 3)).astype(np.float32)
    run = plant(states, {"label": ["joy"] * 40 + ["fear"] * 6, "pair_id": [*range(40), *[99] * 6]}, offsets=(0, 1))
    with pytest.raises(ValueError, match=r"label 'fear' has too few examples \(6, of different situations 1\)"):
        measure_persistence(run, run, 0)


def test_a_label_called_all_is_refused_before_anything_is_extracted(plant: Plant) -> None:
    run = plant(np.zeros((1, 40, 2), np.float32), {"label": ["all", "fear"] * 20, "n_tokens": [1] * 40})
    with pytest.raises(ValueError, match=r"a label is called 'all', .*; rename it"):
        continued_request(run, (0,), "Some text.", 8)


def test_an_incomplete_continued_run_is_refused(plant: Plant) -> None:
    states = np.zeros((1, 40, 2, 3), np.float32)
    run = plant(states, {"label": ["joy", "fear"] * 20}, offsets=(0, 1), rows_per_shard=10, missing={2})
    with pytest.raises(ValueError, match="1 of 4 shards are missing"):
        measure_persistence(run, run, 0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), per_label=st.integers(5, 9))
def test_a_sample_that_is_granted_has_situations_enough_to_be_measured(plant: Plant, seed: int, per_label: int) -> None:
    """Else the refusal comes only after the continuation was extracted for nothing."""
    columns: dict[str, list[object]] = {
        "label": ["joy", "joy", "fear", "fear"] * 10,
        "pair_id": [row // 2 for row in range(40)],
        "utterance_id": [f"{seed} {row}" for row in range(40)],
        "n_tokens": [1] * 40,
    }
    try:
        table = continued_request(plant(np.zeros((1, 40, 1), np.float32), columns), (0,), "Some text.", per_label).corpus.table
    except ValueError:
        return
    sample = {name: table[name].to_pylist() for name in ("label", "pair_id")}
    assert labelled_examples(plant(np.zeros((1, table.num_rows, 1), np.float32), sample)).classes == ("fear", "joy")


@pytest.fixture(scope="module")
def real(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A real run of a labelled part of the built-in corpus, and its store."""
    location = str(tmp_path_factory.mktemp("real") / "store")
    builtin = read_corpus("builtin").table
    short = builtin.filter(pc.and_(pc.less(pc.utf8_length(builtin["text"]), 120), pc.is_valid(builtin["label"])))
    labels = np.array(short["label"].to_pylist())
    wanted = [np.flatnonzero(labels == label)[:12] for label in np.unique(labels)[:2]]
    columns = short.select(["utterance_id", "text", "label"])
    corpus = Corpus("short", columns).take(np.sort(np.concatenate(wanted)).tolist())
    plan = plan_run(Request(model=tiny_model.name, corpus=corpus, layers="2"), location)
    extract_missing(plan)
    return Run(plan.run), location


def test_a_continued_request_takes_the_runs_own_texts_at_most_so_many_of_each_label(real: tuple[Run, str]) -> None:
    run, _ = real
    texts = dict(zip(run.utterances()["utterance_id"].to_pylist(), run.utterances()["text"].to_pylist(), strict=True))
    for per_label in (5, 7, 12, 500):
        request = continued_request(run, (2,), "Some text.", per_label, (0, 2))
        table = request.corpus.table
        assert set(Counter(table["label"].to_pylist()).values()) == {min(per_label, 12)}
        sampled = dict(zip(table["utterance_id"].to_pylist(), table["text"].to_pylist(), strict=True))
        assert sampled.items() <= texts.items()
        assert continued_request(run, (2,), "Some text.", per_label, (0, 2)) == replace(request, corpus=request.corpus)
        assert (request.sites, request.layers, request.offsets) == ("resid.offset", "2", (0, 2))
        assert (request.model, request.template) == (run.manifest.model, run.manifest.template)


def test_a_smaller_sample_is_part_of_a_larger_one(real: tuple[Run, str]) -> None:
    small, large = (
        set(continued_request(real[0], (2,), "Some text.", per_label).corpus.table["utterance_id"].to_pylist())
        for per_label in (5, 8)
    )
    assert small < large


@pytest.mark.parametrize("per_label", [-1, 0, 1, 4])
def test_a_sample_of_fewer_than_five_of_each_label_is_refused(real: tuple[Run, str], per_label: int) -> None:
    with pytest.raises(ValueError, match=f"^{per_label} utterances of each label are too few; take 5 or more$"):
        continued_request(real[0], (2,), "Some text.", per_label)


def test_a_real_run_is_continued_extracted_and_measured(real: tuple[Run, str]) -> None:
    run, location = real
    offsets = (0, 1, 4, 8)
    passage = read_passages()["text"][0].as_py()[:60]
    plan = plan_run(continued_request(run, (2,), passage, 8, offsets), location)
    extract_missing(plan)
    continued = Run(plan.run)
    result = measure_persistence(run, continued, 2)
    assert (result.run_id, result.continued_run_id) == (run.run_id, continued.run_id)
    assert (result.n_utterances, result.offsets, result.layer) == (16, offsets, 2)
    for curve in result.curves:
        assert all(0 <= point.low <= point.value <= point.high <= 1 for point in curve.auroc)
    rows = [
        run.utterances()["utterance_id"].to_pylist().index(name) for name in continued.utterances()["utterance_id"].to_pylist()
    ]
    last = run.hidden("resid.last", 2)[rows]
    np.testing.assert_allclose(continued.hidden("resid.offset", 2)[:, 0], last, atol=0.02 * float(np.abs(last).max()))
