"""The driver with workers that really extract, in threads of this process: two shards at once, as on a GPU, and deaths."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import driver, worker
from cluster.driver import drive
from cluster.events import AttemptFailed, Done, Event, FoundDone, ShardDone, WorkerFacts, WorkerLeft
from cluster.execution import Demand
from cluster.pool import Hired, Kind
from cluster.worker import ShardWorker
from extract.corpus import read_corpus
from extract.launches import Launch
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.stored_run import StoredRun
from extract.verify import verify
from tests.faults.around import compare, local_objects, read_around

ROWS, ROWS_PER_SHARD = 32, 4
_COMPUTING = threading.Lock()
"""Of all workers, because in one process they have one engine."""


class DeathError(Exception):
    """What becomes of a worker's calls when it dies."""


class Threaded:
    """A worker that runs as its actor does, two calls at once, and dies when it is told to."""

    def __init__(self, worker: ShardWorker, dies_at: int | None) -> None:
        self._worker = worker
        self._dies_at = dies_at
        self._calls = ThreadPoolExecutor(2)
        self._open: list[Future[Done]] = []
        self.given: list[int] = []
        """The shards it was given."""
        self.most_at_once = 0
        """How many it held at a time."""

    def ready(self) -> "Future[WorkerFacts]":
        return self._calls.submit(lambda: replace(self._worker.ready(), depth=2))

    def extract(self, shard: int, attempt: int) -> "Future[Done]":
        self.given.append(shard)
        answer: Future[Done] = Future()
        self._open = [each for each in (*self._open, answer) if not each.done()]
        self.most_at_once = max(self.most_at_once, len(self._open))
        if len(self.given) == self._dies_at:
            for each in self._open:
                each.set_exception(DeathError("killed"))
        elif self._dies_at is None or len(self.given) < self._dies_at - 1:
            self._calls.submit(self._answer, answer, shard, attempt)  # else it is still at it when it dies
        return answer

    def _answer(self, answer: "Future[Done]", shard: int, attempt: int) -> None:
        try:
            answer.set_result(self._worker.extract(shard, attempt))
        except Exception as error:
            answer.set_exception(error)

    def dismiss(self) -> None:
        self._calls.shutdown(wait=False, cancel_futures=True)


class Threads:
    """A pool of them."""

    def __init__(self, run: StoredRun, launch: str, n_workers: int, dies_at: int | None) -> None:
        self._of = (launch, run.store_location, run.run_id, Demand(1, 0.0))
        self._n_workers = n_workers
        self._dies_at = dies_at
        self.hired: list[Threaded] = []
        """Every worker there was."""

    def wanted(self) -> int:
        return self._n_workers

    def hire(self, name: str) -> Hired:
        worker = ShardWorker(name, *self._of)
        worker._computing = _COMPUTING
        self.hired.append(Threaded(worker, self._dies_at if not self.hired else None))
        return self.hired[-1]

    def what_happened(self, error: BaseException, facts: WorkerFacts | None) -> tuple[Kind, str]:  # noqa: ARG002 - as RayPool
        return ("death" if isinstance(error, DeathError) else "error"), str(error)


@pytest.fixture
def run(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredRun]:
    """Eight shards, none of which exists."""
    n_threads = torch.get_num_threads()
    monkeypatch.setattr(worker, "_node", lambda: "here")  # there is no node of Ray's
    monkeypatch.setattr(driver, "_HIRE_SECONDS", 0.05)
    corpus = read_corpus("builtin").head(ROWS)
    request = Request(tiny_model.name, corpus, truncate=True, compute_dtype="float32", rows_per_shard=ROWS_PER_SHARD)
    yield plan_run(request, str(tmp_path / "store"), "cpu").run
    torch.set_num_threads(n_threads)


def driven(run: StoredRun, n_workers: int, dies_at: int | None = None) -> tuple[Threads, list[Event]]:
    events: list[Event] = []
    with Launch(run) as launch:
        pool = Threads(run, launch.name, n_workers, dies_at)
        drive(launch, pool, events.append)
    assert same_as_alone(run)
    return pool, events


def same_as_alone(run: StoredRun) -> bool:
    """Whether a run holds what one process makes of it."""
    alone = Path(run.store_location).with_name("alone")
    manifest = run.manifest
    corpus = read_corpus("builtin").head(ROWS)
    request = Request(manifest.model, corpus, truncate=True, compute_dtype="float32", rows_per_shard=ROWS_PER_SHARD)
    extract_missing(plan_run(request, str(alone), "cpu"))
    difference = compare(read_around(local_objects(Path(run.store_location))), read_around(local_objects(alone)))
    return verify(run).whole and not (difference.rows_lost or difference.rows_doubled or difference.corrupt)


def test_a_worker_off_the_cpu_holds_two_shards_and_each_is_made_once(run: StoredRun) -> None:
    pool, events = driven(run, 1)
    (only,) = pool.hired
    assert only.most_at_once == 2
    assert sorted(only.given) == list(range(run.n_shards))
    made = [event.done for event in events if isinstance(event, ShardDone)]
    assert sorted(done.shard for done in made) == list(range(run.n_shards))
    assert sum(done.n_rows for done in made) == ROWS
    assert not any(isinstance(event, FoundDone) for event in events)


def test_a_worker_that_dies_with_two_shards_costs_both_and_only_the_first_is_blamed(run: StoredRun) -> None:
    pool, events = driven(run, 1, dies_at=4)
    first = pool.hired[0]
    failed = [(event.shard, event.kind) for event in events if isinstance(event, AttemptFailed)]
    assert failed == [(first.given[-2], "death"), (first.given[-1], "lost")]
    assert [event.worker for event in events if isinstance(event, WorkerLeft)] == ["w0"]
    made = sorted(event.done.shard for event in events if isinstance(event, ShardDone))
    assert made == list(range(run.n_shards))


def test_two_launches_count_each_shard_once_between_them(run: StoredRun) -> None:
    events: list[list[Event]] = [[], []]

    both = threading.Barrier(2)

    def one(number: int) -> None:
        with Launch(run) as launch:
            both.wait()
            drive(launch, Threads(run, launch.name, 1, None), events[number].append)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same_as_alone(run)
    made = [event.done.shard for each in events for event in each if isinstance(event, ShardDone)]
    assert sorted(made) == list(range(run.n_shards))
    for each in events:
        rows = sum(_rows(event) for event in each)
        assert rows <= ROWS  # what was there when it began is no progress of its


def _rows(event: Event) -> int:
    return event.done.n_rows if isinstance(event, ShardDone) else event.n_rows if isinstance(event, FoundDone) else 0
