"""Every token's hidden state against plain transformers, and values that the stored dtype cannot hold."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from analyze.query import Run
from extract.compute import ExtractionError
from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import Plan, extract_missing, plan_run
from extract.shard import extract_shard

SITES = "resid.all,resid.last,resid.mean"


@pytest.fixture
def request_of(tiny_model: Model) -> Request:
    """Twenty utterances in three shards, in batches of a few rows."""
    return Request(
        tiny_model.name,
        read_corpus("builtin").head(20),
        sites=SITES,
        compute_dtype="float32",
        stored_dtype="float32",
        rows_per_shard=8,
        token_budget=100,
    )


def done(request: Request, store: Path) -> Plan:
    plan = plan_run(request, str(store))
    extract_missing(plan)
    return plan


def reference_states(directory: Path, run: Run) -> Iterator[NDArray[np.float32]]:
    """For each row the states of the utterance's own tokens, (L, T, D), by plain transformers at batch 1 in float32."""
    plain = AutoModel.from_pretrained(directory, dtype=torch.float32)
    caught: list[torch.Tensor] = []
    plain.layers[-1].register_forward_hook(lambda _m, _a, out: caught.append(out if isinstance(out, torch.Tensor) else out[0]))
    for row in run.stored.table("tokens").to_pylist():
        caught.clear()
        with torch.no_grad():
            hidden = plain(torch.tensor([row["ids"]]), output_hidden_states=True).hidden_states
        yield torch.stack([*hidden[:-1], caught[0]])[:, 0, row["start"] : row["stop"]].numpy()


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_every_token_of_every_layer_equals_plain_transformers_one_by_one(
    tiny_model: Model, request_of: Request, tmp_path: Path, template: str
) -> None:
    run = Run(done(replace(request_of, template=template, truncate=True), tmp_path / "store").run)
    reference = list(reference_states(tiny_model.directory, run))
    lengths = run.utterances()["n_tokens"].to_pylist()
    assert [states.shape[1] for states in reference] == lengths
    for layer in run.layers:
        tokens = run.hidden_tokens("resid.all", layer)
        assert tokens.row_offsets.tolist() == np.cumsum([0, *lengths]).tolist()
        expected = np.concatenate([states[layer] for states in reference])
        error = np.linalg.norm(tokens.hidden - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 1e-4
        np.testing.assert_array_equal(run.hidden("resid.last", layer), tokens.hidden[tokens.row_offsets[1:] - 1])
        mean = np.add.reduceat(tokens.hidden, tokens.row_offsets[:-1]) / np.diff(tokens.row_offsets)[:, None]
        np.testing.assert_allclose(run.hidden("resid.mean", layer), mean, rtol=1e-4, atol=1e-5)


def write_huge_model(tiny_model: Model, directory: Path, tokens: slice) -> None:
    """The tiny model, whose second block lifts the states of half the texts over 65,504, as Gemma 3 does."""
    shutil.copytree(tiny_model.directory, directory)
    weights = load_file(directory / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("layers.1.mlp.down_proj.weight")]
    weights[name] *= 1e6
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    plain = AutoModel.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = read_corpus("builtin").head(20).table["text"].to_pylist()
    with torch.no_grad():
        states = [plain(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2] for text in texts]
    weights[name] *= 65504 / float(np.median([states_BTD[0, tokens].abs().max() for states_BTD in states]))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("site", ["resid.last", "resid.all"])
def test_values_over_65504_are_refused_in_float16_by_row_and_layer_and_kept_in_the_others(
    tiny_model: Model, request_of: Request, tmp_path: Path, site: str
) -> None:
    huge = tmp_path / "huge"
    write_huge_model(tiny_model, huge, slice(None) if site == "resid.all" else slice(-1, None))
    request = replace(request_of, model=str(huge), sites=site)
    exact = Run(done(request, tmp_path / "float32").run)
    peaks_NL: list[list[float]] = []
    for states_LTD in reference_states(huge, exact):
        kept = states_LTD if site == "resid.all" else states_LTD[:, -1:]
        peaks_NL.append(np.abs(kept).max(axis=(1, 2)).tolist())
    too_large = {row for row, peaks in enumerate(peaks_NL) if peaks[2] > 65504}
    assert 0 < len(too_large) < 20
    assert all(peaks[1] < 65504 for peaks in peaks_NL)

    plan = plan_run(replace(request, stored_dtype="float16"), str(tmp_path / "float16"))
    for task in plan.tasks():
        start, stop = plan.run.shard_rows(task.shard)
        if not too_large & set(range(start, stop)):
            continue
        with pytest.raises(
            ExtractionError, match=f"{site}: the value .* does not fit into float16; store bfloat16 or"
        ) as caught:
            extract_shard(task)
        found = re.match(r"row (\d+), layer 2, .* the value (\S+) ", str(caught.value))
        assert found is not None, caught.value
        row = int(found[1])
        assert row in too_large & set(range(start, stop))
        assert 65504 < abs(float(found[2])) <= peaks_NL[row][2] * 1.0001
        assert plan.run.receipt(task.shard) is None

    rounded = Run(done(replace(request, stored_dtype="bfloat16"), tmp_path / "bfloat16").run)
    for layer in exact.layers:
        read = [_read(run, site, layer) for run in (exact, rounded)]
        assert np.abs(read[0]).max() == pytest.approx(max(peaks[layer] for peaks in peaks_NL), rel=1e-4)
        np.testing.assert_array_equal(read[1], torch.from_numpy(read[0]).bfloat16().float().numpy())


def _read(run: Run, site: str, layer: int) -> NDArray[np.float32]:
    return run.hidden_tokens(site, layer).hidden if site == "resid.all" else run.hidden(site, layer)
