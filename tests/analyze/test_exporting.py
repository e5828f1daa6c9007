"""Files of answers and of states hold what was asked for, say what it is of, and are whole or not there."""

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from analyze.exporting import ANSWERS, DATASET, SLICES, Slice, target, write_answer, write_slice
from analyze.query import Run, open_store
from analyze.sql import answer
from tests.analyze.conftest import Columns, Plant

N_ROWS, WIDTH = 23, 3
FILES = tuple(suffix for suffix in SLICES if suffix != DATASET)


@dataclass(frozen=True, slots=True)
class Known:
    """A run and the numbers in it."""

    run: Run
    hidden: NDArray[np.float32]


@pytest.fixture(scope="module", params=["bfloat16", "float32", "float16"])
def known(request: pytest.FixtureRequest, plant: Plant) -> Known:
    hidden = np.random.default_rng(2).standard_normal((2, N_ROWS, WIDTH)).astype(np.float32)
    columns: Columns = {
        "label": ["joy", "fear", None] * 7 + ["joy", "fear"],
        "tags": [["a"] * (row % 3) for row in range(N_ROWS)],
    }
    run = plant(hidden, columns, rows_per_shard=7, stored_dtype=request.param)
    return Known(run, torch.from_numpy(hidden).to(getattr(torch, request.param)).float().numpy())


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    return plant(np.zeros((1, 3, 2), np.float32), {})


def written(states: Slice, path: Path) -> Path:
    write_slice(states, path)
    assert list(path.parent.iterdir()) == [path]
    return path


@pytest.mark.parametrize("where", [None, "label = 'joy' AND row > 3", "row < 0"])
def test_every_format_holds_the_states_of_the_condition_in_corpus_order(
    known: Known, where: str | None, tmp_path: Path
) -> None:
    states = Slice.of(known.run, "resid.last", 1, where)
    utterances = known.run.utterances(where)
    expected = known.hidden[1][utterances["row"].to_numpy()]
    for suffix in FILES:
        (tmp_path / suffix).mkdir()
    array = np.load(written(states, tmp_path / ".npy" / "x.npy"), allow_pickle=False)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)
    table = pyarrow.parquet.read_table(written(states, tmp_path / ".parquet" / "x.parquet"))
    assert table.column_names == [*utterances.column_names, "hidden"]
    assert table.drop_columns(["hidden"]).cast(utterances.schema).equals(utterances)
    assert table.schema.field("hidden").type == pa.list_(pa.float32(), WIDTH)
    np.testing.assert_array_equal(np.array(table["hidden"].to_pylist(), np.float32).reshape(-1, WIDTH), expected)
    path = written(states, tmp_path / ".safetensors" / "x.safetensors")
    tensors = safetensors.torch.load_file(path)
    stored = known.run.manifest.identity.stored_dtype
    assert tensors["hidden"].dtype == getattr(torch, stored)
    np.testing.assert_array_equal(tensors["hidden"].float().numpy(), expected)
    assert tensors["row"].tolist() == utterances["row"].to_pylist()
    with safe_open(path, "np") as file:
        said = json.loads(file.metadata()["affectome"])
    assert said == json.loads(table.schema.metadata[b"affectome"])
    assert (said["run_id"], said["site"], said["layer"], said["where"]) == (known.run.run_id, "resid.last", 1, where)
    assert said["stored_dtype"] == stored


def test_offsets_are_an_axis_in_every_format(plant: Plant, tmp_path: Path) -> None:
    hidden = np.random.default_rng(0).standard_normal((1, 9, 3, 4)).astype(np.float32)
    states = Slice.of(plant(hidden, {}, offsets=(0, 1, 4), rows_per_shard=4), "resid.offset", 0, "row % 2 = 1")
    for suffix, read in (
        (".npy", np.load),
        (".parquet", lambda path: np.array(pyarrow.parquet.read_table(path)["hidden"].to_pylist(), np.float32)),
        (".safetensors", lambda path: safetensors.torch.load_file(path)["hidden"].numpy()),
    ):
        assert write_slice(states, tmp_path / f"x{suffix}") == (4, 3, 4)
        np.testing.assert_array_equal(read(tmp_path / f"x{suffix}"), hidden[0, 1::2])
    assert states.provenance["offsets"] == [0, 1, 4]


@pytest.mark.parametrize("where", [None, "row > 3", "row < 0"])
def test_several_layers_are_an_axis_or_a_column_each(known: Known, where: str | None, tmp_path: Path) -> None:
    states, rows = Slice.of(known.run, "resid.last", (0, 1), where), known.run.utterances(where)["row"].to_numpy()
    expected = known.hidden[:, rows]
    for suffix in FILES:
        assert write_slice(states, tmp_path / f"x{suffix}") == expected.shape
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    for layer in (0, 1):
        kept = np.array(table[f"hidden_{layer}"].to_pylist(), np.float32).reshape(-1, WIDTH)
        np.testing.assert_array_equal(kept, expected[layer])
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["hidden"].float().numpy(), expected)
    assert tensors["row"].tolist() == rows.tolist()
    assert json.loads(table.schema.metadata[b"affectome"])["layers"] == [0, 1]


def test_pieces_are_as_large_as_memory_allows_and_leave_no_row_out(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 1, 2, 4, 1, 1, 2]
    hidden = np.random.default_rng(0).standard_normal((2, sum(lengths), 2)).astype(np.float32)
    run = plant(hidden, {}, lengths=lengths, rows_per_shard=2)
    whole = Slice.of(run, "resid.all", (0, 1))
    write_slice(whole, tmp_path / "x.parquet")
    monkeypatch.setattr("analyze.exporting._GROUP_BYTES", 64)  # two rows of the mean length
    write_slice(whole, tmp_path / "y.parquet")
    assert pyarrow.parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == 1
    assert pyarrow.parquet.ParquetFile(tmp_path / "y.parquet").num_row_groups == 4
    assert pyarrow.parquet.read_table(tmp_path / "y.parquet").equals(pyarrow.parquet.read_table(tmp_path / "x.parquet"))
    write_slice(whole, tmp_path / "x.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["hidden"].numpy(), hidden)
    assert tensors["row_offsets"].tolist() == [0, *itertools.accumulate(lengths)]


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(plant: Plant, tmp_path: Path) -> None:
    run = plant(np.zeros((2, 3, 2), np.float32), {}, layers=(3, 8))
    with pytest.raises(ValueError, match=r"does not hold layer 5 of resid\.last; it holds 3, 8"):
        write_slice(Slice.of(run, "resid.last", (3, 5)), tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [None, "row % 2 = 1", "row < 0"])
def test_of_every_token_each_utterance_keeps_its_own_number(plant: Plant, tmp_path: Path, where: str | None) -> None:
    lengths = [2, 1, 4, 3, 1]
    hidden = np.random.default_rng(0).standard_normal((1, sum(lengths), 2)).astype(np.float32)
    run = plant(hidden, {}, lengths=lengths, rows_per_shard=2)
    bounds = np.cumsum([0, *lengths])
    rows = run.utterances(where)["row"].to_pylist()
    expected = [hidden[0, bounds[row] : bounds[row + 1]].tolist() for row in rows]
    states = Slice.of(run, "resid.all", 0, where)
    write_slice(states, tmp_path / "x.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet")["hidden"].to_pylist() == expected
    write_slice(states, tmp_path / "x.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    begins = tensors["row_offsets"].tolist()
    assert [tensors["hidden"][a:b].tolist() for a, b in itertools.pairwise(begins)] == expected
    with pytest.raises(ValueError, match=r"resid\.all keeps every token, .*; write \.parquet or \.safetensors"):
        write_slice(states, tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()


def test_a_condition_that_chooses_others_each_time_still_gives_the_states_of_the_rows(plant: Plant, tmp_path: Path) -> None:
    hidden = np.arange(200, dtype=np.float32).reshape(1, 200, 1)
    for site, run in (("resid.last", plant(hidden, {})), ("resid.all", plant(hidden, {}, lengths=[1] * 200))):
        write_slice(Slice.of(run, site, 0, "random() < 0.5"), tmp_path / "x.safetensors")
        tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
        assert 0 < len(tensors["row"]) < 200
        assert tensors["hidden"][:, 0].tolist() == tensors["row"].tolist()


def test_a_corpus_with_a_column_called_as_the_states_keeps_it(plant: Plant, tmp_path: Path) -> None:
    states = Slice.of(plant(np.zeros((1, 3, 2), np.float32), {"hidden": ["x"] * 3}), "resid.last", 0)
    with pytest.raises(ValueError, match=r"has a column 'hidden' of its own.*write \.safetensors"):
        write_slice(states, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "HUGEINT": st.integers(-(10**37), 10**37),
    "DOUBLE": st.floats(width=64),
    "VARCHAR": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "BOOLEAN": st.booleans(),
    "DATE": st.dates(),
    "TIMESTAMP": st.datetimes(),
}


def literal(kind: str, value: Any) -> str:
    if value is None:
        return f"NULL::{kind}"
    return "'" + str(value).replace("'", "''") + f"'::{kind}"


def as_json(kind: str, value: Any) -> Any:
    """What JSON should say, by rules of its own."""
    if value is None or kind in ("BIGINT", "HUGEINT", "VARCHAR", "BOOLEAN"):
        return value
    if kind == "DOUBLE":
        return value if np.isfinite(value) else None
    return value.isoformat()


def rows_of(drawn: Sequence[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
    return [{f"c{i}": as_json(kind, values[row]) for i, (kind, values) in enumerate(drawn)} for row in range(3)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(
        st.sampled_from(list(_KINDS)).flatmap(
            lambda kind: st.tuples(st.just(kind), st.lists(st.none() | _KINDS[kind], min_size=3, max_size=3))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_answer_is_in_its_files_as_it_was(run: Run, tmp_path: Path, drawn: list[tuple[str, list[Any]]]) -> None:
    rows = ", ".join("(" + ", ".join(literal(kind, values[row]) for kind, values in drawn) + ")" for row in range(3))
    sql = f"FROM (VALUES {rows}) AS v({', '.join(f'c{i}' for i in range(len(drawn)))}) SELECT *, 'no blank line' AS one"
    store = open_store(run.stored.store_location)
    for suffix in ANSWERS:
        with answer(store, sql) as found:
            assert write_answer(found, tmp_path / f"x{suffix}") == 3
    assert json.loads((tmp_path / "x.json").read_text()) == [{**row, "one": "no blank line"} for row in rows_of(drawn)]
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    for i, (kind, values) in enumerate(drawn):
        found_values = table[f"c{i}"].to_pylist()
        if kind == "DOUBLE":
            np.testing.assert_array_equal(np.array(found_values, float), np.array(values, float))
        else:
            assert found_values == values
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 3
    for i, (kind, values) in enumerate(drawn):
        if kind in ("BIGINT", "HUGEINT", "VARCHAR"):
            assert [row[f"c{i}"] for row in read] == ["" if value is None else str(value) for value in values]


def test_nested_values_and_intervals_find_a_form_in_every_format(run: Run, tmp_path: Path) -> None:
    sql = "SELECT [1, NULL] AS l, {'a': 'nan'::DOUBLE} AS s, MAP {'k': 2} AS m, INTERVAL 2 DAY AS i, 'ab'::BLOB AS b, 1.5 AS d"
    for suffix in ANSWERS:
        with answer(open_store(run.stored.store_location), sql) as found:
            write_answer(found, tmp_path / f"x{suffix}")
    interval = {"months": 0, "days": 2, "nanoseconds": 0}
    plain = {"l": [1, None], "s": {"a": None}, "m": {"k": 2}, "i": interval, "b": "6162", "d": 1.5}
    assert json.loads((tmp_path / "x.json").read_text()) == [plain]
    with (tmp_path / "x.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: json.loads(row[name]) for name in ("l", "s", "m", "i")} == {
        name: plain[name] for name in ("l", "s", "m", "i")
    }
    (kept,) = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert (kept["l"], kept["m"], kept["b"]) == ([1, None], [("k", 2)], b"ab")


def test_an_answer_that_fails_half_way_leaves_what_was_there(run: Run, tmp_path: Path) -> None:
    sql = "SELECT CASE WHEN range < 90000 THEN range ELSE error('too far') END AS n FROM range(100000)"
    for suffix in ANSWERS:
        path = tmp_path / f"x{suffix}"
        path.write_text("before")
        with answer(open_store(run.stored.store_location), sql) as found, pytest.raises(ValueError, match="too far"):
            write_answer(found, path)
        assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == len(ANSWERS)


def test_a_place_that_cannot_be_written_to_is_refused_with_the_choices(run: Run, tmp_path: Path) -> None:
    objects = open_store(run.stored.store_location).stored.objects
    for name, said in (
        ("x.txt", "let its name end in .npy, .parquet, .safetensors, .dataset"),
        ("x", "let its name end in"),
        ("none/x.npy", f"no directory {tmp_path / 'none'}"),
        ("d.npy", "is a directory"),
        ("d.dataset", "there is something at .* already"),
    ):
        for suffix in FILES[0], DATASET:
            (tmp_path / f"d{suffix}").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=said):
            target(str(tmp_path / name), SLICES, objects)
    for inside in ("affectome.json", "runs/../x.json"):
        with pytest.raises(ValueError, match="inside the store"):
            target(f"{run.stored.store_location}/{inside}", ANSWERS, objects)
    with pytest.raises(ValueError, match="no directory"):
        target("s3://bucket/x.npy", SLICES, objects)
    assert target(str(tmp_path / "X.NPY"), SLICES, objects) == tmp_path / "X.NPY"
