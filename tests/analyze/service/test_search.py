"""Neighbours and ends over HTTP are those of analyze.similarity."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from analyze.directions import mean_difference, probe_direction
from analyze.probes import ProbeSpec
from analyze.query import Run
from analyze.scaling import scaling_of
from analyze.similarity import along, nearest
from tests.analyze.service.conftest import asking, refused
from tests.analyze.service.stores import Planted

SITE: dict[str, Any] = {"site": "resid.last", "layer": 1}


def _post(client: TestClient, planted: Planted, what: str, **asked: Any) -> Any:
    return client.post(f"/api/runs/{planted.whole.run_id}/{what}", json={**SITE, **asked})


@pytest.mark.parametrize(
    ("metric", "scaling"), [("cosine", "none"), ("cosine", "centred"), ("dot", "standardised"), ("euclidean", "standardised")]
)
@pytest.mark.parametrize("where", [None, "label = 'joy'"])
def test_neighbours_are_those_of_the_library(
    client: TestClient, planted: Planted, metric: str, scaling: str, where: str | None
) -> None:
    state = planted.whole.hidden("resid.last", 1, rows=[7])[0].astype(np.float64)
    scaled = scaling_of(planted.whole, "resid.last", 1, scaling)
    expected = nearest(planted.whole, "resid.last", 1, state, 4, metric=metric, scaling=scaled, where=where)
    utterances = planted.whole.utterances().to_pylist()
    for query in ({"row": 7}, {"vector": state.tolist()}):
        answer = _post(client, planted, "neighbours", k=4, metric=metric, scaling=scaling, where=where, **query).json()
        assert (answer["metric"], answer["scaling"]) == (metric, scaling)
        assert answer["neighbours"] == [
            {name: utterances[row][name] for name in ("row", "utterance_id", "label", "text")} | {"score": score}
            for row, score in zip(expected.rows_QK[0].tolist(), expected.scores_QK[0].tolist(), strict=True)
        ]


def test_the_query_is_placed_in_the_plane_of_its_own_condition_whatever_was_drawn_since(planted: Planted) -> None:
    client, joy = asking(planted, queries_at_once=1), "label = 'joy'"
    try:
        assert _post(client, planted, "neighbours", row=7).json()["place"] is None
        planes = {}
        for where in (None, joy):
            params = SITE | ({} if where is None else {"where": where})
            plane = client.get(f"/api/runs/{planted.whole.run_id}/projection", params=params).json()
            planes[where] = dict(zip(plane["row"], zip(plane["x"], plane["y"], strict=True), strict=True))
        row = max(planes[joy])
        for where, points in planes.items():
            assert _post(client, planted, "neighbours", row=row, where=where).json()["place"] == list(points[row])
        assert planes[None][row] != planes[joy][row]
        assert _post(client, planted, "neighbours", row=7, layer=0).json()["place"] is None
    finally:
        client.app.state.queries.close()  # type: ignore[attr-defined]


def test_a_scaling_is_made_once(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(run: Run, site: str, layer: int, name: str) -> object:
        made.append(name)
        return scaling_of(run, site, layer, name)

    monkeypatch.setattr("analyze.service.search.scaling_of", counted)
    client = asking(planted)
    for _ in range(2):
        for scaling in ("centred", "standardised"):
            assert _post(client, planted, "neighbours", row=7, scaling=scaling).status_code == 200
    assert made == ["centred", "standardised"]


def test_ends_are_those_of_the_library_and_say_what_they_are_of(client: TestClient, planted: Planted) -> None:
    run, usual = planted.whole, probe_direction(planted.whole, "resid.last", 1, "joy")
    probe: dict[str, Any] = {"label": "joy", **asdict(ProbeSpec())}
    means = {"where": "label = 'joy'", "other": "label = 'fear'"}
    for asked, direction_D, of in (
        ({"label": "joy"}, usual.vector_D, probe),
        (probe, usual.vector_D, probe),
        (means, mean_difference(run, "resid.last", 1, means["where"], means["other"]), means),
    ):
        for among in (None, "row % 3 = 0"):
            expected = along(run, "resid.last", 1, direction_D, 3, where=among)
            answer = _post(client, planted, "along", k=3, among=among, **asked).json()
            assert answer["of"] == of
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
    assert "both where and other; among says" in sentence("along", label="joy", where="true")
    assert "strength chosen, balance none" in sentence("along", label="joy", balance="weights")
    assert "no ridge probes" in sentence("along", label="joy", kind="ridge")
    assert "an MLP reads no direction" in sentence("along", label="joy", kind="mlp")
    assert "there is no balance 'fair'" in sentence("along", label="joy", balance="fair")
    assert "scaling: Input should be" in sentence("neighbours", 422, row=1, scaling="some")
    assert "is given" in sentence("along", where="false", other="true")
    assert "there is no model 'planted'" in sentence("neighbours", text="hm")
    assert "reads no new texts" in refused(_post(asking(planted, texts=False), planted, "neighbours", text="hm"), 400)
    tokens = client.post(f"/api/runs/{planted.tokens.run_id}/neighbours", json={"site": "resid.all", "layer": 1, "row": 0})
    assert "choose from resid.last" in refused(tokens, 400)
