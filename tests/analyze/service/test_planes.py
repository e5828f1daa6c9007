"""The plane over HTTP is that of analyze.plane, to four digits, coloured by a column, and made once."""

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from analyze.plane import place_states
from tests.analyze.service.conftest import asking, refused
from tests.analyze.service.stores import Planted
from tests.analyze.test_sql import N_ROWS


@pytest.mark.parametrize("where", [None, "row % 2 = 0 AND row > 5"])
def test_points_and_colours_are_those_of_the_rows(client: TestClient, planted: Planted, where: str | None) -> None:
    rows = planted.whole.utterances(where)["row"].to_numpy()
    expected = place_states(planted.whole, "resid.last", 1, rows)
    asked: dict[str, Any] = {"site": "resid.last", "layer": 1, "colour": "label"} | ({} if where is None else {"where": where})
    answer = client.get(f"/api/runs/{planted.whole.run_id}/projection", params=asked).json()
    assert (answer["n"], answer["n_fitted"], answer["row"]) == (len(rows), len(rows), rows.tolist())
    np.testing.assert_allclose(np.column_stack([answer["x"], answer["y"]]), expected.points_N2, rtol=6e-4)
    assert all(len(f"{abs(x):.10f}".replace(".", "").strip("0")) <= 4 for x in answer["x"])
    assert answer["variance"] == pytest.approx(expected.plane.variance)
    labels = planted.whole.utterances(where)["label"].to_pylist()
    assert [None if code < 0 else answer["classes"][code] for code in answer["label"]] == labels
    assert answer["classes"] == sorted(set(planted.whole.utterances()["label"].to_pylist()) - {None})


def test_a_class_keeps_its_place_when_few_rows_are_chosen(client: TestClient, planted: Planted) -> None:
    path = f"/api/runs/{planted.whole.run_id}/projection"
    asked: dict[str, Any] = {"site": "resid.last", "layer": 1}
    few = client.get(path, params={**asked, "where": "label = 'joy'", "colour": "label"}).json()
    assert few["classes"] == ["fear", "joy"]
    assert set(few["label"]) == {1}
    plain = client.get(path, params=asked).json()
    assert (plain["classes"], plain["label"]) == ([], [])


def test_a_column_that_makes_no_colours_is_refused_with_the_reason(client: TestClient, planted: Planted) -> None:
    path = f"/api/runs/{planted.whole.run_id}/projection?site=resid.last&layer=0"
    assert "choose from row, utterance_id" in refused(client.get(f"{path}&colour=mood"), 400)
    assert "holds list" in refused(client.get(f"{path}&colour=marks"), 400)
    assert "holds double" in refused(client.get(f"{path}&colour=odd"), 400)
    assert client.get(f"{path}&colour=n_tokens").json()["classes"] == sorted(
        {str(n) for n in planted.whole.utterances()["n_tokens"].to_pylist()}
    )
    assert "no utterance is chosen" in refused(client.get(f"{path}&where=false"), 400)
    assert "utterances in one plane" in refused(asking(planted, most_projected=N_ROWS - 1).get(path), 413)


def test_a_plane_is_made_once_however_many_ask_at_once(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(*arguments: object) -> object:
        made.append(1)
        threading.Event().wait(0.3)
        return place_states(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("analyze.service.planes.place_states", counted)
    client, answers = asking(planted), []
    path = f"/api/runs/{planted.whole.run_id}/projection?site=resid.last&layer=1"
    threads = [threading.Thread(target=lambda: answers.append(client.get(path).content)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    assert len(made) == 1
    client.get(path.replace("layer=1", "layer=0"))
    assert len(made) == 2


def test_colours_of_any_text_column_are_its_values(client: TestClient, planted: Planted) -> None:
    answer = client.get(f"/api/runs/{planted.whole.run_id}/projection?site=resid.last&layer=0&colour=text").json()
    texts: pa.ChunkedArray = planted.whole.utterances()["text"]
    assert [answer["classes"][code] for code in answer["label"]] == texts.to_pylist()
