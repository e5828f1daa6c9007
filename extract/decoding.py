"""How a model's own reply to an utterance is drawn, and what a drawn reply is. Light to import: requests have a part of it.

A reply depends on its prompt, its model and what stands here: every prompt has random numbers of its own, so that rows it is
drawn beside matter no more than rounding does. A seed for the process was rejected: then a shard that is done again would hold
other replies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Decoding:
    """How replies are drawn: nothing else takes part, whatever a model's own generation settings say."""

    max_tokens: int
    """A reply ends here where the model does not end it before."""
    temperature: float = 0.0
    """Logits are divided by it; at 0 the likeliest token is taken."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest likeliest that have this much of the probability together."""
    seed: int = 0
    """Of the random numbers."""

    def checked(self) -> "Decoding":
        """The same, with what has no part in greedy decoding as it is by default: it must not make another run.

        Raises:
            ValueError: a number is out of range.
        """
        if self.max_tokens < 1:
            raise ValueError(f"a reply of {self.max_tokens} tokens is none; take 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"there is no temperature {self.temperature:g}; take 0 for the likeliest tokens, or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p:g} is no share of the probability; take more than 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is {'negative' if self.seed < 0 else 'too large'}; take 0 to 2**63 - 1")
        return self if self.temperature else Decoding(self.max_tokens)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said."""

    ids: tuple[int, ...]
    """Token ids, without the token that ends it; may be empty."""
    ended: bool
    """Whether the model ended it, and not `max_tokens`."""


def replies_table(first_row: int, replies: Sequence[Reply], texts: Sequence[str]) -> pa.Table:
    """Replies as a shard keeps them: row, text, n_tokens, ended, ids (docs/store.md, section 4)."""
    return pa.table(
        {
            "row": pa.array(range(first_row, first_row + len(replies)), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "n_tokens": pa.array([len(reply.ids) for reply in replies], pa.int64()),
            "ended": pa.array([reply.ended for reply in replies], pa.bool_()),
            "ids": pa.array([reply.ids for reply in replies], pa.list_(pa.int32())),
        }
    )


def check_replies(table: pa.Table, start: int, stop: int, max_tokens: int) -> None:
    """Make sure that a table holds the replies of some rows.

    Raises:
        ValueError: it does not.
    """
    if table["row"].to_pylist() != list(range(start, stop)):
        raise ValueError(f"it does not hold the replies to rows {start:,} to {stop - 1:,}, once each")
    lengths = [len(ids) for ids in table["ids"].to_pylist()]
    if lengths != table["n_tokens"].to_pylist() or max(lengths) > max_tokens:
        raise ValueError("its replies are not as long as it says, or longer than the run allows")
