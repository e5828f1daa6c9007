"""All GPUs of one machine, a process each; shards go to whichever is free.

Threads were rejected: they share Python's lock and one CUDA allocator. So was a fixed share for each device: the slowest
would decide. Only shards' numbers and receipts travel between processes.
"""

import contextlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import torch

from extract.documents import Receipt
from extract.engine import default_device
from extract.shard import ShardTask, extract_shards

_POLL_SECONDS = 0.2

_waiting: Any
"""In a worker: tasks that nobody has taken yet, and a None for each worker behind them."""
_computed: Any
"""In a worker: where the numbers of computed rows go."""


def visible_devices() -> tuple[str, ...]:
    """Every CUDA device that this process may use; where there is none, the default device."""
    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or (default_device(),)


def extract_on(
    devices: Sequence[str], tasks: Sequence[ShardTask], on_rows: Callable[[int], None] = lambda _: None
) -> list[Receipt]:
    """Extract shards on several devices at once.

    Args:
        on_rows: called in this process with the number of rows computed.

    Raises:
        ExtractionError, ValueError: as from `extract_shards`; what the other devices were at is finished first.
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting, computed = context.Queue(), context.Queue()
    for item in [*tasks, *[None] * len(devices)]:
        waiting.put(item)
    with ProcessPoolExecutor(len(devices), mp_context=context, initializer=_begin, initargs=(waiting, computed)) as pool:
        futures = [pool.submit(_work, device) for device in devices]
        try:
            _relay(futures, computed, on_rows)
        finally:
            _take_all(waiting, len(devices))
    while not computed.empty():  # what the workers told last
        on_rows(computed.get())
    try:
        return [receipt for future in futures for receipt in future.result()]
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that computes died, perhaps for lack of memory; launch again, finished shards are kept. A script "
            'must make this call under if __name__ == "__main__", for each process reads it again'
        ) from error


def _relay(futures: Sequence[Future[list[Receipt]]], computed: Any, on_rows: Callable[[int], None]) -> None:
    """Hand on the numbers of rows until all workers are done, or one has failed."""
    pending = set(futures)
    while pending and not any(future.exception() for future in set(futures) - pending):
        with contextlib.suppress(queue.Empty):
            on_rows(computed.get(timeout=_POLL_SECONDS))
        pending = wait(pending, timeout=0, return_when=FIRST_EXCEPTION).not_done


def _take_all(waiting: Any, n_workers: int) -> None:
    """Leave the workers nothing more to begin."""
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get(timeout=_POLL_SECONDS)
    for _ in range(n_workers):
        waiting.put(None)


def _begin(waiting: Any, computed: Any) -> None:
    global _waiting, _computed
    _waiting, _computed = waiting, computed
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever for a task, with a GPU's memory in its hands."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(device: str) -> list[Receipt]:
    tasks = iter(_waiting.get, None)
    return extract_shards((replace(task, device=device) for task in tasks), _computed.put)
