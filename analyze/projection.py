"""Two-dimensional pictures of one layer: its hidden states, and what a probe makes of them.

The second is the figure of the paper (arXiv 2510.04064): PCA of the class probabilities. It is drawn from test
utterances only, because the probe pulls its own training examples apart whatever they are.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from analyze.examples import SEED, labelled_examples, split_examples
from analyze.fitting import Probe, read_probabilities
from analyze.query import Run
from analyze.states import states_in

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Projection:
    """Test utterances in the plane."""

    site: str
    """Where the states were read."""
    layer: int
    """Which layer."""
    classes: tuple[str, ...]
    """The labels."""
    truth: tuple[int, ...]
    """Each utterance's label, as an index into the classes."""
    states: Points
    """PCA of the standardised hidden states."""
    states_variance: tuple[float, float]
    """Share of the variance along each axis of `states`."""
    probabilities: Points
    """PCA of the probe's class probabilities."""
    probabilities_variance: tuple[float, float]
    """Share of the variance along each axis of `probabilities`."""


def project(run: Run, site: str, layer: int, probe: Probe) -> Projection:
    """Project the test utterances of a run at one layer.

    Args:
        probe: reads that layer.

    Raises:
        ValueError: the run has no usable labels, or lacks the site or the layer.
    """
    examples = labelled_examples(run)
    test = split_examples(examples).test
    truth_N, train = examples.truth, ~test
    hidden_ND = run.hidden_rows(site, layer, examples.rows)
    states, states_variance = _plane(StandardScaler().fit(hidden_ND[train]).transform(hidden_ND[test]))
    test_rows = np.flatnonzero(test)
    (said_NK,) = read_probabilities(states_in(hidden_ND), [(probe, test_rows)])
    probabilities, probabilities_variance = _plane(said_NK)
    return Projection(
        site=site,
        layer=layer,
        classes=examples.classes,
        truth=tuple(truth_N[test].tolist()),
        states=states,
        states_variance=states_variance,
        probabilities=probabilities,
        probabilities_variance=probabilities_variance,
    )


def _plane(values_ND: np.ndarray) -> tuple[Points, tuple[float, float]]:
    if np.ptp(values_ND, axis=0).max() == 0:  # all alike: there is no axis to find
        return ((0.0, 0.0),) * len(values_ND), (0.0, 0.0)
    pca = PCA(n_components=2, random_state=SEED)
    points = pca.fit_transform(values_ND)
    first, second = (float(share) for share in pca.explained_variance_ratio_)
    return tuple((float(x), float(y)) for x, y in points), (first, second)
