"""Who may ask a service, and how much it gives at once.

Every limit is decided before what it limits is read or computed, where that can be known; a query in SQL is ended when it
reaches one.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """What whoever starts a service decides."""

    token: str | None = field(default=None, repr=False)
    """What every request must show; None for a service that answers on the machine's own loopback names only."""
    most_bytes: int = 256 << 20
    """Bytes of states, utterances or an answer in one response."""
    most_json_bytes: int = 32 << 20
    """The same, where they are written as JSON, which takes several times the memory."""
    most_rows: int = 100_000
    """Rows of utterances or of an answer to SQL in one response."""
    most_projected: int = 200_000
    """Utterances in one plane."""
    most_neighbours: int = 1_000
    """Neighbours of one query."""
    texts: bool = True
    """Whether neighbours of new texts may be asked for, for which the run's model is loaded into the service."""
    most_body_bytes: int = 1 << 20
    """Bytes of what a request may send."""
    timeout_s: float = 30.0
    """Seconds that a statement or a condition in SQL may take."""
    memory: str = "1GB"
    """What a statement or a condition in SQL may take beside its tables."""
    at_once: int = 4
    """Requests that are answered at once; it bounds the memory of the service together with the limits above."""
    queries_at_once: int = 2
    """Statements and conditions in SQL that run at once, each in a process of its own."""
    wait_s: float = 5.0
    """Seconds that a request waits for its turn before it is told to come again."""
    stall_s: float = 60.0
    """Seconds that a client may take to send its request, or to take the next piece of a response."""
    response_s: float = 300.0
    """Seconds that a client may take to take all of a response."""
