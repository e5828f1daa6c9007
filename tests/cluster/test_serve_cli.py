"""affectome serve as a user starts and ends it."""

import re
import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from analyze.columns import LABEL
from analyze.plane import MOST_WIDTH
from analyze.query import open_store
from analyze.service import search
from analyze.service.asked import MOST_SQL
from analyze.service.settings import Settings
from cluster.cli import app
from cluster.commands.serve import DEFAULT_MEMORY, DEFAULT_TIMEOUT_S
from extract.objects import RemoteObjects
from extract.store import Store
from tests.analyze.service.serving import ROOT, serving
from tests.analyze.service.stores import Planted, files, plant
from tests.s3 import BUCKET, S3Server

TOKEN = "a-token-of-these-tests"  # noqa: S105


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("serve"))


def refusal(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert isinstance(done.exception, ValueError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def asked(url: str, path: str, body: Any = None, token: str | None = None) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    method = "GET" if body is None else "POST"
    return httpx.request(method, url + path, json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("ends", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_says_where_it_is_answers_and_ends_well(planted: Planted, tmp_path: Path, ends: signal.Signals) -> None:
    before = list(files(planted.location))
    with serving(tmp_path, planted.location) as service:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.url)
        assert len(asked(service.url, "/api/runs").json()["runs"]) == 3
        assert asked(service.url, "/api/sql", {"sql": "SELECT count(*) AS n FROM runs"}).json()["rows"] == [{"n": 3}]
        service.process.send_signal(ends)
        assert service.process.wait(20) == 0
    assert service.errors.read_text() == ""
    assert list(files(planted.location)) == before


@pytest.mark.slow
def test_it_ends_while_a_query_runs(planted: Planted, tmp_path: Path) -> None:
    with serving(tmp_path, planted.location, "--timeout", "600") as service, httpx.Client() as client:
        forever = {"sql": "SELECT count(*) FROM range(100000000000) a, range(1000) b"}
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{service.url}/api/sql", json=forever, timeout=1.5)
        began = time.monotonic()
        service.process.terminate()
        assert service.process.wait(30) == 0
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_elsewhere_than_on_loopback_it_wants_a_token_and_makes_one(planted: Planted, tmp_path: Path) -> None:
    with serving(tmp_path, planted.location, "--host", "0.0.0.0") as service:  # noqa: S104
        (token,) = re.findall(r"token, which is another one each time: (\S+)", service.errors.read_text())
        url = service.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        for wrong in (None, "guessed-by-somebody"):
            assert asked(url, "/api/runs", token=wrong).status_code == 401
        assert asked(url, "/api/runs", token=token).json()["runs"]
        assert asked(url, f"/api/runs?token={token}").status_code == 401
    said = service.errors.read_text()
    assert said.count(token) == 1, "it is never logged"


@pytest.mark.slow
def test_a_token_of_ones_own_is_never_said(planted: Planted, tmp_path: Path) -> None:
    with serving(tmp_path, planted.location, environment={"AFFECTOME_TOKEN": TOKEN}) as service:
        assert asked(service.url, "/api/runs", token=TOKEN).json()["runs"]
        assert asked(service.url, "/api/runs").status_code == 401
    assert service.errors.read_text() == ""


def test_what_cannot_be_served_is_said_in_one_sentence(planted: Planted, tmp_path: Path) -> None:
    assert "there is no store at" in refusal(str(tmp_path / "nothing"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refusal(planted.location, "--port", str(port)) == (
            f"port {port} of 127.0.0.1 is taken; give another with --port, or --port 0 for a free one"
        )
    assert "no address of this machine" in refusal(planted.location, "--host", "192.0.2.1", "--port", "0")
    assert "there is no address" in refusal(planted.location, "--host", "nowhere.invalid")
    assert "at least 16 characters" in refusal(planted.location, "--token", "short")
    assert "no amount of memory" in refusal(planted.location, "--memory", "plenty", "--port", "0")


def test_the_defaults_that_help_shows_are_those_of_the_service() -> None:
    assert search.LABEL == LABEL
    assert (Settings().timeout_s, Settings().memory) == (DEFAULT_TIMEOUT_S, DEFAULT_MEMORY)


@pytest.mark.slow
def test_a_store_on_object_storage_is_served_as_its_copy_on_disk_is(
    planted: Planted, tmp_path: Path, s3_server: S3Server
) -> None:
    prefix, here = f"{BUCKET}/serve-{secrets.token_hex(4)}", open_store(planted.location).stored.objects
    place = RemoteObjects(s3_server.filesystem(), prefix)
    for entry in here.entries(""):
        place.replace(entry.key, here.read(entry.key))
    run = f"/api/runs/{planted.whole.run_id}"
    with serving(tmp_path, f"s3://{prefix}", environment=s3_server.environment()) as service:
        states = asked(service.url, f"{run}/hidden?site=resid.last&layer=1&where=label%3D'joy'")
        with pa.ipc.open_stream(states.content) as reader:
            assert reader.read_all().equals(planted.whole.hidden_arrow("resid.last", [1], "label = 'joy'"))
        counted = asked(service.url, "/api/sql", {"sql": "SELECT count(*) AS n FROM utterances"}).json()
        assert counted["rows"] == [{"n": sum(run.manifest.n_rows for run in (planted.whole, planted.partial, planted.tokens))}]


def test_the_limits_of_the_page_are_those_of_the_service() -> None:
    page, limits = (ROOT / "docs" / "serve.md").read_text(), Settings()
    for said in (
        f"wider than {MOST_WIDTH:,} have no plane",
        f"{limits.most_bytes >> 20} MiB, decided before",
        f"{limits.most_json_bytes >> 20} MiB of rows; {round(limits.most_bytes / 20 / 1e6)} million numbers",
        f"{limits.most_rows:,} in one answer",
        f"{limits.most_projected:,} |",
        f"| {limits.most_neighbours:,} |",
        f"{limits.timeout_s:g} s, and 1 GB beside its tables",
        f"{limits.at_once} requests, {limits.queries_at_once} of them in SQL; others wait {limits.wait_s:g} s",
        f"{limits.most_body_bytes >> 20} MiB, and {limits.stall_s:g} s to send it",
        f"and {limits.response_s:g} s for all of it",
        f"{MOST_SQL:,} characters of SQL",
    ):
        assert said in page, said


@pytest.mark.slow
def test_an_empty_store_is_served(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "store"), create=True)
    with serving(tmp_path, str(tmp_path / "store")) as service:
        assert asked(service.url, "/api/runs").json() == {"runs": [], "problems": []}
        assert asked(service.url, "/api/runs/3f9c").json()["error"].endswith("runs: none yet")
