"""Where in a model something can be read: the layers of onset, peak and plateau, with intervals.

All three speak of accuracy above chance by cross-validation inside the training split, so they are quantities of the model
and the corpus: more data narrows their intervals and does not move them. "The first layer significantly above chance" was
rejected as the onset for that reason; the report tells it separately.

    onset    the first layer that reaches half of the peak's accuracy above chance, as a half-life is where it falls to that
    peak     the layer of the highest accuracy
    plateau  the unbroken layers around the peak that keep 95% of its accuracy above chance

Intervals resample situations, all layers alike, so that layers that rise and fall on the same utterances do so together.

Shape suffixes: N utterances, G situations, L layers, S resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.examples import SEED
from analyze.moments import Floats

ONSET_SHARE = 0.5
"""Of the peak's accuracy above chance, that the onset reaches."""
PLATEAU_SHARE = 0.95
"""Of the peak's accuracy above chance, that the plateau keeps."""

_OUT_OF_FOLD = 1.5  # at chance, standard errors over those of resamples that fit no probes; see scores.out_of_fold_factor
_N_RESAMPLES = 1000
_MOST_WEIGHTS = 4_000_000


@dataclass(frozen=True, slots=True)
class LayerEstimate:
    """A layer with its 95% interval."""

    layer: int
    """The estimate."""
    low: int
    """Lower end."""
    high: int
    """Upper end."""


@dataclass(frozen=True, slots=True)
class Where:
    """The layers at which something can be read."""

    onset: LayerEstimate
    """See the top of this file, as for the others."""
    peak: LayerEstimate
    """Its layer is the one that other results call the best."""
    plateau_start: LayerEstimate
    """First layer of the plateau."""
    plateau_stop: LayerEstimate
    """Last layer of the plateau."""


def locate(
    layers: Sequence[int],
    right_NL: NDArray[np.bool_],
    groups_N: NDArray[np.int64],
    chance: float,
    weight_N: Floats | None = None,
) -> Where | None:
    """Estimate where something is read.

    Args:
        layers: ascending, L of them.
        right_NL: whether the probe of each layer was right about each utterance it was not fitted on.
        groups_N: the situation of each utterance.
        chance: accuracy of whoever knows nothing, weighted alike.
        weight_N: how much each utterance counts; 1 each without it.

    Returns:
        None where the peak is not above chance, as the best of as many layers by luck might not be: there is nothing to locate.
    """
    weighted_N = np.ones(len(right_NL)) if weight_N is None else weight_N
    accuracy_SL, accuracy_L = _resampled(right_NL, groups_N, weighted_N), np.average(right_NL, axis=0, weights=weighted_N)
    luck = _OUT_OF_FOLD * float(np.percentile((accuracy_SL - accuracy_L).max(axis=1), 97.5))
    if accuracy_L.max() - luck <= chance:
        return None
    estimate = _positions(accuracy_L[None] - chance)
    resampled = _positions(accuracy_SL - chance)
    return Where(*(_interval(layers, int(one[0]), many) for one, many in zip(estimate, resampled, strict=True)))


def _resampled(right_NL: NDArray[np.bool_], groups_N: NDArray[np.int64], weight_N: Floats) -> Floats:
    """Accuracy of each layer over resamples of situations, (S, L)."""
    situation_N = np.unique(groups_N, return_inverse=True)[1]
    size_G = np.bincount(situation_N, weight_N)
    right_GL = np.stack([np.bincount(situation_N, right_N * weight_N) for right_N in right_NL.T], axis=1)
    n_situations = len(size_G)
    generator = np.random.default_rng(SEED)
    accuracy_SL = np.empty((_N_RESAMPLES, right_NL.shape[1]))
    step = max(1, _MOST_WEIGHTS // n_situations)
    for begin in range(0, _N_RESAMPLES, step):
        count = min(step, _N_RESAMPLES - begin)
        drawn = generator.integers(0, n_situations, (count, n_situations)) + n_situations * np.arange(count)[:, None]
        weight_SG = np.bincount(drawn.ravel(), minlength=count * n_situations).reshape(count, n_situations).astype(np.float64)
        accuracy_SL[begin : begin + count] = (weight_SG @ right_GL) / (weight_SG @ size_G)[:, None]
    return accuracy_SL


def _positions(rise_SL: Floats) -> tuple[NDArray[np.int64], ...]:
    """Indexes of onset, peak, and the plateau's first and last layer, for each row."""
    peak_S = rise_SL.argmax(axis=1)
    top_S1 = rise_SL.max(axis=1, keepdims=True)
    onset_S = (rise_SL >= ONSET_SHARE * top_S1).argmax(axis=1)
    below_SL = rise_SL < PLATEAU_SHARE * top_S1
    index_L = np.arange(rise_SL.shape[1])
    before_SL = below_SL & (index_L < peak_S[:, None])
    after_SL = below_SL & (index_L > peak_S[:, None])
    start_S = np.where(before_SL, index_L + 1, 0).max(axis=1)
    stop_S = np.where(after_SL, index_L - 1, rise_SL.shape[1] - 1).min(axis=1)
    return onset_S, peak_S, start_S, stop_S


def _interval(layers: Sequence[int], estimate: int, resampled_S: NDArray[np.int64]) -> LayerEstimate:
    low = int(np.percentile(resampled_S, 2.5, method="lower"))
    high = int(np.percentile(resampled_S, 97.5, method="higher"))
    return LayerEstimate(layers[estimate], layers[min(low, estimate)], layers[max(high, estimate)])
