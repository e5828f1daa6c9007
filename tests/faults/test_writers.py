"""Two writers of one shard, and writers that sleep while others do their work, take it back or clean up after them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from extract.garbage import find_leftovers, remove_leftovers
from extract.run import Plan, plan_run
from extract.store import Store
from extract.verify import requeue, verify
from tests.faults.around import Contents, Objects, live_receipts, local_objects
from tests.faults.launch import Launch
from tests.faults.matrix import Scenario, hold_to_account
from tests.faults.worker import COMMITTING, LINKING, WRITING, Job

pytestmark = pytest.mark.faults

SHARD = 3


@pytest.fixture
def plan(job: Job) -> Plan:
    """The extraction, planned and not begun."""
    return plan_run(job.request(), job.store)


@pytest.fixture
def one_shard(job: Job, plan: Plan) -> Job:
    """A worker's job that is a single shard of it."""
    return replace(job, task=plan.tasks()[SHARD])


def asleep(job: Job, stop_at: str) -> Launch:
    """A worker that has come to a place and stands still."""
    launch = Launch(replace(job, stop_at=stop_at))
    assert launch.stops()
    return launch


def done(job: Job) -> Launch:
    """A worker that did its job."""
    launch = Launch(job).end()
    assert not launch.error, launch.error
    return launch


def collect_garbage(plan: Plan) -> None:
    """Remove at once what nobody names, however young."""
    remove_leftovers(plan.store, find_leftovers(plan.store, plan.run.run_id), grace_minutes=0)


def damage_and_take_back(plan: Plan) -> None:
    """Flip a bit of the shard's receipted data; verify finds it and requeues the shard."""
    receipt = plan.run.receipt(SHARD)
    assert receipt is not None
    path = Path(plan.run.objects.url(next(entry.path for entry in receipt.objects if "/c." in entry.path)))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert SHARD in requeue(plan.store, plan.run, verify(plan.run))


def finish(job: Job, reference: Contents, row: Scenario, woken: list[Launch]) -> None:
    """Those who slept end well, the extraction is completed, and it is as if nothing had happened."""
    for launch in woken:
        launch.wake()
    for launch in woken:
        launch.end()
        assert not launch.error, launch.error
    row.times += 1
    launch = done(replace(job, task=None))
    hold_to_account(job.store, lambda: local_objects(Path(job.store)), reference, row)
    assert row.harmless, row
    assert launch.n_computed <= 8


@pytest.mark.parametrize("first", ["first", "second", "both"])
def test_of_two_writers_of_a_shard_one_wins_whole(
    one_shard: Job, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario], first: str
) -> None:
    row = scenario(f"two writers, {first} to commit {'at once' if first == 'both' else 'wins'}")
    writers = [asleep(one_shard, LINKING), asleep(one_shard, LINKING)]
    if first != "both":
        winner = writers[0 if first == "first" else 1]
        winner.wake()
        winner.end()
        writers.remove(winner)
    finish(one_shard, undisturbed[1], row, writers)


def test_two_whole_extractions_at_once_share_a_run(
    job: Job, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario]
) -> None:
    finish(job, undisturbed[1], scenario("two extractions at once"), [Launch(job), Launch(job)])


@pytest.mark.parametrize("place", [WRITING, COMMITTING, LINKING])
@pytest.mark.parametrize("meanwhile", ["redone", "redone, gc", "gc", "redone, taken back", "redone, taken back, gc, redone"])
def test_a_writer_that_wakes_late_ends_well_and_harms_nothing(
    one_shard: Job,
    plan: Plan,
    undisturbed: tuple[Launch, Contents],
    scenario: Callable[[str], Scenario],
    place: str,
    meanwhile: str,
) -> None:
    row = scenario(f"asleep {place}; {meanwhile}")
    sleeper = asleep(one_shard, place)
    for event in meanwhile.split(", "):
        match event:
            case "redone":
                done(one_shard)
            case "gc":
                collect_garbage(plan)
            case "taken back":
                damage_and_take_back(plan)
    finish(one_shard, undisturbed[1], row, [sleeper])


def test_gc_keeps_an_attempt_that_was_committed_after_it_was_listed(
    one_shard: Job, plan: Plan, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario]
) -> None:
    sleeper = asleep(one_shard, COMMITTING)
    store = Store.open(one_shard.store)
    listed = find_leftovers(store, plan.run.run_id)
    assert [leftover.shard for leftover in listed] == [SHARD]
    sleeper.wake()
    sleeper.end()
    receipts: Objects = local_objects(Path(one_shard.store))
    assert SHARD in live_receipts(receipts)
    assert remove_leftovers(store, listed, grace_minutes=0) == []
    finish(one_shard, undisturbed[1], scenario("committed between gc's listing and removal"), [])
