"""Probes find what was planted, where it was planted, and nothing in noise."""

import warnings
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from analyze.fitting import KINDS
from analyze.probes import Probed, ProbeResult, ProbeSpec
from analyze.probes import probe_layers as fit_layers
from analyze.query import Run
from tests.analyze.conftest import Plant

N_ROWS = 1000
WIDTH = 8
STRENGTH = {0: 0.0, 1: 0.4, 2: 1.0, 3: 0.0, 4: 0.6}
"""Distance of each class's mean from the middle, by layer: a perfect reader is right in norm.cdf(strength) of cases."""


def probe_layers(*arguments: Any, **named: Any) -> ProbeResult:
    """The scores alone."""
    probed: Probed = fit_layers(*arguments, **named)
    return probed.result


QUICK = tuple(kind for kind in KINDS if kind != "mlp")
"""Kinds that are fitted in no time; what holds of every bit of the other is in test_cores."""


def spec_of(kind: str) -> ProbeSpec:
    """A probe that can learn from few examples: the paper's one epoch cannot."""
    return ProbeSpec(kind, 100 if kind == "mlp" else None)


def planted_states(seed: int) -> tuple[NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(seed)
    sign = rng.permutation(np.arange(N_ROWS) % 2) * 2 - 1
    states = rng.standard_normal((len(STRENGTH), N_ROWS, WIDTH)).astype(np.float32)
    for layer, strength in STRENGTH.items():
        direction = rng.standard_normal(WIDTH)
        states[layer] += strength * np.outer(sign, direction / np.linalg.norm(direction))
    scale = 10.0 ** rng.integers(-3, 4, WIDTH)  # a probe must not care for units
    return (states * scale + 5 * scale).astype(np.float32), ["joy" if value > 0 else "fear" for value in sign]


@pytest.fixture(scope="module")
def planted(plant: Plant) -> Run:
    states, labels = planted_states(0)
    return plant(states, {"label": labels, "split": ["train", "test"] * (N_ROWS // 2)}, rows_per_shard=333)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_signal_is_found_at_its_layer_and_read_about_as_well_as_can_be(planted: Run, kind: str) -> None:
    result = probe_layers(planted, "resid.last", planted.layers, spec_of(kind))
    assert result.best_layer == result.best.layer == 2
    assert [entry.layer for entry in result.layers] == list(STRENGTH)
    for entry in result.layers:
        assert entry.test.accuracy.value == pytest.approx(norm.cdf(STRENGTH[entry.layer]), abs=0.05)
        assert entry.test.auroc.value == pytest.approx(norm.cdf(2**0.5 * STRENGTH[entry.layer]), abs=0.08)
        assert entry.selection_accuracy == pytest.approx(norm.cdf(STRENGTH[entry.layer]), abs=0.12)
    assert (result.n_train, result.n_test, result.classes) == (500, 500, ("fear", "joy"))
    assert (result.n_unlabelled, result.n_other_split) == (0, 0)


@pytest.mark.parametrize("kind", QUICK)
def test_the_interval_of_the_shuffled_control_holds_chance_at_most_layers(plant: Plant, kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(300) % 3)
    states = rng.standard_normal((20, 300, 40)).astype(np.float32)
    run = plant(states, {"label": [f"emotion {label}" for label in labels]})
    layers = probe_layers(run, "resid.last", run.layers, spec_of(kind)).layers
    assert sum(entry.control.auroc.low <= 0.5 <= entry.control.auroc.high for entry in layers) >= 16
    assert sum(entry.control.accuracy.low <= 1 / 3 <= entry.control.accuracy.high for entry in layers) >= 16
    assert sum(entry.test.auroc.low <= 0.5 <= entry.test.auroc.high for entry in layers) >= 16


def test_the_control_of_a_strong_signal_scores_chance_on_average(plant: Plant) -> None:
    rng = np.random.default_rng(1)
    sign = rng.permutation(np.arange(600) % 2) * 2 - 1
    directions = rng.standard_normal((12, 1, 40))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    states = rng.standard_normal((12, 600, 40)) + 3 * sign[:, None] * directions
    run = plant(states.astype(np.float32), {"label": [str(value) for value in sign]})
    layers = probe_layers(run, "resid.last", run.layers).layers
    assert all(entry.test.accuracy.value > 0.95 for entry in layers)
    assert np.mean([entry.control.auroc.value for entry in layers]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("kind", QUICK)
def test_the_result_is_the_same_twice(planted: Run, kind: str) -> None:
    first = probe_layers(planted, "resid.last", (1, 2), spec_of(kind))
    assert probe_layers(planted, "resid.last", (1, 2), spec_of(kind)) == first


def test_a_layer_is_scored_the_same_alone_and_among_others(planted: Run) -> None:
    among = probe_layers(planted, "resid.last", planted.layers)
    alone = probe_layers(planted, "resid.last", (4,))
    assert alone.layers == (among.layers[4],)
    assert alone.best_layer == 4


def test_what_is_left_out_is_counted_and_chance_is_the_commonest_training_class(plant: Plant) -> None:
    labels = [*["joy"] * 40, *["fear"] * 20, *[None] * 7, *["joy"] * 5]
    splits = [*["train", "test"] * 30, *["train"] * 7, *["validation"] * 5]
    states = np.random.default_rng(0).standard_normal((1, len(labels), 4)).astype(np.float32)
    result = probe_layers(plant(states, {"label": labels, "split": splits}), "resid.last", (0,))
    assert (result.n_train, result.n_test, result.n_unlabelled, result.n_other_split) == (30, 30, 7, 5)
    assert result.chance == pytest.approx(2 / 3)
    assert result.split == "the corpus's own"


def test_the_callback_is_called_once_a_layer(planted: Run) -> None:
    amounts: list[int] = []
    probe_layers(planted, "resid.last", (0, 3), on_layer=lambda amount: amounts.append(amount))
    assert amounts == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 5])
def test_constant_features_neither_crash_nor_warn(plant: Plant, kind: str, width: int) -> None:
    labels = ["joy", "fear"] * 40
    states = np.full((2, 80, width), 7, np.float32)
    states[1, :, -1] = np.where(np.array(labels) == "joy", 1, -1) + np.random.default_rng(0).normal(0, 0.1, 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant, varying = probe_layers(plant(states, {"label": labels}), "resid.last", (0, 1), spec_of(kind)).layers
    assert constant.test.auroc.value == 0.5
    assert varying.test.accuracy.value == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "columns",
    [
        {"label": ["joy"] * 30 + ["fear"] * 5},
        {"label": ["joy", "fear"] * 5},
        {"label": ["joy", "fear"] * 10, "split": ["train"] * 4 + ["test"] * 16},
        {"label": ["joy", "fear"] * 10 + ["joy"] * 20, "split": ["train"] * 4 + ["test"] * 16 + ["train"] * 20},
        {"label": ["joy", "fear"] * 10, "split": ["train"] * 6 + ["test"] * 14},
    ],
    ids=["a label of five", "two labels of five", "two of each label to train on", "two of one to train on", "three of each"],
)
def test_few_examples_are_probed_without_a_warning_or_refused_by_the_rule(
    plant: Plant, kind: str, columns: dict[str, list[object]]
) -> None:
    states = np.random.default_rng(0).standard_normal((1, len(columns["label"]), 4)).astype(np.float32)
    run = plant(states, columns)
    try:
        best = probe_layers(run, "resid.last", (0,), spec_of(kind)).best
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert 0 <= best.selection_accuracy <= 1
    assert refusal == "" or "a probe needs" in refusal


def test_an_unknown_kind_an_absent_layer_and_an_incomplete_run_are_refused_by_name(planted: Run, plant: Plant) -> None:
    with pytest.raises(ValueError, match="no probe 'quadratic'; choose from linear, ridge, difference, logistic, mlp"):
        probe_layers(planted, "resid.last", (0,), ProbeSpec("quadratic"))
    with pytest.raises(ValueError, match="does not hold layer 9"):
        probe_layers(planted, "resid.last", (0, 9))
    with pytest.raises(ValueError, match=r"does not hold resid\.mean"):
        probe_layers(planted, "resid.mean", (0,))
    incomplete = plant(np.zeros((1, 20, 2), np.float32), {"label": ["joy", "fear"] * 10}, rows_per_shard=10, missing={1})
    with pytest.raises(ValueError, match="1 of 2 shards are missing"):
        probe_layers(incomplete, "resid.last", (0,))


def test_no_score_is_computed_from_the_test_split_but_the_test_scores(plant: Plant) -> None:
    """Spoiling the test states must leave the choice of the layer alone."""
    states, labels = planted_states(3)
    split = cast(list[object], ["train", "train", "test"] * 333 + ["train"])
    clean = probe_layers(plant(states, {"label": labels, "split": split}), "resid.last", (1, 2))
    states[:, np.array(split) == "test"] = np.random.default_rng(0).standard_normal((5, 333, WIDTH))
    spoilt = probe_layers(plant(states, {"label": labels, "split": split}), "resid.last", (1, 2))
    assert [entry.selection_accuracy for entry in spoilt.layers] == [entry.selection_accuracy for entry in clean.layers]
    assert spoilt.best_layer == clean.best_layer
    assert spoilt.best.test.accuracy.value < clean.best.test.accuracy.value
