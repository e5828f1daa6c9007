"""Workers on Ray: actors that Ray places, and what their failures mean.

Ray's own restarts and retries are off: it would restart a worker without telling what it was doing, and repeat a shard
without end. The driver (cluster.driver) does both, and can tell a shard that kills its worker from a node that went away.
"""

import re
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from cluster.events import Done, WorkerFacts
from cluster.execution import Demand, room
from cluster.session import living_nodes

Kind = Literal["error", "death", "lost"]


class Hired(Protocol):
    """A worker, perhaps still waiting for a node."""

    def ready(self) -> "Future[WorkerFacts]":
        """What it says once its model is loaded."""

    def extract(self, shard: int, attempt: int) -> "Future[Done]":
        """What it says of a shard, once it exists."""

    def dismiss(self) -> None:
        """End it, whatever it is doing."""


class Pool(Protocol):
    """Where workers come from."""

    def wanted(self) -> int:
        """How many there should be now."""

    def hire(self, name: str) -> Hired:
        """One more; it may have to wait for a node."""

    def what_happened(self, error: BaseException, facts: WorkerFacts | None) -> tuple[Kind, str]:
        """What an error of a worker means, and a sentence for people."""


class RayWorker:
    """An actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ready(self) -> "Future[WorkerFacts]":
        answer: Future[WorkerFacts] = self._actor.ready.remote().future()
        return answer

    def extract(self, shard: int, attempt: int) -> "Future[Done]":
        answer: Future[Done] = self._actor.extract.remote(shard, attempt).future()
        return answer

    def dismiss(self) -> None:
        import ray

        ray.kill(self._actor)


class RayPool:
    """Actors for one run."""

    def __init__(self, store: str, run_id: str, launch: str, demand: Demand, workers: int | None) -> None:
        """Nothing is started yet.

        Args:
            store, run_id, launch: as for cluster.worker.ShardWorker.
            demand: what each worker takes.
            workers: most workers; None for as many as the cluster has room for at the time.
        """
        self._arguments = (launch, store, run_id, demand)
        self._demand = demand
        self._workers = workers

    def wanted(self) -> int:
        return self._workers or max(1, room(self._demand, [resources for _, resources in living_nodes()]))

    def hire(self, name: str) -> Hired:
        import ray

        from cluster.worker import ShardWorker

        actor = ray.remote(ShardWorker).options(
            num_cpus=self._demand.cpus,
            num_gpus=self._demand.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2 if self._demand.gpus else 1,  # one runs in the main thread, which on a CPU is 5% faster
            scheduling_strategy="SPREAD",
        )
        return RayWorker(actor.remote(name, *self._arguments))

    def what_happened(self, error: BaseException, facts: WorkerFacts | None) -> tuple[Kind, str]:
        from ray.exceptions import (
            ActorUnavailableError,
            LocalRayletDiedError,
            NodeDiedError,
            ObjectLostError,
            OutOfMemoryError,
            RayActorError,
            RayTaskError,
        )

        if isinstance(error, OutOfMemoryError):  # of Ray's memory monitor, which is no RayActorError
            return "death", "its worker was killed because its node ran low on memory"
        if isinstance(error, ActorUnavailableError | LocalRayletDiedError | NodeDiedError | ObjectLostError):
            return (
                "lost",
                "its node went away, or cannot be reached",
            )  # a node that dies whole is told so before it counts as dead
        if isinstance(error, RayActorError):
            gone = facts is not None and facts.node not in {node for node, _ in living_nodes()}
            if gone or error.preempted or "node has died" in str(error) or "node was terminated" in str(error):
                return "lost", "its node went away"
            return "death", _why_it_died(error)
        if isinstance(error, RayTaskError):
            return "error", str(error.cause)
        return "error", _first_line(str(error)) or type(error).__name__


def _why_it_died(error: BaseException) -> str:
    """Ray's long text in a few words. It mentions lack of memory in every one; only a kill of its own counts."""
    text = str(error)
    if re.search(r"running low on memory|memory pressure|memory monitor", text):
        return "its worker was killed because its node ran low on memory"
    if "Worker exit type" in text:
        return "its worker died: killed from outside, out of memory, or crashed"
    return f"its worker died: {_first_line(text)}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
