"""What runs in a worker process: a model loaded once, and shards done one after another. How Ray runs it: cluster.pool."""

import importlib.metadata
import logging
import os
import platform
import threading
import time

from cluster import logs
from cluster.events import Done, WorkerFacts
from cluster.execution import Demand
from extract.bench import product_limit
from extract.engine import all_devices, engine, limit_gpu_memory
from extract.models import model_of
from extract.request import Request
from extract.run import plan_run
from extract.shard import Committed, ShardTask, begin, extract_shard
from extract.store import Store

_LIMIT_TOKENS = {"cpu": (256,)}  # a rough limit there: a finer one takes longer than all else at a worker's start
_LIMIT_TOKENS_ELSEWHERE = (2048, 4096)
_VERSIONS = ("affectome", "torch", "transformers")

log = logging.getLogger("affectome.worker")


class ShardWorker:
    """A worker of one launch on one run."""

    def __init__(self, name: str, launch: str, store: str, run_id: str, demand: Demand) -> None:
        """Nothing is read yet; `ready` does that.

        Args:
            demand: what Ray gives it; with no GPU it computes on the CPU, whatever GPUs it may see.
            name: such as `w3`.
            launch: the launch it works for.
            store: the store's directory or URL, which must lead to the same place on every machine.
            run_id: the run, which exists.
        """
        logs.to_standard_error()
        self._where = {"run": run_id, "launch": launch, "worker": name}
        self._store, self._run_id, self._demand = store, run_id, demand
        self._computing = threading.Lock()

    def ready(self) -> WorkerFacts:
        """Load the model, and say where.

        Raises:
            ValueError: this machine does not see the store, or not the model that the run was planned with.
        """
        began = time.perf_counter()
        manifest = Store.open(self._store).run(self._run_id).manifest
        identity = manifest.identity
        self._device = device_of(self._demand)
        self._directory = model_of(identity.weights, manifest.model).directory
        loaded = engine(self._directory, identity, self._device)
        seconds = time.perf_counter() - began
        log.info("ready", extra={**self._where, "device": self._device, "seconds": round(seconds, 3)})
        return WorkerFacts(
            host=platform.node(),
            node=_node(),
            pid=os.getpid(),
            device=self._device,
            depth=1 if self._device == "cpu" else 2,
            limit=product_limit(loaded, max(1, *identity.layers), _LIMIT_TOKENS.get(self._device, _LIMIT_TOKENS_ELSEWHERE)),
            versions=tuple((name, importlib.metadata.version(name)) for name in _VERSIONS),
            seconds=seconds,
        )

    def extract(self, shard: int, attempt: int) -> Done:
        """Do one shard. Called by two threads at once, one shard is written while the other is computed.

        Args:
            attempt: which attempt of the launch at this shard, from 1; for the log.

        Raises:
            ExtractionError, ValueError, OSError: as from extract.shard.extract_shards.
        """
        where = {**self._where, "shard": shard, "attempt": attempt}
        task = ShardTask(self._store, self._run_id, shard, self._directory, self._device)
        log.info("begins", extra=where)
        try:
            with self._computing:
                work = begin(task)
            done = work.commit()
            if done is None:  # taken back meanwhile
                with self._computing:
                    done = extract_shard(task)
        except Exception as error:
            log.exception("failed", extra={**where, "reason": str(error)})
            raise
        log.info("found done" if isinstance(work, Committed) else "done", extra=where | _in_words(done))
        return numbers_of(done)


def plan_there(request: Request, location: str, demand: Demand) -> str:
    """Plan a run on a machine that can load its model; the run's id."""
    return plan_run(request, location, device_of(demand)).run.run_id


def device_of(demand: Demand) -> str:
    """Where this process computes, held to its part of the machine: Ray counts what its workers take and limits nothing."""
    import torch

    torch.set_num_threads(demand.cpus)  # whatever OMP_NUM_THREADS says
    if not demand.gpus:
        return "cpu"
    if demand.gpus < 1:  # Ray shows it one
        limit_gpu_memory(demand.gpus)
    return all_devices()


def numbers_of(done: Committed) -> Done:
    """What a driver is told of a shard."""
    receipt = done.receipt
    return Done(
        shard=receipt.shard,
        entry=receipt.entry,
        here=done.here,
        n_rows=receipt.n_rows,
        n_computed=receipt.n_computed,
        n_bytes=receipt.n_bytes,
        compute_seconds=receipt.seconds.get("compute", 0.0),
        write_seconds=receipt.seconds.get("write", 0.0),
    )


def _in_words(done: Committed) -> dict[str, object]:
    """For the log."""
    receipt = done.receipt
    return {"rows": receipt.n_rows, "bytes": receipt.n_bytes, "seconds": dict(receipt.seconds)}


def _node() -> str:
    import ray  # deferred: what is asked here is asked inside of a worker only

    return str(ray.get_runtime_context().get_node_id())
