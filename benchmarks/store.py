"""How fast the store writes and reads, against what the disk does with the same bytes and against zarr-python.

    python benchmarks/store.py [--rows 400000] [--directory DIR]

Makes a run of 400,000 rows x 31 layers x 576 in bfloat16 (14 GB) in a temporary directory, shard by shard as an extraction
does, each beside one plain `numpy.tofile` plus fsync of the same bytes. Then it reads one layer beside a plain sequential
read of as many bytes, with the pages evicted and with them in memory. Peers alternate within one run; medians.

Shape suffixes: L layers, N rows of a shard, D width.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import zarr
from first_run import commit, processor
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from analyze.query import Run, open_store
from extract.documents import Manifest, Receipt, StoredObject, now
from extract.identity import Identity
from extract.objects import LocalObjects
from extract.request import DEFAULT_DATE, rows_per_shard
from extract.store import Store
from extract.stored_run import StoredRun

LAYERS, WIDTH = 31, 576
SITE = "resid.last"
LAYER = 17


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table."""

    what: str
    """What was done."""
    speed: float
    """MB/s, median."""
    limit: float
    """MB/s of the plain way with as many bytes, median of the same run."""
    share: float
    """Median of the ratios of neighbours: a shared disk is slow for seconds, and then for both."""

    @classmethod
    def of(cls, what: str, ours: Sequence[float], limit: Sequence[float]) -> "Measured":
        """From speeds in bytes/s, measured in turn."""
        shares = [one / other for one, other in zip(ours, limit, strict=True)]
        return cls(what, statistics.median(ours) / 1e6, statistics.median(limit) / 1e6, statistics.median(shares))


@dataclass(frozen=True)
class VolatileObjects(LocalObjects):
    """A local directory that skips every fsync: what durability costs is the difference."""

    def write(self, key: str, parts: Sequence[bytes]) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            for part in parts:
                file.write(part)

    def settle(self, prefix: str) -> None:
        pass


@dataclass(frozen=True)
class CountingObjects(LocalObjects):
    """A local directory that counts what is read of it."""

    touched: dict[str, int] = field(default_factory=dict, compare=False)
    """Bytes read of each key."""

    @property
    def data_bytes(self) -> int:
        """Bytes read of shards."""
        return sum(size for key, size in self.touched.items() if key.startswith("shards/"))

    def read(self, key: str) -> bytes:
        data = super().read(key)
        self.touched[key] = self.touched.get(key, 0) + len(data)
        return data

    @contextmanager
    def open_whole(self, key: str) -> Iterator[BinaryIO]:
        with super().open_whole(key) as file:
            self.touched[key] = self.touched.get(key, 0) + file.seek(0, os.SEEK_END)
            yield file

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        parts = super().read_ranges(key, ranges)
        self.touched[key] = self.touched.get(key, 0) + sum(map(len, parts))
        return parts


def main() -> None:
    """Measure everything and print the table."""
    arguments = asked(__doc__)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        root = Path(directory)
        stored = create(root / "store", arguments.rows)
        lines = [write_all(stored, root / "plain")]
        lines += [write_without_fsync(stored, root / "volatile")]
        run = open_store(str(root / "store")).run(stored.run_id)
        lines += reads(run, root / "plain")
        console = headed("store", arguments.rows)
        console.print(speed_table(lines))
        for line in [*touches(run), *answers(root / "store", stored.run_id)]:
            console.print(line)


def asked(description: str | None) -> argparse.Namespace:
    """How many rows, and where, whoever runs a benchmark of a large run asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory without it")
    return parser.parse_args()


def headed(name: str, n_rows: int) -> Console:
    """A console on which stands when, on what and how a benchmark was run."""
    console = Console(highlight=False)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(f"python benchmarks/{name}.py --rows {n_rows}")
    return console


def create(
    root: Path,
    n_rows: int,
    rows_a_shard: int | None = None,
    layers: int = LAYERS,
    columns: Mapping[str, Sequence[object]] | None = None,
) -> StoredRun:
    """A run without shards, as an extraction of that many utterances creates it, perhaps with more columns of theirs."""
    identity = Identity(
        "sha256:0", "0", "{{ text }}", "", "0", (SITE,), (), tuple(range(layers)), "bfloat16", "bfloat16", "sdpa", False
    )
    manifest = Manifest(
        run_id=identity.run_id,
        identity=identity,
        n_rows=n_rows,
        n_layers=layers - 1,
        width=WIDTH,
        rows_per_shard=rows_a_shard or rows_per_shard(n_rows, layers * WIDTH * 2),
        token_budget=4096,
        compression="none",
        tables=(),
        model="bench",
        template="raw",
        system="",
        date=DEFAULT_DATE,
        corpus="bench",
        created=now(),
    )
    texts = [f"utterance {row} says something of about this length" for row in range(n_rows)]
    names = [str(row) for row in range(n_rows)]
    utterances = pa.table({"row": range(n_rows), "utterance_id": names, "text": texts, **(columns or {})})
    tokens = pa.table({"row": range(n_rows), "ids": [[1, 2, 3]] * n_rows, "start": [0] * n_rows, "stop": [3] * n_rows})
    return Store.open(str(root), create=True).create_run(manifest, {"utterances": utterances, "tokens": tokens})


def states(stored: StoredRun, shard: int) -> NDArray[np.uint16]:
    """Bits of bfloat16 hidden states for a shard, (L, N, D)."""
    start, stop = stored.shard_rows(shard)
    shape = len(stored.layers(SITE)), stop - start, WIDTH
    states_LND = np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.ascontiguousarray(states_LND.view(np.uint16)[..., 1::2])


def write_all(stored: StoredRun, plain: Path) -> Measured:
    """Every shard as an extraction writes it, beside one file with the same bytes; the files are kept for reading."""
    ours, theirs = [], []
    plain.mkdir()
    whole_LND = states(stored, 0)
    for shard in range(stored.n_shards):
        values_LND = np.ascontiguousarray(whole_LND[:, : int(np.diff(stored.shard_rows(shard))[0])])
        ours.append(values_LND.nbytes / seconds(partial(write_shard, stored, shard, values_LND)))
        theirs.append(values_LND.nbytes / seconds(partial(write_plain, plain / f"shard-{shard}", values_LND)))
    layer = whole_LND[0]
    with (plain / "layer").open("wb") as file:
        for _ in range(-(-stored.manifest.n_rows * WIDTH * 2 // layer.nbytes)):
            layer.tofile(file)
    return Measured.of("write shards, durably; limit: numpy.tofile + fsync", ours, theirs)


def write_without_fsync(stored: StoredRun, directory: Path) -> Measured:
    """A few shards written without any fsync, beside the same with: what durability costs."""
    volatile = StoredRun(VolatileObjects(directory), stored.manifest)
    durable = StoredRun(LocalObjects(directory), stored.manifest)
    values_LND = states(stored, 0)
    with_it, without = [], []
    for _ in range(9):
        with_it.append(values_LND.nbytes / seconds(lambda: durable.write_attempt(0, {SITE: values_LND})))
        without.append(values_LND.nbytes / seconds(lambda: volatile.write_attempt(0, {SITE: values_LND})))
    return Measured.of("write shards, durably; limit: ours without fsync", with_it, without)


def write_shard(stored: StoredRun, shard: int, values_LND: NDArray[np.uint16]) -> None:
    """Write and commit one shard."""
    stored.commit(receipt_of(stored, shard, *stored.write_attempt(shard, {SITE: values_LND})))


def receipt_of(stored: StoredRun, shard: int, attempt: str, objects: tuple[StoredObject, ...]) -> Receipt:
    """The receipt of a shard that no model made."""
    start, stop = stored.shard_rows(shard)
    return Receipt(
        run_id=stored.run_id,
        shard=shard,
        entry=0,
        start=start,
        stop=stop,
        attempt=attempt,
        objects=objects,
        tokens="0" * 64,
        n_tokens=stop - start,
        n_truncated=0,
        n_computed=0,
        n_shared=0,
        forward="transformers",
        n_halved=0,
        token_budget=4096,
        compression="none",
        device="cpu",
        host="bench",
        seconds={"write": 0.0},
        versions={},
        finished=now(),
    )


def write_plain(path: Path, values: NDArray[np.uint16]) -> None:
    """The limit: one file, one fsync."""
    with path.open("wb") as file:
        values.tofile(file)
        file.flush()
        os.fsync(file.fileno())


def reads(run: Run, plain: Path) -> list[Measured]:
    """One layer in full: through the product, and through zarr-python, beside a sequential read of as many bytes."""
    lines = []
    n_bytes = run.manifest.n_rows * WIDTH * 2
    paths = [Path(run.stored.objects.url(entry.path)) for receipt in run.stored.receipts() for entry in receipt.objects]
    of_layer = [path for path in paths if path.name == f"c.{LAYER}.0.0"]
    peers: dict[str, Callable[[], object]] = {
        "read a layer, as stored": lambda: run.hidden(SITE, LAYER, dtype="stored"),
        "read a layer, as float32": lambda: run.hidden(SITE, LAYER),
        "read a layer, zarr-python, as bits": lambda: read_with_zarr(run),
    }
    for path in plain.glob("shard-*"):
        path.unlink()
    evict(paths)  # what was just written fills the memory that readers need
    run.hidden(SITE, 0)  # receipts and metadata are read once for a run
    for name, read in peers.items():
        for state in ("cold", "in memory"):
            ours: list[float] = []
            limit: list[float] = []
            for _ in range(9):
                for speeds, action in ((ours, read), (limit, lambda: np.fromfile(plain / "layer", np.uint16, n_bytes // 2))):
                    (evict if state == "cold" else load)([*of_layer, plain / "layer"])
                    speeds.append(n_bytes / seconds(action))
            lines.append(Measured.of(f"{name}, {state}; limit: numpy.fromfile", ours, limit))
    return lines


def read_with_zarr(run: Run) -> NDArray[np.uint16]:
    """The layer as anybody can read it (docs/store.md, section 7)."""
    parts = []
    for receipt in run.stored.receipts():
        array = zarr.open_array(Path(run.stored.objects.url(receipt.objects[-1].path)).parent, mode="r")
        parts.append(np.asarray(array[LAYER]))
    return np.concatenate(parts)


def touches(run: Run) -> list[str]:
    """What reading a layer and reading 100 rows touch."""
    counting = CountingObjects(Path(run.stored.objects.url()))
    watched = Run(StoredRun(counting, run.manifest))
    watched.hidden(SITE, 0)  # receipts and metadata
    counting.touched.clear()
    watched.hidden(SITE, LAYER)
    layer_bytes = counting.data_bytes
    others = [key for key in counting.touched if key.startswith("shards/") and not key.endswith(f"/c.{LAYER}.0.0")]
    counting.touched.clear()
    rows = np.sort(np.random.default_rng(0).choice(run.manifest.n_rows, 100, replace=False))
    watched.hidden_rows(SITE, LAYER, rows)
    few = counting.data_bytes
    return [
        f"a layer in full: {layer_bytes:,} bytes read, {len(others)} objects of other layers or metadata touched",
        f"100 random rows of a layer: {few:,} bytes read, {few / layer_bytes:.1%} of the layer's",
    ]


def answers(store: Path, run_id: str) -> list[str]:
    """How long a store of this size takes to open, to answer `runs` and to plan a read, in a fresh process."""
    program = (
        "import sys, time, numpy as np; from analyze.query import open_store; "
        "from cluster.commands.extraction import _run_row; "
        "began = time.perf_counter(); store = open_store(sys.argv[1]); run = store.run(sys.argv[2]); "
        "row = _run_row(run.stored); answered = time.perf_counter(); run.hidden_rows('resid.last', 3, np.array([5])); "
        'print(f\'opened and answered runs ({row["rows_done"]:,} rows) in {answered - began:.2f} s, '
        "planned a read and read a row in {time.perf_counter() - answered:.2f} s more')"
    )
    result = subprocess.run([sys.executable, "-c", program, store, run_id], capture_output=True, text=True, check=True)
    command = [str(Path(sys.executable).with_name("affectome")), "runs", str(store)]
    took = seconds(lambda: subprocess.run(command, capture_output=True, check=True))
    return [result.stdout.strip(), f"affectome runs as a command, with Python's start and imports: {took:.2f} s"]


def evict(paths: Sequence[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(paths: Sequence[Path]) -> None:
    """Bring files into the page cache."""
    for path in paths:
        path.read_bytes()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def speed_table(lines: Sequence[Measured]) -> Table:
    """The speeds beside their limits."""
    table = Table("what", "MB/s", "limit MB/s", "share")
    for line in lines:
        table.add_row(line.what, f"{line.speed:,.0f}", f"{line.limit:,.0f}", f"{line.share:.0%}")
    return table


if __name__ == "__main__":
    main()
