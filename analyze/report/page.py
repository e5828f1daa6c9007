"""What the report's template shows, as frozen values.

The template only lays out: every word and number reaches it finished, in one of these types. Formatting numbers in the
template was rejected, because neither mypy nor a test can look into it.
"""

import base64
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page shows it."""

    png: bytes
    """The PNG file."""
    alternative: str
    """What it shows, for those who do not see it."""
    caption: str
    """How to read it."""
    width: int = 1000
    """Pixels on the page."""

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the page shows it."""

    caption: str
    """What stands above it; empty for nothing."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, row by row."""
    marked: tuple[int, ...] = ()
    """Rows that are set off from the others, counted from 0."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of what was run."""

    name: str
    """What it says."""
    value: str
    """The value."""


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement on the page."""

    title: str
    """What was measured."""
    pictures: tuple[Picture, ...]
    """May be empty."""
    findings: tuple[str, ...]
    """What it says, controls beside it."""
    tables: tuple[Table, ...]
    """The same in numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the three questions, in a sentence or two."""

    question: str
    """The question."""
    answer: str
    """What the results say to it, or how to measure it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows."""

    title: str
    """Names the model and the corpus."""
    headline: str
    """The result in one sentence or two."""
    lead: tuple[str, ...]
    """What a reader needs beside the headline."""
    answers: tuple[Answer, ...]
    """Where, how, and for how long."""
    layer_map: Picture
    """Accuracy and AUROC by layer."""
    best_layers: Table
    """The best layer of every probe."""
    every_layer: tuple[Table, ...]
    """All layers, one table for each probe."""
    where: tuple[str, ...]
    """Onset, best layer and layer 0 in words."""
    how: tuple[Section, ...]
    """The geometry of the headline's site; empty where it was not measured."""
    how_command: str
    """How to measure it."""
    persistence: tuple[Section, ...]
    """Empty where it was not measured."""
    persistence_command: str
    """How to measure it; empty where it cannot be."""
    contrasts: tuple[Section, ...]
    """Transfer between conditions of the run, such as with the keyword and without; may be empty."""
    asked: tuple[Section, ...]
    """The model's own answers, and what system prompts do; may be empty."""
    confusion: Picture
    """What is taken for what."""
    projection: Picture
    """The utterances in the plane."""
    limits: tuple[str, ...]
    """What the numbers show, and what they do not."""
    facts: tuple[Fact, ...]
    """What was run."""
    work: Table
    """Where it was computed, and how long that took."""
    commands: tuple[str, ...]
    """How to do it again."""
