"""Utterances and states over HTTP are those of the library."""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from analyze.exporting import json_rows
from analyze.query import Run, open_store
from analyze.service.app import application
from tests.analyze.service.conftest import SETTINGS, URL, asking, refused
from tests.analyze.service.stores import Planted
from tests.analyze.test_sql import N_ROWS
from tests.planted import receipt_of


def arrow(content: bytes) -> pa.Table:
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()


def shown(table: pa.Table) -> list[dict[str, Any]]:
    return [row for batch in table.to_batches() for row in json_rows(batch)]


_which: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"rows": st.lists(st.integers(0, N_ROWS - 1), min_size=1, max_size=6)}),
    st.fixed_dictionaries({"where": st.sampled_from(["label = 'joy'", "row % 3 = 0 AND n_tokens > 2", "false"])}),
    st.just({}),
)
_paging = st.fixed_dictionaries({"offset": st.integers(0, 50)}, optional={"limit": st.integers(0, 50)})


@settings(max_examples=25, deadline=None)
@given(which=_which, paging=_paging, layers=st.lists(st.sampled_from([0, 1]), min_size=1, max_size=3, unique=True))
def test_a_slice_is_that_of_the_library(
    client: TestClient, planted: Planted, which: dict[str, Any], paging: dict[str, Any], layers: list[int]
) -> None:
    asked: dict[str, Any] = {"site": "resid.last", "layer": layers, **which, **paging}
    path = f"/api/runs/{planted.whole.run_id}"
    expected = planted.whole.hidden_arrow("resid.last", layers, which.get("where"), rows=which.get("rows"), **paging)
    answer = client.get(f"{path}/hidden", params=asked)
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert arrow(answer.content).equals(expected)
    assert client.get(f"{path}/hidden", params={**asked, "format": "json"}).json() == {"rows": shown(expected)}
    reading = planted.whole.explain("resid.last", layers, which.get("where"), rows=which.get("rows"), **paging)
    said = client.get(f"{path}/explain", params=asked).json()
    assert (tuple(said["shape"]), said["n_bytes"], said["memory_bytes"]) == (
        reading.shape,
        reading.n_bytes,
        reading.memory_bytes,
    )


@settings(max_examples=15, deadline=None)
@given(which=_which, paging=_paging)
def test_utterances_are_those_of_the_library(
    client: TestClient, planted: Planted, which: dict[str, Any], paging: dict[str, Any]
) -> None:
    matching = planted.whole.utterances(which.get("where"))
    if "rows" in which:
        matching = matching.take(which["rows"])
    expected = matching.slice(paging["offset"], paging.get("limit"))
    path = f"/api/runs/{planted.whole.run_id[:5]}/utterances"
    answer = client.get(path, params={**which, **paging}).json()
    columns = [{"name": field.name, "type": str(field.type)} for field in expected.schema]
    assert answer == {"n": matching.num_rows, "columns": columns, "rows": shown(expected)}
    streamed = arrow(client.get(path, params={**which, **paging, "format": "arrow"}).content)
    assert streamed.to_pylist().__repr__() == expected.to_pylist().__repr__()  # NaN is not equal to itself


def _path(run: Run, what: str) -> str:
    return f"/api/runs/{run.run_id}/{what}"


def test_what_is_not_there_is_said_with_the_choices(client: TestClient, planted: Planted) -> None:
    whole, partial = planted.whole, planted.partial
    hidden = _path(whole, "hidden")
    assert "holds resid.last" in refused(client.get(hidden, params={"site": "resid.mean", "layer": 0}), 400)
    assert "there is no site 'nose'" in refused(client.get(hidden, params={"site": "nose", "layer": 0}), 400)
    assert "it holds 0, 1" in refused(client.get(hidden, params={"site": "resid.last", "layer": 7}), 400)
    assert "its rows are 0 to 39" in refused(client.get(hidden, params={"site": "resid.last", "layer": 1, "rows": 40}), 400)
    both: dict[str, Any] = {"site": "resid.last", "layer": 1, "rows": 1, "where": "true"}
    assert "give one of them" in refused(client.get(hidden, params=both), 400)
    assert "layer: Field required" in refused(client.get(hidden, params={"site": "resid.last"}), 422)
    not_whole = client.get(_path(partial, "hidden"), params={"site": "resid.last", "layer": 1})
    assert "not complete: 1 of 3 shards" in refused(not_whole, 400)
    of_tokens = client.get(_path(planted.tokens, "hidden"), params={"site": "resid.all", "layer": 1})
    assert "keeps every token" in refused(of_tokens, 400)
    late = client.get(_path(partial, "utterances"))
    assert "cast its column to VARCHAR" in refused(late, 400)


@pytest.mark.parametrize("where", ["colour = 'red'", "label =", "1=1; DROP TABLE utterances", "row IN (FROM '/etc/passwd')"])
def test_what_is_no_condition_is_refused_with_the_columns(client: TestClient, planted: Planted, where: str) -> None:
    sentence = refused(client.get(_path(planted.whole, "utterances"), params={"where": where}), 400)
    assert "label, n_tokens, valence" in sentence or "/etc/passwd" in sentence


def test_limits_are_decided_before_anything_is_read(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("a state was read")

    monkeypatch.setattr("analyze.slices.Plan.read", none)
    n_bytes = 2 * N_ROWS * planted.whole.manifest.width * 4
    asked: dict[str, Any] = {"site": "resid.last", "layer": [0, 1]}
    refusing = asking(planted, most_bytes=n_bytes - 1)
    sentence = refused(refusing.get(_path(planted.whole, "hidden"), params=asked), 413)
    assert f"{n_bytes:,} bytes and at most {n_bytes - 1:,}" in sentence
    assert "limit and offset" in sentence
    as_json = refused(
        asking(planted, most_bytes=n_bytes).get(_path(planted.whole, "hidden"), params={**asked, "format": "json"}), 413
    )
    assert f"{5 * n_bytes:,} bytes" in as_json
    monkeypatch.undo()
    assert asking(planted, most_bytes=n_bytes).get(_path(planted.whole, "hidden"), params=asked).status_code == 200


def test_rows_and_bytes_of_utterances_are_limited(planted: Planted) -> None:
    path = _path(planted.whole, "utterances")
    assert "40 rows and at most 39" in refused(asking(planted, most_rows=39).get(path), 413)
    assert asking(planted, most_rows=39).get(path, params={"limit": 39}).status_code == 200
    assert "bytes" in refused(asking(planted, most_json_bytes=100).get(path), 413)


def test_a_run_that_was_repaired_is_found_again(planted: Planted, tmp_path: Path) -> None:
    """Its objects are others than those of the receipts that were kept."""
    copytree(planted.location, tmp_path / "store")
    stored = open_store(str(tmp_path / "store")).run(planted.whole.run_id).stored
    asker = TestClient(application(open_store(str(tmp_path / "store")), SETTINGS), base_url=URL)
    asked: dict[str, Any] = {"site": "resid.last", "layer": 1, "rows": 0}
    before = asker.get(_path(planted.whole, "hidden"), params=asked)
    old = stored.receipt(0)
    assert old is not None
    states = planted.whole.hidden("resid.last", (0, 1))
    start, stop = stored.shard_rows(0)
    assert stored.void(0, 1, "to do it again")
    written = stored.write_attempt(0, {"resid.last": np.asarray(states)[:, start:stop].copy()}, (), None)
    assert stored.commit(receipt_of(stored, 0, 2, written, n_tokens=100))
    stored.objects.remove(f"shards/000000-{old.attempt}")
    assert "is missing" in refused(asker.get(_path(planted.whole, "hidden"), params=asked), 400)
    after = asker.get(_path(planted.whole, "hidden"), params=asked)
    assert after.content == before.content
