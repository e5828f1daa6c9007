"""A slice as a dataset of Hugging Face's: the library reads what the run holds, and nothing else on the machine is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from analyze.exporting import Slice, write_slice
from tests.analyze.conftest import Plant

N_ROWS, WIDTH = 23, 3
_WRITE = """
import sys
from pathlib import Path
from analyze.exporting import Slice, write_slice
from analyze.query import open_store
run, = open_store(sys.argv[1]).runs()
write_slice(Slice.of(run, "resid.last", 0), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("stored_dtype", ["bfloat16", "float16"])
def test_the_library_reads_what_the_run_holds(
    plant: Plant, tmp_path: Path, stored_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = np.random.default_rng(3).standard_normal((3, N_ROWS, WIDTH)).astype(np.float32)
    columns = {
        "label": ["joy", "fear", None] * 7 + ["joy", "fear"],
        "tags": [["a"] * (row % 3) for row in range(N_ROWS)],
        "kind": pa.array(["x", "y"] * 11 + ["x"]).dictionary_encode(),
    }
    run = plant(hidden, columns, stored_dtype=stored_dtype, rows_per_shard=9)
    monkeypatch.setattr("analyze.exporting._GROUP_BYTES", 100)
    assert write_slice(Slice.of(run, "resid.last", (0, 2), "row > 2"), tmp_path / "x.dataset") == (2, N_ROWS - 3, WIDTH)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.dataset"]
    found = datasets.load_from_disk(str(tmp_path / "x.dataset"))
    assert (
        found.with_format("arrow")[:].drop_columns(["hidden_0", "hidden_2"]).to_pylist()
        == run.utterances("row > 2").to_pylist()
    )
    tensors = found.with_format("torch")[:]
    for layer in (0, 2):
        expected = run.hidden("resid.last", layer, "row > 2")
        assert tensors[f"hidden_{layer}"].dtype == torch.float32
        np.testing.assert_array_equal(tensors[f"hidden_{layer}"].numpy(), expected)
    said = json.loads(found.info.description)["affectome"]
    assert (said["run_id"], said["layers"], said["where"]) == (run.run_id, [0, 2], "row > 2")


def test_grids_and_tokens_are_lists_of_vectors(plant: Plant, tmp_path: Path) -> None:
    hidden = np.random.default_rng(0).standard_normal((1, 9, 2, 4)).astype(np.float32)
    write_slice(Slice.of(plant(hidden, {}, offsets=(0, 3)), "resid.offset", 0), tmp_path / "grid.dataset")
    grid = datasets.load_from_disk(str(tmp_path / "grid.dataset")).with_format("torch")
    np.testing.assert_array_equal(grid[:]["hidden"].numpy(), hidden[0])
    tokens = np.random.default_rng(0).standard_normal((1, 6, 2)).astype(np.float32)
    write_slice(Slice.of(plant(tokens, {}, lengths=[3, 1, 2]), "resid.all", 0), tmp_path / "tokens.dataset")
    found = datasets.load_from_disk(str(tmp_path / "tokens.dataset")).with_format("torch")
    assert [found[row]["hidden"].shape[0] for row in range(3)] == [3, 1, 2]
    np.testing.assert_array_equal(torch.cat([found[row]["hidden"] for row in range(3)]).numpy(), tokens[0])


def test_no_file_is_written_but_the_dataset_and_no_host_is_asked(plant: Plant, tmp_path: Path) -> None:
    run = plant(np.zeros((1, 5, 2), np.float32), {})
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    offline = (
        "import socket\ndef refused(*_, **__): raise AssertionError('asked the network')\nsocket.socket.connect = refused\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", offline + _WRITE, run.stored.store_location, str(out / "x.dataset")],
        check=True,
        env=kept | {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert [path for path in home.rglob("*") if "matplotlib" not in str(path)] == []
    assert list(out.iterdir()) == [out / "x.dataset"]
    assert len(datasets.load_from_disk(str(out / "x.dataset"))) == 5


def test_what_cannot_be_written_leaves_nothing_and_is_said_in_a_sentence(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant(np.zeros((2, 3, 2), np.float32), {"m": pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64()))})
    path = tmp_path / "x.dataset"
    with pytest.raises(ValueError, match=r"cannot hold column 'm' of the corpus, map<.*; write \.parquet"):
        write_slice(Slice.of(run, "resid.last", 0), path)
    with pytest.raises(ValueError, match="'row < 0' chooses none"):
        write_slice(Slice.of(run, "resid.last", 0, "row < 0"), path)
    taken = plant(np.zeros((1, 3, 2), np.float32), {"hidden": ["x"] * 3})
    with pytest.raises(ValueError, match="has a column 'hidden' of its own"):
        write_slice(Slice.of(taken, "resid.last", 0), path)
    fine = Slice.of(plant(np.zeros((1, 3, 2), np.float32), {}), "resid.last", 0)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match=r"pip install 'affectome\[datasets\]'"):
            write_slice(fine, path)
    with monkeypatch.context() as patched:
        patched.setattr(datasets.Dataset, "save_to_disk", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_slice(fine, path)
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    (path / "mine").write_text("there before")
    with pytest.raises(OSError, match="not empty"):
        write_slice(fine, path)
    assert [each.name for each in tmp_path.rglob("*")] == ["x.dataset", "mine"]


def _full_disk(_: datasets.Dataset, directory: Path) -> None:
    (directory / "half").write_text("half")
    raise OSError(28, "No space left on device")
