"""Launches of one run tell each other what they are at; a dead, lying or unreadable announcement costs nothing but time."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from extract import launches
from extract.launches import Launch, Quarantined, WorkerState, announced, order_of, shards_to_do
from extract.objects import LocalObjects
from extract.store import Store
from extract.stored_run import StoredRun
from tests.planted import ROWS, plant_run, write_planted


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """Three shards, none of which exists."""
    return plant_run(Store.open(str(tmp_path / "store"), create=True))


def at(*shards: int) -> tuple[WorkerState, ...]:
    state = {"host": "h", "device": "cpu", "state": "busy", "since": "2026-01-01T00:00:00+00:00", "n_shards": 0, "n_rows": 0}
    return (WorkerState(name="w0", shards=shards, **state),)  # type: ignore[arg-type]


def finish(run: StoredRun, *shards: int) -> None:
    for shard in shards:
        assert run.commit(write_planted(run, shard, run.log_lengths().get(shard, 0)))


def announce(run: StoredRun, launch: Launch, *shards: int) -> None:
    """Let a launch say at once what it would say with its next beat."""
    launch.say(workers=at(*shards))
    launch.announce()


def launch_elsewhere(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launch of another machine, whose process nobody here can look for."""
    with monkeypatch.context() as there:
        there.setattr(launches, "_processes", lambda: "far away")
        return Launch(run)


def test_a_launch_alone_does_every_shard_in_order_and_leaves_no_announcement(run: StoredRun) -> None:
    elsewhere: list[int] = []
    with Launch(run) as launch:
        order = []
        for shard in shards_to_do(launch, elsewhere.append):
            order.append(shard)
            finish(run, shard)
        assert [found.announcement.launch for found in announced(run)] == [launch.name]
    assert order == [0, 1, 2]
    assert sum(elsewhere) == 0
    assert announced(run) == []


def test_what_another_living_launch_is_computing_is_waited_for_and_counted(run: StoredRun) -> None:
    elsewhere: list[int] = []
    waited: list[bool] = []
    order: list[int] = []
    with Launch(run) as other, Launch(run) as launch:
        announce(run, other, 1)

        def finish_it(_: object) -> None:
            waited.append(True)
            threading.Timer(0.7, finish, (run, 1)).start()

        for shard in shards_to_do(launch, elsewhere.append, finish_it):
            order.append(shard)
            finish(run, shard)
    assert sorted(order) == [0, 2]
    assert waited == [True]
    assert sum(elsewhere) == run.shard_size(1)


def test_what_a_dead_launch_was_computing_is_done(run: StoredRun) -> None:
    program = f"""
import os
from extract.launches import Launch, WorkerState
from extract.store import Store
run = Store.open({run.store_location!r}).run({run.run_id!r})
launch = Launch(run).__enter__()
state = WorkerState(name="w0", host="h", device="cpu", state="busy", shards=(0, 1, 2), since="", n_shards=0, n_rows=0)
launch.say(workers=(state,))
launch.announce()
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (dead,) = announced(run)
    assert dead.announcement.state == "working"
    assert not dead.alive
    with Launch(run) as launch:
        assert launch.survey().elsewhere == frozenset()
        order = []
        for shard in shards_to_do(launch, lambda _: None):
            order.append(shard)
            finish(run, shard)
    assert order == [0, 1, 2]
    assert announced(run) == []


def test_a_launch_of_another_machine_counts_as_alive_until_it_was_silent_for_a_minute(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = launch_elsewhere(run, monkeypatch)
    announce(run, far, 2)
    assert [found.alive for found in announced(run)] == [True]
    assert isinstance(run.objects, LocalObjects)
    path = run.objects.root / "launches" / f"{far.name}.json"
    with Launch(run) as launch:
        assert launch.survey().elsewhere == {2}
        long_ago = path.stat().st_mtime - launches.STALE_SECONDS - 1
        os.utime(path, (long_ago, long_ago))
        assert [found.alive for found in announced(run) if found.announcement.launch == far.name] == [False]
        assert launch.survey().elsewhere == frozenset()


def test_the_silence_of_others_is_told_by_the_clock_of_the_store(run: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own clock may be wrong by hours."""
    announce(run, launch_elsewhere(run, monkeypatch), 2)
    with Launch(run) as launch:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert launch.survey().elsewhere == {2}
        monkeypatch.setattr(time, "time", lambda: 1e12)
        assert launch.survey().elsewhere == {2}


def test_asking_who_is_at_work_writes_nothing(run: StoredRun) -> None:
    assert isinstance(run.objects, LocalObjects)
    with Launch(run):
        before = sorted((path, path.stat().st_mtime_ns) for path in run.objects.root.rglob("*"))
        assert len(announced(run)) == 1
        assert sorted((path, path.stat().st_mtime_ns) for path in run.objects.root.rglob("*")) == before


def test_a_launch_takes_the_place_of_dead_ones_and_of_those_that_gave_up(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError), Launch(run):
        raise RuntimeError
    living = launch_elsewhere(run, monkeypatch)
    living.announce()
    with Launch(run) as launch:
        assert {found.announcement.launch for found in announced(run)} == {living.name, launch.name}


def test_a_launch_that_failed_says_stopped_and_one_that_gave_up_says_incomplete(run: StoredRun) -> None:
    with pytest.raises(RuntimeError), Launch(run):
        raise RuntimeError
    (stopped,) = announced(run)
    assert (stopped.announcement.state, stopped.announcement.quarantined) == ("stopped", ())
    given_up = (Quarantined(shard=2, attempts=3, reason="why"),)
    with Launch(run) as launch:
        finish(run, 0, 1)
        launch.say(workers=(), quarantined=given_up)
    (incomplete,) = announced(run)
    assert (incomplete.announcement.state, incomplete.announcement.quarantined) == ("incomplete", given_up)


def test_announcements_that_cannot_be_read_or_written_stop_nothing(run: StoredRun) -> None:
    assert isinstance(run.objects, LocalObjects)
    directory = run.objects.root / "launches"
    directory.mkdir()
    (directory / "deadbeef.json").write_text("{not json")
    (directory / "note.txt").write_text("a user's")
    with Launch(run) as launch:
        assert [found.announcement.launch for found in announced(run)] == [launch.name]
    directory.rename(run.objects.root / "elsewhere")
    directory.write_text("a file where the directory should be")
    with Launch(run) as launch:
        for shard in shards_to_do(launch, lambda _: None):
            finish(run, shard)
    assert run.missing_shards() == []


def test_a_shard_that_a_living_launch_never_finishes_is_done_in_the_end(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Launch(run) as hung, Launch(run) as launch:
        announce(run, hung, 1)
        assert launch.survey().elsewhere == {1}
        monkeypatch.setattr(launches, "PATIENCE_SECONDS", 0.0)
        assert launch.survey().others
        assert launch.survey().elsewhere == frozenset()


def test_a_shard_that_is_taken_back_is_missing_again(run: StoredRun) -> None:
    with Launch(run) as launch:
        finish(run, 0, 1, 2)
        assert launch.survey().missing == frozenset()
        assert run.void(1, 1, "damaged")
        assert launch.survey().missing == {1}
        finish(run, 1)
        assert launch.survey().missing == frozenset()


def test_launches_that_share_a_run_take_its_shards_in_different_orders(tmp_path: Path) -> None:
    run = plant_run(Store.open(str(tmp_path / "store"), create=True))
    with Launch(run), Launch(run) as second:
        orders = {tuple(order_of(second.survey())) for _ in range(40)}
    assert len(orders) > 1
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert sum(run.shard_size(shard) for shard in range(run.n_shards)) == ROWS
