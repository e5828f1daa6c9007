"""A probe read back says what it said, its file needs nothing of affectome, and new text is read as the run's own text was."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from scipy.special import softmax

from analyze.fitting import KINDS, read, read_probabilities
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from analyze.saved import load_probes, predict, save_probes
from analyze.states import states_in
from extract.corpus import Corpus
from extract.models import Model
from extract.objects import LocalObjects
from extract.request import Request
from extract.run import extract_missing, plan_run
from tests.analyze.conftest import Plant

N_ROWS = 120


@pytest.fixture(scope="module")
def planted(plant: Plant) -> Run:
    rng = np.random.default_rng(0)
    labels = np.arange(N_ROWS) % 3
    states = rng.standard_normal((3, N_ROWS, 10)) + 2 * np.eye(3, 10)[labels]
    return plant(states.astype(np.float32) * 10.0 ** np.arange(-5, 5), {"label": [f"emotion {label}" for label in labels]})


def kept_file(run: Run) -> bytes:
    assert isinstance(run.stored.objects, LocalObjects)
    (path,) = (run.stored.objects.root / "analysis").glob("*.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_probes_read_back_say_what_they_said(planted: Run, kind: str) -> None:
    probed = probe_layers(planted, "resid.last", planted.layers, ProbeSpec(kind))
    save_probes(planted, probed)
    made, probes = load_probes(planted, "resid.last", planted.layers, ProbeSpec(kind))
    assert (made.run_id, made.site, made.layers) == (planted.run_id, "resid.last", planted.layers)
    assert (made.classes, made.spec) == (probed.result.classes, ProbeSpec(kind))
    rows = np.arange(N_ROWS)
    for layer, probe in zip(planted.layers, probed.probes, strict=True):
        states = states_in(planted.hidden("resid.last", layer))
        before, after = read(states, [(probe, rows), (probes[layer], rows)])
        np.testing.assert_array_equal(before, after)


def test_the_file_is_enough_to_read_states_with_one_matrix_product(plant: Plant) -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(N_ROWS) % 3
    states = (rng.standard_normal((2, N_ROWS, 6)) + 2 * np.eye(3, 6)[truth]).astype(np.float32)
    run = plant(states, {"label": [f"emotion {label}" for label in truth]})
    probed = probe_layers(run, "resid.last", run.layers)
    save_probes(run, probed)
    tensors = load_tensors(kept_file(run))
    for index, layer in enumerate(run.layers):
        hidden = run.hidden("resid.last", layer)
        by_hand: NDArray[np.float64] = softmax(hidden @ tensors["weight"][index] + tensors["bias"][index], axis=1)
        (ours,) = read_probabilities(states_in(hidden), [(probed.probes[index], np.arange(N_ROWS))])
        np.testing.assert_allclose(by_hand, ours, atol=1e-5)
        assert (by_hand.argmax(axis=1) == truth).mean() > 0.8


def test_probes_of_another_kind_and_a_damaged_file_are_refused_by_name(plant: Plant) -> None:
    states = np.random.default_rng(0).standard_normal((1, 40, 4)).astype(np.float32)
    run = plant(states, {"label": ["joy", "fear"] * 20})
    with pytest.raises(ValueError, match=r"no linear probes of resid\.last kept; make them first: affectome probe"):
        load_probes(run, "resid.last", run.layers, ProbeSpec())
    save_probes(run, probe_layers(run, "resid.last", run.layers))
    with pytest.raises(ValueError, match="no logistic probes"):
        load_probes(run, "resid.last", run.layers, ProbeSpec("logistic"))
    assert isinstance(run.stored.objects, LocalObjects)
    (path,) = (run.stored.objects.root / "analysis").glob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], b"\0" * len(whole), whole.replace(b"layers", b"lawyer")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged; remove it and make the probes again"):
            load_probes(run, "resid.last", run.layers, ProbeSpec())


def test_new_text_is_read_as_the_runs_own_text_was(tiny_model: Model, tmp_path: Path) -> None:
    texts = [f"{word} number {index}" for index in range(20) for word in ("quiet", "loud", "green")]
    names = [f"u{number}" for number in range(60)]
    corpus = Corpus("texts", pa.table({"utterance_id": names, "text": texts, "label": ["a", "b", "c"] * 20}))
    request = Request(tiny_model.name, corpus, sites="resid.mean", compute_dtype="float32", stored_dtype="float32")
    planned = plan_run(request, str(tmp_path / "store"))
    extract_missing(planned)
    run = Run(planned.run)
    save_probes(run, probe_layers(run, "resid.mean", run.layers))
    made, probes = load_probes(run, "resid.mean", run.layers, ProbeSpec())
    said = predict(run, made, probes[2], 2, texts)
    (expected,) = read_probabilities(states_in(run.hidden("resid.mean", 2)), [(probes[2], np.arange(60))])
    np.testing.assert_allclose(said, expected, atol=1e-4)
    other = Run(plan_run(Request(tiny_model.name, corpus.head(30), sites="resid.mean"), str(tmp_path / "store")).run)
    with pytest.raises(ValueError, match=f"fitted to run {run.run_id}"):
        predict(other, made, probes[2], 2, texts)
