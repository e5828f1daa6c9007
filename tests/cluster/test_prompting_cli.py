"""affectome prompting as a user types it, on a real, tiny model that replies: in this process, as in test_analyses_cli."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from extract.models import Model
from tests.cluster.terminal import printed, refusal

MINE = "brief=Be brief."


@pytest.fixture(scope="module")
def run(writing_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store and its run."""
    rows = [{"text": f"{name} {index} of many", "label": name} for index in range(12) for name in ("fear", "joy", "neutral")]
    directory = tmp_path_factory.mktemp("prompting")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), directory / "corpus.parquet")
    location = str(directory / "store")
    out = printed("extract", "--model", writing_model.name, "--corpus", directory / "corpus.parquet", "--store", location)
    return location, out.split()[-1]


def test_system_prompts_are_measured_once_kept_and_printed_both_ways(run: tuple[str, str]) -> None:
    typed = ("prompting", *run, "--system", MINE, "--per-label", "5", "--max-tokens", "4")
    shown, result = printed(*typed), json.loads(printed(*typed, "--json"))
    kept = [path for path in Path(run[0], "runs", run[1], "analysis").iterdir() if path.name.startswith("prompting.")]
    assert len(kept) == 1
    assert json.loads(kept[0].read_text())["result"] == result
    assert [(each["name"], each["system"]) for each in result["conditions"]] == [("none", ""), ("brief", "Be brief.")]
    assert result["layers"] == [1, 2]  # the quarters of two blocks
    assert (result["n_utterances"], result["max_tokens"]) == (15, 4)
    assert result["default_system"] in shown
    numbers = [shift["distance"]["value"] for shift in result["shifts"]] + [each["auroc"]["low"] for each in result["readings"]]
    assert all(f"{number:.3f}" in shown for number in numbers)
    assert "brief less none" in shown
    assert "15 utterances of 15 situations" in shown


def test_layers_are_the_users_and_what_cannot_be_is_refused(run: tuple[str, str]) -> None:
    small = ("--per-label", "5", "--max-tokens", "2")
    result = json.loads(printed("prompting", *run, "--system", "composed", "--layers", "2", *small, "--json"))
    assert (result["layers"], len(result["shifts"])) == ([2], 2)
    assert "there is no layer 7; this model has layers 0" in refusal("prompting", *run, "--layers", "7", *small)
    assert "there is no system prompt 'calm'" in refusal("prompting", *run, "--system", "calm", *small)
    assert "sample fewer with --per-label" in refusal("prompting", *run, "--per-label", "9")
