"""Find a model's parts by watching a small forward pass: its blocks, what attention and MLP add to the stream, its final norm.

No table of architectures: what is added is the module output that makes the block's own arithmetic come out, bit for
bit. So a norm behind attention (Gemma 2 and 3, OLMo 2) counts as a part of what attention adds, blocks that run both
side by side (GPT-NeoX) work, and a block that scales its parts, or otherwise departs, is refused instead of misread.
Names were rejected: `post_attention_layernorm` is behind attention in Gemma 2 and before the MLP in Llama.

Shape suffixes: T tokens, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_IDS = (1, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class Contributions:
    """What one block adds to the residual stream, as modules whose output it is."""

    attention: nn.Module
    """Its output is what attention adds."""
    mlp: nn.Module
    """Its output is what the MLP, or the mixture of experts, adds."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a module inside a block."""

    module: nn.Module
    """The module."""
    depth: int
    """How many modules it lies in."""
    read: torch.Tensor | None
    """What it was given, (1, T, D)."""
    wrote: torch.Tensor | None
    """What it returned, (1, T, D)."""


def find_blocks(model: Any) -> nn.ModuleList:
    """The model's blocks in order.

    Raises:
        ValueError: there is no list of as many modules as the configuration has blocks.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise ValueError(f"cannot find the {n_layers} blocks of {type(model).__name__}; this architecture is not supported yet")


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor a module returns or is given, alone or as the first of several."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def find_contributions(model: Any) -> list[Contributions]:
    """What attention and MLP of each block add to the residual stream.

    Raises:
        ValueError: in some block no two module outputs explain what the block returns.
    """
    found = []
    for number, calls in enumerate(_watch(model, list(find_blocks(model))), start=1):
        pair = next(_explanations(calls), None)
        if pair is None:
            raise ValueError(
                f"cannot tell what attention and MLP add in block {number} of {type(model).__name__}; "
                "attn_out and mlp_out are not supported for this architecture, resid is"
            )
        found.append(pair)
    return found


def find_final_norm(model: Any) -> nn.Module | None:
    """The module between the last block and what the model returns; None where there is none, as in BERT."""
    block = find_blocks(model)[-1]
    caught: list[torch.Tensor | None] = []
    with _Hooks() as hooks:
        hooks.add(block.register_forward_hook(lambda _module, _args, output: caught.append(first_tensor(output))))
        outer = [module for module in model.modules() if module is not model and not _contains(block, module)]
        calls: list[_Call] = []
        for module in outer:
            hooks.add(module.register_forward_hook(_recorder(calls, depth=0), with_kwargs=True))
        with torch.inference_mode():
            returned = first_tensor(model(input_ids=_ids(model))[0])
    (block_TD,) = caught
    for call in calls:
        if _same(call.read, block_TD) and _same(call.wrote, returned) and _only_norms(call):
            return call.module
    return None


def _only_norms(call: _Call) -> bool:
    """Whether a module keeps the width and has no linear map, as a projection behind the last block has (OPT-350M)."""
    assert call.read is not None
    assert call.wrote is not None
    linear = any(isinstance(module, nn.Linear) for module in call.module.modules())
    return call.wrote.shape == call.read.shape and not linear


def _explanations(calls: list[_Call]) -> Iterator[Contributions]:
    """Pairs of calls that explain a block, the outermost modules first; attention is called before the MLP."""
    whole = calls[-1]  # the block itself returns last
    into_TD, out_TD = whole.read, whole.wrote
    assert into_TD is not None, "blocks read hidden states"
    assert out_TD is not None, "blocks return hidden states"
    inner = sorted((call for call in calls[:-1] if _fits(call.wrote, out_TD)), key=lambda call: call.depth)
    order = {id(call): index for index, call in enumerate(calls)}
    for attention in inner:
        for mlp in inner:
            if order[id(attention)] < order[id(mlp)] and _explains(into_TD, attention, mlp, out_TD, calls):
                yield Contributions(attention.module, mlp.module)


def _explains(into_TD: torch.Tensor, attention: _Call, mlp: _Call, out_TD: torch.Tensor, calls: list[_Call]) -> bool:
    a_TD, m_TD = attention.wrote, mlp.wrote
    assert a_TD is not None
    assert m_TD is not None
    middle_TD = into_TD + a_TD
    readers = [call for call in calls[:-1] if _same(call.read, middle_TD)]
    if readers and torch.equal(middle_TD + m_TD, out_TD):
        return True  # one after the other: Llama, GPT-2, Gemma, OLMo 2
    for first in readers:  # each sum is normed before it goes on: BERT
        if first.wrote is None or not _fits(first.wrote, out_TD):
            continue
        sum_TD = first.wrote + m_TD
        if any(_same(call.read, sum_TD) and _same(call.wrote, out_TD) for call in calls[:-1]):
            return True
    side_by_side = (middle_TD + m_TD, (m_TD + a_TD) + into_TD, (into_TD + m_TD) + a_TD)
    return any(torch.equal(sum_TD, out_TD) for sum_TD in side_by_side)


def _watch(model: Any, blocks: Sequence[nn.Module]) -> list[list[_Call]]:
    """The calls inside each block, in the order in which they return."""
    calls: list[list[_Call]] = [[] for _ in blocks]
    with _Hooks() as hooks, torch.inference_mode():
        for block, found in zip(blocks, calls, strict=True):
            for name, module in block.named_modules():
                hooks.add(module.register_forward_hook(_recorder(found, depth=name.count(".") + bool(name)), with_kwargs=True))
        model(input_ids=_ids(model))
    return calls


def _recorder(calls: list[_Call], depth: int) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read = first_tensor(args) if args else first_tensor(kwargs.get("hidden_states"))
        calls.append(_Call(module, depth, _kept(read), _kept(first_tensor(output))))

    return record


def _kept(value: torch.Tensor | None) -> torch.Tensor | None:
    """A copy, because a later module may write to the same memory."""
    return None if value is None else value.clone()


def _ids(model: Any) -> torch.Tensor:
    return torch.tensor([_IDS], device=next(model.parameters()).device)


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _fits(one_TD: torch.Tensor | None, other_TD: torch.Tensor) -> bool:
    return one_TD is not None and one_TD.shape == other_TD.shape


def _same(one_TD: torch.Tensor | None, other_TD: torch.Tensor | None) -> bool:
    return one_TD is not None and other_TD is not None and one_TD.shape == other_TD.shape and torch.equal(one_TD, other_TD)


class _Hooks:
    """Hooks that are taken off again, whatever happens."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def add(self, handle: Any) -> None:
        self._handles.append(handle)

    def __enter__(self) -> "_Hooks":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
