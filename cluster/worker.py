"""What runs in a worker process: a model loaded once, and shards done one after another. How Ray runs it: cluster.pool."""

import importlib.metadata
import logging
import os
import platform
import threading
import time

from cluster import logs
from cluster.events import WorkerFacts
from extract.bench import product_limit
from extract.documents import Receipt
from extract.engine import all_devices, engine
from extract.models import model_of
from extract.request import Request
from extract.run import plan_run
from extract.shard import Found, ShardTask, begin, extract_shard
from extract.store import Store

_LIMIT_TOKENS = {"cpu": (256,)}  # a rough limit there: a finer one takes longer than all else at a worker's start
_LIMIT_TOKENS_ELSEWHERE = (2048, 4096)
_VERSIONS = ("affectome", "torch", "transformers")

log = logging.getLogger("affectome.worker")


class ShardWorker:
    """A worker of one launch on one run."""

    def __init__(self, name: str, launch: str, store: str, run_id: str, gpus: float) -> None:
        """Nothing is read yet; `ready` does that.

        Args:
            gpus: GPUs that Ray gives it; with 0 it computes on the CPU, whatever GPUs it may see.
            name: such as `w3`.
            launch: the launch it works for.
            store: the store's directory or URL, which must lead to the same place on every machine.
            run_id: the run, which exists.
        """
        logs.to_standard_error()
        self._where = {"run": run_id, "launch": launch, "worker": name}
        self._store, self._run_id, self._gpus = store, run_id, gpus
        self._computing = threading.Lock()

    def ready(self) -> WorkerFacts:
        """Load the model, and say where.

        Raises:
            ValueError: this machine does not see the store, or not the model that the run was planned with.
        """
        began = time.perf_counter()
        manifest = Store.open(self._store).run(self._run_id).manifest
        identity = manifest.identity
        self._device = device_with(self._gpus)
        self._directory = model_of(identity.weights, manifest.model).directory
        loaded = engine(self._directory, identity.weights, identity.compute_dtype, identity.attention, self._device)
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

    def extract(self, shard: int, attempt: int) -> Receipt:
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
            if isinstance(work, Found):
                log.info("found done", extra=where)
                return work.receipt
            receipt = work.commit()
            if receipt is None:  # taken back meanwhile
                with self._computing:
                    receipt = extract_shard(task)
        except Exception as error:
            log.exception("failed", extra={**where, "reason": str(error)})
            raise
        log.info("done", extra={**where, "rows": receipt.n_rows, "bytes": receipt.n_bytes, "seconds": dict(receipt.seconds)})
        return receipt


def plan_there(request: Request, location: str, gpus: float) -> str:
    """Plan a run on a machine that can load its model; the run's id."""
    return plan_run(request, location, device_with(gpus)).run.run_id


def device_with(gpus: float) -> str:
    """Where a process with so many GPUs computes: Ray lets one that asked for none see them all."""
    return all_devices() if gpus else "cpu"


def _node() -> str:
    import ray  # deferred: what is asked here is asked inside of a worker only

    return str(ray.get_runtime_context().get_node_id())
