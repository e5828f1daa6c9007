"""What an S3 service and s3fs do, which the product relies on, and what they do not.

Names of errors are those of s3fs 2026.9 before SeaweedFS 4.48. AWS also names the condition that failed, and s3fs makes a
FileExistsError of it; services that do not, SeaweedFS among them, give an OSError whose cause alone tells.
"""

import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.s3 import BUCKET, Faults, FaultyProxy, S3Server

errors = pytest.importorskip("botocore.exceptions", reason="these tests want `pip install s3fs`")

ONE_ATTEMPT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 1, "read_timeout": 0.3}

RACER = """
import sys, fsspec
filesystem, path = fsspec.core.url_to_fs(sys.argv[1])
filesystem.exists(path)
print("ready", flush=True)
sys.stdin.readline()
try:
    filesystem.pipe_file(path, sys.argv[2].encode(), mode="create")
    print("created")
except OSError as refusal:
    print(refusal.__cause__.response["Error"]["Code"])
"""


@pytest.fixture(scope="module")
def fs(s3_server: S3Server) -> Any:
    return s3_server.filesystem()


@pytest.fixture
def prefix() -> str:
    return f"{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_server.port) as running:
        yield running


def create(fs: Any, path: str, data: bytes) -> str:
    """How it went: "created", or the code of the refusal."""
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as refusal:
        cause: Any = refusal.__cause__
        return str(cause.response["Error"]["Code"])
    return "created"


def test_an_object_is_created_once(fs: Any, prefix: str) -> None:
    assert create(fs, f"{prefix}/a", b"first") == "created"
    assert create(fs, f"{prefix}/a", b"second") == "PreconditionFailed"
    with pytest.raises(OSError, match="pre-conditions") as refusal:
        fs.pipe_file(f"{prefix}/a", b"third", mode="create")
    assert not isinstance(refusal.value, FileExistsError)
    assert fs.cat_file(f"{prefix}/a") == b"first"


def test_one_of_eight_threads_creates_an_object(fs: Any, prefix: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        for race in range(3):
            path = f"{prefix}/{race}"
            outcomes = list(threads.map(lambda n, path=path: create(fs, path, b"%d" % n), range(8)))
            assert Counter(outcomes) == {"created": 1, "PreconditionFailed": 7}
            assert fs.cat_file(path) == b"%d" % outcomes.index("created")


def test_one_of_three_processes_creates_an_object_with_the_environment_alone(
    fs: Any, s3_server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, f"s3://{prefix}/a", str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 3
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.communicate()[0].strip() for racer in racers]
    assert Counter(outcomes) == {"created": 1, "PreconditionFailed": 2}
    assert fs.cat_file(f"{prefix}/a") == b"%d" % outcomes.index("created")


def test_what_was_written_is_read_and_listed_at_once(s3_server: S3Server, fs: Any, prefix: str) -> None:
    other = s3_server.filesystem()
    for n in range(20):
        fs.pipe_file(f"{prefix}/d/{n:02}", b"x" * n)
        assert other.cat_file(f"{prefix}/d/{n:02}") == b"x" * n
        listed = other.find(prefix, detail=True)
        assert [entry["size"] for entry in listed.values()] == list(range(n + 1))
    assert listed.keys() == {f"{prefix}/d/{n:02}" for n in range(20)}
    for entry in listed.values():
        assert entry["type"] == "file"
        assert abs(entry["LastModified"] - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_listing_reaches_beyond_one_page(fs: Any, prefix: str) -> None:
    paths = [f"{prefix}/{n:04}" for n in range(1100)]
    fs.pipe(dict.fromkeys(paths, b""))
    assert fs.find(prefix) == paths
    fs.rm(paths)
    assert [path for path, entry in fs.find(prefix, detail=True).items() if entry["type"] == "file"] == []


def test_a_range_reads_its_bytes_and_an_empty_one_is_an_error(fs: Any, prefix: str) -> None:
    path = f"{prefix}/a"
    fs.pipe_file(path, b"0123456789")
    assert fs.cat_file(path, start=2, end=5) == b"234"
    assert fs.cat_file(path, start=8, end=50) == b"89"
    assert fs.cat_file(path, start=-3) == b"789"
    for start, end in ((3, 3), (10, 12)):
        with pytest.raises(OSError, match="range"):
            fs.cat_file(path, start=start, end=end)


@pytest.mark.parametrize(
    "read", [lambda fs, p: fs.cat_file(p), lambda fs, p: fs.cat_file(p, start=0, end=1), lambda fs, p: fs.info(p)]
)
def test_an_absent_object_is_not_found(fs: Any, prefix: str, read: Callable[[Any, str], object]) -> None:
    with pytest.raises(FileNotFoundError):
        read(fs, f"{prefix}/absent")
    assert not fs.exists(f"{prefix}/absent")
    assert fs.find(prefix) == []


def test_deleting_takes_many_and_minds_no_absent_ones(fs: Any, prefix: str) -> None:
    fs.pipe({f"{prefix}/d/{n}": b"x" for n in range(5)})
    fs.rm([f"{prefix}/d/{n}" for n in (0, 1, 7)])
    fs.rm_file(f"{prefix}/d/2")
    fs.rm_file(f"{prefix}/d/2")
    assert fs.find(prefix) == [f"{prefix}/d/3", f"{prefix}/d/4"]


def test_an_emptied_prefix_may_be_found_as_a_directory(fs: Any, prefix: str) -> None:
    fs.pipe_file(f"{prefix}/d/a", b"x")
    fs.rm_file(f"{prefix}/d/a")
    assert {entry["type"] for entry in fs.find(f"{prefix}/d", detail=True).values()} <= {"directory"}


def test_a_reader_sees_the_old_object_or_the_new_one(s3_server: S3Server, fs: Any, prefix: str) -> None:
    path, mib = f"{prefix}/a", 1 << 20
    fs.pipe_file(path, b"0" * mib)
    other = s3_server.filesystem()
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(lambda: [fs.pipe_file(path, b"%d" % (n % 10) * (1 + n % 6) * mib) for n in range(40)])
        while not written.done():
            seen = other.cat_file(path, start=0, end=10 * mib)  # a whole read would ask for the size first
            assert seen == seen[:1] * len(seen)
            assert len(seen) in {(1 + n % 6) * mib for n in range(40) if b"%d" % (n % 10) == seen[:1]}
        written.result()


def test_a_creator_whose_answer_is_lost_is_told_that_another_was_first(
    s3_server: S3Server, fs: Any, prefix: str, proxy: FaultyProxy
) -> None:
    """s3fs, botocore and aiohttp each repeat the request; who is refused has to read whose object it is."""
    client = s3_server.filesystem(proxy.endpoint)
    assert create(client, f"{prefix}/a", b"mine") == "created"
    for n in range(3):
        proxy.set_faults(Faults(cut_response=1, cuts=1))
        assert create(client, f"{prefix}/{n}", b"mine") == "PreconditionFailed"
        assert fs.cat_file(f"{prefix}/{n}") == b"mine"
    assert proxy.counts["cut_responses"] == 3


def test_no_option_keeps_a_write_from_being_repeated(s3_server: S3Server, prefix: str, proxy: FaultyProxy) -> None:
    """aiohttp repeats a PUT once by itself, and the answer does not tell."""
    client = s3_server.filesystem(proxy.endpoint, config_kwargs=ONE_ATTEMPT | {"read_timeout": 10})
    client.retries = 1
    proxy.set_faults(Faults(cut_response=1, cuts=1))
    assert create(client, f"{prefix}/a", b"mine") == "PreconditionFailed"
    proxy.set_faults(Faults(cut_response=1, cuts=2))
    with pytest.raises(errors.ConnectionClosedError):
        client.pipe_file(f"{prefix}/b", b"mine", mode="create")
    assert client.cat_file(f"{prefix}/b") == b"mine"


def test_a_creator_whose_request_is_lost_creates_at_the_next_attempt(
    s3_server: S3Server, prefix: str, proxy: FaultyProxy
) -> None:
    client = s3_server.filesystem(proxy.endpoint)
    proxy.set_faults(Faults(cut_request=1, cuts=1))
    assert create(client, f"{prefix}/a", b"mine" * 100_000) == "created"
    assert proxy.counts["cut_requests"] == 1


def test_overwriting_and_reading_survive_a_bad_network_and_a_seed_repeats_it(s3_server: S3Server, prefix: str) -> None:
    counts = []
    for _ in range(2):
        with FaultyProxy(s3_server.port, Faults(cut_request=0.1, cut_response=0.1, delay_s=0.01), seed=2) as proxy:
            client = s3_server.filesystem(proxy.endpoint)
            for n in range(10):
                client.pipe_file(f"{prefix}/{n}", b"%d" % n * 1000)
                assert client.cat_file(f"{prefix}/{n}", start=0, end=1000) == b"%d" % n * 1000
        counts.append(proxy.counts)
        assert min(counts[0][name] for name in ("connections", "cut_requests", "cut_responses", "delayed")) > 0
    assert counts[0] == counts[1]


def test_a_service_that_is_down_is_no_oserror_and_one_attempt_tells_it_at_once(s3_server: S3Server, prefix: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = s3_server.filesystem(f"http://127.0.0.1:{nobody.getsockname()[1]}", config_kwargs=ONE_ATTEMPT)
        began = time.monotonic()
        with pytest.raises(errors.EndpointConnectionError) as failure:
            client.cat_file(f"{prefix}/a")
    assert time.monotonic() - began < 3
    assert not isinstance(failure.value, OSError)


def test_a_service_that_is_silent_ends_a_write_only_by_the_limit_on_the_call(
    s3_server: S3Server, prefix: str, proxy: FaultyProxy
) -> None:
    """botocore asks leave to send (Expect: 100-continue), and aiohttp waits for it without a limit."""
    proxy.set_faults(Faults(delay_s=1e6))
    client = s3_server.filesystem(proxy.endpoint, config_kwargs=ONE_ATTEMPT)
    for attempts in (1, 2):
        client.retries = attempts  # s3fs's own, around botocore's; no constructor takes it
        before = proxy.counts["connections"]
        with pytest.raises(errors.ReadTimeoutError):
            client.info(f"{prefix}/a")
        assert proxy.counts["connections"] - before == attempts
    with pytest.raises(TimeoutError):
        client.pipe_file(f"{prefix}/a", b"", timeout=1.5)  # five times the read timeout
