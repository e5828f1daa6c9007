"""Directories, S3 and a filesystem of fsspec's own hold stores; what cannot hold one is refused."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from extract.objects import Objects, RemoteObjects, open_objects
from extract.store import Store
from tests.s3 import BUCKET, Faults, FaultyProxy, S3Server
from tests.store_conformance import Around, StoreConformance


class ExclusiveMemory(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's own `memory://` looks first and writes then: of two threads both may create. This one holds a lock."""

    protocol = "exclusive-memory"
    creating = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix(f"{cls.protocol}://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        with self.creating:
            super().pipe_file(path, value, mode, **options)


class OverwritingMemory(ExclusiveMemory):
    """Is asked to create, and overwrites."""

    protocol = "overwriting-memory"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, "overwrite" if mode == "create" else mode, **options)


for _kind in (ExclusiveMemory, OverwritingMemory):
    fsspec.register_implementation(_kind.protocol, _kind, clobber=True)


@pytest.fixture(scope="module")
def s3_environment(s3_server: S3Server) -> Iterator[None]:
    """Where URLs that begin with s3:// are found; filesystems made before looked elsewhere."""
    filesystem = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        filesystem.clear_instance_cache()
        yield
    filesystem.clear_instance_cache()


@pytest.fixture
def s3_location(s3_environment: None) -> str:
    """A fresh prefix."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def open_otherwise(location: str, name: str, value: str) -> Objects:
    """Open a place on S3 with one variable of the environment changed."""
    filesystem = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        filesystem.clear_instance_cache()
        objects = open_objects(location)
        objects.exists("connected")
    filesystem.clear_instance_cache()
    return objects


class TestDirectory(StoreConformance):
    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return str(tmp_path / "store")

    @pytest.fixture
    def around(self, location: str) -> Around:
        return Around(LocalFileSystem(), location)


class TestMemory(StoreConformance):
    processes_share = False

    @pytest.fixture
    def location(self) -> str:
        return f"exclusive-memory://{uuid.uuid4().hex}"

    @pytest.fixture
    def around(self, location: str) -> Around:
        return Around(MemoryFileSystem(), "/" + location.removeprefix("exclusive-memory://"))


class TestS3(StoreConformance):
    @pytest.fixture
    def location(self, s3_location: str) -> str:
        return s3_location

    @pytest.fixture
    def around(self, location: str, s3_server: S3Server) -> Around:
        return Around(s3_server.filesystem(), location.removeprefix("s3://"))


def test_a_filesystem_that_overwrites_is_refused_and_left_empty() -> None:
    place = uuid.uuid4().hex
    with pytest.raises(ValueError, match="cannot hold a store: its filesystem overwrites") as refusal:
        Store.open(f"overwriting-memory://{place}", create=True)
    assert place in str(refusal.value)
    assert MemoryFileSystem().find(f"/{place}") == []


@pytest.mark.parametrize("location", ["nonsense://place", "gs-not-there://x/y"])
def test_a_url_that_no_filesystem_knows_is_refused_by_name(location: str) -> None:
    with pytest.raises(ValueError, match=f"cannot open {location}"):
        open_objects(location)


def test_a_creator_whose_answers_are_cut_is_told_truly_whether_it_won(s3_server: S3Server, s3_location: str) -> None:
    straight = open_objects(s3_location)
    with FaultyProxy(s3_server.port) as proxy:
        through = open_otherwise(s3_location, "AWS_ENDPOINT_URL", proxy.endpoint)
        for turn in range(6):
            theirs_is_first = turn % 2 == 1
            if theirs_is_first:
                assert straight.create(f"{turn}", b"theirs")
            proxy.set_faults(Faults(cut_response=1, cuts=1))
            assert through.create(f"{turn}", b"mine") is not theirs_is_first
            assert straight.create(f"{turn}", b"theirs") is theirs_is_first
            assert straight.read(f"{turn}") == (b"theirs" if theirs_is_first else b"mine")
        assert proxy.counts["cut_responses"] == 6


def test_a_service_that_refuses_is_named_with_what_was_asked_of_it(s3_location: str) -> None:
    with pytest.raises(OSError, match=f"cannot list {s3_location}: PermissionError"):
        open_otherwise(s3_location, "AWS_SECRET_ACCESS_KEY", "not the secret")


def test_a_path_that_a_file_blocks_is_named(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    objects.write("file", [b"data"])
    with pytest.raises(OSError, match="file"):
        objects.create("file/inside", b"data")
    assert objects.names("file") == []


def test_removing_takes_a_name_by_its_letters_and_not_as_a_pattern() -> None:
    filesystem = ExclusiveMemory()
    for path in ("/st[ab]/x/1", "/sta/x/1", "/stb/x"):
        filesystem.pipe_file(path, b"data")
    RemoteObjects(filesystem, "/st[ab]").remove("x")
    assert not filesystem.exists("/st[ab]/x/1")
    assert filesystem.exists("/sta/x/1")
    assert filesystem.exists("/stb/x")
