"""Examples whose label is a list or a number: which utterances count, and how they are split into train, test and folds.

Lists are dealt so that every label is spread over the parts, the rarest first (iterative stratification, Sechidis et al. 2011,
with all situations of a label dealt at once); numbers so that every part has as many of each size. A stratum for every
combination of labels was rejected: most combinations are rarer than there are parts.

Shape suffixes: N utterances, G situations, K labels, F parts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyze.columns import numbers_of, sets_of
from analyze.examples import (
    FEWEST_IN_TRAIN,
    FEWEST_SITUATIONS,
    SEED,
    TEST_PART,
    Split,
    Usable,
    own_split,
    usable_utterances,
)
from analyze.query import Run


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A label that is not asked about, because too few utterances carry it, or too few do not."""

    label: str
    """The label."""
    n_train: int
    """Utterances of the training split that carry it."""
    n_test: int
    """Utterances of the test split that carry it."""


@dataclass(frozen=True, slots=True)
class LabelSets:
    """Utterances of any number of labels each."""

    usable: Usable
    """Which utterances."""
    split: Split
    """Their sides."""
    labels: tuple[str, ...]
    """The labels that are asked about, sorted."""
    has_NK: NDArray[np.bool_]
    """Whether each utterance carries each of them."""
    left_out: tuple[LeftOut, ...]
    """The labels that are not, sorted."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Utterances of one number each."""

    usable: Usable
    """Which utterances."""
    split: Split
    """Their sides."""
    value_N: NDArray[np.float64]
    """The numbers, finite; they vary on both sides."""


def label_sets(run: Run, column: str) -> LabelSets:
    """The utterances with a list of labels, be it empty.

    Every label is a question of its own, so one that is too rare to be asked about is left out, and others are none the worse:
    of a corpus with dozens of labels some are always rare.

    Raises:
        ValueError: there are no lists, no label can be asked about, or a pair stands on both sides of the corpus's own split.
    """
    sets = sets_of(run, column)
    usable = usable_utterances(run, np.array([mine is not None for mine in sets]), column)
    mine = [sets[row] or frozenset() for row in usable.rows.tolist()]
    rows_of: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(mine):
        for name in names:
            rows_of[name].append(index)
    if not rows_of:
        raise ValueError(f"every list in column {column!r} of run {run.run_id} is empty; a probe needs a label")
    names = sorted(rows_of)
    common = [name for name in names if len(np.unique(usable.groups[rows_of[name]])) >= FEWEST_SITUATIONS]
    has_NK = np.zeros((len(mine), len(common)), np.bool_)
    for label, name in enumerate(common):
        has_NK[rows_of[name], label] = True
    split = own_split(usable) or _drawn(deal_sets(has_NK, usable.groups, TEST_PART), "a fifth of each label")
    enough_K = np.array([_enough(has_N, usable.groups, split.test) for has_N in has_NK.T], np.bool_)
    labels = tuple(name for name, enough in zip(common, enough_K.tolist(), strict=True) if enough)
    left_out = tuple(
        LeftOut(name, int((~split.test[rows_of[name]]).sum()), int(split.test[rows_of[name]].sum()))
        for name in sorted(set(names) - set(labels))
    )
    if not labels:
        raise ValueError(
            f"no label in column {column!r} of run {run.run_id} has enough examples ({_listed(left_out)}); a probe needs "
            f"{FEWEST_SITUATIONS} situations with a label and {FEWEST_SITUATIONS} without, {FEWEST_IN_TRAIN} of each in split "
            "train and 1 in test"
        )
    return LabelSets(usable, split, labels, has_NK[:, enough_K], left_out)


def numbers(run: Run, column: str) -> Numbers:
    """The utterances with a number.

    Raises:
        ValueError: there are no numbers or too few, one is infinite, they are all the same on a side, or a pair stands on both
            sides of the corpus's own split.
    """
    value_N = numbers_of(run, column)
    usable = usable_utterances(run, ~np.isnan(value_N), column)
    value_N = value_N[usable.rows]
    split = own_split(usable) or _drawn(deal_numbers(value_N, usable.groups, TEST_PART), "a fifth of small and large numbers")
    for side, mine_N in (("train", ~split.test), ("test", split.test)):
        n_situations = len(np.unique(usable.groups[mine_N]))
        if n_situations < FEWEST_SITUATIONS:
            raise ValueError(
                f"column {column!r} of run {run.run_id} has numbers of {n_situations} situations in split {side}; "
                f"a probe needs {FEWEST_SITUATIONS} or more in train and in test"
            )
        if np.ptp(value_N[mine_N]) == 0:
            raise ValueError(
                f"column {column!r} of run {run.run_id} is {value_N[mine_N][0]:g} for every utterance of split {side}; "
                "a probe needs numbers that vary"
            )
    return Numbers(usable, split, value_N)


def deal_sets(has_NK: NDArray[np.bool_], groups_N: NDArray[np.int64], n_parts: int) -> list[NDArray[np.int64]]:
    """Parts of whole situations over which every label is spread.

    Returns:
        The examples of each part, ascending; as many parts as there are situations, where those are fewer.
    """
    names, situation_N = np.unique(groups_N, return_inverse=True)
    n_parts = min(n_parts, len(names))
    has_GK = np.zeros((len(names), has_NK.shape[1]), np.bool_)
    np.logical_or.at(has_GK, situation_N, has_NK)
    order_G = np.random.default_rng(SEED).permutation(len(names))
    order_G = order_G[np.lexsort(has_GK[order_G].T)] if has_GK.shape[1] else order_G  # like beside like: they are dealt apart
    part_G = np.full(len(names), -1)
    need_FK = np.tile(has_GK.sum(axis=0) / n_parts, (n_parts, 1))
    need_F = np.full(n_parts, len(names) / n_parts)
    while (open_G := part_G < 0).any():
        left_K = has_GK[open_G].sum(axis=0)
        rarest = int(np.where(left_K > 0, left_K, len(names) + 1).argmin()) if left_K.any() else None
        mine_G = order_G[open_G[order_G] & (True if rarest is None else has_GK[order_G, rarest])]
        part_G[mine_G] = dealt = _dealt(need_F if rarest is None else need_FK[:, rarest], need_F, len(mine_G))
        np.subtract.at(need_FK, dealt, has_GK[mine_G])
        need_F = need_F - np.bincount(dealt, minlength=n_parts)
    return _examples_of(part_G[situation_N], n_parts)


def deal_numbers(value_N: NDArray[np.float64], groups_N: NDArray[np.int64], n_parts: int) -> list[NDArray[np.int64]]:
    """Parts of whole situations over which small and large numbers are spread.

    Returns:
        As from deal_sets.
    """
    names, situation_N = np.unique(groups_N, return_inverse=True)
    n_parts = min(n_parts, len(names))
    mean_G = np.bincount(situation_N, value_N) / np.bincount(situation_N)
    generator = np.random.default_rng(SEED)
    order_G = generator.permutation(len(names))
    order_G = order_G[np.argsort(mean_G[order_G], kind="stable")]
    rounds = generator.permuted(np.tile(np.arange(n_parts), (-(-len(names) // n_parts), 1)), axis=1)
    part_G = np.empty(len(names), np.int64)
    part_G[order_G] = rounds.ravel()[: len(names)]
    return _examples_of(part_G[situation_N], n_parts)


def _dealt(need_F: NDArray[np.float64], also_F: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The part of each of `n` situations: one after another goes where most are needed yet."""
    need_FN = (need_F + 1e-6 * also_F)[:, None] - np.arange(n)
    return np.argsort(-need_FN, axis=None, kind="stable")[:n] // n


def _examples_of(part_N: NDArray[np.int64], n_parts: int) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(part_N == part) for part in range(n_parts)]


def _drawn(parts: Sequence[NDArray[np.int64]], what: str) -> Split:
    test_N = np.zeros(sum(map(len, parts)), np.bool_)
    test_N[parts[0]] = True
    return Split(test_N, f"drawn, {what} as test, seed {SEED}")


def _enough(has_N: NDArray[np.bool_], groups_N: NDArray[np.int64], test_N: NDArray[np.bool_]) -> bool:
    """Whether enough utterances carry a label, and enough do not."""
    return all(
        len(np.unique(groups_N[mine_N])) >= FEWEST_SITUATIONS
        and len(np.unique(groups_N[mine_N & ~test_N])) >= FEWEST_IN_TRAIN
        and bool((mine_N & test_N).any())
        for mine_N in (has_N, ~has_N)
    )


def _listed(left_out: Sequence[LeftOut], most: int = 5) -> str:
    """Labels with how often they occur, for people."""
    named = [f"{entry.label!r}: {entry.n_train} in train and {entry.n_test} in test" for entry in left_out[:most]]
    return "; ".join(named) + (f"; and {len(left_out) - most} more" if len(left_out) > most else "")
