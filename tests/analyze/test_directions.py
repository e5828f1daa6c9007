"""A probe's direction is the one along which it says more of a class; means are numpy's; what is absent is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit

from analyze import saved
from analyze.columns import CLASSES, NUMBERS, SETS
from analyze.directions import mean_difference, probe_direction
from analyze.fitting import KINDS, read_probabilities
from analyze.linear import LinearProbe
from analyze.multilabel import probe_sets
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from analyze.saved import load_probes, save_probes
from analyze.states import states_in
from analyze.valued import probe_values
from tests.analyze.conftest import Plant

SITE, N_ROWS, WIDTH = "resid.last", 120, 6
LABELS = [f"emotion {row % 3}" for row in range(N_ROWS)]
LINEAR = tuple(kind for kind in KINDS if kind != "mlp")

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    """Classes, lists of labels and numbers that the states tell, in features of very different size."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, N_ROWS, WIDTH)) + 2 * np.eye(3, WIDTH)[np.arange(N_ROWS) % 3]
    columns = {
        "label": LABELS,
        "marks": [[mark for mark, every in (("loud", 2), ("long", 3)) if row % every == 0] for row in range(N_ROWS)],
        "valence": (states[1] @ np.arange(WIDTH) / 10).tolist(),
    }
    return plant((states * 10.0 ** np.arange(-2, 4)).astype(np.float32), columns)


def centred_logs(probability_NK: Floats) -> Floats:
    """A class's log-probability against the mean of all classes'."""
    logs_NK = np.log(probability_NK)
    return np.asarray(logs_NK - logs_NK.mean(axis=1, keepdims=True))


def as_said(said_NK: Floats) -> Floats:
    return said_NK


@pytest.mark.parametrize(
    ("form", "kind"), [(CLASSES, kind) for kind in LINEAR] + [(SETS, kind) for kind in LINEAR] + [(NUMBERS, "ridge")]
)
def test_what_a_probe_says_of_a_class_moves_with_the_projection_on_its_direction(run: Run, form: str, kind: str) -> None:
    column = {CLASSES: "label", SETS: "marks", NUMBERS: "valence"}[form]
    spec = ProbeSpec(kind, 1.0 if kind == "ridge" else 0.1, column=column)
    probe = {CLASSES: probe_layers, SETS: probe_sets, NUMBERS: probe_values}[form]
    save_probes(run, probe(run, SITE, run.layers, spec))  # type: ignore[operator]  # each of its own result
    made, probes = load_probes(run, SITE, run.layers, spec)
    states_ND = run.hidden(SITE, 1)
    said_NK, *_ = read_probabilities(states_in(states_ND), [(probes[1], np.arange(N_ROWS))])
    through: Callable[[Floats], Floats] = {"logits": centred_logs, "log-odds": logit}.get(probes[1].gives, as_said)
    score_NK = through(said_NK)
    for index, name in enumerate(made.classes):
        label = None if form == NUMBERS else name
        direction_D = probe_direction(run, SITE, 1, label, column=column, kind=kind, strength=spec.strength).vector_D
        projection_N = states_ND.astype(np.float64) @ direction_D
        moved_N = score_NK[:, index] - score_NK[0, index]
        np.testing.assert_allclose(projection_N - projection_N[0], moved_N, atol=2e-3 * np.abs(moved_N).max())


def test_the_probe_is_the_one_asked_for_and_of_several_the_one_of_most_layers_and_then_the_newest(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant(np.random.default_rng(3).standard_normal((3, 60, 4)).astype(np.float32), {"label": LABELS[:60]})
    moments = iter([f"2026-01-0{day}" for day in range(1, 10)])
    monkeypatch.setattr(saved, "now", lambda: next(moments))

    def keep(layers: tuple[int, ...], spec: ProbeSpec) -> Floats:
        probed = probe_layers(run, SITE, layers, spec)
        save_probes(run, probed)
        probe = probed.probes[layers.index(1)]
        assert isinstance(probe, LinearProbe)
        return np.asarray(probe.weight_DK[:, 2])

    def found(**asked: Any) -> Floats:
        direction = probe_direction(run, SITE, 1, "emotion 2", kind="ridge", **asked)
        assert (direction.label, direction.spec) == ("emotion 2", ProbeSpec("ridge", **asked))
        return direction.vector_D

    strong, weighted = ProbeSpec("ridge", 1e4), ProbeSpec("ridge", 10.0, balance="weights")
    of_strong, of_weighted = keep((1,), strong), keep((1,), weighted)
    assert not np.array_equal(of_strong, of_weighted)
    np.testing.assert_array_equal(found(strength=1e4), of_strong)
    np.testing.assert_array_equal(found(strength=10.0, balance="weights"), of_weighted)
    with pytest.raises(ValueError, match=r"strength chosen.*choose from ridge probe \(strength 10, balance weights.*10000"):
        found()
    usual = keep(run.layers, ProbeSpec("ridge"))
    np.testing.assert_array_equal(found(), usual)
    np.testing.assert_array_equal(found(strength=1e4), of_strong)
    with pytest.raises(ValueError, match=r"no ridge probe of layer 7 of resid\.last; choose from 0, 1, 2"):
        probe_direction(run, SITE, 7, "emotion 2", kind="ridge")


def test_what_has_no_direction_is_refused_in_one_sentence(run: Run, plant: Plant) -> None:
    with pytest.raises(ValueError, match=r"no linear probes of resid\.last kept; make them first: affectome probe .* --kind"):
        probe_direction(plant(np.ones((1, 4, 2), np.float32), {"label": LABELS[:4]}), SITE, 0, "emotion 1")
    save_probes(run, probe_layers(run, SITE, run.layers))
    with pytest.raises(ValueError, match="has no class 'joy'; choose from emotion 0, emotion 1, emotion 2"):
        probe_direction(run, SITE, 0, "joy")
    with pytest.raises(ValueError, match="has several classes; choose from emotion 0"):
        probe_direction(run, SITE, 0)
    with pytest.raises(ValueError, match="an MLP reads no direction; choose from linear"):
        probe_direction(run, SITE, 0, "emotion 1", kind="mlp")
    with pytest.raises(ValueError, match="cubic"):
        probe_direction(run, SITE, 0, "emotion 1", kind="cubic")
    save_probes(run, probe_values(run, SITE, run.layers, ProbeSpec("ridge", column="valence")))
    with pytest.raises(ValueError, match="its probe has one direction and no class 'joy'"):
        probe_direction(run, SITE, 0, "joy", column="valence")
    with pytest.raises(ValueError, match="has no column 'colour'"):
        probe_direction(run, SITE, 0, "joy", column="colour")
    with pytest.raises(ValueError, match="keeps several states of an utterance"):
        mean_difference(run, "resid.all", 0, "true", "true")


def test_means_are_those_of_the_rows_however_large_the_states_are(plant: Plant) -> None:
    rng = np.random.default_rng(1)
    hidden = (rng.standard_normal((1, 3000, 5)) + np.array([0, 1e6, -3e5, 0, 1])).astype(np.float32)
    run = plant(hidden, {"label": [LABELS[row % 120] if row % 7 else None for row in range(3000)]})
    exact = hidden[0].astype(np.float64)
    rows = np.arange(3000)
    labelled = (rows % 7 > 0) & (rows % 3 == 1)
    found = mean_difference(run, SITE, 0, "label = 'emotion 1'", "row < 100")
    np.testing.assert_allclose(found, exact[labelled].mean(axis=0) - exact[:100].mean(axis=0), rtol=0, atol=1e-8)
    for conditions in (("label = 'joy'", "true"), ("true", "label = 'joy'")):
        with pytest.raises(ValueError, match=f"no utterance of run {run.run_id} fulfils \"label = 'joy'\""):
            mean_difference(run, SITE, 0, *conditions)
