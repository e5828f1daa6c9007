"""Extract a run: plan it and do what is missing of it, in this process or by workers on Ray, and tell people what happens."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cluster.console import Meter, note, progress, stopping_on_sigterm
from cluster.driver import Outcome, drive
from cluster.events import (
    AttemptFailed,
    Done,
    Event,
    FoundDone,
    ShardDone,
    Snapshot,
    Waiting,
    WorkerFacts,
    WorkerJoined,
    WorkerLeft,
)
from cluster.execution import Demand, Execution
from cluster.pool import RayPool
from cluster.session import connected, visible_gpus
from extract.launches import Launch, remove_dead
from extract.models import models_directory
from extract.objects import open_objects
from extract.packages import PACKAGED
from extract.request import Request
from extract.store import Store
from extract.stored_run import StoredRun

log = logging.getLogger("affectome.launch")

_PATIENCE_SECONDS = 30.0


def extract(request: Request, location: str, execution: Execution | None = None) -> StoredRun:
    """Plan a run and do what is missing of it.

    Args:
        location: the store's directory or URL.
        execution: where shards are computed; without it, in this process, or by a worker for each GPU where there are several.

    Raises:
        ValueError: something asked for cannot be; or Ray cannot be started or joined.
        RuntimeError: shards failed again and again; all others exist, and the message says what failed and why.
    """
    execution = execution or Execution()
    place = open_objects(location).url()  # workers may start in another directory
    request = replace(request, model=_absolute(request.model))
    packaged = PACKAGED.get(request.model)
    if packaged is not None and packaged.sha256 and not (models_directory() / packaged.name).exists():
        note(f"importing {packaged.name} into {models_directory()}, this once")
    with stopping_on_sigterm():
        if execution.address is not None:
            return _join_and_extract(request, place, execution)
        if execution.workers is not None or visible_gpus() > 1:
            return _start_and_extract(request, place, execution)
        return _extract_here(request, place)


def _extract_here(request: Request, location: str) -> StoredRun:
    from extract.run import extract_missing, plan_run

    plan = plan_run(request, location)
    if not _finished(plan.run):
        with progress("extracting", sum(map(plan.run.shard_size, plan.run.missing_shards())), "rows") as meter:
            extract_missing(
                plan, meter, lambda survey: note(f"the last shards are being done by {survey.who}; waiting for them")
            )
    return plan.run


def _start_and_extract(request: Request, location: str, execution: Execution) -> StoredRun:
    run = _planned_here(request, location, execution)
    if not _finished(run):
        with connected(execution) as (demand, workers):
            _by_workers(run, demand, workers)
    return run


def _join_and_extract(request: Request, location: str, execution: Execution) -> StoredRun:
    with connected(execution) as (demand, workers):
        run = _planned_there(request, location, demand)
        if not _finished(run):
            _by_workers(run, demand, workers)
    return run


def _planned_here(request: Request, location: str, execution: Execution) -> StoredRun:
    from extract.engine import all_devices, forget_engine, limit_gpu_memory
    from extract.run import plan_run

    gpus = execution.gpus_per_worker  # above 1, one cannot hold it
    device = "cpu" if gpus == 0 else all_devices() if (gpus or 0) > 1 else None
    shared = 0 < (gpus or 0) < 1
    if shared:
        limit_gpu_memory(float(gpus or 0))  # as a worker has it, so that its batches fit
    try:
        return plan_run(request, location, device).run
    finally:
        forget_engine()  # this process computes nothing, and its memory is the workers'
        if shared:
            limit_gpu_memory(1.0)


def _planned_there(request: Request, location: str, demand: Demand) -> StoredRun:
    """Plan in the cluster: only there need the model fit, and only there is known in which precision it is faster."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from cluster.worker import plan_there
    from extract.templates import read_source

    note("planning the run in the cluster")
    request = replace(request, template=read_source(request.template))  # a file of this machine
    planning = ray.remote(plan_there).options(num_cpus=demand.cpus, num_gpus=demand.gpus, max_retries=3)
    answer = planning.remote(request, location, demand)
    while not ray.wait([answer], timeout=_PATIENCE_SECONDS)[0]:
        note(f"still planning, or waiting for a node with {demand} to spare")
    try:
        run_id = ray.get(answer)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise RuntimeError(f"the run could not be planned in the cluster: {str(error).partition(chr(10))[0]}") from error
    try:
        return Store.open(location).run(run_id)
    except ValueError as error:
        raise ValueError(f"the cluster made run {run_id}, but it is not seen from here: {error}; {_ONE_PLACE}") from error


_ONE_PLACE = "a store must be one place for all machines: a shared filesystem or a URL such as s3://bucket/prefix"


def _finished(run: StoredRun) -> bool:
    done = sum(receipt.n_rows for receipt in run.receipts())
    if done == run.manifest.n_rows:
        remove_dead(run)
        note(f"run {run.run_id} is finished already: {done:,} of {done:,} rows are in {run.store_location}")
        return True
    found = f"; {done:,} rows are done already" if done else ""
    note(f"run {run.run_id}: {run.manifest.n_rows:,} rows through {run.manifest.model}{found}")
    return False


def _by_workers(run: StoredRun, demand: Demand, workers: int | None) -> None:
    from cluster.metrics import LaunchMetrics  # imports Ray, which reads its settings then (cluster.session)

    with Launch(run) as launch:
        survey = launch.survey()
        if survey.others:
            note(f"{survey.who} at work on this run too; its shards are shared")
        with progress("extracting", sum(map(run.shard_size, survey.missing)), "rows") as meter:
            listeners = (_shown(meter), _logged(run.run_id, launch.name), LaunchMetrics(run.run_id, run.manifest.model))

            def tell(event: Event) -> None:
                for listener in listeners:
                    listener(event)

            outcome = drive(launch, RayPool(run.store_location, run.run_id, launch.name, demand, workers), tell)
    _sum_up(run, outcome)


def _shown(meter: Meter) -> Callable[[Event], None]:
    """Events for whoever watches the launch."""
    first: list[WorkerFacts] = []

    def show(event: Event) -> None:
        match event:
            case WorkerJoined(worker=worker, facts=facts):
                first.append(facts)
                if facts.versions != first[0].versions:
                    theirs, others = (dict(each.versions) for each in (facts, first[0]))
                    differing = ", ".join(
                        f"{name} {theirs[name]} for {others[name]}" for name in theirs if theirs[name] != others[name]
                    )
                    note(f"worker {worker} on {facts.host} has {differing}: the last bits of its shards may differ")
            case ShardDone(done=Done(n_rows=n_rows)) | FoundDone(n_rows=n_rows):
                meter(n_rows)
            case WorkerLeft(worker=worker, reason=reason):
                note(f"worker {worker} left: {reason}")
            case AttemptFailed(kind="error") as failed:
                end = "it is given up" if failed.given_up else "it will be tried again"
                note(f"shard {failed.shard} failed on {failed.worker}, attempt {failed.attempt}: {failed.reason}; {end}")
            case Waiting(reason=reason):
                note(reason)
            case Snapshot() as state:
                starting = f", {state.n_starting} starting" if state.n_starting else ""
                meter.says(f"{state.n_busy} of {state.n_busy + state.n_idle} workers busy{starting}")

    return show


def _logged(run_id: str, launch: str) -> Callable[[Event], None]:
    """Events for the log."""
    where = {"run": run_id, "launch": launch}

    def write(event: Event) -> None:
        match event:
            case WorkerJoined(worker=worker, facts=facts):
                seconds = round(facts.seconds, 3)
                extra = {"worker": worker, "host": facts.host, "device": facts.device, "pid": facts.pid, "seconds": seconds}
                log.info("worker joined", extra=where | extra)
            case WorkerLeft(worker=worker, reason=reason, lost=lost):
                log.warning("worker left", extra=where | {"worker": worker, "reason": reason, "lost": lost})
            case ShardDone(done=done, attempt=attempt, worker=worker, recovery_seconds=recovery):
                extra = {"shard": done.shard, "attempt": attempt, "worker": worker, "rows": done.n_rows}
                extra |= {"recovery_seconds": round(recovery, 3)} if recovery is not None else {}
                log.info("shard done", extra=where | extra)
            case AttemptFailed() as failed:
                extra = {"shard": failed.shard, "attempt": failed.attempt, "worker": failed.worker}
                extra |= {"kind": failed.kind, "reason": failed.reason, "given_up": failed.given_up}
                log.warning("attempt failed", extra=where | extra)
            case FoundDone(n_shards=n_shards, n_rows=n_rows):
                log.info("others did shards", extra=where | {"shards": n_shards, "rows": n_rows})
            case Waiting(reason=reason):
                log.warning("waiting", extra=where | {"reason": reason})

    return write


def _sum_up(run: StoredRun, outcome: Outcome) -> None:
    if outcome.retries:
        note("repeated: " + ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.retries.items())))
    missing = set(run.missing_shards())
    given_up = [each for each in outcome.given_up if each.shard in missing]  # another launch may have done one
    if given_up:
        worst = given_up[0]
        raise RuntimeError(
            f"run {run.run_id} is incomplete: {len(given_up):,} of {run.n_shards:,} shards failed {len(worst.reasons)} "
            f"times and were given up, all others are done; shard {worst.shard}: {worst.reasons[-1]}. Mend what is wrong "
            "and launch the same again, which does only these"
        )


def _absolute(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model
