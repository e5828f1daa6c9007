"""Whether hidden states are worth compressing: ratio and speed of each codec on real states, and where it breaks even.

The states are the built-in model's over the built-in corpus, every layer, at the default sites, in chunks of rows of one
layer as the store cuts them. The model computes in the dtype that is stored: float32 states that were bfloat16 once are
half zeros and flatter every codec. MB are 10^6 raw bytes, speeds are those of one thread and medians over rounds in
which the codecs take turns.

Break-even. With B bytes a second of storage for each thread, a raw byte takes 1/B; compressed by the ratio r and coded
at S raw bytes a second it takes 1/(rB) + 1/S, for storage and codec wait for each other. So compression saves time where
B < S (1 - 1/r), with S of compression when writing and of decompression when reading. Checksums, over 10 GB/s, are left out.

Run it with: .venv/bin/python benchmarks/compression.py (with TMPDIR on the storage to measure)
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import google_crc32c
import numpy as np
from first_run import commit, processor
from numcodecs import blosc, zstd

from cluster.console import print_rows
from extract.batches import plan_padded_batches
from extract.budget import CPU_TOKENS
from extract.corpus import read_corpus
from extract.encoding import Values, to_stored
from extract.engine import Engine, default_device
from extract.loading import load_tokenizer, read_shape
from extract.models import find_model
from extract.packages import BUILTIN
from extract.request import DEFAULT_SITES
from extract.sites import parse_sites
from extract.templates import Template
from extract.tokens import Prompt, continued

Row = dict[str, str | int | float | None]


class Codec:
    """No compression. The codecs of numcodecs, which has no types, have the same two methods."""

    def encode(self, values: Values) -> bytes:
        return values.tobytes()

    def decode(self, data: bytes) -> bytes:
        return data


CODECS: dict[str, Codec] = {
    "none": Codec(),
    "zstd 1": zstd.Zstd(1),
    "zstd 3": zstd.Zstd(3),
    "blosc lz4 5 bytes": blosc.Blosc("lz4", 5, blosc.SHUFFLE),
    "blosc lz4 5 bits": blosc.Blosc("lz4", 5, blosc.BITSHUFFLE),
    "blosc zstd 1 bits": blosc.Blosc("zstd", 1, blosc.BITSHUFFLE),
    "blosc zstd 5 bits": blosc.Blosc("zstd", 5, blosc.BITSHUFFLE),
}
"""By name: codec, level, and what blosc shuffles first, the bytes of the values or their bits."""
CHUNKS_KIB = (256, 1024)
CASES = [(name, kib) for kib in CHUNKS_KIB for name in CODECS]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of each step: the codec alone, then through a file with checksums and fsync, cold without the page cache."""

    compress: float
    decompress: float
    write: float
    read: float
    read_cold: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Ratio and speed of codecs on hidden states.")
    parser.add_argument("--rows", type=int, default=1024, help="utterances (default: one shard)")
    parser.add_argument("--rounds", type=int, default=5, help="times to measure each codec")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], help="what is computed and stored")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    blosc.use_threads = False
    heading = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {BUILTIN}, numcodecs {version('numcodecs')}",
        f"{processor()}, {os.cpu_count()} cores, one used",
        f".venv/bin/python {shlex.join(sys.argv)}",
    ]
    print("\n".join(heading), flush=True)
    tables: dict[str, list[Row]] = {}
    for dtype in arguments.dtypes:
        states = hidden_states(arguments.rows, dtype)
        with tempfile.TemporaryDirectory() as directory:
            rounds = measure(states, arguments.rounds, Path(directory, "chunks"))
        tables[dtype] = [summary(*case, states, [samples[case] for samples in rounds]) for case in CASES]
        print_rows(f"{dtype}, {arguments.rows:,} rows, speeds in MB/s", tables[dtype], as_json=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"heading": heading} | tables, indent=1) + "\n")


def hidden_states(n_rows: int, dtype: str) -> list[Values]:
    """Each site's states, layers x rows x width, computed as a shard computes them."""
    model = find_model(BUILTIN)
    shape, sites = read_shape(model), parse_sites(DEFAULT_SITES)
    texts = read_corpus("builtin").head(n_rows).table["text"].to_pylist()
    template = Template("raw", load_tokenizer(model))
    prompts = [prompt for prompt in continued(template.prompts(texts), (), shape.context, True) if isinstance(prompt, Prompt)]
    engine = Engine(model.directory, dtype, "sdpa", default_device())
    batches = list(plan_padded_batches([len(prompt.ids) for prompt in prompts], CPU_TOKENS))
    in_order = np.argsort(np.concatenate(batches))
    pooled = [engine.pool([prompts[row] for row in batch], range(shape.n_layers + 1), sites) for batch in batches]
    stored = (np.concatenate([to_stored(batch[site], dtype) for batch in pooled], axis=1) for site in sites)
    return [states.take(in_order, axis=1) for states in stored]


def measure(states: Sequence[Values], rounds: int, path: Path) -> list[dict[tuple[str, int], Seconds]]:
    """Time every case in every round."""
    chunks = {kib: [chunk for site in states for layer in site for chunk in cut(layer, kib)] for kib in CHUNKS_KIB}
    return [{case: sample(CODECS[case[0]], chunks[case[1]], path) for case in CASES} for _ in range(rounds)]


def cut(layer: Values, kib: int) -> list[Values]:
    """One layer's chunks; the last may be shorter."""
    rows = max(1, kib * 1024 // layer[0].nbytes)
    return [layer[first : first + rows] for first in range(0, len(layer), rows)]


def sample(codec: Codec, chunks: Sequence[Values], path: Path) -> Seconds:
    """Time every step once, and check that every bit comes back."""
    encoded: list[bytes] = []
    copies = [np.zeros_like(chunk) for chunk in chunks]
    compress = timed(lambda: encoded.extend(codec.encode(chunk) for chunk in chunks))
    decompress = timed(lambda: [len(codec.decode(data)) for data in encoded])
    write_file = timed(lambda: write(codec, chunks, path))
    sizes = [len(data) for data in encoded]
    warm = timed(lambda: read(codec, sizes, path, copies))
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = timed(lambda: read(codec, sizes, path, copies))
    assert all(copy.tobytes() == chunk.tobytes() for copy, chunk in zip(copies, chunks, strict=True)), codec
    return Seconds(compress, decompress, write_file, warm, cold)


def timed(step: Callable[[], object]) -> float:
    """Seconds that a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def write(codec: Codec, chunks: Sequence[Values], path: Path) -> None:
    """Compress chunks into a file, each followed by its checksum, and make the file durable."""
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            data = codec.encode(chunk)
            file.write(data)
            file.write(google_crc32c.value(data).to_bytes(4, "little"))
        os.fsync(file.fileno())


def read(codec: Codec, sizes: Sequence[int], path: Path, copies: Sequence[Values]) -> None:
    """Read the file back, checking every chunk, into arrays of the chunks' shapes."""
    with path.open("rb", buffering=0) as file:
        for size, copy in zip(sizes, copies, strict=True):
            data, checksum = file.read(size), file.read(4)
            assert google_crc32c.value(data) == int.from_bytes(checksum, "little"), path
            copy[...] = np.frombuffer(codec.decode(data), copy.dtype).reshape(copy.shape)


def summary(name: str, kib: int, states: Sequence[Values], samples: Sequence[Seconds]) -> Row:
    """A table's row: ratios of everything, by layer and by site, median speeds and break-evens."""
    encode, raw = CODECS[name].encode, states[0][0].nbytes
    packed = np.array([[sum(len(encode(chunk)) for chunk in cut(layer, kib)) for layer in site] for site in states])
    ratio, by_layer, (last, mean) = raw / packed.mean(), raw / packed, raw / packed.mean(axis=1)
    seconds = {step: median(getattr(sample, step) for sample in samples) for step in Seconds.__slots__}
    speeds = {step: round(raw * packed.size / 1e6 / taken) for step, taken in seconds.items()}
    row: Row = {
        "codec": name,
        "chunk_KiB": kib,
        "ratio": float(ratio),
        "layers": f"{by_layer.min():.2f}..{by_layer.max():.2f}",
        "last": float(last),
        "mean": float(mean),
        **speeds,
        "write_pays_below": round(speeds["compress"] * (1 - 1 / ratio)),
        "read_pays_below": round(speeds["decompress"] * (1 - 1 / ratio)),
    }
    return row if name != "none" else row | dict.fromkeys(("compress", "decompress", "write_pays_below", "read_pays_below"))


if __name__ == "__main__":
    main()
