"""Whatever SQL says, it reads nothing but the store, writes nothing, and ends."""

import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analyze.query import Store, open_store
from analyze.sealed import sealed
from tests.analyze.asking import asked, count_rows, refusal
from tests.analyze.conftest import Plant

CANARY = "canary-5d41402a"


@pytest.fixture(scope="module")
def store(plant: Plant) -> Store:
    """A store of one run."""
    return open_store(plant(np.zeros((1, 5, 2), np.float32), {"label": ["joy"] * 5}).stored.store_location)


HOSTILE = (
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM READ_TEXT('{file}')",
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_csv_auto(['{file}'])",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('{directory}/*')",
    "FROM '{file}'",
    'FROM "{file}"',
    "SELECT (SELECT content FROM read_text('{file}'))",
    "SELECT * FROM runs WHERE model IN (FROM '{file}')",
    "SELECT * FROM runs, LATERAL (SELECT * FROM read_text('{file}'))",
    "WITH runs AS (FROM read_text('{file}')) SELECT * FROM runs",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
    "SELECT * FROM query_table('{file}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "COPY runs TO '{directory}/out.csv'",
    "COPY (SELECT 1) TO '{directory}/out.parquet'",
    "EXPORT DATABASE '{directory}/out'",
    "ATTACH '{directory}/out.db'",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{file}'",
    "IMPORT DATABASE '{directory}'",
    "CREATE TABLE runs AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TABLE t AS FROM '{file}'",
    "INSERT INTO runs VALUES (1)",
    "UPDATE runs SET model = 'x'",
    "DELETE FROM runs",
    "DROP VIEW runs",
    "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO runs VALUES (1) RETURNING *) SELECT * FROM new",
    "SET enable_external_access = true",
    "SET threads = 1",
    "RESET memory_limit",
    "SET VARIABLE x = 1",
    "PRAGMA database_list",
    "PRAGMA enable_logging",
    "CALL duckdb_settings()",
    "CALL pragma_version()",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "EXPLAIN ANALYZE SELECT 1",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_settings",
    "FROM duckdb_secrets()",
    "FROM pg_catalog.pg_class",
    "FROM information_schema.tables",
    "FROM main.runs",
    "FROM sqlite_master",
    "FROM pragma_database_list",
    "WITH duckdb_settings AS (FROM duckdb_settings) FROM duckdb_settings",
    "WITH a AS (FROM duckdb_settings), duckdb_settings AS (SELECT 1) FROM a",
    "SELECT (WITH duckdb_settings AS (SELECT 1) SELECT 1) FROM duckdb_settings",
    'WITH "du\u212adb_settings" AS (SELECT 1) FROM duckdb_settings',
    "SELECT getenv('HOME')",
    "SELECT current_setting('home_directory')",
    "SELECT Current_Setting('secret_directory')",
    "SELECT getvariable('x')",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY runs TO '{directory}/out.csv'",
    "SELECT store FROM store",
    "SELECT * FROM tables",
    "SELECT $1",
    "SELECT '\ud800'",
    "FROM runs \0 , read_text('{file}')",
    "",
    ";",
    "-- nothing",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT " + " + ".join("1" * 3000),
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in with a file that nobody should read, and nothing else, before and after."""
    canary = tmp_path / "canary.csv"
    canary.write_text(f"content\n{CANARY}\n")
    monkeypatch.chdir(tmp_path)
    yield canary
    assert list(tmp_path.iterdir()) == [canary]
    assert canary.read_text() == f"content\n{CANARY}\n"


def listing(store: Store) -> list[tuple[str, int, float]]:
    return sorted((entry.key, entry.size, entry.modified) for entry in store.stored.objects.entries(""))


def test_hostile_sql_is_refused_in_one_sentence_and_neither_reads_nor_writes(store: Store, outside: Path) -> None:
    before = listing(store)
    for template in HOSTILE:
        sql = template.replace("{file}", str(outside)).replace("{directory}", str(outside.parent))
        assert CANARY not in refusal(store, sql), sql
    assert listing(store) == before


def test_the_engine_itself_neither_reads_nor_writes_whatever_it_is_told(outside: Path) -> None:
    for template in HOSTILE:
        sql = template.replace("{file}", str(outside)).replace("{directory}", str(outside.parent))
        with sealed({"runs": pa.table({"model": ["planted"]})}) as connection:
            try:
                connection.execute(sql)
                said = repr(connection.fetchall())
            except (duckdb.Error, RuntimeError, TypeError) as error:
                said = str(error)
            assert CANARY not in said, sql


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(
            [
                "SELECT",
                "*",
                "FROM",
                "runs",
                "duckdb_settings",
                "WITH",
                "AS",
                "(",
                ")",
                ",",
                "read_text('canary.csv')",
                "JOIN",
                "'canary.csv'",
                ";",
                "WHERE",
                "1",
                "UNION",
                "x",
                "model",
                "=",
                "'",
                '"',
                "--",
                "COPY",
                "TO",
                "SET",
                "RECURSIVE",
            ]
        ),
        max_size=9,
    )
)
@example(words=["FROM", "runs"])
def test_any_words_are_answered_from_the_store_or_refused_in_one_sentence(store: Store, words: list[str]) -> None:
    try:
        found = asked(store, " ".join(words), timeout_s=5.0)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - whether it is refused is not known
    else:
        assert "enable_external_access" not in repr(found)


def test_a_query_that_does_not_end_is_ended_in_one_sentence(store: Store, outside: Path) -> None:
    many = "FROM range(10000000) a, range(10000000) b, utterances"
    began = time.monotonic()
    for what in ("count(*)", "*"):
        with pytest.raises(TimeoutError, match=r"longer than 0\.3 seconds; ask for less, or raise --timeout"):
            count_rows(store, f"SELECT {what} {many}", timeout_s=0.3)
    with pytest.raises(RuntimeError, match="more memory than 60MB; ask for less, or raise --memory"):
        asked(store, "SELECT list(a.range) FROM range(100000000) a", memory="60MB")
    with pytest.raises(RuntimeError, match="more memory than 60MB"):
        asked(store, "SELECT * FROM range(100000000) a ORDER BY hash(range)", memory="60MB")
    assert time.monotonic() - began < 20
    assert asked(store, "SELECT 1 AS x", timeout_s=1e12) == [{"x": 1}]
