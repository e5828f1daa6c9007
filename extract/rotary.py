"""Models whose rotary positions depend on how long the text is (Phi-3 with 128k): what they must not be mixed or cut with.

transformers looks at the longest row of a batch: one that is longer than the original context turns every row otherwise.
"""

from collections.abc import Sequence
from typing import Any

_BY_LENGTH = frozenset({"longrope", "dynamic"})


def turns_from(config: Any) -> int | None:
    """The most tokens of a text whose positions are turned as usual; None where all texts are alike in this."""
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    by_kind = list(given.values()) if all(isinstance(each, dict) for each in given.values()) else [given]
    borders = [
        each.get("original_max_position_embeddings") or text.max_position_embeddings
        for each in by_kind
        if each.get("rope_type") in _BY_LENGTH
    ]
    return min(borders, default=None)


def apart(lengths: Sequence[int], border: int | None) -> list[list[int]]:
    """Rows that may share batches: those up to the border, and those longer; no group is empty."""
    groups: tuple[list[int], list[int]] = ([], [])
    for row, length in enumerate(lengths):
        groups[border is not None and length > border].append(row)
    return [group for group in groups if group]
