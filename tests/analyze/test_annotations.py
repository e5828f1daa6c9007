"""How utterances of several labels, and of numbers, are dealt out: whole situations, each label and size in every part."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyze.annotations import deal_numbers, deal_sets, label_sets, numbers
from analyze.columns import CLASSES, NUMBERS, SETS, form_of, names_of, sets_of
from analyze.examples import labelled_examples
from analyze.probes import ProbeSpec, probe_layers
from tests.analyze.conftest import Plant

SEEDS = st.integers(0, 2**32 - 1)


def whole(parts: list[NDArray[np.int64]], groups: NDArray[np.int64]) -> bool:
    """Whether every example is in one part and every group too."""
    everyone = sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    return everyone and sum(len(set(groups[part].tolist())) for part in parts) == len(set(groups.tolist()))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 200), st.integers(0, 8), st.integers(2, 5), st.booleans())
def test_labels_are_spread_over_parts_of_whole_situations(
    seed: int, n_rows: int, n_labels: int, n_parts: int, paired: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(n_rows) // (2 if paired else 1))
    has = rng.random((n_rows, n_labels)) < rng.random(n_labels) ** 3
    parts = deal_sets(has, groups, n_parts)
    assert len(parts) == min(n_parts, len(set(groups.tolist())))
    assert whole(parts, groups)
    for label in range(n_labels):
        counts = [len(set(groups[part][has[part, label]].tolist())) for part in parts]
        assert max(counts) - min(counts) <= 1 + n_labels  # the rarer labels are dealt before and bind some situations


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_labels_that_exclude_each_other_are_in_every_part_as_often_but_for_one(seed: int, sizes: list[int]) -> None:
    truth = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    has = truth[:, None] == np.arange(len(sizes))
    parts = deal_sets(has, np.arange(len(truth)), 5)
    for label in range(len(sizes)):
        counts = [int(has[part, label].sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 200), st.integers(2, 5), st.booleans())
def test_every_part_has_as_many_small_and_large_numbers(seed: int, n_rows: int, n_parts: int, paired: bool) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(n_rows) // (2 if paired else 1))
    of_group = rng.standard_normal(n_rows)
    value = of_group[groups]
    parts = deal_numbers(value, groups, n_parts)
    assert whole(parts, groups)
    for least in rng.standard_normal(5):
        counts = [len(set(groups[part][value[part] <= least].tolist())) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("form", ["labels", "valence"])
def test_a_drawn_split_keeps_pairs_whole_and_is_the_same_twice(plant: Plant, form: str) -> None:
    rng = np.random.default_rng(0)
    lists = [["joy", "fear"][: rng.integers(0, 3)] for _ in range(100)]
    columns = {"labels": lists, "valence": rng.random(100).tolist(), "pair_id": [row // 2 for row in range(100)]}
    run = plant(np.zeros((1, 100, 2), np.float32), columns)
    examples, again = ((label_sets if form == "labels" else numbers)(run, form) for _ in range(2))
    test = examples.split.test
    assert not set(examples.usable.groups[test].tolist()) & set(examples.usable.groups[~test].tolist())
    assert test.sum() == 20
    assert examples.split.made.startswith("drawn, a fifth")
    np.testing.assert_array_equal(test, again.split.test)


def test_the_form_of_a_column_follows_from_its_type(plant: Plant) -> None:
    columns = {
        "text": pa.array(["a", "b"]),
        "tone": pa.array(["loud", None]).dictionary_encode(),
        "sarcastic": pa.array([True, None]),
        "tags": pa.array([["a"], None]),
        "numbers": pa.array([[1, 27], []], pa.large_list(pa.int64())),
        "rating": pa.array([1, None]),
        "valence": pa.array([0.5, None], pa.float32()),
        "when": pa.array([0, 1], pa.date32()),
    }
    run = plant(np.zeros((1, 2, 1), np.float32), columns)
    forms = {name: form_of(run, name) for name in columns if name != "when"}
    assert forms == {
        "text": CLASSES,
        "tone": CLASSES,
        "sarcastic": CLASSES,
        "tags": SETS,
        "numbers": SETS,
        "rating": NUMBERS,
        "valence": NUMBERS,
    }
    assert names_of(run, "sarcastic").tolist() == ["True", ""]
    assert sets_of(run, "numbers") == [frozenset({"1", "27"}), frozenset()]
    assert sets_of(run, "tags") == [frozenset({"a"}), None]
    with pytest.raises(ValueError, match=r"column 'when' .* holds date32"):
        form_of(run, "when")


def test_classes_of_another_column_are_probed_as_those_of_label_are(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    tones = ["loud", "quiet"] * 40
    states = rng.standard_normal((1, 80, 4)) + np.array([[[3.0], [-3.0]] * 40]).reshape(1, 80, 1)
    run = plant(states.astype(np.float32), {"tone": tones, "label": tones[::-1]})
    result = probe_layers(run, "resid.last", (0,), ProbeSpec(column="tone")).result
    assert (result.classes, result.spec.column) == (("loud", "quiet"), "tone")
    assert result.best.test.accuracy.value == 1
    same = plant(states.astype(np.float32), {"label": tones})
    assert probe_layers(same, "resid.last", (0,)).result.layers == result.layers
    with pytest.raises(ValueError, match=r"column 'pair_id' .* holds int64; this analysis needs one label an utterance"):
        labelled_examples(plant(np.zeros((1, 4, 1), np.float32), {"pair_id": [1, 1, 2, 2]}), "pair_id")
