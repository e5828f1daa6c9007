"""Several processes on one run: the same bytes as one, and what happens when one of them fails or dies."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from extract.corpus import read_corpus
from extract.devices import extract_on
from extract.models import Model
from extract.request import Request
from extract.run import Plan, extract_missing, plan_run

pytestmark = pytest.mark.slow  # each process imports torch


@pytest.fixture
def plan(tiny_model: Model, tmp_path: Path) -> Plan:
    """A run of six shards, nothing of it done."""
    request = Request(tiny_model.name, read_corpus("builtin").head(24), truncate=True, rows_per_shard=4)
    return plan_run(request, str(tmp_path / "several"))


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_two_devices_make_what_one_makes(plan: Plan, tiny_model: Model, tmp_path: Path) -> None:
    counted: list[int] = []
    receipts = extract_on(("cpu", "cpu"), plan.tasks(), counted.append)
    assert sum(counted) == 24
    assert sorted(receipt.shard for receipt in receipts) == list(range(6))
    assert plan.run.missing_shards() == []
    request = Request(tiny_model.name, read_corpus("builtin").head(24), truncate=True, rows_per_shard=4)
    alone = plan_run(request, str(tmp_path / "one"))
    for ours, theirs in zip(sorted(receipts, key=lambda receipt: receipt.shard), extract_missing(alone), strict=True):
        assert [entry.sha256 for entry in ours.objects] == [entry.sha256 for entry in theirs.objects]


def test_what_one_cannot_do_is_raised_and_the_rest_is_whole(plan: Plan, tmp_path: Path) -> None:
    tasks = plan.tasks()
    tasks[2] = replace(tasks[2], model_directory=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract_on(("cpu", "cpu"), tasks)
    assert 2 in plan.run.missing_shards()
    extract_missing(plan)
    assert plan.run.missing_shards() == []


def test_a_process_that_is_killed_is_told_of_and_no_shard_is_lost(plan: Plan) -> None:
    killed: list[int] = []

    def kill_one(_: int) -> None:
        if not killed:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with pytest.raises(RuntimeError, match="a process that computes died"):
        extract_on(("cpu", "cpu"), plan.tasks(), kill_one)
    extract_missing(plan)
    assert plan.run.missing_shards() == []
