"""The benchmark that needs a GPU still runs without one, so that it is not found broken where there is one at last."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_gpu_benchmark_goes_the_same_way_on_a_cpu(builtin_model: object) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--shapes", "tiny", "--rows", "40", "--tokens", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("│ tiny"))
    tokens_per_second = float(row.split("│")[2].replace(",", ""))
    assert tokens_per_second > 0


def test_idle_time_is_what_no_kernel_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu import covered

    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
