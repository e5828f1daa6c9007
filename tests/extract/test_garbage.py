"""What dead attempts leave is found and removed; what anybody names, or may still name, never is."""

import os
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyze.query import open_store
from extract.documents import Receipt, now
from extract.garbage import find_leftovers, remove_leftovers
from extract.launches import Launch, WorkerState
from extract.objects import LocalObjects
from extract.store import Store
from extract.stored_run import StoredRun, attempt_prefix, log_key
from extract.verify import requeue, verify
from tests.extract.test_objects import ExclusiveMemory
from tests.planted import ROWS, plant_run, planted, write_planted


@pytest.fixture(params=["directory", ExclusiveMemory.protocol])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    location = str(tmp_path / "store") if request.param == "directory" else f"{request.param}://{uuid.uuid4().hex}"
    return Store.open(location, create=True)


@pytest.fixture
def run(store: Store) -> StoredRun:
    """A run whose shards 0 and 1 exist, and shard 2 does not."""
    run = plant_run(store)
    for shard in (0, 1):
        assert run.commit(write_planted(run, shard, 0))
    return run


def contents(store: Store) -> dict[str, bytes]:
    return {entry.key: store.objects.read(entry.key) for entry in store.objects.entries("")}


def shards_of(contents: dict[str, bytes]) -> set[str]:
    return {"/".join(key.split("/")[2:4]) for key in contents if "/shards/" in key}


def prefix(receipt: Receipt) -> str:
    return attempt_prefix(receipt.shard, receipt.attempt)


def collect(store: Store, run: StoredRun, grace_minutes: float = 0) -> list[str]:
    removed = remove_leftovers(store, find_leftovers(store, run.run_id), grace_minutes)
    return [leftover.prefix for leftover in removed]


def finish(run: StoredRun, shard: int) -> None:
    assert run.commit(write_planted(run, shard, run.log_lengths().get(shard, 0)))


def test_what_is_named_is_never_found(store: Store, run: StoredRun) -> None:
    finish(run, 2)
    before = contents(store)
    assert find_leftovers(store, run.run_id) == []
    assert collect(store, run) == []
    assert contents(store) == before


def test_what_dead_attempts_left_is_measured_and_removed_and_the_rest_stays(store: Store, run: StoredRun) -> None:
    before = contents(store)
    dead = [write_planted(run, shard, 0) for shard in (1, 2, 2)]
    found = {leftover.prefix: leftover for leftover in find_leftovers(store, run.run_id)}
    assert found.keys() == {prefix(receipt) for receipt in dead}
    for receipt in dead:
        leftover = found[prefix(receipt)]
        assert (leftover.shard, leftover.n_objects) == (receipt.shard, len(receipt.objects))
        assert leftover.n_bytes == receipt.n_bytes
        assert 0 <= leftover.minutes < 10
    assert set(collect(store, run)) == found.keys()
    after = contents(store)
    assert {key: after[key] for key in before} == before
    assert all("/receipts/000002-" in key for key in after.keys() - before.keys())
    assert find_leftovers(store, run.run_id) == []


def test_what_was_written_lately_is_left_alone_and_its_writer_commits(store: Store, run: StoredRun) -> None:
    alive = write_planted(run, 2, 0)
    assert collect(store, run, grace_minutes=10) == []
    assert run.commit(alive)
    assert verify(run).whole


def test_unfinished_writes_are_removed_wherever_a_kill_leaves_them(store: Store, run: StoredRun) -> None:
    before = contents(store)
    for key in (".run.json.0123abcd.tmp", "receipts/.000002-0.json.0123abcd.tmp", "analysis/.page.json.0123abcd.tmp"):
        run.objects.write(key, [b"ha"])
    run.objects.write("shards/000002-0123abcd/resid.last/.c.0.0.0.0123abcd.tmp", [b"ha"])
    assert len(collect(store, run)) == 4
    after = contents(store)
    assert {key: after[key] for key in before} == before
    assert not [key for key in after if key.endswith(".tmp")]
    assert shards_of(after) == shards_of(before)


def test_tables_of_a_creator_that_died_are_removed_and_the_run_is_read(store: Store, run: StoredRun) -> None:
    before = contents(store)
    run.objects.write("tables/0123abcd/utterances.parquet", [b"written by a creator that died before it came to tokens"])
    assert collect(store, run) == ["tables/0123abcd"]
    assert contents(store) == before
    assert store.run(run.run_id).table("utterances").num_rows == ROWS


def test_a_creator_that_lost_leaves_nothing(store: Store, run: StoredRun) -> None:
    before = contents(store)
    assert plant_run(store, "lz4").manifest == run.manifest
    assert contents(store) == before


def test_an_attempt_committed_between_finding_and_removing_stays(store: Store, run: StoredRun) -> None:
    alive, dead = write_planted(run, 2, 0), write_planted(run, 2, 0)
    found = find_leftovers(store, run.run_id)
    assert {leftover.prefix for leftover in found} == {prefix(alive), prefix(dead)}
    assert run.commit(alive)
    removed = remove_leftovers(store, found, grace_minutes=0)
    assert [leftover.prefix for leftover in removed] == [prefix(dead)]
    assert verify(run).whole
    assert find_leftovers(store, run.run_id) == []


def test_an_attempt_committed_after_a_void_stays_too(store: Store, run: StoredRun) -> None:
    assert run.void(2, 0, "taken back")
    alive = write_planted(run, 2, 1)
    found = find_leftovers(store, run.run_id)
    assert run.commit(alive)
    assert remove_leftovers(store, found, grace_minutes=0) == []
    assert verify(run).whole


@pytest.mark.parametrize("others_first", [False, True])
def test_a_writer_that_wakes_after_its_attempt_was_removed_cannot_commit_it(
    store: Store, run: StoredRun, others_first: bool
) -> None:
    asleep = write_planted(run, 2, 0)
    assert collect(store, run) == [prefix(asleep)]
    if others_first:
        finish(run, 2)
    assert not run.commit(asleep)
    if not others_first:
        assert run.missing_shards() == [2]
        finish(run, 2)
    assert verify(run).whole
    read = open_store(store.location).run(run.run_id).hidden("resid.last", 1)
    np.testing.assert_array_equal(read, planted("resid.last", 1, range(ROWS)))
    assert find_leftovers(store, run.run_id) == []


def test_what_a_void_took_back_is_removed_and_the_shard_is_done_again(store: Store, run: StoredRun) -> None:
    finish(run, 2)
    taken_back = run.receipt(1)
    assert taken_back is not None
    assert run.void(1, 1, "its disk is not trusted")
    assert collect(store, run) == [prefix(taken_back)]
    assert run.missing_shards() == [1]
    finish(run, 1)
    assert verify(run).whole


@pytest.mark.parametrize("damaged", ["receipts/000001-0.json", "run.json"])
def test_nothing_is_removed_while_a_receipt_or_the_manifest_is_damaged(store: Store, run: StoredRun, damaged: str) -> None:
    write_planted(run, 2, 0)
    found = find_leftovers(store, run.run_id)
    data = bytearray(run.objects.read(damaged))
    data[len(data) // 2] ^= 1
    run.objects.replace(damaged, bytes(data))
    before = contents(store)
    with pytest.raises(ValueError, match=damaged):
        find_leftovers(store, run.run_id)
    aimed_at_it = [replace(leftover, prefix="shards/000001-0123abcd") for leftover in found]
    with pytest.raises(ValueError, match=damaged):
        remove_leftovers(store, aimed_at_it, grace_minutes=0)
    assert contents(store) == before


def test_a_receipt_that_repair_took_back_no_longer_keeps_gc_from_its_work(store: Store, run: StoredRun) -> None:
    finish(run, 2)
    key = log_key(1, 0)
    run.objects.replace(key, run.objects.read(key)[:-5])
    assert requeue(store, run, verify(run)) == [1]
    assert [name.partition("-")[0] for name in collect(store, run)] == ["shards/000001"]
    finish(run, 1)
    assert verify(run).whole


def test_what_is_found_in_a_directory_is_what_was_not_touched_for_so_long(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    run = plant_run(store)
    assert isinstance(run.objects, LocalObjects)
    old, young = write_planted(run, 0, 0), write_planted(run, 1, 0)
    for entry in old.objects:
        path = run.objects.root / entry.path
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 7200))
    minutes = {leftover.prefix: leftover.minutes for leftover in find_leftovers(store, run.run_id)}
    assert minutes[prefix(old)] == pytest.approx(120, abs=5)
    assert collect(store, run, grace_minutes=60) == [prefix(old)]
    assert shards_of(contents(store)) == {prefix(young)}


def test_an_attempt_that_died_stays_while_another_at_its_shard_is_at_work(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    run = plant_run(store)
    assert isinstance(run.objects, LocalObjects)
    old, young = write_planted(run, 0, 0), write_planted(run, 0, 0)
    for entry in old.objects:
        os.utime(run.objects.root / entry.path, (0, 0))
    assert collect(store, run, grace_minutes=60) == []
    assert run.commit(young)
    assert collect(store, run, grace_minutes=60) == [prefix(old)]
    assert shards_of(contents(store)) == {prefix(young)}


def test_an_old_verdict_takes_back_nothing_that_was_committed_since(store: Store, run: StoredRun) -> None:
    run.objects.remove(log_key(1, 0))
    run.objects.replace(log_key(0, 0), b"damaged")
    old = verify(run)
    assert old.damaged_shards == [0, 1, 2]
    requeue(store, run, old)
    for shard in (0, 1, 2):
        finish(run, shard)
    requeue(store, run, old)
    assert verify(run).whole


def test_the_shard_that_a_launch_is_computing_keeps_its_place_in_the_log(store: Store, run: StoredRun) -> None:
    abandoned = write_planted(run, 2, 0)  # an attempt that died, at the shard that the launch now computes
    with Launch(run) as launch:
        state = WorkerState(name="w0", host="h", device="cpu", state="busy", shards=(2,), since=now(), n_shards=0, n_rows=0)
        launch.say(workers=(state,))
        launch.announce()
        assert collect(store, run) == []
        finish(run, 2)
    assert run.log_lengths()[2] == 1
    assert collect(store, run) == [prefix(abandoned)]
