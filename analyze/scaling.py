"""How states are seen when they are compared: as they are, from their mean, or each feature in its own standard deviations.

States of language models lie in a narrow cone: their cosines are all near 1, because a few features are large in every one of
them. Taking off the mean removes what all share; dividing by the deviation, too, lets no feature outweigh the others (Timkey
and van Schijndel, "All Bark and No Bite", 2021). The mean is of all rows of the run, whichever of them are then compared: a
pair has one score, whatever condition found it.

Shape suffixes: B rows of a block, D width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyze.query import Run
from analyze.similarity import Scaling, blocks, check_one_state

Floats = NDArray[np.float64]

SCALINGS = ("none", "centred", "standardised")
"""Names of scalings."""

_NOISE = 1e-24  # share of the second moment below which a variance is rounding, which float32 states do not come near


@dataclass(frozen=True, slots=True)
class Moments:
    """Of some states."""

    n: int
    """How many."""
    mean_D: Floats
    """Their mean."""
    variance_D: Floats
    """Their variance: the mean square around the mean."""


def moments(run: Run, site: str, layer: int, where: str | None = None, rows: ArrayLike | None = None) -> Moments:
    """Moments of utterances' states, in float64, in one pass and bounded memory.

    Blocks are joined as Chan, Golub and LeVeque do (1979), because sums of squares around 0 lose the digits of states that are
    a thousand times their spread.

    Raises:
        ValueError: as from Run.hidden; the site keeps several states of an utterance; or there is no such utterance.
    """
    check_one_state(run, site)
    n, mean_D, squares_D = 0, np.zeros(run.manifest.width), np.zeros(run.manifest.width)
    for rows_B, states_BD in blocks(run, site, layer, where, rows):
        n_block, mean_of_block_D = len(rows_B), states_BD.mean(axis=0)
        states_BD -= mean_of_block_D
        apart_D = mean_of_block_D - mean_D
        squares_D += (states_BD**2).sum(axis=0) + apart_D**2 * (n * n_block / (n + n_block))
        mean_D += apart_D * (n_block / (n + n_block))
        n += n_block
    if not n:
        which = "is given" if where is None else f"fulfils {where!r}"
        raise ValueError(f"no utterance of run {run.run_id} {which}, so they have no mean; loosen the condition")
    return Moments(n, mean_D, squares_D / n)


def scaling_of(run: Run, site: str, layer: int, name: str) -> Scaling | None:
    """A scaling by name, made of all rows of a run at a site and layer; it may be kept for the next search there.

    Raises:
        ValueError: there is no such scaling; or as from `moments`.
    """
    if name not in SCALINGS:
        raise ValueError(f"there is no scaling {name!r}; choose from {', '.join(SCALINGS)}")
    if name == "none":
        return None
    found = moments(run, site, layer)
    if name == "centred":
        return Scaling(found.mean_D, np.ones_like(found.mean_D))
    constant_D = found.variance_D <= _NOISE * (found.variance_D + found.mean_D**2)
    return Scaling(found.mean_D, np.sqrt(np.where(constant_D, 1.0, found.variance_D)))
