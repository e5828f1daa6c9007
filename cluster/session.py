"""A connection to Ray: one started here, on the loopback interface and closed to who lacks its token, or a running one.

Ray executes whatever code a peer sends it, so a port that others reach is a shell for them (CVE-2023-48022). A Ray that is
started here therefore listens on 127.0.0.1 alone and asks for a token made for this process; a running one is joined with the
token of its operator. Ray reads both settings when it is imported, which is why nothing here imports it earlier.
"""

import contextlib
import io
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.execution import Demand, Execution, demand_here, demand_of

log = logging.getLogger("affectome.ray")

_OBJECT_STORE_BYTES = 128 << 20  # one corpus, and answers of analyses; Ray would take a third of the machine
OWN_TOKEN = secrets.token_hex(32)
"""Of every Ray that this process starts: Ray remembers the first token that a process uses."""

_REACH_SECONDS = 10.0
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0 binds every port to 127.0.0.1, on Linux as well
_PRESTART = "RAY_prestart_worker_first_driver"  # 1 starts a process for each CPU before anybody wants one


@contextlib.contextmanager
def connected(execution: Execution) -> Iterator[tuple[Demand, int | None]]:
    """Start Ray here, or join the one at an address; on leaving, what was started here is ended.

    Yields:
        What a worker takes, and how many there are to be: None for as many as there is room for at any time.

    Raises:
        ValueError: there is no Ray at the address, its token is missing or wrong, or it has no room for what was asked.
    """
    with _environment(execution.address), contextlib.redirect_stdout(_ToLog()):
        import ray

        if ray.is_initialized():  # a notebook's own, or a test's: whoever made it ends it
            _check_same(ray, execution.address)
            yield demand_of(execution, [resources for _, resources in living_nodes()]), execution.workers
            return
        try:
            with _keeping_signals(), contextlib.chdir(os.sep):  # a worker would import what lies in the directory of its driver
                found = _connect(ray, execution)
            yield found
        finally:
            ray.shutdown()


class _ToLog(io.TextIOBase):
    """What Ray prints on standard output, pages for each node that dies, which must not get between a command and its pipe."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("ray", extra={"text": text.strip()})
        return len(text)


def visible_gpus() -> int:
    """CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count()


def living_nodes() -> list[tuple[str, dict[str, float]]]:
    """Each living node's name and resources."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return [(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]


@contextlib.contextmanager
def _environment(address: str | None) -> Iterator[None]:
    """Ray's settings while it is connected."""
    wanted = {_MODE: os.environ.get(_MODE, "token")}
    if address is None:
        wanted |= {_MODE: "token", _TOKEN: OWN_TOKEN, _LOOPBACK_ONLY: "0", _PRESTART: "0"}
        if "ray" in sys.modules:  # imported before: it has read the variable already
            sys.modules["ray"]._private.ray_constants.ENABLE_RAY_CLUSTER = False
    elif wanted[_MODE] == "token" and not _has_token():
        raise ValueError(
            f"no token for the Ray at {address}: put its operator's into {_TOKEN}, or into a file named by {_TOKEN_PATH} "
            f"(a Ray without tokens executes anybody's code; it is joined with {_MODE}=disabled)"
        )
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    read_settings_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_settings_again() -> None:
    """Ray reads its mode when it is imported, which a notebook may have done long ago, and its token once."""
    if "ray" not in sys.modules or sys.modules["ray"].is_initialized():
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # native code

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _connect(ray: Any, execution: Execution) -> tuple[Demand, int | None]:
    if execution.address is None:
        workers, demand = demand_here(execution, visible_gpus())
        _start(ray, workers, demand)
        return demand, workers
    _join(ray, execution.address)
    return demand_of(execution, [resources for _, resources in living_nodes()]), execution.workers


def _check_same(ray: Any, address: str | None) -> None:
    """A process is in one Ray at a time; a name, or ray://, may well be another way to that one."""
    own = ray.get_runtime_context().gcs_address
    if address is not None and re.fullmatch(r"(\d+\.){3}\d+:\d+", address) and address != own:
        raise ValueError(f"this process is in the Ray at {own} already; give --address auto for that, or ray.shutdown() first")


def _has_token() -> bool:
    path = os.environ.get(_TOKEN_PATH)
    return bool(os.environ.get(_TOKEN)) or (Path(path) if path else Path.home() / ".ray" / "auth_token").is_file()


def _start(ray: Any, workers: int, demand: Demand) -> None:
    ray.init(
        address="local",  # never one that is found running here
        num_cpus=workers * demand.cpus + 1,  # one for analysis tasks and planning beside them
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="error",
    )


def _join(ray: Any, address: str) -> None:
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (Exception, SystemExit) as error:  # ConnectionError, AuthenticationError, RuntimeError, an exit: as Ray likes
        if isinstance(error, SystemExit) and error.code != 1:  # a signal
            raise
        raise _cannot_join(address, _in_a_line(error)) from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):  # `auto`, or something that Ray is to judge
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise _cannot_join(address, f"nobody answers there ({error.strerror or error})") from error


def _in_a_line(error: BaseException) -> str:
    """The first line of what may be pages; where that only announces a cause, the last as well, which names it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def _cannot_join(address: str, why: str) -> ValueError:
    return ValueError(
        f"cannot join the Ray at {address}: {why}; "
        f"check the address, that the cluster runs, and the token ({_TOKEN} or {_TOKEN_PATH})"
    )


@contextlib.contextmanager
def _keeping_signals() -> Iterator[None]:
    """Ray's own handler of SIGTERM ends a driver without a word (cluster.console.stopping_on_sigterm has one)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
