"""A whole corpus at full size: 400,000 synthetic utterances written, extracted and verified with the commands a user types.

    python benchmarks/scale.py [--rows 400000] [--directory DIR]

The built-in model, every layer, the default sites, one worker with all processors of this machine. Times are those of the
store: from the run's creation to its last receipt, and each stage's sum over the shards. In a directory where it was begun it
goes on, and where it is finished it only verifies and prints; it needs 80 KB of disk for each utterance.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from first_run import commit, processor
from rich.console import Console

from cluster.status import stage_seconds
from extract.packages import BUILTIN
from extract.store import Store

AFFECTOME = Path(sys.executable).with_name("affectome")


def main() -> None:
    """Do it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--directory", type=Path, help="where corpus and store are kept; a temporary directory without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        lines = measure(directory, arguments.rows)
    console = Console(highlight=False, width=128)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {BUILTIN}, {processor()}, {os.cpu_count()} cores")
    console.print(f"python benchmarks/scale.py --rows {arguments.rows}")
    for line in lines:
        console.print(line)


def measure(directory: Path, n_rows: int) -> list[str]:
    """Write, extract and verify what is not there yet; what it took."""
    corpus, store = directory / "corpus.parquet", directory / "store"
    if not corpus.exists():
        run("corpus", "synth", "--n", n_rows, "--seed", 0, "--out", corpus)
    threads = os.cpu_count() or 1
    run("extract", "--corpus", corpus, "--store", store, "--workers", 1, "--cpus-per-worker", threads)
    began = time.perf_counter()
    run("verify", store)
    verified = time.perf_counter() - began
    (stored,) = Store.open(str(store)).runs()
    receipts = stored.receipts()
    created = datetime.fromisoformat(stored.manifest.created)
    seconds = (max(datetime.fromisoformat(receipt.finished) for receipt in receipts) - created).total_seconds()
    n_bytes = sum(receipt.n_bytes for receipt in receipts)
    n_tokens = sum(receipt.n_tokens for receipt in receipts)
    layers, sites = len(stored.manifest.identity.layers), " and ".join(stored.manifest.identity.sites)
    return [
        f"{n_rows:,} utterances, {n_tokens:,} tokens, {layers} layers, {sites}, {stored.n_shards} shards, {threads} threads",
        f"extracted in {seconds:,.0f} s: {n_rows / seconds:,.1f} rows/s, {n_tokens / seconds:,.0f} tokens/s",
        "of the worker's time: " + ", ".join(f"{name} {took:,.0f} s" for name, took in stage_seconds(receipts)),
        f"{n_bytes:,} bytes, {n_bytes / n_rows:,.0f} an utterance; {n_bytes / seconds / 1e6:.1f} MB/s",
        f"every byte verified in {verified:,.0f} s: {n_bytes / verified / 1e6:,.0f} MB/s",
    ]


def run(*words: object) -> None:
    """A command of affectome's; its own lines go to standard error."""
    subprocess.run([AFFECTOME, *map(str, words)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
