"""Types commands as a user does, in this process: each start of the command costs seconds, and is tested in test_cli."""

from pathlib import Path

from typer.testing import CliRunner, Result

from cluster.cli import app


def typed(*arguments: str | Path) -> Result:
    """What a command does, however it ends."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ended_well(*arguments: str | Path) -> Result:
    """A command that ends well."""
    done = typed(*arguments)
    assert done.exit_code == 0, done.exception
    return done


def printed(*arguments: str | Path) -> str:
    """What a command that ends well prints."""
    return ended_well(*arguments).stdout


def refusal(*arguments: str | Path) -> str:
    """The one sentence of a command that is used wrongly."""
    done = typed(*arguments)
    assert isinstance(done.exception, ValueError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)
