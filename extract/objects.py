"""Where a store's objects lie: a local directory, or any filesystem of fsspec that can create exclusively.

The store's protocol asks for little, and this is all of it: whole objects, create-if-absent, ranges, listings, removal. A
key is relative, uses `/` and cannot leave the place; what was never written raises FileNotFoundError.

fsspec's own local filesystem was rejected for directories: it never fsyncs, and a kill in the middle of its exclusive
create leaves half an object under the final name (extract.durable says what is done instead). Listings are never cached,
because other processes write to the same place.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from extract import durable
from extract.durable import Part

_CREATE_TRIES = 3
_KEY = re.compile(r"(?!\.{1,2}(/|$))[^/\0]+(/(?!\.{1,2}(/|$))[^/\0]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a listing shows it."""

    key: str
    """Its key."""
    size: int
    """Bytes."""
    modified: float
    """When it was written, in seconds since 1970 by the clock of whoever keeps it."""


class Objects(ABC):
    """A place that keeps objects by key."""

    concurrency: int
    """How many requests at once keep it busy."""
    readers: int
    """How many objects at once are best read where each is decoded at once."""

    @abstractmethod
    def url(self, key: str = "") -> str:
        """What to call an object, or the place itself, in a message."""

    @abstractmethod
    def at(self, prefix: str) -> "Objects":
        """The place below a prefix."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The whole object."""

    @abstractmethod
    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes from start to stop of each range; fewer where the object ends before."""

    @abstractmethod
    def open(self, key: str) -> BinaryIO:
        """The object as a file to read and seek in, for whoever needs a part of it."""

    @contextlib.contextmanager
    def open_whole(self, key: str) -> Iterator[BinaryIO]:
        """The object as a file to read and seek in, for whoever needs all of it."""
        yield io.BytesIO(self.read(key))

    @abstractmethod
    def write(self, key: str, parts: Sequence[Part]) -> None:
        """Write a new object under a name nobody else uses; it is durable after `settle`."""

    @abstractmethod
    def settle(self, prefix: str) -> None:
        """Return when everything written below a prefix survives a power cut."""

    @abstractmethod
    def replace(self, key: str, data: bytes) -> None:
        """Make an object hold `data`, all of it or not at all, durably."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Make an object hold `data`, durably, if nothing is there yet.

        Returns:
            True when the object holds what this call wrote, False when somebody else's was there before. A writer whose
            answer was lost and who asked again gets True; `data` must therefore differ between writers who must not both win.
        """

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted, whether objects or further prefixes; none where there is nothing."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object below a prefix, in no order."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object, or everything below a prefix; what is gone already is no error."""

    @abstractmethod
    def clock(self) -> float:
        """The present by the clock that stamps `Entry.modified`."""

    def exists(self, key: str) -> bool:
        """Whether an object is there."""
        prefix, _, name = key.rpartition("/")
        return name in self.names(prefix)


@dataclass(frozen=True)
class LocalObjects(Objects):
    """A local directory. Writes survive a power cut: the bytes are fsynced, then the directories that name them."""

    root: Path
    """The directory."""
    top: Path | None = None
    """The directory it is a part of, up to which names are made durable; None for itself."""
    concurrency = 4
    readers = min(8, 1 + (os.cpu_count() or 1))  # one waits for the disk while the others decode

    def url(self, key: str = "") -> str:
        return str(self.root / key)

    def at(self, prefix: str) -> "LocalObjects":
        return replace(self, root=self._below(prefix), top=self.top or self.root)

    def read(self, key: str) -> bytes:
        with _told_by_the_disk():
            return self._path(key).read_bytes()

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with _told_by_the_disk(), self._path(key).open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    def open(self, key: str) -> BinaryIO:
        return self._path(key).open("rb")

    @contextlib.contextmanager
    def open_whole(self, key: str) -> Iterator[BinaryIO]:
        with _told_by_the_disk(), self._path(key).open("rb", buffering=0) as file:
            yield file

    def write(self, key: str, parts: Sequence[Part]) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            durable.write_parts(file.fileno(), parts)
            os.fsync(file.fileno())

    def settle(self, prefix: str) -> None:
        directory, top = self._below(prefix), self.top or self.root
        for each, _, _ in os.walk(directory):
            durable.sync_directory(Path(each))
        while directory != top:
            directory = directory.parent
            durable.sync_directory(directory)

    def replace(self, key: str, data: bytes) -> None:
        path = self._path(key)
        durable.ensure_directory(path.parent)
        durable.replace(path, data)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        durable.ensure_directory(path.parent)
        return durable.create(path, data) or path.read_bytes() == data

    def names(self, prefix: str) -> list[str]:
        try:
            return sorted(path.name for path in self._below(prefix).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, prefix: str) -> Iterator[Entry]:
        for directory, _, names in os.walk(self._below(prefix)):
            for name in names:
                path = Path(directory, name)
                with contextlib.suppress(FileNotFoundError):  # a writer may be at work
                    status = path.stat()
                    yield Entry(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)

    def remove(self, key: str) -> None:
        path = self._path(key)
        if path.is_dir():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)

    def clock(self) -> float:
        probe = self.root / f".clock.{secrets.token_hex(4)}.tmp"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _below(self, prefix: str) -> Path:
        return self._path(prefix) if prefix else self.root


@dataclass(frozen=True)
class RemoteObjects(Objects):
    """A place on a filesystem of fsspec, where an object that was written is durable."""

    filesystem: Any = field(repr=False)
    """An fsspec filesystem that caches no listing."""
    root: str
    """The place's path on it, without a slash at the end."""
    concurrency = 16
    readers = 16

    def url(self, key: str = "") -> str:
        return str(self.filesystem.unstrip_protocol(self._below(key)))

    def at(self, prefix: str) -> "RemoteObjects":
        return RemoteObjects(self.filesystem, self._below(prefix))

    def read(self, key: str) -> bytes:
        with self._naming("read", key):
            return bytes(self.filesystem.cat_file(self._path(key)))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        path = self._path(key)
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        with self._naming("read", key):
            found = self.filesystem.cat_ranges([path] * len(ranges), starts, stops, on_error="return")
            return [_range_bytes(part) for part in found]

    def open(self, key: str) -> BinaryIO:
        with self._naming("read", key):
            file: BinaryIO = self.filesystem.open(self._path(key), "rb")
            return file

    def write(self, key: str, parts: Sequence[Part]) -> None:
        self.replace(key, b"".join(parts))

    def settle(self, prefix: str) -> None:
        pass

    def replace(self, key: str, data: bytes) -> None:
        with self._naming("write", key):
            self.filesystem.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        with self._naming("write", key):
            refusal = None
            for _ in range(_CREATE_TRIES):
                try:
                    self.filesystem.pipe_file(self._path(key), data, mode="create")
                    return True
                except Exception as error:  # refusals have many types, and a lost answer may hide a success
                    refusal = error
                with contextlib.suppress(FileNotFoundError):  # where two collided and neither won, nothing is there
                    return bytes(self.filesystem.cat_file(self._path(key))) == data
            assert refusal is not None
            raise refusal

    def names(self, prefix: str) -> list[str]:
        with self._naming("list", prefix):
            try:
                return sorted({path.rstrip("/").rpartition("/")[2] for path in self._list(self.filesystem.ls, prefix)})
            except (FileNotFoundError, NotADirectoryError):
                return []

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._naming("list", prefix):
            found = self._list(self.filesystem.find, prefix)
        for path, info in found.items():
            if info["type"] != "file":  # a server may remember a prefix whose objects are gone
                continue
            yield Entry(path.removeprefix(f"{self.root}/"), info["size"], _modified(info))

    def remove(self, key: str) -> None:
        # One by one and by their very names: `rm` takes a `*` or a `[` in a store's own URL for a pattern, and s3fs says
        # nothing of what a server refused to remove in bulk.
        path = self._path(key)
        with self._naming("remove", key):
            for each in [*self._list(self.filesystem.find, key), path]:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    self.filesystem.rm_file(each)

    def clock(self) -> float:
        key = f".clock.{secrets.token_hex(4)}.tmp"
        self.replace(key, b"")
        try:
            return _modified(self.filesystem.info(self._path(key)))
        finally:
            self.remove(key)

    def _list(self, listing: Any, prefix: str) -> Any:
        self.filesystem.invalidate_cache()
        found = listing(self._below(prefix), detail=True)
        return found if isinstance(found, dict) else {info["name"]: info for info in found}

    def _path(self, key: str) -> str:
        return f"{self.root}/{checked_key(key)}"

    def _below(self, prefix: str) -> str:
        return self._path(prefix) if prefix else self.root

    @contextlib.contextmanager
    def _naming(self, verb: str, key: str) -> Iterator[None]:
        """Backends raise whatever they like; a user is told what could not be done, and where."""
        if verb != "list":
            checked_key(key)
        try:
            yield
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            if verb != "write" or isinstance(error, FileExistsError):
                raise
            raise OSError(f"cannot {verb} {self.url(key)}: {error}") from error
        except Exception as error:
            raise OSError(f"cannot {verb} {self.url(key)}: {type(error).__name__}: {error}") from error


def open_objects(location: str) -> Objects:
    """The place a directory or URL names; nothing is touched.

    Raises:
        ValueError: no filesystem is known for the URL, or the package that knows it is not installed.
    """
    if "://" not in location or location.startswith(("file://", "local://")):
        return LocalObjects(Path(location.removeprefix("file://").removeprefix("local://")).expanduser().absolute())
    try:
        filesystem, path = fsspec.core.url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"cannot open {location}: {error}; for S3: pip install 'affectome[s3]'") from error
    except ValueError as error:
        raise ValueError(f"cannot open {location}: {error}") from error
    return RemoteObjects(filesystem, path.rstrip("/"))


def checked_key(key: str) -> str:
    """The key itself.

    Raises:
        ValueError: it could lead out of the place it is meant for.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a name inside a store")
    return key


@contextlib.contextmanager
def _told_by_the_disk() -> Iterator[None]:
    """A sector that cannot be read is damage, to be named and repaired like any other; no permission is not."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise ValueError(f"the disk cannot read it: {error}") from error
        raise


def _unless_gone(_function: object, _path: str, caught: tuple[type[BaseException], BaseException, object]) -> None:
    """While a directory is removed, somebody else may remove it too."""
    if not isinstance(caught[1], FileNotFoundError):
        raise caught[1]


def _range_bytes(part: Any) -> bytes:
    """One answer of fsspec's `cat_ranges`; a range behind the object's end has no bytes, though servers call it an error."""
    if isinstance(part, OSError) and part.errno == errno.EINVAL:
        return b""
    if isinstance(part, Exception):
        raise part
    return bytes(part)


def _modified(info: dict[str, Any]) -> float:
    """The time of last change, by whichever name a filesystem gives it."""
    stamp = next(info[name] for name in ("LastModified", "mtime", "updated", "last_modified", "created") if info.get(name))
    return stamp.timestamp() if isinstance(stamp, datetime) else float(stamp)
