"""A service as a user starts it: a process that says where it is."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that runs."""

    process: subprocess.Popen[str]
    """It."""
    url: str
    """What it says it is at, without a slash at the end."""
    errors: Path
    """What it writes on standard error."""


def command(*arguments: str) -> list[str]:
    """The command line that starts one."""
    return [sys.executable, "-c", "from affectome import main; main()", "serve", *arguments]


@contextmanager
def serving(
    directory: Path, store: str, *arguments: str, under: Sequence[str] = (), environment: dict[str, str] | None = None
) -> Iterator[Serving]:
    """Start a service on a free port, and end it.

    Args:
        directory: for what it writes on standard error.
        under: a command that runs it.
    """
    errors = directory / "errors.txt"
    known = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*under, *command(store, "--port", "0", *arguments)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=known,
            start_new_session=True,  # strace, when it is killed, leaves alive what it watches
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found is not None, (line, errors.read_text())
            yield Serving(process, found[0].rstrip("/"), errors)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of it may have ended by itself
                os.killpg(process.pid, signal.SIGKILL)
