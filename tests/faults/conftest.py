"""Fixtures of the fault matrix, and its table at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from extract.models import Model
from tests.faults.around import Contents, local_objects, read_around
from tests.faults.launch import Launch
from tests.faults.matrix import MATRIX, Scenario, table
from tests.faults.worker import Job
from tests.s3 import S3Server


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Callable[[str], Scenario]:
    """Add a row to the table."""

    def add(name: str) -> Scenario:
        row = Scenario(name)
        request.config.stash.setdefault(MATRIX, []).append(row)
        return row

    return add


@pytest.fixture(scope="session")
def undisturbed(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Launch, Contents]:
    """An extraction that nothing happened to, and what it stored."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    launch = Launch(Job(tiny_model.name, str(store))).end()
    assert not launch.error
    return launch, read_around(local_objects(store))


@pytest.fixture
def job(tiny_model: Model, tmp_path: Path) -> Job:
    """The extraction that is disturbed, into a directory."""
    return Job(tiny_model.name, str(tmp_path / "store"))


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Variables of the S3 service, set in this process as well."""
    environment = s3_server.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield environment
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(MATRIX, [])
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)
