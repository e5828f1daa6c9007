"""What distributing costs: a worker through Ray beside the engine called directly, and a driver with a thousand workers.

    python benchmarks/distributed.py [--corpus FILE] [--rows 1000] [--rounds 3] [--workers 1000]

Overhead: the same rows on the same threads, by turns directly in this process (extract_shards) and by one worker that the
driver gives its shards to; start-up excluded on both sides, that is from the model's being loaded to the last receipt.

Scaling: a thousand workers that take a realistic time for a shard and then commit a real receipt of 31 layers and two sites to
a real store. They are simulated: each is a coroutine in one of a few real Ray actors, because a thousand processes do not fit
into one machine; everything that the driver does is the product's own. Its share of a processor is the CPU time of its
process, Ray's threads included, by wall time.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from first_run import commit, processor
from rich.console import Console
from store import create, receipt_of

from cluster.driver import drive
from cluster.events import Done, Event, WorkerFacts, WorkerJoined
from cluster.execution import Execution
from cluster.pool import Hired, Kind, RayPool
from cluster.session import connected
from cluster.worker import numbers_of
from extract.corpus import Corpus, read_corpus
from extract.documents import Receipt, StoredObject
from extract.launches import Launch
from extract.packages import BUILTIN
from extract.request import Request
from extract.shard import Committed
from extract.store import Store
from extract.stored_run import StoredRun

LAYERS, SITES = 31, ("resid.last", "resid.mean")
ROWS, ROWS_PER_SHARD = 400_000, 200
SECONDS_A_SHARD = 12.0
"""What an H100 takes for 200 few-shot prompts of 1,500 tokens through a model of 8 billion parameters at 40% of its peak."""
ACTORS = 4


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="builtin")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=SECONDS_A_SHARD)
    parser.add_argument(
        "--only-driver", action="store_true", help="only the driver, in this process: its memory is then its own"
    )
    arguments = parser.parse_args()
    if arguments.only_driver:
        print("\n".join(scaling(arguments.workers, arguments.seconds)))
        return
    console = Console(highlight=False, width=128)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(
        f"python benchmarks/distributed.py --rows {arguments.rows} --rounds {arguments.rounds} --workers {arguments.workers}"
    )
    for line in overhead(read_corpus(arguments.corpus).head(arguments.rows), arguments.rounds):
        console.print(line)
    words = [
        sys.executable,
        __file__,
        "--only-driver",
        "--workers",
        str(arguments.workers),
        "--seconds",
        str(arguments.seconds),
    ]
    console.print(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def overhead(corpus: Corpus, rounds: int) -> list[str]:
    """One worker through Ray against the engine called directly."""
    threads = os.cpu_count() or 1
    request = Request(BUILTIN, corpus, compute_dtype="bfloat16", rows_per_shard=max(1, corpus.n_rows // 10))
    direct: list[float] = []
    by_ray: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        for index in range(rounds):
            for name, took, measure in (("direct", direct, directly), ("ray", by_ray, through_ray)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    took.append(pool.apply(measure, (request, f"{directory}/{name}-{index}", threads)))
    fast, slow = statistics.median(direct), statistics.median(by_ray)
    return [
        f"{corpus.n_rows:,} texts through {BUILTIN} in 10 shards, {threads} threads, medians of {rounds} rounds by turns",
        f"the engine directly: {fast:.2f} s, {corpus.n_rows / fast:.1f} rows/s ({_all(direct)})",
        f"one worker through Ray: {slow:.2f} s, {corpus.n_rows / slow:.1f} rows/s ({_all(by_ray)})",
        f"overhead: {slow / fast - 1:+.1%}",
    ]


def directly(request: Request, location: str, threads: int) -> float:
    """Seconds from the first shard to the last receipt, the model loaded before."""
    import torch

    from extract.run import plan_run
    from extract.shard import extract_shards

    torch.set_num_threads(threads)
    plan = plan_run(request, location)  # loads the model
    began = time.perf_counter()
    extract_shards(plan.tasks())
    return time.perf_counter() - began


def through_ray(request: Request, location: str, threads: int) -> float:
    """Seconds from the worker's being ready to the last receipt."""
    from extract.engine import forget_engine
    from extract.run import plan_run

    run = plan_run(request, location).run
    forget_engine()
    with connected(Execution(workers=1, cpus_per_worker=threads)) as (demand, workers), Launch(run) as launch:
        pool = RayPool(run.store_location, run.run_id, launch.name, demand, workers)
        return drive(launch, pool, lambda _: None).seconds


def scaling(n_workers: int, seconds: float) -> list[str]:
    """A driver with that many simulated workers on a run of 400,000 rows."""
    with tempfile.TemporaryDirectory() as directory:
        run = create(Path(directory) / "store", ROWS, ROWS_PER_SHARD)
        before = _peak_mebibytes()
        clock = _Clock(n_workers)
        with connected(Execution(workers=ACTORS, cpus_per_worker=1)), Launch(run) as launch:
            pool = SimulatedPool(n_workers, run.store_location, run.run_id, seconds)
            pool.wait_until_ready()
            outcome = drive(launch, pool, clock)
            busy, wall = clock.stop()
        receipts = Store.open(run.store_location).run(run.run_id).receipts()
    assert len(receipts) == run.n_shards, (len(receipts), run.n_shards)
    n_bytes = run.n_shards * _receipt_bytes(receipts[0])
    return [
        f"{n_workers:,} simulated workers, {run.n_shards:,} shards of {ROWS_PER_SHARD} rows, {LAYERS} layers, "
        f"{seconds:g} s a shard on average; {n_bytes / 2**20:.0f} MiB of receipts",
        f"after the last had joined, {wall:.1f} s, {run.n_shards / wall:,.0f} receipts/s; "
        f"workers alone would take {run.n_shards * seconds / n_workers:.1f} s; repeated: {outcome.retries or 'nothing'}",
        f"driver: {busy / wall:.1%} of one processor, {_peak_mebibytes():,.0f} MiB of memory at most ({before:,.0f} before)",
    ]


class _Clock:
    """Starts when the last worker has joined: hiring is start-up."""

    def __init__(self, n_workers: int) -> None:
        self._n_awaited = n_workers
        self._busy = self._wall = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkerJoined):
            self._n_awaited -= 1
            if not self._n_awaited:
                self._busy, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """Seconds of a processor, and seconds."""
        assert not self._n_awaited, "not every worker joined"
        return time.process_time() - self._busy, time.perf_counter() - self._wall


class SimulatedWorkers:
    """Many workers in one actor: each sleeps as long as a shard takes, and commits a receipt."""

    def __init__(self, location: str, run_id: str, seconds: float) -> None:
        self._run = Store.open(location).run(run_id)
        self._seconds = seconds

    async def ready(self) -> WorkerFacts:
        """What a worker says when its model is loaded."""
        return WorkerFacts("simulated", "node", os.getpid(), "cpu", 1, 1000.0, (), 0.0)

    async def extract(self, shard: int, attempt: int) -> Done:
        """Take a realistic time, and commit."""
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        receipt = _receipt(self._run, shard, attempt)
        await asyncio.to_thread(self._run.commit, receipt)
        return numbers_of(Committed(receipt, here=True))


class SimulatedPool:
    """As cluster.pool.RayPool."""

    def __init__(self, n_workers: int, location: str, run_id: str, seconds: float) -> None:
        import ray
        import store

        ray.cloudpickle.register_pickle_by_value(store)  # type: ignore[no-untyped-call]  # workers do not import from here
        self._n_workers = n_workers
        actor = ray.remote(SimulatedWorkers).options(num_cpus=1, max_concurrency=2 * n_workers)
        self._actors: list[Any] = [actor.remote(location, run_id, seconds) for _ in range(ACTORS)]

    def wait_until_ready(self) -> None:
        """Until every actor answers."""
        import ray

        ray.get([actor.ready.remote() for actor in self._actors])

    def wanted(self) -> int:
        """As RayPool."""
        return self._n_workers

    def hire(self, name: str) -> Hired:
        """As RayPool."""
        return SimulatedWorker(self._actors[int(name[1:]) % ACTORS])

    def what_happened(self, error: BaseException, facts: WorkerFacts | None) -> tuple[Kind, str]:  # noqa: ARG002 - as RayPool
        """Nothing is to go wrong here."""
        raise error


class SimulatedWorker:
    """As cluster.pool.RayWorker."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ready(self) -> "Future[WorkerFacts]":
        """As RayWorker."""
        answer: Future[WorkerFacts] = self._actor.ready.remote().future()
        return answer

    def extract(self, shard: int, attempt: int) -> "Future[Done]":
        """As RayWorker."""
        answer: Future[Done] = self._actor.extract.remote(shard, attempt).future()
        return answer

    def dismiss(self) -> None:
        """It shares its actor with others."""


def _receipt(run: StoredRun, shard: int, attempt: int) -> Receipt:
    names = [f"{site}/{key}" for site in SITES for key in ("zarr.json", *(f"c.{layer}.0.0" for layer in range(LAYERS)))]
    name = f"{attempt:08x}"
    objects = tuple(StoredObject(f"shards/{shard:06d}-{name}/{key}", 115_200, "0" * 64) for key in names)
    return receipt_of(run, shard, name, objects)


def _receipt_bytes(receipt: Receipt) -> int:
    import pickle

    return len(pickle.dumps(replace(receipt)))


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _all(seconds: list[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in seconds)


if __name__ == "__main__":
    main()
