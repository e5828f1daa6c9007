"""Which utterances a probe may use, and which of them it is tested on.

An utterance counts when it carries one label. Utterances of one pair never stand on both sides of a split: a probe
that has seen a situation with the word would be flattered on the same situation without it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from analyze.query import Run

SEED = 0
"""Seed of every random choice in the analyses; the results say so."""

_FEWEST_OF_A_LABEL = 5


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled utterances of a run."""

    rows: NDArray[np.int64]
    """Their corpus rows, ascending, (n,)."""
    labels: NDArray[np.str_]
    """Their labels, (n,)."""
    groups: NDArray[np.int64]
    """Utterances that must stay on one side of a split share a number, (n,)."""
    test: NDArray[np.bool_]
    """Whether each belongs to the test split, (n,)."""
    split: str
    """How the split was made, for people."""
    n_unlabelled: int
    """Utterances left out because they carry no single label."""
    n_other_split: int
    """Utterances left out because their `split` is neither train nor test."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted(set(self.labels.tolist())))


def labelled_examples(run: Run) -> Examples:
    """The run's labelled utterances with a train and a test split.

    The corpus's own `split` column is used where it has one; otherwise a fifth of each label is drawn as test.

    Raises:
        ValueError: there are no labels, only one, or one with too few examples.
    """
    table = run.utterances()
    if "label" not in table.column_names:
        raise ValueError(f"the corpus of run {run.run_id} has no column 'label', which this analysis needs")
    labels = np.array([label or "" for label in table["label"].to_pylist()])
    labelled = labels != ""
    kept = labelled.copy()
    if "split" in table.column_names:
        kept &= np.isin(np.array([str(split) for split in table["split"].to_pylist()]), ("train", "test"))
    if not kept.any():
        raise ValueError(f"no utterance of run {run.run_id} carries a label, which this analysis needs")
    _check_counts(labels[kept])
    groups = _groups(table)[kept]
    if "split" in table.column_names:
        test = np.array(table["split"].to_pylist())[kept] == "test"
        split = "the corpus's own"
        _check_sides(labels[kept], test)
    else:
        test = _draw_test(labels[kept], groups)
        split = f"drawn, a fifth of each label as test, seed {SEED}"
    return Examples(
        rows=np.flatnonzero(kept),
        labels=labels[kept],
        groups=groups,
        test=test,
        split=split,
        n_unlabelled=int((~labelled).sum()),
        n_other_split=int((labelled & ~kept).sum()),
    )


Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indexes to fit on and to hold out."""


def folds(labels: NDArray[Any], groups: NDArray[np.int64], n_folds: int) -> list[Fold]:
    """Stratified folds that keep groups together."""
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=SEED)
    return list(splitter.split(np.zeros(len(labels)), labels, groups))


def _groups(table: pa.Table) -> NDArray[np.int64]:
    """Utterances of one `pair_id` share a number; every other has its own."""
    if "pair_id" not in table.column_names:
        return np.arange(table.num_rows)
    numbers: dict[object, int] = {}
    pairs = table["pair_id"].to_pylist()
    return np.array([numbers.setdefault(row if pair is None else str(pair), len(numbers)) for row, pair in enumerate(pairs)])


def _check_counts(labels: NDArray[np.str_]) -> None:
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"every labelled utterance is {names[0]!r}; a probe needs two labels or more")
    rarest = int(np.argmin(counts))
    if counts[rarest] < _FEWEST_OF_A_LABEL:
        raise ValueError(
            f"label {names[rarest]!r} has {counts[rarest]} example{'s' if counts[rarest] > 1 else ''}; "
            f"a probe needs {_FEWEST_OF_A_LABEL} or more of each label, so add some or remove that label"
        )


def _check_sides(labels: NDArray[np.str_], test: NDArray[np.bool_]) -> None:
    for name in np.unique(labels):
        n_test = int(test[labels == name].sum())
        n_train = int((labels == name).sum()) - n_test
        if n_test < 1 or n_train < 2:
            raise ValueError(
                f"label {name!r} has {n_train} examples in split train and {n_test} in test; a probe needs at least 2 and 1"
            )


def _draw_test(labels: NDArray[np.str_], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    test = np.zeros(len(labels), np.bool_)
    test[folds(labels, groups, n_folds=5)[0][1]] = True
    return test
