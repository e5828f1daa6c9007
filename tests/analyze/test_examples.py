"""Which utterances a probe is fitted on and tested on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.examples import FEWEST_SITUATIONS, Examples, Split, folds, labelled_examples, split_examples
from tests.analyze.conftest import Columns, Plant


def examples_of(plant: Plant, columns: Columns) -> Examples:
    n_rows = len(next(iter(columns.values())))
    return labelled_examples(plant(np.zeros((1, n_rows, 1), np.float32), columns))


def split_of(plant: Plant, columns: Columns) -> tuple[Examples, Split]:
    examples = examples_of(plant, columns)
    return examples, split_examples(examples)


def straddling(examples: Examples, split: Split) -> set[int]:
    """Groups with utterances in train and in test."""
    return set(examples.groups[split.test].tolist()) & set(examples.groups[~split.test].tolist())


_situations = st.lists(st.tuples(st.sampled_from(["joy", "fear", "anger"]), st.booleans()), min_size=60, max_size=150)


@settings(max_examples=25, deadline=None)
@given(situations=_situations, seed=st.integers(0, 99))
def test_a_drawn_test_split_is_a_fifth_of_each_label_and_keeps_pairs_whole(
    plant: Plant, situations: list[tuple[str, bool]], seed: int
) -> None:
    utterances = [(label, number) for number, (label, paired) in enumerate(situations) for _ in range(1 + paired)]
    utterances = [utterances[index] for index in np.random.default_rng(seed).permutation(len(utterances))]
    labels = [label for label, _ in utterances] + ["joy", "fear"] * 10
    pairs = [number for _, number in utterances] + [None] * 20
    if [label for label, _ in situations].count("anger") < FEWEST_SITUATIONS:
        labels = ["joy" if label == "anger" else label for label in labels]
    counts = Counter(labels)
    examples, split = split_of(plant, {"label": labels, "pair_id": pairs})
    assert straddling(examples, split) == set()
    by_pair: dict[int, set[int]] = {}
    for pair, group in zip(pairs, examples.groups.tolist(), strict=True):
        if pair is not None:
            by_pair.setdefault(pair, set()).add(group)
    assert all(len(groups) == 1 for groups in by_pair.values())
    assert len(set(examples.groups.tolist())) == len(by_pair) + 20
    for label, count in counts.items():
        assert abs(int(split.test[examples.labels == label].sum()) - count / 5) <= 3
    assert "fifth" in split.made


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_corpus_own_split_is_used_as_it_stands(plant: Plant, data: st.DataObject) -> None:
    kinds = st.tuples(st.sampled_from(["joy", "fear", None]), st.sampled_from(["train", "test", "validation", "", None]))
    enough: list[tuple[str | None, str | None]] = [(label, split) for label in ("joy", "fear") for split in ("train", "test")]
    rows = [*data.draw(st.permutations(enough * 4)), *data.draw(st.lists(kinds, max_size=30))]
    examples, split = split_of(plant, {"label": [label for label, _ in rows], "split": [split for _, split in rows]})
    expected = [row for row, (label, split) in enumerate(rows) if label and split in ("train", "test")]
    assert examples.rows.tolist() == expected
    assert examples.labels.tolist() == [rows[row][0] for row in expected]
    assert split.test.tolist() == [rows[row][1] == "test" for row in expected]
    assert examples.n_unlabelled == sum(label is None for label, _ in rows)
    assert examples.n_other_split + examples.n_unlabelled + len(expected) == len(rows)
    assert examples.classes == ("fear", "joy")
    assert [examples.classes[index] for index in examples.truth] == examples.labels.tolist()
    assert split.made == "the corpus's own"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["train", "test", "validation"]), min_size=20, max_size=20))
def test_pairs_on_both_sides_of_the_corpus_own_split_are_refused_and_their_rows_named(plant: Plant, second: list[str]) -> None:
    """Row i and row i + 20 are a pair; a partner outside train and test takes no side."""
    first = ["train", "train", "test", "test"] * 5
    examples = examples_of(plant, {"label": ["joy", "fear"] * 20, "split": first + second, "pair_id": [*range(20)] * 2})
    both = [row for row in range(20) if {first[row], second[row]} == {"train", "test"}]
    if both:
        message = rf"^{len(both)} pairs stand in both train and test \(first: rows \[{both[0]}, {both[0] + 20}\]\)"
        with pytest.raises(ValueError, match=message):
            split_examples(examples)
    else:
        assert straddling(examples, split_examples(examples)) == set()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(0, 6))
def test_a_label_is_accepted_from_five_situations_on_and_stands_on_both_sides(
    plant: Plant, n_situations: int, n_more: int
) -> None:
    situations = [*range(n_situations), *[0] * n_more]
    columns: Columns = {"label": ["joy"] * 40 + ["fear"] * len(situations), "pair_id": [None] * 40 + situations}
    if n_situations < 5:
        with pytest.raises(ValueError, match=rf"'fear' .* \({len(situations)}, of different situations {n_situations}\)"):
            examples_of(plant, columns)
    else:
        examples, split = split_of(plant, columns)
        assert set(examples.labels[split.test]) == set(examples.labels[~split.test]) == {"joy", "fear"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"] * 9}, "no column 'label'"),
        ({"label": [None] * 9}, "no utterance .* carries a label"),
        ({"label": ["joy"] * 9}, "every labelled utterance is 'joy'"),
        ({"label": ["joy"] * 9 + ["fear"]}, r"label 'fear' has too few examples \(1, of different situations 1\)"),
        ({"label": ["joy"] * 9 + ["fear"] * 4}, r"label 'fear' has too few examples \(4, of different situations 4\)"),
        (
            {"label": ["joy", "fear"] * 9, "split": ["train"] * 18},
            "'fear' has 9 situations in split train and 0 examples in test",
        ),
        ({"label": ["joy", "fear"] * 9, "split": ["dev"] * 18}, "no labelled utterance .* has the split train or test"),
        ({"label": ["joy", "fear"] * 9, "split": [0, 1] * 9}, "no labelled utterance .* has the split train or test"),
        ({"label": ["joy", "fear"] * 10, "pair_id": [row // 10 for row in range(20)]}, r"\(10, of different situations 2\)"),
        (
            {"label": ["joy", "fear"] * 10, "split": ["test"] * 18 + ["train"] * 2},
            "'fear' has 1 situations in split train and 9 examples in test",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_that_cannot_be_probed_are_refused_in_one_sentence_that_says_why(
    plant: Plant, columns: Columns, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        split_of(plant, columns)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60), st.integers(2, 5))
def test_folds_hold_out_every_example_once_and_no_group_twice(pairs: list[tuple[int, int]], n_folds: int) -> None:
    groups = np.array([*range(31), *(group for _, group in pairs)], np.int64)
    labels = np.array([*(row % 3 for row in range(31)), *(label for label, _ in pairs)])
    splits = folds(labels, groups, n_folds)
    assert sorted(np.concatenate([held_out for _, held_out in splits]).tolist()) == list(range(len(labels)))
    for fitted, held_out in splits:
        assert not set(groups[fitted].tolist()) & set(groups[held_out].tolist())
        assert len(fitted) + len(held_out) == len(labels)


def test_the_same_corpus_is_split_the_same_way_twice(plant: Plant) -> None:
    columns = {"label": ["joy", "fear", "anger"] * 20}
    np.testing.assert_array_equal(split_of(plant, columns)[1].test, split_of(plant, columns)[1].test)
