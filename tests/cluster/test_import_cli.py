"""affectome import as a user types it, and docs/import.md as it is written, beside runs that affectome extracted itself."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from analyze.query import Run, open_store
from cluster.commands.importing import DEFAULT_TEMPLATE, DEFAULT_TENSOR
from cluster.plans.holdings import Holdings
from extract.importing import UNKNOWN
from extract.models import Model
from extract.states_file import TENSOR
from tests.cluster.terminal import printed, refusal, typed

PAGE = Path(__file__).parents[2] / "docs" / "import.md"
N_ROWS = 40


@pytest.fixture(scope="module")
def extracted(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A corpus, and a run of it at two sites in bfloat16."""
    directory = tmp_path_factory.mktemp("extracted")
    rows = [
        {
            "text": f"{name} {tone} {index} of many",
            "label": name,
            "tone": tone,
            "pair_id": f"{name}-{index}",
            "split": "train" if index % 4 else "test",
        }
        for index in range(10)
        for name in ("fear", "joy")
        for tone in ("loud", "quiet")
    ]
    (directory / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus, store = directory / "corpus.jsonl", directory / "store"
    out = printed("extract", "--model", tiny_model.name, "--corpus", corpus, "--store", store, "--rows-per-shard", "16")
    return corpus, open_store(str(store)).run(out.split()[-1])


@pytest.fixture(scope="module")
def imported(extracted: tuple[Path, Run], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store with the states of that run, imported from what affectome query writes."""
    corpus, run = extracted
    directory = tmp_path_factory.mktemp("imported")
    slice_ = (run.stored.store_location, "--run", run.run_id, "--layer", "all", "--out", directory / "hidden.safetensors")
    printed("query", *slice_)
    store = str(directory / "store")
    out = printed(*command(store, directory / "hidden.safetensors", corpus), "--rows-per-shard", "16")
    return store, out.split()[-1]


def command(store: str | Path, states: Path, corpus: Path, *more: str) -> tuple[str | Path, ...]:
    asked = ("--states", states, "--corpus", corpus, "--site", "resid.last", "--model", "tiny@1")
    return ("import", store, *asked, *more)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("layer", ["2", "1,3", "all"])
def test_what_is_exported_and_imported_again_is_as_it_was(
    extracted: tuple[Path, Run], tmp_path: Path, suffix: str, layer: str
) -> None:
    corpus, run = extracted
    path = tmp_path / f"hidden{suffix}"
    chosen = (run.stored.store_location, "--run", run.run_id, "--site", "resid.mean", "--layer", layer)
    printed("query", *chosen, "--out", path)
    said = () if suffix == ".safetensors" else ("--layers", layer, "--n-layers", "3")
    asked = ("--states", path, "--corpus", corpus, "--site", "resid.mean", "--model", "tiny", *said)
    run_id = printed("import", tmp_path / "store", *asked).split()[-1]
    again = open_store(str(tmp_path / "store")).run(run_id)
    held = (0, 1, 2, 3) if layer == "all" else tuple(map(int, layer.split(",")))
    assert (again.layers, again.sites, again.manifest.n_layers) == (held, ("resid.mean",), 3)
    dtype = "stored" if suffix == ".safetensors" else "float32"
    assert again.manifest.identity.stored_dtype == ("bfloat16" if suffix == ".safetensors" else "float32")
    np.testing.assert_array_equal(again.hidden("resid.mean", held, dtype=dtype), run.hidden("resid.mean", held, dtype=dtype))
    printed(
        "query", tmp_path / "store", "--run", run_id, "--site", "resid.mean", "--layer", layer, "--out", path.with_stem("b")
    )
    if suffix == ".npy":
        assert path.with_stem("b").read_bytes() == path.read_bytes()
    else:
        both = [safetensors.torch.load_file(each)["hidden"] for each in (path, path.with_stem("b"))]
        assert torch.equal(*(each.view(torch.int16) for each in both))


def test_the_pages_example_of_transformers_gives_what_affectome_extracts(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = [each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "MODEL" in each]
    monkeypatch.chdir(tmp_path)
    exec(example, {"MODEL": str(tiny_model.directory)})  # noqa: S102 - the page's own example
    store, corpus = str(tmp_path / "store"), tmp_path / "texts.parquet"
    run_id = printed(*command(store, tmp_path / "hidden.npy", corpus, "--n-layers", "3", "--template", "raw")).split()[-1]
    precise = ("--dtype", "float32", "--stored-dtype", "float32", "--layers", "0:3", "--sites", "resid.last")
    own = printed("extract", "--model", tiny_model.name, "--corpus", corpus, "--store", store, *precise).split()[-1]
    opened = open_store(store)
    assert opened.run(run_id).layers == (0, 1, 2)
    states, expected = (opened.run(each).hidden("resid.last", (0, 1, 2)) for each in (run_id, own))
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)


def test_the_pages_python_imports_the_same_run(
    extracted: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[-1]
    np.save(tmp_path / "hidden.npy", np.random.default_rng(0).standard_normal((13, N_ROWS, 4)).astype(np.float32))
    program = example.replace("texts.parquet", str(extracted[0]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)  # noqa: S102 - the page's own example
    asked = ("--states", "hidden.npy", "--corpus", extracted[0], "--site", "resid.last", "--model", "OWNER/NAME")
    assert printed("import", "STORE", *asked, "--layers", "0:13").split()[-1] == names["run_id"]


def test_the_pages_commands_bring_a_run_into_another_store(
    extracted: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extracted[1]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.stored.store_location, "STORE")
    Path("other.csv").write_text("text,label,tone,weight\nanother,1,2,3\n")  # columns of other names and types
    np.save("other.npy", np.ones((2, 1, 3), np.float32))
    printed(*command("STORE", Path("other.npy"), Path("other.csv")))
    section = PAGE.read_text().partition("## From affectome itself")[2].partition("## ")[0].replace("RUN", run.run_id)
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.S)
    assert [language for language, _ in blocks] == ["", "python", ""]
    for language, block in blocks:
        if language:
            exec(block, {})  # noqa: S102 - the page's own example
        else:
            out = printed(*shlex.split(block)[1:])
    again = open_store("OTHER").run(out.split()[-1])
    np.testing.assert_array_equal(
        again.hidden("resid.last", again.layers, dtype="stored"), run.hidden("resid.last", run.layers, dtype="stored")
    )
    assert again.utterances().drop_columns(["n_tokens"]).equals(run.utterances().drop_columns(["n_tokens"]))


def test_an_imported_run_is_marked_wherever_runs_are_listed(imported: tuple[str, str], extracted: tuple[Path, Run]) -> None:
    store, run_id = imported
    digest = open_store(store).run(run_id).manifest.identity.states
    (row,) = json.loads(printed("runs", store, "--json"))
    assert row["revision"] == f"imported sha256:{digest[:12]}"
    assert row["rows_done"] == N_ROWS
    sql = "SELECT imported, model, n_tokens, complete, bytes > 0 AS held FROM runs"
    (found,) = json.loads(printed("query", store, sql, "--json"))
    assert found == {"imported": True, "model": "tiny@1", "n_tokens": None, "complete": True, "held": True}
    sql = "SELECT imported, n_tokens > 0 AS n FROM runs"
    assert json.loads(printed("query", extracted[1].stored.store_location, sql, "--json")) == [{"imported": False, "n": True}]
    sql = "SELECT count(*) AS n, count(n_tokens) AS known FROM utterances"
    assert json.loads(printed("query", store, sql, "--json")) == [{"n": N_ROWS, "known": 0}]


def test_launched_again_it_finds_the_run_finished(imported: tuple[str, str], extracted: tuple[Path, Run]) -> None:
    store, run_id = imported
    done = typed(*command(store, Path(store).parent / "hidden.safetensors", extracted[0], "--json"))
    assert json.loads(done.stdout)["run"] == run_id
    assert "imported already: 40 rows, layers 0, 1, 2, 3 of resid.last, bfloat16" in done.stderr
    assert "importing" not in done.stderr


def test_analyses_say_of_it_what_they_say_of_the_run_that_it_came_from(
    imported: tuple[str, str], extracted: tuple[Path, Run]
) -> None:
    ours, theirs = (extracted[1].stored.store_location, extracted[1].run_id), imported
    for analysis, more in (("probe", ()), ("geometry", ()), ("transfer", ("--by", "tone"))):
        said = [_numbers(json.loads(printed(analysis, *each, *more, "--json"))) for each in (ours, theirs)]
        assert said[0] == said[1]
        assert len(said[0]) > 10
    page = Path(printed("report", *theirs).split()[-1]).read_text()
    assert "The states were imported" in page
    assert "affectome import" in page
    assert "It cannot be measured: these states were imported" in page
    assert "how to is told below" not in page
    assert "Persistence was not measured: these states were imported" in page


def _numbers(said: object) -> list[float]:
    """All numbers in what was said, in order."""
    if isinstance(said, dict):
        return [number for value in said.values() for number in _numbers(value)]
    if isinstance(said, list):
        return [number for value in said for number in _numbers(value)]
    return [float(said)] if isinstance(said, int | float) else []


@pytest.mark.parametrize(
    "analysis", [("predict", "a text"), ("persistence",), ("persistence", "--reply", "4"), ("zero-shot",), ("prompting",)]
)
def test_what_needs_the_model_refuses_in_one_sentence(imported: tuple[str, str], analysis: tuple[str, ...]) -> None:
    store, run_id = imported
    said = refusal(analysis[0], store, run_id, *analysis[1:])
    assert said.startswith(f"run {run_id} was imported; its model is not known here")
    assert len(open_store(store).runs()) == 1


def test_what_was_damaged_is_put_back_by_the_same_import(
    imported: tuple[str, str], extracted: tuple[Path, Run], tmp_path: Path
) -> None:
    store, run_id = tmp_path / "store", imported[1]
    shutil.copytree(imported[0], store)
    assert "yes" in printed("verify", store)
    (spoiled,) = (store / "runs" / run_id / "shards").glob("000001-*/resid.last/c.2.0.0")
    spoiled.write_bytes(spoiled.read_bytes()[:-1])
    assert isinstance(typed("verify", store).exception, RuntimeError)
    repaired = typed("verify", store, "--repair")
    assert f"run {run_id}: launching its import again will do shards 1" in " ".join(repaired.stderr.split())
    said = refusal("query", store, "--run", run_id, "--layer", "1")
    assert "1 of 3 shards are missing; launch the same affectome import again" in said
    done = typed(*command(store, Path(imported[0]).parent / "hidden.safetensors", extracted[0]))
    assert "importing: 16 of 16 rows" in done.stderr
    assert "yes" in printed("verify", store)
    printed("gc", store, "--remove", "--older-than", "0")
    assert "yes" in printed("verify", store)


def test_wrong_use_is_refused_in_one_sentence(extracted: tuple[Path, Run], tmp_path: Path) -> None:
    corpus = extracted[0]
    np.save(tmp_path / "hidden.npy", np.zeros((2, 39, 3), np.float32))
    (tmp_path / "no text.csv").write_text("label\njoy\n")
    assert "holds states of 39 utterances" in refusal(*command(tmp_path / "store", tmp_path / "hidden.npy", corpus))
    assert "has no column 'text'" in refusal(*command(tmp_path / "store", tmp_path / "hidden.npy", tmp_path / "no text.csv"))
    assert "there is no file" in refusal(*command(tmp_path / "store", tmp_path / "none.npy", corpus))
    assert "is not a store" in refusal(*command(tmp_path, tmp_path / "hidden.npy", corpus))
    assert not (tmp_path / "store").exists()


def test_the_command_says_what_the_library_says_where_nobody_does() -> None:
    assert (DEFAULT_TEMPLATE, DEFAULT_TENSOR) == (UNKNOWN, TENSOR)


def test_it_is_compared_with_an_extracted_run_where_the_template_is_said_to_be_the_same(
    extracted: tuple[Path, Run], imported: tuple[str, str], tmp_path: Path
) -> None:
    corpus, run = extracted
    store, states = tmp_path / "store", Path(imported[0]).parent / "hidden.safetensors"
    shutil.copytree(run.stored.store_location, store)
    unsaid = printed(*command(store, states, corpus)).split()[-1]
    assert "in different templates" in refusal("compare", store, run.run_id, unsaid)
    said = printed(*command(store, states, corpus, "--template", "raw")).split()[-1]
    page = Path(printed("compare", store, run.run_id, said, "--out", tmp_path / "out").split()[-1]).read_text()
    assert re.search(r"layer (\d) and its layer \1 are most alike \(CKA 1\.00\)", page)
    assert re.search(r"tiny@1 \(imported [0-9a-f]{8}\)", page)
    held = Holdings(str(store))
    assert len(held.runs) == 3
    assert held.labelled_alike(held.runs[0], held.runs[1])
