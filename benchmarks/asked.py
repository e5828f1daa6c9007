"""What is asked for decides what is computed: time of a few-shot template, and of few layers, beside all layers of raw text.

python benchmarks/asked.py [--model NAME] [--corpus FILE] [--rows 600] [--rounds 3]
"""

import argparse
import os
import statistics
from dataclasses import replace
from datetime import UTC, datetime

from first_run import commit, processor

from extract.bench import measure_speed
from extract.corpus import read_corpus
from extract.packages import BUILTIN
from extract.request import Request


def main() -> None:
    """Measure each way in turn, and print medians over neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--corpus", default="builtin")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    raw = Request(arguments.model, read_corpus(arguments.corpus).head(arguments.rows))
    ways = {
        "raw, all layers": raw,
        "few-shot, all layers": replace(raw, template="few-shot"),
        "raw, layers 0 to 8": replace(raw, layers="0:9"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, request in ways.items():
            seconds[name].append(measure_speed(request).seconds)
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    print(f"{arguments.model}, {arguments.rows:,} texts")
    for name, taken in seconds.items():
        share = statistics.median(one / whole for one, whole in zip(taken, seconds["raw, all layers"], strict=True))
        print(f"{name}: {statistics.median(taken):.2f} s, {share:.2f}")


if __name__ == "__main__":
    main()
