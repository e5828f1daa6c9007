"""Any condition, at any site and layers, gives what brute force takes out of the whole array: on a disk and on S3."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyze.query import Run, open_store
from extract.encoding import to_stored
from extract.store import Store as StoredRuns
from tests.analyze.predicates import Predicate, predicates
from tests.planted import IDENTITY, manifest_of, receipt_of
from tests.s3 import S3Server, copied_to_s3

N_ROWS, WIDTH, ROWS_PER_SHARD = 90, 2048, 40
"""At this width every shard has several chunks in float32, and at most sites in two bytes."""
LAYERS, OFFSETS = (0, 3, 5), (0, 1, 4)
SITES = ("resid.last", "resid.offset", "resid.all")
KEPT = (("bfloat16", "none"), ("float16", "lz4"), ("float32", "none"))
"""A run for each: the stored dtype, and the compression."""

TEXTS = {
    "label": ("joy", "fear", "it's", "Joy"),
    "split": ("train", "test"),
    "text": ("", "100% sure", "a_b", "it's\nfear", "\N{HIRAGANA LETTER A}\N{LATIN SMALL LETTER E WITH ACUTE}", "fear"),
    "speaker": ("fear", "Ann", "\N{GREEK SMALL LETTER ALPHA}"),
}
NUMBERS = {"row": (0, 39, 40, 71, 89, -1), "n_tokens": (1, 2, 3, 6), "valence": (-1.5, 0, 0.25, 4.75), "age": (0, 7, 40)}
_NEVER_NULL = {"split", "text", "n_tokens"}


def utterances() -> pa.Table:
    """Columns of the corpus and of its user; nulls where a user may leave them."""
    rng = np.random.default_rng(3)
    columns: dict[str, Any] = {"row": range(N_ROWS), "utterance_id": [f"u{row}" for row in range(N_ROWS)]}
    for name, values in {**TEXTS, **NUMBERS}.items():
        choices: list[Any] = [*values, *([] if name in _NEVER_NULL else [None])]
        columns.setdefault(name, [choices[index] for index in rng.integers(0, len(choices), N_ROWS)])
    return pa.table(columns)


def write_run(store: StoredRuns, stored_dtype: str, compression: str) -> None:
    """A run of random states at every site."""
    table, rng = utterances(), np.random.default_rng(5)
    identity = replace(IDENTITY, sites=SITES, offsets=OFFSETS, layers=LAYERS, stored_dtype=stored_dtype)
    manifest = manifest_of(identity, N_ROWS, WIDTH, ROWS_PER_SHARD, compression)
    run = store.create_run(manifest, {"utterances": table, "tokens": table.select(["row"])})
    bounds = np.cumsum([0, *table["n_tokens"].to_pylist()])
    for shard in range(run.n_shards):
        start, stop = run.shard_rows(shard)
        entries = {"resid.last": (stop - start,), "resid.offset": (stop - start, len(OFFSETS))}
        entries["resid.all"] = (int(bounds[stop] - bounds[start]),)
        drawn = {site: rng.standard_normal((len(LAYERS), *entries[site], WIDTH), np.float32) for site in SITES}
        arrays = {site: to_stored(torch.from_numpy(values), stored_dtype) for site, values in drawn.items()}
        written = run.write_attempt(shard, arrays, (bounds[start : stop + 1] - bounds[start]).tolist())
        assert run.commit(receipt_of(run, shard, 0, written, n_tokens=entries["resid.all"][0]))


@dataclass(frozen=True, slots=True)
class Known:
    """What the files of a run hold, read as docs/store.md (section 8) shows, with none of the product's code."""

    rows: list[dict[str, Any]]
    """The utterances."""
    stored: dict[str, NDArray[Any]]
    """For each site the whole array, (L, entries, ...), in the form that is kept."""
    bounds: NDArray[np.int64]
    """(N + 1,): the tokens of row i at resid.all are `bounds[i]` to `bounds[i + 1]`."""

    def taken(self, site: str, layer: int | list[int], rows: list[int], dtype: str) -> NDArray[Any]:
        """A slice by brute force."""
        tokens = [token for row in rows for token in range(self.bounds[row], self.bounds[row + 1])]
        entries = np.array(tokens if site == "resid.all" else rows, np.int64)
        layers = [LAYERS.index(layer)] if isinstance(layer, int) else [LAYERS.index(each) for each in layer]
        several = self.stored[site][layers][:, entries]
        taken: NDArray[Any] = several[0] if isinstance(layer, int) else several
        if dtype == "stored":
            return taken
        return (taken.astype(np.uint32) << 16).view(np.float32) if taken.dtype == np.uint16 else taken.astype(np.float32)


def read_files(run: Path) -> Known:
    manifest = json.loads((run / "run.json").read_text())
    logs = [json.loads(path.read_text()) for path in sorted(run.glob("receipts/*-0.json"))]
    shards = [run / "shards" / f"{log['shard']:06}-{log['attempt']}" for log in logs]
    stored = {
        site: np.concatenate([np.asarray(zarr.open_array(shard / site, mode="r")[:]) for shard in shards], axis=1)
        for site in SITES
    }
    rows = pyarrow.parquet.read_table(run / manifest["tables"][1]["path"]).to_pylist()
    return Known(rows, stored, np.cumsum([0, *(row["n_tokens"] for row in rows)]))


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and what is in it."""

    runs: list[Run]
    """By id."""
    known: list[Known]
    """What each of them holds."""


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Place:
    location = tmp_path_factory.mktemp("predicates") / "store"
    stored = StoredRuns.open(str(location), create=True)
    for kept in KEPT:
        write_run(stored, *kept)
    return Place(open_store(str(location)).runs(), [read_files(path) for path in sorted((location / "runs").iterdir())])


@pytest.fixture(scope="module")
def on_s3(on_disk: Place, s3_server: S3Server) -> Iterator[Place]:
    with copied_to_s3(s3_server, on_disk.runs[0].stored.store_location) as location:
        yield Place(open_store(location).runs(), on_disk.known)


@pytest.fixture(scope="module", params=["on_disk", "on_s3"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """A slice as it is asked for."""

    run: int
    site: str
    layer: int | list[int]
    predicate: Predicate
    dtype: str
    offset: int
    limit: int | None


_layers = st.sampled_from(LAYERS)
slices = st.builds(
    Asked,
    run=st.sampled_from(range(len(KEPT))),
    site=st.sampled_from(SITES),
    layer=_layers | st.lists(_layers, min_size=1, max_size=4),
    predicate=predicates(TEXTS, NUMBERS),
    dtype=st.sampled_from(["float32", "stored"]),
    offset=st.just(0) | st.integers(0, N_ROWS),
    limit=st.none() | st.integers(0, N_ROWS),
)


def check(run: Run, known: Known, asked: Asked) -> None:
    """The slice, and the utterances of the same condition, are those of brute force, order included."""
    chosen, where = asked.predicate.chosen(known.rows), asked.predicate.sql
    assert run.utterances(where).to_pylist() == [known.rows[row] for row in chosen]
    rows = chosen[asked.offset :][: asked.limit]
    if asked.site == "resid.all":
        states = run.hidden_tokens(asked.site, asked.layer, where, asked.dtype, offset=asked.offset, limit=asked.limit)
        hidden = states.hidden
        assert np.diff(states.row_offsets).tolist() == [known.rows[row]["n_tokens"] for row in rows]
    else:
        hidden = run.hidden(asked.site, asked.layer, where, asked.dtype, offset=asked.offset, limit=asked.limit)
    expected = known.taken(asked.site, asked.layer, rows, asked.dtype)
    assert hidden.dtype == expected.dtype
    np.testing.assert_array_equal(hidden, expected)


@settings(max_examples=50, deadline=None)
@given(asked=slices)
def test_a_slice_under_any_condition_is_that_of_brute_force_in_corpus_order(place: Place, asked: Asked) -> None:
    check(place.runs[asked.run], place.known[asked.run], asked)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(asked=slices)
def test_500_slices_under_any_condition_are_those_of_brute_force(place: Place, asked: Asked) -> None:
    check(place.runs[asked.run], place.known[asked.run], asked)
