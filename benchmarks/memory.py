"""Whether memory grows with the corpus: peak of `affectome extract`, all layers, on few and on many short utterances.

python benchmarks/memory.py [--rows 5000,50000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from first_run import commit, processor

_RUN = """
import resource, sys
from cluster.cli import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="5000,50000")
    arguments = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    print(f"python benchmarks/memory.py --rows {arguments.rows}")
    first = 0.0
    for n_rows in map(int, arguments.rows.split(",")):
        peak = peak_gibibytes(n_rows)
        first = first or peak
        print(f"{n_rows:,} rows: {peak:.2f} GiB, {peak / first:.2f} of the first")


def peak_gibibytes(n_rows: int) -> float:
    """Most memory that one extraction held."""
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory) / "short.jsonl"
        corpus.write_text("\n".join(json.dumps({"text": f"number {row}"}) for row in range(n_rows)), "utf-8")
        command = [sys.executable, "-c", _RUN, "extract", "--corpus", str(corpus), "--store", f"{directory}/store"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.splitlines()[-1]) / 2**20


if __name__ == "__main__":
    main()
