"""SQL over a store answers what the store holds, on a disk and on object storage; what it cannot answer it says."""

import secrets
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import results, views
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run, Store, open_store
from analyze.report.tables import probe_table
from analyze.saved import save_probes
from analyze.valued import probe_values
from extract.decoding import Decoding, Reply, replies_table
from extract.objects import RemoteObjects
from extract.store import Store as StoredRuns
from tests.analyze.asking import asked, refusal
from tests.planted import IDENTITY, manifest_of, receipt_of
from tests.s3 import BUCKET, S3Server

N_ROWS, WIDTH = 40, 3
LABELS = ("joy", "fear", "it's", None)


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


def test_errors_name_the_choices(store: Store) -> None:
    assert "no table 'utterance' in a store; choose from runs, utterances, replies" in refusal(store, "FROM utterance")
    assert "there is no table ''" in refusal(store, "SELECT 1 FROM ''")
    unknown = refusal(store, "SELECT colour FROM receipts")
    assert """there is no column "colour" (text stands in single quotes: 'colour')""" in unknown
    assert "columns of receipts: run_id, shard, start, stop" in unknown
    assert "(line 2, character 6)" in refusal(store, "SELECT 'é',\n 1 + FROM runs")
    assert 'a column named offset is written "offset"' in refusal(store, "SELECT offset FROM persistence")
    assert "PIVOT ... ON column IN" in refusal(store, "PIVOT utterances ON label USING count(*)")
    assert "makes no table here; choose from" in refusal(store, "FROM glob('*')")
    assert "give a SELECT statement; this is COPY" in refusal(store, "COPY runs TO 'x.csv'")
    assert "cannot give a query 'plenty' of memory" in refusal(store, "FROM runs", memory="plenty")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (f"{2**127 - 1}::HUGEINT", str(2**127 - 1)),
        (f"'{2**128 - 1}'::UHUGEINT", str(2**128 - 1)),
        ("['1'::BIT]", "[1]"),
        ("TIMETZ '10:00:00+02'", "10:00:00+02"),
    ],
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
