"""The command line: `affectome --help` is the map.

Exit codes: 0 done, 1 failed, 2 wrong use. An error is one sentence that says what was wrong, where, and what to do; `--debug`
shows the traceback behind it.
"""

import errno
import sys
from typing import Annotated

import typer

from cluster.commands.analysis import persistence, predict, probe, report
from cluster.commands.bench import bench
from cluster.commands.comparison import compare
from cluster.commands.corpora import corpora
from cluster.commands.demo import demo
from cluster.commands.extraction import extract, gc, runs, verify_runs
from cluster.commands.geometry import geometry
from cluster.commands.importing import import_
from cluster.commands.models import check_model, models
from cluster.commands.plans import refresh, schedule
from cluster.commands.prompting import prompting
from cluster.commands.query import query
from cluster.commands.serve import serve
from cluster.commands.similarity import along, nearest
from cluster.commands.status import status
from cluster.commands.transfer import transfer
from cluster.commands.zeroshot import zero_shot
from cluster.console import note

_DEBUG = "--debug"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Map where language models keep emotion.",
)


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback behind an error.")] = False,
) -> None:
    """Options of every command."""


app.command()(demo)
app.add_typer(models, name="models")
app.command("check-model")(check_model)
app.command()(bench)
app.add_typer(corpora, name="corpus")
app.command()(extract)
app.command("import")(import_)
app.command()(runs)
app.command()(status)
app.command("verify")(verify_runs)
app.command()(gc)
app.command()(query)
app.command()(serve)
app.command()(nearest)
app.command()(along)
app.command()(probe)
app.command()(predict)
app.command()(persistence)
app.command()(geometry)
app.command()(transfer)
app.command()(compare)
app.command()(prompting)
app.command("zero-shot")(zero_shot)
app.command()(report)
app.command()(refresh)
app.command()(schedule)


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except Exception as error:  # whatever went wrong, a user gets one sentence; --debug gives the rest
        if _DEBUG in sys.argv:
            raise
        note(f"error: {_sentence(error)}")
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and launch again: finished shards are kept"
    if isinstance(error, ValueError | RuntimeError | OSError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (not expected; please report it with what --debug shows)"
