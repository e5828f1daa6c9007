"""What rare labels weigh when a probe is fitted, and on which test utterances it is scored.

Duplicating an utterance is giving it a weight of two, so that is how it is done here: a duplicate that stood on the other
side of a fold would be a leak.

Shape suffixes: N utterances.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.examples import SEED, Examples, Split

BALANCES = ("none", "weights", "paper")
"""`none`: as they are; `weights`: every class weighs the same in the fit; `paper`: as arXiv 2510.04064 does it."""
NEUTRAL = "neutral"
"""The label of utterances without emotion."""


@dataclass(frozen=True, slots=True)
class Balance:
    """How much utterances count."""

    weight_N: NDArray[np.float64] | None
    """In a fit; None for 1 each. 0 for those that are not used."""
    scored_N: NDArray[np.bool_]
    """Whether a test utterance is scored."""


def balance(examples: Examples, split: Split, how: str) -> Balance:
    """Weigh utterances.

    In the paper's way, training utterances of rare emotions are duplicated up to the largest emotion, neutral ones are sampled
    down to it, and every class of the test split is sampled down to its smallest.

    Args:
        how: one of BALANCES.
    """
    if how == "none":
        return Balance(None, split.test.copy())
    weight_N = np.zeros(len(examples.rows))
    scored_N = split.test.copy()
    of_class = [examples.labels == name for name in examples.classes]
    sizes = [int((mine & ~split.test).sum()) for mine in of_class]
    generator = np.random.default_rng(SEED)
    if how == "weights":
        for mine, size in zip(of_class, sizes, strict=True):
            weight_N[mine] = sum(sizes) / (len(sizes) * size)
        return Balance(weight_N, scored_N)
    target = max(size for name, size in zip(examples.classes, sizes, strict=True) if name != NEUTRAL)
    fewest = min(int((mine & split.test).sum()) for mine in of_class)
    for mine in of_class:
        train = generator.permutation(np.flatnonzero(mine & ~split.test))
        np.add.at(weight_N, np.resize(train, target), 1)
        scored_N[generator.permutation(np.flatnonzero(mine & split.test))[fewest:]] = False
    return Balance(weight_N, scored_N)
