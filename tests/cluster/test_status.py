"""How far a run is, told from the store alone."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.status import RATE_SECONDS, recent_rate, run_status, stage_seconds
from extract.documents import Receipt
from extract.launches import Launch, Quarantined, WorkerState
from extract.store import Store
from extract.stored_run import StoredRun
from tests.planted import ROWS, plant_run, receipt_of, write_planted

AFFECTOME = Path(sys.executable).with_name("affectome")
BUSY = WorkerState(
    name="w7",
    host="node-3",
    device="cuda:0",
    state="busy",
    shards=(2,),
    since="2026-01-01T00:00:00+00:00",
    n_shards=1,
    n_rows=2,
)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """Three shards, none of which exists."""
    return plant_run(Store.open(str(tmp_path / "store"), create=True))


def finish(run: StoredRun, shard: int) -> None:
    assert run.commit(write_planted(run, shard, 0))


def test_a_run_goes_from_unfinished_through_working_to_complete(run: StoredRun) -> None:
    assert run_status(run).state == "unfinished"
    with Launch(run) as launch:
        finish(run, 0)
        launch.say(workers=(BUSY,), retries={"death": 2})
        launch.announce()
        working = run_status(run)
        assert (working.state, working.n_shards_done, working.n_shards, working.n_rows_done) == ("working", 1, 3, 2)
        assert working.launches[0].announcement.workers == (BUSY,)
        finish(run, 1)
        finish(run, 2)
    complete = run_status(run)
    assert (complete.state, complete.n_rows_done, complete.n_rows) == ("complete", ROWS, ROWS)
    assert complete.launches == ()
    assert complete.seconds_left is None


def test_a_shard_that_was_given_up_is_told_until_somebody_does_it(run: StoredRun) -> None:
    lost = Quarantined(shard=1, attempts=3, reason="row 3, layer 1 is not finite")
    with Launch(run) as launch:
        finish(run, 0)
        finish(run, 2)
        launch.say(workers=(), quarantined=(lost,))
    assert run_status(run).quarantined == (lost,)
    text = subprocess.run([AFFECTOME, "status", run.store_location], capture_output=True, text=True, check=True).stdout
    assert "shard 1 was given up after 3 attempts: row 3, layer 1 is not finite" in text
    finish(run, 1)
    assert run_status(run).quarantined == ()


def test_the_command_prints_the_same_facts_as_json(run: StoredRun) -> None:
    with Launch(run) as launch:
        finish(run, 0)
        launch.say(workers=(BUSY,), retries={"death": 2})
        launch.announce()
        ask: list[str | Path] = [AFFECTOME, "status", run.store_location, run.run_id[:4]]
        table = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        (facts,) = json.loads(subprocess.run([*ask, "--json"], capture_output=True, text=True, check=True).stdout)
    assert facts["launches"][0]["workers"][0]["name"] == "w7"
    assert facts["launches"][0]["alive"] is True
    assert facts["n_rows_done"] == 2
    for word in (run.run_id, "w7", "node-3", "cuda:0", "at work", "repeated: 2 death", "2 of 5"):
        assert word in table


@given(st.lists(st.tuples(st.integers(0, 3600), st.integers(1, 500)), max_size=20), st.integers(0, 600))
def test_the_rate_counts_the_rows_after_the_first_shard_of_the_last_minutes(ends: list[tuple[int, int]], later: int) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    present = began + timedelta(seconds=max((when for when, _ in ends), default=0) + later)
    receipts = [_receipt((began + timedelta(seconds=when)).isoformat(), n_rows) for when, n_rows in ends]
    found = recent_rate(receipts, present)
    recent = sorted((when, n) for when, n in ends if (present - began).total_seconds() - when <= RATE_SECONDS)
    if len(recent) < 2:
        assert found is None
    else:
        elapsed = max((present - began).total_seconds() - recent[0][0], 1)
        assert found == pytest.approx((sum(n for _, n in recent) - recent[0][1]) / elapsed)


def test_stages_add_up_over_receipts(run: StoredRun) -> None:
    def receipt(seconds: dict[str, float]) -> Receipt:
        return replace(receipt_of(run, 0, 0, ("00000000", ())), seconds=seconds)

    assert stage_seconds([receipt({"load": 1.0, "write": 2.0}), receipt({"load": 0.5, "compute": 3.0})]) == (
        ("load", 1.5),
        ("write", 2.0),
        ("compute", 3.0),
    )


def _receipt(finished: str, n_rows: int) -> Receipt:
    return Receipt(
        run_id="0" * 16,
        shard=0,
        entry=0,
        start=0,
        stop=n_rows,
        attempt="00000000",
        objects=(),
        token_budget=1,
        compression="none",
        tokens="",
        n_tokens=0,
        n_computed=0,
        n_shared=0,
        forward="packed",
        n_halved=0,
        n_truncated=0,
        device="cpu",
        host="h",
        seconds={},
        versions={},
        finished=finished,
    )
