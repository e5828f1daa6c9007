"""affectome nearest and along as a user types them, on a run of a real, tiny model."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from analyze.directions import mean_difference, probe_direction
from analyze.probes import ProbeSpec
from analyze.query import Run, open_store
from extract.models import Model
from tests.cluster.terminal import ended_well, refusal

EMOTIONS = ("fear", "joy", "calm")
WHERE = "label = 'joy'"


def said(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended_well(*arguments, "--json").stdout)
    return found


@pytest.fixture(scope="module")
def stored(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store and its run, with probes of labels and of numbers; one text would turn the terminal red."""
    directory = tmp_path_factory.mktemp("similarity")
    rows = [
        {"text": f"{name} {index} of many", "label": name, "valence": index / 7} for index in range(20) for name in EMOTIONS
    ]
    rows[4]["text"] = "joy \x1b[31mred\nand a second line of it"
    (directory / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    location = str(directory / "store")
    extract = ("extract", "--model", tiny_model.name, "--corpus", directory / "corpus.jsonl", "--store", location)
    run_id = ended_well(*extract).stdout.split()[-1]
    ended_well("probe", location, run_id)
    ended_well("probe", location, run_id, "--label", "valence", "--layers", "2")
    return location, run_id


@pytest.fixture(scope="module")
def run(stored: tuple[str, str]) -> Run:
    return open_store(stored[0]).run(stored[1])


def test_a_text_a_row_and_a_vector_find_what_the_run_finds(stored: tuple[str, str], run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "vector.npy", run.hidden("resid.mean", 3, rows=[8])[0])
    text = run.utterances()["text"][8].as_py()
    expected = run.nearest("resid.mean", 3, run.hidden("resid.mean", 3, rows=[8]), 4).to_pylist()
    for query in (("--text", text), ("--row", "8"), ("--vector", tmp_path / "vector.npy")):
        found = said("nearest", *stored, "--layer", "3", "--site", "resid.mean", "-k", "4", *query)
        assert (found["run_id"], found["site"], found["layer"], found["metric"]) == (run.run_id, "resid.mean", 3, "cosine")
        assert [found["text"], found["row"], found["vector"]] == [
            [text] if query[0] == "--text" else None,
            [8] if query[0] == "--row" else None,
            str(tmp_path / "vector.npy") if query[0] == "--vector" else None,
        ]
        assert [row["row"] for row in found["utterances"]] == [row["row"] for row in expected]
        assert found["utterances"][0] == {name: expected[0][name] for name in ("row", "utterance_id", "label", "text")} | {
            "score": pytest.approx(1, abs=1e-3)
        }


def test_metric_centring_condition_and_count_are_the_runs_own(stored: tuple[str, str], run: Run) -> None:
    how = ("--layer", "2", "--metric", "dot", "--scaling", "centred", "--where", WHERE, "-k", "3")
    found = said("nearest", *stored, "--row", "1", "--row", "5", *how)
    queries = run.hidden("resid.last", 2, rows=[1, 5])
    expected = run.nearest("resid.last", 2, queries, 3, WHERE, metric="dot", scaling="centred")
    assert [(row["query"], row["row"], row["score"]) for row in found["utterances"]] == list(
        zip(*(expected[name].to_pylist() for name in ("query", "row", "score")), strict=True)
    )
    assert "centred dot, resid.last, layer 2" in ended_well("nearest", *stored, "--row", "1", *how).stdout
    assert "no utterance" in ended_well("nearest", *stored, "--row", "1", "--layer", "2", "--where", "false").stderr


@pytest.mark.parametrize("settings", [(), ("--balance", "weights", "--regularisation", "0.5")])
def test_both_ends_of_a_probes_class_are_found_and_which_probe_is_said(
    stored: tuple[str, str], run: Run, settings: tuple[str, ...]
) -> None:
    spec = ProbeSpec("linear", 0.5, "weights") if settings else ProbeSpec()
    if settings:
        ended_well("probe", *stored, *settings)
    asked = ("along", *stored, "--layer", "2", "--label", "joy", *settings)
    direction = probe_direction(run, "resid.last", 2, "joy", balance=spec.balance, strength=spec.strength)
    expected = run.along("resid.last", 2, direction.vector_D, 10)
    found = said(*asked)
    assert found["of"] == {"label": "joy", **asdict(spec)}
    assert [row["row"] for row in found["utterances"]] == expected["row"].to_pylist()
    how = ", balance weights, regularisation 0.5" if settings else ""
    title = f"projection along 'joy' of the linear probe of 'label'{how}, resid.last, layer 2"
    assert title in " ".join(ended_well(*asked).stdout.split())


def test_both_ends_of_numbers_and_between_two_means_are_found(stored: tuple[str, str], run: Run) -> None:
    numbers = probe_direction(run, "resid.last", 2, column="valence")
    for asked, direction_D, of in (
        (("--column", "valence"), numbers.vector_D, {"label": None, **asdict(numbers.spec)}),
        (
            ("--where", WHERE, "--other", "row < 9"),
            mean_difference(run, "resid.last", 2, WHERE, "row < 9"),
            {"where": WHERE, "other": "row < 9"},
        ),
    ):
        found = said("along", *stored, "--layer", "2", "-k", "3", *asked, "--among", "row % 2 = 1")
        expected = run.along("resid.last", 2, direction_D, 3, "row % 2 = 1")
        assert (found["of"], found["among"]) == (of, "row % 2 = 1")
        assert [row["row"] for row in found["utterances"]] == expected["row"].to_pylist()
        assert [row["end"] for row in found["utterances"]] == ["top"] * 3 + ["bottom"] * 3
        assert [row["score"] for row in found["utterances"]] == pytest.approx(expected["score"].to_pylist())


def test_ends_that_overlap_are_told(stored: tuple[str, str]) -> None:
    asked = ("along", *stored, "--layer", "2", "--label", "joy", "-k", "3", "--among")
    assert "some are at both ends" in ended_well(*asked, "row < 5").stderr
    assert "both ends" not in ended_well(*asked, "row < 6").stderr


def test_columns_of_the_corpus_are_not_shown_as_what_was_found(tiny_model: Model, tmp_path: Path) -> None:
    rows = [{"text": f"text {index}", "label": EMOTIONS[index % 2], "query": "mine", "end": "mine"} for index in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = tmp_path / "store"
    extract = ("extract", "--model", tiny_model.name, "--corpus", tmp_path / "corpus.jsonl", "--store", store)
    run_id = ended_well(*extract).stdout.split()[-1]
    shown = ["score", "row", "utterance_id", "label", "text"]
    near = ("nearest", store, run_id, "--layer", "1", "-k", "1", "--row", "2")
    assert list(said(*near)["utterances"][0]) == shown
    assert list(said(*near, "--row", "3")["utterances"][1]) == ["query", *shown]
    means = ("--where", "label = 'joy'", "--other", "label = 'fear'")
    ends = said("along", store, run_id, "--layer", "1", "-k", "1", *means)["utterances"]
    assert [list(row) for row in ends] == [["end", *shown]] * 2
    assert [row["end"] for row in ends] == ["top", "bottom"]


def test_what_was_found_is_written_with_all_columns(stored: tuple[str, str], run: Run, tmp_path: Path) -> None:
    done = ended_well("nearest", *stored, "--row", "4", "--layer", "1", "--out", tmp_path / "near.parquet")
    assert "wrote 10 rows" in done.stderr
    written = pyarrow.parquet.read_table(tmp_path / "near.parquet")
    assert written.column_names == ["score", *run.utterances().column_names]
    ended_well("along", *stored, "--label", "joy", "--layer", "1", "--out", tmp_path / "ends.csv")
    with (tmp_path / "ends.csv").open(newline="") as file:
        assert [row["end"] for row in csv.DictReader(file)] == ["top"] * 10 + ["bottom"] * 10
    assert "outside of it" in refusal("nearest", *stored, "--row", "4", "--layer", "1", "--out", f"{stored[0]}/x.csv")


def test_what_would_command_the_terminal_is_shown_and_not_obeyed(stored: tuple[str, str]) -> None:
    shown = ended_well("nearest", *stored, "--row", "4", "--layer", "1", "-k", "1").stdout
    assert r"joy \x1b[31mred and a second line of it" in shown
    assert "\x1b" not in shown


def test_wrong_use_is_refused_in_one_sentence_that_names_the_choices(stored: tuple[str, str], tmp_path: Path) -> None:
    near, ends = ("nearest", *stored, "--layer", "1"), ("along", *stored, "--layer", "1")
    assert "give one of --text, --row and --vector" in refusal(*near)
    assert "give one of --text, --row and --vector" in refusal(*near, "--row", "1", "--text", "a text")
    assert "its rows are 0 to 59" in refusal(*near, "--row", "60")
    assert "choose from cosine, dot, euclidean" in refusal(*near, "--row", "1", "--metric", "manhattan")
    assert "choose from none, centred, standardised" in refusal(*near, "--row", "1", "--scaling", "rogue")
    assert "cannot use where='colour = 1'" in refusal(*near, "--text", "a text", "--where", "colour = 1")
    for name, write in (("none.npy", None), ("text.npy", b"joy"), ("short.npy", b"\x93NUMPY\x01\x00")):
        if write is not None:
            (tmp_path / name).write_bytes(write)
        assert "cannot read numbers from" in refusal(*near, "--vector", tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "cannot read numbers from" in refusal(*near, "--vector", tmp_path / "objects.npy")
    np.save(tmp_path / "narrow.npy", np.ones(3))
    assert "a query is 32 numbers" in refusal(*near, "--vector", tmp_path / "narrow.npy")
    for given in ((), ("--label", "joy", "--where", WHERE, "--other", "true"), ("--where", WHERE), ("--other", WHERE)):
        assert "give a --label of a kept probe" in refusal(*ends, *given)
    assert "--among says which utterances are found" in refusal(*ends, "--label", "joy", "--where", WHERE)
    assert "(strength chosen, balance paper, solver affectome)" in refusal(*ends, "--label", "joy", "--balance", "paper")
    assert "give a --label of a kept probe" in refusal(*ends, "--kind", "linear", "--where", WHERE, "--other", "true")
    assert "has several classes; choose from calm, fear, joy" in refusal(*ends, "--kind", "linear")
    assert "choose from calm, fear, joy" in refusal(*ends, "--label", "anger")
    assert "make them first: affectome probe" in refusal(*ends, "--label", "joy", "--kind", "logistic")
    assert "no utterance of run" in refusal(*ends, "--where", WHERE, "--other", "label = 'anger'")
