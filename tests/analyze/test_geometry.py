"""Geometry agrees with slow ways to the same thing, sees what was planted, and calls nothing out of noise."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from analyze.geometry import MOST_COMPARED, PAIRS, compare_models, measure_geometry
from analyze.query import Run
from tests.analyze.conftest import Plant

EMOTIONS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
WIDTH = 16


def labelled(n: int, seed: int = 0) -> list[str]:
    return [EMOTIONS[index] for index in np.random.default_rng(seed).permutation(np.arange(n) % len(EMOTIONS))]


def states_around(labels: list[str], directions: NDArray[np.float64], strength: float, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    codes = [EMOTIONS.index(label) for label in labels]
    return (rng.standard_normal((len(labels), directions.shape[1])) + strength * directions[codes]).astype(np.float32)


def paired_directions(seed: int) -> NDArray[np.float64]:
    """Directions of the emotions in which those of a pair lie close together."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((len(EMOTIONS), WIDTH))
    for one, other in PAIRS:
        first, second = EMOTIONS.index(one), EMOTIONS.index(other)
        directions[second] = directions[first] + 0.4 * directions[second]
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def planted(plant: Plant) -> Run:
    """Layer 0 is noise, layers 1 and 2 carry the labels with different strength and the same directions."""
    labels, directions = labelled(420), paired_directions(0)
    layers = [states_around(labels, directions, strength, seed) for seed, strength in enumerate((0.0, 1.5, 4.0))]
    return plant(np.stack(layers) * 10.0 ** np.arange(-8, 8), {"label": labels})


def test_what_was_planted_is_seen_and_noise_is_not(planted: Run) -> None:
    noise, weak, strong = measure_geometry(planted, "resid.last", planted.layers).layers
    assert noise.between.low <= 0 <= noise.between.high
    assert noise.p_value > 0.02
    assert 0 < weak.between.low < weak.between.value < strong.between.value < 1
    assert weak.p_value == strong.p_value == pytest.approx(1 / 501)
    assert noise.silhouette.value < weak.silhouette.value < strong.silhouette.value
    assert strong.grouping is not None
    assert strong.grouping.rank == 1
    assert strong.grouping.contrast.low > 0
    assert strong.grouping.n_pairings == 15


def test_silhouette_and_cosines_are_those_of_the_standardised_states(planted: Run) -> None:
    result = measure_geometry(planted, "resid.last", (1,))
    z = StandardScaler().fit_transform(planted.hidden("resid.last", 1).astype(np.float64))
    labels = np.array(planted.utterances()["label"].to_pylist())
    (layer,) = result.layers
    assert layer.silhouette.value == pytest.approx(silhouette_score(z, labels), abs=1e-5)
    means = np.stack([z[labels == name].mean(axis=0) for name in result.classes])
    direction = means - means.mean(axis=0)
    for one, other in itertools.combinations(range(len(result.classes)), 2):
        cosine = direction[one] @ direction[other] / np.linalg.norm(direction[one]) / np.linalg.norm(direction[other])
        assert layer.cosines[one][other] == pytest.approx(cosine, abs=1e-5)


def test_the_share_between_labels_is_unbiased_and_its_interval_holds_the_truth(plant: Plant) -> None:
    directions, strength = paired_directions(3), 1.0
    means = strength * directions
    share = np.square(means - means.mean(axis=0)).mean(axis=0)
    truth = float((share / (1 + share)).mean())  # every standardised feature weighs the same
    labels, held, values = labelled(210), 0, []
    layers = np.stack([states_around(labels, directions, strength, seed) for seed in range(60)])
    run = plant(layers, {"label": labels})
    for layer in measure_geometry(run, "resid.last", run.layers).layers:
        held += layer.between.low <= truth <= layer.between.high
        values.append(layer.between.value)
    assert held >= 54
    assert np.mean(values) == pytest.approx(truth, abs=0.006)


def test_p_values_of_noise_are_spread_evenly_though_situations_have_several_tellings(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(labelled(70), 3).tolist()
    layers = np.repeat(rng.standard_normal((60, 70, WIDTH)), 3, axis=1) + 0.1 * rng.standard_normal((60, 210, WIDTH))
    run = plant(layers.astype(np.float32), {"label": labels, "pair_id": np.repeat(np.arange(70), 3).astype(str).tolist()})
    p_values = np.array([layer.p_value for layer in measure_geometry(run, "resid.last", run.layers).layers])
    assert 0.35 < p_values.mean() < 0.65
    assert (p_values < 0.05).mean() <= 0.15


def slow_cka(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """From the definition, with U-centred matrices (Szekely & Rizzo 2014)."""

    def centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
        z = StandardScaler().fit_transform(x)
        gram, n = z @ z.T, len(z)
        np.fill_diagonal(gram, 0)
        row = gram.sum(axis=1) / (n - 2)
        u = gram - row[:, None] - row[None, :] + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(u, 0)
        return np.asarray(u)

    a, b = centred(one), centred(other)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_similarity_is_debiased_cka_between_layers_and_between_models(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    labels, base = labelled(140), rng.standard_normal((140, WIDTH))
    rotation = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    layers = np.stack([base, base @ rotation + 0.05 * rng.standard_normal(base.shape), rng.standard_normal(base.shape)])
    run = plant(layers.astype(np.float32), {"label": labels})
    other = plant(rng.standard_normal((2, 140, 5)).astype(np.float32), {"label": labels})
    similarity = np.array(measure_geometry(run, "resid.last", run.layers).similarity)
    states = [run.hidden("resid.last", layer).astype(np.float64) for layer in run.layers]
    for one, two in itertools.product(range(3), range(3)):
        assert similarity[one, two] == pytest.approx(slow_cka(states[one], states[two]), abs=1e-4)
    assert similarity[0, 1] > 0.9
    assert abs(similarity[0, 2]) < 0.2
    between = np.array(compare_models(run, other, "resid.last"))
    assert between.shape == (3, 2)
    assert between[1, 1] == pytest.approx(slow_cka(states[1], other.hidden("resid.last", 1).astype(np.float64)), abs=1e-4)
    assert len(base) < MOST_COMPARED


def test_a_large_run_is_sampled_in_whole_situations_and_says_so(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.geometry.MOST_UTTERANCES", 200)
    labels = np.repeat(labelled(210), 2).tolist()
    states = states_around(labels, paired_directions(0), 3.0, 0)
    pairs = np.repeat(np.arange(210), 2).astype(str).tolist()
    result = measure_geometry(plant(states[None], {"label": labels, "pair_id": pairs}), "resid.last", (0,))
    assert result.n_utterances == 2 * result.n_situations == 200


def test_labels_that_are_not_the_papers_have_no_grouping(plant: Plant) -> None:
    states = np.random.default_rng(0).standard_normal((1, 60, 4)).astype(np.float32)
    result = measure_geometry(plant(states, {"label": ["a", "b", "c"] * 20}), "resid.last", (0,))
    assert result.layers[0].grouping is None
