"""A service of a small store, asked in this process."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from analyze.query import open_store
from analyze.service.app import application
from analyze.service.settings import Settings
from tests.analyze.service.stores import Planted, plant

SETTINGS = Settings(timeout_s=1.0, memory="256MB")
URL = "http://127.0.0.1"


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store that nobody may change."""
    return plant(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def client(planted: Planted) -> Iterator[TestClient]:
    """Asks a service of it."""
    app = application(open_store(planted.location), SETTINGS)
    yield TestClient(app, base_url=URL)
    app.state.queries.close()


def asking(planted: Planted, **settings: object) -> TestClient:
    """Asks a service of the store with other settings, one that answers no SQL."""
    app = application(open_store(planted.location), replace(SETTINGS, **settings))  # type: ignore[arg-type]
    return TestClient(app, base_url=URL)


def refused(answer: object, status: int) -> str:
    """The one sentence of a refusal."""
    assert answer.status_code == status, answer.text  # type: ignore[attr-defined]
    (name, sentence) = next(iter(answer.json().items()))  # type: ignore[attr-defined]
    assert name == "error"
    assert "\n" not in sentence
    return str(sentence)
