"""Whatever writers, kills, damage, repair and gc do in whatever order, nobody reads a wrong number and nothing whole is lost.

The machine looks at the files themselves: a shard is whole when the last entry of its log is the receipt that was committed
and each file it names has the digest it names.
"""

import hashlib
import random
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from analyze.query import open_store
from extract.arrays import open_array
from extract.documents import Receipt
from extract.encoding import Layout
from extract.garbage import find_leftovers, remove_leftovers
from extract.objects import LocalObjects
from extract.store import Store
from extract.stored_run import attempt_prefix, log_key
from extract.verify import Verdict, requeue, verify
from tests.planted import LAYERS, ROWS, SITES, plant_run, planted, write_planted

_LOG_FILE = re.compile(r"(\d{6})-(\d+)\.json")
SHARDS = st.integers(0, 2)
CHOICES = st.integers(0, 1 << 16)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store.open(self.directory.name + "/store", create=True)
        self.run = plant_run(self.store)
        assert isinstance(self.run.objects, LocalObjects)
        self.root: Path = self.run.objects.root
        self.logs: dict[int, dict[int, tuple[Receipt | None, bytes]]] = defaultdict(dict)
        """For each shard what its log should hold: receipts or voids (None), and their bytes."""
        self.computing: list[tuple[int, int]] = []
        """Writers that began: shard, and the number of their entry."""
        self.asleep: list[Receipt] = []
        """Writers whose objects were written."""
        self.lost_entries: set[int] = set()
        """Shards whose log lost an entry, which nothing can make good."""
        self.verdict: Verdict | None = None
        self.known: dict[str, Layout] = {}

    # What there is.

    def on_disk(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.exists() else None

    def last(self, shard: int) -> Receipt | None:
        entries = self.logs[shard]
        return entries[max(entries)][0] if entries else None

    def log_is_damaged(self, shard: int) -> bool:
        entries = self.logs[shard]
        return bool(entries) and self.on_disk(log_key(shard, max(entries))) != entries[max(entries)][1]

    def is_whole(self, shard: int) -> bool:
        receipt = self.last(shard)
        if receipt is None or self.log_is_damaged(shard):
            return False
        files = [(self.on_disk(entry.path), entry.sha256) for entry in receipt.objects]
        return all(data is not None and hashlib.sha256(data).hexdigest() == digest for data, digest in files)

    def whole(self) -> list[int]:
        return [shard for shard in range(3) if self.is_whole(shard)]

    def absorb_voids(self) -> set[int]:
        """Take note of new entries of logs, which have to be voids; the shards that got one."""
        voided = set()
        for path in (self.root / "receipts").glob("*"):
            match = _LOG_FILE.fullmatch(path.name)
            assert match, path
            shard, entry = int(match[1]), int(match[2])
            if entry not in self.logs[shard]:
                data = path.read_bytes()
                assert b'"kind": "void"' in data
                self.logs[shard][entry] = (None, data)
                voided.add(shard)
        return voided

    # Writers.

    @rule(shard=SHARDS)
    def begin(self, shard: int) -> None:
        if self.last(shard) is None and not self.log_is_damaged(shard):
            self.computing.append((shard, self.run.log_lengths().get(shard, 0)))

    @precondition(lambda self: self.computing)
    @rule(choice=CHOICES)
    def write(self, choice: int) -> None:
        self.asleep.append(write_planted(self.run, *self.computing.pop(choice % len(self.computing))))

    @precondition(lambda self: self.computing)
    @rule(choice=CHOICES, generator=st.randoms(use_true_random=False))
    def die_while_writing(self, choice: int, generator: random.Random) -> None:
        receipt = write_planted(self.run, *self.computing.pop(choice % len(self.computing)))
        for entry in generator.sample(receipt.objects, generator.randint(1, len(receipt.objects))):
            (self.root / entry.path).unlink()

    @precondition(lambda self: self.asleep)
    @rule(choice=CHOICES)
    def commit(self, choice: int) -> None:
        receipt = self.asleep.pop(choice % len(self.asleep))
        shard, prefix = receipt.shard, self.root / attempt_prefix(receipt.shard, receipt.attempt)
        there, whole_before = prefix.exists(), self.whole()
        won = self.run.commit(receipt)
        assert won == (receipt.entry not in self.logs[shard])
        assert prefix.exists() == (won and there)
        if won:
            assert there or shard in self.lost_entries
            data = self.on_disk(log_key(shard, receipt.entry))
            assert data is not None
            self.logs[shard][receipt.entry] = (receipt, data)
            assert self.is_whole(shard) or shard in self.lost_entries
        assert set(whole_before) <= set(self.whole()) | self.lost_entries

    @rule(shard=SHARDS)
    def extract(self, shard: int) -> None:
        """A writer that nothing interrupts, while others sleep."""
        if self.last(shard) is None and not self.log_is_damaged(shard):
            self.asleep.append(write_planted(self.run, shard, self.run.log_lengths().get(shard, 0)))
            self.commit(len(self.asleep) - 1)

    # Damage.

    @rule(shard=SHARDS, how=st.sampled_from(["flip", "cut", "remove"]), generator=st.randoms(use_true_random=False))
    def damage(self, shard: int, how: str, generator: random.Random) -> None:
        receipt, entries = self.last(shard), self.logs[shard]
        keys = [log_key(shard, max(entries))] if entries else []
        keys += [entry.path for entry in receipt.objects] if receipt else []
        if not keys:
            return
        key = generator.choice(keys)
        data = self.on_disk(key)
        if not data:
            return
        if how == "remove":
            (self.root / key).unlink()
            if key == log_key(shard, max(entries)):
                del entries[max(entries)]
                self.lost_entries.add(shard)
        elif how == "cut":
            (self.root / key).write_bytes(data[: generator.randrange(len(data))])
        else:
            place = generator.randrange(len(data))
            changed = bytes([data[place] ^ 1 << generator.randrange(8)])
            (self.root / key).write_bytes(data[:place] + changed + data[place + 1 :])

    # Operators.

    @rule()
    def look(self) -> None:
        self.verdict = verify(self.run)
        assert set(self.verdict.damaged_shards) == set(range(3)) - set(self.whole())
        assert not self.verdict.damaged_tables

    @precondition(lambda self: self.verdict is not None)
    @rule()
    def repair(self) -> None:
        """With a verdict that may be old."""
        assert self.verdict is not None
        whole = self.whole()
        requeue(self.store, self.run, self.verdict)
        assert not self.absorb_voids() & set(whole)
        assert self.whole() == whole

    @rule()
    def collect(self) -> None:
        whole = self.whole()
        if any(self.log_is_damaged(shard) for shard in range(3)):
            before = sorted(self.root.rglob("*"))
            with pytest.raises(ValueError, match="receipts/"):
                find_leftovers(self.store, self.run.run_id)
            assert sorted(self.root.rglob("*")) == before
            return
        remove_leftovers(self.store, find_leftovers(self.store, self.run.run_id), grace_minutes=0)
        assert not self.absorb_voids() & set(whole)
        assert self.whole() == whole
        named = {attempt_prefix(shard, last.attempt) for shard in range(3) if (last := self.last(shard))}
        assert {f"shards/{path.name}" for path in (self.root / "shards").glob("*")} <= named

    # Readers.

    @rule(site=st.sampled_from(SITES), layer=st.sampled_from(LAYERS), rows=st.sets(st.integers(0, ROWS - 1), min_size=1))
    def read(self, site: str, layer: int, rows: set[int]) -> None:
        run, where = open_store(self.store.location).run(self.run.run_id), f"row in ({', '.join(map(str, rows))})"
        try:
            read = run.hidden(site, layer, where) if site == "resid.last" else run.hidden_tokens(site, layer, where).hidden
        except ValueError:
            assert self.whole() != [0, 1, 2]
        else:
            np.testing.assert_array_equal(read, planted(site, layer, sorted(rows)))

    @invariant()
    def what_is_whole_is_read(self) -> None:
        for shard in self.whole():
            receipt = self.run.receipt(shard)
            assert receipt == self.last(shard)
            assert receipt is not None
            for site in SITES:
                array = open_array(self.run.objects, receipt, site, self.known)
                for index, layer in enumerate(LAYERS):
                    expected = planted(site, layer, range(receipt.start, receipt.stop))
                    hidden = np.empty_like(expected)
                    array.read_layer(index, hidden)
                    np.testing.assert_array_equal(hidden, expected)

    def teardown(self) -> None:
        """However it went, repair and another launch make the run whole, and sleepers and gc leave it so."""
        try:
            self.look()
            self.repair()
            for shard in range(3):
                self.extract(shard)
            assert verify(self.run).whole
            while self.asleep:
                self.commit(0)
            self.collect()
            assert verify(self.run).whole
            for layer in LAYERS:
                self.read("resid.all", layer, set(range(ROWS)))
        finally:
            self.directory.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)
