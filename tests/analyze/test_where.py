"""Onset, peak and plateau are found where they were planted, and their intervals hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from analyze.where import Where, locate

RISE = (0.0, 0.05, 0.12, 0.24, 0.38, 0.40, 0.39, 0.30)
"""Accuracy above chance by layer: onset at layer 3 (half of 0.40 is 0.20), peak at 5, plateau (0.38 and more) from 4 to 6."""
CHANCE = 0.25


def answers(seed: int, n_situations: int, per_situation: int = 1) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each layer is right about each utterance; layers share most of their luck, as those of a model do."""
    rng = np.random.default_rng(seed)
    n = n_situations * per_situation
    shared, own = np.repeat(rng.standard_normal(n_situations), per_situation), rng.standard_normal((n, len(RISE)))
    luck = 0.8 * shared[:, None] + 0.6 * own
    return luck < norm.ppf(CHANCE + np.array(RISE)), np.repeat(np.arange(n_situations), per_situation)


def found(seed: int, n_situations: int, per_situation: int = 1) -> Where:
    where = locate(range(len(RISE)), *answers(seed, n_situations, per_situation), CHANCE)
    assert where is not None
    return where


def test_with_many_utterances_each_layer_is_found_exactly() -> None:
    where = found(0, 100_000)
    assert (where.onset.layer, where.onset.low, where.onset.high) == (3, 3, 3)
    assert where.peak.layer == 5
    assert where.plateau_start.layer in (4, 5)
    assert where.plateau_stop.layer == 6


@pytest.mark.parametrize(("n_situations", "per_situation"), [(400, 1), (150, 3)])
def test_intervals_hold_the_truth_in_90_of_100_seeds_or_more(n_situations: int, per_situation: int) -> None:
    held = dict.fromkeys(("onset", "peak", "plateau_stop"), 0)
    truth = {"onset": 3, "peak": 5, "plateau_stop": 6}
    for seed in range(200):
        where = found(seed, n_situations, per_situation)
        for name, layer in truth.items():
            held[name] += getattr(where, name).low <= layer <= getattr(where, name).high
    assert all(count >= 180 for count in held.values()), held


def test_more_utterances_narrow_the_interval_and_do_not_move_the_onset() -> None:
    few, many = ([found(seed, n, 1).onset for seed in range(8)] for n in (200, 10_000))
    assert np.mean([each.high - each.low for each in many]) < np.mean([each.high - each.low for each in few])
    assert {each.layer for each in many} == {3}


def test_nothing_is_located_where_nothing_is_above_chance() -> None:
    rng = np.random.default_rng(0)
    located = [locate(range(2), rng.random((200, 2)) < CHANCE, np.arange(200), CHANCE) for _ in range(50)]
    assert sum(where is not None for where in located) <= 6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 40))
def test_the_layers_stand_in_order_and_within_their_intervals(seed: int, n_layers: int, first: int) -> None:
    rng = np.random.default_rng(seed)
    right = rng.random((60, n_layers)) < rng.uniform(0.6, 1, n_layers)
    layers = [first + 2 * index for index in range(n_layers)]
    where = locate(layers, right, rng.integers(0, 30, 60), 0.2)
    assert where is not None
    assert where.onset.layer <= where.peak.layer
    assert where.plateau_start.layer <= where.peak.layer <= where.plateau_stop.layer
    for each in (where.onset, where.peak, where.plateau_start, where.plateau_stop):
        assert each.low <= each.layer <= each.high
        assert {each.low, each.layer, each.high} <= set(layers)
