"""Commands with processes, network and /tmp/ray of their own: a Ray that is found, or ended, is theirs and nobody else's."""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net"]
_SET_UP = 'ip link set lo up && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && exec "$@"'


@functools.cache
def _possible() -> bool:
    try:
        return subprocess.run([*_UNSHARE, "sh", "-c", _SET_UP, "_", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def run_alone(
    command: Sequence[str | Path], environment: Mapping[str, str], seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command with nobody around; affectome, Ray and Python are on its PATH."""
    if not _possible():
        pytest.skip("this machine gives users no namespaces (unshare), which keep this Ray apart from others")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [*_UNSHARE, "sh", "-c", _SET_UP, "_", *command],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
