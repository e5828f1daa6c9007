"""Sends very many hostile requests to a service, and says how many, how long it took, and what broke a promise.

    python -m tests.analyze.service.fuzz --inputs 100000 --minutes 40 --processes 2

Every process has a store and a service of its own, with a second and 256 MB for SQL.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    """Run the processes and print what they report, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.processes == 1:
        from tests.analyze.service.fuzzing import Watch, fuzz  # every process of a query imports this file, and not these

        with tempfile.TemporaryDirectory(prefix="affectome-fuzz-") as directory:
            report = fuzz(Path(directory), Watch.of_this_process(), asked.inputs, asked.minutes, asked.seed)
        sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
        sys.exit(bool(report.found))
    share = ["--inputs", str(-(-asked.inputs // asked.processes)), "--minutes", str(asked.minutes)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.analyze.service.fuzz", *share]
    running = [
        subprocess.Popen([*command, "--seed", str(asked.seed + 1_000_000 * number)]) for number in range(asked.processes)
    ]
    codes = [process.wait() for process in running]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
