"""Which shard goes to whom next: the state of a launch's work, without Ray, clocks or I/O, so that it can be tested as it is.

Shards go to workers as these become free. A shard whose worker failed or died goes behind all others, so that one bad shard
does not hold up the rest and one that was merely unlucky meets another worker; after MOST_ATTEMPTS it is given up. Sharing out
fixed parts beforehand was rejected: the slowest worker would decide, and what a dead one had would be lost.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

MOST_ATTEMPTS = 3
"""Attempts at a shard before it is given up."""

_STRAGGLES = 2.0
"""A shard that takes so many times the usual time may be given to a second worker when nothing else is left."""
_LEAST_STRAGGLE_SECONDS = 5.0
_STRAGGLE_SECONDS_WHEN_UNKNOWN = 600.0
_MOST_HOLDERS = 2

_HANGS = 20.0
"""A worker that takes so many times the usual time for a shard hangs."""
_LEAST_HANG_SECONDS = 1800.0
_HANG_SECONDS_WHEN_UNKNOWN = 86_400.0
_HOPELESS = 10


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A shard that is not tried any more."""

    shard: int
    """Its number."""
    reasons: tuple[str, ...]
    """Why each attempt failed."""


@dataclass(slots=True)
class _Shard:
    """What happened to a shard so far."""

    holders: dict[str, float] = field(default_factory=dict)
    """Who computes it, and since when, the first holder first."""
    reasons: list[str] = field(default_factory=list)
    """Why attempts failed."""


class Board:
    """The shards of one launch: waiting, held by workers, done, or given up."""

    def __init__(self, order: Sequence[int]) -> None:
        """Begin.

        Args:
            order: the missing shards, in the order in which they are to be given out.
        """
        self._shards = {shard: _Shard() for shard in order}
        self._waiting = dict.fromkeys(order)
        self._held: dict[int, float] = {}  # since when, the one held longest first
        self._elsewhere: frozenset[int] = frozenset()
        self._awaited: set[int] = set()  # exist, and a holder here is to say so
        self._seconds: list[float] = []  # that shards took, ascending
        self._failed_in_a_row: set[int] = set()  # distinct shards: the retries of a few bad ones say nothing of the others
        self._last_reason = ""
        self.given_up: list[GivenUp] = []
        """Shards that failed too often."""
        self.retries: Counter[str] = Counter()
        """Attempts beyond the first, by reason: error, death, lost, straggler."""

    @property
    def n_left(self) -> int:
        """Shards that are neither done nor given up."""
        return len(self._shards)

    @property
    def n_waiting(self) -> int:
        """Shards that nobody computes."""
        return len(self._waiting)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self._shards

    @property
    def only_elsewhere(self) -> bool:
        """Whether all that is left is being computed by other launches."""
        return bool(self._shards) and self._elsewhere.issuperset(self._shards)

    @property
    def hopeless(self) -> str | None:
        """Why nothing works, when many shards in a row failed and nothing was done meanwhile; None while something is."""
        return self._last_reason if len(self._failed_in_a_row) >= _HOPELESS else None

    def n_to_do(self, now: float) -> int:
        """Workers that would have something to do: one for each shard, and one more for each straggler."""
        return len(self._shards) + sum(1 for _ in self._stragglers(now))

    def give(self, worker: str, now: float) -> int | None:
        """The shard that a worker is to do next; None while nobody is to begin with one.

        Args:
            now: seconds, by any clock that only goes forward.
        """
        for shard in self._waiting:
            if shard not in self._elsewhere:
                del self._waiting[shard]
                self._hold(shard, worker, now)
                return shard
        return None

    def give_again(self, worker: str, now: float) -> int | None:
        """The shard that an idle worker is to do as the second, because another has held it for much longer than usual."""
        shard = next(self._stragglers(now), None)
        if shard is not None:
            self.retries["straggler"] += 1
            self._hold(shard, worker, now)
        return shard

    def hung(self, now: float) -> list[str]:
        """Workers that have been at one shard for so long that they will never be done."""
        limit = max(_LEAST_HANG_SECONDS, _HANGS * self._usual) if self._seconds else _HANG_SECONDS_WHEN_UNKNOWN
        held = (self._shards[shard].holders for shard, since in self._held.items() if now - since > limit)
        return [worker for holders in held for worker, since in holders.items() if now - since > limit]

    def done(self, shard: int, worker: str, now: float, here: bool = True) -> bool:
        """A worker has done a shard.

        Args:
            here: whether it computed it, and did not find it done.

        Returns:
            Whether it was the first to say so.
        """
        self._failed_in_a_row.clear()
        state = self._shards.pop(shard, None)
        if state is None:
            return False
        if here and worker in state.holders:
            insort(self._seconds, now - state.holders[worker])
        self._forget(shard)
        return True

    def failed(self, shard: int, worker: str, reason: str, kind: str = "error") -> GivenUp | None:
        """An attempt failed, in a way that may be the shard's fault.

        Args:
            reason: a sentence.
            kind: `error`, or `death` of the worker.

        Returns:
            The shard, where that was its last attempt.
        """
        self._last_reason = reason
        self._failed_in_a_row.add(shard)
        state = self._shards.get(shard)
        if state is None:
            return None
        self._let_go(shard, worker)
        state.reasons.append(reason)
        if len(state.reasons) < MOST_ATTEMPTS:
            self.retries[kind] += 1
            self._wait_again(shard)
            return None
        if state.holders:  # somebody else is still at it and may succeed
            return None
        del self._shards[shard]
        self._forget(shard)
        self.given_up.append(GivenUp(shard, tuple(state.reasons)))
        return self.given_up[-1]

    def lost(self, shard: int, worker: str) -> None:
        """A worker went away with its node, or was sent away: not the shard's fault."""
        if shard not in self._shards:
            return
        self._let_go(shard, worker)
        self.retries["lost"] += 1
        self._wait_again(shard)

    def learn(self, missing: Iterable[int], elsewhere: Iterable[int]) -> list[int]:
        """What the store says: which shards do not exist, and which of them other launches are computing.

        Returns:
            The shards that others have done since the last time.
        """
        exist = self._shards.keys() - frozenset(missing)
        found = {shard for shard in exist if shard not in self._held or shard in self._awaited}
        self._awaited = exist - found  # their holder says so in a moment; one that has not by the next time has died or hangs
        for shard in found:
            del self._shards[shard]
            self._forget(shard)
        self._elsewhere = frozenset(elsewhere)
        return sorted(found)

    def _hold(self, shard: int, worker: str, now: float) -> None:
        self._shards[shard].holders[worker] = now
        self._held.setdefault(shard, now)

    def _stragglers(self, now: float) -> Iterator[int]:
        """Shards that one worker has held for much longer than usual, the one held longest first."""
        limit = max(_LEAST_STRAGGLE_SECONDS, _STRAGGLES * self._usual) if self._seconds else _STRAGGLE_SECONDS_WHEN_UNKNOWN
        for shard, since in self._held.items():
            if now - since <= limit:
                return
            state = self._shards[shard]
            if len(state.holders) < _MOST_HOLDERS and len(state.reasons) < MOST_ATTEMPTS:
                yield shard

    @property
    def _usual(self) -> float:
        """The median of the seconds that shards took."""
        return self._seconds[len(self._seconds) // 2]

    def _let_go(self, shard: int, worker: str) -> None:
        holders = self._shards[shard].holders
        holders.pop(worker, None)
        if not holders:
            self._held.pop(shard, None)

    def _wait_again(self, shard: int) -> None:
        if not self._shards[shard].holders:
            self._waiting[shard] = None

    def _forget(self, shard: int) -> None:
        self._waiting.pop(shard, None)
        self._held.pop(shard, None)
