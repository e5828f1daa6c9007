"""How well a GPU is used: models of Qwen3's shapes with random weights, texts of one length, on the first device there is.

    python benchmarks/gpu.py [--shapes 0.6b,1.7b,8b] [--rows 20000] [--tokens 64]

MFU is what the blocks' products and attention need, by the time of everything (tokenizing, computing, writing), as a share
of what the device gives a large product of bfloat16, measured here; data sheets are higher than any product reaches. The
idle share is the time in which no kernel runs, of the time of computing, from torch's profiler in a run of its own. On a
machine without a GPU `--shapes tiny` goes the same way on the CPU, to show that the script works.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from first_run import commit, processor
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, Qwen3Config

from extract.bench import Speed, measure_speed
from extract.corpus import Corpus, read_corpus
from extract.engine import default_device
from extract.loading import load_tokenizer
from extract.models import find_model
from extract.packages import BUILTIN
from extract.request import Request
from extract.run import plan_run
from extract.shard import extract_shards


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that make a model of the Qwen3 family."""

    n_layers: int
    """Blocks."""
    width: int
    """Width of the residual stream."""
    mlp_width: int
    """Width of the MLP."""
    n_heads: int
    """Query heads."""
    n_key_heads: int = 8
    """Key and value heads."""
    head_width: int = 128
    """Width of a head."""
    vocabulary: int = 151_936
    """Tokens."""

    def block_flops(self, n_tokens: int) -> float:
        """Floating-point operations of a token in all blocks, where texts have so many tokens."""
        heads = self.head_width * (2 * self.n_heads + 2 * self.n_key_heads)
        products = self.width * (heads + 3 * self.mlp_width)
        attention = 2 * self.head_width * self.n_heads * (n_tokens + 1) / 2  # scores and sums over what is before
        return 2 * self.n_layers * (products + attention)


SHAPES = {
    "tiny": Shape(2, 64, 128, 2, 1, 32, 49_152),
    "0.6b": Shape(28, 1024, 3072, 16),
    "1.7b": Shape(28, 2048, 6144, 16),
    "8b": Shape(36, 4096, 12_288, 32),
}


def main() -> None:
    """Measure every shape and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.6b,1.7b,8b")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    device = default_device()
    console = Console(highlight=False)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{processor()}, {os.cpu_count()} cores"
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {name}, torch {torch.__version__}")
    console.print(f"python benchmarks/gpu.py --shapes {arguments.shapes} --rows {arguments.rows} --tokens {arguments.tokens}")
    peak = large_product_flops(device)
    console.print(f"a large product of bfloat16: {peak / 1e12:,.1f} TFLOP/s")
    corpus = random_texts(arguments.rows, arguments.tokens)
    columns = ("shape", "tokens/s", "MFU", "share of its own products", "GPU idle", "write GB/s", "peak memory GiB")
    table = Table(*columns)
    for key in arguments.shapes.split(","):
        with tempfile.TemporaryDirectory() as directory:
            make_model(SHAPES[key], Path(directory), device)
            speed = measure_speed(Request(directory, corpus, compute_dtype="bfloat16"))
            idle = idle_share(Request(directory, corpus.head(max(1, arguments.rows // 10)), compute_dtype="bfloat16"), device)
        table.add_row(key, *cells(speed, SHAPES[key], peak, arguments.tokens), idle, *memory(speed))
    console.print(table)


def cells(speed: Speed, shape: Shape, peak: float, n_tokens: int) -> tuple[str, ...]:
    """Tokens/s, MFU and the share of the model's own products."""
    mfu = speed.tokens_per_second * shape.block_flops(n_tokens) / peak
    return f"{speed.tokens_per_second:,.0f}", f"{mfu:.1%}", f"{speed.share:.1%}"


def memory(speed: Speed) -> tuple[str, ...]:
    """Speed to disk, and the most memory held."""
    return f"{speed.n_bytes / speed.write_seconds / 1e9:.2f}", f"{speed.peak_bytes / 2**30:.1f}"


def make_model(shape: Shape, directory: Path, device: str) -> None:
    """Write a model of a shape with random weights, and the built-in model's tokenizer, whose ids all fit."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_key_heads,
        head_dim=shape.head_width,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    factory: Any = AutoModel
    with torch.device(device):
        model = factory.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    for path in find_model(BUILTIN).directory.glob("*token*"):
        shutil.copy(path, directory)


def random_texts(n_rows: int, n_tokens: int) -> Corpus:
    """Texts of so many tokens each: words of the built-in corpus, drawn at random, that are one token."""
    tokenizer = load_tokenizer(find_model(BUILTIN))
    words = sorted(
        {word for text in read_corpus("builtin").table["text"].to_pylist() for word in text.split() if word.isalpha()}
    )
    single = [word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1]
    rng = np.random.default_rng(0)
    texts = [" " + " ".join(rng.choice(single, n_tokens)) for _ in range(n_rows)]
    table = pa.table({"utterance_id": [str(row) for row in range(n_rows)], "text": texts})
    return Corpus("random words", table)


@torch.inference_mode()
def large_product_flops(device: str, size: int = 8192) -> float:
    """Floating-point operations a second of a square product of bfloat16, the best of some."""
    size = size if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(4):
            product = left @ right
        float(product[0, 0])  # waits for the device
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best


def idle_share(request: Request, device: str) -> str:
    """Share of the time of computing in which no kernel runs."""
    if not device.startswith("cuda"):
        return "no GPU"
    with tempfile.TemporaryDirectory() as store:
        plan = plan_run(request, store)
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            extract_shards(plan.tasks())
        events: Any = watched.events()
    spans = [(e.time_range.start, e.time_range.end) for e in events if str(e.device_type).endswith("CUDA")]
    return f"{1 - covered(spans) / (max(end for _, end in spans) - min(start for start, _ in spans)):.1%}"


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    main()
