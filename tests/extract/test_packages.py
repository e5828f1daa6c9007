"""Models that come as packages: assembled whole, refused when they are not there; the real ones against plain transformers."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from extract.corpus import read_corpus
from extract.engine import Engine
from extract.models import Model, find_model
from extract.packages import PACKAGED, PackagedModel
from extract.parity import check_parity
from extract.request import Request
from extract.run import plan_run


def _installed(directory: Path, package: str, files: dict[str, bytes]) -> None:
    """What pip leaves behind of a package, as far as anything looks at it."""
    information = directory / f"{package.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    for name, content in files.items():
        (directory / name).write_bytes(content)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model in two packages, of which the first is installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    _installed(tmp_path, "some-part1", {"one": b"GG"})
    parts = (("some-part1", "one"), ("some-part2", "two"))
    return PackagedModel("some", "pip install some", parts, "0" * 64)


def test_a_model_of_several_packages_is_there_when_all_are(packaged: PackagedModel, tmp_path: Path) -> None:
    assert packaged.paths() is None
    _installed(tmp_path, "some-part2", {})
    assert packaged.paths() is None
    (tmp_path / "two").write_bytes(b"UF")
    paths = packaged.paths()
    assert paths == [tmp_path / "one", tmp_path / "two"]
    with packaged.gguf(paths) as whole:
        assert whole.read_bytes() == b"GGUF"
    assert not whole.exists()


def test_a_model_whose_package_is_absent_is_refused_with_the_command_that_installs_it(
    packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "some", packaged)
    with pytest.raises(ValueError, match="some is not installed; run: pip install some"):
        find_model("some")


def test_a_file_that_is_not_what_its_packages_should_hold_is_refused(
    packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "some", dataclasses.replace(packaged, parts=packaged.parts[:1]))
    (tmp_path / "one").write_bytes(b"GGUF, and then something else")
    with pytest.raises(ValueError, match=r"some is the name of a packaged model, which .* is not"):
        find_model("some")


@contextmanager
def _real(name: str) -> Iterator[Model]:
    if PACKAGED[name].paths() is None:
        pytest.skip(f"{name} is not installed; make test-all installs it")
    yield find_model(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_a_real_model_equals_plain_transformers_at_every_layer(name: str) -> None:
    with _real(name) as model:
        texts = read_corpus("builtin").head(6).table["text"].to_pylist()
        entries = check_parity(model, "float32", texts, "cpu")
        assert max(max(entry.last_worst, entry.mean_worst) for entry in entries) < 1e-5


@pytest.mark.slow
def test_gemma_sees_beyond_its_window_only_where_it_should() -> None:
    """Longer than the sliding window of 512 tokens: batches would show a window that is off by one."""
    with _real("gemma-3-270m") as model:
        entries = check_parity(model, "float32", ["One word after another. " * 130, "short"], "cpu")
        assert max(entry.last_worst for entry in entries) < 1e-5


@pytest.mark.slow
def test_minilm_reads_in_both_directions_and_takes_no_continuation(tmp_path: Path) -> None:
    with _real("all-minilm-l6-v2") as model:
        assert not Engine(model.directory, "float32", "sdpa", "cpu").causal
        request = Request(
            model.name, read_corpus("builtin").head(2), sites="resid.offset", continuation="and on", offsets=(0, 1)
        )
        with pytest.raises(ValueError, match="reads in both directions"):
            plan_run(request, os.fspath(tmp_path / "store"))
