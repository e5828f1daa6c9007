"""One at a time on this machine: a lock that says who holds it.

The kernel's own file lock, which ends with the process however that ends. A file that exists while somebody works was
rejected: after a power cut it would say so for ever. Launches on several machines need no lock: they share runs by their
receipts (extract.launches).
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from extract.documents import now
from extract.identity import sha256_hex
from extract.objects import LocalObjects, open_objects

_SECONDS_BETWEEN_TRIES = 1.0


class HeldError(RuntimeError):
    """Somebody else holds the lock."""


def state_directory() -> Path:
    """What affectome remembers on this machine: `$XDG_STATE_HOME/affectome/schedules`."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "affectome" / "schedules"


def state_file(about: str, suffix: str) -> Path:
    """The file in which something about a store or a plan is kept; its directory is made.

    Raises:
        ValueError: the directory cannot be made.
    """
    directory = state_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {directory}: {error.strerror}; name a place for it with XDG_STATE_HOME") from error
    return directory / f"{sha256_hex(about.encode())[:16]}.{suffix}"


def refresh_lock(store: str) -> Path:
    """The lock under which a store is refreshed, whatever plan says so.

    Args:
        store: its directory or URL.

    Raises:
        ValueError: no filesystem is known for the URL.
    """
    place = open_objects(store)
    return state_file(str(place.root.resolve()) if isinstance(place, LocalObjects) else place.url(), "refresh.lock")


@contextlib.contextmanager
def held(path: Path, what: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock.

    Args:
        what: what is done under it, for others who want it.
        wait: called with who holds it, once for each holder, while this waits; without it nobody waits.

    Raises:
        HeldError: somebody holds it, and nobody waits.
    """
    with path.open("a+") as file:
        told = ""
        while not _taken(file.fileno()):
            holder = _holder(path)
            if wait is None:
                raise HeldError(f"{holder}; wait until it has ended, or stop it")
            if holder != told:
                wait(holder)
                told = holder
            time.sleep(_SECONDS_BETWEEN_TRIES)
        file.truncate(0)
        file.write(json.dumps({"what": what, "pid": os.getpid(), "host": platform.node(), "since": now()}))
        file.flush()
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text())
        return f"{said['what']} by process {said['pid']} on {said['host']} since {said['since']}"
    except (ValueError, LookupError, TypeError):  # it has the lock and has not said its name yet
        return f"another process holds {path}"
