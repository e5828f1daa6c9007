"""What a user is told to type is understood by what it is typed for."""

import re
import shlex

import pytest
import typer
import yaml
from ray.scripts.scripts import cli as ray_cli

from cluster.cli import app
from tests.deploy.commands import calls, joined, read_by, typed_in
from tests.deploy.files import DEPLOY, KUBERNETES, ROOT, manifests

_PAGE = DEPLOY / "README.md"
_AFFECTOME = typer.main.get_command(app)


def lines() -> list[str]:
    """Every command in deploy/."""
    cloud = yaml.safe_load((DEPLOY / "ray" / "cluster-aws.yaml").read_text())
    jobs = [each.body["spec"].get("jobTemplate", each.body["spec"]) for each in manifests() if each.of_ray]
    return [
        *typed_in(_PAGE),
        *joined((DEPLOY / "slurm" / "extract.sbatch").read_text()),
        *[job["entrypoint"] for job in jobs if "entrypoint" in job],
        *[command for key, commands in cloud.items() if key.endswith("_commands") for command in commands],
    ]


def test_commands_are_found() -> None:
    called = {tuple(arguments[:1]) for line in lines() for arguments in calls(line, "affectome")}
    assert called == {("demo",), ("extract",), ("status",), ("refresh",)}


@pytest.mark.parametrize("line", [line for line in lines() if any(calls(line, "affectome"))])
def test_affectome_understands_what_deploy_types(line: str) -> None:
    for arguments in calls(line, "affectome"):
        assert read_by(_AFFECTOME, arguments) == [arguments[0]]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("extract --stores s", "No such option"),
        ("extract --store s --workers many", "valid integer"),
        ("refresh", "Missing parameter: plan"),
        ("refrehs plan.yaml", "No such command"),
    ],
)
def test_a_command_with_a_mistake_is_found(mistake: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        read_by(_AFFECTOME, shlex.split(mistake))


def for_ray(line: str) -> list[list[str]]:
    """The arguments of every call of Ray's command line."""
    return list(calls(line.replace("~/venv/bin/", "").replace("$SLURM_JOB_NUM_NODES", "2"), "ray"))


@pytest.mark.parametrize("line", [line for line in lines() if for_ray(line)])
def test_ray_understands_what_deploy_types(line: str) -> None:
    for arguments in for_ray(line):
        assert read_by(ray_cli, arguments)[0] == arguments[0]


def test_every_file_that_is_typed_is_there() -> None:
    named = {name for line in typed_in(_PAGE) for name in re.findall(r"deploy/[\w./-]+", line)}
    assert {"deploy/Dockerfile", "deploy/kubernetes", "deploy/ray/cluster-aws.yaml", "deploy/slurm/extract.sbatch"} <= named
    for name in named:
        assert (ROOT / name).exists(), name


def test_every_file_is_explained() -> None:
    page = _PAGE.read_text()
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path != _PAGE]
    assert files
    for path in files:
        name = path.name if path.parent in (DEPLOY, KUBERNETES) else str(path.relative_to(DEPLOY))
        assert f"`{name}`" in page, name


def test_links_lead_somewhere() -> None:
    page = _PAGE.read_text()
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert path.startswith("https://") or (DEPLOY / path).exists(), link
        assert path or anchor in headings, link
