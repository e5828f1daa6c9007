"""What dead attempts left behind: found by what nobody names, removed only when it can never be named any more.

An attempt's objects count once a receipt names them, and a writer creates its receipt as the next entry of the shard's
log, numbered when it began. So an attempt that is listed while the log ends in a receipt of somebody else, read later,
can never be committed; and where a shard has no receipt, a void is put on the entry its writers are going to create.
Trusting age alone was rejected: a writer that sleeps for a day would commit a receipt for objects that are gone. Age only
keeps the work of writers that are alive: what was written lately is left alone.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from extract.documents import Receipt
from extract.durable import is_unfinished
from extract.launches import announced
from extract.objects import Entry
from extract.store import Store
from extract.stored_run import StoredRun, attempt_prefix

_ATTEMPT = re.compile(r"shards/(\d{6,})-[0-9a-f]{8}")
GRACE_MINUTES = 60.0
"""How long after its last write an attempt is taken to be alive."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Objects that nobody names, written by one attempt."""

    run_id: str
    """The run they are in."""
    prefix: str
    """Where they are, relative to the run's directory."""
    n_objects: int
    """How many."""
    n_bytes: int
    """Their bytes."""
    minutes: float
    """Since the last of them was written."""

    @property
    def shard(self) -> int | None:
        """The shard that was attempted, if it is an attempt at one."""
        match = _ATTEMPT.fullmatch(self.prefix)
        return int(match[1]) if match else None


def find_leftovers(store: Store, run_id: str) -> list[Leftover]:
    """Everything in a run's directory that neither its manifest nor a receipt names, of any age.

    Raises:
        ValueError: the manifest or a receipt is damaged, so what they name is not known.
    """
    store.run(run_id)
    objects = store.objects.at(f"runs/{run_id}")
    present = objects.clock()
    written = _by_attempt([*objects.entries("shards"), *objects.entries("tables")])
    unfinished = [entry for entry in objects.entries("") if is_unfinished(entry.key.rpartition("/")[2])]
    named = set(_named(store.run(run_id)))  # read after the listing: see above
    written = {prefix: entries for prefix, entries in written.items() if prefix not in named}
    written |= {entry.key: [entry] for entry in unfinished if _attempt_of(entry.key) is None}
    return [_leftover(run_id, prefix, entries, present) for prefix, entries in sorted(written.items())]


def remove_leftovers(store: Store, leftovers: Sequence[Leftover], grace_minutes: float = GRACE_MINUTES) -> list[Leftover]:
    """Remove what was found, save what was written within the grace or was committed in the meantime.

    Returns:
        What was removed.
    """
    dead = [leftover for leftover in leftovers if leftover.minutes >= grace_minutes]
    at_work = {(leftover.run_id, leftover.shard) for leftover in leftovers if leftover.minutes < grace_minutes}
    at_work |= {each for run_id in {leftover.run_id for leftover in dead} for each in _computing(store.run(run_id))}
    removed = []
    for (run_id, shard), group in itertools.groupby(dead, key=lambda leftover: (leftover.run_id, leftover.shard)):
        run = store.run(run_id)
        winner = _settled(run, shard, spare=(run_id, shard) in at_work) if shard is not None else ""
        for leftover in group if winner is not None else ():
            if leftover.prefix != winner:
                run.objects.remove(leftover.prefix)
                removed.append(leftover)
    return removed


def _computing(run: StoredRun) -> Iterator[tuple[str, int]]:
    """Shards that living launches say they are computing, who have perhaps written nothing yet."""
    for found in announced(run, run.objects.clock):
        if found.alive:
            yield from ((run.run_id, shard) for shard in found.announcement.in_flight)


def _settled(run: StoredRun, shard: int, spare: bool) -> str | None:
    """Make sure that no attempt at a shard that was listed before can be committed any more.

    Args:
        spare: somebody is at work on the shard, who must not lose the entry he is going to write.

    Returns:
        The prefix of the attempt that the shard stands on, empty for none; None where nothing may be removed.
    """
    while True:
        length = run.log_lengths().get(shard, 0)
        last = run.log_entry(shard, length - 1) if length else None
        if isinstance(last, Receipt):
            return attempt_prefix(shard, last.attempt)
        if spare:
            return None
        if run.void(shard, length, "gc removed abandoned attempts"):
            return ""


def _named(run: StoredRun) -> Iterator[str]:
    """Prefixes of attempts that the run stands on."""
    yield from (entry.path.rpartition("/")[0] for entry in run.manifest.tables)
    yield from (attempt_prefix(receipt.shard, receipt.attempt) for receipt in run.receipts())


def _by_attempt(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    attempts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        prefix = _attempt_of(entry.key)
        if prefix is not None:
            attempts[prefix].append(entry)
    return attempts


def _attempt_of(key: str) -> str | None:
    """The attempt whose directory an object is in."""
    kind, *rest = key.split("/")
    return f"{kind}/{rest[0]}" if kind in ("shards", "tables") and len(rest) > 1 else None


def _leftover(run_id: str, prefix: str, entries: Sequence[Entry], present: float) -> Leftover:
    latest = max(entry.modified for entry in entries)
    return Leftover(run_id, prefix, len(entries), sum(entry.size for entry in entries), max(0.0, present - latest) / 60)
