"""What one layer of one class costs: bytes read beside bytes needed, speed beside the disk's, time to the plan and to a batch.

    python benchmarks/query.py [--rows 400000] [--directory DIR]

Makes a run of 400,000 rows x 31 layers x 576 in bfloat16 (14 GB) in a temporary directory, laid out as an extraction lays it,
with seven classes twice: in a corpus that is sorted by class, where the rows of one lie together, and in one that is not, where
each row is of one by chance and nearly every chunk holds some. Reads alternate with a plain sequential read of as many bytes.

Shape suffixes: L layers, N rows of a shard, D width.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.table import Table
from store import (
    LAYER,
    SITE,
    WIDTH,
    CountingObjects,
    Measured,
    asked,
    create,
    evict,
    headed,
    load,
    seconds,
    speed_table,
    states,
    write_shard,
)

from analyze.query import Run, open_store
from extract.stored_run import StoredRun

CLASSES = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
CONDITIONS = {"sorted by class": "in_order = 'fear'", "in no order": "mixed = 'fear'"}
_ROUNDS = 9
_IN_A_FRESH_PROCESS = """
import sys, time
from analyze.query import open_store
location, run_id, site, layer, where = sys.argv[1:]
began = time.perf_counter()
run = open_store(location).run(run_id)
run.explain(site, int(layer), where)
planned = time.perf_counter()
next(run.batches(site, int(layer), 256, where, shuffle_seed=0))
print(planned - began, time.perf_counter() - planned)
"""


def main() -> None:
    """Measure everything and print the tables."""
    arguments = asked(__doc__)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        root = Path(directory)
        run = planted(root / "store", arguments.rows)
        console = headed("query", arguments.rows)
        console.print(costs(run))
        console.print(speed_table(speeds(run, root / "plain")))
        console.print(waits(run))


def planted(root: Path, n_rows: int) -> Run:
    """The run, written shard by shard."""
    class_of_row = np.arange(n_rows) * len(CLASSES) // n_rows
    columns = {
        "in_order": [CLASSES[each] for each in class_of_row],
        "mixed": [CLASSES[each] for each in np.random.default_rng(0).permutation(class_of_row)],
    }
    stored = create(root, n_rows, columns=columns)
    values_LND = states(stored, 0)
    for shard in range(stored.n_shards):
        write_shard(stored, shard, np.ascontiguousarray(values_LND[:, : stored.shard_size(shard)]))
    return open_store(str(root)).run(stored.run_id)


def costs(run: Run) -> Table:
    """Bytes that one layer of one class costs, counted while it is read."""
    counting = CountingObjects(Path(run.stored.objects.url()))
    watched = Run(StoredRun(counting, run.manifest))
    watched.hidden(SITE, LAYER, rows=[0])  # receipts and metadata are read once for a run
    table = Table("one class", *CONDITIONS)
    columns = []
    for where in CONDITIONS.values():
        counting.touched.clear()
        n_rows = len(watched.hidden(SITE, LAYER, where, "stored"))
        plan = watched.explain(SITE, LAYER, where)
        read, rows, chunks = counting.data_bytes, n_rows * WIDTH * 2, plan.n_chunks * chunk_bytes(watched)
        sizes = (n_rows, rows, chunks, plan.n_bytes, read)
        columns.append([*(f"{size:,}" for size in sizes), *(f"{read / least:.2f} x" for least in (rows, chunks))])
    names = (
        "rows",
        "their bytes",
        "bytes of their chunks",
        "planned",
        "read",
        "read, of their bytes",
        "read, of their chunks'",
    )
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *cells)
    return table


def chunk_bytes(run: Run) -> int:
    """Bytes of a chunk, its checksum included: none can be checked without all of them."""
    one = run.explain(SITE, LAYER, rows=[0])
    two = run.explain(SITE, LAYER, rows=[0, run.manifest.rows_per_shard - 1])
    assert (one.n_chunks, two.n_chunks) == (1, 2), "the first and the last row of a shard lie apart"
    return two.n_bytes - one.n_bytes


def speeds(run: Run, plain: Path) -> list[Measured]:
    """One layer of one class beside a sequential read of as many bytes, from the disk and from memory."""
    paths = [Path(run.stored.objects.url(entry.path)) for receipt in run.stored.receipts() for entry in receipt.objects]
    evict(paths)  # what was just written fills the memory that readers need
    of_layer = [path for path in paths if path.name == f"c.{LAYER}.0.0"]
    lines = []
    for what, where in CONDITIONS.items():
        n_bytes = run.explain(SITE, LAYER, where).n_bytes
        rows = np.flatnonzero(np.isin(run.utterances()["row"], run.utterances(where)["row"]))
        with plain.open("wb") as file:
            np.random.default_rng(0).integers(0, 1 << 16, n_bytes // 2, np.uint16).tofile(file)
        for dtype in ("stored", "float32"):
            for state in ("cold", "in memory"):
                ours: list[float] = []
                limit: list[float] = []
                for _ in range(_ROUNDS):
                    for found, action in (
                        (ours, lambda dtype=dtype, rows=rows: run.hidden(SITE, LAYER, dtype=dtype, rows=rows)),
                        (limit, lambda: np.fromfile(plain, np.uint16)),
                    ):
                        (evict if state == "cold" else load)([*of_layer, plain])
                        found.append(n_bytes / seconds(action))
                lines.append(Measured.of(f"{what}, {dtype}, {state}; limit: numpy.fromfile", ours, limit))
    return lines


def waits(run: Run) -> Table:
    """Seconds until a fresh process has planned a read, and until it has the first shuffled batch after that."""
    table = Table("one class of a corpus", "opened and planned, s", "first batch after that, s")
    for what, where in CONDITIONS.items():
        command = [sys.executable, "-c", _IN_A_FRESH_PROCESS, run.stored.store_location, run.run_id, SITE, str(LAYER), where]
        found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(_ROUNDS)]
        medians = [statistics.median(map(float, column)) for column in zip(*found, strict=True)]
        table.add_row(what, *(f"{median:.3f}" for median in medians))
    return table


if __name__ == "__main__":
    main()
