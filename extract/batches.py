"""Which rows of a shard go through the model together.

Shape suffixes: N rows.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

BATCH_COST = 512
"""What a batch costs besides its tokens, in tokens: products of few rows are slower, and each layer has its calls."""

_MOST_READ = 16
"""How many times its token budget a batch may read of keys and values."""


def plan_packed_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows that are computed without padding: as few batches as hold them, about equally full.

    Args:
        lengths: tokens of each row, without those that all share.
        token_budget: the most tokens of a batch; a single longer row is a batch of its own.

    Yields:
        Row indexes of each batch, the longest rows first, so that memory runs out at once or never.
    """
    total = sum(lengths)
    fill = -(-total // max(1, -(-total // token_budget)))
    batch: list[int] = []
    n_tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batch and (n_tokens >= fill or n_tokens + lengths[row] > token_budget):
            yield batch
            batch, n_tokens = [], 0
        batch.append(row)
        n_tokens += lengths[row]
    if batch:
        yield batch


def plan_padded_batches(lengths: Sequence[int], token_budget: int, n_shared: int = 0) -> Iterator[list[int]]:
    """Group rows of similar length so that rows x longest stays within the budget and the whole takes least time.

    Filling each batch to the budget was rejected: it pads comments, whose lengths have a long tail, by a fifth and more. The
    cut is the cheapest of all, where a batch costs its tokens, padding included, and BATCH_COST more.

    Args:
        lengths: tokens of each row, without those that all share.
        token_budget: the most tokens of a batch, padding included; a single longer row is a batch of its own.
        n_shared: tokens that all rows begin with; they are not computed again but read by each row, so a batch may hold more of
            them, though not without bound.

    Yields:
        Row indexes of each batch, the longest rows first; every row stands in exactly one. The order depends on the lengths
        alone.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    longest_N = np.array([lengths[row] for row in rows], np.int64)
    cost = np.zeros(len(rows) + 1, np.int64)
    begin = np.zeros(len(rows) + 1, np.int64)
    first = 0  # the earliest row that a batch which ends here may begin with; it only ever moves on
    for end in range(1, len(rows) + 1):
        while first < end - 1 and not _fits(end - first, int(longest_N[first]), token_budget, n_shared):
            first += 1
        starts = np.arange(first, end)
        costs = cost[first:end] + (end - starts) * longest_N[first:end] + BATCH_COST
        best = int(costs.argmin())
        begin[end], cost[end] = first + best, costs[best]
    cuts = [len(rows)]
    while cuts[-1]:
        cuts.append(int(begin[cuts[-1]]))
    for start, stop in itertools.pairwise(reversed(cuts)):
        yield rows[start:stop]


def _fits(n_rows: int, longest: int, token_budget: int, n_shared: int) -> bool:
    return n_rows * longest <= token_budget and n_rows * (n_shared + longest) <= _MOST_READ * token_budget
