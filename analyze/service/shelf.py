"""The store of a service, with the runs that were used last kept open.

A run's id is made of everything that changes its numbers, so a run that is kept open never gives other numbers. What can change
is where its bytes are (a repair, a removal); so when a read fails, a run whose log has changed is opened anew the next time.
Results of analyses are read when they are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from analyze.query import Run, Store
from analyze.service.kept import Kept
from analyze.service.queries import Queries
from analyze.service.settings import Settings

_RUNS_KEPT = 32


@dataclass(frozen=True, slots=True)
class _Opened:
    """A run, and what its logs were when it was opened."""

    run: Run
    log_lengths: dict[int, int]


class Shelf:
    """A store, and the runs of it that were used last."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        """The store."""
        self.settings = settings
        """How much is given at once."""
        self.queries = Queries(store.location, settings)
        """Answers SQL over it."""
        self._opened = Kept[str, _Opened](_RUNS_KEPT)

    @contextmanager
    def run(self, prefix: str) -> Iterator[Run]:
        """The run whose id starts with `prefix`, for reading.

        Raises:
            UnknownRunError: no run starts so.
            ValueError: more than one does, or its manifest is damaged.
        """
        known = self._opened.peek(prefix)
        opened = known or self._open(self.store.stored.run_id(prefix))
        try:
            yield opened.run
        except ValueError:
            if opened.run.stored.log_lengths() != opened.log_lengths:
                self._opened.forget(lambda run_id: run_id == opened.run.run_id)
            raise

    def _open(self, run_id: str) -> _Opened:
        def make() -> _Opened:
            run = self.store.run(run_id)
            return _Opened(run, run.stored.log_lengths())

        return self._opened.get(run_id, make)
