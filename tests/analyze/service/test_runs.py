"""Runs and their results over HTTP are those of the store."""

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from starlette.testclient import TestClient

from analyze.query import open_store
from analyze.service.app import application
from tests.analyze.asking import asked
from tests.analyze.service.conftest import SETTINGS, URL, refused
from tests.analyze.service.stores import Planted


def test_runs_say_what_their_manifests_say(client: TestClient, planted: Planted) -> None:
    answer = client.get("/api/runs").json()
    runs: Mapping[str, Any] = {run["run_id"]: run for run in answer["runs"]}
    assert answer["problems"] == []
    assert sorted(runs) == sorted(run.run_id for run in (planted.whole, planted.partial, planted.tokens))
    created = [run["created"] for run in answer["runs"]]
    assert created == sorted(created, reverse=True)
    for run, complete in ((planted.whole, True), (planted.partial, False), (planted.tokens, True)):
        found, manifest = runs[run.run_id], run.manifest
        assert (found["complete"], found["imported"]) == (complete, False)
        assert (found["model"], found["corpus"], found["n_rows"]) == (manifest.model, manifest.corpus, manifest.n_rows)
        assert [(site["site"], tuple(site["layers"])) for site in found["sites"]] == [
            (site, run.layers_of(site)) for site in run.sites
        ]
        assert client.get(f"/api/runs/{run.run_id[:6]}").json() == found
    assert [site["every_token"] for site in runs[planted.tokens.run_id]["sites"]] == [True, False]


@pytest.mark.parametrize("name", ["scores", "persistence"])
def test_results_are_those_of_sql(client: TestClient, planted: Planted, name: str) -> None:
    for run in (planted.whole, planted.partial):
        rows = client.get(f"/api/runs/{run.run_id}/{name}").json()["rows"]
        expected = asked(open_store(planted.location), f"FROM {name} WHERE run_id = '{run.run_id}'")
        assert sorted(map(repr, rows)) == sorted(map(repr, expected))
        assert bool(rows) == (name == "scores" and run is planted.whole)


def test_no_run_and_several_runs_are_told_apart(client: TestClient, planted: Planted) -> None:
    ids = sorted(run.run_id for run in (planted.whole, planted.partial, planted.tokens))
    for path in ("", "/scores", "/utterances", "/hidden?site=resid.last&layer=0"):
        sentence = refused(client.get(f"/api/runs/zz{path}"), 404)
        assert sentence.endswith(f"runs: {', '.join(ids)}")
    assert "there is nothing at /api/runs/" in refused(client.get("/api/runs/"), 404)
    assert "there is nothing at /elsewhere" in refused(client.get("/elsewhere"), 404)
    assert "DELETE is not for /api/runs" in refused(client.request("DELETE", "/api/runs"), 405)


def test_an_ambiguous_beginning_names_the_runs_that_begin_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = ["aa00000000000000", "aa00000000000001"]
    monkeypatch.setattr("extract.store.Store.run_ids", lambda _: twins)
    assert refused(client.get("/api/runs/aa"), 400).endswith(f"runs: {', '.join(twins)}")


def test_a_damaged_run_does_not_hide_the_others_and_a_lost_one_is_gone(planted: Planted, tmp_path: Path) -> None:
    copytree(planted.location, tmp_path / "store")
    client = TestClient(application(open_store(str(tmp_path / "store")), SETTINGS), base_url=URL)
    (tmp_path / "store" / "runs" / planted.partial.run_id / "run.json").write_bytes(b"{}")
    answer = client.get("/api/runs").json()
    assert len(answer["runs"]) == 2
    (problem,) = answer["problems"]
    assert "is damaged" in problem
    (tmp_path / "store" / "runs").rename(tmp_path / "elsewhere")
    assert client.get("/api/runs").json() == {"runs": [], "problems": []}
    lost = client.get(f"/api/runs/{planted.whole.run_id}/hidden?site=resid.last&layer=0")
    assert "is missing" in refused(lost, 400)
    assert "no run starts with" in refused(client.get(f"/api/runs/{planted.whole.run_id}/utterances"), 404)
