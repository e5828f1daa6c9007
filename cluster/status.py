"""How far a run is, from the store alone: receipts say what is done and how fast, announcements who is at work.

So it can be asked from any machine that sees the store, also when Ray, its dashboard or the launch itself are gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from extract.documents import Receipt
from extract.launches import Announced, Quarantined, announced
from extract.stored_run import StoredRun

RATE_SECONDS = 300.0
"""The rate is that of the shards which were finished within so many seconds."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is."""

    run_id: str
    """The run."""
    state: str
    """`complete`, `working`, or `unfinished`: nobody is at work on it."""
    n_shards: int
    """Shards it has when it is complete."""
    n_shards_done: int
    """Shards that exist."""
    n_rows: int
    """Rows asked for."""
    n_rows_done: int
    """Rows of shards that exist."""
    n_bytes: int
    """Bytes of their objects."""
    rows_per_second: float | None
    """Over the last minutes; None where nothing was finished in them."""
    seconds_left: float | None
    """At that rate."""
    stages: tuple[tuple[str, float], ...]
    """Wall time of all workers by stage: load, compute, copy, write; from the receipts."""
    launches: tuple[Announced, ...]
    """What launches say of themselves: those at work, and those that ended before the run was complete."""
    quarantined: tuple[Quarantined, ...]
    """Shards that do not exist and that a launch gave up."""


def run_status(run: StoredRun) -> RunStatus:
    """Look a run up.

    Raises:
        ValueError: a receipt is damaged.
    """
    receipts, launches = run.receipts(), announced(run)
    n_done = sum(receipt.n_rows for receipt in receipts)
    there = {receipt.shard for receipt in receipts}
    rate = None if n_done == run.manifest.n_rows else recent_rate(receipts, datetime.now(UTC))
    given_up = {each.shard: each for found in launches for each in found.announcement.quarantined if each.shard not in there}
    working = any(found.alive for found in launches)
    return RunStatus(
        run_id=run.run_id,
        state="complete" if n_done == run.manifest.n_rows else "working" if working else "unfinished",
        n_shards=run.n_shards,
        n_shards_done=len(receipts),
        n_rows=run.manifest.n_rows,
        n_rows_done=n_done,
        n_bytes=sum(receipt.n_bytes for receipt in receipts),
        rows_per_second=rate,
        seconds_left=(run.manifest.n_rows - n_done) / rate if rate else None,
        stages=stage_seconds(receipts),
        launches=tuple(launches),
        quarantined=tuple(given_up[shard] for shard in sorted(given_up)),
    )


def stage_seconds(receipts: Sequence[Receipt]) -> tuple[tuple[str, float], ...]:
    """Wall time of all workers by stage, in the order of the stages."""
    names = dict.fromkeys(name for receipt in receipts for name in receipt.seconds)
    return tuple((name, sum(receipt.seconds.get(name, 0.0) for receipt in receipts)) for name in names)


def recent_rate(receipts: Sequence[Receipt], present: datetime) -> float | None:
    """Rows a second over the last RATE_SECONDS; None where no two shards were finished in them.

    The rows of the first shard in that time are left out: when it began is not known.
    """
    finished = sorted((datetime.fromisoformat(receipt.finished), receipt.n_rows) for receipt in receipts)
    recent = [(when, n_rows) for when, n_rows in finished if (present - when).total_seconds() <= RATE_SECONDS]
    if len(recent) < 2:
        return None
    seconds = max((present - recent[0][0]).total_seconds(), 1.0)
    return sum(n_rows for _, n_rows in recent[1:]) / seconds
