"""Start workers, follow what they tell, and stop, wake or kill them."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.worker import COMPUTED, PLANNING, Job, work

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.worker", "s3fs", "pytest.__main__"])
_LIMIT_S = 120.0


class Launch:
    """A worker that runs."""

    def __init__(self, job: Job) -> None:
        self.phase = PLANNING
        """What it was doing when it was last heard of."""
        self.n_computed = 0
        """Shards it computed: each is one batch."""
        self.error = ""
        """What the product raised."""
        self.seconds: dict[str, list[float]] = {}
        """How long it was in each phase, each time."""
        self.began = self._entered = time.monotonic()
        self._receiver, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=work, args=(job, sender), daemon=True)
        self._process.start()
        sender.close()

    def events(self) -> Iterator[str]:
        """What it tells, until it ends: names of phases it enters, `computed`, `stopping`, `error`."""
        with contextlib.suppress(EOFError):
            while True:
                assert self._receiver.poll(_LIMIT_S), f"a worker said nothing for {_LIMIT_S:.0f} s while {self.phase}"
                kind, text = self._receiver.recv()
                if kind == "phase":
                    present = time.monotonic()
                    self.seconds.setdefault(self.phase, []).append(present - self._entered)
                    self.phase, self._entered = text, present
                elif kind == COMPUTED:
                    self.n_computed += 1
                elif kind == "error":
                    self.error = text
                yield text if kind == "phase" else kind

    def reaches(self, event: str, times: int = 1) -> bool:
        """Wait until it tells of something that many times; False when it ended before."""
        for each in self.events():
            times -= each == event
            if not times:
                return True
        return False

    def stops(self) -> bool:
        """Wait until it stands still; False when it ended before."""
        if not self.reaches("stopping"):
            return False
        status = Path(f"/proc/{self._process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        return True

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, now."""
        self._signal(signal.SIGKILL)
        self._drain()

    def end(self) -> "Launch":
        """Wait until it ends of itself."""
        self._drain()
        return self

    @property
    def killed(self) -> bool:
        """Whether a kill came before it had ended."""
        return self._process.exitcode == -signal.SIGKILL

    def _drain(self) -> None:
        for _ in self.events():
            pass
        self._process.join()
        self._receiver.close()

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
