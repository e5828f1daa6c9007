"""A run before a local directory that keeps what is read of it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from analyze.query import Run
from extract.objects import LocalObjects
from extract.stored_run import StoredRun


@dataclass(frozen=True)
class CountingObjects(LocalObjects):
    """A local directory that keeps what is read of it."""

    ranges: list[tuple[str, int]] = field(default_factory=list, compare=False)
    """Key and length of every range that was read of a part of an object."""
    wholes: list[tuple[str, int]] = field(default_factory=list, compare=False)
    """Key and size of every object that was read whole."""

    @property
    def read_bytes(self) -> int:
        """Bytes that were read either way."""
        return sum(size for _, size in [*self.ranges, *self.wholes])

    @contextmanager
    def open_whole(self, key: str) -> Iterator[BinaryIO]:
        with super().open_whole(key) as file:
            self.wholes.append((key, file.seek(0, os.SEEK_END)))
            yield file

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        parts = super().read_ranges(key, ranges)
        self.ranges.extend((key, len(part)) for part in parts)
        return parts


def counted(run: Run) -> tuple[Run, CountingObjects]:
    """The same run before a directory that counts."""
    objects = cast(LocalObjects, run.stored.objects)
    counting = CountingObjects(objects.root, objects.top)
    return Run(StoredRun(counting, run.manifest)), counting
