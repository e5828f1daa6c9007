"""What a filesystem must do to hold a store: tests that anybody can run against a backend of fsspec.

A backend that passes can hold a store:

    class TestMine(StoreConformance):
        @pytest.fixture
        def location(self) -> str:
            return f"mine://bucket/{uuid.uuid4().hex}"

        @pytest.fixture
        def around(self, location: str) -> Around:
            return Around(fsspec.filesystem("mine", skip_instance_cache=True), location.removeprefix("mine://"))

The tests look at the objects around the code under test, and a store's numbers are read with json and zarr alone.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from analyze.query import open_store
from extract.garbage import find_leftovers, remove_leftovers
from extract.objects import Objects, open_objects
from extract.store import Store
from extract.verify import verify
from tests.planted import LAYERS, SITES, plant_run, planted, write_planted

_RACER = """
import sys
from extract.objects import open_objects
objects = open_objects(sys.argv[1])
objects.names("")
print("ready", flush=True)
sys.stdin.readline()
print(objects.create("race/object", sys.argv[2].encode()))
"""


@dataclass(frozen=True, slots=True)
class Around:
    """A second look at a place, which shares nothing with the code under test but the place."""

    filesystem: Any
    """A filesystem of fsspec with connections and caches of its own."""
    path: str
    """The place on it."""

    def listed(self) -> set[str]:
        """Every object."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self.path, detail=True)
        return {path.removeprefix(f"{self.path}/") for path, info in found.items() if info["type"] == "file"}

    def read(self, key: str) -> bytes:
        """A whole object."""
        return bytes(self.filesystem.cat_file(f"{self.path}/{key}"))


class StoreConformance:
    """Subclass it, provide the two fixtures below, and name the subclass `Test...`."""

    processes_share = True
    """Whether other processes that open the same URL see the same objects."""
    n_listed = 1100
    """Objects in the longest listing: more than a page of the backend's."""

    @pytest.fixture
    def location(self) -> str:
        """The URL of a place where nothing is yet, another for each test."""
        raise NotImplementedError

    @pytest.fixture
    def around(self, location: str) -> Around:
        """A second look at that place."""
        raise NotImplementedError

    @pytest.fixture
    def objects(self, location: str) -> Objects:
        """The place under test."""
        return open_objects(location)

    def test_exactly_one_of_eight_threads_creates_an_object(self, objects: Objects, around: Around) -> None:
        barrier = threading.Barrier(8)

        def race(writer: int, turn: int) -> bool:
            barrier.wait()
            return objects.create(f"race/{turn}", b"%d" % writer * 1000)

        with ThreadPoolExecutor(8) as pool:
            for turn in range(4):
                won = list(pool.map(race, range(8), [turn] * 8))
                assert won.count(True) == 1
                assert around.read(f"race/{turn}") == b"%d" % won.index(True) * 1000
        assert around.listed() == {f"race/{turn}" for turn in range(4)}

    def test_exactly_one_of_three_processes_creates_an_object(self, location: str, around: Around) -> None:
        if not self.processes_share:
            pytest.skip("each process has objects of its own here")
        racers = [
            subprocess.Popen([sys.executable, "-c", _RACER, location, str(n)], stdin=-1, stdout=-1, text=True) for n in range(3)
        ]
        assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 3
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [racer.communicate()[0].strip() for racer in racers]
        assert sorted(won) == ["False", "False", "True"]
        assert around.read("race/object") == b"%d" % won.index("True")

    def test_a_loser_changes_nothing_and_a_writer_that_asks_again_has_won(self, objects: Objects, around: Around) -> None:
        assert objects.create("a/b", b"first")
        assert not objects.create("a/b", b"second")
        assert not objects.create("a/b", b"")
        assert objects.create("a/b", b"first")
        assert around.listed() == {"a/b"}
        assert around.read("a/b") == b"first"

    def test_what_was_written_is_there_whole_under_exactly_its_key(self, objects: Objects, around: Around) -> None:
        big = np.random.default_rng(0).bytes(3 << 20)
        objects.write("w/zarr.json", [b"par", np.frombuffer(b"ts", np.uint8), b""])
        objects.write("w/c.0.0.0", [big[:5], big[5:]])
        objects.replace("r", b"old and long")
        objects.replace("r", b"new")
        assert objects.create("c/.x%20y+z", b"")
        expected = {"w/zarr.json": b"parts", "w/c.0.0.0": big, "r": b"new", "c/.x%20y+z": b""}
        objects.settle("w")
        assert around.listed() == expected.keys()
        for key, data in expected.items():
            assert around.read(key) == objects.read(key) == objects.at("").read(key) == data
        assert objects.at("w").read("zarr.json") == b"parts"

    def test_listings_follow_every_write_and_removal(self, objects: Objects, around: Around) -> None:
        for n in range(6):
            objects.write(f"d/{n}/x", [b"x" * n])
            assert objects.names("d") == [str(each) for each in range(n + 1)]
            assert {entry.key: entry.size for entry in objects.entries("d")} == {f"d/{each}/x": each for each in range(n + 1)}
        objects.write("d2/x", [b"beside"])
        objects.remove("d/3")
        objects.remove("d/4/x")
        left = {f"d/{n}/x" for n in (0, 1, 2, 5)}
        assert {entry.key for entry in objects.at("d").entries("")} == {key.removeprefix("d/") for key in left}
        assert {entry.key for entry in objects.entries("")} == around.listed() == left | {"d2/x"}
        objects.remove("d")
        assert {entry.key for entry in objects.entries("")} == around.listed() == {"d2/x"}
        assert objects.exists("d2/x")
        assert not objects.exists("d/0/x")

    def test_a_listing_is_complete_beyond_a_page(self, objects: Objects) -> None:
        keys = {f"many/{n:04}" for n in range(self.n_listed)}
        with ThreadPoolExecutor(objects.concurrency) as pool:
            list(pool.map(lambda key: objects.write(key, [b"x"]), keys))
        assert {f"many/{name}" for name in objects.names("many")} == keys
        assert {entry.key for entry in objects.entries("many")} == keys
        objects.remove("many")
        assert not list(objects.entries("many"))

    def test_ranges_are_as_asked_and_shorter_where_the_object_ends(self, objects: Objects) -> None:
        data = bytes(range(100))
        objects.write("a", [data])
        ranges = [(0, 1), (90, 100), (10, 20), (95, 120), (0, 100), (100, 104), (300, 310)]
        assert objects.read_ranges("a", ranges) == [data[start:stop] for start, stop in ranges]

    def test_an_opened_object_seeks(self, objects: Objects) -> None:
        data = np.random.default_rng(0).bytes(100_000)
        objects.write("a", [data])
        for opened in (objects.open("a"), objects.open_whole("a")):
            with opened as file:
                assert file.seek(0, 2) == len(data)
                for position in (99_990, 0, 50_000):
                    assert file.seek(position) == position
                    assert file.read(100) == data[position : position + 100]
        with objects.open("a") as file:
            assert file.read() == data

    def test_a_replaced_object_is_never_seen_half(self, location: str, objects: Objects) -> None:
        objects.replace("a", b"0" * (1 << 18))
        with ThreadPoolExecutor(1) as pool:
            other = open_objects(location)
            writing = pool.submit(lambda: [objects.replace("a", b"%d" % (n % 10) * ((1 << 18) + n % 7)) for n in range(30)])
            while not writing.done():
                data = other.read("a")
                assert data in {b"%d" % digit * len(data) for digit in range(10)}
                assert len(data) >= 1 << 18
            writing.result()

    def test_what_was_never_written_is_not_found_whatever_is_beside_it(self, objects: Objects) -> None:
        reads: list[Callable[[], object]] = [
            lambda: objects.read("absent/a"),
            lambda: objects.read_ranges("absent/a", [(0, 4), (4, 8)]),
            lambda: objects.open("absent/a"),
            lambda: objects.open_whole("absent/a").__enter__(),
        ]
        for beside in ("other", "absen", "absent/ab", "absent/a2/x"):
            objects.write(beside, [b"here"])
            for read in reads:
                with pytest.raises(FileNotFoundError):
                    read()
            assert objects.names("absent/a") == []
            assert list(objects.entries("absent/a")) == []
            assert not objects.exists("absent/a")
            objects.remove("absent/a")
            assert objects.read(beside) == b"here"

    def test_a_key_that_leads_out_is_refused(self, objects: Objects, around: Around) -> None:
        objects.write("x", [b"here"])
        uses: list[Callable[[str], object]] = [
            objects.read,
            lambda key: objects.read_ranges(key, [(0, 1)]),
            objects.open,
            lambda key: objects.write(key, [b"data"]),
            lambda key: objects.replace(key, b"data"),
            lambda key: objects.create(key, b"data"),
            objects.remove,
        ]
        prefixes: list[Callable[[str], object]] = [objects.at, objects.names, lambda key: list(objects.entries(key))]
        for key in ("", "/", "/x", "x/", "a//b", ".", "..", "../x", "a/../b", "a/..", "a/./b", "a\0b"):
            for use in uses + (prefixes if key else []):  # the place itself is a prefix
                with pytest.raises(ValueError, match="not a name inside a store"):
                    use(key)
        assert around.listed() == {"x"}

    def test_the_clock_is_the_one_that_stamps_objects(self, objects: Objects, around: Around) -> None:
        objects.write("first", [b"1"])
        between = objects.clock()
        objects.write("second", [b"22"])
        entries = {entry.key: entry for entry in objects.entries("")}
        assert {key: entry.size for key, entry in entries.items()} == {"first": 1, "second": 2}
        assert between - 60 < entries["first"].modified <= between <= entries["second"].modified <= objects.clock()
        assert around.listed() == {"first", "second"}

    def test_a_store_holds_the_attempt_that_was_first_and_nothing_else(self, location: str, around: Around) -> None:
        store = Store.open(location, create=True)
        run = plant_run(store)
        second_look = Store.open(store.location).run(run.run_id)
        for shard in range(run.n_shards):
            first, second = write_planted(run, shard, 0), write_planted(second_look, shard, 0)
            assert second_look.commit(second)
            assert not run.commit(first)
            assert run.commit(second)
        assert verify(second_look).whole
        keys = {key for key in around.listed() if key.startswith(f"runs/{run.run_id}/shards/")}
        receipts = [json.loads(around.read(f"runs/{run.run_id}/receipts/{shard:06d}-0.json")) for shard in range(run.n_shards)]
        assert keys == {f"runs/{run.run_id}/{each['path']}" for receipt in receipts for each in receipt["objects"]}
        for receipt in receipts:
            for site in SITES:
                array = _array(around, f"runs/{run.run_id}/shards/{receipt['shard']:06d}-{receipt['attempt']}/{site}")
                for index, layer in enumerate(LAYERS):
                    np.testing.assert_array_equal(array[index], planted(site, layer, range(receipt["start"], receipt["stop"])))

    def test_a_store_is_read_where_it_was_opened_and_collects_what_nobody_names(self, location: str, around: Around) -> None:
        run = plant_run(Store.open(location, create=True))
        for shard in range(run.n_shards):
            assert run.commit(write_planted(run, shard, 0))
        whole = around.listed()
        write_planted(run, 1, 0)
        store = Store.open(location)
        removed = remove_leftovers(store, find_leftovers(store, run.run_id), grace_minutes=0)
        assert [leftover.shard for leftover in removed] == [1]
        assert around.listed() == whole
        stored = open_store(location).run(run.run_id)
        np.testing.assert_array_equal(stored.hidden("resid.last", 1), planted("resid.last", 1, range(5)))
        some = stored.hidden_tokens("resid.all", 0, "row in (1, 2, 4)")
        np.testing.assert_array_equal(some.hidden, planted("resid.all", 0, (1, 2, 4)))


def _array(around: Around, prefix: str) -> Any:
    """An array's objects put before zarr."""
    objects = {key.removeprefix(f"{prefix}/"): around.read(key) for key in around.listed() if key.startswith(f"{prefix}/")}
    buffers = {key: default_buffer_prototype().buffer.from_bytes(data) for key, data in objects.items()}
    return zarr.open_array(MemoryStore(buffers), mode="r")
