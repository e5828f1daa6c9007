"""Refresh by a plan's cron expression on this machine, one refresh at a time, and none forgotten.

What a fire owes is one refresh that begins when it is due or later, and that is all there is to catching up: fires that were
missed while the machine was off, and those that pass while a refresh takes longer than the interval, owe together one refresh,
which begins at once. How far that is paid is kept on disk when a refresh has ended. One that was cut off by a stop or a power
cut is therefore owed again, and finds what it had done in the store.

Each refresh is a process of its own: what becomes of it, a kill for want of memory included, does not touch the schedule. A
scheduler library's job store was rejected: it would keep a second truth about what is done.
"""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Protocol

from cluster.plans.cron import fires, next_fire
from cluster.plans.lock import held, state_file
from cluster.plans.schema import Schedule, read_plan
from extract import durable

_LONGEST_WAIT = timedelta(minutes=1)
"""How long nothing is looked at: a machine may sleep, its clock may be set, and the plan may be edited."""
_AHEAD = timedelta(days=1)
"""How far ahead of the clock what is remembered may be; beyond that the clock was wrong when it was written."""
_SHOWN_FIRES = 3
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 20.0
"""How long a refresh that is asked to stop may take: a shard's write is seconds, and a kill costs no more than that shard."""

Refresh = Callable[[], bool]
"""Refreshes once; False where it was cut off by a stop, so that the refresh is still owed."""
Say = Callable[[str], None]


class Clock(Protocol):
    """The time, and waiting for it."""

    def now(self) -> datetime:
        """The present, aware."""

    def wait(self, duration: timedelta) -> bool:
        """Wait; True as soon as the schedule is to end."""


@dataclass(frozen=True, slots=True)
class WallClock:
    """This machine's clock."""

    stop: threading.Event
    """Set when the schedule is to end."""

    def now(self) -> datetime:
        """The present, aware."""
        return datetime.now(UTC)

    def wait(self, duration: timedelta) -> bool:
        """Wait; True as soon as the stop is set."""
        return self.stop.wait(duration.total_seconds())


def keep_schedule(path: Path, clock: Clock, refresh: Refresh, say: Say) -> None:
    """Refresh by a plan's schedule until the clock says that it is to end, or a refresh was cut off.

    The plan is read again once a minute, so that an edited one counts from then on. While it is broken, that is said once and
    nothing is refreshed; what is owed then begins when it is mended.

    Raises:
        ValueError: the plan is wrong at the start, or has no schedule.
        HeldError: the schedule of this plan is kept by another process.
    """
    path = path.resolve()
    _read_schedule(path)
    with held(state_file(str(path), "schedule.lock"), f"{path} is scheduled"):
        paid = _paid_until(path, clock.now(), say)
        told: Schedule | str = ""
        while True:
            found = _look(path)
            if found != told:
                say(found if isinstance(found, str) else _coming(found, clock.now()))
                told = found
            now = clock.now()
            owed = None if isinstance(found, str) else next_fire(found.cron, found.timezone, paid)
            if owed is None or owed > now:
                if clock.wait(_LONGEST_WAIT if owed is None else min(_LONGEST_WAIT, owed - now)):
                    return
                continue
            late = ", late, once for all that were missed" if now - owed > _LONGEST_WAIT else ""
            say(f"the refresh of {_shown(owed)} begins{late}")
            if not refresh():
                return
            paid, told = now, ""
            _keep_paid(path, paid, say)


def _look(path: Path) -> Schedule | str:
    """The schedule as the plan has it now, or what is wrong with the plan."""
    try:
        return _read_schedule(path)
    except ValueError as error:
        return f"error: {error}; nothing is refreshed until that is mended"


def _read_schedule(path: Path) -> Schedule:
    plan = read_plan(path)
    if plan.schedule is None:
        raise ValueError(f'{path} has no schedule; add one such as schedule: {{cron: "0 2 * * *", timezone: Europe/Berlin}}')
    return plan.schedule


def _coming(schedule: Schedule, now: datetime) -> str:
    return f"next: {', '.join(map(_shown, islice(fires(schedule.cron, schedule.timezone, now), _SHOWN_FIRES)))}"


def _shown(fire: datetime) -> str:
    return f"{fire:%a %Y-%m-%d %H:%M %Z}"


# What is remembered.


def _paid_until(path: Path, now: datetime, say: Say) -> datetime:
    """Up to when every fire has had its refresh; from now on, where nothing is remembered."""
    try:
        paid = datetime.fromisoformat(json.loads(state_file(str(path), "paid.json").read_bytes())["paid_until"]).astimezone(UTC)
    except FileNotFoundError:
        paid = None
    except (ValueError, LookupError, TypeError) as error:
        say(f"what was remembered of this schedule cannot be read ({error}), so nothing is caught up")
        paid = None
    if paid is not None and paid > now + _AHEAD:
        say(f"the last refresh was noted for {_shown(paid)}, when the clock was wrong, so nothing is caught up")
        paid = None
    if paid is None:
        _keep_paid(path, now, say)
    return paid or now


def _keep_paid(path: Path, paid: datetime, say: Say) -> None:
    document = {"plan": str(path), "paid_until": paid.astimezone(UTC).isoformat()}
    try:
        durable.replace(state_file(str(path), "paid.json"), json.dumps(document).encode())
    except OSError as error:  # a full disk ends no schedule; at worst the next start makes up for what was done
        say(f"cannot keep until when refreshes were made: {error}")


# Processes.


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of ending the program where it stands."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refresh_in_process(path: Path, options: Sequence[str], stop: threading.Event, say: Say) -> Refresh:
    """A refresh as a process of its own, which waits for another refresh of the store to end.

    Args:
        options: further options of affectome refresh.
        stop: asks the refresh to stop when it is set.
    """
    program = "from cluster.cli import main; main()"
    command = [sys.executable, "-P", "-c", program, "refresh", "--wait", *options, str(path.resolve())]

    def refresh() -> bool:
        try:  # in a session of its own, so that Ctrl-C reaches it through the stop alone
            process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - ourselves
        except OSError as error:
            say(f"the refresh cannot be started: {error}; it is tried again at the next")
            return True
        while True:
            try:
                say(_ended(process.wait(_POLL_SECONDS)))
                return True
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    say("stopping the refresh; finished shards are kept, and the next start goes on")
                    _end(process)
                    return False

    return refresh


def _ended(code: int) -> str:
    if code < 0:
        return f"the refresh was killed by {signal.Signals(-code).name}; what is missing is tried again at the next"
    return "the refresh is done" if code == 0 else "the refresh has failures, named above; they are tried again at the next"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
