"""A run on a Ray cluster while workers, raylets, whole nodes and the driver are killed, held against a quiet run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from extract.store import Store
from extract.verify import verify
from tests.faults.around import Contents, compare, local_objects, read_around
from tests.faults.matrix import Scenario
from tests.ray_cluster import RayCluster, kill, ray_cluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

AFFECTOME = Path(sys.executable).with_name("affectome")
_SECONDS_BETWEEN_FAULTS = 20.0
_ROWS_PER_SHARD = 24
_MOST_NODES = 4


@dataclass(frozen=True, slots=True)
class Quiet:
    """The run that nothing happened to."""

    contents: Contents
    """What it stored."""
    receipts: tuple[Path, ...]
    """Its receipts, one for each shard."""


def command(corpus: Path, store: Path, *more: str) -> list[str | Path]:
    """The launch that is disturbed, and the one that is not."""
    options = ["--dtype", "bfloat16", "--rows-per-shard", str(_ROWS_PER_SHARD), *more]
    return [AFFECTOME, "extract", "--corpus", corpus, "--store", store, *options]


@pytest.fixture(scope="module")
def quiet(goemotions: Path, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """The same extraction in one process, without Ray."""
    store = tmp_path_factory.mktemp("quiet") / "store"
    subprocess.run(command(goemotions / "test.parquet", store), check=True, capture_output=True)
    return Quiet(read_around(local_objects(store)), tuple(store.glob("runs/*/receipts/*.json")))


class Faults:
    """What is done to a cluster and to the driver while a run goes on."""

    def __init__(
        self, cluster: RayCluster, launch: Callable[[], "subprocess.Popen[bytes]"], seed: int, half_done: Callable[[], bool]
    ) -> None:
        self._cluster = cluster
        self._launch = launch
        self._chance = np.random.default_rng(seed)
        self._half_done = half_done
        self.counts = {"worker": 0, "raylet": 0, "node": 0, "driver": 0}
        """What was killed, and how often."""

    def until_done(self) -> "subprocess.Popen[bytes]":
        """Disturb the run until a driver ends by itself."""
        driver, last = self._launch(), time.monotonic()
        while driver.poll() is None:
            time.sleep(0.5)
            present = time.monotonic()
            if not self.counts["driver"] and self._half_done():
                driver.kill()
                driver.wait()
                self.counts["driver"] += 1
                driver = self._launch()
            if present - last > _SECONDS_BETWEEN_FAULTS:
                last = present
                self._disturb()
        return driver

    def _disturb(self) -> None:
        workers, node = self._cluster.worker_pids(), int(self._chance.integers(len(self._cluster.nodes)))
        fault = str(self._chance.choice(["worker", "raylet", "node"], p=[0.5, 0.25, 0.25]))
        if fault == "worker" and workers:
            kill([int(self._chance.choice(workers))])
        elif fault == "node":
            self._cluster.kill_node(node)
        else:
            fault = "raylet"
            self._cluster.kill_raylet(node)
        self.counts[fault] += 1
        if len(self._cluster.nodes) < _MOST_NODES:
            self._cluster.add_node()


@pytest.mark.parametrize("seed", range(10), ids=lambda seed: f"seed{seed}")
def test_a_run_disturbed_every_20_s_equals_a_quiet_one(
    seed: int, quiet: Quiet, goemotions: Path, tmp_path: Path, scenario: Callable[[str], Scenario]
) -> None:
    row = scenario(f"cluster of three nodes, seed {seed}")
    store, log, said = tmp_path / "store", tmp_path / "log.jsonl", tmp_path / "said"
    with ray_cluster(3) as cluster:

        def launch() -> "subprocess.Popen[bytes]":
            words = command(goemotions / "test.parquet", store, "--address", cluster.address, "--log", str(log))
            environment = os.environ | cluster.environment
            with (tmp_path / "out").open("w") as out, said.open("a") as err:
                return subprocess.Popen(words, env=environment, stdout=out, stderr=err)

        def half_done() -> bool:
            return len(list(store.glob("runs/*/receipts/*.json"))) > len(quiet.receipts) / 2

        faults = Faults(cluster, launch, seed, half_done)
        driver = faults.until_done()
        assert driver.returncode == 0, said.read_text()
        n_computed = cluster.n_computed()
    (run,) = Store.open(str(store)).runs()
    assert (tmp_path / "out").read_text().split() == [run.run_id]  # Ray prints pages about each node that dies: not here
    assert verify(run).whole
    row.add(compare(read_around(local_objects(store)), quiet.contents))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    recoveries = [event["recovery_seconds"] for event in events if "recovery_seconds" in event]
    row.times, row.recovery_s = sum(faults.counts.values()), max(recoveries, default=0.0)
    twice = (n_computed - run.n_shards) / run.n_shards
    usual = float(np.median(recoveries)) if recoveries else 0.0
    row.note = f"{faults.counts}, {twice:.1%} of {run.n_shards} shards done twice, a shard is back after {usual:.1f} s (median)"
    assert faults.counts["driver"] == 1
    assert sum(faults.counts.values()) >= 4
    assert twice < 0.10, row.note
    assert row.harmless, row


def test_a_worker_that_stands_still_and_wakes_up_later_does_no_harm(
    quiet: Quiet, goemotions: Path, tmp_path: Path, scenario: Callable[[str], Scenario]
) -> None:
    row, store = scenario("stale worker: stopped, and woken after the run"), tmp_path / "store"
    with ray_cluster(2) as cluster:
        words = command(goemotions / "test.parquet", store, "--address", cluster.address, "--limit", "240")
        environment = os.environ | cluster.environment
        said = tmp_path / "said"
        with said.open("w") as err:
            driver = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=err)
        while len(list(store.glob("runs/*/receipts/*.json"))) < 2:
            time.sleep(0.1)
            assert driver.poll() is None, said.read_text()
        stopped = cluster.worker_pids()[0]
        kill([stopped], signal.SIGSTOP)
        assert driver.wait(timeout=240) == 0, said.read_text()
        kill([stopped], signal.SIGCONT)
        time.sleep(3)
    (run,) = Store.open(str(store)).runs()
    assert verify(run).whole
    row.times, row.rows_lost = 1, 240 - sum(receipt.n_rows for receipt in run.receipts())
    assert row.harmless, row
