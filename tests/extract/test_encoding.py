"""Hidden states to disk and back: every bit, every refusal, every damage."""

import contextlib
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from extract.arrays import StoredArray
from extract.documents import StoredObject
from extract.encoding import (
    COMPRESSIONS,
    METADATA_KEY,
    STORED_DTYPES,
    Layout,
    UnfitValueError,
    Values,
    is_finite,
    to_float32,
    to_stored,
)
from extract.identity import sha256_hex
from extract.objects import LocalObjects

_shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))

_ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.itemsize}")


def _read(layout: Layout, data: bytes, dtype: Any = None) -> NDArray[Any]:
    """The layer an object holds, in stored form or in another."""
    values = np.empty(layout.shape[1:], dtype or layout.dtype)
    layout.read_object(io.BytesIO(data), len(data), values)
    return values


def _all_bfloat16() -> torch.Tensor:
    states = torch.from_numpy(_ALL_16_BITS).view(torch.bfloat16)
    return states[states.isfinite()][None]


def _finite_float32(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Any pattern of bits but those of NaN and infinity, whose exponents lose a bit."""
    infinite = (bits & 0x7F800000) == 0x7F800000
    return np.where(infinite, bits & np.uint32(0xBFFFFFFF), bits).astype(np.uint32).view(np.float32)


_float32_arrays = arrays(np.uint32, _shapes, elements=st.integers(0, 2**32 - 1)).map(_finite_float32)


def test_every_finite_bfloat16_is_kept_bit_for_bit() -> None:
    states = _all_bfloat16()
    stored = to_stored(states, "bfloat16")
    finite = _ALL_16_BITS[(_ALL_16_BITS & 0x7F80) != 0x7F80]
    assert np.array_equal(stored[0], finite)
    assert np.array_equal(_bits(to_float32(stored, "bfloat16"))[0], finite.astype(np.uint32) << 16)
    assert np.array_equal(_bits(to_float32(to_stored(states, "float32"), "float32"))[0], finite.astype(np.uint32) << 16)


def test_every_finite_float16_is_kept_bit_for_bit() -> None:
    halves = _ALL_16_BITS.view(np.float16)
    halves = halves[np.isfinite(halves)]
    stored = to_stored(torch.from_numpy(halves.astype(np.float32)), "float16")
    assert np.array_equal(_bits(stored), _bits(halves))
    assert np.array_equal(_bits(to_float32(stored, "float16")), _bits(halves.astype(np.float32)))


def test_every_bfloat16_is_kept_as_a_finite_float16_or_refused() -> None:
    for value in _all_bfloat16()[0]:
        if abs(float(value)) > 65504:
            with pytest.raises(UnfitValueError):
                to_stored(value[None], "float16")
    fitting = [value for value in _all_bfloat16()[0] if abs(float(value)) <= 65504]
    assert np.isfinite(to_stored(torch.stack(fitting), "float16")).all()


def test_the_largest_float32_is_kept_as_float32() -> None:
    largest = np.float32(np.finfo(np.float32).max)
    assert to_stored(torch.tensor([[float(largest)]]), "float32")[0, 0] == largest


@given(values=_float32_arrays)
def test_float32_is_rounded_to_the_nearest_bfloat16_and_ties_go_to_even(values: NDArray[np.float32]) -> None:
    values = np.clip(values, -3e38, 3e38)
    bits = _bits(values).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    assert np.array_equal(to_stored(torch.from_numpy(values), "bfloat16"), nearest)


@dataclass(frozen=True, slots=True)
class Filled:
    """An array: its layout, and values of any bits."""

    layout: Layout
    values: Values

    def objects(self) -> dict[str, bytes]:
        """What the product writes."""
        layers = {self.layout.key(index): b"".join(self.layout.encode(layer)) for index, layer in enumerate(self.values)}
        return {METADATA_KEY: self.layout.metadata} | layers


def _filled(shape: tuple[int, ...], row_offsets: tuple[int, ...] | None, dtype: str, compression: str, what: str) -> Filled:
    layout = Layout.plan(shape, dtype, compression, row_offsets)
    raw = np.random.default_rng(0).integers(0, 256, (*shape[:-1], shape[-1] * layout.dtype.itemsize), np.uint8)
    fill = {"bits": raw, "zeros": raw * 0, "few": raw & 1, "ones": raw | 255}[what]
    return Filled(layout, fill.view(layout.dtype))


_offsets = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(lambda lengths: (0, *itertools.accumulate(lengths)))
_large = st.sampled_from([(1, 1025, 130), (2, 300, 512), (1, 70, 8, 512)])  # some chunks to a layer, the last one shorter
_plain = _shapes | st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5)) | _large
_ragged = st.tuples(st.integers(1, 3), _offsets, st.integers(1, 9)).map(
    lambda drawn: ((drawn[0], drawn[1][-1], drawn[2]), drawn[1])
)
_arrays = st.builds(
    lambda place, *rest: _filled(*place, *rest),
    st.tuples(_plain, st.none()) | _ragged,
    st.sampled_from(STORED_DTYPES),
    st.sampled_from(COMPRESSIONS),
    st.sampled_from(["bits", "zeros", "few", "ones"]),
)


def _in_zarr(objects: dict[str, bytes], mode: Any) -> tuple[Any, dict[str, Any]]:
    """The array as zarr-python opens it, and the objects of its store."""
    buffers: dict[str, Any] = {key: default_buffer_prototype().buffer.from_bytes(data) for key, data in objects.items()}
    return zarr.open_array(MemoryStore(buffers), mode=mode).with_config({"write_empty_chunks": True}), buffers


@settings(deadline=None, max_examples=60)
@given(array=_arrays)
def test_every_byte_is_the_one_that_zarr_writes(array: Filled) -> None:
    opened, buffers = _in_zarr({METADATA_KEY: array.layout.metadata}, "r+")
    opened[...] = array.values
    written_again = opened.metadata.to_buffer_dict(default_buffer_prototype())[METADATA_KEY].to_bytes()
    assert written_again == array.layout.metadata
    assert {key: buffer.to_bytes() for key, buffer in buffers.items()} == array.objects()


@settings(deadline=None, max_examples=60)
@given(array=_arrays)
def test_zarr_and_the_product_read_bit_for_bit_what_was_written(array: Filled) -> None:
    objects = array.objects()
    opened, _ = _in_zarr(objects, "r")
    read = np.asarray(opened[...])
    assert read.dtype == array.values.dtype
    assert np.array_equal(_bits(read), _bits(array.values))
    assert opened.attrs["stored_dtype"] == array.layout.stored_dtype
    assert opened.attrs.get("row_offsets") == (array.layout.row_offsets and list(array.layout.row_offsets))
    entry = "row" if array.layout.row_offsets is None else "token"
    assert opened.metadata.dimension_names == ("layer", entry, *["offset"] * (len(array.layout.shape) - 3), "width")
    assert Layout.read(objects[METADATA_KEY]) == array.layout
    for index, layer in enumerate(array.values):
        stored, decoded = (_read(array.layout, objects[array.layout.key(index)], dtype) for dtype in (None, np.float32))
        assert np.array_equal(_bits(stored), _bits(layer))
        assert np.array_equal(_bits(decoded), _bits(to_float32(layer, array.layout.stored_dtype)))


@settings(deadline=None, max_examples=60)
@given(array=_arrays)
def test_values_count_as_finite_when_all_of_them_are(array: Filled) -> None:
    expected = np.isfinite(to_float32(array.values, array.layout.stored_dtype)).all()
    assert is_finite(array.values, array.layout.stored_dtype) == expected


@settings(deadline=None, max_examples=80)
@given(array=_arrays, data=st.data())
def test_a_flipped_bit_anywhere_in_an_object_is_refused(array: Filled, data: st.DataObject) -> None:
    damaged = bytearray(array.objects()[array.layout.key(0)])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="checksum"):
        _read(array.layout, bytes(damaged))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_flipped_bit_and_every_cut_of_a_small_object_is_refused(compression: str) -> None:
    array = _filled((1, 3, 4), None, "bfloat16", compression, "bits")
    whole = array.objects()[array.layout.key(0)]
    flipped = [
        whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :] for bit in range(8 * len(whole))
    ]
    for damaged in [*flipped, *(whole[:size] for size in range(len(whole)))]:
        with pytest.raises(ValueError, match="checksum"):
            _read(array.layout, damaged)


@given(shape=_shapes, data=st.data(), stored_dtype=st.sampled_from(STORED_DTYPES), bfloat16=st.booleans())
def test_what_does_not_fit_is_refused_with_its_index(
    shape: tuple[int, int, int], data: st.DataObject, stored_dtype: str, bfloat16: bool
) -> None:
    states = torch.ones(shape, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    index = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
    too_large = [70000.0, -70000.0] if stored_dtype == "float16" else []
    value = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf"), *too_large]))
    states[index] = value
    with pytest.raises(UnfitValueError) as caught:
        to_stored(states, stored_dtype)
    assert caught.value.index == index
    assert np.array_equal(caught.value.value, float(states[index]), equal_nan=True)
    states[index] = 65280.0  # the largest that both bfloat16 and float16 hold
    assert to_float32(to_stored(states, stored_dtype), stored_dtype)[index] == 65280.0


@settings(deadline=None, max_examples=60)
@given(array=_arrays, data=st.data())
def test_changed_metadata_is_a_value_error_or_describes_another_array(array: Filled, data: st.DataObject) -> None:
    changed = bytearray(array.layout.metadata)
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] = data.draw(st.sampled_from(sorted(set(b'0123456789{}[]",: truefalsn\xff') - {changed[place]})))
    with contextlib.suppress(ValueError):
        same_content = json.loads(changed) == json.loads(array.layout.metadata)
        assert (Layout.read(bytes(changed)) == array.layout) == same_content


@pytest.mark.parametrize("metadata", [b"", b"{}", b"[]", b"null", b"\xff"])
def test_what_is_no_metadata_is_refused_in_a_sentence(metadata: bytes) -> None:
    with pytest.raises(ValueError, match="not the metadata of a stored array"):
        Layout.read(metadata)


def test_a_few_rows_are_read_without_a_look_at_other_chunks_or_layers(tmp_path: Path) -> None:
    array = _filled((2, 300, 512), None, "bfloat16", "lz4", "few")
    layout, chunk = array.layout, array.layout.chunk
    objects = LocalObjects(tmp_path)
    entries: dict[str, StoredObject] = {}
    for index in range(2):
        data = array.objects()[layout.key(index)]
        key = f"site/{layout.key(index)}"
        entries[key] = StoredObject(key, len(data), sha256_hex(data))
        objects.write(key, [bytes(11) + data[11:] if index else b"ruined"])  # the first chunk is damaged
    stored = StoredArray(objects, "site", layout, entries)
    hidden = np.empty((300, 512), np.float32)
    behind = np.arange(chunk, 300)[::7]
    stored.read_entries(1, behind, hidden[: len(behind)])
    assert np.array_equal(hidden[: len(behind)], to_float32(array.values[1, behind], "bfloat16"))
    for index, wanted in ((1, np.array([3])), (1, np.array([3, 299])), (0, behind)):
        with pytest.raises(ValueError, match=f"{layout.key(index)} is damaged: .*checksum.*--repair"):
            stored.read_entries(index, wanted, hidden[: len(wanted)])
        with pytest.raises(ValueError, match=f"{layout.key(index)} is damaged"):
            stored.read_layer(index, hidden)
