"""How fast extraction is, beside the limit of the hardware and beside what people use today.

    python benchmarks/engine.py [--corpus FILE] [--rows 2000] [--rounds 3] [--peer-python peers/bin/python]

One run of affectome (tokenizing, computing and writing all layers, last token and mean) alternates with each of the other
ways (engine_peers.py), in a process of its own; medians over rounds. The limit is what the matrix products of the blocks
take alone, measured in the same run (extract/bench.py). nnsight and TransformerLens are measured where
--peer-python names an environment that has them (requirements-peers.txt).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from first_run import commit, processor
from rich.console import Console
from rich.table import Table

from extract.bench import Speed, measure_speed
from extract.corpus import Corpus, read_corpus
from extract.models import find_model
from extract.packages import BUILTIN
from extract.request import Request

OWN = ("transformers, as commonly written", "transformers, tuned")
ELSEWHERE = ("nnsight", "TransformerLens")


@dataclass
class Peer:
    """Another way, in a process that waits for its turn."""

    name: str
    """What engine_peers.py calls it."""
    process: subprocess.Popen[str]
    """The process."""
    speeds: list[float] = field(default_factory=list)
    """Tokens/s of each pass."""

    @classmethod
    def start(cls, name: str, python: str, directory: Path, texts: Path) -> "Peer":
        """Load the model."""
        script = Path(__file__).with_name("engine_peers.py")
        command = [python, str(script), name, str(directory), str(texts)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            if process.poll() is not None:
                raise RuntimeError(f"{name} did not start")
        return cls(name, process)

    def run(self) -> None:
        """One pass."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        while line and not line.startswith("["):  # libraries print, too
            line = self.process.stdout.readline()
        seconds, n_tokens = json.loads(line)
        self.speeds.append(n_tokens / seconds)


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--corpus", default="builtin")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--peer-python", help="interpreter of an environment with requirements-peers.txt")
    arguments = parser.parse_args()
    corpus = read_corpus(arguments.corpus).head(arguments.rows)
    request = Request(arguments.model, corpus, token_budget=arguments.token_budget)
    with tempfile.TemporaryDirectory() as directory:
        peers = start_peers(arguments, corpus, Path(directory) / "texts.json")
        ours: list[Speed] = []
        for _ in range(arguments.rounds):
            ours.append(measure_speed(request))
            for peer in peers:
                peer.run()
        for peer in peers:
            peer.process.kill()
    console = Console(highlight=False)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(f"python benchmarks/engine.py {' '.join(_without_paths(arguments))}")
    console.print(f"{arguments.model}, {corpus.n_rows:,} texts, {ours[0].n_tokens / corpus.n_rows:.1f} tokens each")
    console.print(table(ours, peers))
    console.print(split(ours))


def start_peers(arguments: argparse.Namespace, corpus: Corpus, texts: Path) -> list[Peer]:
    """The other ways that can be measured here, each with its model loaded."""
    texts.write_text(json.dumps(corpus.table["text"].to_pylist()), "utf-8")
    directory = find_model(arguments.model).directory
    peers = [Peer.start(name, sys.executable, directory, texts) for name in OWN]
    if arguments.peer_python:
        peers += [Peer.start(name, arguments.peer_python, directory, texts) for name in ELSEWHERE]
    return peers


def table(ours: Sequence[Speed], peers: Sequence[Peer]) -> Table:
    """Speeds, share of the limit, and how many times as fast affectome is, from neighbours of one round."""
    speeds = [speed.tokens_per_second for speed in ours]
    limits = [speed.limit for speed in ours]
    rows = [("matrix products alone", limits), ("affectome, durably on disk", speeds)]
    rows += [(peer.name, peer.speeds) for peer in peers]
    result = Table("what", "tokens/s", "share of limit", "affectome is")
    for name, measured in rows:
        share = statistics.median(one / limit for one, limit in zip(measured, limits, strict=True))
        times = statistics.median(own / one for own, one in zip(speeds, measured, strict=True))
        result.add_row(name, f"{statistics.median(measured):,.0f}", f"{share:.2f}", f"{times:.2f} x")
    return result


def split(ours: Sequence[Speed]) -> str:
    """Where affectome's time goes, and what it holds in memory."""
    parts: dict[str, Any] = {
        "plan and tokenize": "plan_seconds",
        "compute": "compute_seconds",
        "copy": "copy_seconds",
        "write": "write_seconds",
    }
    shares = [
        f"{name} {statistics.median(getattr(speed, attribute) / speed.seconds for speed in ours):.1%}"
        for name, attribute in parts.items()
    ]
    return f"affectome's time: {', '.join(shares)}; peak memory {max(speed.peak_bytes for speed in ours) / 2**30:.2f} GiB"


def _without_paths(arguments: argparse.Namespace) -> list[str]:
    options = {name: value for name, value in vars(arguments).items() if value is not None}
    return [f"--{name.replace('_', '-')} {Path(str(value)).name}" for name, value in options.items()]


if __name__ == "__main__":
    main()
