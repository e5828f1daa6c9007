"""What KubeRay does with a RayJob in HTTP mode, done by hand: a head is started with a token, and a job is posted to it.

Run as a program, alone on its network (tests.deploy.alone): ENTRYPOINT FILE. Writes a Witness to FILE.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_JOBS = "http://127.0.0.1:8265/api/jobs/"
_METRICS = "http://127.0.0.1:8080/metrics"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_SECONDS_BETWEEN_EXPORTS = 10.0


@dataclass(frozen=True, slots=True)
class Witness:
    """What was seen."""

    without_token: int
    """HTTP status of a request without the token."""
    status: str
    """How the job ended."""
    logs: str
    """What the job printed."""
    metrics: str
    """What the head exported soon after the job's end, and once before."""


def main(entrypoint: str, path: Path) -> None:
    """Start a head, post the job, wait for its end, look at the metrics."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    start = ["ray", "start", "--head", "--num-cpus=2", "--metrics-export-port=8080", "--object-store-memory=134217728"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    without = _status_without_token()
    job = _ask(_JOBS, {"entrypoint": entrypoint})["submission_id"]
    seen = set()
    while (status := _ask(f"{_JOBS}{job}")["status"]) not in _ENDED:
        seen |= set(_read(_METRICS).splitlines())
        time.sleep(1)
    ended = time.monotonic()
    while time.monotonic() - ended < _SECONDS_BETWEEN_EXPORTS:
        seen |= set(_read(_METRICS).splitlines())
        time.sleep(1)
    logs = _ask(f"{_JOBS}{job}/logs")["logs"]
    path.write_text(json.dumps(asdict(Witness(without, status, logs, "\n".join(sorted(seen))))))


def _ask(url: str, body: object = None) -> Any:
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return json.loads(_read(urllib.request.Request(url, data, headers)))  # noqa: S310


def _read(request: str | urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(answer.read().decode())


def _status_without_token() -> int:
    try:
        _read(_JOBS)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
