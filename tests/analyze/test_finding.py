"""What a search finds comes as a table: the utterances with their columns, in the order of the search."""

import numpy as np
import pytest
from numpy.typing import NDArray

from analyze.directions import mean_difference
from analyze.query import Run
from analyze.scaling import SCALINGS, scaling_of
from analyze.similarity import along, nearest
from tests.analyze.conftest import Plant

SITE, N_ROWS = "resid.last", 40


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    hidden: NDArray[np.float32] = np.random.default_rng(0).standard_normal((2, N_ROWS, 8)).astype(np.float32) + 3
    return plant(hidden, {"label": ["joy", "fear"] * (N_ROWS // 2), "score": [7.0] * N_ROWS, "end": ["x"] * N_ROWS})


@pytest.mark.parametrize("scaling", SCALINGS)
def test_neighbours_come_with_their_utterances_query_after_query(run: Run, scaling: str) -> None:
    queries = run.hidden(SITE, 1, rows=[3, 8])
    found = run.nearest(SITE, 1, queries, 4, "label = 'joy'", scaling=scaling)
    seen = scaling_of(run, SITE, 1, scaling)
    expected = nearest(run, SITE, 1, queries, 4, where="label = 'joy'", scaling=seen)
    assert found.column_names == ["query", "score", "row", "utterance_id", "text", "label", "end"]
    assert found["query"].to_pylist() == [0] * 4 + [1] * 4
    assert found["row"].to_pylist() == expected.rows_QK.reshape(-1).tolist()
    assert found["score"].to_pylist() == expected.scores_QK.reshape(-1).tolist()
    assert found["utterance_id"].to_pylist() == [f"u{row}" for row in expected.rows_QK.reshape(-1)]
    assert set(found["label"].to_pylist()) == {"joy"}


def test_both_ends_of_a_direction_come_with_their_utterances(run: Run) -> None:
    direction_D = mean_difference(run, SITE, 0, "label = 'joy'", "label = 'fear'")
    found, expected = run.along(SITE, 0, direction_D, 3), along(run, SITE, 0, direction_D, 3)
    assert found.column_names == ["end", "score", "row", "utterance_id", "text", "label"]
    assert found["end"].to_pylist() == ["top"] * 3 + ["bottom"] * 3
    assert found["row"].to_pylist() == [*expected.top.rows_K.tolist(), *expected.bottom.rows_K.tolist()]
    assert found["score"].to_pylist() == [*expected.top.scores_K.tolist(), *expected.bottom.scores_K.tolist()]
    assert run.along(SITE, 0, direction_D, 3, "false").num_rows == 0


def test_a_search_that_cannot_be_is_refused_before_a_model_is_looked_for(run: Run) -> None:
    with pytest.raises(ValueError, match="does not hold layer 5"):
        run.nearest(SITE, 5, "a text")
    with pytest.raises(ValueError, match="cannot use where='colour = 1'"):
        run.nearest(SITE, 1, "a text", where="colour = 1")
    with pytest.raises(ValueError, match="choose from cosine, dot, euclidean"):
        run.nearest(SITE, 1, "a text", metric="manhattan")
    with pytest.raises(ValueError, match="choose from none, centred, standardised"):
        run.nearest(SITE, 1, "a text", scaling="rogue")
    with pytest.raises(ValueError, match="there is no model 'planted'"):
        run.nearest(SITE, 1, "a text")
    with pytest.raises(ValueError, match="there is no text to read"):
        run.nearest(SITE, 1, [])
