"""What commands print: tables or JSON on standard output; notes and progress on standard error, so that output can be piped."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Fact = str | int | float | bool | None | Sequence[str]
Row = Mapping[str, Fact]
"""One row of a table: what a column is called, and its value."""

_SECONDS_BETWEEN_LINES = 5.0
_WIDEST = 2000


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def print_rows(title: str, rows: Sequence[Row], as_json: bool) -> None:
    """Print rows as a table, or the same facts as a JSON list."""
    if as_json:
        print_json(rows)
        return
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in dict.fromkeys(name for row in rows for name in row):
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", no_wrap=not _is_text(column, rows))
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


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show progress: a bar on a terminal, a plain line now and then elsewhere.

    Yields:
        A function to call with how much was done since the last call.
    """
    if not sys.stderr.isatty():
        yield _line_printer(label, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


def _line_printer(label: str, total: int, unit: str) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        if done >= total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{label}: {done:,} of {total:,} {unit}")

    return advance


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
