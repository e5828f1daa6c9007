"""Input that no analysis can use ends in one sentence and exit code 2, through every command that would read it."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from analyze.query import Run
from cluster.cli import main
from extract.objects import LocalObjects
from tests.analyze.conftest import Plant, plant

__all__ = ["plant"]

ANALYSES = (("probe",), ("persistence",), ("geometry",), ("transfer", "--by", "tone"), ("report",))


class Shell:
    """Types commands in this process: exit code, output and what is said on standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["affectome", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = self._capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    def refusal(self, *arguments: object) -> str:
        """The one sentence of a command that is used wrongly."""
        code, out, said = self(*arguments)
        assert (code, out) == (2, ""), said
        last = said.splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in said
        assert "not expected" not in said
        return last


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell in which affectome is typed."""
    return Shell(monkeypatch, capsys)


def run_of(
    plant: Plant,
    columns: Mapping[str, Sequence[object]],
    missing: Sequence[int] = (),
    constant: bool = False,
    n_layers: int = 2,
) -> Run:
    n = len(next(iter(columns.values())))
    states = np.ones((n_layers, n, 4)) if constant else np.random.default_rng(0).standard_normal((n_layers, n, 4))
    tone = {"tone": (["loud", "quiet"] * n)[:n]}
    return plant(states.astype(np.float32), tone | dict(columns), rows_per_shard=10, missing=missing)


def of_run(run: Run, command: Sequence[str]) -> list[str]:
    return [command[0], run.stored.store_location, run.run_id, *command[1:]]


@pytest.mark.parametrize("command", ANALYSES, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("columns", "missing", "sentence"),
    [
        ({"label": ["joy", "fear"] * 20}, [1], "1 of 4 shards are missing"),
        ({"label": ["joy"] * 36 + ["fear"] * 4}, [], "label 'fear' has too few examples (4, of different situations 4)"),
        ({"label": ["joy"] * 40}, [], "every labelled utterance is 'joy'"),
        ({"label": [None] * 40}, [], "no utterance of run"),
        ({"mood": ["joy", "fear"] * 20}, [], "has no column 'label'"),
    ],
    ids=["incomplete", "too few of a label", "one label", "no label", "no column of labels"],
)
def test_what_cannot_be_analysed_is_refused_by_every_analysis(
    plant: Plant, shell: Shell, command: Sequence[str], columns: dict[str, list[object]], missing: list[int], sentence: str
) -> None:
    if command[0] == "transfer" and columns.get("label") == [None] * 40:
        sentence = "column 'tone' has 0 values among utterances with an emotion"
    assert sentence in shell.refusal(*of_run(run_of(plant, columns, missing), command))


@pytest.mark.parametrize(
    "command", [command for command in ANALYSES if command[0] != "persistence"], ids=lambda command: command[0]
)
def test_states_that_are_all_alike_are_analysed_and_say_nothing(
    plant: Plant, shell: Shell, command: Sequence[str], tmp_path: Path
) -> None:
    run = run_of(plant, {"label": ["joy", "joy", "fear", "fear"] * 30}, constant=True)
    extra = ["--out", str(tmp_path / "report")] if command[0] == "report" else []
    code, _, said = shell(*of_run(run, command), *extra)
    assert code == 0, said
    assert "Traceback" not in said
    if command[0] == "probe":
        probed = json.loads(shell(*of_run(run, command), "--json")[1])
        assert probed["where"] is None
        assert all(layer["test"]["auroc"]["value"] == 0.5 for layer in probed["layers"])


def test_a_missing_value_in_a_column_of_labels_is_an_utterance_without_a_label(
    plant: Plant, shell: Shell, tmp_path: Path
) -> None:
    """As pandas writes them: an absent string is null in Parquet, nothing in CSV; a column of nothing but NaN is of numbers."""
    texts = [f"text {number}" for number in range(4)]
    labels = pa.array(np.array(["joy", math.nan, None, "fear"], object), from_pandas=True)
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "nulls.parquet")
    (tmp_path / "blank.csv").write_text("text,label\ntext 0,joy\ntext 1,\ntext 2,\ntext 3,fear\n")
    for name in ("nulls.parquet", "blank.csv"):
        code, out, said = shell("corpus", "check", tmp_path / name)
        assert code == 0, said
        assert "nan" not in out.casefold()
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": [math.nan] * 4}), tmp_path / "numbers.parquet")
    assert "column 'label'" in shell.refusal("corpus", "check", tmp_path / "numbers.parquet")


@pytest.mark.parametrize("command", [("predict", "a text", "--layer", "0"), ("report",)], ids=lambda command: command[0])
def test_a_file_of_another_runs_probes_is_refused_by_name(plant: Plant, shell: Shell, command: Sequence[str]) -> None:
    runs = [run_of(plant, {"label": ["joy", "fear"] * 30}, n_layers=n_layers) for n_layers in (2, 3)]
    paths: list[Path] = []
    for run in runs:
        assert shell(*of_run(run, ("probe",)))[0] == 0
        assert isinstance(run.stored.objects, LocalObjects)
        paths += (run.stored.objects.root / "analysis").glob("*.safetensors")
    paths[0].write_bytes(paths[1].read_bytes())
    said = shell.refusal(*of_run(runs[0], command))
    assert f"holds other probes than its name says: linear ones of resid.last of run {runs[1].run_id}" in said
    assert "remove it and make the probes again" in said
