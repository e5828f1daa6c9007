"""Neighbours and ends over HTTP are those of analyze.similarity."""

from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from analyze.directions import mean_difference, probe_direction
from analyze.similarity import along, nearest
from tests.analyze.service.conftest import asking, refused
from tests.analyze.service.stores import Planted

SITE: dict[str, Any] = {"site": "resid.last", "layer": 1}


def _post(client: TestClient, planted: Planted, what: str, **asked: Any) -> Any:
    return client.post(f"/api/runs/{planted.whole.run_id}/{what}", json={**SITE, **asked})


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("where", [None, "label = 'joy'"])
def test_neighbours_are_those_of_the_library(client: TestClient, planted: Planted, metric: str, where: str | None) -> None:
    state = planted.whole.hidden("resid.last", 1, rows=[7])[0].astype(np.float64)
    expected = nearest(planted.whole, "resid.last", 1, state, 4, metric=metric, where=where)
    utterances = planted.whole.utterances().to_pylist()
    for query in ({"row": 7}, {"vector": state.tolist()}):
        answer = _post(client, planted, "neighbours", k=4, metric=metric, where=where, **query).json()
        assert answer["metric"] == metric
        assert answer["neighbours"] == [
            {name: utterances[row][name] for name in ("row", "utterance_id", "label", "text")} | {"score": score}
            for row, score in zip(expected.rows_QK[0].tolist(), expected.scores_QK[0].tolist(), strict=True)
        ]


def test_the_query_is_placed_in_the_plane_that_was_drawn_last(planted: Planted) -> None:
    client = asking(planted)
    assert _post(client, planted, "neighbours", row=7).json()["place"] is None
    plane = client.get(f"/api/runs/{planted.whole.run_id}/projection", params=SITE).json()
    assert _post(client, planted, "neighbours", row=7).json()["place"] == [plane["x"][7], plane["y"][7]]
    assert _post(client, planted, "neighbours", row=7, layer=0).json()["place"] is None


def test_ends_are_those_of_the_library(client: TestClient, planted: Planted) -> None:
    run = planted.whole
    means = {"where": "label = 'joy'", "other": "label = 'fear'"}
    for asked, direction in (
        ({"label": "joy"}, probe_direction(run, "resid.last", 1, "joy")),
        (means, mean_difference(run, "resid.last", 1, means["where"], means["other"])),
    ):
        expected = along(run, "resid.last", 1, direction, 3)
        answer = _post(client, planted, "along", k=3, **asked).json()
        for name, end in (("top", expected.top), ("bottom", expected.bottom)):
            assert [(found["row"], found["score"]) for found in answer[name]] == list(
                zip(end.rows_K.tolist(), end.scores_K.tolist(), strict=True)
            )


def test_what_cannot_be_asked_is_refused(client: TestClient, planted: Planted) -> None:
    def sentence(what: str, status: int = 400, **asked: Any) -> str:
        return refused(_post(client, planted, what, **asked), status)

    assert "one of text, row and vector" in sentence("neighbours")
    assert "one of text, row and vector" in sentence("neighbours", row=1, text="hm")
    assert "its rows are 0 to 39" in sentence("neighbours", row=40)
    assert "a query is 3 numbers" in sentence("neighbours", vector=[1.0])
    assert "0 everywhere" in sentence("neighbours", vector=[0, 0, 0])
    assert "neighbours and at most 1,000" in sentence("neighbours", 413, row=1, k=1001)
    assert "metric: Input should be" in sentence("neighbours", 422, row=1, metric="near")
    assert "vector" in sentence("neighbours", 422, vector=[1, "x", 3])
    assert "choose from fear, joy" in sentence("along", label="rage")
    assert "both where and other" in sentence("along", where="true")
    assert "is given" in sentence("along", where="false", other="true")
    assert "there is no model 'planted'" in sentence("neighbours", text="hm")
    assert "reads no new texts" in refused(_post(asking(planted, texts=False), planted, "neighbours", text="hm"), 400)
    tokens = client.post(f"/api/runs/{planted.tokens.run_id}/neighbours", json={"site": "resid.all", "layer": 1, "row": 0})
    assert "choose from resid.last" in refused(tokens, 400)
