"""Who is at work on a run: each launch says so in the store, and shares the shards with the others it finds there.

An announcement is a hint, never a lock: the receipts' log alone decides what counts (extract.stored_run), so a wrong or lost
one costs at most a shard computed twice. A lock was rejected because a launch that died would hold it, and one that sleeps
through a lease would break it. What hints give is that two launches of one run share its shards instead of doing all of them
twice, that a user is told who else is at it, and that `affectome status` works from any machine with nothing but the store.
"""

import contextlib
import functools
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from extract.documents import Receipt, now
from extract.objects import Entry
from extract.stored_run import StoredRun

BEAT_SECONDS = 10.0
"""How often a launch says that it is alive."""
STALE_SECONDS = 60.0
"""How old an announcement may be for its launch to count as alive."""

PATIENCE_SECONDS = 1800.0
"""How long a launch may claim one and the same shard before others do it too: it may hang, and still beat."""

_DIRECTORY = "launches"
_WAIT_SECONDS = 0.5

State = Literal["working", "stopped", "incomplete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A process that computes shards for a launch."""

    name: str
    """Its name within the launch, such as `w3`."""
    host: str
    """The machine it is on; empty while it waits for one."""
    device: str
    """Where it computes; empty while it waits for one."""
    state: Literal["starting", "idle", "busy"]
    """What it is doing."""
    shards: tuple[int, ...]
    """What it is computing."""
    since: str
    """Since when it is in this state, in ISO 8601, UTC."""
    n_shards: int
    """Shards it has done."""
    n_rows: int
    """Rows of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A shard that a launch gave up."""

    shard: int
    """Its number."""
    attempts: int
    """How often it was tried."""
    reason: str
    """Why the last attempt failed, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a launch says of itself."""

    run_id: str
    """The run it works on."""
    launch: str
    """Its name, 8 random hex digits."""
    host: str
    """The machine it was launched on."""
    pid: int
    """Its process there."""
    processes: str
    """Which processes its `pid` is one of: a host may hold several containers with processes of their own."""
    began: str
    """When, in ISO 8601, UTC."""
    state: State
    """What it is doing, or how it ended."""
    workers: tuple[WorkerState, ...] = ()
    """Who computes for it."""
    quarantined: tuple[Quarantined, ...] = ()
    """What it gave up."""
    retries: Mapping[str, int]
    """Attempts that had to be repeated, by reason: `error`, `death`, `lost`, and `straggler` for those given twice."""

    @property
    def in_flight(self) -> frozenset[int]:
        """Shards it is computing."""
        return frozenset(shard for worker in self.workers for shard in worker.shards)

    @property
    def who(self) -> str:
        """Its name for people."""
        return f"launch {self.launch} (process {self.pid} on {self.host}, since {self.began})"


@dataclass(frozen=True, slots=True)
class Announced:
    """An announcement as it was found in the store."""

    announcement: Announcement
    """What it says."""
    seconds: float
    """Since it was written, by the clock of whoever keeps the store."""

    @property
    def alive(self) -> bool:
        """Whether its launch is taken to be at work."""
        said = self.announcement
        if said.state != "working" or self.seconds > STALE_SECONDS:
            return False
        return said.processes != _processes() or _process_exists(said.pid)


_ANNOUNCEMENT: TypeAdapter[Announcement] = TypeAdapter(Announcement)


def announced(run: StoredRun, clock: Callable[[], float] = time.time) -> list[Announced]:
    """What launches said of themselves, alive and dead, the oldest first; those that ended well left nothing.

    Args:
        clock: the present; where much depends on it, that of whoever keeps the store, which asking for writes there.
    """
    found = _said(run, run.objects.entries(_DIRECTORY))
    present = clock() if found else 0.0
    return [Announced(said, max(0.0, present - modified)) for said, modified in found]


def remove_dead(run: StoredRun) -> None:
    """Remove what launches left that died or gave up: a later one has taken their place, or the run is complete."""
    with contextlib.suppress(OSError):  # who may only read removes nothing
        for found in announced(run, run.objects.clock):
            if not found.alive:
                run.objects.remove(_key(found.announcement.launch))


@dataclass(frozen=True, slots=True)
class Survey:
    """What is left of a run in a moment."""

    missing: frozenset[int]
    """Shards that do not exist."""
    elsewhere: frozenset[int]
    """Those of them that other living launches say they are computing."""
    others: tuple[Announcement, ...]
    """The other living launches."""

    @property
    def who(self) -> str:
        """The others' names for people."""
        return " and ".join(other.who for other in self.others)


class Launch:
    """This process's part in a run. Use it as a context: inside, it says every few seconds that it is alive."""

    def __init__(self, run: StoredRun) -> None:
        self.run = run
        """The run."""
        self._said = Announcement(
            run_id=run.run_id,
            launch=secrets.token_hex(4),
            host=platform.node(),
            pid=os.getpid(),
            processes=_processes(),
            began=now(),
            state="working",
            retries={},
        )
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._written = 0.0  # when the announcement was, by this process's monotonic clock
        self._logs: dict[int, int] = {}
        self._claimed: dict[tuple[str, int], float] = {}  # by launch and shard, since when others say they compute it
        self._missing = set(range(run.n_shards))

    @property
    def name(self) -> str:
        """8 hex digits."""
        return self._said.launch

    def __enter__(self) -> "Launch":
        remove_dead(self.run)
        self.announce()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and not self._said.quarantined and self._complete():
            self._clear_up()  # a complete run has nothing to say but its receipts
        else:
            self.say(state="incomplete" if kind is None else "stopped", workers=())
            self.announce()

    def _complete(self) -> bool:
        try:
            return not self.survey().missing
        except OSError:  # the store does not answer; who asks for the run later sees by itself
            return False

    def say(
        self,
        *,
        state: State = "working",
        workers: tuple[WorkerState, ...],
        quarantined: tuple[Quarantined, ...] | None = None,
        retries: Mapping[str, int] | None = None,
    ) -> None:
        """Change what is announced with the next beat."""
        with self._lock:
            self._said = replace(
                self._said,
                state=state,
                workers=workers,
                quarantined=self._said.quarantined if quarantined is None else quarantined,
                retries=self._said.retries if retries is None else dict(retries),
            )

    def has(self, shard: int, entry: int) -> None:
        """Remember a shard whose log is known to end with a receipt, so that a survey need not read it."""
        self._missing.discard(shard)
        self._logs[shard] = entry + 1

    def survey(self) -> Survey:
        """What is left of the run, and what of it others are computing.

        Raises:
            ValueError: the last entry of a log is damaged.
        """
        lengths = self.run.log_lengths()
        new = {shard: n for shard, n in lengths.items() if shard < self.run.n_shards and self._logs.get(shard) != n}
        done = {entry.shard for entry in self.run.last_entries(new) if isinstance(entry, Receipt)}
        self._missing |= new.keys() - done  # a void entry takes a shard back
        self._missing -= done
        self._logs |= new
        others: tuple[Announcement, ...] = ()
        with contextlib.suppress(OSError):  # a hint that cannot be read is no hint
            others = self._living_others()
        return Survey(frozenset(self._missing), self._elsewhere(others), others)

    def _elsewhere(self, others: Sequence[Announcement]) -> frozenset[int]:
        """What others are computing, less what they have claimed for too long."""
        present = time.monotonic()
        claims = {(other.launch, shard) for other in others for shard in other.in_flight if shard in self._missing}
        self._claimed = {claim: self._claimed.get(claim, present) for claim in claims}
        return frozenset(shard for (_, shard), since in self._claimed.items() if present - since <= PATIENCE_SECONDS)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.announce()

    def announce(self) -> None:
        """Write the announcement now."""
        with self._lock:
            document = _ANNOUNCEMENT.dump_json(self._said)
        with contextlib.suppress(OSError):  # a full disk is told by the shard that does not fit, not by a hint
            self.run.objects.replace(_key(self.name), document)
            self._written = time.monotonic()

    def _clear_up(self) -> None:
        with contextlib.suppress(OSError):
            self.run.objects.remove(_key(self.name))
        remove_dead(self.run)

    def _living_others(self) -> tuple[Announcement, ...]:
        """Other launches at work, by the clock that stamped this one's own announcement a few seconds ago."""
        written, entries = self._written, {entry.key: entry for entry in self.run.objects.entries(_DIRECTORY)}
        own = entries.pop(_key(self.name), None)
        present = own.modified + time.monotonic() - written if own else time.time()
        others = (Announced(said, present - modified) for said, modified in _said(self.run, entries.values()))
        return tuple(other.announcement for other in others if other.alive)


def order_of(survey: Survey) -> list[int]:
    """The order in which a launch does what is missing: ascending; where others are at it, one of its own.

    A launch that shares a run thus meets the others' shards last, and rarely.
    """
    order = sorted(survey.missing)
    if survey.others:
        random.shuffle(order)
    return order


def shards_to_do(
    launch: Launch, on_elsewhere: Callable[[int], None], on_waiting: Callable[[Survey], None] = lambda _: None
) -> Iterator[int]:
    """The shards that this process is to do alone, one after another, until the run is complete.

    What other launches are computing comes last, and only if they die.

    Args:
        on_elsewhere: called with the number of rows that others have done.
        on_waiting: called once when only shards are left that others are computing.
    """
    survey = launch.survey()
    order, given, told = order_of(survey), list[int](), False
    while True:
        before, survey = survey, launch.survey()
        on_elsewhere(sum(launch.run.shard_size(shard) for shard in before.missing - survey.missing.union(given)))
        left = [shard for shard in order if shard in survey.missing and shard not in given]
        if not left:
            return
        free = [shard for shard in left if shard not in survey.elsewhere]
        if free:
            launch.say(workers=(_this_process(launch.run, free[0], given),))
            given.append(free[0])
            yield free[0]
        else:
            if not told:
                launch.say(workers=())
                on_waiting(survey)
                told = True
            time.sleep(_WAIT_SECONDS)


def _this_process(run: StoredRun, shard: int, done: Sequence[int]) -> WorkerState:
    return WorkerState(
        name="w0",
        host=platform.node(),
        device="",
        state="busy",
        shards=(shard,),
        since=now(),
        n_shards=len(done),
        n_rows=sum(run.shard_size(each) for each in done),
    )


def _said(run: StoredRun, entries: Iterable[Entry]) -> list[tuple[Announcement, float]]:
    """Every announcement that can be read and when it was written, by the clock of whoever keeps the store."""
    found = []
    for entry in entries:
        if entry.key.endswith(".json"):
            with contextlib.suppress(FileNotFoundError, ValueError):  # it ended in this moment; or another version wrote it
                found.append((_ANNOUNCEMENT.validate_json(run.objects.read(entry.key)), entry.modified))
    return sorted(found, key=lambda each: (each[0].began, each[0].launch))


def _key(launch: str) -> str:
    return f"{_DIRECTORY}/{launch}.json"


@functools.cache
def _processes() -> str:
    """The processes that this one can see, by the machine's start and the namespace; where there are none, by the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + f" {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
