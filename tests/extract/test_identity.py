"""Run ids: one for one set of numbers, whoever computes them and wherever."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from extract.decoding import Decoding
from extract.identity import FORMAT_VERSION, RUN_ID_DIGITS, Identity, canonical_json, file_sha256, sha256_hex

_ROOT = Path(__file__).resolve().parents[2]

_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

IDENTITY = Identity(
    weights="sha256:ab",
    tokenizer="cd",
    template="{{ text }}",
    continuation="",
    corpus="ef",
    sites=("resid.last", "resid.mean"),
    offsets=(),
    layers=(0, 1, 2),
    compute_dtype="bfloat16",
    stored_dtype="bfloat16",
    attention="sdpa",
    truncate=False,
    reply=Decoding(64, temperature=0.7),
)

_OTHER: dict[str, Any] = {
    "weights": "sha256:ac",
    "tokenizer": "ce",
    "template": "{{ text }} ",
    "continuation": " ",
    "corpus": "e",
    "sites": ("resid.last",),
    "offsets": (0,),
    "layers": (0, 12),
    "compute_dtype": "float32",
    "stored_dtype": "float16",
    "attention": "eager",
    "truncate": True,
    "reply": None,
    "reply_ends": (2,),
    "format_version": FORMAT_VERSION + 1,
}


@given(value=_json)
def test_canonical_json_reads_back_as_the_value(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@given(value=st.dictionaries(st.text(), _json, min_size=2), data=st.data())
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    assert canonical_json(shuffled) == canonical_json(value)


@given(left=_json, right=_json)
def test_values_that_print_differently_have_different_canonical_json(left: Any, right: Any) -> None:
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (canonical_json(left) == canonical_json(right)) == same


def test_canonical_json_is_utf8_without_spaces_or_escapes() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": [value]})


@given(data=st.binary())
def test_a_file_and_its_bytes_have_the_same_digest(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(data)
    assert file_sha256(path) == sha256_hex(data) == hashlib.sha256(data).hexdigest()


def test_every_field_of_the_identity_changes_the_run_id() -> None:
    assert {field.name for field in fields(Identity)} == set(_OTHER)
    ids = [IDENTITY.run_id, *(replace(IDENTITY, **{name: value}).run_id for name, value in _OTHER.items())]
    assert len(set(ids)) == len(ids)


def test_a_run_id_is_the_start_of_the_digest_of_what_anyone_can_write_down() -> None:
    written = json.dumps(asdict(IDENTITY), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert IDENTITY.run_id == hashlib.sha256(written.encode()).hexdigest()[:RUN_ID_DIGITS]
    assert len(IDENTITY.run_id) == 16


def test_extracted_runs_keep_the_ids_that_stores_already_have() -> None:
    assert (IDENTITY.run_id, replace(IDENTITY, reply=None).run_id) == ("26605719fe23b3ac", "364118f4819db7d3")
    assert not IDENTITY.imported


def test_an_identity_read_back_from_json_has_the_same_run_id() -> None:
    read = TypeAdapter(Identity).validate_json(canonical_json(asdict(IDENTITY)))
    assert read == IDENTITY
    assert read.run_id == IDENTITY.run_id


def test_another_process_gives_the_same_run_id() -> None:
    script = f"from extract.decoding import Decoding; from extract.identity import Identity; print({IDENTITY!r}.run_id)"
    for seed in ("1", "2"):  # strings hash differently in each
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=_ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == IDENTITY.run_id
