"""affectome probe, predict, geometry and transfer as a user types them, on a run of a real, tiny model.

In this process: each start of the command costs seconds, and how it ends is tested in test_cli.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from extract.models import Model
from tests.cluster.terminal import printed, refusal, typed

EMOTIONS = ("fear", "joy", "neutral")


@pytest.fixture(scope="module")
def run(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store and its run: each situation told loudly and quietly, and neutral ones."""
    rows = [
        {
            "text": f"{name} {tone} {index} of many",
            "label": name,
            "tone": tone,
            "pair_id": f"{name}-{index}",
            "strength": 0.5,
            "marks": [mark for mark in (name, tone) if mark in ("fear", "loud")],
            "valence": {"fear": -1.0, "joy": 1.0}.get(name),
        }
        for index in range(20)
        for name in EMOTIONS
        for tone in ("loud", "quiet")
    ]
    directory = tmp_path_factory.mktemp("analyses")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), directory / "corpus.parquet")
    location = str(directory / "store")
    out = printed("extract", "--model", tiny_model.name, "--corpus", directory / "corpus.parquet", "--store", location)
    return location, out.split()[-1]


def test_a_kept_probe_reads_new_text_and_the_probabilities_add_up(run: tuple[str, str], tmp_path: Path) -> None:
    assert "make them first: affectome probe" in refusal("predict", *run, "how fearful")
    printed("probe", *run, "--kind", "logistic", "--regularisation", "0.1")
    printed("probe", *run)
    first, second = json.loads(printed("predict", *run, "fear loud 3 of many", "joy quiet 4", "--layer", "2", "--json"))
    assert [first["text"], second["text"]] == ["fear loud 3 of many", "joy quiet 4"]
    for row in (first, second):
        assert sum(row[name] for name in EMOTIONS) == pytest.approx(1)
        assert row["says"] == max(EMOTIONS, key=lambda name: row[name])
    corpus = tmp_path / "new.jsonl"
    corpus.write_text('{"text": "fear loud 3 of many"}\n')
    (same,) = json.loads(printed("predict", *run, "--corpus", corpus, "--layer", "2", "--json"))
    assert same["fear"] == pytest.approx(first["fear"], abs=0.01)  # another batch rounds otherwise
    assert "linear probe of run" in printed("predict", *run, "fear")
    assert "give either texts to read or a --corpus" in refusal("predict", *run)
    assert "no probe of layer 77; choose from 0, 1" in refusal("predict", *run, "a text", "--layer", "77")
    assert "no cubic probes" in refusal("predict", *run, "a text", "--kind", "cubic")


def test_geometry_is_measured_kept_and_printed_both_ways(run: tuple[str, str]) -> None:
    shown = printed("geometry", *run, "--layers", "1,2")
    result = json.loads(printed("geometry", *run, "--layers", "1,2", "--json"))
    assert [layer["layer"] for layer in result["layers"]] == [1, 2]
    assert result["n_utterances"] == 120
    assert f"{result['layers'][0]['between']['value']:.3f}" in shown


def test_transfer_between_the_values_of_a_column_and_between_runs(run: tuple[str, str]) -> None:
    result = json.loads(printed("transfer", *run, "--by", "tone", "--layers", "2", "--json"))
    assert result["sources"] == ["tone=loud", "tone=quiet"]
    assert len(result["cells"]) == 4
    assert printed("transfer", *run, "--by", "tone", "--layers", "2").count("tone=loud") == 4
    assert "give two runs or more, or one run and --by COLUMN" in refusal("transfer", *run)
    assert "has no column 'volume'; it has row, utterance_id" in refusal("transfer", *run, "--by", "volume")
    assert "has 40 values among utterances with an emotion" in refusal("transfer", *run, "--by", "pair_id")
    assert "has 1 values among utterances with an emotion" in refusal("transfer", *run, "--by", "strength")
    assert "each with a name of its own" in refusal("transfer", *run, run[1], "--layers", "2")


def test_lists_of_labels_are_probed_kept_printed_both_ways_and_read_in_new_text(run: tuple[str, str]) -> None:
    shown = printed("probe", *run, "--label", "marks")
    result = json.loads(printed("probe", *run, "--label", "marks", "--json"))
    best = next(layer for layer in result["layers"] if layer["layer"] == result["best_layer"])
    assert (result["classes"], result["spec"]["column"], result["n_train"] + result["n_test"]) == (
        ["fear", "loud"],
        "marks",
        120,
    )
    assert f"{best['test']['auroc']['value']:.3f}" in shown
    assert f"{best['test']['label_f1'][1]['value']:.3f}" in shown
    (said,) = json.loads(printed("predict", *run, "fear loud 3 of many", "--label", "marks", "--json"))
    assert said["says"] == [name for name in ("fear", "loud") if said[name] > 0.5]
    assert "make them first" in refusal("predict", *run, "fear", "--label", "marks", "--kind", "ridge")
    assert "holds lists of labels, which cannot be balanced" in refusal("probe", *run, "--label", "marks", "--balance", "paper")


def test_numbers_are_probed_kept_printed_both_ways_and_read_in_new_text(run: tuple[str, str]) -> None:
    done = typed("probe", *run, "--label", "valence")
    assert "left out 40 rows because they have nothing in column valence" in done.stderr
    result = json.loads(printed("probe", *run, "--label", "valence", "--json"))
    best = next(layer for layer in result["layers"] if layer["layer"] == result["best_layer"])
    assert f"{best['test']['r2']['value']:.3f}" in done.stdout
    (said,) = json.loads(printed("predict", *run, "fear loud 3 of many", "--label", "valence", "--json"))
    assert set(said) == {"text", "valence"}
    assert -3 < said["valence"] < 3
    assert "choose ridge, or leave --kind away" in refusal("probe", *run, "--label", "valence", "--kind", "logistic")
    assert "is 0.5 for every utterance" in refusal("probe", *run, "--label", "strength")
    assert "has no column 'volume', which this analysis needs; it has row" in refusal("probe", *run, "--label", "volume")


def test_classes_of_another_column_stand_beside_those_of_label_and_out_of_the_report(
    run: tuple[str, str], tmp_path: Path
) -> None:
    tones = json.loads(printed("probe", *run, "--label", "tone", "--json"))
    emotions = json.loads(printed("probe", *run, "--json"))
    assert (tones["classes"], emotions["classes"]) == (["loud", "quiet"], list(EMOTIONS))
    (said,) = json.loads(printed("predict", *run, "joy loud 3", "--label", "tone", "--json"))
    assert said["says"] in ("loud", "quiet")
    page = Path(printed("report", *run, "--out", tmp_path / "report").strip()).read_text()
    assert "fear" in page
    assert "loud, quiet" not in page


def test_probes_that_were_removed_are_made_again(run: tuple[str, str]) -> None:
    printed("probe", *run, "--kind", "difference", "--layers", "0,1")
    (kept,) = [path for path in Path(run[0]).rglob("*.safetensors") if ".difference." in path.name]
    before = kept.read_bytes()
    kept.unlink()
    printed("probe", *run, "--kind", "difference", "--layers", "0,1")
    assert len(kept.read_bytes()) == len(before)
