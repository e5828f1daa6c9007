"""How long slices of a large run take: to plan, to read in any order, and to stream, beside reading the layer at once.

    python benchmarks/slices.py [--rows 400000] [--directory DIR]

Makes a run of 400,000 rows x 2 layers x 576 in bfloat16 (0.9 GB) in a temporary directory. Medians, with the pages in memory:
what the disk adds is in benchmarks/store.py.

Shape suffixes: L layers, N rows of a shard, D width.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
from rich.table import Table
from store import SITE, WIDTH, asked, create, headed, seconds, states, write_shard
from torch.utils.data import DataLoader

from analyze.query import Run, open_store
from analyze.streaming import Streaming

LAYER = 1
BATCH = 256


def main() -> None:
    """Measure everything and print the table."""
    arguments = asked(__doc__)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        location = str(Path(directory) / "store")
        stored = create(Path(location), arguments.rows, layers=2)
        values_LND = states(stored, 0)
        for shard in range(stored.n_shards):
            write_shard(stored, shard, np.ascontiguousarray(values_LND[:, : stored.shard_size(shard)]))
        table = Table("what", "seconds", "MB/s")
        for what, n_bytes, action in actions(location, stored.run_id):
            took = statistics.median(seconds(action) for _ in range(5))
            table.add_row(what, f"{took:.3f}", f"{n_bytes / took / 1e6:,.0f}" if n_bytes else "")
    console = headed("slices", arguments.rows)
    console.print(table)


def actions(location: str, run_id: str) -> list[tuple[str, int, Callable[[], object]]]:
    """What is measured: its name, the bytes of the store that it gives back, and itself."""
    run = open_store(location).run(run_id)
    n_rows = run.manifest.n_rows
    layer_bytes = n_rows * WIDTH * 2
    rows = np.random.default_rng(0).permutation(n_rows)

    def opened() -> Run:
        return open_store(location).run(run_id)

    def stream(**streaming: Unpack[Streaming]) -> None:
        for _ in run.batches(SITE, LAYER, BATCH, dtype="stored", **streaming):
            pass

    def load() -> None:
        dataset = run.dataset(SITE, LAYER, BATCH, shuffle_seed=0)
        for _ in DataLoader(dataset, batch_size=None, num_workers=2):
            pass

    return [
        ("open and plan one row", 0, lambda: opened().explain(SITE, LAYER, rows=[5])),
        ("open and plan every row, in a random order", 0, lambda: opened().explain(SITE, LAYER, rows=rows)),
        ("open and plan a condition (row % 1000 = 7)", 0, lambda: opened().explain(SITE, LAYER, "row % 1000 = 7")),
        ("read a layer, as stored", layer_bytes, lambda: run.hidden(SITE, LAYER, dtype="stored")),
        ("read a layer, bfloat16 tensor", layer_bytes, lambda: run.hidden_torch(SITE, LAYER)),
        ("read a layer, Arrow table of float32", layer_bytes, lambda: run.hidden_arrow(SITE, LAYER)),
        ("read two layers, as stored", 2 * layer_bytes, lambda: run.hidden(SITE, [0, 1], dtype="stored")),
        ("read a layer in a random order, as stored", layer_bytes, lambda: run.hidden(SITE, LAYER, dtype="stored", rows=rows)),
        ("read 100 rows", 100 * WIDTH * 2, lambda: run.hidden(SITE, LAYER, rows=rows[:100])),
        (f"batches of {BATCH}, in order", layer_bytes, stream),
        (f"batches of {BATCH}, shuffled", layer_bytes, lambda: stream(shuffle_seed=0)),
        ("the same through a DataLoader of 2 workers", layer_bytes, load),
    ]


if __name__ == "__main__":
    main()
