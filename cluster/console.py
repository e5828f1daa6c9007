"""What commands print: tables or JSON on standard output; notes and progress on standard error, so that output can be piped."""

import json
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

Fact = str | int | float | bool | None | Sequence[str]
Row = Mapping[str, Fact]
"""One row of a table: what a column is called, and its value."""

_SECONDS_BETWEEN_LINES = 5.0
_WIDEST = 2000
_LINE = 60


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_rows(title: str, rows: Sequence[Row], as_json: bool, exact: bool = False) -> None:
    """Print rows as a table, or the same facts as a JSON list.

    Args:
        exact: whether columns are called in the table as they are, and not with spaces.
    """
    if as_json:
        print_json(rows)
        return
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in dict.fromkeys(name for row in rows for name in row):
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        heading = escape(column) if exact else column.replace("_", " ")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=not _is_text(column, rows))
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    if needed > console.width:  # cut cells would lose facts: a terminal wraps lines, a pipe has no width
        console = Console(highlight=False, width=needed)
    console.print(table)


def note(text: str) -> None:
    """Say something on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def visible(text: str) -> str:
    """Text of a corpus or a model without what would command the terminal."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def in_one_line(text: str) -> str:
    """As `visible`, shortened to a line."""
    line = visible(text).replace("\n", " ")
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"


class Meter(ABC):
    """Shows how far something is."""

    @abstractmethod
    def __call__(self, amount: int) -> None:
        """So much was done since the last call."""

    @abstractmethod
    def says(self, text: str) -> None:
        """Show this beside it from now on."""


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Meter]:
    """Show progress, rate and time left: a bar on a terminal, a plain line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines(label, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(label, total=total, rate="", text=""))


class _Bar(Meter):
    """On a terminal."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, amount: int) -> None:
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, advance=amount, rate=f"{speed:,.1f}/s" if speed else "")

    def says(self, text: str) -> None:
        self._bar.update(self._task, text=text)


class _Lines(Meter):
    """Elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._text = 0, ""
        self._began = self._last = time.monotonic()

    def __call__(self, amount: int) -> None:
        self._done += amount
        self._print(self._done >= self._total)

    def says(self, text: str) -> None:
        self._text = text
        self._print(False)

    def _print(self, at_once: bool) -> None:
        present = time.monotonic()
        if not at_once and present - self._last <= _SECONDS_BETWEEN_LINES:
            return
        self._last = present
        rate = self._done / max(present - self._began, 1e-9)
        left = f", {rate:,.1f}/s, {duration((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        text = f" ({self._text})" if self._text else ""
        note(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}{left}{text}")


def fail_with(problems: Sequence[str], where: str) -> None:
    """Say each problem, and end with exit code 1 where there is one."""
    for problem in problems:
        note(problem)
    if problems:
        raise RuntimeError(f"{len(problems):,} problem{'s' if len(problems) > 1 else ''} {where}")


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Let SIGTERM, with which schedulers take a machine back, end the program in good order, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        note("stopped by SIGTERM; finished shards are kept, launch the same again to go on")
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def duration(seconds: float) -> str:
    """A time for people: 42 s, 7 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _is_text(column: str, rows: Sequence[Row]) -> bool:
    return any(isinstance(row.get(column), str) and len(str(row[column])) > 60 for row in rows)


def _cell(value: Fact) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}" if abs(value) < 1e-2 and value else f"{value:.3f}"
        case int():
            return f"{value:,}"
        case str():
            return value
        case _:
            return ", ".join(value)
