"""Prompts to the model's own replies, many at once, by transformers' own generation with a cache of keys and values.

Rows are padded on the left, so that all of a batch go on from one place; what all of them begin with is computed once, stands
before the padding, and has its keys and values copied for each row. Drawing is ours, as a processor of logits behind
which the likeliest token is the drawn one: transformers' sampling takes its random numbers from the process, so that what a
prompt is answered would depend on the rows beside it.

The states of a reply are not kept while it is written: they are computed afterwards from prompt and reply, as those of any
other text (extract.engine), so that every site, batch and precision is the same.

Shape suffixes: B rows of a batch, T positions, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from extract.decoding import Decoding, Reply
from extract.prefix import empty_cache, goes_on_from_keys_and_values, shared_length
from extract.tokens import Prompt

_WINDOWS = ("sliding_window", "window_size", "attention_window_size")
"""What architectures call the number of tokens that local attention reaches."""
ROWS_AT_ONCE = 64
"""Most rows of a batch: a step of decoding reads all weights once, for however many rows."""
_BUDGETS = 8
"""How many times the token budget of a forward pass the keys and values of a batch may hold: a layer's states are not held."""

_SORTED_FIRST = 2048
"""Of the likeliest tokens, which nearly always have top-p of the probability."""
_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
"""SplitMix64's constants as signed 64-bit numbers."""


class Writer:
    """A causal language model with its head."""

    def __init__(self, model: Any, device: torch.device, ends: Sequence[int]) -> None:
        """Take a loaded model over; what its own generation settings say counts no more.

        Args:
            ends: ids of the tokens that end a reply (extract.loading.reply_ends).
        """
        text = model.config.get_text_config()
        self._ends = frozenset(ends)
        self._pad = min(self._ends, default=0)
        settings = {"eos_token_id": sorted(self._ends) or None, "pad_token_id": self._pad}
        model.generation_config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]  # transformers' own
        head = model.get_output_embeddings()
        if head is not None:  # of a slice of states PyTorch makes as many copies of the head's weights as there are rows
            head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(),))
        self._model, self._device = model, device
        self._resumes = goes_on_from_keys_and_values(model)
        self._window = min((width for name in _WINDOWS if (width := getattr(text, name, None))), default=None)

    def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Reply]:
        """Replies to one batch, in order."""
        longest = max(len(prompt.ids) for prompt in prompts)
        n_shared = self._shared_length(prompts, longest + decoding.max_tokens)
        ids_BT = torch.full((len(prompts), longest), self._pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            begin = longest - len(prompt.ids) + n_shared
            ids_BT[row, :n_shared], ids_BT[row, begin:] = torch.tensor(prompt.ids).tensor_split([n_shared])
            mask_BT[row, :n_shared], mask_BT[row, begin:] = 1, 1
        ids_BT = ids_BT.to(self._device)
        drawing = [_Drawing(prompts, decoding, longest)] if decoding.temperature else []
        with torch.inference_mode():
            written_BT = self._model.generate(
                ids_BT,
                attention_mask=mask_BT.to(self._device),
                max_new_tokens=decoding.max_tokens,
                do_sample=False,
                use_cache=True,
                logits_processor=LogitsProcessorList(drawing),
                **({"past_key_values": self._begun(ids_BT[:1, :n_shared], len(prompts))} if n_shared else {}),
            )
        return [self._reply(row) for row in written_BT[:, longest:].tolist()]

    def _shared_length(self, prompts: Sequence[Prompt], n_most: int) -> int:
        """How many tokens of a batch are computed once; none where the padding behind them would push them out of a window."""
        return shared_length(prompts) if self._resumes and n_most <= (self._window or n_most) else 0

    def _begun(self, ids_1P: torch.Tensor, n_rows: int) -> DynamicCache:
        """The keys and values of what all rows begin with, for each of them."""
        cache = empty_cache()
        self._model.base_model(ids_1P, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(n_rows)
        return cache

    def _reply(self, ids: list[int]) -> Reply:
        stop = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        return Reply(tuple(ids[:stop]), ended=stop < len(ids))


class _Drawing(LogitsProcessor):
    """Draws a token for each row with the row's own random numbers, and leaves only that one possible."""

    def __init__(self, prompts: Sequence[Prompt], decoding: Decoding, n_before: int) -> None:
        self._key_B = torch.tensor([_key(prompt, decoding.seed) for prompt in prompts])
        self._decoding, self._n_before = decoding, n_before

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._n_before
        key_B = mixed(self._key_B.to(scores.device) + step)
        drawn_B1 = draw(scores, self._decoding.temperature, self._decoding.top_p, key_B)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn_B1, 0.0)


def draw(logits_BV: torch.Tensor, temperature: float, top_p: float, key_B: torch.Tensor) -> torch.Tensor:
    """Tokens (B, 1) drawn from the softmax: the largest of logits with Gumbel noise, which a row's key and the token fix.

    Walking up the cumulated probabilities to one uniform number was rejected: their rounding, which depends on the rows of a
    batch, decides between neighbouring tokens. Here it does only where the two largest sums are equal to the last bits.
    """
    scaled_BV = logits_BV.double() / temperature
    token_V = torch.arange(scaled_BV.shape[1], device=scaled_BV.device)
    noisy_BV = scaled_BV - (-_uniform(mixed(key_B[:, None] ^ mixed(token_V))).log()).log()
    if top_p < 1:
        noisy_BV = noisy_BV.masked_fill(scaled_BV < _least_likely(scaled_BV, top_p), -torch.inf)
    return noisy_BV.argmax(dim=1, keepdim=True)


def _least_likely(scaled_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest (B, 1) of the fewest largest logits that have top-p of the probability together."""
    whole_B1, n_tokens = scaled_BV.logsumexp(dim=1, keepdim=True), scaled_BV.shape[1]
    for n_sorted in (_SORTED_FIRST, n_tokens):  # sorting all of a vocabulary takes longer than a step of a small model
        likely_BS = scaled_BV.topk(min(n_sorted, n_tokens), dim=1).values
        share_BS = (likely_BS - whole_B1).exp()
        above_BS = share_BS.cumsum(dim=1)
        if (above_BS[:, -1] >= top_p).all():
            break
    n_before_B1 = (above_BS - share_BS < top_p).sum(dim=1, keepdim=True)  # the likeliest is always possible
    return likely_BS.gather(1, n_before_B1 - 1)


def mixed(value: torch.Tensor) -> torch.Tensor:
    """64 bits for each of 64 bits, any two as good as independent: the finaliser of SplitMix64 (Steele et al. 2014)."""
    value = value + _GOLDEN
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: torch.Tensor, n_bits: int) -> torch.Tensor:
    """To the right, with zeros coming in: torch has no unsigned arithmetic."""
    return (value >> n_bits) & ((1 << (64 - n_bits)) - 1)


def _uniform(bits: torch.Tensor) -> torch.Tensor:
    """Numbers between 0 and 1, neither of them included."""
    return (_shifted(bits, 12).double() + 0.5) / 2**52


def plan_replies(prompts: Sequence[Prompt], max_tokens: int, token_budget: int) -> Iterator[list[int]]:
    """Batches of prompts of about the same length, as positions."""
    batch: list[int] = []
    for place in sorted(range(len(prompts)), key=lambda place: (-len(prompts[place].ids), place)):
        longest = len(prompts[batch[0]].ids) if batch else 0
        if batch and (len(batch) == ROWS_AT_ONCE or (len(batch) + 1) * (longest + max_tokens) > _BUDGETS * token_budget):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _key(prompt: Prompt, seed: int) -> int:
    digest = hashlib.sha256(np.asarray((seed, *prompt.ids), "<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
