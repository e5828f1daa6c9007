"""Extraction by workers of a real Ray: the same bytes as in one process, and what happens when shards or workers fail."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet
import pytest

from extract.corpus import read_corpus
from extract.launches import announced
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store
from extract.stored_run import StoredRun
from tests.faults.around import compare, local_objects, read_around
from tests.ray_cluster import WORKER, RayCluster, client_server, kill, processes, ray_cluster

AFFECTOME = Path(sys.executable).with_name("affectome")
ROWS, ROWS_PER_SHARD = 48, 4
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same seen through IPv6, and ::1, as /proc has them."""


def command(model: Model, store: Path, *more: str | Path) -> list[str | Path]:
    shape = ["--limit", str(ROWS), "--rows-per-shard", str(ROWS_PER_SHARD), "--truncate", "--dtype", "float32"]
    return [AFFECTOME, "extract", "--model", model.name, "--store", store, *shape, *more]


def start(words: list[str | Path], environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
    return subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan(model: Model, store: Path) -> StoredRun:
    """The run that `command` makes, with nothing of it done."""
    corpus = read_corpus("builtin").head(ROWS)
    request = Request(model.name, corpus, truncate=True, compute_dtype="float32", rows_per_shard=ROWS_PER_SHARD)
    return plan_run(request, str(store)).run


@pytest.fixture(scope="module")
def alone(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes."""
    store = tmp_path_factory.mktemp("alone") / "store"
    corpus = read_corpus("builtin").head(ROWS)
    request = Request(tiny_model.name, corpus, truncate=True, compute_dtype="float32", rows_per_shard=ROWS_PER_SHARD)
    extract_missing(plan_run(request, str(store)))
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes of one CPU."""
    with ray_cluster(2) as found:
        yield found


def damage_tokens(table: Path, shard: int) -> None:
    """Make one shard's token ids unreadable, and no other's."""
    column = pyarrow.parquet.ParquetFile(table).metadata.row_group(shard).column(1)
    data = bytearray(table.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 2] ^= 0xFF
    table.write_bytes(data)


def same(store: Path, alone: Path) -> bool:
    difference = compare(read_around(local_objects(store)), read_around(local_objects(alone)))
    return not (difference.rows_lost or difference.rows_doubled or difference.corrupt)


def test_two_workers_make_what_one_process_makes_and_log_every_shard(tiny_model: Model, alone: Path, tmp_path: Path) -> None:
    store, log, here = tmp_path / "store", tmp_path / "log.jsonl", tmp_path / "a user's own"
    here.mkdir()
    for name in ("extract.py", "analyze.py"):  # which Ray would put before ours on its workers' path
        (here / name).write_text("raise SystemExit(f'{__file__} was imported')")
    words = command(tiny_model, store, "--workers", "2", "--log", log)
    done = subprocess.run(words, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert same(store, alone)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    shards = sorted(event["shard"] for event in events if event["event"] == "shard done")
    assert shards == list(range(ROWS // ROWS_PER_SHARD))
    for event in events:
        assert {"time", "level", "run", "launch", "worker"} <= event.keys()
    assert "time of all workers: load" in done.stderr
    again = subprocess.run(command(tiny_model, store, "--workers", "2"), capture_output=True, text=True)
    assert "is finished already" in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_running_cluster_is_joined_and_the_run_is_planned_there(
    tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    store = tmp_path / "store"
    words = command(tiny_model, store, "--address", cluster.address)
    done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(store, alone)
    logged = [entry for entry in cluster.worker_log() if entry["run"] == done.stdout.strip()]
    assert {entry["shard"] for entry in logged if entry["event"] == "done"} == set(range(ROWS // ROWS_PER_SHARD))
    assert all({"run", "launch", "worker", "shard", "attempt"} <= entry.keys() for entry in logged if entry["event"] == "done")


@pytest.mark.slow
def test_a_cluster_is_joined_from_outside_by_rays_client(
    tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    with client_server(cluster) as address:
        words = command(tiny_model, tmp_path / "store", "--address", address)
        done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "store", alone)


@pytest.mark.slow
def test_what_was_done_is_exported_for_prometheus(tiny_model: Model, tmp_path: Path, cluster: RayCluster) -> None:
    words = command(tiny_model, tmp_path / "store", "--limit", "44", "--address", cluster.address)
    done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tag, ended = f'run="{done.stdout.strip()}"', time.monotonic()
    counts = {"rows": 44, "shards": 11}
    while time.monotonic() - ended < 90:  # the exporter starts late and reports now and then
        found = dict(line.rpartition(" ")[::2] for line in cluster.metrics().splitlines() if tag in line)
        values = {name.partition("{")[0]: float(value) for name, value in found.items() if "_bucket" not in name}
        if all(values.get(f"ray_affectome_{name}_total") == count for name, count in counts.items()):
            break
        time.sleep(0.5)
    assert {name: values.get(f"ray_affectome_{name}_total") for name in counts} == counts
    receipts = Store.open(str(tmp_path / "store")).run(done.stdout.strip()).receipts()
    assert values["ray_affectome_bytes_total"] == sum(receipt.n_bytes for receipt in receipts)
    assert values["ray_affectome_tokens_total"] == sum(receipt.n_computed for receipt in receipts)
    for stage in ("write", "compute"):  # their sums are Ray's estimate from the buckets
        assert values[f"ray_affectome_{stage}_seconds_count"] == 11


@pytest.mark.slow
def test_a_mistake_is_told_in_the_sentence_that_one_process_tells(
    tiny_model: Model, tmp_path: Path, cluster: RayCluster
) -> None:
    words = command(tiny_model, tmp_path / "store", "--layers", "9", "--address", cluster.address)
    done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True)
    here = subprocess.run(command(tiny_model, tmp_path / "store", "--layers", "9"), capture_output=True, text=True)
    assert done.returncode == here.returncode == 2
    assert done.stderr.splitlines()[-1] == here.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_shard_that_always_fails_is_given_up_and_all_others_are_done(
    tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    store = tmp_path / "store"
    run = plan(tiny_model, store)
    damage_tokens(next(store.glob("runs/*/tables/*/tokens.parquet")), shard=5)
    words = command(tiny_model, store, "--address", cluster.address)
    done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: run {run.run_id} is incomplete: 1 of 12 shards failed 3 times")
    assert "shard 5: " in last
    assert "attempt failed" not in done.stderr.splitlines()  # the log's words, which nobody asked for
    assert run.missing_shards() == [5]
    status = subprocess.run([AFFECTOME, "status", store], capture_output=True, text=True, check=True)
    assert "shard 5 was given up after 3 attempts: " in status.stdout


@pytest.mark.slow
def test_two_launches_at_once_share_the_shards(tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster) -> None:
    store = tmp_path / "store"
    run = plan(tiny_model, store)
    before = cluster.n_computed()
    both = [
        start(command(tiny_model, store, "--address", cluster.address, "--workers", "1"), cluster.environment) for _ in range(2)
    ]
    said = [launch.communicate(timeout=120)[1] for launch in both]
    assert [launch.returncode for launch in both] == [0, 0], said
    assert same(store, alone)
    assert cluster.n_computed() - before <= ROWS // ROWS_PER_SHARD + 3
    assert announced(run) == []


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster) -> None:
    store = tmp_path / "store"
    launch = start(command(tiny_model, store, "--address", cluster.address), cluster.environment)
    while not list(store.glob("runs/*/launches/*.json")) or not cluster.worker_pids():
        time.sleep(0.05)
        assert launch.poll() is None, launch.communicate()
    kill(cluster.worker_pids())
    _, said = launch.communicate(timeout=120)
    assert launch.returncode == 0, said
    assert "left: its worker died" in said
    assert same(store, alone)


@pytest.mark.slow
def test_a_worker_that_is_killed_for_lack_of_memory_is_told_as_that(tiny_model: Model, tmp_path: Path) -> None:
    """By Ray's own monitor, which is told to kill where a thousandth of the machine's memory is in use."""
    full = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    launch = start(command(tiny_model, tmp_path / "store", "--workers", "1"), full)
    assert launch.stderr is not None
    said = ""
    for line in launch.stderr:
        said += line
        if "left: " in line:
            break
    launch.terminate()
    launch.communicate(timeout=60)
    assert "worker w0 left: its worker was killed because its node ran low on memory" in said


@pytest.mark.slow
def test_a_launch_that_is_told_to_stop_says_so_in_the_store_and_can_be_gone_on_with(
    tiny_model: Model, alone: Path, tmp_path: Path, cluster: RayCluster
) -> None:
    store = tmp_path / "store"
    launch = start(command(tiny_model, store, "--address", cluster.address), cluster.environment)
    while not list(store.glob("runs/*/launches/*.json")):
        time.sleep(0.05)
        assert launch.poll() is None, launch.communicate()
    launch.send_signal(signal.SIGTERM)
    _, said = launch.communicate(timeout=60)
    assert launch.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said
    (run,) = Store.open(str(store)).runs()
    assert [found.announcement.state for found in announced(run)] == ["stopped"]
    status = subprocess.run([AFFECTOME, "status", store, "--json"], capture_output=True, text=True, check=True)
    (row,) = json.loads(status.stdout)
    assert row["state"] == "unfinished"
    again = subprocess.run(command(tiny_model, store), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert same(store, alone)


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses, in hexadecimal as /proc has them, and ports on which a process listens."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").glob("*") if link.is_symlink()]
    sockets = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    found = [row[1].rpartition(":") for row in rows if row[3] == "0A" and row[9] in sockets]
    return [(address, int(port, 16)) for address, _, port in found]


def descendants(pid: int) -> set[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread may end between being listed and being asked
            children += map(int, (task / "children").read_text().split())
    return {pid}.union(*(descendants(child) for child in children))


@pytest.mark.slow
def test_a_ray_started_here_listens_on_loopback_alone_and_refuses_who_lacks_its_token(
    tiny_model: Model, tmp_path: Path
) -> None:
    launch = start(command(tiny_model, tmp_path / "store", "--workers", "1"))
    while not (workers := set(processes(WORKER)) & descendants(launch.pid)):
        time.sleep(0.05)
        assert launch.poll() is None, launch.communicate()
    (worker,) = workers
    kill([worker], signal.SIGSTOP)  # so that it does not end before it was looked at
    mine = descendants(launch.pid)
    found = [each for pid in mine for each in listening(pid)]
    assert len(found) >= 4, "Ray's ports were not found"
    assert {address for address, _ in found} <= LOOPBACK
    (gcs,) = [pid for pid in mine if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]]
    port = listening(gcs)[0][1]
    ask = (
        f"from ray._raylet import GcsClient; GcsClient(address='127.0.0.1:{port}').internal_kv_keys(b'', None); print('let in')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        stranger = subprocess.run(
            [sys.executable, "-c", ask], env=environment | token, capture_output=True, text=True, timeout=60
        )
        assert stranger.returncode != 0
        assert "let in" not in stranger.stdout
        assert "InvalidAuthToken" in stranger.stderr
    kill([worker], signal.SIGCONT)
    _, said = launch.communicate(timeout=120)
    assert launch.returncode == 0, said


def test_a_cluster_is_not_joined_without_a_token(tiny_model: Model, tmp_path: Path) -> None:
    words = command(tiny_model, tmp_path / "store", "--address", "127.0.0.1:6379")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no token for the Ray at 127.0.0.1:6379")


@pytest.mark.slow
def test_an_address_where_no_ray_is_is_named(tiny_model: Model, tmp_path: Path, cluster: RayCluster) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        words = command(tiny_model, tmp_path / "store", "--address", address)
        done = subprocess.run(words, env=os.environ | cluster.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"cannot join the Ray at {address}" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--workers", "2", "--gpus-per-worker", "1.5"], "give a fraction of one GPU or a whole number"),
        (["--workers", "2", "--gpus-per-worker", "1"], "2 workers with 1 GPU each need 2, and this machine has 0"),
        (["--workers", "1", "--cpus-per-worker", "0"], "--cpus-per-worker 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tiny_model: Model, tmp_path: Path, options: list[str], sentence: str) -> None:
    done = subprocess.run(command(tiny_model, tmp_path / "store", *options), capture_output=True, text=True)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
