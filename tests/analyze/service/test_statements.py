"""SQL over HTTP answers what analyze.sql answers, within bounds that no statement gets around."""

import json
import re

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from analyze.exporting import json_rows
from analyze.query import open_store
from analyze.sql import answer
from tests.analyze.service.conftest import SETTINGS, refused
from tests.analyze.service.hostile import ATTACKS, STATEMENTS
from tests.analyze.service.stores import Planted


@pytest.mark.parametrize("sql", [sql for sql in STATEMENTS if "late" not in sql and "SUMM" not in sql])
def test_rows_are_those_of_the_library(client: TestClient, planted: Planted, sql: str) -> None:
    with answer(open_store(planted.location), sql) as found:
        expected = found.table()
    said = client.post("/api/sql", json={"sql": sql, "limit": 2}).json()
    assert [column["name"] for column in said["columns"]] == expected.column_names
    assert said["truncated"] == (expected.num_rows > 2)
    streamed = client.post("/api/sql", json={"sql": sql, "format": "arrow", "limit": 2})
    with pa.ipc.open_stream(streamed.content) as reader:
        table = reader.read_all()
    assert table.schema.equals(expected.schema)
    assert table.schema.metadata == {b"truncated": str(said["truncated"]).lower().encode()}
    assert table.num_rows == len(said["rows"]) == min(2, expected.num_rows)
    if " ORDER BY " in sql or expected.num_rows <= 2:  # which two rows come is open otherwise
        assert repr([row for batch in table.to_batches() for row in json_rows(batch)]) == repr(said["rows"])
        assert table.to_pylist() == expected.slice(0, 2).to_pylist() or "nan" in sql


def _takes_seconds_to_end(sql: str) -> bool:
    return "lpad" in sql or "n + 1" in sql


@pytest.mark.parametrize(
    "sql", [pytest.param(sql, marks=[pytest.mark.slow] if _takes_seconds_to_end(sql) else []) for sql in ATTACKS]
)
def test_an_attack_is_refused_or_answered_within_its_bounds(client: TestClient, sql: str) -> None:
    said = client.post("/api/sql", json={"sql": sql, "limit": 3})
    assert said.status_code in (200, 400, 413), said.text
    assert len(said.content) < 4 * SETTINGS.most_json_bytes


def test_errors_name_the_choices(client: TestClient) -> None:
    def sentence(sql: str, status: int = 400) -> str:
        return refused(client.post("/api/sql", json={"sql": sql}), status)

    assert "no table 'utterance' in a store; choose from runs, utterances" in sentence("FROM utterance")
    assert "columns of receipts: run_id, shard" in sentence("SELECT colour FROM receipts")
    assert "(line 1, character 7)" in sentence("SELEC 1") or "syntax error" in sentence("SELEC 1")
    assert "longer than 1 seconds; ask for less" in sentence("SELECT count(*) FROM range(10000000000) a, range(1000) b", 413)
    assert "more memory than 256MB" in sentence("SELECT repeat(text, 100000000) FROM utterances", 413)
    assert "more memory than 256MB" in sentence("SELECT array_agg(x) FROM range(90000000) t(x)", 413)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT '{long}'::ENUM('{long}') AS a FROM range(20000)",
        "SELECT list_resize([], 3000) AS a FROM range(100000)",
        "SELECT repeat('x', 3000) AS a FROM range(100000)",
    ],
)
def test_what_is_small_for_the_engine_is_bounded_as_json(client: TestClient, sql: str) -> None:
    said = client.post("/api/sql", json={"sql": sql.format(long="x" * 9000), "limit": 100_000})
    assert re.search("33,554,432 are given at once|longer than 1 seconds|more memory than 256MB", refused(said, 413))


def test_numbers_that_json_cannot_hold_come_as_text(client: TestClient) -> None:
    long = "1234567890123456789.1234567891"
    sql = f"SELECT {long}::DECIMAL(38, 10) AS long, 0.25::DECIMAL(9, 2) AS short, 7::DECIMAL(9, 0) AS whole"
    (row,) = client.post("/api/sql", json={"sql": sql}).json()["rows"]
    assert row == {"long": long, "short": 0.25, "whole": 7}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"sql": "SELECT 1", "limit": 1e400}',
        b'{"sql": "SELECT 1", "limit": NaN}',
        b'{"sql": "SELECT 1", "limit": -1}',
        b'{"sql": "SELECT 1", "limit": ' + b"9" * 5000 + b"}",
        b'{"sql": "SELECT \'\\ud800\'"}',
        b'{"sql": "\\u0000"}',
        b'{"sql": "SELECT 1", "more": 1}',
        b"\xff\xfe",
    ],
)
def test_a_body_that_is_no_statement_is_refused_in_one_sentence(client: TestClient, body: bytes) -> None:
    said = client.post("/api/sql", content=body, headers={"Content-Type": "application/json"})
    assert said.status_code in (400, 422)
    refused(said, said.status_code)


def test_a_large_body_is_refused_before_it_is_read_as_a_whole(client: TestClient) -> None:
    sent = 0

    def body() -> object:
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 16
            yield b" " * (1 << 16)

    said = client.post("/api/sql", content=body(), headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
    assert "at most 1,048,576 bytes" in refused(said, 413)
    assert json.loads(said.content)
