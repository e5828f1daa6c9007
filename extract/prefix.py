"""A beginning that all prompts share, such as few-shot examples or a chat header, computed once and not for every utterance.

Found from the token ids alone. Its keys and values are kept for each block and joined, in every batch, to those of the
tokens that follow; positions go on where the prefix ends, so the numbers are those of the whole prompt up to rounding.
transformers' own caches were rejected for the batches: they keep what every batch adds, and copy the prefix for each row.

Shape suffixes: B rows of a batch, H heads, P tokens of the prefix, T tokens that follow, K width of a head, D width.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from extract.rotary import turns_from
from extract.tokens import Prompt

_FEWEST_TOKENS = 8
"""Below this, joining costs about as much as computing."""

_PLAIN_ATTENTION = frozenset({"full_attention", "sliding_attention"})
"""Kinds of block whose only memory is keys and values."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The shared beginning of some prompts, computed."""

    n_tokens: int
    """Its tokens, P."""
    keys_and_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Of each block that was computed, (1, H, P, K) each."""
    sums: Mapping[tuple[str, int], torch.Tensor]
    """By component and layer, the sum of its states in float32, (D,), for means over the whole prompt."""

    def cache(self) -> Cache:
        """What a model reads it through; a new one for each batch."""
        return Cache(layers=[_SharedLayer(keys, values) for keys, values in self.keys_and_values])

    def mean_with(self, mean_BD: torch.Tensor, n_rest_B1: torch.Tensor, component: str, layer: int) -> torch.Tensor:
        """The mean over whole prompts, from that over the tokens they have after the prefix, and how many those are."""
        return (mean_BD * n_rest_B1 + self.sums[component, layer]) / (n_rest_B1 + self.n_tokens)

    def rest(self, prompt: Prompt) -> Prompt:
        """What a prompt has after the prefix."""
        n = self.n_tokens
        return replace(
            prompt, ids=prompt.ids[n:], start=prompt.start - n, stop=prompt.stop - n, prompt_stop=prompt.prompt_stop - n
        )


class _SharedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' caches are untyped
    """Keys and values of one block for all rows of a batch; what a batch adds is joined to them and forgotten."""

    def __init__(self, keys_1HPK: torch.Tensor, values_1HPK: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = self._keys_1HPK = keys_1HPK
        self.values = self._values_1HPK = values_1HPK
        self.dtype, self.device = keys_1HPK.dtype, keys_1HPK.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_rows = len(key_states)
        keys_BHPK, values_BHPK = (each.expand(n_rows, -1, -1, -1) for each in (self._keys_1HPK, self._values_1HPK))
        return torch.cat([keys_BHPK, key_states], dim=-2), torch.cat([values_BHPK, value_states], dim=-2)


def shared_length(prompts: Sequence[Prompt], offsets: Sequence[int] = ()) -> int:
    """How many tokens all prompts begin with, short of every token that a site reads by itself; 0 where too few to pay.

    Args:
        offsets: token offsets from the utterance's last token that are read.
    """
    first = prompts[0].ids
    earliest = min(
        min(prompt.start, prompt.prompt_stop - 1, *(prompt.stop - 1 + offset for offset in offsets)) for prompt in prompts
    )
    length = next((i for i in range(earliest) if any(prompt.ids[i] != first[i] for prompt in prompts)), max(earliest, 0))
    return length if length >= _FEWEST_TOKENS and len(prompts) > 1 else 0


def goes_on_from_keys_and_values(model: Any) -> bool:
    """Whether keys and values are all that a token sees of earlier ones: not so where a block has a state of its own."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    takes_cache = hasattr(config, "use_cache") and "past_key_values" in inspect.signature(model.forward).parameters
    plain = takes_cache and set(kinds) <= _PLAIN_ATTENTION and not getattr(model, "_is_stateful", False)
    return plain and turns_from(config) is None


def empty_cache() -> DynamicCache:
    """A cache that keeps every key and value, whatever window the model's attention has."""
    return DynamicCache()


def keys_and_values(cache: DynamicCache) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """What a forward pass left in a cache, block by block."""
    layers: list[Any] = cache.layers
    return tuple((layer.keys, layer.values) for layer in layers)
