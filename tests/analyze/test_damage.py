"""Hidden states of a damaged store are refused by path, never read as numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyze.query import Run
from tests.analyze.conftest import Plant

LAYERS = (0, 2, 5)
N_ROWS = 40
HIDDEN = np.random.default_rng(0).standard_normal((len(LAYERS), N_ROWS, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    """Three shards of three layers."""
    return plant(HIDDEN, {}, layers=LAYERS, rows_per_shard=16)


def object_path(run: Run, shard: int, key: str) -> Path:
    (path,) = Path(run.stored.objects.url()).glob(f"shards/{shard:06d}-*/resid.last/{key}")
    return path


@contextmanager
def damaged(path: Path, data: bytes | None) -> Iterator[None]:
    """While it lasts, the file holds other bytes, or is gone where there are none."""
    whole = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused(run: Run, path: Path, layer: int, where: str | None) -> None:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        run.hidden("resid.last", layer, where)
    assert "\n" not in str(caught.value)


_wheres = st.sampled_from([None, "row = 17", "row >= 31"])


@settings(max_examples=20, deadline=None)
@given(
    data=st.data(), index=st.integers(0, 2), shard=st.integers(0, 2), how=st.sampled_from(["flipped", "cut", "longer", "gone"])
)
def test_a_layer_object_that_is_not_what_was_written_is_refused_by_path_and_spoils_no_other(
    run: Run, data: st.DataObject, index: int, shard: int, how: str
) -> None:
    path = object_path(run, shard, f"c.{index}.0.0")
    whole = path.read_bytes()
    if how == "flipped":
        changed: bytes | None = flipped(whole, data.draw(st.integers(0, 8 * len(whole) - 1)))
    elif how == "cut":
        changed = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        changed = whole + b"\0" if how == "longer" else None
    with damaged(path, changed):
        refused(run, path, LAYERS[index], None)
        one = 16 * shard + 3
        if how == "longer":  # its index is found at the place the receipt names: a few rows may be read, and are right
            found = outcome(run, LAYERS[index], f"row = {one}")
            assert str(path) in found if isinstance(found, str) else np.array_equal(found, HIDDEN[index, [one]])
        else:
            refused(run, path, LAYERS[index], f"row = {one}")
        other = (index + 1) % 3
        np.testing.assert_array_equal(run.hidden("resid.last", LAYERS[other]), HIDDEN[other])
        other_shard = 16 * ((shard + 1) % 3)
        np.testing.assert_array_equal(
            run.hidden("resid.last", LAYERS[index], f"row = {other_shard}"), HIDDEN[index, [other_shard]]
        )


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("where", [None, "row = 17"])
def test_an_emptied_or_removed_layer_object_is_refused_by_path(run: Run, index: int, where: str | None) -> None:
    path = object_path(run, 1, f"c.{index}.0.0")
    for changed in (b"", None):
        with damaged(path, changed):
            refused(run, path, LAYERS[index], where)


def outcome(run: Run, layer: int, where: str | None) -> NDArray[np.float32] | str:
    """The hidden states, or the sentence that refuses them."""
    try:
        return run.hidden("resid.last", layer, where)
    except ValueError as error:
        return str(error)


def refused_or_right(run: Run, directory: Path, where: str | None) -> None:
    """Metadata of one digest is read once: what is damaged in one shard may be known from another, and then rightly."""
    found = outcome(Run(run.stored), LAYERS[1], where)
    if isinstance(found, str):
        assert str(directory) in found
    else:
        np.testing.assert_array_equal(found, HIDDEN[1][run.utterances(where)["row"].to_numpy()])


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7) | st.none(), where=_wheres)
@example(share=0, bit=None, where=None)
def test_damaged_metadata_of_an_array_is_refused_by_directory_or_leaves_the_numbers_right(
    run: Run, share: float, bit: int | None, where: str | None
) -> None:
    path = object_path(run, 1, "zarr.json")
    whole = path.read_bytes()
    place = int(share * len(whole))
    with damaged(path, whole[:place] if bit is None else flipped(whole, 8 * place + bit)):
        refused_or_right(run, path.parent, where)


@pytest.mark.parametrize(
    ("before", "after"), [(b'"little"', b'"big"'), (b'"float32"', b'"uint32"'), (b"4", b"0"), (b"16", b"17"), (b"3,", b"1,")]
)
def test_metadata_that_says_something_else_is_refused_by_directory(run: Run, before: bytes, after: bytes) -> None:
    path = object_path(run, 1, "zarr.json")
    whole = path.read_bytes()
    assert before in whole
    with damaged(path, whole.replace(before, after)):
        refused(Run(run.stored), path.parent, LAYERS[1], "row = 17")
        refused_or_right(run, path.parent, None)


def test_removed_metadata_is_refused_by_directory(run: Run) -> None:
    path = object_path(run, 1, "zarr.json")
    with damaged(path, None):
        refused(Run(run.stored), path.parent, LAYERS[1], "row = 17")
        refused_or_right(run, path.parent, None)
