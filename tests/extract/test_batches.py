"""Batches hold every row once, within the budget, and no other cut takes less time."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from extract.batches import BATCH_COST, plan_packed_batches, plan_padded_batches


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(plan_padded_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=9), budget=st.integers(1, 1200), n_shared=st.integers(0, 900))
def test_no_other_cut_of_the_sorted_rows_takes_less_time(lengths: list[int], budget: int, n_shared: int) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[row] for row in batch) + BATCH_COST for batch in batches)

    def allowed(batch: list[int]) -> bool:
        longest = max(lengths[row] for row in batch)
        fits = len(batch) * longest <= budget and len(batch) * (longest + n_shared) <= 16 * budget
        return fits or len(batch) == 1

    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    cuts = itertools.product((False, True), repeat=len(rows) - 1)
    possible = [_cut(rows, where) for where in cuts]
    best = min(cost(batches) for batches in possible if all(map(allowed, batches)))
    planned = list(plan_padded_batches(lengths, budget, n_shared))
    assert all(map(allowed, planned))
    assert cost(planned) == best


@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
def test_batches_without_padding_are_few_and_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(plan_packed_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= budget for batch in batches)
    assert len(batches) <= 2 * -(-sum(lengths) // budget)


def _cut(rows: list[int], where: tuple[bool, ...]) -> list[list[int]]:
    batches = [[rows[0]]]
    for row, begins in zip(rows[1:], where, strict=True):
        if begins:
            batches.append([])
        batches[-1].append(row)
    return batches
