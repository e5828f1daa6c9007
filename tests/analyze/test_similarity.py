"""Neighbours and extremes are those of a brute force over all rows, to the last bit, whatever the numbers are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from analyze import similarity
from analyze.query import Run
from analyze.similarity import METRICS, Neighbours, nearest
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
@settings(max_examples=60, deadline=None)
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
