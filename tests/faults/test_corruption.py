"""A thousand bits flipped, objects cut short and objects removed: each is found and named, and repaired to the same bytes."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from extract.run import extract_missing, plan_run
from extract.store import Store
from extract.verify import requeue, verify
from tests.faults.around import Objects, compare, local_objects, read_around
from tests.faults.matrix import Scenario
from tests.faults.worker import Job

pytestmark = pytest.mark.faults

N_DAMAGES = 1_000
N_BATCHES = 30
DAMAGES_OF_A_BATCH = 20
KINDS = {"data": 0.4, "metadata": 0.2, "receipt": 0.2, "table": 0.1, "run.json": 0.05, "affectome.json": 0.05}


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that happened to one object."""

    key: str
    kind: str
    """A key of KINDS."""
    how: str
    """`flip`, `cut` or `remove`."""
    place: int
    """The bit that is flipped, or the length that is left."""

    def strike(self, store: Path) -> None:
        """Do it."""
        path = store / self.key
        data = bytearray(path.read_bytes())
        if self.how == "remove":
            path.unlink()
        elif self.how == "cut":
            path.write_bytes(data[: self.place])
        else:
            data[self.place // 8] ^= 1 << self.place % 8
            path.write_bytes(data)

    def named_by(self, sentence: str) -> bool:
        """Whether a sentence tells which object is damaged; a receipt that is gone is that of its shard."""
        shard = int(self.key.rpartition("/")[2].partition("-")[0]) if self.kind == "receipt" else None
        if self.kind == "metadata":  # the array that it describes
            return self.key.removesuffix("/zarr.json") in sentence
        return self.key in sentence or (self.how == "remove" and sentence.startswith(f"shard {shard}: no receipt"))


def kind_of(key: str) -> str:
    """Which of KINDS an object is."""
    if key in ("affectome.json",) or key.endswith("/run.json"):
        return key.rpartition("/")[2]
    name = key.rpartition("/")[2]
    return {"receipts": "receipt", "tables": "table", "shards": "metadata" if name == "zarr.json" else "data"}[
        key.split("/")[2]
    ]


def draw(chance: np.random.Generator, pristine: Objects, number: int) -> Damage:
    """The damage of that number: kinds of objects as in KINDS, and each way in turn."""
    kind = str(chance.choice(list(KINDS), p=list(KINDS.values())))
    key = str(chance.choice(sorted(key for key in pristine if kind_of(key) == kind)))
    how = ("flip", "cut", "remove")[number % 3]
    size = len(pristine[key])
    return Damage(key, kind, how, int(chance.integers(size if how == "cut" else size * 8)))


def found_in(store: Path) -> list[str]:
    """What the product says is wrong with a store, and why."""
    try:
        opened = Store.open(str(store))
    except ValueError as error:
        return [str(error)]
    sentences = []
    for run_id in opened.run_ids():
        try:
            sentences += [str(problem) for problem in verify(opened.run(run_id)).problems]
        except ValueError as error:
            sentences.append(str(error))
    return sentences


def repair(job: Job) -> None:
    """As `affectome verify --repair` does, and a launch of the extraction after it, until there is nothing left to repair."""
    for _ in range(3):  # what a damaged manifest or marker hides is found the next time
        Store.restore_marker(job.store)
        opened = Store.open(job.store)
        for run_id in opened.run_ids():
            try:
                run = opened.run(run_id)
            except ValueError:
                opened.forget_manifest(run_id)
                continue
            requeue(opened, run, verify(run))
        with contextlib.suppress(ValueError):  # beside a lost manifest a receipt was damaged too: repair that first
            extract_missing(plan_run(job.request(), job.store))
        if not found_in(Path(job.store)):
            return


@pytest.fixture
def small(job: Job) -> Job:
    """A finished run of four shards, computed in this process."""
    small = Job(job.model, job.store, n_rows=12, rows_per_shard=3)
    extract_missing(plan_run(small.request(), small.store))
    return small


def put_back(store: Path, pristine: Objects) -> None:
    """Make a store hold what it held, and nothing else."""
    for path in [path for path in store.rglob("*") if path.is_file()]:
        if path.relative_to(store).as_posix() not in pristine:
            path.unlink()
    for key, data in pristine.items():
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (store / key).write_bytes(data)


def test_each_of_a_thousand_damages_is_found_and_named(small: Job, scenario: Callable[[str], Scenario]) -> None:
    store = Path(small.store)
    pristine, chance = local_objects(store), np.random.default_rng(1_000)
    row, kinds = scenario("damaged objects, found"), Counter[str]()
    unnamed: list[tuple[Damage, list[str]]] = []
    for number in range(N_DAMAGES):
        damage = draw(chance, pristine, number)
        damage.strike(store)
        sentences = found_in(store)
        (store / damage.key).write_bytes(pristine[damage.key])
        row.times += 1
        kinds[damage.kind] += 1
        row.corrupt_undetected += not sentences
        if not any(damage.named_by(sentence) for sentence in sentences):
            unnamed.append((damage, sentences))
    row.note = f"{row.times - len(unnamed):,} named: " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    assert found_in(store) == []
    assert unnamed == []
    assert row.harmless, row


def test_damaged_stores_are_repaired_to_the_same_bytes(small: Job, scenario: Callable[[str], Scenario]) -> None:
    store = Path(small.store)
    pristine, chance = local_objects(store), np.random.default_rng(20)
    reference, row = read_around(pristine), scenario("damaged objects, repaired")
    for _ in range(N_BATCHES):
        damages = {damage.key: damage for damage in (draw(chance, pristine, number) for number in range(DAMAGES_OF_A_BATCH))}
        for damage in damages.values():
            damage.strike(store)
        row.times += len(damages)
        repair(small)
        assert found_in(store) == [], damages
        row.add(compare(read_around(local_objects(store)), reference))
        put_back(store, pristine)
    row.note = f"in {N_BATCHES} batches"
    assert row.harmless, row
