"""SQL over a store answers what the store holds, reads nothing else, changes nothing, and ends."""

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analyze import results, views
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run, Store, open_store
from analyze.report.tables import probe_table
from analyze.saved import save_probes
from analyze.sealed import sealed
from analyze.sql import answer
from analyze.valued import probe_values
from extract.decoding import Decoding, Reply, replies_table
from extract.objects import RemoteObjects
from extract.store import Store as StoredRuns
from tests.planted import IDENTITY, manifest_of, receipt_of
from tests.s3 import BUCKET, S3Server

N_ROWS, WIDTH = 40, 3
LABELS = ("joy", "fear", "it's", None)
CANARY = "canary-5d41402a"


def asked(store: Store, sql: str, **bounds: Any) -> list[dict[str, Any]]:
    with answer(store, sql, **bounds) as found:
        rows: list[dict[str, Any]] = found.table().to_pylist()
    return rows


def count_rows(store: Store, sql: str, **bounds: Any) -> int:
    with answer(store, sql, **bounds) as found:
        return sum(batch.num_rows for batch in found.batches)


def refusal(store: Store, sql: str, **bounds: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - whoever asks looks at what it says
        asked(store, sql, **bounds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def planted_run(
    stored: StoredRuns, template: str, columns: dict[str, Any], missing: frozenset[int] = frozenset(), replying: bool = False
) -> Run:
    """A run of shards of 16 rows with random states at resid.last, of layers 0 and 1."""
    identity = replace(IDENTITY, sites=("resid.last",), template=template, reply=Decoding(5) if replying else None)
    table = pa.table({"row": range(N_ROWS), "utterance_id": [f"u{row}" for row in range(N_ROWS)], **columns})
    manifest = manifest_of(identity, N_ROWS, WIDTH, 16)
    run = stored.create_run(manifest, {"utterances": table, "tokens": pa.table({"row": list(range(N_ROWS))})})
    states = np.random.default_rng(0).standard_normal((2, N_ROWS, WIDTH)).astype(np.float32)
    for shard in sorted(set(range(run.n_shards)) - missing):
        start, stop = run.shard_rows(shard)
        said = [Reply(tuple(range(row % 6)), ended=row % 2 == 0) for row in range(start, stop)]
        replies = replies_table(start, said, [f"reply {row}" for row in range(start, stop)]) if replying else None
        written = run.write_attempt(shard, {"resid.last": states[:, start:stop].copy()}, (), replies)
        assert run.commit(receipt_of(run, shard, 0, written, n_tokens=100 + shard))
    return Run(run)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three runs of one store: with probes; with other columns, a shard missing and one taken back; with replies."""
    stored = StoredRuns.open(str(tmp_path_factory.mktemp("sql") / "store"), create=True)
    rng = np.random.default_rng(1)
    usual = {
        "text": [f"text {row}" for row in range(N_ROWS)],
        "label": [LABELS[index] for index in rng.integers(0, len(LABELS), N_ROWS)],
        "n_tokens": rng.integers(0, 9, N_ROWS).tolist(),
        "valence": pa.array([None if row % 7 == 0 else row / 8 for row in range(N_ROWS)], pa.float64()),
    }
    first = planted_run(stored, "one", {**usual, "label": ["joy", "fear"] * 20, "speaker": pa.array([7] * N_ROWS)})
    other = {
        "text": ["other"] * N_ROWS,
        "speaker": ["Ann"] * N_ROWS,
        "run_id": ["theirs"] * N_ROWS,
        "RUN_ID": [8] * N_ROWS,
        "Marks": [["a", "b"]] * N_ROWS,
        "tone": pa.array(["loud", "quiet"] * 20).dictionary_encode(),
        "half": pa.array([0.5] * N_ROWS, pa.float16()),
    }
    second = planted_run(stored, "two", other, missing=frozenset({0}))
    assert second.stored.void(1, 1, "to see it gone")
    third = planted_run(stored, "three", usual, replying=True)
    for kind in ("linear", "ridge"):
        probed = probe_layers(first, "resid.last", first.layers, ProbeSpec(kind))
        results.save(first, probed.result)
        save_probes(first, probed)
    results.save(first, probe_values(first, "resid.last", (1,), ProbeSpec("ridge", column="valence")).result)
    return [first, second, third]


@pytest.fixture(scope="module")
def store(runs: list[Run]) -> Store:
    return open_store(runs[0].stored.store_location)


def test_runs_say_what_their_manifests_say_and_which_shards_exist(store: Store, runs: list[Run]) -> None:
    found = {row["run_id"]: row for row in asked(store, "SELECT * FROM runs")}
    assert list(found) == sorted(run.run_id for run in runs)
    for run, n_done, complete in zip(runs, (3, 1, 3), (True, False, True), strict=True):
        row, manifest = found[run.run_id], run.manifest
        assert (row["n_shards"], row["n_done"], row["complete"]) == (3, n_done, complete)
        assert (row["model"], row["n_rows"], row["width"]) == (manifest.model, N_ROWS, WIDTH)
        assert (row["sites"], row["layers"]) == (list(run.sites), list(run.layers))
        assert row["created"].isoformat() + "+00:00" == manifest.created
        assert row["reply_tokens"] == (5 if run is runs[2] else None)


def test_receipts_are_those_of_the_shards_that_exist(store: Store, runs: list[Run]) -> None:
    found = asked(store, "SELECT run_id, shard, start, stop, n_tokens, bytes, host FROM receipts ORDER BY ALL")
    expected = [
        (run.run_id, receipt.shard, receipt.start, receipt.stop, 100 + receipt.shard, receipt.n_bytes, "none")
        for run in runs
        for receipt in run.stored.receipts()
    ]
    assert [tuple(row.values()) for row in found] == sorted(expected)
    assert len(found) == 7


def test_utterances_of_all_runs_stand_in_one_table_by_name_whatever_columns_they_have(store: Store, runs: list[Run]) -> None:
    found = asked(store, "SELECT * FROM utterances ORDER BY run_id, row")
    assert len(found) == 3 * N_ROWS
    for run in runs:
        own = [row for row in found if row["run_id"] == run.run_id]
        for row, utterance in zip(own, run.utterances().to_pylist(), strict=True):
            assert row["corpus_run_id"] == utterance.pop("run_id", None)
            assert row["corpus_RUN_ID_1"] == utterance.pop("RUN_ID", None)
            speaker = utterance.pop("speaker", None)  # a number in one run and a name in another
            assert row["speaker"] == (None if speaker is None else str(speaker))
            assert {name: row[name] for name in utterance} == utterance
            assert all(row[name] is None for name in {"label", "Marks", "valence"} - utterance.keys())


def test_replies_are_those_of_runs_that_keep_them(store: Store, runs: list[Run]) -> None:
    found = asked(store, "SELECT * FROM replies ORDER BY row")
    assert {row.pop("run_id") for row in found} == {runs[2].run_id}
    assert found == runs[2].replies().to_pylist()


def test_scores_and_probes_are_those_that_are_kept(store: Store, runs: list[Run]) -> None:
    kept = probe_table([*results.probes(runs[0]), *results.values(runs[0])]).to_pylist()
    assert kept
    key = ("kind", "label_column", "layer", "metric", "label")
    found = asked(store, "SELECT * FROM scores")
    assert sorted(map(repr, found)) == sorted(map(repr, kept))
    assert len({tuple(row[name] for name in key) for row in found}) == len(found)
    files = asked(store, "SELECT * FROM probes ORDER BY kind")
    assert [(row["run_id"], row["kind"], row["layers"]) for row in files] == [
        (runs[0].run_id, kind, [0, 1]) for kind in ("linear", "ridge")
    ]
    assert all(Path(row["file"]).is_file() for row in files)


@pytest.mark.parametrize("name", views.VIEWS)
def test_every_table_of_an_empty_store_has_its_columns_and_no_rows(tmp_path: Path, store: Store, name: str) -> None:
    StoredRuns.open(str(tmp_path / "empty"), create=True)
    empty = open_store(str(tmp_path / "empty"))
    assert asked(empty, f"FROM {name}") == []
    columns = {row["column_name"]: row["column_type"] for row in asked(empty, f"DESCRIBE {name}")}
    full = {row["column_name"]: row["column_type"] for row in asked(store, f"DESCRIBE {name}")}
    assert columns.items() <= full.items()
    assert "run_id" in columns


def test_a_store_on_object_storage_answers_as_its_copy_on_disk_does(store: Store, s3_server: S3Server) -> None:
    place = RemoteObjects(s3_server.filesystem(), f"{BUCKET}/sql-{secrets.token_hex(4)}")
    for entry in store.stored.objects.entries(""):
        place.replace(entry.key, store.stored.objects.read(entry.key))
    remote = Store(StoredRuns(place))
    for name in views.VIEWS:
        columns = "* EXCLUDE (file)" if name == "probes" else "*"  # that says where it is
        sql = f"FROM {name} SELECT {columns} ORDER BY ALL"
        assert repr(asked(remote, sql)) == repr(asked(store, sql)), name
    assert all(row["file"].startswith("s3://") for row in asked(remote, "FROM probes"))


def test_only_the_tables_that_are_named_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(name: str, view: views.View) -> views.View:
        def reading(of: Store) -> pa.Table:
            read.append(name)
            return view.read(of)

        return replace(view, read=reading)

    monkeypatch.setattr("analyze.sql.VIEWS", {name: watched(name, view) for name, view in views.VIEWS.items()})
    for sql, expected in (
        ("SELECT 'utterances', 1 -- FROM receipts", []),
        ("FROM RUNS", ["runs"]),
        ("WITH replies AS (SELECT * FROM runs) SELECT * FROM replies JOIN receipts USING (run_id)", ["receipts", "runs"]),
        (
            "SELECT (SELECT count(*) FROM scores) FROM runs WHERE run_id IN (SELECT run_id FROM probes)",
            ["probes", "runs", "scores"],
        ),
        ("PIVOT receipts ON shard IN (0, 1) USING count(*)", ["receipts"]),
        ("SELECT 1 UNION SELECT n_rows FROM runs", ["runs"]),
        ("DESCRIBE replies", ["replies"]),
    ):
        read.clear()
        asked(store, sql)
        assert read == expected, sql


_OPERATORS = {"<": "less", "<=": "less_equal", "=": "equal", "<>": "not_equal", ">=": "greater_equal", ">": "greater"}
Condition = tuple[str, pc.Expression]


def _compared(column: str, operator: str, value: int | float | str) -> Condition:
    literal = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)
    return f"{column} {operator} {literal}", getattr(pc, _OPERATORS[operator])(pc.field(column), pc.scalar(value))


_leaves = st.one_of(
    st.builds(_compared, st.sampled_from(["row", "n_tokens"]), st.sampled_from(list(_OPERATORS)), st.integers(-1, N_ROWS)),
    st.builds(_compared, st.just("valence"), st.sampled_from(list(_OPERATORS)), st.sampled_from([0.125, 2.5, 4.0])),
    st.builds(_compared, st.just("label"), st.sampled_from(["=", "<>"]), st.sampled_from(["joy", "fear", "it's", "none"])),
    st.sampled_from([(f"{name} IS NULL", pc.field(name).is_null()) for name in ("label", "valence")]),
)
_conditions = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: (f"({a[0]}) AND ({b[0]})", a[1] & b[1]), inner, inner),
        st.builds(lambda a, b: (f"({a[0]}) OR ({b[0]})", a[1] | b[1]), inner, inner),
        st.builds(lambda a: (f"NOT ({a[0]})", ~a[1]), inner),
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None)
@given(condition=_conditions)
def test_counts_by_label_under_a_condition_are_those_of_brute_force(
    store: Store, runs: list[Run], condition: Condition
) -> None:
    where, expression = condition
    kept = [row["label"] for run in (runs[0], runs[2]) for row in run.utterances().filter(expression).to_pylist()]
    sql = f"FROM utterances SELECT label, count(*) AS n WHERE ({where}) AND run_id <> '{runs[1].run_id}' GROUP BY label"
    assert {row["label"]: row["n"] for row in asked(store, sql)} == Counter(kept)


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


def test_errors_name_the_choices(store: Store) -> None:
    assert "no table 'utterance' in a store; choose from runs, utterances, replies" in refusal(store, "FROM utterance")
    unknown = refusal(store, "SELECT colour FROM receipts")
    assert '"colour" not found' in unknown
    assert "columns of receipts: run_id, shard, start, stop" in unknown
    assert "(line 2, character 6)" in refusal(store, "SELECT 'é',\n 1 + FROM runs")
    assert 'a column named offset is written "offset"' in refusal(store, "SELECT offset FROM persistence")
    assert "PIVOT ... ON column IN" in refusal(store, "PIVOT utterances ON label USING count(*)")
    assert "makes no table here; choose from" in refusal(store, "FROM glob('*')")
    assert "give a SELECT statement; this is COPY" in refusal(store, "COPY runs TO 'x.csv'")
    assert "cannot give a query 'plenty' of memory" in refusal(store, "FROM runs", memory="plenty")


@pytest.mark.parametrize(
    ("value", "text"),
    [(f"'{2**128 - 1}'::UHUGEINT", str(2**128 - 1)), ("['1'::BIT]", "[1]"), ("TIMETZ '10:00:00+02'", "10:00:00+02")],
)
def test_a_value_that_would_change_on_its_way_out_is_refused(store: Store, value: str, text: str) -> None:
    assert "does not leave SQL unchanged; cast it to VARCHAR" in refusal(store, f"SELECT {value} AS x")
    assert asked(store, f"SELECT ({value})::VARCHAR AS x") == [{"x": text}]


def test_columns_that_are_called_alike_are_told_apart(store: Store) -> None:
    (row,) = asked(store, "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a")
    assert row == {"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}


def test_a_damaged_object_is_named_where_it_is_read_and_only_there(store: Store, runs: list[Run]) -> None:
    (path,) = Path(runs[2].stored.objects.url()).glob("tables/*/utterances.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    try:
        assert str(path) in refusal(store, "SELECT count(*) FROM utterances")
        assert asked(store, "SELECT count(*) AS n FROM runs") == [{"n": 3}]
    finally:
        path.write_bytes(whole)
    (probe,) = Path(runs[0].stored.objects.url()).glob("analysis/probe.*.ridge.safetensors")
    whole = probe.read_bytes()
    for damaged in (b"", whole[:20], b"\xff" * 8 + whole[8:], whole.replace(b"run_id", b"run_di", 1)):
        probe.write_bytes(damaged)
        assert f"{probe} is damaged" in refusal(store, "FROM probes")
    probe.write_bytes(whole)
