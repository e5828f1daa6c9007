"""Structured logs: one JSON object a line, with run, launch, shard, attempt and worker where they apply.

Python's logging with a JSON formatter, so that whatever collects logs of containers can read them and a program that imports
affectome keeps its own handlers. Nothing is logged unless a worker or `--log` asks for it.
"""

import logging
import sys
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter

_FIELDS = "{asctime}{levelname}{name}{message}"


def to_standard_error() -> None:
    """Write this process's log to standard error, once."""
    _handle(logging.StreamHandler(sys.stderr))


def to_file(path: Path) -> None:
    """Append this process's log to a file.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        _handle(logging.FileHandler(path))
    except OSError as error:
        raise ValueError(f"cannot write the log to {path}: {error.strerror}; give another file") from error


def _handle(handler: logging.Handler) -> None:
    logger = logging.getLogger("affectome")
    handler.setFormatter(
        JsonFormatter(_FIELDS, style="{", rename_fields={"asctime": "time", "levelname": "level", "message": "event"})
    )
    if not any(type(known) is type(handler) for known in logger.handlers):
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
