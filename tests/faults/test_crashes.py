"""kill -9 at any moment of an extraction, on a disk and on S3, and launches until it is complete."""

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from extract.store import Store
from extract.verify import verify
from tests.faults.around import Contents, Objects, live_receipts, local_objects, s3_objects
from tests.faults.launch import Launch
from tests.faults.matrix import Scenario, hold_to_account
from tests.faults.worker import COMPUTED, COMPUTING, PHASES, PLANNING, WRITING, Job
from tests.s3 import BUCKET, S3Server

pytestmark = pytest.mark.faults


class Killer:
    """Kills launches of an extraction until it is complete in spite of it, and looks at the store after each."""

    def __init__(self, job: Job, objects: Callable[[], Objects], row: Scenario, chance: np.random.Generator) -> None:
        self.job = job
        self.objects = objects
        self.row = row
        self.chance = chance
        self.hit: Counter[str] = Counter()
        """What the killed were doing."""

    def until_complete(self, events: tuple[str, ...], seconds: dict[str, list[float]], kills: int) -> None:
        """Kill at most that often; then let it finish, and hold what it stored to account."""
        computed, killed, receipts = 0, 0, set[int]()
        launch = None
        while killed < kills:
            event = events[self.row.times % len(events)]
            launch = Launch(self.job)
            if launch.reaches(event, 1 if event == PLANNING else int(self.chance.integers(1, 4))):
                time.sleep(self.chance.uniform(0, float(np.mean(seconds[event]))))  # the moment of the kill
                launch.kill()
            else:
                launch.end()
            assert not launch.error
            computed += launch.n_computed
            if not launch.killed:
                break
            killed += 1
            self.row.times += 1
            self.hit[launch.phase] += 1
            there = set(live_receipts(self.objects()))
            self.row.shards_lost += len(receipts - there)
            receipts = there
            self._whole_but_unfinished()
        if launch is None or launch.killed:
            launch = Launch(self.job).end()
            assert not launch.error
            computed += launch.n_computed
        self.row.recovery_s = max(self.row.recovery_s, time.monotonic() - launch.began)
        n_shards = -(-self.job.n_rows // self.job.rows_per_shard)
        if killed:
            self.row.done_twice = max(self.row.done_twice, (computed - n_shards) / killed)

    def _whole_but_unfinished(self) -> None:
        """What is there is right: all that is wrong with the run is what it does not have yet."""
        objects = self.objects()
        if any(key.endswith("/run.json") for key in objects):
            (run,) = Store.open(self.job.store).runs()
            for problem in verify(run).problems:
                assert "no receipt" in problem.sentence, problem


def test_fifty_kills_cost_no_row_and_never_more_than_a_shard_of_work(
    job: Job, tmp_path: Path, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario]
) -> None:
    launch, reference = undisturbed
    row, chance, hit = scenario("kill -9, local"), np.random.default_rng(50), Counter[str]()
    while row.times < 50:
        store = tmp_path / f"store-{row.times}"
        killer = Killer(replace(job, store=str(store)), partial(local_objects, store), row, chance)
        killer.until_complete(PHASES, launch.seconds, 50 - row.times)
        hit += killer.hit
        hold_to_account(str(store), killer.objects, reference, row)
    row.note = ", ".join(f"{hit[phase]} {phase}" for phase in PHASES)
    assert min(hit[phase] for phase in PHASES) >= 5, row.note
    assert row.harmless, row


def test_twenty_kills_on_s3_cost_no_row_and_never_more_than_a_shard_of_work(
    job: Job,
    s3_server: S3Server,
    s3_environment: dict[str, str],
    undisturbed: tuple[Launch, Contents],
    scenario: Callable[[str], Scenario],
) -> None:
    _, reference = undisturbed
    row, chance, hit = scenario("kill -9, S3"), np.random.default_rng(20), Counter[str]()
    events = (PLANNING, COMPUTED, COMPUTED, COMPUTED)  # after it a shard is written, committed, and the next one computed
    while row.times < 20:
        store = f"s3://{BUCKET}/kills-{uuid.uuid4().hex}"
        objects = partial(s3_objects, s3_server, store)
        killer = Killer(replace(job, store=store, environment=s3_environment), objects, row, chance)
        killer.until_complete(events, {PLANNING: [1.0], COMPUTED: [0.3]}, 20 - row.times)
        hit += killer.hit
        hold_to_account(store, objects, reference, row)
    row.note = f"{hit[PLANNING]} planning, {hit[COMPUTING]} before the first shard, {hit[WRITING]} later"
    assert hit[PLANNING] >= 3
    assert hit[WRITING] >= 8
    assert row.harmless, row
