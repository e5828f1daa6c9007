"""Hidden states to disk and back: every bit, every refusal, every damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from extract.encoding import STORED_DTYPES, UnfitValueError, Values, encode, open_array, to_float32, to_stored

_NAMES = ("layer", "row", "width")
_shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
_any_dtype = pytest.mark.parametrize("stored_dtype", STORED_DTYPES)

_ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def _write(directory: Path, values: Values, stored_dtype: str) -> Path:
    for key, data in encode(values, stored_dtype, _NAMES).items():
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(f"u{values.itemsize}")


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


@settings(deadline=None, max_examples=30)
@given(values=_float32_arrays)
def test_what_is_read_back_is_bit_for_bit_what_was_stored(
    values: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for stored_dtype in STORED_DTYPES:
        limit = 65504 if stored_dtype == "float16" else 3e38
        stored = to_stored(torch.from_numpy(np.clip(values, -limit, limit)), stored_dtype)
        array = open_array(_write(tmp_path_factory.mktemp("array"), stored, stored_dtype))
        read = np.asarray(array[...])
        assert read.dtype == stored.dtype
        assert np.array_equal(_bits(read), _bits(stored))
        assert array.attrs["stored_dtype"] == stored_dtype
        assert array.metadata.to_dict()["dimension_names"] == _NAMES


@_any_dtype
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_an_array_of_nothing_but_zeros_keeps_its_signs_and_its_objects(value: float, stored_dtype: str, tmp_path: Path) -> None:
    stored = to_stored(torch.full((2, 3, 4), value), stored_dtype)
    assert set(encode(stored, stored_dtype, _NAMES)) == {"zarr.json", "c/0/0/0", "c/1/0/0"}
    read = np.asarray(open_array(_write(tmp_path, stored, stored_dtype))[...])
    assert np.array_equal(_bits(read), _bits(stored))


@_any_dtype
def test_equal_values_are_encoded_to_equal_bytes(stored_dtype: str) -> None:
    stored = to_stored(torch.arange(24.0).reshape(2, 3, 4), stored_dtype)
    assert encode(stored, stored_dtype, _NAMES) == encode(stored.copy(), stored_dtype, _NAMES)


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


def _two_chunks_a_layer(directory: Path) -> tuple[Path, Values]:
    stored = to_stored(torch.randn(2, 300, 512, generator=torch.Generator().manual_seed(0)), "bfloat16")
    return _write(directory, stored, "bfloat16"), stored


def test_any_flipped_bit_of_an_object_is_caught_on_reading(tmp_path: Path) -> None:
    stored = to_stored(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), "bfloat16")
    path = _write(tmp_path, stored, "bfloat16") / "c/1/0/0"
    whole = path.read_bytes()
    array = open_array(tmp_path)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            array[1]
    path.write_bytes(whole)
    assert np.array_equal(np.asarray(array[1]), stored[1])


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_flipped_bit_of_a_large_object_is_caught_on_reading(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, _ = _two_chunks_a_layer(tmp_path_factory.mktemp("array"))
    path = directory / data.draw(st.sampled_from(["c/0/0/0", "c/1/0/0"]))
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        open_array(directory)[...]


def test_reading_one_layer_does_not_look_at_the_objects_of_others(tmp_path: Path) -> None:
    directory, stored = _two_chunks_a_layer(tmp_path)
    (directory / "c/0/0/0").write_bytes(b"ruined")
    assert np.array_equal(np.asarray(open_array(directory)[1]), stored[1])
    with pytest.raises(ValueError, match="checksum"):
        open_array(directory)[0]


def test_reading_a_few_rows_does_not_look_at_chunks_of_others(tmp_path: Path) -> None:
    directory, stored = _two_chunks_a_layer(tmp_path)
    damaged = bytearray((directory / "c/0/0/0").read_bytes())
    damaged[10] ^= 1  # in the first chunk, which holds 256 of the 300 rows
    (directory / "c/0/0/0").write_bytes(damaged)
    assert np.array_equal(np.asarray(open_array(directory)[0, 256:]), stored[0, 256:])
    with pytest.raises(ValueError, match="checksum"):
        open_array(directory)[0, :10]


@pytest.mark.parametrize("metadata", [None, b"", b"{}", b"[]", b"null", b"\xff"])
def test_a_directory_without_a_readable_array_is_a_value_error_that_names_it(metadata: bytes | None, tmp_path: Path) -> None:
    if metadata is not None:
        (tmp_path / "zarr.json").write_bytes(metadata)
    with pytest.raises(ValueError, match="is not a readable array") as caught:
        open_array(tmp_path)
    assert str(tmp_path) in str(caught.value)
