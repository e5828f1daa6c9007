"""Runs of any models beside each other, on request."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyze.geometry import compare_models
from analyze.query import Run
from cluster import pipeline
from tests.analyze.conftest import Plant

LABELS = ("fear", "joy", "anger")


def planted(plant: Plant, n_layers: int, width: int, seed: int = 0, labels: tuple[str, ...] = LABELS) -> Run:
    """The same utterances through a model of some depth and width, whose last layer tells the labels apart."""
    rng, truth = np.random.default_rng(seed), np.arange(150) % 3
    states = rng.standard_normal((n_layers, 150, width)).astype(np.float32)
    states[-1] += 3 * np.eye(3, width, dtype=np.float32)[truth]
    return plant(states, {"label": [labels[label] for label in truth]})


def test_models_of_different_depth_and_width_are_compared_at_the_sites_they_share(plant: Plant, tmp_path: Path) -> None:
    one, other = planted(plant, 3, 6), planted(plant, 5, 4, seed=1)
    path = pipeline.compare_runs([one, other], "linear", tmp_path / "new")
    page = path.read_text()
    assert {each.name for each in path.parent.iterdir()} == {"comparison.md", "comparison.png", "similarity.png"}
    assert one.run_id in page
    assert other.run_id in page
    cka = np.array(compare_models(one, other, "resid.last"))
    assert cka.argmax() == cka.size - 1
    assert f"layer 2 and its layer 4 are most alike (CKA {cka[-1, -1]:.2f})" in page.replace("\\", "")
    with Image.open(path.parent / "similarity.png") as image:
        assert np.asarray(image.convert("L")).min() < 80


def test_what_cannot_be_compared_is_refused_by_name(plant: Plant, tmp_path: Path) -> None:
    run = planted(plant, 2, 3)
    with pytest.raises(ValueError, match="two runs or more, each once"):
        pipeline.compare_runs([run, run], "linear", tmp_path)
    relabelled = planted(plant, 3, 3, labels=("joy", "fear", "sadness"))
    with pytest.raises(ValueError, match="have different values of 'label'"):
        pipeline.compare_runs([run, relabelled], "linear", tmp_path)
    labels = [LABELS[label] for label in np.arange(150) % 3]
    elsewhere = plant(np.zeros((2, 150, 2, 3), np.float32), {"label": labels}, offsets=(0, 1))
    with pytest.raises(ValueError, match="share no site with one vector for each utterance"):
        pipeline.compare_runs([run, elsewhere], "linear", tmp_path)
    assert not list(tmp_path.iterdir())
