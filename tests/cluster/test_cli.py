"""The command line as a user meets it: real processes, exit codes, sentences."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from cluster.cli import main
from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run

AFFECTOME = Path(sys.executable).with_name("affectome")


def affectome(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([AFFECTOME, *arguments], capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty utterances of three labels, and four without one."""
    path = tmp_path_factory.mktemp("corpus") / "mine.jsonl"
    rows: list[dict[str, str | None]] = [
        {"utterance_id": f"u{n}", "text": f"text number {n} of many", "label": ("joy", "fear", "anger")[n % 3]}
        for n in range(60)
    ]
    rows += [{"utterance_id": f"v{n}", "text": f"unsure {n}", "label": None} for n in range(4)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def store(tiny_model: Model, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with one finished run, and the run's id."""
    location = tmp_path_factory.mktemp("stores") / "store"
    done = affectome("extract", "--model", tiny_model.name, "--corpus", corpus, "--store", location, "--rows-per-shard", "20")
    assert done.returncode == 0, done.stderr
    return location, done.stdout.split()[-1]


def test_extract_prints_the_run_id_last_and_finds_the_run_again(
    tiny_model: Model, corpus: Path, store: tuple[Path, str]
) -> None:
    location, run_id = store
    assert len(run_id) == 16
    again = affectome("extract", "--model", tiny_model.name, "--corpus", corpus, "--store", location)
    assert again.stdout.split()[-1] == run_id
    assert f"run {run_id} is finished already: 64 of 64 rows" in again.stderr


def test_runs_lists_what_was_done(store: tuple[Path, str], tiny_model: Model) -> None:
    location, run_id = store
    (row,) = json.loads(affectome("runs", location, "--json").stdout)
    assert (row["run"], row["model"], row["rows_done"], row["rows_asked"]) == (run_id, tiny_model.name, 64, 64)
    assert row["sites"] == ["resid.last", "resid.mean"]
    assert run_id in affectome("runs", location).stdout


def test_verify_ends_with_0_when_whole_and_1_when_not(store: tuple[Path, str], tmp_path: Path) -> None:
    location, run_id = store
    whole = affectome("verify", location, run_id, "--json")
    assert whole.returncode == 0
    (row,) = json.loads(whole.stdout)
    assert (row["whole"], row["rows_whole"], row["receipts"], row["problems"]) == (True, 64, 4, [])
    damaged = tmp_path / "store"
    subprocess.run(["cp", "-r", location, damaged], check=True)
    victim = next(damaged.glob("runs/*/shards/*/resid.last/c.2.0.0"))
    victim.write_bytes(victim.read_bytes()[:-1])
    found = affectome("verify", damaged)
    assert found.returncode == 1
    assert str(victim.relative_to(damaged)) in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: 1 problem ")


def test_a_damaged_store_is_checked_repaired_and_finished_to_the_same_bytes(
    store: tuple[Path, str], tiny_model: Model, corpus: Path, tmp_path: Path
) -> None:
    location = Path(shutil.copytree(store[0], tmp_path / "store"))
    whole = data_objects(location)
    next(location.glob("runs/*/shards/000002-*/resid.last/c.2.0.0")).unlink()
    fast = affectome("verify", location, "--fast", "--json")
    assert fast.returncode == 0, fast.stderr
    (row,) = json.loads(fast.stdout)
    assert (row["whole"], row["rows_whole"], row["objects"]) == (True, 64, 0)
    (location / "affectome.json").unlink()
    repaired = affectome("verify", location, "--repair")
    assert repaired.returncode == 1
    assert "wrote the lost or damaged affectome.json" in repaired.stderr
    assert "launching its extraction again will do shards 2" in " ".join(repaired.stderr.split())
    assert "taken back" in affectome("verify", location, "--fast").stderr
    again = affectome("extract", "--model", tiny_model.name, "--corpus", corpus, "--store", location)
    assert again.returncode == 0, again.stderr
    assert affectome("verify", location).returncode == 0
    assert data_objects(location) >= whole  # beside them lies what is left of the attempt that was damaged


def data_objects(location: Path) -> set[tuple[str, str, bytes]]:
    """Shard, name and bytes of everything in shards."""
    return {
        (path.parts[-3][:6], f"{path.parent.name}/{path.name}", path.read_bytes())
        for path in location.glob("runs/*/shards/*/*/*")
    }


def test_a_damaged_manifest_does_not_hide_the_other_runs_and_is_repaired(
    store: tuple[Path, str], tiny_model: Model, tmp_path: Path
) -> None:
    location, run_id = Path(shutil.copytree(store[0], tmp_path / "store")), store[1]
    other = plan_run(Request(tiny_model.name, read_corpus("builtin").head(3)), str(location))
    extract_missing(other)
    victim = location / "runs" / other.run.run_id / "run.json"
    victim.write_bytes(victim.read_bytes()[1:])
    listed = affectome("runs", location, "--json")
    assert listed.returncode == 1
    assert [row["run"] for row in json.loads(listed.stdout)] == [run_id]
    assert f"run {other.run.run_id}: manifest {victim} is damaged" in listed.stderr
    repaired = affectome("verify", location, "--repair")
    assert repaired.returncode == 1
    assert (
        f"run {other.run.run_id}: removed its manifest where it was there; "
        "launching its extraction or import again writes it anew" in repaired.stderr
    )
    launched = plan_run(Request(tiny_model.name, read_corpus("builtin").head(3)), str(location))
    assert launched.tasks() == []  # finished shards are kept
    assert affectome("verify", location).returncode == 0


def test_gc_shows_what_dead_attempts_left_and_removes_it_and_leaves_recent_ones(
    store: tuple[Path, str], tmp_path: Path
) -> None:
    location = Path(shutil.copytree(store[0], tmp_path / "store"))
    before = data_objects(location)
    shards = location / "runs" / store[1] / "shards"
    for name, minutes in (("000001-0000dead", 90), ("000001-0000a11e", 1)):
        (shards / name).mkdir()
        (shards / name / "half").write_bytes(b"seven b")
        os.utime(shards / name / "half", (time.time() - 60 * minutes,) * 2)
    shown = affectome("gc", location, "--json")
    assert shown.returncode == 0, shown.stderr
    rows = {row["objects_of"]: (row["dead"], row["removed"]) for row in json.loads(shown.stdout)}
    assert rows == {"shards/000001-0000dead": (True, False), "shards/000001-0000a11e": (False, False)}
    assert "1 of 2 leftovers are dead, 7 bytes; --remove removes them" in shown.stderr
    removed = affectome("gc", location, "--remove")
    assert (removed.returncode, "removed 1 of 2 leftovers, 7 bytes" in removed.stderr) == (0, True)
    assert (shards / "000001-0000a11e" / "half").exists()
    assert not (shards / "000001-0000dead").exists()
    assert data_objects(location) == before
    assert affectome("verify", location, "--fast").returncode == 0


def test_probe_says_what_it_left_out_and_prints_the_same_facts_as_json(store: tuple[Path, str]) -> None:
    location, run_id = store
    table = affectome("probe", location, run_id[:6])
    assert table.returncode == 0, table.stderr
    assert "left out 4 rows because they carry no single label" in table.stderr
    result = json.loads(affectome("probe", location, run_id, "--json").stdout)
    assert [entry["layer"] for entry in result["layers"]] == [0, 1, 2, 3]
    assert result["n_unlabelled"] == 4
    assert all(f"{entry['test']['accuracy']['value']:.3f}" in table.stdout for entry in result["layers"])


def test_report_writes_a_page_and_its_pictures(store: tuple[Path, str], tmp_path: Path) -> None:
    location, run_id = store
    done = affectome("report", location, run_id, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert run_id in page.read_text()
    assert (page.parent / "layer-map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs", "{tmp}/absent"], "there is no store at"),
        (["runs", "{corpus}"], "is a file, not a store"),
        (["verify", "{store}", "zz"], "no run starts with 'zz'"),
        (["probe", "{store}", "{run}", "--site", "resid.middle"], "there is no site 'resid.middle'"),
        (["probe", "{store}", "{run}", "--site", "resid.first"], "does not hold resid.first; it holds resid.last, resid.mean"),
        (["probe", "{store}", "{run}", "--layers", "9"], "there is no layer 9"),
        (["probe", "{store}", "{run}", "--kind", "psychic"], "there is no probe 'psychic'"),
        (["persistence", "{store}", "{run}", "--passage", "poem"], "there is no passage 'poem'"),
        (["extract", "--store", "{tmp}/new", "--corpus", "{tmp}/absent.csv"], "there is no corpus at"),
        (["extract", "--store", "{tmp}/new", "--model", "absent"], "there is no model 'absent'"),
        (["extract", "--store", "{tmp}/new", "--model", "{tmp}"], "is not a model directory"),
        (["extract", "--store", "{tmp}", "--model", "{model}", "--corpus", "{corpus}"], "is not a store"),
        (["extract", "--store", "{tmp}/new", "--model", "{model}", "--limit", "0"], "a limit of 0 leaves no utterance"),
        (["extract", "--store", "{tmp}/new", "--model", "{model}", "--layers", "0:99"], "there is no layer 4"),
        (["models", "import", "{corpus}"], "is not a GGUF file"),
        (["corpus", "show", "{corpus}", "--label", "envy"], "its labels are anger, fear, joy"),
        (["extract"], "Missing option"),
        (["no-such-command"], "No such command"),
    ],
)
def test_wrong_use_is_one_clear_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    store: tuple[Path, str],
    corpus: Path,
    tiny_model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "something").write_text("not a store")
    places = {"tmp": tmp_path, "store": store[0], "run": store[1], "corpus": corpus, "model": tiny_model.name}
    monkeypatch.setattr(sys, "argv", ["affectome", *(argument.format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:  # in this process: eighteen times the imports would take minutes
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    assert sentence in " ".join(said.replace("│", " ").split())
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["something"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = affectome("--debug", "runs", tmp_path / "absent")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_a_hub_id_without_a_network_fails_at_once() -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    result = affectome("extract", "--store", "/nonexistent/store", "--model", "someone/some-model", **environment)
    assert result.returncode == 2
    assert "cannot get 'someone/some-model' from the hub" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_commands_that_compute_nothing_load_no_torch() -> None:
    program = (
        "import sys, cluster.cli; assert not {'torch', 'transformers', 'sklearn', 'ray'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_5427_real_comments_are_kept_verified_and_probed(tiny_model: Model, goemotions: Path, tmp_path: Path) -> None:
    """The built-in model takes minutes for this; its run is in the closing note of the issue, the mechanics are the same."""
    location = tmp_path / "store"
    done = affectome(
        "extract", "--model", tiny_model.name, "--corpus", goemotions / "test.parquet", "--store", location, "--truncate"
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[-1]
    (row,) = json.loads(affectome("verify", location, run_id, "--json").stdout)
    assert (row["whole"], row["rows_whole"], row["rows_asked"]) == (True, 5427, 5427)
    probed = affectome("probe", location, run_id, "--layers", "3")
    assert probed.returncode == 0, probed.stderr
    assert "left out 459 rows because they carry no single label" in probed.stderr


def test_a_corpus_without_labels_is_extracted_but_not_probed(tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["one", "two", "three"]}), path)
    done = affectome("extract", "--model", tiny_model.name, "--corpus", path, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    probed = affectome("probe", tmp_path / "store", done.stdout.split()[-1])
    assert probed.returncode == 2
    assert "has no column 'label'" in probed.stderr
