"""Imported states read as the file holds them, bit by bit; what cannot be is refused, and what dies is finished later."""

import errno
import json
import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyze.query import Run, open_store
from extract.corpus import Corpus
from extract.encoding import to_torch
from extract.garbage import find_leftovers, remove_leftovers
from extract.importing import ImportRequest, import_missing, import_states, plan_import
from extract.objects import LocalObjects
from extract.sites import Site
from extract.states_file import open_states
from extract.store import Store
from extract.stored_run import StoredRun
from extract.verify import requeue, verify
from tests.extract.state_files import bits, numbers, saved

POOLED = ("resid.last", "resid.mean", "attn_out.first", "mlp_out.prompt_last", "final_norm.prompt_mean")
PAGE = Path(__file__).parents[2] / "docs" / "store.md"


def corpus_of(n_rows: int, **columns: Sequence[object]) -> Corpus:
    table = {"utterance_id": [f"u{row}" for row in range(n_rows)], "text": [f"text {row}" for row in range(n_rows)]}
    return Corpus("made up", pa.table({**table, **columns}))


def asked(path: Path, n_rows: int, **other: Any) -> ImportRequest:
    return replace(ImportRequest(open_states(str(path)), corpus_of(n_rows), "resid.last", "them/net"), **other)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where a store may be made."""
    return str(tmp_path / "store")


@pytest.fixture
def request_(tmp_path: Path) -> ImportRequest:
    """Forty rows at three layers, in three shards."""
    return asked(saved(numbers((3, 40, 4)), tmp_path / "x.npy"), 40, rows_per_shard=16)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    site = draw(st.sampled_from(POOLED))
    n_layers = draw(st.integers(1, 9))
    there = Site.parse(site).layers(range(n_layers + 1), n_layers)
    layers = sorted(draw(st.sets(st.sampled_from(there), min_size=1, max_size=4)))
    suffix = draw(st.sampled_from([".npy", ".safetensors"]))
    return {
        "site": site,
        "n_layers": n_layers,
        "layers": layers,
        "shape": (len(layers), draw(st.integers(1, 12)), draw(st.integers(1, 7))),
        "flat": len(layers) == 1 and draw(st.booleans()),
        "suffix": suffix,
        "dtype": draw(st.sampled_from(["float32", "float16"] + ["bfloat16"] * (suffix == ".safetensors"))),
        "order": draw(st.sampled_from("CF")),
        "endian": draw(st.sampled_from("<>")),
        "rows_per_shard": draw(st.integers(2, 13)),
        "compression": draw(st.sampled_from(["none", "lz4"])),
        "block": draw(st.integers(1, 300)),
        "seed": draw(st.integers(0, 9)),
    }


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_whatever_is_imported_reads_as_the_file_holds_it(
    case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("any")
    monkeypatch.setattr("extract.importing._BLOCK_BYTES", case["block"])
    values = numbers(case["shape"], case["dtype"], case["seed"])
    path = saved(values[0] if case["flat"] else values, directory / f"x{case['suffix']}", case["order"], case["endian"])
    request = asked(
        path,
        case["shape"][1],
        site=case["site"],
        layers=",".join(map(str, case["layers"])),
        n_layers=case["n_layers"],
        rows_per_shard=case["rows_per_shard"],
        compression=case["compression"],
    )
    run = Run(import_states(request, str(directory / "store")))
    stored = run.hidden(case["site"], case["layers"], dtype="stored")
    np.testing.assert_array_equal(bits(to_torch(stored, case["dtype"])), bits(values))
    np.testing.assert_array_equal(run.hidden(case["site"], case["layers"]), values.float().numpy())
    assert verify(run.stored).problems == ()
    assert run.utterances().drop_columns(["row", "n_tokens"]).equals(request.corpus.table)
    shutil.rmtree(directory)


def test_the_same_numbers_are_the_same_run_in_whatever_file_order_or_shards(tmp_path: Path, place: str) -> None:
    values = numbers((2, 9, 5))
    files = [
        saved(values, tmp_path / "c.npy"),
        saved(values, tmp_path / "f.npy", "F", ">"),
        saved(values, tmp_path / "x.safetensors"),
    ]
    first = import_states(asked(files[0], 9), place)
    for number, path in enumerate(files):
        assert import_states(asked(path, 9), place).run_id == first.run_id
        assert import_states(asked(path, 9, model=" them/net\n", template=" unknown "), place).run_id == first.run_id
        assert import_states(asked(path, 9, rows_per_shard=2), f"{place}-{number}").run_id == first.run_id
    other = values.clone()
    other[1, 8, 4] += 1
    changed = [
        asked(saved(other, tmp_path / "o.npy"), 9),
        asked(saved(values.flip(1), tmp_path / "r.npy"), 9),
        asked(saved(values.flip(0), tmp_path / "l.npy"), 9),
        asked(saved(values.half(), tmp_path / "h.npy"), 9),
        asked(files[0], 9, model="them/other"),
        asked(files[0], 9, layers="1,2", n_layers=2),
        asked(files[0], 9, site="resid.mean"),
        asked(files[0], 9, template="raw"),
        asked(files[0], 9, corpus=corpus_of(9, text=["other"] * 9)),
    ]
    assert len({first.run_id, *(import_states(each, place).run_id for each in changed)}) == 1 + len(changed)


def test_an_imported_run_says_that_it_is_one_and_whose(request_: ImportRequest, place: str) -> None:
    run = import_states(request_, place)
    identity = run.manifest.identity
    assert identity.imported
    assert identity.weights == f"imported:them/net@sha256:{identity.states}"
    assert (identity.tokenizer, identity.compute_dtype, identity.attention) == ("unknown",) * 3
    assert run.table("utterances")["n_tokens"].null_count == 40
    assert [entry.path.rpartition("/")[2] for entry in run.manifest.tables] == ["states.parquet", "utterances.parquet"]


def test_the_stores_page_describes_every_file_and_its_example_reads_the_run(tmp_path: Path, place: str) -> None:
    values = numbers((3, 9, 5), "bfloat16")
    run = import_states(asked(saved(values, tmp_path / "x.safetensors"), 9, rows_per_shard=4), place)
    described = re.compile(
        r"run\.json|tables/[0-9a-f]{8}/(utterances|states)\.parquet|receipts/\d{6}-\d+\.json"
        r"|shards/\d{6}-[0-9a-f]{8}/resid\.last/(zarr\.json|c\.\d+\.0\.0)"
    )
    files = [str(path.relative_to(root_of(run))) for path in root_of(run).rglob("*") if path.is_file()]
    assert [name for name in files if not described.fullmatch(name)] == []
    assert "tables/ATTEMPT/states.parquet" in PAGE.read_text()
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[0].replace("STORE", place), names)  # noqa: S102 - the page's own
    np.testing.assert_array_equal(np.asarray(names["hidden"]), values[2].float().numpy())


def root_of(run: StoredRun) -> Path:
    assert isinstance(run.objects, LocalObjects)
    return run.objects.root


def test_layers_are_those_the_file_names_or_as_they_are_asked_for(tmp_path: Path, place: str) -> None:
    three, one = saved(numbers((3, 4, 2)), tmp_path / "3.npy"), saved(numbers((4, 2)), tmp_path / "1.npy")
    assert import_states(asked(three, 4), place).manifest.identity.layers == (0, 1, 2)
    run = import_states(asked(three, 4, layers="3,8:10", n_layers=12), place)
    assert (run.manifest.identity.layers, run.manifest.n_layers) == ((3, 8, 9), 12)
    said = tmp_path / "said.safetensors"
    for written, held in (
        ({"layers": [4, 6, 7], "n_layers": 9}, (4, 6, 7)),
        ({"layer": "4", "site": 4}, (0, 1, 2)),
        ({"layers": "4"}, (0, 1, 2)),
        ([], (0, 1, 2)),
    ):
        safetensors.torch.save_file({"hidden": numbers((3, 4, 2))}, said, {"affectome": json.dumps(written)})
        assert plan_import(asked(said, 4), place).run.manifest.identity.layers == held
    for request, words in (
        (asked(one, 4), "holds one layer and does not say which; give --layers"),
        (asked(three, 4, layers="1,2"), r"holds 3 layers, and 2 are named \(1,2\)"),
        (asked(three, 4, layers="2,1,3"), "layers go up as the file's first axis does"),
        (asked(three, 4, layers="1,1,2"), "layers go up"),
        (asked(three, 4, n_layers=1), "has layers 0"),
        (asked(three, 4, layers="1,2,9", n_layers=8), "has layers 0"),
        (asked(three, 4, site="attn_out.last", n_layers=2), "of a model of 2 blocks has layers from 1, not 0, 1, 2"),
        (asked(one, 4, site="final_norm.last", layers="3", n_layers=4), "has layer 4, not 3"),
        (asked(one, 4, layers="three"), "cannot read layers"),
    ):
        with pytest.raises(ValueError, match=words):
            plan_import(request, f"{place}-none")
    assert not Path(f"{place}-none").exists()


def test_the_depth_is_told_or_seen_from_the_layers_and_never_guessed(tmp_path: Path, place: str) -> None:
    three, one = saved(numbers((3, 4, 2)), tmp_path / "3.npy"), saved(numbers((4, 2)), tmp_path / "1.npy")
    said = tmp_path / "said.safetensors"
    meta = {"site": "resid.last", "layers": [1, 2, 3], "n_layers": 7}
    safetensors.torch.save_file({"hidden": numbers((3, 4, 2))}, said, {"affectome": json.dumps(meta)})
    for request, depth in (
        (asked(three, 4), 2),
        (asked(three, 4, n_layers=3), 3),
        (asked(three, 4, site="mlp_out.last", layers="1:4"), 3),
        (asked(one, 4, site="final_norm.last", layers="12"), 12),
        (asked(said, 4), 7),
        (asked(said, 4, n_layers=7), 7),
    ):
        location = f"{place}-{len(list(tmp_path.iterdir()))}"
        assert import_states(request, location).manifest.n_layers == depth
    for request in (
        asked(three, 4, layers="1:4"),
        asked(three, 4, layers="0,1,3"),
        asked(one, 4, layers="0"),
        asked(one, 4, layers="12"),
        asked(one, 4, site="mlp_out.last", layers="1"),
    ):
        with pytest.raises(ValueError, match=r"holds some of the layers of a model .*; say with --n-layers how many"):
            plan_import(request, f"{place}-none")
    assert not Path(f"{place}-none").exists()


def test_what_a_file_says_of_its_states_is_not_contradicted(tmp_path: Path, place: str) -> None:
    path = tmp_path / "x.safetensors"
    for said, other, words in (
        ({"site": "resid.last"}, {"site": "resid.mean"}, "its states are of 'resid.last', so .* cannot be .* as resid.mean"),
        ({"site": "resid.reply", "layer": 4}, {}, "its states are of 'resid.reply', so they cannot be imported as resid.last"),
        ({"site": "resid.last", "layer": 4}, {}, "says that it holds 1 layers, and it holds 3"),
        ({"layers": [0, 1]}, {}, "says that it holds 2 layers, and it holds 3"),
        ({"layers": [0, 1, 2]}, {"layers": "10:13"}, "says that it holds layers 0, 1, 2, not 10, 11, 12"),
        ({"n_layers": 9}, {"n_layers": 12}, "says that its model has 9 blocks, not 12"),
        ({"n_layers": 10**9}, {}, "there must be 1 to 9,999 blocks of a model, not 1,000,000,000"),
    ):
        safetensors.torch.save_file({"hidden": numbers((3, 4, 2))}, path, {"affectome": json.dumps(said)})
        with pytest.raises(ValueError, match=words) as refused:
            plan_import(asked(path, 4, **other), place)
        assert "\n" not in str(refused.value)
    assert not Path(place).exists()
    both = {"hidden": numbers((3, 4, 2)), "other": numbers((3, 4, 2), seed=1)}
    safetensors.torch.save_file(both, path, {"affectome": json.dumps({"site": "resid.mean", "layers": [4, 5, 6]})})
    run = import_states(asked(path, 4, states=open_states(str(path), "other")), place)
    assert run.manifest.identity.layers == (0, 1, 2)  # what is said is said of `hidden`


def test_what_does_not_fit_together_is_refused_before_anything_is_written(tmp_path: Path, place: str) -> None:
    path = saved(numbers((2, 4, 3)), tmp_path / "x.npy")
    for request, words in (
        (asked(path, 5), "holds states of 4 utterances .* has 5; row i of one must be row i of the other"),
        (asked(path, 4, site="resid.all"), "keeps several vectors for each utterance"),
        (asked(path, 4, site="resid.offset"), "keeps several vectors"),
        (asked(path, 4, site="resid"), "there is no site 'resid'"),
        (asked(path, 4, model=" "), "say which model"),
        (asked(path, 4, template=" "), "say which model"),
        (asked(path, 4, model="net\udcff"), "say which model made the states, in letters that print"),
        (asked(path, 4, model="net\nwork"), "in letters that print"),
        (asked(path, 4, template="\udcff"), "the template is not text in UTF-8"),
        (asked(path, 4, compression="zip"), "no compression; choose from none, lz4"),
        (asked(path, 4, rows_per_shard=0), "there must be 1 to 2,147,483,647 rows per shard, not 0"),
        (asked(path, 4, rows_per_shard=1 << 31), "rows per shard, not 2,147,483,648"),
        (asked(path, 4, n_layers=0), "there must be 1 to 9,999 blocks of a model, not 0"),
        (asked(path, 4, n_layers=10**20), "blocks of a model, not 100,000,000,000,000,000,000"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            plan_import(request, place)
        assert "\n" not in str(refused.value)
    assert not Path(place).exists()


@pytest.mark.parametrize(("dtype", "suffix"), [("float32", ".npy"), ("float16", ".npy"), ("bfloat16", ".safetensors")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused_with_its_row_and_layer(
    tmp_path: Path, place: str, dtype: str, suffix: str, bad: float
) -> None:
    values = numbers((2, 30, 3), dtype)
    values[1, 17, 2] = bad
    with pytest.raises(ValueError, match=rf"holds {bad} at row 17, id 'u17', layer 8; .* finite"):
        plan_import(asked(saved(values, tmp_path / f"x{suffix}"), 30, layers="4,8", n_layers=8), place)
    assert not Path(place).exists()


class _Stop(BaseException):
    """As a process that is killed: nothing after it runs."""


def test_what_died_is_finished_by_the_same_import(request_: ImportRequest, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_import(request_, place)
    commit = StoredRun.commit
    with monkeypatch.context() as patched:
        patched.setattr(StoredRun, "commit", lambda run, receipt: _stop() if receipt.shard == 1 else commit(run, receipt))
        with pytest.raises(_Stop):
            import_missing(plan)
    before = {receipt.shard: receipt for receipt in plan.run.receipts()}
    assert set(before) == {0}
    with pytest.raises(ValueError, match="launch the same affectome import again to finish it"):
        Run(plan.run).hidden("resid.last", 1)
    again = plan_import(request_, place)
    assert [receipt.shard for receipt in import_missing(again)] == [1, 2]
    assert again.run.receipts()[0] == before[0]
    assert verify(again.run).whole
    store = Store.open(place)
    (left,) = find_leftovers(store, again.run.run_id)
    assert remove_leftovers(store, [left], grace_minutes=0) == [left]
    assert verify(again.run).whole


def _stop() -> bool:
    raise _Stop


@pytest.mark.parametrize("full", ["tables", "shards"])
def test_a_full_disk_leaves_nothing_half_and_the_import_is_finished_later(
    request_: ImportRequest, place: str, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    write, n_written = LocalObjects.write, [0]

    def fails(objects: LocalObjects, key: str, parts: Any) -> None:
        n_written[0] += key.startswith(full)
        if n_written[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(objects, key, parts)

    with monkeypatch.context() as patched:
        patched.setattr(LocalObjects, "write", fails)
        with pytest.raises(OSError, match="No space left"):
            import_states(request_, place)
    store = Store.open(place)
    for run_id in store.run_ids():
        assert find_leftovers(store, run_id) == []
    assert len(store.run_ids()) == (full == "shards")
    run = import_states(request_, place)
    assert verify(run).whole
    assert find_leftovers(store, run.run_id) == []


def test_two_at_once_share_the_shards_and_both_end_well(tmp_path: Path, place: str) -> None:
    path = saved(numbers((2, 60, 4)), tmp_path / "x.npy")
    runs: list[StoredRun] = []
    together = threading.Barrier(3)

    def one() -> None:
        together.wait()
        runs.append(import_states(asked(path, 60, rows_per_shard=3), place))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 3
    assert len({run.run_id for run in runs}) == 1
    assert verify(runs[0]).whole
    assert find_leftovers(Store.open(place), runs[0].run_id) == []


def test_a_file_that_changes_while_it_is_imported_is_found_out(request_: ImportRequest, place: str) -> None:
    plan = plan_import(request_, place)
    values = np.load(request_.states.path, mmap_mode="r+")
    values[2, 20, 1] += 1
    values.flush()
    with pytest.raises(ValueError, match=r"x\.npy changed while it was imported; import it again"):
        import_missing(plan)
    again = open_states(str(request_.states.path))  # as if it had changed before
    plan = replace(plan, states=again)
    with pytest.raises(ValueError, match=r"x\.npy changed while it was imported: rows 16 to 31 are not what they were"):
        import_missing(plan)
    assert [receipt.shard for receipt in plan.run.receipts()] == [0]
    assert find_leftovers(Store.open(place), plan.run.run_id) == []


def test_whatever_is_damaged_is_found_taken_back_and_put_back_by_the_same_import(
    request_: ImportRequest, place: str, tmp_path: Path
) -> None:
    whole = import_states(request_, place)
    expected = Run(whole).hidden("resid.last", (0, 1, 2), dtype="stored")
    names = sorted(path.relative_to(place) for path in root_of(whole).rglob("*") if path.is_file())
    assert len(names) == 18
    for number, name in enumerate(names):
        damaged = tmp_path / f"damaged-{number}"
        shutil.copytree(place, damaged)
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 4
        (damaged / name).write_bytes(data)
        store = Store.open(str(damaged))
        try:
            run = store.run(whole.run_id)
        except ValueError:
            store.forget_manifest(whole.run_id)
        else:
            verdict = verify(run)
            assert not verdict.whole, name
            requeue(store, run, verdict)
        again = import_states(replace(request_, rows_per_shard=7), str(damaged))
        assert again.manifest.rows_per_shard == 16
        assert verify(again).problems == ()
        np.testing.assert_array_equal(Run(again).hidden("resid.last", (0, 1, 2), dtype="stored"), expected)
        shutil.rmtree(damaged)


def test_digests_of_other_states_than_were_imported_are_found(request_: ImportRequest, place: str, tmp_path: Path) -> None:
    """As somebody would have to do it who knows the format: every digest but the identity's fits."""
    other = numbers((3, 40, 4), seed=1)
    run, strange = (
        import_states(request_, place),
        import_states(asked(saved(other, tmp_path / "y.npy"), 40, rows_per_shard=16), f"{place}-other"),
    )
    forged = replace(run.manifest, tables=strange.manifest.tables)
    shutil.copytree(root_of(strange) / "tables", root_of(run) / "tables", dirs_exist_ok=True)
    problems = [str(problem) for problem in verify(StoredRun(run.objects, forged)).problems]
    assert problems == ["states.parquet holds other digests than those of the states that were imported"]


def test_a_run_that_is_there_keeps_its_labels_and_its_model(tmp_path: Path, place: str) -> None:
    path = saved(numbers((2, 4, 3)), tmp_path / "x.npy")
    run = import_states(asked(path, 4, corpus=corpus_of(4, label=["a"] * 4)), place)
    with pytest.raises(ValueError, match="other values in label"):
        import_states(asked(path, 4, corpus=corpus_of(4, label=["b"] * 4)), place)
    with pytest.raises(ValueError, match="as those of a model of 1 blocks"):
        import_states(asked(path, 4, corpus=corpus_of(4, label=["a"] * 4), n_layers=5), place)
    assert open_store(place).run(run.run_id).utterances()["label"].to_pylist() == ["a"] * 4
