"""Batches of a run hold every row once, whoever shares them, in an order that a seed repeats, and in little memory."""

import math
import re
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from analyze.dataset import StreamedStates
from analyze.query import Run
from analyze.streaming import Batch
from tests.analyze.conftest import Plant
from tests.counting import counted

N_ROWS, WIDTH, ROWS_PER_SHARD = 3000, 512, 700
ROW_BYTES = WIDTH * 4
CHUNK_BYTES = 1 << 18
ROWS_PER_CHUNK = 117  # six even chunks in a shard
SITE, LAYERS = "resid.last", (1, 4)


@dataclass(frozen=True, slots=True)
class Known:
    """A run and the numbers in it."""

    run: Run
    hidden: NDArray[np.float32]
    """(L, N, D)."""

    def check(self, batches: list[Batch], index: int = 0) -> list[int]:
        """The rows of batches, whose states are those of the rows."""
        rows = [row for batch in batches for row in batch.rows.tolist()]
        for batch in batches:
            np.testing.assert_array_equal(batch.hidden, self.hidden[index, batch.rows])
        return rows


@pytest.fixture(scope="module")
def known(plant: Plant) -> Known:
    hidden = np.random.default_rng(0).standard_normal((len(LAYERS), N_ROWS, WIDTH), np.float32)
    return Known(
        plant(hidden, {"even": [row % 2 == 0 for row in range(N_ROWS)]}, layers=LAYERS, rows_per_shard=ROWS_PER_SHARD), hidden
    )


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(0, 400),
    size=st.integers(1, 90),
    buffer_rows=st.integers(1, 200),
    world_size=st.integers(1, 7),
    seed=st.none() | st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
def test_ranks_share_an_epoch_evenly_and_every_row_comes_once_in_the_order_of_a_single_reader(
    known: Known, n_rows: int, size: int, buffer_rows: int, world_size: int, seed: int | None, epoch: int
) -> None:
    asked = np.random.default_rng(n_rows).permutation(N_ROWS)[:n_rows]

    def rows_of(rank: int, world_size: int) -> list[int]:
        batches = list(
            known.run.batches(
                SITE,
                LAYERS[1],
                size,
                rows=asked,
                shuffle_seed=seed,
                buffer_rows=buffer_rows,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
            )
        )
        rows = known.check(batches, 1)
        assert [len(batch.rows) for batch in batches] == [min(size, len(rows) - start) for start in range(0, len(rows), size)]
        return rows

    ranks = [rows_of(rank, world_size) for rank in range(world_size)]
    together = [row for rows in ranks for row in rows]
    assert sorted(together) == sorted(asked.tolist())
    assert together == rows_of(0, 1)
    assert {len(rows) for rows in ranks} <= {n_rows // world_size, math.ceil(n_rows / world_size)}
    if seed is None:
        assert together == asked.tolist()


def test_without_a_seed_batches_are_the_rows_of_a_condition_in_order(known: Known) -> None:
    batches = list(known.run.batches(SITE, LAYERS[0], 64, where="even"))
    assert known.check(batches) == list(range(0, N_ROWS, 2))
    bits = list(known.run.batches(SITE, LAYERS, 64, "even", "stored"))
    np.testing.assert_array_equal(np.concatenate([batch.hidden for batch in bits], axis=1), known.hidden[:, ::2])


def test_a_seed_repeats_an_order_and_another_epoch_or_seed_has_another(known: Known) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return known.check(list(known.run.batches(SITE, LAYERS[0], 500, shuffle_seed=seed, epoch=epoch, buffer_rows=300)))

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert order(1, 1) == orders[1, 1]
    assert len({tuple(rows) for rows in [*orders.values(), list(range(N_ROWS))]}) == 5


def test_over_many_epochs_every_row_comes_as_early_as_late(known: Known) -> None:
    n_epochs, n_rows = 400, 500
    stream = known.run.dataset(SITE, LAYERS[0], 10, f"row < {n_rows}", shuffle_seed=3, buffer_rows=60).stream
    place_EN = np.stack([np.argsort(stream.order(epoch)) for epoch in range(n_epochs)])
    z_N = (place_EN.mean(axis=0) - (n_rows - 1) / 2) / (n_rows / math.sqrt(12 * n_epochs))
    assert np.abs(z_N).max() < 5


def test_a_buffer_mixes_the_rows_of_its_chunks(known: Known) -> None:
    stream = known.run.dataset(SITE, LAYERS[0], 10, shuffle_seed=3, buffer_rows=1000).stream
    chunk_N = stream.order(0) // ROWS_PER_SHARD * 1000 + stream.order(0) % ROWS_PER_SHARD // ROWS_PER_CHUNK
    n_chunks_of_a_buffer = 1000 / ROWS_PER_CHUNK
    assert (np.diff(chunk_N) == 0).mean() < 1.5 / n_chunks_of_a_buffer


def test_shuffling_reads_hardly_more_chunks_than_there_are(known: Known) -> None:
    run, counting = counted(known.run)
    list(run.batches(SITE, LAYERS[0], 100, shuffle_seed=0, buffer_rows=500))
    n_chunks = run.explain(SITE, LAYERS[0]).n_chunks
    n_read = sum(size > ROW_BYTES for _, size in counting.ranges)  # an index is smaller
    assert n_chunks <= n_read <= n_chunks + N_ROWS // 500


def test_one_buffer_is_read_ahead_and_no_more(known: Known) -> None:
    run, counting = counted(known.run)
    buffer_rows = 100  # whole chunks apart: each buffer touches one or two
    batches = run.batches(SITE, LAYERS[0], 10, buffer_rows=buffer_rows)
    assert not counting.ranges
    next(batches)
    whole = [run.explain(SITE, LAYERS[0], rows=range(start, start + buffer_rows)).n_bytes for start in (0, 100, 200)]
    limit = time.monotonic() + 20
    while counting.read_bytes < whole[0] + whole[1] and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(0.05)
    assert counting.read_bytes == whole[0] + whole[1]


@pytest.mark.parametrize("seed", [None, 0])
def test_memory_holds_three_buffers_and_some_chunks_however_long_the_run_is(plant: Plant, seed: int | None) -> None:
    n_rows, buffer_rows = 8192, 1024
    run = plant(np.zeros((1, n_rows, WIDTH), np.float32), {}, rows_per_shard=2048)
    list(run.batches(SITE, 0, 64, rows=[0], shuffle_seed=seed))  # receipts and metadata are kept
    tracemalloc.start()
    try:
        n_read = sum(len(batch.rows) for batch in run.batches(SITE, 0, 64, shuffle_seed=seed, buffer_rows=buffer_rows))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_read == n_rows
    some_chunks = (2 * run.stored.objects.readers + 2) * CHUNK_BYTES
    assert peak < 3 * buffer_rows * ROW_BYTES + some_chunks < n_rows * ROW_BYTES * 0.8


def test_workers_of_every_rank_read_every_row_once_and_follow_the_epoch(known: Known) -> None:
    datasets = [
        known.run.dataset(SITE, LAYERS[0], 50, "row < 700", shuffle_seed=5, rank=rank, world_size=2, buffer_rows=100)
        for rank in (0, 1)
    ]
    loaders = [DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True) for dataset in datasets]
    passes = []
    for epoch in (0, 1, 0):
        seen = [read(dataset, loader, epoch) for dataset, loader in zip(datasets, loaders, strict=True)]
        for rows, states in seen:
            np.testing.assert_array_equal(states.numpy(), known.hidden[0, rows])
        passes.append([rows.tolist() for rows, _ in seen])
        assert sorted(row for rows in passes[-1] for row in rows) == list(range(700))
    assert passes[0] == passes[2] != passes[1]


def read(
    dataset: StreamedStates, loader: DataLoader[tuple[torch.Tensor, torch.Tensor]], epoch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers and states of an epoch."""
    dataset.set_epoch(epoch)
    rows, states = zip(*loader, strict=True)
    return torch.cat(rows), torch.cat(states)


def test_a_dataset_gives_the_precision_that_is_kept_or_float32(plant: Plant) -> None:
    run = plant(np.ones((1, 9, 4), np.float32), {}, stored_dtype="bfloat16")
    for dtype, expected in (("stored", torch.bfloat16), ("float32", torch.float32)):
        ((rows, states),) = list(run.dataset("resid.last", 0, 20, dtype=dtype))
        assert rows.tolist() == list(range(9))
        assert states.dtype == expected
        assert torch.equal(states, torch.ones(9, 4, dtype=expected))


def test_a_batch_is_the_callers_own(known: Known) -> None:
    first, second = list(known.run.batches(SITE, LAYERS[0], 30, rows=range(60)))
    first.hidden[:] = 0
    first.rows[:] = -1
    np.testing.assert_array_equal(second.hidden, known.hidden[0, 30:60])
    assert first.hidden.base is None


def test_what_cannot_be_streamed_is_refused_at_once_in_one_sentence(known: Known, plant: Plant) -> None:
    run = known.run
    for bad, sentence in (
        ({"size": 0}, "a batch and a buffer have a row at least: size=0, buffer_rows="),
        ({"buffer_rows": 0}, "a batch and a buffer have a row at least: size=10, buffer_rows=0"),
        ({"rank": 2, "world_size": 2}, "ranks count from 0 to world_size - 1: there is no rank 2 of 2"),
        ({"rank": -1}, "there is no rank -1 of 1"),
        ({"world_size": 0}, "there is no rank 0 of 0"),
        ({"shuffle_seed": -1}, "shuffle_seed is a whole number from 0, not -1"),
        ({"rows": [N_ROWS]}, f"has no row {N_ROWS}; its rows are 0 to 2,999"),
        ({"layer": 2}, "does not hold layer 2 of resid.last; it holds 1, 4"),
        ({"site": "resid.mean"}, "does not hold resid.mean; it holds resid.last"),
        ({"dtype": "bfloat16"}, "choose from float32, stored"),
        ({"where": "colour = 1"}, "cannot use where='colour = 1'"),
        ({"where": "even", "rows": [1]}, "where and rows both say which rows; give one of them"),
    ):
        for stream in (run.batches, run.dataset):
            with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
                stream(**({"site": SITE, "layer": LAYERS[0], "size": 10} | bad))  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
    for act in (lambda: run.batches(SITE, LAYERS[0], 10, epoch=-1), lambda: run.dataset(SITE, LAYERS[0], 10).set_epoch(-1)):
        with pytest.raises(ValueError, match="epochs count from 0, so there is no epoch -1"):
            act()
    tokens = plant(np.zeros((1, 6, 2), np.float32), {}, lengths=(1, 2, 3))
    with pytest.raises(ValueError, match=r"resid\.all keeps every token, .*; read it with hidden_tokens"):
        tokens.batches("resid.all", 0, 10)
    incomplete = plant(np.zeros((1, 20, 2), np.float32), {}, rows_per_shard=6, missing={1})
    with pytest.raises(ValueError, match="is not complete: 1 of 4 shards are missing; launch"):
        incomplete.batches("resid.last", 0, 10)
