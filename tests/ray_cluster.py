"""A real Ray cluster of several nodes on this machine, whose workers and nodes can be killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.session import OWN_TOKEN, read_settings_again

WORKER = "ray::ShardWorker"


class RayCluster:
    """A head that computes nothing, and nodes that come and go. This process does not connect to it."""

    def __init__(self, cluster: Any, environment: dict[str, str]) -> None:
        self._cluster = cluster
        self.environment = environment
        """What a process needs to join it."""
        self.nodes: list[Any] = []
        """Nodes that were added and not killed."""

    @property
    def address(self) -> str:
        """To be given as --address."""
        return str(self._cluster.address)

    @property
    def logs(self) -> Path:
        """Where its processes write their logs."""
        return Path(self._cluster.head_node.get_logs_dir_path())

    def add_node(self, n_cpus: int = 1) -> None:
        """One more node."""
        self.nodes.append(self._cluster.add_node(num_cpus=n_cpus, wait=False))

    def kill_raylet(self, index: int) -> None:
        """SIGKILL a node's raylet alone: its workers find out by themselves."""
        node = self.nodes.pop(index)
        kill([_raylet(node)])
        self._killed.append(node)

    def kill_node(self, index: int) -> None:
        """SIGKILL a node's raylet and workers in one moment, as when its machine is switched off."""
        workers = self.worker_pids(self.nodes[index : index + 1])
        self.kill_raylet(index)
        kill(workers)

    def worker_pids(self, nodes: Sequence[Any] | None = None) -> list[int]:
        """Processes that compute shards on some of its nodes; on all that live, without any named."""
        raylets = {_raylet(node) for node in (self.nodes if nodes is None else nodes)}
        return [pid for pid in processes(WORKER) if parent(pid) in raylets]

    def worker_log(self) -> Iterator[dict[str, Any]]:
        """What workers logged, in no order."""
        for path in self.logs.glob("worker-*.err"):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and entry.get("name") == "affectome.worker":
                        yield entry

    def metrics(self) -> str:
        """What its head exports for Prometheus; empty before it does."""
        url = f"http://127.0.0.1:{self._cluster.head_node.metrics_export_port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def n_computed(self) -> int:
        """How many shards workers began to compute so far, which nobody had done yet."""
        events = [entry["event"] for entry in self.worker_log()]
        return events.count("begins") - events.count("found done")

    _killed: list[Any]


@contextlib.contextmanager
def ray_cluster(n_nodes: int, n_cpus: int = 1) -> Iterator[RayCluster]:
    """A cluster on the loopback interface with token authentication."""
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": OWN_TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_metrics_report_interval_ms": "500",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        from ray.cluster_utils import Cluster

        read_settings_again()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        found = RayCluster(cluster, environment)
        found._killed = []
        try:
            for _ in range(n_nodes):
                found.add_node(n_cpus)
            cluster.wait_for_nodes()
            yield found
        finally:
            for node in [*found.nodes, *found._killed, cluster.head_node]:
                node.kill_all_processes(check_alive=False, allow_graceful=False)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def client_server(cluster: RayCluster) -> Iterator[str]:
    """The address at which a cluster is joined from outside, with ray://, while its server for that runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [
        sys.executable,
        "-m",
        "ray.util.client.server",
        f"--address={cluster.address}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    environment = os.environ | cluster.environment
    server = subprocess.Popen([*words, "--mode=proxy"], env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert server.poll() is None
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with the servers that it started, one for each client
        server.wait()


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def kill(pids: Sequence[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def processes(name: str) -> list[int]:
    """Processes of this machine whose command line begins so."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (entry / "cmdline").read_bytes().startswith(name.encode()):
                found.append(int(entry.name))
    return sorted(found)


def parent(pid: int) -> int:
    """The process that started a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
