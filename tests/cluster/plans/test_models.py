"""Patterns to models: against a hub over real HTTP, and against directories of real models."""

import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, get_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaModel

from cluster.plans import models
from cluster.plans.models import PlannedModel, Resolution, count_parameters, resolve
from cluster.plans.schema import ModelsEntry
from extract.models import find_model
from tests.cluster.plans.conftest import Workshop
from tests.hub import Hub


def publish(hub: Hub, directory: Path, name: str, parameters: int | None = 1000, **facts: Any) -> str:
    """A model with one small safetensors file, whose size is what the hub says."""
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors").write_bytes(name.encode())
    (directory / "config.json").write_text("{}")
    size = {} if parameters is None else {"safetensors": {"total": parameters, "parameters": {"BF16": parameters}}}
    return hub.publish(name, directory, **size, **facts)


def ask(hub: Hub, *entries: ModelsEntry) -> Resolution:
    return resolve(entries, HfApi(hub.endpoint, token=False))


def names(resolution: Resolution) -> list[str]:
    return [model.title for model in resolution.found]


def test_a_pattern_is_resolved_to_commits_page_after_page(hub: Hub, tmp_path: Path) -> None:
    shas = {name: publish(hub, tmp_path / "m", f"lab/{name}") for name in ("one-1b", "one-2b", "one-3b", "one-4b", "two-1b")}
    publish(hub, tmp_path / "m", "laboratory/one-1b")
    newest = publish(hub, tmp_path / "m", "lab/one-2b")
    found = ask(hub, ModelsEntry("lab/one-?b"))
    expected = [("one-1b", shas["one-1b"]), ("one-2b", newest), ("one-3b", shas["one-3b"]), ("one-4b", shas["one-4b"])]
    assert [model.name for model in found.found] == [f"lab/{name}@{sha}" for name, sha in expected]
    assert [model.weights for model in found.found] == [f"hub:lab/{name}@{sha}" for name, sha in expected]
    assert (found.left_out, found.failed) == ((), ())
    assert hub.downloads() == []


def test_each_filter_says_what_it_leaves_out_and_why(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "m", "lab/good", 500, cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/tagged", 500, tags=["license:MIT"])
    publish(hub, tmp_path / "m", "lab/good-GGUF", 500, cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/asks", 500, gated="manual", cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/small", 99, cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/large", 1001, cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/unsized", None, cardData={"license": "mit"})
    publish(hub, tmp_path / "m", "lab/closed", 500, cardData={"license": "other"})
    publish(hub, tmp_path / "m", "lab/silent", 500)
    publish(hub, tmp_path / "m", "lab/off", 500, disabled=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").touch()
    hub.publish("lab/pickled", tmp_path / "bin", safetensors=None, cardData={"license": "mit"})
    entry = ModelsEntry("lab/*", min_parameters=100, max_parameters=1000, licenses=("mit",), exclude=("*-GGUF",))
    resolution = ask(hub, entry)
    assert names(resolution) == ["lab/good", "lab/tagged"]
    assert {left.name: left.reason for left in resolution.left_out} == {
        "lab/good-GGUF": "the plan excludes it",
        "lab/asks": "gated: ask for access on its page, then write gated: any",
        "lab/small": "99 parameters, fewer than the plan wants",
        "lab/large": "1,001 parameters, more than the plan wants",
        "lab/unsized": "the hub does not say how many parameters it has",
        "lab/closed": "license other",
        "lab/silent": "names no license",
        "lab/off": "its owner or the hub has disabled it",
        "lab/pickled": "has no safetensors",
    }


@pytest.mark.parametrize(("gated", "expected"), [(False, ["lab/open"]), (True, ["lab/asks"]), (None, ["lab/asks", "lab/open"])])
def test_gated_models_come_as_the_plan_wants(hub: Hub, tmp_path: Path, gated: bool | None, expected: list[str]) -> None:
    publish(hub, tmp_path / "m", "lab/open")
    publish(hub, tmp_path / "m", "lab/asks", gated="auto")
    assert names(ask(hub, ModelsEntry("lab/*", gated=gated))) == expected


def test_a_model_that_two_entries_name_comes_once_and_is_not_left_out(hub: Hub, tmp_path: Path) -> None:
    sha = publish(hub, tmp_path / "m", "lab/one")
    publish(hub, tmp_path / "m", "lab/two")
    resolution = ask(hub, ModelsEntry("lab/*", exclude=("one",)), ModelsEntry("lab/one"), ModelsEntry("lab/*"))
    assert [model.name for model in resolution.found][1] == f"lab/one@{sha}"
    assert names(resolution) == ["lab/two", "lab/one"]
    assert resolution.left_out == ()


def test_a_commit_needs_no_hub(hub: Hub) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    resolution = ask(hub, ModelsEntry("lab/one", revision=commit))
    assert resolution.found == (PlannedModel(f"lab/one@{commit}", f"hub:lab/one@{commit}"),)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("entry", "status", "sentence"),
    [
        (ModelsEntry("lab/absent"), None, "the hub has no model 'lab/absent', or it is private"),
        (ModelsEntry("nobody/*"), None, "the hub has no model that 'nobody/*' names"),
        (ModelsEntry("lab/one"), 500, "cannot ask the hub for 'lab/one': "),
        (ModelsEntry("lab/*"), 418, "cannot ask the hub for 'lab/*': "),
    ],
)
def test_a_hub_that_fails_is_a_sentence_and_stops_no_other_entry(
    hub: Hub, workshop: Workshop, entry: ModelsEntry, status: int | None, sentence: str
) -> None:
    local = workshop.model("local")
    publish(hub, workshop.directory / "m", "lab/one")
    hub.failing = status
    resolution = ask(hub, entry, ModelsEntry(str(local)))
    assert names(resolution) == [str(local)]
    (failed,) = resolution.failed
    assert failed.name == entry.match
    assert failed.reason.startswith(sentence)
    assert "\n" not in failed.reason


def test_a_hub_that_never_answers_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_TIMEOUT_SECONDS", 0.2)
    publish(hub, tmp_path / "m", "lab/one")
    hub.before = lambda _: time.sleep(5)
    began = time.monotonic()
    (failed,) = ask(hub, ModelsEntry("lab/one")).failed
    assert "cannot ask the hub" in failed.reason
    models._give_up_in_time()
    with pytest.raises(Exception, match="timed out"):  # the client's own listing has no timeout, and tries six times
        get_session().get(f"{hub.endpoint}/api/models", timeout=None)
    assert time.monotonic() - began < 4


def test_a_directory_of_models_is_every_model_in_it_less_what_the_size_leaves_out(workshop: Workshop) -> None:
    two, six = workshop.model("two", blocks=2), workshop.model("six", blocks=6)
    (two.parent / "notes").mkdir()
    (two.parent / ".cache").mkdir()
    (two.parent / "readme.txt").touch()
    sizes = {path: count_parameters(path) for path in (two, six)}
    assert sizes == {path: sum(weight.numel() for weight in LlamaModel.from_pretrained(path).parameters()) for path in sizes}
    everything = resolve([ModelsEntry(directory=str(two.parent))])
    assert [(model.name, model.weights) for model in everything.found] == [
        (str(path), find_model(str(path)).weights_identity) for path in (six, two)
    ]
    assert [left.name for left in everything.left_out] == [str(two.parent / "notes")]
    smaller = resolve([ModelsEntry(directory=str(two.parent), max_parameters=float(sizes[two]), exclude=("notes",))])
    assert names(smaller) == [str(two)]
    assert [left.reason for left in smaller.left_out] == [
        "the plan excludes it",
        f"{sizes[six]:,} parameters, more than the plan wants",
    ]


def test_a_missing_directory_and_an_unknown_name_are_sentences(tmp_path: Path) -> None:
    resolution = resolve([ModelsEntry(directory=str(tmp_path / "absent")), ModelsEntry("absent"), ModelsEntry(str(tmp_path))])
    assert [failed.reason.partition(";")[0] for failed in resolution.failed] == [
        f"cannot look into {tmp_path / 'absent'}: No such file or directory",
        next(failed.reason.partition(";")[0] for failed in resolution.failed if "there is no model 'absent'" in failed.reason),
        f"{tmp_path} is not a model directory: it has no config.json",
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=24) | st.sampled_from([b"\x02" + bytes(7) + b"[]", b'\x09\0\0\0\0\0\0\0{"a": 12}']))
def test_a_damaged_header_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    try:
        counted = count_parameters(tmp_path)
    except ValueError as error:
        assert "cannot be read" in str(error)  # noqa: PT017 - both ways are right
    else:
        assert counted == 0
