"""One launch of one run on many workers: hire them, give each a shard as it becomes free, and mourn those that die.

Everything that happens arrives in one queue: a worker is ready, a shard is done, a worker is gone. So a thousand workers cost
no more than the messages they send; asking Ray over and over which of them has finished (`ray.wait`) costs time for each of
them each time. In flight is at most what workers hold, one shard each or two. What comes back is a few numbers of each
receipt; a message that Ray loses is found in the store.
"""

import gc
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from cluster.board import Board, GivenUp
from cluster.events import (
    AttemptFailed,
    Done,
    FoundDone,
    Listener,
    ShardDone,
    Snapshot,
    Waiting,
    WorkerFacts,
    WorkerJoined,
    WorkerLeft,
)
from cluster.pool import Hired, Kind, Pool
from extract.documents import now
from extract.launches import Launch, Quarantined, Survey, WorkerState, order_of

_TICK_SECONDS = 1.0
_HIRE_SECONDS = 2.0
_SURVEY_SECONDS = 10.0
_SURVEY_SECONDS_WHEN_WAITING = 1.0  # for other launches, of which nothing is heard but what they write
_RATE_SECONDS = 30.0
_PATIENCE_SECONDS = 30.0
_MOST_FAILED_STARTS = 3
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_DEATHS_AT_START = 12  # more, because machines that are taken back may take a worker at any time


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch ended."""

    given_up: tuple[GivenUp, ...]
    """Shards that failed too often; all others exist."""
    retries: dict[str, int]
    """Attempts beyond the first, by reason."""
    seconds: float
    """From the first worker's being ready to the end."""


@dataclass(slots=True)
class _Worker:
    """A worker as the driver sees it."""

    name: str
    """Such as `w3`."""
    hired: Hired
    """What answers."""
    facts: WorkerFacts | None = None
    """What it said when it was ready; None before."""
    shards: list[int] = field(default_factory=list)
    """What it was given."""
    n_shards: int = 0
    """Shards it has done."""
    n_rows: int = 0
    """Their rows."""
    since: str = field(default_factory=now)
    """Since when it is in its state."""

    @property
    def free(self) -> bool:
        """Whether it can take one more shard."""
        return self.facts is not None and len(self.shards) < self.facts.depth


@dataclass(frozen=True, slots=True)
class _Message:
    """What a worker has to say."""

    worker: str
    """Its name."""
    shard: int | None
    """The shard it answers for; None for its start."""
    answer: "Future[Any]"
    """Facts, or a shard that is done; or an error."""


def drive(launch: Launch, pool: Pool, listener: Listener) -> Outcome:
    """Do what is missing of a run.

    Args:
        launch: this process's part in the run, entered.
        pool: where workers come from.
        listener: is told what happens, in this thread.

    Raises:
        RuntimeError: no worker can start, or nothing that is tried works; the message says why. Shards that exist are kept.
        ValueError: a receipt is damaged.
    """
    driver = _Driver(launch, pool, listener)
    gc.freeze()  # or each of its messages' garbage makes the collector visit all that torch and Ray have imported
    try:
        return driver.run()
    finally:
        gc.unfreeze()
        driver.dismiss_all()


class _Driver:
    """The state of a launch: the board, the workers, and what they said that was not heard yet."""

    def __init__(self, launch: Launch, pool: Pool, listener: Listener) -> None:
        self._launch = launch
        self._run = launch.run
        self._pool = pool
        self._tell = listener
        survey = launch.survey()
        self._board = Board(order_of(survey))
        self._board.learn(survey.missing, survey.elsewhere)
        self._workers: dict[str, _Worker] = {}
        self._free: dict[str, _Worker] = {}  # of them; asking a thousand after each message would cost more than the message
        self._n_hired = 0
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._attempts: dict[int, int] = {}
        self._lost_since: dict[int, float] = {}
        self._failed_starts: Counter[str] = Counter()
        self._recent: deque[tuple[float, int]] = deque()
        self._began: float | None = None
        self._hiring, self._surveying, self._telling = _Timer(), _Timer(), _Timer()
        self._quiet_since = time.monotonic()
        self._hire_from = 0.0

    def run(self) -> Outcome:
        """Until nothing is left to do."""
        while not self._board.over:
            if self._hiring.due(_HIRE_SECONDS):
                self._hire()
            self._give()
            if self._surveying.due(_SURVEY_SECONDS_WHEN_WAITING if self._board.only_elsewhere else _SURVEY_SECONDS):
                self._survey()
            if self._telling.due(_TICK_SECONDS):
                self._tell_state()
            self._hear()
            if self._board.hopeless is not None:
                self._announce()
                raise RuntimeError(
                    f"nothing works: {self._board.hopeless} (finished shards are kept; mend it and launch again)"
                )
        self._announce()
        self._tell_state()
        seconds = time.monotonic() - self._began if self._began is not None else 0.0
        return Outcome(tuple(self._board.given_up), dict(self._board.retries), seconds)

    def dismiss_all(self) -> None:
        """End every worker."""
        for worker in self._workers.values():
            worker.hired.dismiss()
        self._workers.clear()

    # Workers.

    def _hire(self) -> None:
        if time.monotonic() < self._hire_from:
            return
        wanted = min(self._pool.wanted(), self._board.n_to_do(time.monotonic()))
        while len(self._workers) < wanted:
            name = f"w{self._n_hired}"
            self._n_hired += 1
            worker = self._workers[name] = _Worker(name, self._pool.hire(name))
            self._expect(worker.hired.ready(), name)
        starting = [worker for worker in self._workers.values() if worker.facts is None]
        surplus = max(0, len(self._workers) - max(wanted, 1))  # the cluster has shrunk: who waits for a node waits in vain
        for worker in starting[max(0, len(starting) - surplus) :]:
            worker.hired.dismiss()
            del self._workers[worker.name]

    def _joined(self, worker: _Worker, facts: WorkerFacts) -> None:
        worker.facts, worker.since = facts, now()
        self._free[worker.name] = worker
        self._failed_starts.clear()
        self._quiet_since = time.monotonic()
        self._began = self._began or time.monotonic()
        self._tell(WorkerJoined(worker.name, facts))

    def _left(self, worker: _Worker, kind: Kind, reason: str) -> None:
        """A worker died, could not start, or hangs."""
        del self._workers[worker.name]
        self._free.pop(worker.name, None)
        self._tell(WorkerLeft(worker.name, reason, lost=kind == "lost"))
        worker.hired.dismiss()
        # The first was being computed or written; what waits behind it is innocent.
        for place, shard in enumerate(worker.shards):
            self._attempt_failed(shard, worker, kind if place == 0 else "lost", reason)
        if worker.facts is None and kind != "lost":
            self._failed_starts[kind] += 1
            self._hire_from = time.monotonic() + min(_LONGEST_PAUSE_SECONDS, 2.0 ** self._failed_starts.total())
            self._check_starts(reason)

    def _check_starts(self, reason: str) -> None:
        """Give up where starts keep failing, unless somebody works; those that are still starting are waited for a while."""
        others = len(self._workers)
        errors, deaths = self._failed_starts["error"], self._failed_starts["death"]
        hopeless = errors >= _MOST_FAILED_STARTS + others or deaths >= _MOST_DEATHS_AT_START + others
        if hopeless and not any(each.facts for each in self._workers.values()):
            raise RuntimeError(f"no worker can start: {reason}")

    # Shards.

    def _give(self) -> None:
        """Give shards to whoever is free, and stragglers to whoever has nothing else to do."""
        present = time.monotonic()
        for worker in list(self._free.values()):
            while worker.free and (shard := self._board.give(worker.name, present)) is not None:
                self._hand(worker, shard)
            if worker.free:  # nothing is left for it, and so for nobody
                break
        for worker in [each for each in self._free.values() if not each.shards]:
            again = self._board.give_again(worker.name, present)
            if again is None:
                break
            self._hand(worker, again)

    def _hand(self, worker: _Worker, shard: int) -> None:
        worker.shards.append(shard)
        worker.since = now()
        if not worker.free:
            del self._free[worker.name]
        self._attempts[shard] = self._attempts.get(shard, 0) + 1
        self._expect(worker.hired.extract(shard, self._attempts[shard]), worker.name, shard)

    def _let_go(self, worker: _Worker, shard: int) -> None:
        """A worker that is still there has no more to do with a shard."""
        worker.shards.remove(shard)
        self._free[worker.name] = worker

    def _done(self, worker: _Worker, done: Done) -> None:
        present = time.monotonic()
        self._launch.has(done.shard, done.entry)
        self._quiet_since = present
        if done.here:
            worker.n_shards += 1
            worker.n_rows += done.n_rows
        lost_since = self._lost_since.pop(done.shard, None)
        if not self._board.done(done.shard, worker.name, present, done.here):  # another worker, or a survey, was first
            return
        if not done.here and self._attempts[done.shard] == 1:  # else it is an attempt of this launch that was not heard of
            self._tell(FoundDone(1, done.n_rows))
            return
        self._recent.append((present, done.n_computed))
        recovery = present - lost_since if lost_since is not None else None
        self._tell(ShardDone(done, self._attempts[done.shard], worker.name, recovery))

    def _attempt_failed(self, shard: int, worker: _Worker, kind: Kind, reason: str) -> None:
        self._lost_since.setdefault(shard, time.monotonic())
        given_up = None
        if kind == "lost":
            self._board.lost(shard, worker.name)
        else:
            given_up = self._board.failed(shard, worker.name, reason, kind)
        self._tell(AttemptFailed(shard, self._attempts[shard], worker.name, kind, reason, given_up is not None))

    # What is heard and told.

    def _hear(self) -> None:
        """Wait for a message, for a tick at most, and take all that have come."""
        try:
            message = self._messages.get(timeout=_TICK_SECONDS)
            while True:
                self._take(message)
                message = self._messages.get_nowait()
        except Empty:
            pass

    def _take(self, message: _Message) -> None:
        worker = self._workers.get(message.worker)
        if worker is None:  # it was dismissed, or its death was heard of already
            return
        error = message.answer.exception()
        if message.shard is None:
            if error is None:
                self._joined(worker, message.answer.result())
            else:
                self._left(worker, *self._pool.what_happened(error, worker.facts))
            return
        if error is None:
            self._let_go(worker, message.shard)
            self._done(worker, message.answer.result())
            return
        kind, reason = self._pool.what_happened(error, worker.facts)
        if kind == "error":
            self._let_go(worker, message.shard)
            self._attempt_failed(message.shard, worker, kind, reason)
        else:
            self._left(worker, kind, reason)

    def _survey(self) -> None:
        try:
            survey: Survey = self._launch.survey()
        except OSError:  # a store that does not answer for a moment ends no launch; the next survey may
            return
        found = self._board.learn(survey.missing, survey.elsewhere)
        if found:
            self._tell(FoundDone(len(found), sum(self._run.shard_size(shard) for shard in found)))
        self._announce()
        self._complain(survey)
        for name in self._board.hung(time.monotonic()):
            if name in self._workers:
                self._left(self._workers[name], "death", "it has been at one shard for far too long, and was ended")

    def _complain(self, survey: Survey) -> None:
        """Say why nothing happens, where nothing does."""
        if time.monotonic() - self._quiet_since < _PATIENCE_SECONDS:
            return
        if self._board.only_elsewhere and survey.others:
            names = ", ".join(other.who for other in survey.others)
            self._tell(Waiting(f"the last {self._board.n_left:,} shards are being done by {names}"))
        elif not any(worker.facts for worker in self._workers.values()):
            self._tell(Waiting(f"{len(self._workers):,} workers wait for a node with room for them, or load the model"))
        else:
            return
        self._quiet_since = time.monotonic()

    def _announce(self) -> None:
        """What other launches, and `affectome status`, are to know."""
        quarantined = tuple(
            Quarantined(shard=each.shard, attempts=len(each.reasons), reason=each.reasons[-1]) for each in self._board.given_up
        )
        states = tuple(_state_of(worker) for worker in self._workers.values())
        self._launch.say(workers=states, quarantined=quarantined, retries=self._board.retries)

    def _tell_state(self) -> None:
        present = time.monotonic()
        while self._recent and present - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        elapsed = min(_RATE_SECONDS, present - self._began) if self._began is not None else 0.0
        ready = [worker for worker in self._workers.values() if worker.facts is not None]
        n_busy = sum(bool(worker.shards) for worker in ready)
        self._tell(
            Snapshot(
                n_waiting=self._board.n_waiting,
                n_in_flight=sum(len(worker.shards) for worker in ready),
                n_starting=len(self._workers) - len(ready),
                n_idle=len(ready) - n_busy,
                n_busy=n_busy,
                tokens_per_second=sum(tokens for _, tokens in self._recent) / elapsed if elapsed else 0.0,
                limit=sum(worker.facts.limit for worker in ready if worker.facts),
            )
        )

    def _expect(self, answer: "Future[Any]", worker: str, shard: int | None = None) -> None:
        """Take what comes of a call as a message; the callback runs in a thread of Ray's."""
        answer.add_done_callback(lambda future: self._messages.put(_Message(worker, shard, future)))


class _Timer:
    """Says when something that is done now and then is to be done again."""

    def __init__(self) -> None:
        self._last: float | None = None

    def due(self, seconds: float) -> bool:
        """Whether that long has passed since this last said so; the first time it has."""
        present = time.monotonic()
        if self._last is not None and present - self._last < seconds:
            return False
        self._last = present
        return True


def _state_of(worker: _Worker) -> WorkerState:
    return WorkerState(
        name=worker.name,
        host=worker.facts.host if worker.facts else "",
        device=worker.facts.device if worker.facts else "",
        state="starting" if worker.facts is None else "busy" if worker.shards else "idle",
        shards=tuple(worker.shards),
        since=worker.since,
        n_shards=worker.n_shards,
        n_rows=worker.n_rows,
    )
