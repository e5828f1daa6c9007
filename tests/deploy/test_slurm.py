"""The batch script: read by ShellCheck, and run for real on one node, with a few lines in place of Slurm's two commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extract.models import Model
from extract.store import Store
from tests.deploy.alone import run_alone
from tests.deploy.files import DEPLOY

_SCRIPT = DEPLOY / "slurm" / "extract.sbatch"
_SRUN = """#!/bin/bash
# srun of a job with one node: what it runs, here. It also looks at the token while the job has it.
while [[ $1 == --* ]]; do shift; done
stat --format '%a %s' "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" > "$WITNESS"
exec "$@"
"""
_SCONTROL = """#!/bin/bash
case "$1" in
  show) echo localhost ;;
  requeue) echo "$2" > "$WITNESS.requeued"; kill -TERM 0 ;;
esac
"""


def options() -> dict[str, str]:
    """What the script asks of Slurm."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", _SCRIPT.read_text(), re.MULTILINE))


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job with one node."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    return {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path / "home"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "WITNESS": str(tmp_path / "witness"),
        "STORE": str(tmp_path / "store"),
        "RAY_AUTH_TOKEN": "of another cluster",
    }


def test_shellcheck_has_nothing_to_say() -> None:
    result = subprocess.run([Path(sys.executable).with_name("shellcheck"), _SCRIPT], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_bash_can_read_it() -> None:
    subprocess.run(["bash", "-n", _SCRIPT], check=True)


def test_it_takes_whole_nodes_and_comes_back_when_interrupted() -> None:
    asked = options()
    assert asked["ntasks-per-node"] == "1"
    assert {"exclusive", "requeue"} <= set(asked)
    assert asked["open-mode"] == "append"
    assert asked["signal"].startswith("B:USR1@")


@pytest.mark.slow
def test_a_job_of_one_node_ends_with_a_run_in_the_store(tiny_model: Model, tmp_path: Path, job: dict[str, str]) -> None:
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": f"text number {n} of many"}) for n in range(40)))
    done = run_alone(["bash", _SCRIPT], job | {"MODEL": tiny_model.name, "CORPUS": str(corpus)})
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store.open(job["STORE"])
    (run_id,) = store.run_ids()
    assert not store.run(run_id).missing_shards()
    assert run_id in done.stdout
    (token, directory) = Path(job["WITNESS"]).read_text().splitlines()
    assert token == "600 64"  # noqa: S105, mode and length
    assert directory.startswith("700 ")
    assert not list((tmp_path / "home" / ".affectome").iterdir())


@pytest.mark.slow
def test_a_job_whose_ray_does_not_start_fails(job: dict[str, str]) -> None:
    taken = 'python -m http.server 24711 & exec bash "$1"'  # the port that job 4711 gives to Ray
    failed = run_alone(["bash", "-c", taken, "_", _SCRIPT], job | {"MODEL": "m", "CORPUS": "c"})
    assert failed.returncode == 1
    assert "Ray did not start" in failed.stderr


def test_a_job_without_a_corpus_says_so(job: dict[str, str]) -> None:
    failed = subprocess.run(["bash", _SCRIPT], env=job | {"MODEL": "m"}, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "CORPUS: name the corpus" in failed.stderr


def test_a_job_whose_time_is_nearly_over_goes_back_into_the_queue(tmp_path: Path, job: dict[str, str]) -> None:
    ray, extracting = tmp_path / "bin" / "ray", tmp_path / "extracting"
    ray.write_text(f"#!/bin/bash\n[[ $1 == stop ]] || {{ touch {extracting}; sleep 60; }}\n")  # it would take long
    ray.chmod(0o755)
    process = subprocess.Popen(
        ["bash", _SCRIPT], env=job | {"MODEL": "m", "CORPUS": "c"}, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not extracting.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=30)
    assert Path(f"{job['WITNESS']}.requeued").read_text() == "4711\n"
    assert "back into the queue" in said
