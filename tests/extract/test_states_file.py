"""A file of states is read as its header says or refused; a hostile one is refused in a sentence, and nothing in it is run."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from extract.states_file import open_states
from tests.extract.state_files import numbers, saved


def of_header(shape: str, descr: str = "<f4", n_bytes: int = 96, order: str = "False") -> bytes:
    """A .npy whose header says whatever it is told to."""
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * n_bytes


def array_bytes(array: NDArray[Any], **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


class _Runs:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


HOSTILE = {
    "objects": (array_bytes(np.array([[_Runs()]], object), allow_pickle=True), "not a readable .npy file of numbers"),
    "a pickle": (pickle.dumps(_Runs()), "not a readable .npy"),
    "nothing": (b"", "not a readable .npy"),
    "text": (b"1,2,3\n", "not a readable .npy"),
    "more rows than bytes": (of_header("(2, 400, 3)"), "not a readable .npy"),
    "fewer rows than bytes": (of_header("(2, 3, 3)"), "holds 24 bytes more than its header says"),
    "a negative row": (of_header("(-2, -4, 3)"), "not a readable .npy"),
    "rows beyond any disk": (of_header("(4611686018427387904, 4611686018427387904)"), "not a readable .npy"),
    "no rows": (of_header("(2, 0, 3)", n_bytes=0), "shape|not a readable"),
    "four axes": (of_header("(2, 2, 2, 3)"), "states are .utterances, width. of one layer, or"),
    "one axis": (of_header("(24,)"), "states are .utterances, width. of one layer, or"),
    "a call": (of_header("__import__('os').abort()"), "not a readable .npy"),
    "no number": (of_header("(2, 'x', 3)"), "not a readable .npy"),
    "an open bracket": (of_header("(2, ((((("), "not a readable .npy"),
    "float64": (array_bytes(np.zeros((2, 4, 3))), r"holds float64, .* save it anew with \.astype\(numpy.float32\)"),
    "whole numbers": (array_bytes(np.zeros((2, 4, 3), np.int32)), "holds int32; states are float16 or float32"),
    "bits": (array_bytes(np.zeros((2, 4, 3), np.uint16)), "bfloat16 is known from a .safetensors"),
    "complex": (array_bytes(np.zeros((2, 4, 3), np.complex64)), "holds complex64"),
    "records": (of_header("(2, 4, 3)", "|V4"), "states are float16 or float32"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_npy_is_refused_and_nothing_in_it_is_run(tmp_path: Path, kind: str) -> None:
    data, words = HOSTILE[kind]
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        open_states(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = saved(numbers((2, 4, 3)), tmp_path / f"x{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is not a readable|is damaged|has no tensor"):
            open_states(str(cut))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place_=st.integers(0, 127), value=st.integers(0, 255), suffix=st.sampled_from([".npy", ".safetensors"]))
def test_any_byte_of_a_header_may_be_another_and_it_is_read_or_refused(
    tmp_path: Path, place_: int, value: int, suffix: str
) -> None:
    data = bytearray(saved(numbers((2, 4, 3)), tmp_path / f"x{suffix}").read_bytes())
    data[place_] = value
    (tmp_path / f"y{suffix}").write_bytes(data)
    try:
        states = open_states(str(tmp_path / f"y{suffix}"))
    except ValueError:
        return
    n_layers, n_rows, width = states.shape
    assert states.read(0, n_rows).shape == (n_layers, n_rows, width)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("how", [lambda path: os.truncate(path, 5000), os.remove, os.utime], ids=["cut", "removed", "touched"])
def test_a_file_that_changed_since_it_was_opened_is_not_read(
    tmp_path: Path, suffix: str, how: Callable[[Path], object]
) -> None:
    path = saved(numbers((2, 4000, 3)), tmp_path / f"x{suffix}")
    os.utime(path, (1, 1))
    states = open_states(str(path))
    assert states.read(0, 1).shape == (2, 1, 3)
    how(path)
    with pytest.raises(ValueError, match="changed while it was imported; import it again once nobody writes to it"):
        states.read(3999, 4000)


def test_what_is_no_file_of_states_is_refused_with_the_choices(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3, dtype=torch.float64)}, tmp_path / "x.safetensors"
    )
    for name, tensor, words in (
        ("x.npz", "hidden", r"must end in \.npy, \.safetensors"),
        ("none.npy", "hidden", "there is no file"),
        ("x.safetensors", "hidden", "has no tensor 'hidden'; name one of its 2 with --tensor: 'a', 'b'"),
        ("x.safetensors", "b", r"holds F64, which a store does not keep; save it anew with \.float\(\)"),
    ):
        with pytest.raises(ValueError, match=words):
            open_states(str(tmp_path / name), tensor)
    assert open_states(str(tmp_path / "x.safetensors"), "a").shape == (1, 2, 3)
