"""A new text gets the state that the run would hold of it, without a byte written; what changed since is named."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaModel

from analyze.new_texts import states_of_texts
from analyze.query import Run
from extract.corpus import Corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run

TEXTS = [f"{word} number {index}{' and on' * (index % 4)}" for index in range(12) for word in ("quiet", "loud", "green")]
SITES = ("resid.last", "resid.mean", "resid.prompt_last", "attn_out.first")


def extracted(model: str, directory: Path, template: str = "raw", compute_dtype: str = "bfloat16") -> Run:
    corpus = Corpus("texts", pa.table({"utterance_id": [f"u{number}" for number in range(len(TEXTS))], "text": TEXTS}))
    request = Request(model, corpus, sites=",".join(SITES), template=template, compute_dtype=compute_dtype)
    planned = plan_run(request, str(directory / "store"))
    extract_missing(planned)
    return Run(planned.run)


@pytest.fixture(scope="module")
def run(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return extracted(tiny_model.name, tmp_path_factory.mktemp("new"))


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_text_of_the_corpus_gets_the_state_that_the_run_holds(
    tiny_model: Model, tmp_path: Path, template: str, compute_dtype: str
) -> None:
    run = extracted(tiny_model.name, tmp_path, template, compute_dtype)
    (receipt,) = run.stored.receipts()
    exact = receipt.forward == "packed" and not receipt.n_shared  # there the bits do not depend on the rest of a batch
    for site, layer in zip(SITES, (3, 0, 2, 1), strict=True):
        alone = np.concatenate([states_of_texts(run, site, layer, [text]) for text in TEXTS[:3]])
        held = run.hidden(site, layer, rows=[0, 1, 2])
        if exact:
            np.testing.assert_array_equal(alone, held)
        np.testing.assert_allclose(alone, held, atol=0.02 * np.abs(held).max())
    np.testing.assert_array_equal(states_of_texts(run, "resid.mean", 2, TEXTS), run.hidden("resid.mean", 2))


def test_a_sentence_of_the_corpus_finds_itself_first(run: Run) -> None:
    for row in (0, 17, 35):
        found = run.nearest("resid.mean", 3, TEXTS[row], 3).to_pylist()
        assert (found[0]["row"], found[0]["text"]) == (row, TEXTS[row])
        assert found[0]["score"] == pytest.approx(1, abs=1e-3)
        assert found[1]["score"] < found[0]["score"]


def test_nothing_is_written_for_a_new_text(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return sorted(Path(run.stored.store_location).rglob("*"))

    before = files()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    states_of_texts(run, "resid.last", 1, ["a text that is new"])
    assert files() == before


def test_several_threads_get_what_one_gets(run: Run) -> None:
    expected = [states_of_texts(run, "resid.last", 2, [text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: states_of_texts(run, "resid.last", 2, [text]), TEXTS))
    np.testing.assert_array_equal(found, expected)


def test_a_text_that_cannot_be_read_is_refused_in_one_sentence(run: Run) -> None:
    for texts, says in (
        ([], "there is no text to read"),
        (["fine", ""], "^the text '' has no tokens of its own, so it has no state; give one with words$"),
        (["word " * 100], r"^the text '(word ){8}…' has \d+ tokens with its template, and the model reads 64; shorten it$"),
        (["\ud800"], r"a text is not Unicode: it holds '\\ud800'"),
    ):
        with pytest.raises(ValueError, match=says):
            states_of_texts(run, "resid.last", 1, texts)
    with pytest.raises(ValueError, match="layer"):
        states_of_texts(run, "resid.last", 9, ["a text"])


def test_a_model_that_changed_or_is_gone_is_named(tiny_model: Model, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model.directory, directory)
    run = extracted(str(directory), tmp_path)
    model = LlamaModel.from_pretrained(directory)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(directory)
    with pytest.raises(ValueError, match=rf"the weights of .*model changed after run {run.run_id}; extract it anew first"):
        states_of_texts(run, "resid.last", 1, ["a text"])
    shutil.rmtree(directory)
    with pytest.raises(ValueError, match="there is no model"):
        states_of_texts(run, "resid.last", 1, ["a text"])
