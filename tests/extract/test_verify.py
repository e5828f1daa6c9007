"""Whatever is damaged is found and named; looks at the objects themselves."""

import random
import shutil
from pathlib import Path

import pytest

from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store
from extract.verify import verify


@pytest.fixture(scope="module")
def whole_store(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "store"
    extract_missing(plan_run(Request(tiny_model.name, read_corpus("builtin").head(40), rows_per_shard=16), str(directory)))
    return directory


def problems(store: Path) -> list[str]:
    """What a user would be told: the verdict's sentences, or the one that opening fails with."""
    try:
        return [problem for run in Store.open(str(store)).runs() for problem in verify(run).problems]
    except ValueError as error:
        return [str(error)]


def test_a_finished_run_is_whole(whole_store: Path) -> None:
    verdict = verify(Store.open(str(whole_store)).runs()[0])
    assert verdict.whole
    assert (verdict.n_rows_whole, verdict.n_rows, verdict.n_receipts) == (40, 40, 3)
    on_disk = sum(path.stat().st_size for path in whole_store.glob("runs/*/shards/**/*") if path.is_file())
    assert verdict.n_bytes == on_disk


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_anywhere_is_found_and_named(whole_store: Path, tmp_path: Path, damage: str) -> None:
    files = sorted(path.relative_to(whole_store) for path in whole_store.glob("runs/**/*") if path.is_file())
    generator = random.Random(0)  # noqa: S311 - not cryptography
    for name in generator.sample(files, min(40, len(files))):
        store = tmp_path / "store"
        shutil.copytree(whole_store, store)
        data = bytearray((store / name).read_bytes())
        if damage == "delete":
            (store / name).unlink()
        elif damage == "truncate":
            (store / name).write_bytes(data[: generator.randrange(len(data))])
        else:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            (store / name).write_bytes(data)
        found = problems(store)
        if name.name == "run.json" and damage == "delete":
            assert Store.open(str(store)).runs() == []  # a run is its manifest: without one there is no run to verify
        elif name.parent.name == "receipts":
            assert any(f"shard {int(name.stem)}" in problem for problem in found), (name, found)
        else:
            assert any(str(name) in problem for problem in found), (name, found)
        shutil.rmtree(store)


def test_what_no_receipt_names_is_not_counted(whole_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole_store, store)
    run = Store.open(str(store)).runs()[0]
    (run.directory / "shards" / "000000-deadbeef").mkdir()
    (run.directory / "shards" / "000000-deadbeef" / "half").write_bytes(b"written by an attempt that died")
    assert verify(run).whole
