"""Bytes that survive a power cut: write beside, fsync, rename or link, fsync the directory.

Writing in place was rejected because a reader could see half an object, and a bare rename because the kernel may
persist the name before the bytes. `os.link` is the exclusive create: unlike `O_EXCL` on the final name, a crash
leaves no empty file there.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

Part = Any
"""A piece of an object: bytes, or a contiguous numpy array, whose type does not say on Python 3.11 that it is a buffer."""

_MOST_BUFFERS = min(1024, os.sysconf("SC_IOV_MAX"))


def ensure_directory(path: Path) -> None:
    """Create a directory and its parents, and make each new entry durable in its parent."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, all of it or not at all, durably; an earlier object of that name is replaced."""
    with _written_beside(path, data) as temporary:
        temporary.replace(path)
    sync_directory(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which becomes `path`, durably, when the block ends well, and is gone when it does not."""
    temporary = _name_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextlib.contextmanager
def creating_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `path`, durably, when the block ends well, and is gone when it does not.

    Raises:
        OSError: something is at `path` by then.
    """
    temporary = _name_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for directory, _, names in os.walk(temporary):
            for name in names:
                sync_file(Path(directory, name))
            sync_directory(Path(directory))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Make `path` hold `data` durably if nothing is there yet.

    Returns:
        True when this call created it, False when something was there before: exactly one of several writers gets True.
    """
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
            created = True
        except FileExistsError:  # over NFS a link may succeed and, asked again, report that it exists
            created = temporary.stat().st_nlink == 2
        except FileNotFoundError:  # gc took a writer that slept for a dead one, and its unfinished object with it
            return create(path, data)
    sync_directory(path.parent)
    return created


def is_unfinished(name: str) -> bool:
    """Whether a name is that of an unfinished write, which means nothing."""
    return name.startswith(".") and name.endswith(".tmp")


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    temporary = _name_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_parts(descriptor: int, parts: Sequence[Part]) -> None:
    """Write buffers one after another, without joining them in memory first and in as few calls as the system allows.

    One call of a megabyte costs the kernel two thirds of what four of 256 KiB do (benchmarks/store.py writes nothing else).
    """
    rest = [memoryview(part).cast("B") for part in parts]
    while rest:
        written = os.writev(descriptor, rest[:_MOST_BUFFERS])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut, whoever wrote them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
