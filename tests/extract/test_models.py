"""Names to directories: what is allowed, what is refused, and what makes weights the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from extract.models import Model, check_name, find_model, imported_models, models_directory
from extract.packages import BUILTIN

_ROOT = Path(__file__).resolve().parents[2]
_CONFIG: dict[str, Any] = {"model_type": "llama", "hidden_size": 4, "transformers_version": "5.0.0", "dtype": "bfloat16"}
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ALLOWED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _make_model(directory: Path, weight: float = 1.0, **config: Any) -> Path:
    directory.mkdir(parents=True)
    save_file({"weight": torch.tensor([0.5, weight])}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(_CONFIG | config))
    (directory / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (directory / "tokenizer_config.json").write_text('{"is_local": true, "bos_token": "a"}')
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an empty working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache" / "affectome" / "models"


def _find_elsewhere(name: str, hub: Path) -> "subprocess.CompletedProcess[str]":
    """Look a name up in a process whose hub is out of reach."""
    script = (
        "import sys\nfrom extract.models import find_model\nm = find_model(sys.argv[1])\nprint(m.directory, m.weights_identity)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(hub), "PYTHONPATH": str(_ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, name], env=environment, capture_output=True, text=True, timeout=30
    )


def _snapshot(hub: Path) -> Path:
    repository = hub / "hub" / "models--nobody--nothing"
    (repository / "refs").mkdir(parents=True)
    return repository / "snapshots" / _COMMIT


@given(name=st.text(max_size=8) | st.text(_ALLOWED[:3] + "./-_\n\\~", max_size=8) | st.sampled_from(["a" * 96, "a" * 97]))
def test_a_name_is_allowed_exactly_when_it_is_one_plain_entry_of_a_directory(name: str) -> None:
    allowed = 1 <= len(name) <= 96 and name[0] in _ALLOWED and set(name) <= set(_ALLOWED + "._-")
    if not allowed:
        with pytest.raises(ValueError, match="cannot name a model"):
            check_name(name)
        return
    assert check_name(name) == name
    assert (models_directory() / name).resolve().parent == models_directory().resolve()


def test_an_imported_model_is_found_by_its_name_and_listed(cache: Path) -> None:
    assert imported_models() == []
    for name in ("zeta", "alpha"):
        _make_model(cache / name)
    (cache / "unfinished").mkdir()
    _make_model(cache / ".alpha.0a1b.tmp")
    (cache / "stray.txt").touch()
    assert imported_models() == [Model("alpha", cache / "alpha"), Model("zeta", cache / "zeta")]
    assert find_model("alpha") == Model("alpha", cache / "alpha")


def test_an_imported_name_comes_before_a_directory_and_a_directory_before_the_hub(cache: Path) -> None:
    _make_model(Path("alpha"))
    assert find_model("alpha").directory == Path("alpha").resolve()
    _make_model(cache / "alpha")
    assert find_model("alpha").directory == cache / "alpha"
    _make_model(Path("org/model"))
    assert find_model("org/model") == Model(str(Path("org/model").resolve()), Path("org/model").resolve())


@pytest.mark.parametrize(
    "name", ["", "nothing-here", "../x", "/nowhere/at/all", "~no-such-user/x", "a\0b", "a" * 5000, "a/b/c", "."]
)
def test_what_is_no_model_is_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        find_model(name)


def test_an_unknown_name_is_answered_with_those_that_exist(cache: Path) -> None:
    _make_model(cache / "alpha")
    with pytest.raises(ValueError, match=f"no model 'alfa'; give one of .*alpha, .*{BUILTIN}"):
        find_model("alfa")


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    directory = _make_model(tmp_path / "model")
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json") as caught:
        find_model(str(directory))
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("others", [[], ["pytorch_model.bin"], ["model.gguf"], ["consolidated.pth"]])
def test_a_directory_without_safetensors_is_refused_with_what_was_found(others: list[str], tmp_path: Path) -> None:
    directory = _make_model(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    for other in others:
        (directory / other).touch()
    with pytest.raises(ValueError, match="holds no safetensors") as caught:
        find_model(str(directory))
    assert [other for other in others if other not in str(caught.value)] == []


def test_a_gguf_file_is_answered_with_how_to_import_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(ValueError, match=f"affectome models import {path}"):
        find_model(str(path))


def test_a_hub_id_without_a_network_is_a_sentence_within_half_a_minute(tmp_path: Path) -> None:
    done = _find_elsewhere("nobody/nothing", tmp_path / "hub")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: cannot get 'nobody/nothing' from the hub")


def test_a_pinned_commit_on_this_disk_needs_no_network(tmp_path: Path) -> None:
    snapshot = _make_model(_snapshot(tmp_path / "hub"))
    done = _find_elsewhere(f"nobody/nothing@{_COMMIT}", tmp_path / "hub")
    assert done.stdout.split() == [str(snapshot), f"hub:nobody/nothing@{_COMMIT}"], done.stderr[-300:]


def test_a_pinned_commit_of_which_only_a_part_is_here_is_not_taken_for_the_model(tmp_path: Path) -> None:
    snapshot = _make_model(_snapshot(tmp_path / "hub"))
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"weight": "model-00001-of-00002.safetensors", "more": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    done = _find_elsewhere(f"nobody/nothing@{_COMMIT}", tmp_path / "hub")
    assert done.returncode == 1
    assert done.stdout == ""


def test_the_same_weights_elsewhere_and_saved_by_another_version_are_the_same(tmp_path: Path) -> None:
    first = Model("a", _make_model(tmp_path / "a"))
    other = Model("b", _make_model(tmp_path / "deep" / "b", transformers_version="5.99", dtype="float32", _name_or_path="/x"))
    config = json.loads((other.directory / "config.json").read_text())
    (other.directory / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=8))
    (other.directory / "tokenizer_config.json").write_text('{"bos_token": "a", "is_local": false}')
    (other.directory / "README.md").write_text("more")
    assert first.weights_identity == other.weights_identity
    assert first.tokenizer_digest == other.tokenizer_digest


_CHANGES: dict[str, tuple[Callable[[Path], object], bool, bool]] = {
    "a weight": (lambda d: save_file({"weight": torch.tensor([0.5, 1.0001])}, d / "model.safetensors"), True, False),
    "another weights file": (lambda d: save_file({"more": torch.ones(1)}, d / "more.safetensors"), True, False),
    "a value of the configuration": (lambda d: (d / "config.json").write_text(json.dumps(_CONFIG | {"rope": 1})), True, False),
    "the vocabulary": (lambda d: (d / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}'), False, True),
    "a tokenizer setting": (lambda d: (d / "tokenizer_config.json").write_text('{"bos_token": "b"}'), False, True),
    "a vocabulary file": (lambda d: (d / "tokenizer.model").write_bytes(b"\0"), False, True),
}


@pytest.mark.parametrize(("change", "weights", "tokenizer"), _CHANGES.values(), ids=_CHANGES.keys())
def test_what_changes_numbers_changes_its_digest_and_no_other(
    change: Callable[[Path], object], weights: bool, tokenizer: bool, tmp_path: Path
) -> None:
    model = Model("a", _make_model(tmp_path / "a"))
    before = (model.weights_identity, model.tokenizer_digest)
    change(model.directory)
    assert (model.weights_identity != before[0], model.tokenizer_digest != before[1]) == (weights, tokenizer)


def test_the_name_a_hub_model_was_asked_by_does_not_change_its_identity(tmp_path: Path) -> None:
    identities = {
        Model(name, tmp_path, _COMMIT).weights_identity for name in ("org/m", "org/m@main", f"org/m@{_COMMIT}", "org/m@v1")
    }
    assert identities == {f"hub:org/m@{_COMMIT}"}
