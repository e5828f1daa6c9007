"""Probes give the same bits on any number of cores.

OpenBLAS asks how many cores a process may use when it is loaded, so fewer cores need a process of their own.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from analyze.fitting import KINDS, read
from analyze.mapping import one_thread
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from analyze.states import states_in
from tests.analyze.conftest import Plant

N_ROWS = 1000
WIDTH = 256
N_LABELS = 6
"""Large enough that logistic regression on two threads of OpenBLAS gives other bits than on one."""

_ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from tests.analyze.test_cores import blas_threads, bits
from analyze.query import open_store
print(blas_threads())
print(bits(open_store(sys.argv[1]).run(sys.argv[2])), end="")
"""


def blas_threads() -> int:
    """How many threads the linear algebra of this process takes when nobody limits it."""
    return max(int(library["num_threads"]) for library in threadpool_info() if library["user_api"] == "blas")


def bits(run: Run) -> str:
    """All that probes say of a run: their results, and a digest of every probability."""
    hidden = run.hidden("resid.last", 0)
    found = []
    for kind in KINDS:
        probed = probe_layers(run, "resid.last", run.layers, ProbeSpec(kind))
        with one_thread():  # as every analysis reads
            (scores,) = read(states_in(hidden), [(probed.probes[0], np.arange(N_ROWS))])
        found.append(f"{kind} {hashlib.sha256(scores.tobytes()).hexdigest()} {probed.result!r}")
    return "\n".join(found)


def test_one_core_and_all_cores_give_the_same_bits(plant: Plant) -> None:
    if len(os.sched_getaffinity(0)) < 2 or blas_threads() < 2:
        pytest.skip("one core, or OpenBLAS is limited to one thread: there is nothing to compare with")
    rng = np.random.default_rng(0)
    labels = [str(label) for label in rng.permutation(np.arange(N_ROWS) % N_LABELS)]
    run = plant(rng.standard_normal((1, N_ROWS, WIDTH)).astype(np.float32), {"label": labels})
    command = [sys.executable, "-c", _ON_ONE_CORE, run.stored.store_location, run.run_id]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    threads, _, alone = done.stdout.partition("\n")
    assert threads == "1"
    assert alone == bits(run)
