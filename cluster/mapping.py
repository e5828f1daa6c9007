"""Do one thing to many as Ray tasks: the same function that analyze.mapping runs in threads, so the same bits."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from analyze.mapping import Item, Mapper, Result, ignore, in_threads, one_thread
from cluster.execution import Execution
from cluster.session import connected

_MOST_RETRIES = 3  # a task has no effect but its answer, so Ray may repeat it after a node's death


@contextlib.contextmanager
def mapper_of(execution: Execution | None) -> Iterator[Mapper]:
    """Where an execution does analyses: in threads here, or on Ray.

    Raises:
        ValueError: as from cluster.session.connected.
    """
    if execution is None or not execution.distributed:
        yield in_threads
        return
    with connected(execution):
        yield _RayTasks()


class _RayTasks:
    """A mapper; each item is a task that takes one CPU."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[int], None] = ignore
    ) -> list[Result]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(_call).options(num_cpus=1, max_retries=_MOST_RETRIES)  # each computes with one thread
        shared = ray.put(function)  # once, with whatever arrays it refers to
        waiting = references = [task.remote(shared, item) for item in items]
        try:
            while waiting:
                done, waiting = ray.wait(waiting)
                ray.get(done)  # an error ends it at once
                on_done(len(done))
            return list(ray.get(references))
        except RayError as error:
            for reference in waiting:
                ray.cancel(reference)
            if isinstance(error, RayTaskError):
                raise error.cause from error
            why = str(error).strip().partition("\n")[0]
            raise RuntimeError(f"the analysis was lost again and again: {why}; nothing was kept, so start it again") from error


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    with one_thread():
        return function(item)
