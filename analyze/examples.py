"""Which utterances an analysis may use, and which of them a probe is tested on.

An utterance counts when its label is there; lists of labels and numbers are in analyze.annotations. Utterances of one pair
are a *situation* and never stand on both sides of a split: a probe that has seen a situation with the word would be flattered
on the same situation without it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from analyze.columns import LABEL, names_of
from analyze.query import Run

SEED = 0
"""Seed of every random choice in the analyses; the results say so."""

FEWEST_SITUATIONS = 5
"""Fewest situations of each label that an analysis accepts."""
FEWEST_IN_TRAIN = 3
"""Fewest of them in the training split."""
TEST_PART = 5
"""One in so many situations is drawn as test."""

_SIDES = ("train", "test")

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indexes to fit on and to hold out."""


@dataclass(frozen=True, slots=True)
class Usable:
    """The utterances of a run that an analysis may use: their label is there, and they are on a side of the split."""

    rows: NDArray[np.int64]
    """Their corpus rows, ascending, (n,)."""
    groups: NDArray[np.int64]
    """Number of each one's situation, (n,)."""
    own_split: NDArray[np.str_] | None
    """The corpus's own split of each, `train` or `test`, (n,); None where it has none."""
    n_unlabelled: int
    """Utterances left out because they carry no label; a single one, where that is what is read."""
    n_other_split: int
    """Utterances left out because their `split` is neither train nor test."""


@dataclass(frozen=True, slots=True)
class Examples(Usable):
    """Utterances of one label each."""

    labels: NDArray[np.str_]
    """Their labels, (n,)."""

    def take(self, chosen: NDArray[np.bool_]) -> "Examples":
        """Some of them."""
        return replace(
            self,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            groups=self.groups[chosen],
            own_split=None if self.own_split is None else self.own_split[chosen],
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted(set(self.labels.tolist())))

    @property
    def truth(self) -> NDArray[np.int64]:
        """Each example's label as its index in `classes`, (n,)."""
        return np.searchsorted(np.array(self.classes), self.labels)


@dataclass(frozen=True, slots=True)
class Split:
    """A train and a test side."""

    test: NDArray[np.bool_]
    """Whether each example is on the test side, (n,)."""
    made: str
    """How it was made, for people."""


def labelled_examples(run: Run, column: str = LABEL) -> Examples:
    """The run's labelled utterances; those whose `split` is neither train nor test are left out.

    Raises:
        ValueError: there are no labels, only one, or one with too few situations; or the column holds lists or numbers.
    """
    labels = names_of(run, column)
    usable = usable_utterances(run, labels != "", column)
    examples = Examples(
        rows=usable.rows,
        groups=usable.groups,
        own_split=usable.own_split,
        n_unlabelled=usable.n_unlabelled,
        n_other_split=usable.n_other_split,
        labels=labels[usable.rows],
    )
    _check_situations(examples)
    return examples


def usable_utterances(run: Run, labelled: NDArray[np.bool_], column: str) -> Usable:
    """Those that are labelled and, where the corpus has a split, in train or test.

    Args:
        labelled: whether the column of labels says something of each utterance of the run.

    Raises:
        ValueError: there are none.
    """
    table = run.utterances()
    if not labelled.any():
        raise ValueError(f"no utterance of run {run.run_id} carries a label in column {column!r}, which this analysis needs")
    own_split = np.array([str(side) for side in table["split"].to_pylist()]) if "split" in table.column_names else None
    kept = labelled if own_split is None else labelled & np.isin(own_split, _SIDES)
    if not kept.any():
        raise ValueError(f"no labelled utterance of run {run.run_id} has the split train or test")
    return Usable(
        rows=np.flatnonzero(kept),
        groups=_groups(table)[kept],
        own_split=None if own_split is None else own_split[kept],
        n_unlabelled=int((~labelled).sum()),
        n_other_split=int((labelled & ~kept).sum()),
    )


def split_examples(examples: Examples) -> Split:
    """The corpus's own split where it has one; otherwise a fifth of each label is drawn as test.

    Raises:
        ValueError: a label is missing on one side, or a pair stands on both.
    """
    split = own_split(examples)
    if split is None:
        test = np.zeros(len(examples.labels), np.bool_)
        test[folds(examples.labels, examples.groups, TEST_PART)[0][1]] = True
        split = Split(test, f"drawn, a fifth of each label as test, seed {SEED}")
    _check_sides(examples, split)
    return split


def own_split(usable: Usable) -> Split | None:
    """The corpus's own split; None where it has none.

    Raises:
        ValueError: a pair stands on both sides.
    """
    if usable.own_split is None:
        return None
    split = Split(usable.own_split == "test", "the corpus's own")
    both = set(usable.groups[split.test].tolist()) & set(usable.groups[~split.test].tolist())
    if both:
        rows = usable.rows[usable.groups == min(both)].tolist()
        raise ValueError(f"{len(both):,} pairs stand in both train and test (first: rows {rows}); keep a pair on one side")
    return split


def folds(labels: NDArray[Any], groups: NDArray[np.int64], n_folds: int) -> list[Fold]:
    """Stratified folds that keep groups together; fewer where a label has fewer groups than that.

    Raises:
        ValueError: a label has a single group, so that it cannot be both fitted and held out.
    """
    n_groups = {name: len(np.unique(groups[labels == name])) for name in np.unique(labels).tolist()}
    rarest = min(n_groups, key=lambda name: n_groups[name])
    if n_groups[rarest] < 2:
        raise ValueError(f"label {rarest!r} has a single situation here; it cannot be both fitted and held out")
    number = min(n_folds, n_groups[rarest])
    if len(np.unique(groups)) == len(groups):  # the same aim without a loop over each of perhaps 400,000 groups
        return list(StratifiedKFold(number, shuffle=True, random_state=SEED).split(np.zeros(len(labels)), labels))
    return list(StratifiedGroupKFold(number, shuffle=True, random_state=SEED).split(np.zeros(len(labels)), labels, groups))


def _groups(table: pa.Table) -> NDArray[np.int64]:
    """Utterances of one `pair_id` share a number; every other has its own."""
    if "pair_id" not in table.column_names:
        return np.arange(table.num_rows)
    numbers: dict[object, int] = {}
    pairs = table["pair_id"].to_pylist()
    return np.array([numbers.setdefault(row if pair is None else str(pair), len(numbers)) for row, pair in enumerate(pairs)])


def _check_situations(examples: Examples) -> None:
    if len(examples.classes) < 2:
        raise ValueError(f"every labelled utterance is {examples.classes[0]!r}; a probe needs two labels or more")
    for name in examples.classes:
        mine = examples.groups[examples.labels == name]
        n_situations = len(np.unique(mine))
        if n_situations < FEWEST_SITUATIONS:
            raise ValueError(
                f"label {name!r} has too few examples ({len(mine)}, of different situations {n_situations}); "
                f"an analysis needs {FEWEST_SITUATIONS} or more of each label, so add some or remove that label"
            )


def _check_sides(examples: Examples, split: Split) -> None:
    for name in examples.classes:
        mine = examples.labels == name
        n_test = int(split.test[mine].sum())
        n_train = len(np.unique(examples.groups[mine & ~split.test]))
        if n_test < 1 or n_train < FEWEST_IN_TRAIN:
            raise ValueError(
                f"label {name!r} has {n_train} situations in split train and {n_test} examples in test; "
                f"a probe needs at least {FEWEST_IN_TRAIN} and 1"
            )
