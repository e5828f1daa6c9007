"""Whatever is damaged is found and named, taken back, and done again to the same bytes; looks at the objects themselves."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store
from extract.stored_run import StoredRun, log_key
from extract.tokens import Prompt
from extract.verify import requeue, verify

Damage = Callable[[Path, random.Random], None]


@pytest.fixture(scope="module")
def request_of(tiny_model: Model) -> Request:
    """Forty utterances in three shards, every token among what is kept."""
    return Request(tiny_model.name, read_corpus("builtin").head(40), sites="resid.all,resid.last", rows_per_shard=16)


@pytest.fixture(scope="module")
def whole_store(request_of: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "store"
    extract_missing(plan_run(request_of, str(directory)))
    return directory


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(whole_store, tmp_path / "store"))


def the_run(store: Path) -> StoredRun:
    (run,) = Store.open(str(store)).runs()
    return run


def problems(store: Path) -> list[str]:
    """What a user would be told: the verdict's sentences, or the one that opening fails with."""
    try:
        return [str(problem) for run in Store.open(str(store)).runs() for problem in verify(run).problems]
    except ValueError as error:
        return [str(error)]


def digests(run: StoredRun) -> set[tuple[str, str]]:
    """The objects that count, without the names of attempts."""
    return {(entry.path.split("/", 2)[2], entry.sha256) for receipt in run.receipts() for entry in receipt.objects}


def flip(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, generator: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: generator.randrange(len(data))])


def delete(path: Path, _: random.Random) -> None:
    path.unlink()


_any_damage = pytest.mark.parametrize("damage", [flip, truncate, delete])


def repair_and_launch(store: Path, request: Request) -> StoredRun:
    """As `affectome verify --repair` and `affectome extract` do."""
    Store.restore_marker(str(store))
    opened = Store.open(str(store))
    for run_id in opened.run_ids():
        try:
            run = opened.run(run_id)
        except ValueError:
            opened.forget_manifest(run_id)
        else:
            requeue(opened, run, verify(run))
    plan = plan_run(request, str(store))
    extract_missing(plan)
    return plan.run


def test_a_finished_run_is_whole(whole_store: Path) -> None:
    verdict = verify(the_run(whole_store))
    assert verdict.whole
    assert (verdict.n_rows_whole, verdict.n_rows, verdict.n_receipts) == (40, 40, 3)
    on_disk = sum(path.stat().st_size for path in whole_store.glob("runs/*/shards/**/*") if path.is_file())
    assert verdict.n_bytes == on_disk


@_any_damage
def test_damage_anywhere_is_found_and_named(whole_store: Path, store: Path, damage: Damage) -> None:
    files = sorted(path.relative_to(whole_store) for path in whole_store.glob("**/*") if path.is_file())
    assert len(files) == 1 + 1 + 2 + 3 + 3 * 2 * (1 + 4)
    generator = random.Random(0)  # noqa: S311 - not cryptography
    for name in files:
        damage(store / name, generator)
        found = problems(store)
        if name.parent.name == "receipts":
            assert any(f"shard {int(name.stem.partition('-')[0])}" in problem for problem in found), (name, found)
        elif name.name == "affectome.json":
            assert all("affectome.json" in problem for problem in found), found
            assert found
        else:
            spoiled = name.parent if name.name == "zarr.json" else name
            assert any(str(spoiled) in problem for problem in found), (name, found)
        shutil.copy(whole_store / name, store / name)
    assert problems(store) == []


@_any_damage
@pytest.mark.parametrize(
    "victim",
    [
        "affectome.json",
        "runs/*/run.json",
        "runs/*/tables/*/utterances.parquet",
        "runs/*/tables/*/tokens.parquet",
        "runs/*/receipts/000002-0.json",
        "runs/*/shards/000001-*/resid.all/zarr.json",
        "runs/*/shards/000000-*/resid.all/c.2.0.0",
    ],
)
def test_what_was_damaged_is_repaired_to_the_same_bytes_and_nothing_else_is_done_again(
    request_of: Request, whole_store: Path, store: Path, victim: str, damage: Damage
) -> None:
    (path,) = store.glob(victim)
    damage(path, random.Random(1))  # noqa: S311
    run = repair_and_launch(store, request_of)
    assert verify(run).problems == ()
    whole = the_run(whole_store)
    assert digests(run) == digests(whole)
    spoiled = {int(part[:6]) for part in Path(victim).parts if part.startswith("00000")}
    assert {new.shard for new, old in zip(run.receipts(), whole.receipts(), strict=True) if new != old} == spoiled
    for name in ("utterances", "tokens"):
        assert run.table(name).equals(whole.table(name))


def test_a_fast_check_reads_no_data_object_and_still_misses_no_receipt(store: Path) -> None:
    run = the_run(store)
    for path in [*store.glob("runs/*/shards/*"), *store.glob("runs/*/tables")]:
        shutil.rmtree(path)
    verdict = verify(run, fast=True)
    assert verdict.whole
    assert (verdict.n_rows_whole, verdict.n_objects, verdict.n_bytes) == (40, 0, 0)
    assert len(verify(run).problems) == 2 + 3 * 2 * (1 + 4)
    run.objects.remove(log_key(1, 0))
    assert [problem.shard for problem in verify(run, fast=True).problems] == [1]


def test_what_no_receipt_names_is_not_counted(store: Path) -> None:
    run = the_run(store)
    run.objects.write("shards/000000-deadbeef/half", [b"written by an attempt that died"])
    assert verify(run).whole


def prompts_or_sentence(run: StoredRun) -> list[Prompt] | str:
    """The tokens of shard 1, or how the sentence begins that refuses them."""
    try:
        return run.prompts(1)
    except ValueError as error:
        return str(error).partition(":")[0]


def test_tokens_damaged_before_a_shard_was_done_are_refused_by_path_or_read_right(store: Path, request_of: Request) -> None:
    run = the_run(store)
    run.void(1, 1, "to be done again")
    path = Path(run.objects.url(next(entry.path for entry in run.manifest.tables if "tokens" in entry.path)))
    whole = path.read_bytes()
    expected = prompts_or_sentence(run)
    assert not isinstance(expected, str)
    for place in range(0, len(whole), max(1, len(whole) // 25)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert prompts_or_sentence(run) in (f"{path} cannot be read", expected)
    path.write_bytes(whole)
    assert verify(repair_and_launch(store, request_of)).whole


def test_a_manifest_made_anew_is_cut_and_batched_as_the_shards_that_stayed(store: Path, request_of: Request) -> None:
    before = the_run(store)
    (store / "runs" / before.run_id / "run.json").unlink()
    log = store / "runs" / before.run_id / "receipts" / "000002-0.json"
    log.unlink()
    plan = plan_run(replace(request_of, rows_per_shard=7, token_budget=99), str(store))
    assert (plan.run.manifest.rows_per_shard, plan.run.manifest.token_budget) == (16, before.manifest.token_budget)
    assert [task.shard for task in plan.tasks()] == [2]
    extract_missing(plan)
    assert verify(plan.run).whole
