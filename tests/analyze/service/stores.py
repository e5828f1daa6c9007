"""A small store with one of everything that a service answers about."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from analyze import results
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from analyze.saved import save_probes
from extract.store import Store as StoredRuns
from tests.analyze.test_sql import LABELS, N_ROWS, planted_run
from tests.planted import plant_run, write_planted


@dataclass(frozen=True, slots=True)
class Planted:
    """A store, and what is in it."""

    location: str
    """Its directory."""
    whole: Run
    """Complete, with labels, probes and their scores."""
    partial: Run
    """Without its first shard."""
    tokens: Run
    """Complete, at resid.last and resid.all."""


def plant(directory: Path) -> Planted:
    """Make the store in a directory."""
    stored = StoredRuns.open(str(directory / "store"), create=True)
    rng = np.random.default_rng(1)
    columns = {
        "text": [f'text {row}: "é" \x00 😀' for row in range(N_ROWS)],
        "label": [LABELS[index] for index in rng.integers(0, 2, N_ROWS)],
        "n_tokens": rng.integers(0, 9, N_ROWS).tolist(),
        "valence": pa.array([None if row % 7 == 0 else row / 8 for row in range(N_ROWS)], pa.float64()),
        "odd": pa.array([float("nan"), float("inf")] * (N_ROWS // 2), pa.float64()),
        "marks": [["a", "b"], None] * (N_ROWS // 2),
        "said": pa.array([10**12 * row for row in range(N_ROWS)], pa.timestamp("us")),
    }
    whole = planted_run(stored, "one", columns)
    probed = probe_layers(whole, "resid.last", whole.layers, ProbeSpec("linear"))
    results.save(whole, probed.result)
    save_probes(whole, probed)
    late = {"text": ["text"] * N_ROWS, "late": pa.array([10**17 * row for row in range(N_ROWS)], pa.timestamp("us"))}
    partial = planted_run(stored, "two", late, missing=frozenset({0}))
    tokens = plant_run(stored, "lz4")
    for shard in range(tokens.n_shards):
        assert tokens.commit(write_planted(tokens, shard, 0))
    return Planted(stored.location, whole, partial, Run(tokens))


def files(directory: str) -> Iterator[tuple[str, int, int]]:
    """Every file below a directory with its size and when it was written: what a reader must leave alone."""
    for path in sorted(Path(directory).rglob("*")):
        status = path.stat()
        yield str(path), status.st_size, status.st_mtime_ns
