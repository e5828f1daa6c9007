"""Any slice of a run is what brute force takes out of the whole array, in the order asked for, and costs what was foretold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from analyze.query import Run, Which, open_store
from analyze.slices import Plan
from extract.objects import LocalObjects
from tests.analyze.conftest import Plant
from tests.counting import counted
from tests.s3 import S3Server, copied_to_s3

N_ROWS, WIDTH, ROWS_PER_SHARD = 700, 512, 300
LAYERS = (0, 3, 5)
OFFSETS = (0, 1, 4)
LENGTHS = tuple(int(length) for length in np.random.default_rng(7).integers(1, 4, N_ROWS))
BOUNDS = np.cumsum([0, *LENGTHS])
LABELS = [("joy", "fear", "calm")[row % 7 % 3] for row in range(N_ROWS)]


@dataclass(frozen=True, slots=True)
class Known:
    """A run and the numbers in it."""

    run: Run
    site: str
    hidden: NDArray[np.float32]
    """(L, N, ...), as they read in float32; (L, T, D) for every token."""
    chunks: list[int]
    """Entries of a chunk in each shard, as zarr says."""

    def entries(self, rows: Sequence[int]) -> list[int]:
        """Where rows are on the second axis."""
        return [entry for row in rows for entry in range(*BOUNDS[[row, row + 1]])] if self.site == "resid.all" else list(rows)

    def taken(self, layer: int | list[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """A slice by brute force."""
        several = self.hidden[[LAYERS.index(each) for each in ([layer] if isinstance(layer, int) else layer)]]
        taken: NDArray[np.float32] = several[:, self.entries(rows)]
        return taken[0] if isinstance(layer, int) else taken

    def chunks_of(self, rows: Sequence[int]) -> set[tuple[int, int]]:
        """Shard and number of every chunk that holds a row."""
        found = set()
        for row in rows:
            shard = row // ROWS_PER_SHARD
            (first,) = self.entries([shard * ROWS_PER_SHARD])[:1]
            found |= {(shard, (entry - first) // self.chunks[shard]) for entry in self.entries([row])}
        return found


def plant_at(plant: Plant, site: str, stored_dtype: str, compression: str = "none") -> Known:
    entry_shape = (len(OFFSETS), WIDTH // 2) if site == "resid.offset" else (WIDTH,)
    n_entries = sum(LENGTHS) if site == "resid.all" else N_ROWS
    hidden = np.random.default_rng(0).standard_normal((len(LAYERS), n_entries, *entry_shape), np.float32)
    run = plant(
        hidden,
        {"label": LABELS},
        layers=LAYERS,
        offsets=OFFSETS if site == "resid.offset" else (),
        lengths=LENGTHS if site == "resid.all" else (),
        stored_dtype=stored_dtype,
        rows_per_shard=ROWS_PER_SHARD,
        compression=compression,
    )
    arrays = sorted(cast(LocalObjects, run.stored.objects).root.glob(f"shards/*/{site}"))
    chunks = [zarr.open_array(array, mode="r").chunks[1] for array in arrays]
    assert min(chunks) < ROWS_PER_SHARD, "a shard has several chunks"
    return Known(run, site, torch.from_numpy(hidden).to(getattr(torch, stored_dtype)).float().numpy(), chunks)


@pytest.fixture(
    scope="module",
    params=[
        ("resid.last", "bfloat16"),
        ("resid.last", "float32", "lz4"),
        ("resid.offset", "float16"),
        ("resid.all", "bfloat16", "lz4"),
        ("resid.all", "float32"),
    ],
    ids="-".join,
)
def known(request: pytest.FixtureRequest, plant: Plant) -> Known:
    return plant_at(plant, *request.param)


@pytest.fixture(
    scope="module", params=[("resid.last", "bfloat16"), ("resid.last", "float32"), ("resid.offset", "float16")], ids="-".join
)
def of_rows(request: pytest.FixtureRequest, plant: Plant) -> Known:
    return plant_at(plant, *request.param)


@pytest.fixture(scope="module")
def last(plant: Plant) -> Known:
    return plant_at(plant, "resid.last", "bfloat16")


@pytest.fixture(scope="module")
def of_tokens(plant: Plant) -> Known:
    return plant_at(plant, "resid.all", "bfloat16")


@pytest.fixture(scope="module")
def on_s3(last: Known, s3_server: S3Server) -> Iterator[Run]:
    """The run of `last`, copied to S3."""
    with copied_to_s3(s3_server, last.run.stored.store_location) as location:
        yield open_store(location).run(last.run.run_id)


@dataclass(frozen=True, slots=True)
class Asked:
    """A slice as it is asked for, and its rows by brute force."""

    layer: int | list[int]
    where: str | None
    which: Which
    rows: list[int] = field(repr=False)

    @property
    def layers(self) -> list[int]:
        return [self.layer] if isinstance(self.layer, int) else self.layer


def read(run: Run, site: str, asked: Asked) -> NDArray[np.float32]:
    """The slice, with the function for the site."""
    if site == "resid.all":
        return run.hidden_tokens(site, asked.layer, asked.where, **asked.which).hidden
    return run.hidden(site, asked.layer, asked.where, **asked.which)


@st.composite
def slices(draw: st.DrawFn) -> Asked:
    one = st.sampled_from(LAYERS)
    layer = draw(one | st.lists(one, max_size=4))
    where: str | None = None
    rows: ArrayLike | None = None
    chosen = list(range(N_ROWS))
    match draw(st.sampled_from(["all", "modulo", "label", "between", "rows", "permuted"])):
        case "modulo":
            every = draw(st.integers(1, 400))
            where, chosen = f"row % {every} = 0", chosen[::every]
        case "label":
            label = draw(st.sampled_from(["joy", "fear", "none"]))
            where, chosen = f"label = '{label}'", [row for row in chosen if LABELS[row] == label]
        case "between":
            low, high = draw(st.integers(-5, N_ROWS)), draw(st.integers(0, N_ROWS + 5))
            where, chosen = f"row >= {low} and row < {high}", [row for row in chosen if low <= row < high]
        case "rows":
            rows = chosen = draw(st.lists(st.integers(0, N_ROWS - 1), max_size=30))
        case "permuted":
            rows = np.random.default_rng(draw(st.integers(0, 9))).permutation(N_ROWS)
            chosen = rows.tolist()
    offset, limit = draw(st.just(0) | st.integers(0, N_ROWS + 5)), draw(st.none() | st.integers(0, N_ROWS + 5))
    return Asked(layer, where, {"rows": rows, "offset": offset, "limit": limit}, chosen[offset:][:limit])


@settings(max_examples=25, deadline=None)
@given(asked=slices())
def test_any_slice_is_what_the_whole_array_holds_there_in_the_order_asked_for(known: Known, asked: Asked) -> None:
    hidden = read(known.run, known.site, asked)
    assert hidden.dtype == np.float32
    np.testing.assert_array_equal(hidden, known.taken(asked.layer, asked.rows))
    if known.site == "resid.all":
        tokens = known.run.hidden_tokens(known.site, asked.layer, asked.where, "stored", **asked.which)
        assert np.diff(tokens.row_offsets).tolist() == [LENGTHS[row] for row in asked.rows]
    elif asked.where is not None and asked.which["limit"] is None:
        utterances = known.run.utterances(asked.where)
        assert utterances["row"].to_pylist()[asked.which["offset"] :] == asked.rows


@settings(max_examples=15, deadline=None)
@given(asked=slices())
def test_tensors_bits_and_tables_hold_the_same_slice(of_rows: Known, asked: Asked) -> None:
    run, site = of_rows.run, of_rows.site
    expected = of_rows.taken(asked.layer, asked.rows)
    tensor = run.hidden_torch(site, asked.layer, asked.where, **asked.which)
    assert tensor.dtype == getattr(torch, run.manifest.identity.stored_dtype)
    np.testing.assert_array_equal(tensor.float().numpy(), expected)
    bits = run.hidden(site, asked.layer, asked.where, "stored", **asked.which)
    assert bits.tobytes() == tensor.view({2: torch.int16, 4: torch.int32}[tensor.itemsize]).numpy().tobytes()
    table = run.hidden_arrow(site, asked.layer, asked.where, **asked.which)
    assert table.column_names == ["row", *(f"layer_{layer}" for layer in dict.fromkeys(asked.layers))]
    assert table["row"].to_pylist() == asked.rows
    for layer, column in zip(dict.fromkeys(asked.layers), table.columns[1:], strict=True):
        assert pa.types.is_fixed_size_list(column.type)
        values = of_rows.taken(layer, asked.rows)
        np.testing.assert_array_equal(np.array(column.to_pylist(), np.float32).reshape(values.shape), values)


@settings(max_examples=25, deadline=None)
@given(asked=slices())
def test_a_read_touches_what_its_explanation_says_and_only_chunks_that_hold_an_asked_row(known: Known, asked: Asked) -> None:
    run, counting = counted(known.run)
    foretold = run.explain(known.site, asked.layer, asked.where, **asked.which)
    for key, size in [*counting.ranges, *counting.wholes]:  # of compressed objects their indexes, of others nothing
        assert (known.run.manifest.compression, size) == ("lz4", index_bytes(known, key))
    counting.ranges.clear()
    hidden = read(run, known.site, asked)
    assert foretold.shape == hidden.shape
    assert foretold.memory_bytes == hidden.nbytes
    assert foretold.n_bytes == counting.read_bytes
    chunks = known.chunks_of(asked.rows)
    assert foretold.n_chunks == len(asked.layers) * len(chunks)
    assert foretold.n_objects == len(asked.layers) * len({shard for shard, _ in chunks})
    in_parts = len(counting.ranges) - (foretold.n_objects - len(counting.wholes))  # of each, its index is a range too
    assert in_parts + sum(n_chunks(known, key) for key, _ in counting.wholes) == foretold.n_chunks


def n_chunks(known: Known, key: str) -> int:
    """Chunks of an object."""
    shard = int(key.split("/")[1][:6])
    n_rows = min(ROWS_PER_SHARD, N_ROWS - shard * ROWS_PER_SHARD)
    return -(-len(known.entries(range(shard * ROWS_PER_SHARD, shard * ROWS_PER_SHARD + n_rows))) // known.chunks[shard])


def index_bytes(known: Known, key: str) -> int:
    """Bytes of an object's index: two numbers for each chunk, and a checksum (docs/store.md)."""
    return n_chunks(known, key) * 16 + 4


def test_a_few_rows_of_a_run_touch_a_chunk_each(last: Known) -> None:
    reading = last.run.explain("resid.last", [0, 5], rows=[N_ROWS - 1, 0, 1])
    assert (reading.n_objects, reading.n_chunks, reading.shape) == (4, 4, (2, 3, WIDTH))
    assert reading.n_bytes < last.run.explain("resid.last", [0, 5]).n_bytes / 2


def test_a_tensor_and_a_table_are_the_memory_that_was_read_into(last: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    read_into: list[int] = []
    read_layers = Plan.read

    def watched(*arguments: Any) -> NDArray[Any]:
        hidden = read_layers(*arguments)
        read_into.append(hidden.ctypes.data)
        return hidden

    monkeypatch.setattr(Plan, "read", watched)
    assert last.run.hidden_torch("resid.last", 3).data_ptr() == read_into[-1]
    table = last.run.hidden_arrow("resid.last", 3)
    assert table["layer_3"].chunk(0).values.buffers()[1].address == read_into[-1]


def test_row_numbers_of_any_kind_are_taken_and_a_mask_is_not(last: Known) -> None:
    expected = last.taken(3, [4, 2])
    for rows in ([4, 2], (4, 2), np.array([4, 2], np.uint8), pa.array([4, 2]), pa.chunked_array([[4], [2]])):
        np.testing.assert_array_equal(last.run.hidden("resid.last", 3, rows=rows), expected)
    assert last.run.hidden("resid.last", 3, rows=[]).shape == (0, WIDTH)
    for rows in (np.zeros(N_ROWS, bool), [1.0, 2.0], [[1, 2]], 3):
        with pytest.raises(ValueError, match=r"rows must be a list of row numbers; numpy\.flatnonzero makes one of a mask"):
            last.run.hidden("resid.last", 3, rows=rows)


READERS: dict[str, Callable[..., object]] = {
    "hidden": Run.hidden,
    "hidden_torch": Run.hidden_torch,
    "hidden_arrow": Run.hidden_arrow,
    "explain": Run.explain,
}


@pytest.mark.parametrize("name", READERS)
def test_what_cannot_be_read_is_refused_in_one_sentence_that_names_the_choices(name: str, last: Known) -> None:
    def refusal(site: str = "resid.last", layer: int | list[int] = 3, **which: object) -> str:
        try:
            READERS[name](last.run, site, layer, **which)
        except ValueError as error:
            return str(error).replace(last.run.run_id, "RUN")
        raise AssertionError("it was read")

    assert refusal("resid.mean") == "run RUN does not hold resid.mean; it holds resid.last"
    assert "join one of resid" in refusal("resid.lst")
    assert refusal(layer=4) == refusal(layer=[0, 4]) == "run RUN does not hold layer 4 of resid.last; it holds 0, 3, 5"
    assert refusal(rows=[0, N_ROWS]) == f"run RUN has no row {N_ROWS}; its rows are 0 to {N_ROWS - 1}"
    assert refusal(rows=[-1]) == f"run RUN has no row -1; its rows are 0 to {N_ROWS - 1}"
    assert refusal(offset=-1) == "offset and limit are numbers of rows, from 0: offset=-1, limit=None"
    assert refusal(limit=-2) == "offset and limit are numbers of rows, from 0: offset=0, limit=-2"
    assert refusal(where="row < 3", rows=[1]) == "where and rows both say which rows; give one of them"


def test_other_refusals_name_a_remedy(last: Known, of_tokens: Known, plant: Plant) -> None:
    for reader in (of_tokens.run.hidden, of_tokens.run.hidden_torch, of_tokens.run.hidden_arrow):
        with pytest.raises(ValueError, match=r"resid\.all keeps every token, .*; read it with hidden_tokens"):
            reader("resid.all", 3)
    with pytest.raises(ValueError, match="cannot read hidden states as 'float64'; choose from float32, stored"):
        last.run.hidden("resid.last", 3, dtype="float64")
    incomplete = plant(np.zeros((1, 20, 2), np.float32), {}, rows_per_shard=6, missing={1})
    for read_some in (incomplete.hidden, incomplete.hidden_arrow, incomplete.explain):
        with pytest.raises(ValueError, match="is not complete: 1 of 4 shards are missing; launch"):
            read_some("resid.last", 0, rows=[0])


@settings(max_examples=5, deadline=None)
@given(asked=slices())
def test_on_s3_a_slice_is_the_same(on_s3: Run, last: Known, asked: Asked) -> None:
    np.testing.assert_array_equal(read(on_s3, last.site, asked), last.taken(asked.layer, asked.rows))
    assert on_s3.explain(last.site, asked.layer, asked.where, **asked.which) == last.run.explain(
        last.site, asked.layer, asked.where, **asked.which
    )


def test_on_s3_workers_of_a_loader_read_every_row_once(on_s3: Run, last: Known) -> None:
    loader = torch.utils.data.DataLoader(on_s3.dataset(last.site, 3, 32, shuffle_seed=1), batch_size=None, num_workers=2)
    found = list(loader)
    rows = torch.cat([rows for rows, _ in found])
    assert sorted(rows.tolist()) == list(range(N_ROWS))
    np.testing.assert_array_equal(torch.cat([states for _, states in found]).float().numpy(), last.taken(3, rows.tolist()))
