"""Commands as they are typed: found in pages, manifests and scripts, and read by the command lines that they are for."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_OPERATORS = frozenset({">", ">>", "<", "|", "||", "&&", "&", ";", "(", ")"})
_BEFORE_A_COMMAND = re.compile(r"--|[\w-]+=.*|[\w.-]+:\d[\w.]*")
"""`--`, an assignment or an option with its value, or an image: what may stand before a program that is called."""
_FENCED = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def typed_in(page: Path) -> list[str]:
    """Every line of the fenced blocks of a page, those that go on over several lines joined."""
    return [line for block in _FENCED.findall(page.read_text()) for line in joined(block)]


def joined(script: str) -> list[str]:
    """The lines of a shell script, without comments, those that go on over several lines joined."""
    return [line for line in re.sub(r"\\\n\s*", "", script).splitlines() if line.strip() and not line.lstrip().startswith("#")]


def calls(line: str, program: str) -> Iterator[list[str]]:
    """The arguments of every call of a program in a line, those in quotes for another shell with them."""
    words = split(line)
    for index, word in enumerate(words):
        before = words[index - 1] if index else ";"
        if word == program and (before in _OPERATORS or _BEFORE_A_COMMAND.fullmatch(before)):
            yield list(_until_operator(words[index + 1 :]))
        elif " " in word and program in word:
            yield from calls(word, program)


def split(line: str) -> list[str]:
    """The words of a line, operators of the shell as words of their own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    return list(lexer)


def _until_operator(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word in _OPERATORS:
            return
        yield word


def read_by(command: Any, arguments: Sequence[str]) -> list[str]:
    """Let a command line read arguments, and do nothing.

    Args:
        command: click's, or that of the click which typer brings along.

    Returns:
        The names of the commands that lead to what would be done.

    Raises:
        Exception: it does not understand them.
    """
    with command.make_context("program", list(arguments)) as context:
        if not hasattr(command, "resolve_command"):
            return []
        name, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        return [name, *read_by(chosen, rest)]
