"""Asks queries in SQL of processes that may die of them (analyze.service.worker), and ends those that take too long.

A process is kept for the next query, because starting one takes a second. A pool of concurrent.futures was rejected: one
process that dies breaks it for everybody.
"""

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.sealed import TooMuchMemoryError
from analyze.service.limits import BusyError, OverLimitError
from analyze.service.settings import Settings
from analyze.service.worker import Begun, Bounds, Condition, Done, Failed, Query, Reply, Statement, memory_bytes, work

_S_TO_READ = 600.0  # until the tables are read, which no limit of a query bounds
_S_OF_GRACE = 2.0  # a query that can be interrupted ends by itself


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    """A process and the way to it."""

    process: BaseProcess
    connection: Connection


class Queries:
    """Answers queries, a few at once."""

    def __init__(self, location: str, settings: Settings) -> None:
        memory_bytes(settings.memory)  # refuses what is none
        self._location = location
        self._bounds = Bounds(settings.timeout_s, settings.memory)
        self._wait_s = settings.wait_s
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None for one that is not started
        self._started: set[_Worker] = set()
        for _ in range(settings.queries_at_once):
            self._free.put(None)

    def matching(self, run_id: str, where: str) -> NDArray[np.int64]:
        """The rows of a run that match a condition, ascending.

        Raises:
            ValueError: it is not SQL over the columns of the utterances.
            OverLimitError: it takes too much time or memory.
            BusyError: as many as may are at work.
        """
        return np.frombuffer(self._answer(Condition(run_id, where)).data, np.int64)

    def first_rows(self, sql: str, limit: int, most_bytes: int) -> tuple[pa.Table, bool]:
        """The first rows of what a SELECT gives, and whether there are more.

        Raises:
            ValueError: it is not one SELECT over the store's tables.
            OverLimitError: it takes too much time or memory, or its rows are too large.
            BusyError: as many as may are at work.
        """
        done = self._answer(Statement(sql, limit, most_bytes))
        with pa.ipc.open_stream(done.data) as reader:
            return reader.read_all(), done.more

    def first_json(self, sql: str, limit: int, most_bytes: int) -> bytes:
        """The same as the JSON of an AnswerDocument, written where the query's memory and time are bounded.

        Raises:
            ValueError, OverLimitError, BusyError: as from `first_rows`.
        """
        return self._answer(Statement(sql, limit, most_bytes, as_json=True)).data

    def close(self) -> None:
        """End all processes, those at work too; a query that comes later starts another."""
        for worker in list(self._started):
            worker.process.kill()  # who waits for it reads the end of its pipe, and lets it go

    def _answer(self, query: Query) -> Done:
        with self._worker() as worker:
            try:
                worker.connection.send(query)
                reply = self._received(worker, _S_TO_READ)
                if isinstance(reply, Begun):
                    reply = self._received(worker, self._bounds.timeout_s + _S_OF_GRACE)
                if isinstance(reply, Failed) and isinstance(reply.error, TooMuchMemoryError):
                    raise OverLimitError(str(reply.error))  # and let a process go that may not give it back
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise OverLimitError(
                    f"the query takes more memory than {self._bounds.memory}, or more than DuckDB can do; "
                    "ask for less, or raise --memory"
                ) from None
        if isinstance(reply, Failed):
            raise OverLimitError(str(reply.error)) if isinstance(reply.error, TimeoutError) else reply.error
        assert isinstance(reply, Done), "it says only once that it has begun"
        return reply

    def _received(self, worker: _Worker, timeout_s: float) -> Reply:
        if not worker.connection.poll(min(timeout_s, threading.TIMEOUT_MAX)):
            raise OverLimitError(
                f"the query takes longer than {self._bounds.timeout_s:g} seconds; ask for less, or raise --timeout"
            )
        reply: Reply = worker.connection.recv()
        return reply

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """A process that has nothing to do; one that is not fit for another query is ended."""
        try:
            found = self._free.get(timeout=self._wait_s)
        except queue.Empty:
            raise BusyError("as many queries as may be are at work; ask again in a second") from None
        worker = None
        try:
            if found is not None and not found.process.is_alive():
                self._end(found)
                found = None
            worker = found or self._start()
            yield worker
        except BaseException:
            if worker is not None:
                self._end(worker)
            worker = None
            raise
        finally:
            self._free.put(worker)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a fork of threads that hold locks may never wake up
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._location, self._bounds), name="affectome query", daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._started.add(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        self._started.discard(worker)
