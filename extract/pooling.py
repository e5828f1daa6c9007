"""What a site keeps of a batch's hidden states: single tokens, means or every token, gathered on the device.

A batch's tokens lie in one row after another, with padding or without: whoever lays them out says where each prompt
begins, and everything here counts from there. Means are summed in float32; a matrix product in bfloat16 was rejected,
because it rounds the sum.

Shape suffixes: B prompts of a batch, N tokens of the batch as they lie, S tokens that are read, O offsets, D width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from extract.kernels import LANES, kernels
from extract.sites import Site
from extract.tokens import Prompt

Reader = Callable[[torch.Tensor], torch.Tensor]
"""From hidden_ND to what a site keeps of it."""


def reader(
    site: Site, prompts: Sequence[Prompt], begins_B: Sequence[int], offsets: Sequence[int], device: torch.device
) -> Reader:
    """The function from hidden_ND to what one site keeps of it.

    Args:
        begins_B: where each prompt's first token lies.
        offsets: token offsets from the utterance's last token, for `offset` sites; from the prompt's, for `reply` sites.

    Returns:
        For single tokens (B, D); for `offset` and `reply` (B, O, D), zeros where a reply has ended; for `all` (S, D) with the
        utterances' tokens one after another; all in the dtype that was read. For means (B, D) in float32.
    """
    own = [(begin + prompt.start, begin + prompt.stop) for begin, prompt in zip(begins_B, prompts, strict=True)]
    whole = [(begin, begin + prompt.prompt_stop) for begin, prompt in zip(begins_B, prompts, strict=True)]
    match site.position:
        case "mean":
            return _mean_reader(own, device)
        case "prompt_mean":
            return _mean_reader(whole, device)
        case "first":
            return _token_reader([start for start, _ in own], device)
        case "last":
            return _token_reader([stop - 1 for _, stop in own], device)
        case "prompt_last":
            return _token_reader([stop - 1 for _, stop in whole], device)
        case "offset":
            return _token_reader([[stop - 1 + offset for offset in offsets] for _, stop in own], device)
        case "reply":
            ends = [begin + len(prompt.ids) for begin, prompt in zip(begins_B, prompts, strict=True)]
            return _reply_reader([stop for _, stop in whole], ends, offsets, device)
        case "all":
            return _token_reader(_tokens(own), device)
    raise AssertionError(site)


def reach(site: Site, prompt: Prompt, offsets: Sequence[int]) -> int:
    """One past the last token of a prompt that a site reads; under causal attention nothing behind it is needed."""
    match site.position:
        case "prompt_last" | "prompt_mean":
            return prompt.prompt_stop
        case "offset":
            return prompt.stop + max(offsets)
        case "reply":
            return min(prompt.prompt_stop + max(offsets), len(prompt.ids))
        case "first":
            return prompt.start + 1
    return prompt.stop


def _token_reader(positions: Sequence[object] | NDArray[np.int64], device: torch.device) -> Reader:
    index = torch.as_tensor(np.asarray(positions, np.int64)).to(device)
    return lambda hidden_ND: hidden_ND[index]


def _reply_reader(stop_B: Sequence[int], end_B: Sequence[int], offsets: Sequence[int], device: torch.device) -> Reader:
    """The states at offsets from the token before `stop_B`, and zeros from `end_B` on: a reply may be shorter than the grid."""
    place_BO = torch.tensor(stop_B)[:, None] - 1 + torch.tensor(offsets)
    end_B1 = torch.tensor(end_B)[:, None]
    index_BO, behind_BO1 = torch.minimum(place_BO, end_B1 - 1).to(device), (place_BO >= end_B1)[..., None].to(device)
    return lambda hidden_ND: hidden_ND[index_BO].masked_fill(behind_BO1, 0)


def _mean_reader(spans: Sequence[tuple[int, int]], device: torch.device) -> Reader:
    start_B, stop_B = torch.tensor(spans, device=device).T.contiguous()
    index_S = torch.from_numpy(_tokens(spans)).to(device)

    def read(hidden_ND: torch.Tensor) -> torch.Tensor:
        native = kernels(hidden_ND.dtype) if device.type == "cpu" and hidden_ND.shape[1] % LANES == 0 else None
        if native is not None:
            return native.span_mean(hidden_ND.contiguous(), start_B, stop_B)
        return torch.segment_reduce(hidden_ND[index_S].float(), "mean", lengths=stop_B - start_B, axis=0)

    return read


def _tokens(spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Where the tokens of some spans lie, one after another."""
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in spans])
