"""affectome refresh against a hub over real HTTP: exactly what is missing happens, once, and is told beforehand."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from extract.documents import LOG_ENTRY, Receipt, unseal
from extract.store import Store
from tests.cluster.plans.conftest import AFFECTOME, CommandLine, Workshop
from tests.hub import Hub

PLAN = """
store: store
corpora: [texts.jsonl]
models:
  - {match: "lab/tiny-*", max_parameters: 1e9, exclude: ["*-GGUF"]}
analyses: {probes: }
"""
SIZE = {"safetensors": {"total": 1000, "parameters": {"F32": 1000}}}


@pytest.fixture
def plan(workshop: Workshop) -> Path:
    workshop.corpus()
    return workshop.plan(PLAN)


def receipts(plan: Path) -> dict[str, bytes]:
    """Every entry of every shard's log."""
    store = plan.parent / "store"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob("runs/*/receipts/*"))}


def runs(plan: Path) -> dict[str, str]:
    """The weights of each run in the store."""
    return {run.run_id: run.manifest.identity.weights for run in Store.open(str(plan.parent / "store")).runs()}


def things_to_do(rows: list[dict[str, Any]]) -> dict[tuple[str, str | None], list[str]]:
    return {(row["model"], row["revision"]): row["to_do"] for row in rows}


def test_a_first_model_a_second_and_a_new_commit_of_the_first_are_each_done_once(
    workshop: Workshop, hub: Hub, plan: Path, command_line: CommandLine
) -> None:
    every = ["extract", "probe"]
    one = hub.publish("lab/tiny-one", workshop.model("one"), **SIZE)
    hub.publish("lab/tiny-asks", workshop.model("asks"), **SIZE, gated="manual")
    hub.publish("lab/tiny-one-GGUF", workshop.model("gguf"), **SIZE)
    left_out: dict[tuple[str, str | None], list[str]] = {
        ("lab/tiny-asks", None): ["leave out"],
        ("lab/tiny-one-GGUF", None): ["leave out"],
    }
    first = command_line.rows("refresh", plan, "--dry-run")
    assert things_to_do(first) == {("lab/tiny-one", one): every, **left_out}
    assert (hub.downloads(), (plan.parent / "store").exists()) == ([], False)
    done = command_line.rows("refresh", plan)
    assert [row["done"] for row in done] == [every, ["leave out"], ["leave out"]]
    assert list(runs(plan).values()) == [f"hub:lab/tiny-one@{one}"]
    after_one, fetched = receipts(plan), len(hub.downloads())

    two = hub.publish("lab/tiny-two", workshop.model("two", seed=1, blocks=4), **SIZE)
    second = command_line.rows("refresh", plan, "--dry-run")
    assert things_to_do(second) == {("lab/tiny-one", one): [], ("lab/tiny-two", two): [*every, "compare"], **left_out}
    assert (len(hub.downloads()), receipts(plan)) == (fetched, after_one)
    done = command_line.rows("refresh", plan)
    assert {row["model"]: row["done"] for row in done if row["run"]} == {
        "lab/tiny-one": [],
        "lab/tiny-two": [*every, "compare"],
    }
    assert all("/lab/tiny-two/" in path for path in hub.downloads()[fetched:])
    after_two = receipts(plan)
    assert after_two.items() > after_one.items()

    newer = hub.publish("lab/tiny-one", workshop.model("newer", seed=2), **SIZE)
    third = command_line.rows("refresh", plan, "--dry-run")
    assert things_to_do(third) == {("lab/tiny-one", newer): [*every, "compare"], ("lab/tiny-two", two): [], **left_out}
    command_line.rows("refresh", plan)
    assert sorted(runs(plan).values()) == sorted(
        [f"hub:lab/tiny-one@{one}", f"hub:lab/tiny-one@{newer}", f"hub:lab/tiny-two@{two}"]
    )
    assert receipts(plan).items() > after_two.items()
    check_each_shard_was_done_once(receipts(plan))

    before = receipts(plan), hub.downloads()
    assert all(to_do in ([], ["leave out"]) for to_do in things_to_do(command_line.rows("refresh", plan, "--dry-run")).values())
    assert all(row["done"] in ([], ["leave out"]) for row in command_line.rows("refresh", plan))
    assert (receipts(plan), hub.downloads()) == before
    check_comparisons(plan, newer)


def check_each_shard_was_done_once(entries: dict[str, bytes]) -> None:
    documents = [unseal(LOG_ENTRY, data) for data in entries.values()]
    assert all(isinstance(document, Receipt) and document.entry == 0 for document in documents)
    assert len({(document.run_id, document.shard) for document in documents}) == len(documents) == 3


def check_comparisons(plan: Path, newer: str) -> None:
    found = {path.parent.name: json.loads(path.read_text()) for path in plan.parent.glob("store/comparisons/*/comparison.json")}
    weights = runs(plan)
    beside = {
        weights[run_id]: {weights[each["run_id"]] for each in document["result"]["earlier"]}
        for run_id, document in found.items()
    }
    others = {value for value in weights.values() if value != f"hub:lab/tiny-one@{newer}"}
    (two,) = (value for value in others if "tiny-two" in value)
    assert beside == {f"hub:lab/tiny-one@{newer}": others, two: others - {two}}
    newest = next(run_id for run_id, value in weights.items() if value == f"hub:lab/tiny-one@{newer}")
    page = (plan.parent / "store" / "comparisons" / newest / "comparison.md").read_text()
    assert "the last of the same model" in page
    assert "Hidden states differ: resid.last at layers 0 to 2; resid.mean at layers 0 to 2" in page
    assert (plan.parent / "store" / "comparisons" / newest / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_fails_stops_no_other_and_is_tried_again(
    workshop: Workshop, hub: Hub, plan: Path, command_line: CommandLine
) -> None:
    broken = workshop.model("broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    hub.publish("lab/tiny-a-broken", broken, **SIZE)
    hub.publish("lab/tiny-b-whole", workshop.model("whole"), **SIZE)
    done = command_line("refresh", plan, "--json")
    assert done.returncode == 1
    assert "lab/tiny-a-broken" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of what the plan wants could not be had")
    rows = json.loads(done.stdout)
    assert [(row["model"], row["failed"], row["done"]) for row in rows] == [
        ("lab/tiny-a-broken", True, []),
        ("lab/tiny-b-whole", False, ["extract", "probe"]),
    ]
    assert "cannot load the model" in rows[0]["why"]
    before = receipts(plan)
    hub.publish("lab/tiny-a-broken", workshop.model("mended", seed=1), **SIZE)
    again = command_line.rows("refresh", plan)
    assert [(row["done"], row["failed"]) for row in again] == [(["extract", "probe", "compare"], False), ([], False)]
    assert receipts(plan).items() > before.items()


def test_a_hub_that_is_down_is_a_sentence_and_local_models_are_done_all_the_same(
    workshop: Workshop, hub: Hub, command_line: CommandLine
) -> None:
    workshop.corpus()
    workshop.model("local")
    plan = workshop.plan("store: store\ncorpora: [texts.jsonl]\nmodels: [lab/tiny-one, {directory: made}]\nsites: resid.last\n")
    hub.failing = 500
    done = command_line("refresh", plan, "--json")
    assert done.returncode == 1
    assert "lab/tiny-one: cannot ask the hub for 'lab/tiny-one'" in done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["model"], row["done"]) == (str(workshop.directory / "made" / "local"), ["extract"])
    assert row["revision"].startswith("sha256:")
    assert command_line("refresh", plan, "--dry-run").returncode == 1


@pytest.mark.slow
def test_a_refresh_waits_for_another_of_the_same_store_or_says_who_holds_it(workshop: Workshop, hub: Hub, plan: Path) -> None:
    hub.publish("lab/tiny-one", workshop.model("one"), **SIZE)
    asked, answer = threading.Event(), threading.Event()

    def block(path: str) -> None:
        if path == "/api/models":
            asked.set()
            answer.wait(60)

    hub.before = block
    command = [str(AFFECTOME), "refresh", str(plan)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=workshop.environment(hub)) as first:
        assert asked.wait(60)
        second = workshop.affectome("refresh", plan, hub=hub)
        assert second.returncode == 1
        assert f"is being refreshed by process {first.pid} on " in second.stderr
        with subprocess.Popen([*command, "--wait"], stderr=subprocess.PIPE, text=True, env=workshop.environment(hub)) as third:
            assert third.stderr is not None
            assert f"process {first.pid}" in third.stderr.readline()
            answer.set()
            assert "0 of 1 runs" in third.communicate()[1]
        assert "1 of 1 runs" in first.communicate()[1]
    assert (first.returncode, third.returncode) == (0, 0)
    assert len(receipts(plan)) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("store: .\ncorpora: [builtin]\nmodels: [smollm2-135m-instruct]\n", "is not a store"),
        ("store: store\ncorpora: [builtin]\nmodel: [smollm2-135m-instruct]\n", "line 3: model: is no field"),
    ],
)
def test_a_wrong_plan_is_wrong_use(
    workshop: Workshop, text: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["affectome", "refresh", str(workshop.plan(text)), "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert (stopped.value.code, len(said.splitlines())) == (2, 1)
    assert sentence in said
