"""What a newcomer waits for: `affectome demo` in an empty directory with an empty cache, then a second time.

Run it with: .venv/bin/python benchmarks/first_run.py
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from extract.packages import BUILTIN


def main() -> None:
    """Print wall seconds, peak memory and bytes on disk."""
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {BUILTIN}, torch {torch.__version__}")
    print(f"{processor()}, {os.cpu_count()} cores")
    affectome = Path(sys.executable).with_name("affectome")
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"XDG_CACHE_HOME": f"{directory}/cache"}
        for name in ("first", "second"):
            began = time.perf_counter()
            subprocess.run([affectome, "demo"], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{name} demo: {seconds:.0f} s, peak memory so far {peak:.2f} GiB")
        for part in ("cache", "affectome-demo"):
            size = sum(path.stat().st_size for path in Path(directory, part).rglob("*") if path.is_file())
            print(f"{part}: {size / 2**20:,.0f} MiB on disk")


def commit() -> str:
    """The commit this script stands in."""
    here = Path(__file__).parent
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)  # noqa: S607
    return told.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name, and whether it multiplies bfloat16 itself."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", facts)
    features = [feature for feature in ("amx_bf16", "avx512_bf16") if feature in facts]
    return f"{name[1] if name else 'unknown processor'} ({', '.join(features) or 'no bfloat16 products'})"


if __name__ == "__main__":
    main()
