"""Opening and creating stores, and the documents in them."""

import json
from pathlib import Path

import pytest

from extract.corpus import read_corpus
from extract.identity import FORMAT_VERSION
from extract.models import Model
from extract.request import Request
from extract.run import plan_run
from extract.store import Store

_RUN_ID = "0123456789abcdef"
_MARKER = '{"format":"affectome-store","version":%d}'


def test_a_new_or_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for location in (tmp_path / "new" / "deep", tmp_path / "empty"):
        assert Store.open(str(location), create=True).run_ids() == []
        assert Store.open(f"file://{location}").run_ids() == []


def test_something_else_at_the_path_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is a file, not a store"):
        Store.open(str(file), create=True)
    with pytest.raises(ValueError, match=r"is not a store: it has no affectome\.json"):
        Store.open(str(tmp_path), create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reading_where_there_is_no_store_creates_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no store at"):
        Store.open(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            _MARKER % (FORMAT_VERSION + 1),
            f"version {FORMAT_VERSION + 1}, but .* reads up to {FORMAT_VERSION}; upgrade affectome",
        ),
        (_MARKER % (FORMAT_VERSION - 1), f"version {FORMAT_VERSION - 1}, which was never released; extract again"),
        (_MARKER.replace("affectome", "another") % FORMAT_VERSION, "damaged, or .* is not a store; .* verify --repair"),
        (_MARKER % FORMAT_VERSION + " ", "is missing or damaged"),
        ("[]", "is missing or damaged"),
        ("", "is missing or damaged"),
    ],
)
def test_a_newer_or_damaged_store_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "affectome.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Store.open(str(tmp_path), create=True)


def test_a_url_of_no_known_filesystem_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"cannot open nowhere://bucket/store: .*nowhere"):
        Store.open("nowhere://bucket/store", create=True)


@pytest.mark.parametrize("lost", [None, b"", b"[]"])
def test_a_lost_or_damaged_marker_is_restored_where_there_are_runs_and_only_there(tmp_path: Path, lost: bytes | None) -> None:
    marker = tmp_path / "affectome.json"
    Store.open(str(tmp_path), create=True)
    whole = marker.read_bytes()
    assert not Store.restore_marker(str(tmp_path))
    marker.unlink() if lost is None else marker.write_bytes(lost)
    assert not Store.restore_marker(str(tmp_path))
    (tmp_path / "runs" / _RUN_ID).mkdir(parents=True)
    assert Store.restore_marker(str(tmp_path))
    assert marker.read_bytes() == whole
    assert not Store.restore_marker(str(tmp_path))


def test_a_marker_of_another_version_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "runs" / _RUN_ID).mkdir(parents=True)
    (tmp_path / "affectome.json").write_text(_MARKER % (FORMAT_VERSION + 1))
    with pytest.raises(ValueError, match="upgrade affectome"):
        Store.restore_marker(str(tmp_path))
    assert (tmp_path / "affectome.json").read_text() == _MARKER % (FORMAT_VERSION + 1)


def test_a_run_is_found_by_an_unambiguous_prefix_only(tiny_model: Model, tmp_path: Path) -> None:
    corpus = read_corpus("builtin")
    ids = {plan_run(Request(tiny_model.name, corpus.head(rows)), str(tmp_path)).run.run_id for rows in range(1, 11)}
    store = Store.open(str(tmp_path))
    assert set(store.run_ids()) == ids
    assert all(store.run(run_id).run_id == run_id for run_id in ids)
    with pytest.raises(ValueError, match="no run starts with 'zz'"):
        store.run("zz")
    shared = next(prefix for prefix in "0123456789abcdef" if sum(run_id.startswith(prefix) for run_id in ids) > 1)
    with pytest.raises(ValueError, match=f"runs start with '{shared}'"):
        store.run(shared)
    with pytest.raises(ValueError, match=r"say which run of .* by its id, or by how that begins"):
        store.run("")


def test_documents_are_readable_json_that_carries_its_own_digest(tiny_model: Model, tmp_path: Path) -> None:
    run = plan_run(Request(tiny_model.name, read_corpus("builtin").head(3)), str(tmp_path)).run
    document = json.loads(run.objects.read("run.json"))
    assert document["run_id"] == run.run_id
    assert len(document["sha256"]) == 64
    assert document["identity"]["layers"] == [0, 1, 2, 3]
