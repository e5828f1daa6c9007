"""An extraction in a process of its own, which tells what it is doing and can be stopped or killed at any of it.

Processes are forked from one that has imported everything (`multiprocessing`'s forkserver) and has used none of it, for a
fresh one imports torch for seconds. What the worker is doing is seen from outside the product: by Python's audit events,
which name every file that is opened or linked. A store on S3 opens no files; of it only plan and compute are seen.

Imported before every fork, so nothing here may start a thread or open a connection.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from extract.corpus import read_corpus
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.shard import ShardTask, extract_shard

PLANNING, COMPUTING, WRITING, COMMITTING = "planning", "computing", "writing", "committing"
PHASES = (PLANNING, COMPUTING, WRITING, COMMITTING)
LINKING = "linking"
"""A place to stop at, no phase: the receipt's bytes lie beside its name, and are about to get it."""

COMPUTED = "computed"
"""An event, no phase: a shard was computed. On S3 it is all that is seen of the shards."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do."""

    model: str
    """Directory of the model."""
    store: str
    """Directory or URL of the store."""
    n_rows: int = 16
    """Utterances of the built-in corpus."""
    rows_per_shard: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set before anything else."""
    stop_at: str = ""
    """Where to stop with SIGSTOP, once: WRITING, COMMITTING or LINKING."""
    task: ShardTask | None = None
    """The only shard to do; None for the whole extraction, with its plan."""

    def request(self) -> Request:
        """The extraction it stands for."""
        return Request(
            self.model,
            read_corpus("builtin").head(self.n_rows),
            sites="resid.last,resid.mean,resid.all",
            compute_dtype="bfloat16",  # not what a processor that others use seems to be faster in
            rows_per_shard=self.rows_per_shard,
            truncate=True,
        )


class _Reporter:
    """Sends what happens: ("phase", name), ("computed", rows), ("stopping", ""), ("error", sentence)."""

    def __init__(self, out: Connection, stop_at: str) -> None:
        self._out = out
        self._stop_at = stop_at
        self._phase = ""
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        with self._lock:
            if phase != self._phase:
                self._phase = phase
                self._out.send(("phase", phase))
            if phase == self._stop_at:
                self.stop()

    def stop(self) -> None:
        self._stop_at = ""
        self._out.send(("stopping", ""))
        os.kill(os.getpid(), signal.SIGSTOP)

    def computed(self, rows: int) -> None:
        self._out.send((COMPUTED, str(rows)))
        self.enter(WRITING)

    def failed(self, error: Exception) -> None:
        self._out.send(("error", f"{type(error).__name__}: {error}"))

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open" and isinstance(args[0], str | os.PathLike) and isinstance(args[1], str):
            path, writes = os.fspath(args[0]), "x" in args[1]
            if writes and "/shards/" in path:
                self.enter(WRITING)
            elif writes and "/receipts/" in path:
                self.enter(COMMITTING)
            elif path.endswith("/tokens.parquet") and self._phase == COMMITTING:
                self.enter(COMPUTING)
        elif event == "os.link" and "/receipts/" in str(args[1]) and self._stop_at == LINKING:
            self.stop()


def work(job: Job, out: Connection) -> None:
    """Run in the worker's process; ends with exit status 1 and an ("error", ...) where the product raises."""
    os.environ.update(job.environment)
    torch.set_num_threads(1)
    reporter = _Reporter(out, job.stop_at)
    sys.addaudithook(reporter.hear)
    try:
        if job.task is not None:
            reporter.enter(COMPUTING)
            extract_shard(job.task, reporter.computed)
            return
        reporter.enter(PLANNING)
        plan = plan_run(job.request(), job.store)
        reporter.enter(COMPUTING)
        extract_missing(plan, reporter.computed)
    except (OSError, ValueError, RuntimeError) as error:
        reporter.failed(error)
        sys.exit(1)
