"""Neighbours and extremes are those of a brute force over all rows, to the last bit, whatever the numbers are."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from analyze import similarity
from analyze.query import Run
from analyze.similarity import METRICS, Neighbours, Scaling, along, nearest
from tests.analyze.conftest import Plant

Floats = NDArray[np.float64]

SITE = "resid.last"
DEVICES = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
N_ROWS, WIDTH = 260, 24


def brute_scores(states_ND: Floats, query_D: Floats, metric: str) -> Floats:
    """One row after another, as the definitions say."""
    found = []
    for state_D in states_ND:
        match metric:
            case "dot":
                found.append((state_D * query_D).sum())
            case "euclidean":
                found.append(np.sqrt(((state_D - query_D) ** 2).sum()))
            case "cosine":
                lengths = np.sqrt((query_D * query_D).sum() * (state_D * state_D).sum())
                found.append(np.clip((state_D * query_D).sum() / lengths, -1, 1) if lengths else 0.0)
    return np.array(found, np.float64)


def brute_force(states_ND: Floats, queries_QD: Floats, rows: Sequence[int], k: int, metric: str) -> Neighbours:
    """Sort all, equal scores by row."""
    rows_QK, scores_QK = [], []
    for query_D in queries_QD:
        scores = brute_scores(states_ND[list(rows)], query_D, metric)
        order = np.lexsort((np.asarray(rows), scores if metric == "euclidean" else -scores))[:k]
        rows_QK.append(np.asarray(rows, np.int64)[order])
        scores_QK.append(scores[order])
    return Neighbours(metric, np.stack(rows_QK), np.stack(scores_QK))


def assert_same(found: Neighbours, expected: Neighbours) -> None:
    np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
    np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


def awkward_states(rng: np.random.Generator) -> NDArray[np.float32]:
    """Layer 0 plain; 1 with massive activations and differences of 1; 2 of few values, so with many ties and zeros."""
    plain = rng.standard_normal((N_ROWS, WIDTH)).astype(np.float32)
    massive = plain + np.where(np.arange(WIDTH) % 5 == 0, 3e5, 0).astype(np.float32)
    massive[N_ROWS // 2 :] = massive[: N_ROWS - N_ROWS // 2]  # every text twice
    few = rng.integers(-1, 2, (N_ROWS, WIDTH)).astype(np.float32)
    few[:, 2:] = 0
    return np.stack([plain, massive, few])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request: pytest.FixtureRequest, plant: Plant) -> Run:
    labels = {"label": ["joy", "fear"] * (N_ROWS // 2)}
    return plant(awkward_states(np.random.default_rng(0)), labels, stored_dtype=request.param, rows_per_shard=100)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_neighbours_are_those_of_a_brute_force(run: Run, data: st.DataObject) -> None:
    layer = data.draw(st.sampled_from(run.layers), "layer")
    states_ND = run.hidden(SITE, layer).astype(np.float64)
    metric, k = data.draw(st.sampled_from(METRICS), "metric"), data.draw(st.integers(1, N_ROWS + 3), "k")
    of_rows = states_ND[data.draw(st.lists(st.integers(0, N_ROWS - 1), max_size=3), "rows")]
    free = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(WIDTH)), elements=st.floats(-1e4, 1e4, width=32))
    queries_QD = np.concatenate([of_rows, data.draw(free, "free").astype(np.float64)])
    if metric == "cosine":
        queries_QD[~queries_QD.any(axis=1)] = 1
    every = data.draw(st.integers(1, 30), "every")
    block_rows = data.draw(st.integers(1, N_ROWS), "block_rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_FEWEST_ROWS", block_rows)
        patch.setattr(similarity, "_BLOCK_BYTES", 1)
        patch.setattr(similarity, "_PRODUCT_BYTES", 1)
        patch.setattr(similarity, "_FEWEST_QUERIES", data.draw(st.sampled_from([1, 32]), "fewest queries"))
        found = nearest(run, SITE, layer, queries_QD, k, metric=metric, where=f"row % {every} = 0")
    assert_same(found, brute_force(states_ND, queries_QD, range(0, N_ROWS, every), k, metric))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_every_device_gives_the_same_answer(run: Run, metric: str, device: str) -> None:
    for layer in run.layers:
        states_ND = run.hidden(SITE, layer).astype(np.float64)
        queries_QD = np.concatenate([states_ND[5:9], np.ones((1, WIDTH))])
        queries_QD[~queries_QD.any(axis=1)] = 1
        found = nearest(run, SITE, layer, queries_QD, 7, metric=metric, device=device)
        assert_same(found, brute_force(states_ND, queries_QD, range(N_ROWS), 7, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_scipy(run: Run, metric: str) -> None:
    states_ND, queries_QD = run.hidden(SITE, 0).astype(np.float64), np.random.default_rng(1).standard_normal((40, WIDTH))
    found = nearest(run, SITE, 0, queries_QD, N_ROWS, metric=metric)
    match metric:
        case "cosine":
            expected_QN = 1 - cdist(queries_QD, states_ND, "cosine")
        case "dot":
            expected_QN = queries_QD @ states_ND.T
        case _:
            expected_QN = cdist(queries_QD, states_ND)
    np.testing.assert_allclose(found.scores_QK, np.take_along_axis(expected_QN, found.rows_QK, axis=1), rtol=1e-12, atol=1e-12)
    sign = -1 if metric == "euclidean" else 1
    assert (np.diff(sign * found.scores_QK, axis=1) <= 0).all()
    np.testing.assert_array_equal(np.sort(found.rows_QK, axis=1), np.tile(np.arange(N_ROWS), (40, 1)))


def test_equal_texts_are_equally_near_and_the_first_comes_first(run: Run) -> None:
    half = N_ROWS // 2
    for metric in ("cosine", "euclidean"):
        found = nearest(run, SITE, 1, run.hidden(SITE, 1, rows=[half + 3]), 4, metric=metric)
        assert found.rows_QK[0, :2].tolist() == [3, half + 3]
        assert found.scores_QK[0, :2].tolist() == [float(metric == "cosine")] * 2
        assert found.scores_QK[0, 2] == found.scores_QK[0, 3] != found.scores_QK[0, 1]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_extremes_are_those_of_a_brute_force_and_a_directions_length_does_not_matter(run: Run, data: st.DataObject) -> None:
    layer, k = data.draw(st.sampled_from(run.layers), "layer"), data.draw(st.integers(1, N_ROWS), "k")
    values = st.floats(-1e6, 1e6, width=32).filter(lambda value: not 0 < abs(value) < 1e-20)
    direction_D = data.draw(hnp.arrays(np.float32, WIDTH, elements=values).filter(np.any), "direction").astype(np.float64)
    states_ND = run.hidden(SITE, layer).astype(np.float64)
    projection_N = states_ND @ direction_D / np.sqrt((direction_D**2).sum())
    found = along(run, SITE, layer, direction_D, k)
    size = np.abs(states_ND).max()
    for ranked, sign in ((found.top, 1), (found.bottom, -1)):
        np.testing.assert_allclose(ranked.scores_K, projection_N[ranked.rows_K], rtol=1e-12, atol=1e-11 * size)
        sorted_K = sign * np.sort(sign * projection_N)[::-1][:k]
        np.testing.assert_allclose(ranked.scores_K, sorted_K, rtol=1e-12, atol=1e-11 * size)
        order = np.lexsort((ranked.rows_K, -sign * ranked.scores_K))
        np.testing.assert_array_equal(order, np.arange(k))
    longer = along(run, SITE, layer, 1024 * direction_D, k)
    np.testing.assert_array_equal(longer.top.rows_K, found.top.rows_K)
    np.testing.assert_array_equal(longer.bottom.scores_K, found.bottom.scores_K)


@pytest.mark.parametrize("metric", METRICS)
def test_states_and_queries_are_scaled_alike(run: Run, metric: str) -> None:
    states_ND, rng = run.hidden(SITE, 1).astype(np.float64), np.random.default_rng(5)
    scaling = Scaling(states_ND.mean(axis=0), rng.uniform(0.1, 9, WIDTH))
    scaled_ND = (states_ND - scaling.origin_D) / scaling.scale_D
    found = nearest(run, SITE, 1, states_ND[[0, 100]], 9, metric=metric, scaling=scaling)
    assert_same(found, brute_force(scaled_ND, scaled_ND[[0, 100]], range(N_ROWS), 9, metric))


def test_a_state_of_zeros_has_a_cosine_of_zero_and_no_row_is_near_where_none_is_asked_for(run: Run) -> None:
    zeros = np.flatnonzero(~run.hidden(SITE, 2).any(axis=1))
    assert len(zeros)
    found = nearest(run, SITE, 2, np.ones(WIDTH), N_ROWS)
    assert (found.scores_QK[0, np.isin(found.rows_QK[0], zeros)] == 0).all()
    assert nearest(run, SITE, 0, np.ones((3, WIDTH)), 5, where="false").rows_QK.shape == (3, 0)
    assert along(run, SITE, 0, np.ones(WIDTH), 5, where="row < 0").top.scores_K.shape == (0,)


def test_a_search_holds_some_blocks_and_not_the_layer(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plant(np.random.default_rng(0).standard_normal((1, 16_000, 128)).astype(np.float32), {})
    monkeypatch.setattr(similarity, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(similarity, "_BUFFER_BYTES", 1 << 18)
    nearest(run, SITE, 0, np.ones(128), 10)  # receipts and utterances are read and kept
    tracemalloc.start()
    nearest(run, SITE, 0, np.ones(128), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000 * 128 * 4 / 4


def test_what_cannot_be_compared_is_refused_in_one_sentence(run: Run, plant: Plant) -> None:
    def refusal(queries: ArrayLike, site: str = SITE, layer: int = 0, k: int = 1, **how: Any) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at what it says
            nearest(how.pop("run", run), site, layer, queries, k, **how)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    one = np.ones(WIDTH)
    assert f"a query is 24 numbers, as the states of run {run.run_id}, and this is 23" in refusal(np.ones(23))
    assert "this is 2 x 3 x 24" in refusal(np.ones((2, 3, WIDTH)))
    assert "this is one number" in refusal(3.0)
    assert "give a query at least" in refusal(np.ones((0, WIDTH)))
    assert "and this is not: could not convert" in refusal(["joy"] * WIDTH)
    for value in (np.nan, np.inf, 1e300):
        assert "not a finite number" in refusal(np.where(np.arange(WIDTH) == 3, value, 1.0))
    assert "no direction and no cosine" in refusal(np.zeros(WIDTH))
    assert "a query is 0 everywhere once it is scaled, so" in refusal(one, scaling=Scaling(one, one))
    assert "choose from cosine, dot, euclidean" in refusal(one, metric="manhattan")
    assert "a number of neighbours from 1, not 0" in refusal(one, k=0)
    assert "cannot multiply in float64 on 'abacus'" in refusal(one, device="abacus")
    assert "does not hold layer 9" in refusal(one, layer=9)
    assert "does not hold resid.mean; it holds resid.last" in refusal(one, "resid.mean")
    assert "cannot use where='colour = 1'" in refusal(one, where="colour = 1")
    grid = plant(np.ones((1, 4, 2, WIDTH), np.float32), {}, offsets=(0, 1))
    assert "keeps several states of an utterance" in refusal(one, "resid.offset", run=grid)
    assert f"run {grid.run_id} has no site with one" in refusal(one, "resid.offset", run=grid)
    assert "choose from resid.last" in refusal(one, "resid.all")
    with pytest.raises(ValueError, match="the direction is 0 everywhere"):
        along(run, SITE, 0, np.zeros(WIDTH), 1)
    with pytest.raises(ValueError, match="give one direction, not 2"):
        along(run, SITE, 0, np.ones((2, WIDTH)), 1)
