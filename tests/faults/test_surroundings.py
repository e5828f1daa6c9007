"""A disk that fills, a network that fails, a server that is down, a command that is ended midway."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.around import Contents, Objects, live_receipts, local_objects, s3_objects, unnamed_attempts
from tests.faults.launch import Launch
from tests.faults.matrix import Scenario, hold_to_account
from tests.faults.worker import Job
from tests.s3 import BUCKET, Faults, FaultyProxy, S3Server

pytestmark = pytest.mark.faults


def command(job: Job) -> list[str]:
    """The extraction as a user types it."""
    request = job.request()
    options = {
        "--store": job.store,
        "--model": job.model,
        "--sites": request.sites,
        "--limit": job.n_rows,
        "--rows-per-shard": job.rows_per_shard,
    }
    typed = [str(word) for option in options.items() for word in option]
    return [str(Path(sys.executable).with_name("affectome")), "extract", *typed, "--truncate"]


@contextlib.contextmanager
def disk_of(directory: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """Mount a small disk; yields a function that gives it another size."""
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", directory], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a full disk needs a small one, and mounting it failed: {mounted.stderr.strip()}")
    try:

        def resize(more: int) -> None:
            subprocess.run(["mount", "-o", f"remount,size={more}k", directory], check=True)

        yield resize
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_is_said_gets_its_space_back_and_loses_nothing(
    job: Job, tmp_path: Path, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario]
) -> None:
    row = scenario("disk full")

    def objects() -> Objects:
        return local_objects(Path(job.store))

    for kib in (20, *range(240, 308, 8)):  # so that it is full at one object after another
        with disk_of(tmp_path / f"disk-{kib}", kib) as resize:
            job = replace(job, store=str(tmp_path / f"disk-{kib}" / "store"))
            launch = Launch(job).end()
            assert "No space left on device" in launch.error
            assert unnamed_attempts(objects()) == set(), f"a disk of {kib} KiB did not get its space back"
            before = set(live_receipts(objects()))
            resize(8192)
            again = Launch(job).end()
            assert not again.error
            row.times += 1
            row.shards_lost += len(before - set(live_receipts(objects())))
            row.done_twice = max(row.done_twice, launch.n_computed + again.n_computed - 8)
            row.recovery_s = max(row.recovery_s, time.monotonic() - again.began)
            hold_to_account(job.store, objects, undisturbed[1], row)
    assert row.harmless, row


def test_the_command_says_in_a_sentence_that_the_disk_is_full(job: Job, tmp_path: Path) -> None:
    with disk_of(tmp_path / "disk", 280):
        ended = subprocess.run(
            command(replace(job, store=str(tmp_path / "disk" / "store"))), capture_output=True, text=True, check=False
        )
    assert ended.returncode == 1
    assert "error: the disk is full; free some space and launch again: finished shards are kept" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("requests cut", Faults(cut_request=0.1)),
        ("responses cut", Faults(cut_response=0.1)),
        ("cut and delayed", Faults(cut_request=0.05, cut_response=0.05, delay_s=0.05)),
    ],
)
def test_a_failing_network_costs_time_and_nothing_else(
    job: Job,
    s3_server: S3Server,
    s3_environment: dict[str, str],
    undisturbed: tuple[Launch, Contents],
    scenario: Callable[[str], Scenario],
    name: str,
    faults: Faults,
) -> None:
    row, store = scenario(f"S3, {name}"), f"s3://{BUCKET}/network-{uuid.uuid4().hex}"
    crashes = computed = 0
    with FaultyProxy(s3_server.port, faults, seed=1) as proxy:
        job = replace(job, store=store, environment=s3_server.environment(proxy.endpoint))
        while True:
            launch = Launch(job).end()
            computed += launch.n_computed
            if not launch.error:
                break
            crashes += 1
            assert crashes < 12, launch.error
            assert "s3://" in launch.error, launch.error
        row.times = proxy.counts["cut_requests"] + proxy.counts["cut_responses"]
        row.note = f"{crashes} launches gave up, {proxy.counts['delayed']:,} chunks delayed"
    row.recovery_s = time.monotonic() - launch.began
    row.done_twice = (computed - 8) / crashes if crashes else float(computed - 8)
    hold_to_account(store, lambda: s3_objects(s3_server, store), undisturbed[1], row)
    assert row.times
    assert row.harmless, row


def test_a_server_that_is_down_is_named_in_a_sentence(job: Job, s3_server: S3Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        environment = {**os.environ, **s3_server.environment(f"http://127.0.0.1:{closed.getsockname()[1]}")}
        store = f"s3://{BUCKET}/down"
        ended = subprocess.run(
            command(replace(job, store=store)), env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert store in lines[-1]
    assert "Traceback" not in ended.stderr


def test_a_command_ended_midway_goes_on_where_it_was(
    job: Job, undisturbed: tuple[Launch, Contents], scenario: Callable[[str], Scenario]
) -> None:
    row, store = scenario("command ended: SIGTERM, SIGKILL"), Path(job.store)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, status in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        before = len(list(store.glob("runs/*/receipts/*.json")))
        process = subprocess.Popen(command(job), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(store.glob("runs/*/receipts/*.json"))) < before + 3 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait() == status
        row.times += 1
        row.shards_lost += max(0, before - len(live_receipts(local_objects(store))))
    began = time.monotonic()
    subprocess.run(command(job), env=environment, check=True, capture_output=True)
    row.recovery_s = time.monotonic() - began
    row.done_twice = len(unnamed_attempts(local_objects(store))) / row.times
    hold_to_account(job.store, lambda: local_objects(store), undisturbed[1], row)
    assert row.harmless, row
