"""Sends very many hostile requests to a service, and says how many, how long it took, and what broke a promise.

    python -m tests.analyze.service.fuzz --inputs 100000 --minutes 40 --processes 2

Every process has a store and a service of its own, with a second and 256 MB for SQL.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case

from analyze.query import open_store
from analyze.service.app import application
from analyze.service.settings import Settings
from tests.analyze.service.fuzzing import Fuzz, Raw, Watch
from tests.analyze.service.stores import files, plant

_AT_ONCE = 500
_EXAMPLE_CHARACTERS = 2000


@dataclass(slots=True)
class Report:
    """What came of it."""

    n_inputs: int = 0
    """Requests sent."""
    seconds: float = 0.0
    """Time it took."""
    statuses: dict[str, int] = field(default_factory=dict)
    """How many requests got which status."""
    slowest_s: float = 0.0
    """Longest that one took."""
    n_bytes_before: int = 0
    """Memory of this process after the first thousand."""
    n_bytes_after: int = 0
    """And after the last."""
    found: dict[str, int] = field(default_factory=dict)
    """What broke a promise, and how often."""
    examples: dict[str, str] = field(default_factory=dict)
    """A request for each."""


def fuzz(directory: Path, watch: Watch, n_inputs: int, minutes: float, first_seed: int = 0) -> Report:
    """Send requests until there are enough or the time is over.

    Args:
        directory: an empty one, for the store.
        watch: on this process; what it allows is added to here.
    """
    planted = plant(directory)
    watch.allowed += (planted.location,)
    app = application(open_store(planted.location), Settings(timeout_s=1.0, memory="256MB", texts=False))
    sender, report, before = Fuzz(app, planted, watch), Report(), list(files(planted.location))
    requests, found = sender.requests(), Counter[str]()
    began = time.monotonic()

    def over() -> bool:
        return report.n_inputs >= n_inputs or time.monotonic() - began >= 60 * minutes

    def send(request: Case[Any] | Raw) -> None:
        if over():
            return
        report.n_inputs += 1
        try:
            sender.send(request)
        except (Exception, BaseExceptionGroup) as error:  # schemathesis groups its failures; each is told at the end
            errors = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
            name = " ".join(f"{type(errors[0]).__name__}: {errors[0]}".split())[:200]
            found[name] += 1
            report.examples.setdefault(name, _said(request))
            watch.broken.clear()
        if report.n_inputs == min(1000, n_inputs // 2):
            report.n_bytes_before = _memory()

    while not over():
        first_seed += 1
        quick = settings(
            max_examples=_AT_ONCE,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        quick(seed(first_seed)(given(requests)(send)))()
    app.state.queries.close()
    if list(files(planted.location)) != before:
        found["the store was changed"] += 1
    report.seconds, report.slowest_s, report.n_bytes_after = time.monotonic() - began, sender.slowest_s, _memory()
    report.statuses = {str(status): number for status, number in sorted(sender.statuses.items())}
    report.found = dict(found)
    return report


def _said(request: Case[Any] | Raw) -> str:
    if isinstance(request, Raw):
        return repr(request)[:_EXAMPLE_CHARACTERS]
    asked = f"{request.method} {request.operation.path} {request.path_parameters} {request.query} {request.body!r}"
    return asked.encode(errors="backslashreplace").decode()[:_EXAMPLE_CHARACTERS]


def _memory() -> int:
    """Bytes of this process in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def main() -> None:
    """Run the processes and print what they report, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.processes == 1:
        with tempfile.TemporaryDirectory(prefix="affectome-fuzz-") as directory:
            report = fuzz(Path(directory), Watch.of_this_process(), asked.inputs, asked.minutes, asked.seed)
        sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
        sys.exit(bool(report.found))
    share = ["--inputs", str(-(-asked.inputs // asked.processes)), "--minutes", str(asked.minutes)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.analyze.service.fuzz", *share]
    running = [
        subprocess.Popen([*command, "--seed", str(asked.seed + 1_000_000 * number)]) for number in range(asked.processes)
    ]
    codes = [process.wait() for process in running]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
