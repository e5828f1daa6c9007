"""affectome query as a user types it, and docs/query.md as it is written, on runs of real, tiny models."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from analyze.query import Store, open_store
from analyze.sealed import MEMORY
from analyze.sql import TIMEOUT_S, answer
from analyze.views import VIEWS
from cluster.cli import app, main
from cluster.commands.query import DEFAULT_MEMORY, DEFAULT_TIMEOUT_S
from extract.models import Model
from extract.store import Store as StoredRuns
from tests.planted import IDENTITY, manifest_of

PAGE = Path(__file__).parents[2] / "docs" / "query.md"


def typed(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["query", *(str(argument) for argument in arguments)])


def printed(*arguments: str | Path) -> Result:
    """A command that ends well."""
    done = typed(*arguments)
    assert done.exit_code == 0, done.exception
    return done


def refusal(*arguments: str | Path) -> str:
    done = typed(*arguments)
    assert isinstance(done.exception, ValueError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def store(writing_model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a run whose probes are kept, and one that keeps replies."""
    directory = tmp_path_factory.mktemp("query")
    rows = [
        {
            "text": f"{name} {index} of many",
            "label": name,
            "split": "train" if index % 4 else "test",
            "marks": [name] * (index % 3 > 0) + ["third"] * (index % 3 == 1),
        }
        for index in range(20)
        for name in ("fear", "joy")
    ]
    (directory / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    location = str(directory / "store")
    extract = ("extract", "--model", writing_model.name, "--corpus", str(directory / "corpus.jsonl"), "--store", location)
    run_id = invoked(*extract).split()[-1]
    invoked("probe", location, run_id)
    invoked("probe", location, run_id, "--label", "marks", "--layers", "1")
    invoked(*extract, "--reply", "4", "--sites", "resid.reply", "--offsets", "0,1", "--limit", "4")
    return location


def invoked(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.exception
    return done.stdout


@pytest.fixture(scope="module")
def run_id(store: str) -> str:
    return next(run.run_id for run in open_store(store).runs() if run.manifest.n_rows == 40)


def test_sql_is_printed_as_a_table_as_json_and_written_whole(store: str, run_id: str, tmp_path: Path) -> None:
    sql = f"SELECT row, label, text FROM utterances WHERE run_id = '{run_id}' ORDER BY row"  # noqa: S608 - of the test's own
    rows = open_store(store).run(run_id).utterances().select(["row", "label", "text"]).to_pylist()
    assert json.loads(printed(store, sql, "--json").stdout) == rows
    assert json.loads(printed(store, sql, "--json", "--limit", "2").stdout) == rows[:2]
    short = printed(store, sql, "--limit", "3")
    assert "there are more rows than these 3" in short.stderr
    assert [row["text"] in short.stdout for row in rows[:4]] == [True, True, True, False]
    assert "there are more" not in printed(store, sql, "--limit", "40").stderr
    assert "wrote 40 rows" in printed(store, sql, "--out", tmp_path / "x.parquet").stderr
    assert pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist() == rows
    assert "no rows (columns: row, label, text)" in printed(store, f"FROM ({sql}) WHERE row < 0").stderr
    assert json.loads(printed(store, "SELECT 'nan'::DOUBLE AS x", "--json").stdout) == [{"x": None}]


def test_a_table_shows_columns_by_the_names_that_sql_knows(store: str) -> None:
    shown = printed(store, "SELECT run_id, layers, complete FROM runs ORDER BY n_rows").stdout
    assert all(name in shown for name in ("run_id", "0, 1, 2", "yes"))


def test_scores_of_lists_of_labels_are_those_that_the_probe_prints(store: str, run_id: str) -> None:
    (layer,) = json.loads(invoked("probe", store, run_id, "--label", "marks", "--layers", "1", "--json"))["layers"]
    sql = "SELECT metric, label, value, low, high FROM scores WHERE label_column = 'marks'"
    found = {(row.pop("metric"), row.pop("label")): row for row in json.loads(printed(store, sql, "--json").stdout)}
    assert found["f1", "third"] == layer["test"]["label_f1"][2]
    assert found["auroc", "joy"] == layer["test"]["label_auroc"][1]
    assert found["exact", None] == layer["test"]["exact"]
    assert found["shuffled_auroc", None] == layer["control"]["auroc"]
    assert len(found) == 14


def test_what_would_command_the_terminal_is_shown_and_not_obeyed(store: str) -> None:
    shown = printed(store, "SELECT 'a' || chr(27) || '[31mred' AS x, [chr(7)] AS y").stdout
    assert r"a\x1b[31mred" in shown
    assert not {"\x1b", "\a"} & set(shown)


def test_states_are_written_and_shown_as_the_run_holds_them(store: str, run_id: str, tmp_path: Path) -> None:
    where = "label = 'joy' and split = 'test'"
    expected = open_store(store).run(run_id).hidden("resid.last", 2, where)
    chosen = (store, "--run", run_id[:6], "--layer", "2", "--where", where)
    assert "wrote 5 x 32 of 5 utterances at layer 2 to" in printed(*chosen, "--out", tmp_path / "x.npy").stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert "resid.last, layer 2: 5 x 32" in printed(*chosen).stdout
    said = json.loads(printed(*chosen, "--limit", "2", "--json").stdout)
    assert (said["shape"], said["n_utterances"], said["where"]) == ([5, 32], 5, where)
    np.testing.assert_array_equal(np.array([row["hidden"] for row in said["rows"]], np.float32), expected[:2])
    other = next(run for run in open_store(store).runs() if run.run_id != run_id)
    shown = printed(store, "--run", other.run_id, "--site", "resid.reply", "--layer", "1", "--limit", "2")
    assert "resid.reply, layer 1: 4 x 2 x 32" in shown.stdout
    assert "these are the first 2" in shown.stderr


def test_a_condition_that_chooses_nothing_is_said_to(store: str, run_id: str) -> None:
    done = printed(store, "--run", run_id, "--layer", "1", "--where", "false")
    assert done.stdout == ""
    assert done.stderr == f"run {run_id}, resid.last, layer 1: 0 x 32; no utterance fulfils the condition\n"


def test_several_layers_are_an_axis_or_a_column_each(store: str, run_id: str, tmp_path: Path) -> None:
    expected = open_store(store).run(run_id).hidden("resid.last", (1, 2), "row < 6")
    chosen = (store, "--run", run_id, "--where", "row < 6", "--layer")
    assert "wrote 2 x 6 x 32 of 6 utterances at layers 1, 2 to" in printed(*chosen, "1:3", "--out", tmp_path / "x.npy").stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert "layers 1, 2: 2 x 6 x 32" in printed(*chosen, "1,2", "--limit", "1").stdout
    said = json.loads(printed(*chosen, "1,2", "--json", "--limit", "3").stdout)
    assert (said["layers"], said["shape"]) == ([1, 2], [2, 6, 32])
    assert [(row["row"], row["layer"]) for row in said["rows"]] == [(row, layer) for row in range(3) for layer in (1, 2)]
    shown = np.array([row["hidden"] for row in said["rows"]], np.float32).reshape(3, 2, 32)
    np.testing.assert_array_equal(shown.swapaxes(0, 1), expected[:, :3])
    assert json.loads(printed(*chosen, "all", "--json").stdout)["shape"] == [3, 6, 32]


def test_what_would_be_read_is_said_and_not_read(store: str, run_id: str, tmp_path: Path) -> None:
    run = open_store(store).run(run_id)
    chosen = (store, "--run", run_id, "--layer", "0,2", "--where", "row < 6", "--explain")
    reading = run.explain("resid.last", (0, 2), "row < 6")
    said = json.loads(printed(*chosen, "--json").stdout)
    assert (said["shape"], said["layers"], said["n_utterances"]) == ([2, 6, 32], [0, 2], 6)
    assert (said["objects"], said["chunks"], said["bytes"]) == (reading.n_objects, reading.n_chunks, reading.n_bytes)
    assert said["memory_bytes"] == 2 * 6 * 32 * 4
    assert "2 x 6 x 32" in printed(*chosen).stdout
    assert "nothing for --out to write" in refusal(*chosen, "--out", tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_refused_in_one_sentence_that_names_the_choices(store: str, run_id: str, tmp_path: Path) -> None:
    assert "give either a SELECT" in refusal(store)
    assert "give either a SELECT" in refusal(store, "FROM runs", "--run", run_id)
    assert "--layer and --where choose states of a --run" in refusal(store, "FROM runs", "--layer", "1", "--where", "true")
    assert "give --layer, one or several of 0, 1, 2 of resid.last" in refusal(store, "--run", run_id)
    assert "there is no layer 9; this model has layers 0 (embedding) to 2" in refusal(store, "--run", run_id, "--layer", "1,9")
    assert "write all, a list such as 8,16 or a range" in refusal(store, "--run", run_id, "--layer", "one")
    for layers, ascending in (("2,1", "1,2"), ("1,1", "1"), ("2,0:2", "0,1,2"), ("0:2,1:3", "0,1,2")):
        said = refusal(store, "--run", run_id, "--layer", layers)
        assert said == f"layers come in ascending order, each once; write --layer {ascending} instead of {layers}"
    for asked in (("FROM runs",), ("--run", run_id, "--layer", "1")):
        said = refusal(store, *asked, "--limit", "2", "--out", tmp_path / "x.parquet")
        assert "--limit is of rows that are printed, and --out writes all" in said
    assert "--explain says what" in refusal(store, "FROM runs", "--explain")
    assert "it holds resid.last, resid.mean" in refusal(store, "--run", run_id, "--layer", "1", "--site", "resid.first")
    assert "no run starts with 'zz'" in refusal(store, "--run", "zz", "--layer", "1")
    assert "(columns: row, utterance_id, text" in refusal(store, "--run", run_id, "--layer", "1", "--where", "colour = 1")
    assert "let its name end in .parquet, .csv, .json" in refusal(store, "FROM runs", "--out", tmp_path / "x.npy")
    assert "end in .npy, .parquet, .safetensors, .dataset" in refusal(
        store, "--run", run_id, "--layer", "1", "--out", tmp_path / "x.csv"
    )
    assert "there is no store" in refusal(tmp_path / "none", "FROM runs")
    slow = typed(store, "SELECT count(*) FROM range(10000000) a, range(10000000) b", "--timeout", "0.2")
    assert isinstance(slow.exception, TimeoutError)
    assert list(tmp_path.iterdir()) == []


_RUN_TABLES = ", ".join(VIEWS)
_UTTERANCES = "row, utterance_id, text, label, split, marks, n_tokens"
_NO_COLOUR = """there is no column "colour" (text stands in single quotes: 'colour')"""


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"where": "colour = 1"}, f"cannot use where='colour = 1': {_NO_COLOUR} (columns: {_UTTERANCES})"),
        ({"where": "label = = 1"}, f"cannot use where='label = = 1': syntax error at or near \"=\" (columns: {_UTTERANCES})"),
        ({"site": "resid.first"}, "run RUN does not hold resid.first; it holds resid.last, resid.mean"),
        ({"run": "zz"}, "no run starts with 'zz' in STORE; runs: RUNS"),
        ({"run": ""}, "say which run of STORE by its id, or by how that begins; runs: RUNS"),
        (
            {"sql": "SELECT colour FROM utterances"},
            f"cannot answer this SQL: {_NO_COLOUR} (columns of utterances: run_id, ROW)",
        ),
        ({"sql": "SELECT 1 + FROM runs"}, 'cannot read this SQL: syntax error at or near "FROM" (line 1, character 12)'),
        ({"sql": "FROM utterance"}, f"there is no table 'utterance' in a store; choose from {_RUN_TABLES}"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_choices_in_python_and_on_the_command_line(
    store: str,
    run_id: str,
    chosen: dict[str, Any],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = ", ".join(run.run_id for run in open_store(store).runs())
    for name, value in (("RUNS", runs), ("RUN ", f"{run_id} "), ("STORE", store), ("ROW", _UTTERANCES)):
        sentence = sentence.replace(name, value)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        in_python(store, **{"run": run_id, **chosen})
    options = {"run": run_id, "layer": 1, **chosen}
    arguments = [chosen["sql"]] if "sql" in chosen else [f"--{name}={value}" for name, value in options.items()]
    assert on_command_line(monkeypatch, store, *arguments) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {sentence}"]


def test_runs_that_begin_alike_are_named_in_python_and_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identities = [replace(IDENTITY, template=str(number)) for number in range(17)]  # two of them share one of 16 digits
    alike = next(pair for pair in itertools.combinations(identities, 2) if pair[0].run_id[0] == pair[1].run_id[0])
    stored = StoredRuns.open(str(tmp_path), create=True)
    table = pa.table({"row": [0]})
    for identity in alike:
        stored.create_run(manifest_of(identity, 1, 2, 1), {"utterances": table, "tokens": table})
    prefix, runs = alike[0].run_id[0], ", ".join(sorted(identity.run_id for identity in alike))
    sentence = f"2 runs start with '{prefix}' in {tmp_path}; runs: {runs}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        in_python(str(tmp_path), prefix)
    assert on_command_line(monkeypatch, str(tmp_path), f"--run={prefix}", "--layer=1") == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {sentence}"]


def in_python(
    store: str, run: str, site: str = "resid.last", layer: int = 1, where: str | None = None, sql: str | None = None
) -> None:
    if sql is None:
        open_store(store).run(run).hidden(site, layer, where)
    else:
        with answer(open_store(store), sql) as found:
            found.table()


def on_command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit code."""
    monkeypatch.setattr("sys.argv", ["affectome", "query", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def recipes() -> list[str]:
    return re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)


def test_every_recipe_of_the_page_runs(store: str) -> None:
    assert len(recipes()) == 6
    n_rows = [len(json.loads(printed(store, sql, "--json").stdout)) for sql in recipes()]
    persistence = 3  # none was measured here
    assert all(n > 0 for index, n in enumerate(n_rows) if index != persistence)


def columns_of(opened: Store, table: str) -> list[str]:
    with answer(opened, f"FROM {table}") as found:
        return list(found.schema.names)


def test_the_page_names_every_table_and_column(store: str) -> None:
    described = {
        name: re.findall(r"`(\w+)`", columns)
        for name, columns in re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", PAGE.read_text(), re.M)
    }
    assert list(described) == list(VIEWS)
    for table, columns in described.items():
        found = columns_of(open_store(store), table)
        if table == "utterances":
            assert set(found) <= {*columns, "split", "label", "marks"}
        else:
            assert found == columns, table


def test_what_asks_a_store_loads_no_torch() -> None:
    program = "import sys, cluster.commands.query, analyze.exporting, analyze.sql; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_page_says_what_a_row_is_as_the_tables_do() -> None:
    assert all(f"| `{name}` | {view.says} |" in PAGE.read_text() for name, view in VIEWS.items())


def test_the_command_bounds_a_query_as_the_analysis_does() -> None:
    assert (DEFAULT_TIMEOUT_S, DEFAULT_MEMORY) == (TIMEOUT_S, MEMORY)
