"""How long nearest neighbours over a large run take, beside reading the layer at once and beside scikit-learn on it in memory.

    python benchmarks/similarity.py [--rows 400000] [--directory DIR]

Makes a run of 400,000 rows x 1 layer x 576 in bfloat16 (461 MB), no two states alike, with two massive activations, in a
temporary directory. Medians of 5, with the pages in memory. scikit-learn gets the layer as a float32 array, and its time is
without reading that. Peaks are of numpy's memory beyond what was there before. The last column says of how many neighbours
scikit-learn says the same, row and rank.

Shape suffixes: L layers, N rows of a shard, D width, Q queries, K neighbours.
"""

import statistics
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from sklearn.neighbors import NearestNeighbors
from store import SITE, WIDTH, asked, create, headed, seconds, write_shard

from analyze.query import Run, open_store
from analyze.scaling import moments
from analyze.similarity import along, nearest
from extract.stored_run import StoredRun

LAYER, K, ROUNDS = 0, 10, 5


def main() -> None:
    """Measure everything and print the table."""
    arguments = asked(__doc__)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        location = str(Path(directory) / "store")
        stored = create(Path(location), arguments.rows, layers=1)
        for shard in range(stored.n_shards):
            write_shard(stored, shard, states(stored, shard))
        run = open_store(location).run(stored.run_id)
        table = Table("what", "seconds", "MiB at peak", "same neighbours")
        for row in [*ours(run), *beside_scikit_learn(run)]:
            table.add_row(*row)
    console = headed("similarity", arguments.rows)
    console.print(table)


def states(stored: StoredRun, shard: int) -> NDArray[np.uint16]:
    """Bits of bfloat16 hidden states for a shard, (1, N, D)."""
    start, stop = stored.shard_rows(shard)
    states_ND = np.random.default_rng(shard).standard_normal((stop - start, WIDTH), np.float32)
    states_ND[:, [7, 300]] = 200 + 20 * states_ND[:, [7, 300]]
    return np.ascontiguousarray(states_ND.view(np.uint16)[None, :, 1::2])


def ours(run: Run) -> list[tuple[str, ...]]:
    """What has no peer here."""
    rng = np.random.default_rng(0)
    direction_D = rng.standard_normal(WIDTH)
    actions: list[tuple[str, Callable[[], object]]] = [
        ("read the layer, as stored", lambda: run.hidden(SITE, LAYER, dtype="stored")),
        ("read the layer, float32", lambda: run.hidden(SITE, LAYER)),
        (f"{K} at both ends of a direction", lambda: along(run, SITE, LAYER, direction_D, K)),
        ("mean and deviations, for scaling", lambda: moments(run, SITE, LAYER)),
    ]
    return [(what, *measured(action), "") for what, action in actions]


def beside_scikit_learn(run: Run) -> list[tuple[str, ...]]:
    """Queries of either, in turn."""
    hidden_ND = run.hidden(SITE, LAYER)
    rows: list[tuple[str, ...]] = []
    for metric in ("cosine", "euclidean"):
        peer = NearestNeighbors(n_neighbors=K, algorithm="brute", metric=metric).fit(hidden_ND)
        for n_queries in (1, 100):
            queries_QD = hidden_ND[:: len(hidden_ND) // n_queries][:n_queries] + np.float32(0.1)

            def mine(metric: str = metric, queries_QD: NDArray[np.float32] = queries_QD) -> NDArray[np.int64]:
                return nearest(run, SITE, LAYER, queries_QD, K, metric=metric).rows_QK

            def theirs(peer: NearestNeighbors = peer, queries_QD: NDArray[np.float32] = queries_QD) -> NDArray[np.int64]:
                found: NDArray[np.int64] = peer.kneighbors(queries_QD, return_distance=False)
                return found

            same = f"{(mine() == theirs()).mean():.1%}"
            what = f"{K} nearest of {n_queries} by {metric}"
            rows += [
                (what, *measured(mine), same),
                ("  scikit-learn, in memory", *measured(theirs), ""),
            ]
    return rows


def measured(action: Callable[[], object]) -> tuple[str, str]:
    """Seconds and, of another time, peak memory."""
    took = statistics.median(seconds(action) for _ in range(ROUNDS))
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return f"{took:.3f}", f"{peak / 2**20:,.0f}"


if __name__ == "__main__":
    main()
