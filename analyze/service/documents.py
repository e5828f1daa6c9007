"""The JSON that a service answers with, for its OpenAPI: what a client reads of it holds for every answer.

Rows of tables are not spelled out: their columns are those of the store's tables (docs/query.md) and of each corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""A row of a table: its columns, by name."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not answered."""

    error: str
    """One sentence, with the choices or a remedy."""


@dataclass(frozen=True, slots=True)
class SiteDocument:
    """One place where a run read states."""

    site: str
    """Such as `resid.last`."""
    layers: Sequence[int]
    """The layers held there, ascending."""
    offsets: Sequence[int]
    """Of a site on a grid, the token offsets of its second axis."""
    every_token: bool
    """Whether it keeps a state for each token."""


@dataclass(frozen=True, slots=True)
class RunDocument:
    """A run."""

    run_id: str
    """16 hex digits."""
    model: str
    """What the user called the model."""
    corpus: str
    """What the user called the corpus."""
    template: str
    """`raw`, `chat`, or Jinja."""
    system: str
    """The system prompt; may be empty."""
    n_rows: int
    """Utterances."""
    width: int
    """Width of a state."""
    complete: bool
    """Whether every shard is there; states are read of complete runs only."""
    created: str
    """When, in ISO 8601, UTC."""
    imported: bool
    """Whether its states were made elsewhere, so that no model here reads new texts for it."""
    sites: Sequence[SiteDocument]
    """Where states were read."""


@dataclass(frozen=True, slots=True)
class RunsDocument:
    """The runs of a store."""

    runs: Sequence[RunDocument]
    """Newest first."""
    problems: Sequence[str]
    """A sentence for each run that cannot be read."""


@dataclass(frozen=True, slots=True)
class RowsDocument:
    """Rows of a table."""

    rows: Sequence[Row]
    """The rows."""


@dataclass(frozen=True, slots=True)
class ColumnDocument:
    """A column of a table."""

    name: str
    """Its name."""
    type: str
    """Its type, as Arrow calls it."""


@dataclass(frozen=True, slots=True)
class UtterancesDocument:
    """Some utterances of a run."""

    n: int
    """How many match, before offset and limit."""
    columns: Sequence[ColumnDocument]
    """The columns of the corpus, those of lists and of times too."""
    rows: Sequence[Row]
    """The utterances, with all columns of the corpus."""


@dataclass(frozen=True, slots=True)
class ReadingDocument:
    """What a read of states would touch and give."""

    n_objects: int
    """Objects with states."""
    n_chunks: int
    """Chunks of these objects."""
    n_bytes: int
    """Bytes that are read of them."""
    shape: Sequence[int]
    """Of what comes back."""
    memory_bytes: int
    """Size of that as float32."""


@dataclass(frozen=True, slots=True)
class PlaneDocument:
    """Utterances in the plane, a list for each thing and an entry for each utterance."""

    row: Sequence[int]
    """Their row numbers."""
    x: Sequence[float]
    """Along the first principal axis, to four digits."""
    y: Sequence[float]
    """Along the second."""
    variance: Sequence[float]
    """Share of the variance along each of the two."""
    classes: Sequence[str]
    """Values that the column asked for by `colour` has in the whole run, sorted; empty without it."""
    label: Sequence[int]
    """Each utterance's value as an index into the classes, -1 for none; empty without classes."""
    n: int
    """How many utterances."""
    n_fitted: int
    """How many of them the plane was fitted to; fewer where a random sample stands for all."""


@dataclass(frozen=True, slots=True)
class AnswerDocument:
    """An answer to SQL."""

    columns: Sequence[ColumnDocument]
    """Its columns."""
    rows: Sequence[Row]
    """Its rows."""
    truncated: bool
    """Whether there are more than these."""


@dataclass(frozen=True, slots=True)
class NeighboursDocument:
    """The utterances nearest to something."""

    metric: str
    """How near was measured."""
    scaling: str
    """How states were seen."""
    neighbours: Sequence[Row]
    """The nearest first: `row`, `utterance_id`, `text`, `label` where there is one, and `score`."""
    place: Sequence[float] | None
    """Where what was asked for lies in the plane of this site, layer and condition; null unless it was drawn of late."""


@dataclass(frozen=True, slots=True)
class ProbeDocument:
    """A direction of a probe that `affectome probe` kept."""

    label: str | None
    """The class; null of a probe of numbers."""
    column: str
    """The column that the probe reads."""
    kind: str
    """Which probe."""
    balance: str
    """How labels weighed in its fit."""
    strength: float | None
    """Its regularisation; null where cross-validation chose it."""
    solver: str
    """What fitted it."""


@dataclass(frozen=True, slots=True)
class MeansDocument:
    """A direction from one mean state to another."""

    where: str
    """It leads to the mean of the utterances of this condition."""
    other: str
    """From the mean of those of this one."""


@dataclass(frozen=True, slots=True)
class ExtremesDocument:
    """Both ends of a direction, which overlap where fewer than twice as many utterances are there."""

    of: ProbeDocument | MeansDocument
    """What the direction is of."""
    top: Sequence[Row]
    """The utterances furthest along it, as neighbours; `score` is the projection on the direction at length 1."""
    bottom: Sequence[Row]
    """Those furthest against it."""
