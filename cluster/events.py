"""What happens during a launch, as values: the driver tells, and progress, log and metrics each listen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself once its model is loaded."""

    host: str
    """The machine."""
    node: str
    """Ray's name of the node."""
    pid: int
    """Its process."""
    device: str
    """Where it computes."""
    depth: int
    """Shards it is given at once: two where one is written while the next is computed."""
    limit: float
    """Tokens/s of the model's matrix products alone (extract.bench)."""
    versions: tuple[tuple[str, str], ...]
    """Libraries that change numbers."""
    seconds: float
    """From its start until the model was loaded."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker has loaded the model."""

    worker: str
    """Its name."""
    facts: WorkerFacts
    """What it says."""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker is gone."""

    worker: str
    """Its name."""
    reason: str
    """Why, in a sentence."""
    lost: bool
    """Whether with its node, which is nobody's fault."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker says of a shard that exists: the numbers of its receipt.

    The receipt itself is in the store. Its list of objects, two or three for each layer, would cost a driver of a thousand
    workers more than everything else it does (benchmarks/distributed.py).
    """

    shard: int
    """The shard."""
    entry: int
    """Place of its receipt in the shard's log."""
    here: bool
    """Whether this attempt made it, and did not find that another had."""
    n_rows: int
    """Its rows."""
    n_computed: int
    """Tokens that went through the model."""
    n_bytes: int
    """Bytes of its objects."""
    compute_seconds: float
    """Time to compute it."""
    write_seconds: float
    """Time to make it durable."""


@dataclass(frozen=True, slots=True)
class ShardDone:
    """This launch has made a shard."""

    done: Done
    """What it says of it."""
    attempt: int
    """Which attempt of this launch it was, from 1."""
    worker: str
    """Its name."""
    recovery_seconds: float | None
    """Since the first attempt at it was lost; None when the first attempt did it."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt at a shard came to nothing."""

    shard: int
    """The shard."""
    attempt: int
    """Which attempt of this launch, from 1."""
    worker: str
    """Whose."""
    kind: Literal["error", "death", "lost"]
    """It raised, its worker died, or its worker's node went away."""
    reason: str
    """Why, in a sentence."""
    given_up: bool
    """Whether that was the last attempt."""


@dataclass(frozen=True, slots=True)
class FoundDone:
    """Shards that exist though nobody here said so: other launches', or of a worker that died before it could."""

    n_shards: int
    """How many."""
    n_rows: int
    """Their rows."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing goes on for a reason that a user wants to know."""

    reason: str
    """Why, in a sentence."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How the launch stands, every second or so."""

    n_waiting: int
    """Shards that nobody computes."""
    n_in_flight: int
    """Attempts under way."""
    n_starting: int
    """Workers that wait for a node or load the model."""
    n_idle: int
    """Workers with nothing to do."""
    n_busy: int
    """Workers that compute."""
    tokens_per_second: float
    """Over the last half minute."""
    limit: float
    """What the present workers' matrix products alone would do, tokens/s."""


Event = WorkerJoined | WorkerLeft | ShardDone | AttemptFailed | FoundDone | Waiting | Snapshot
Listener = Callable[[Event], None]
