"""A forward pass of our own for the block that Llama, Mistral, Qwen2, Qwen3 and SmolLM share, on a CPU.

The rows of a batch lie one after another without padding; queries, keys and values are one product, gate and up another;
what lies between products is native code (kernels.cpp), and its memory is kept from batch to batch. The general way spends
a third of its time there. A model qualifies by its blocks' classes, whose code was read, and by a trial against
transformers. Going by the modules' names was rejected: SmolLM3 leaves out rotary positions in some blocks and Ministral
scales queries behind 16,384 tokens, under the same names.

Shape suffixes: B rows of a batch, N tokens of all rows, T positions, D width, X width of queries, keys and values together,
H query heads, K width of a head, M width of the MLP.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from extract.hooked import HookedPass, Visit, Wanted, deepest
from extract.kernels import LANES, Kernels, kernels
from extract.prefix import Prefix
from extract.rotary import turns_from
from extract.tokens import Prompt

_BLOCKS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Blocks of transformers whose code was read, and does this and no more."""

_TRIAL_LENGTHS = (37, 5)
_TRIAL_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""How far the median token of the trial may be from transformers at any layer, relative L2: rounding, no other function."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear map, or several of the same input as one."""

    weight: torch.Tensor
    """(input, output)."""
    bias: torch.Tensor | None
    """(output,), where it has one."""

    def into(self, out_NO: torch.Tensor, x_NI: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        if self.bias is None:
            return torch.mm(x_NI, self.weight, out=out_NO)
        return torch.addmm(self.bias, x_NI, self.weight, out=out_NO)


@dataclass(frozen=True, slots=True)
class _Block:
    """What a block multiplies with."""

    norm: torch.Tensor
    """Weight of the norm before attention, (D,)."""
    qkv: _Linear
    """To queries, keys and values."""
    head_norms: tuple[torch.Tensor | None, torch.Tensor | None]
    """Weights of the norms of a query's and a key's head, (K,) each (Qwen3)."""
    attention_out: _Linear
    """From what attention gathered to what it adds."""
    mlp_norm: torch.Tensor
    """Weight of the norm before the MLP, (D,)."""
    gate_up: _Linear
    """To gate and up."""
    down: _Linear
    """To what the MLP adds."""


class PackedPass:
    """A Llama-like model, computed here; what it hands out is what HookedPass does, up to rounding."""

    name = "packed"
    """What receipts call it."""
    padded = False
    """Whether a batch computes as many tokens for each row as its longest has."""

    def __init__(self, model: Any, native: Kernels) -> None:
        """Take over a model that `_qualifies`. Its weights are joined; its own modules keep them as views."""
        attention = model.layers[0].self_attn
        self._native = native
        self._embedding: torch.Tensor = model.embed_tokens.weight
        self._rotary: Any = model.rotary_emb
        self._norm_D: torch.Tensor = model.norm.weight
        self._epsilon: float = model.norm.variance_epsilon
        self._scale: float = attention.scaling
        self._head_width: int = attention.head_dim
        self._n_heads: int = attention.q_proj.out_features // attention.head_dim
        self._blocks = [_take_over(block) for block in model.layers]
        self._kept: dict[str, torch.Tensor] = {}

    def begins(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """Where each prompt's first token lies in hidden_ND."""
        return _bounds(prompts)[:-1]

    @torch.inference_mode()
    def forward(self, prompts: Sequence[Prompt], wanted: Wanted, visit: Visit, prefix: Prefix | None = None) -> None:
        """Compute a batch, calling `visit` with what is wanted of it in the order of computation.

        Args:
            prefix: what comes before these prompts, of which they are the rests.
        """

        def hand_out(component: str, layer: int, hidden_ND: torch.Tensor) -> None:
            if layer in wanted.get(component, ()):
                visit(component, layer, hidden_ND)

        native, epsilon, blocks = self._native, self._epsilon, self._blocks[: deepest(wanted)]
        bounds = _bounds(prompts)
        n_tokens, begin_B = bounds[-1], torch.tensor(bounds)
        turns_2TK = self._turns(prompts, 0 if prefix is None else prefix.n_tokens)
        x_ND, normed_ND, delta_ND = (self._room(name, n_tokens, self._embedding.shape[1]) for name in ("x", "normed", "delta"))
        ids_N = torch.tensor(list(itertools.chain.from_iterable(prompt.ids for prompt in prompts)))
        torch.index_select(self._embedding, 0, ids_N, out=x_ND)
        hand_out("resid", 0, x_ND)
        last_norm_D = self._norm_D if wanted.get("final_norm") else None
        norms = [*(block.norm for block in blocks), last_norm_D]
        native.add_norm(x_ND, None, norms[0], epsilon, normed_ND)
        for layer, block in enumerate(blocks, start=1):
            shared = None if prefix is None else prefix.keys_and_values[layer - 1]
            self._attend(block, normed_ND, begin_B, turns_2TK, shared, delta_ND)
            hand_out("attn_out", layer, delta_ND)
            native.add_norm(x_ND, delta_ND, block.mlp_norm, epsilon, normed_ND)
            self._mlp(block, normed_ND, delta_ND)
            hand_out("mlp_out", layer, delta_ND)
            native.add_norm(x_ND, delta_ND, norms[layer], epsilon, normed_ND)
            hand_out("resid", layer, x_ND)
        hand_out("final_norm", len(self._blocks), normed_ND)

    def _attend(
        self,
        block: _Block,
        normed_ND: torch.Tensor,
        begin_B: torch.Tensor,
        turns_2TK: torch.Tensor,
        shared: tuple[torch.Tensor, torch.Tensor] | None,
        out_ND: torch.Tensor,
    ) -> None:
        """What attention adds."""
        n_tokens = len(normed_ND)
        qkv_NX = block.qkv.into(self._room("qkv", n_tokens, block.qkv.weight.shape[1]), normed_ND)
        mixed_NX = self._room("mixed", n_tokens, self._n_heads * self._head_width)
        mixed_NHK = mixed_NX.view(n_tokens, self._n_heads, self._head_width)
        whole = None if shared is None else (shared[0].contiguous(), shared[1].contiguous())
        self._native.attend(qkv_NX, begin_B, turns_2TK, block.head_norms, whole, self._scale, self._epsilon, mixed_NHK)
        block.attention_out.into(out_ND, mixed_NX)

    def _mlp(self, block: _Block, normed_ND: torch.Tensor, out_ND: torch.Tensor) -> None:
        """What the MLP adds."""
        n_tokens, width = len(normed_ND), block.down.weight.shape[0]
        gate_up_N2M = block.gate_up.into(self._room("gate_up", n_tokens, 2 * width), normed_ND)
        active_NM = self._room("active", n_tokens, width)
        self._native.silu_mul(gate_up_N2M, active_NM)
        block.down.into(out_ND, active_NM)

    def _turns(self, prompts: Sequence[Prompt], n_shared: int) -> torch.Tensor:
        """Cosines and sines of every position, in float32, (2, T, K)."""
        positions_1T = torch.arange(n_shared + max(len(prompt.ids) for prompt in prompts))[None]
        cosines_1TK, sines_1TK = self._rotary(torch.empty(0, dtype=torch.float32), positions_1T)
        assert cosines_1TK.shape[-1] == self._head_width, "the kernels turn whole heads"
        return torch.cat([cosines_1TK, sines_1TK]).contiguous()

    def _room(self, name: str, n_tokens: int, width: int) -> torch.Tensor:
        """Memory that is kept: taking large pieces anew for each block costs as much as a tenth of the time."""
        if name not in self._kept or self._kept[name].numel() < n_tokens * width:
            self._kept.pop(name, None)  # first, or both would be there at once
            self._kept[name] = torch.empty(n_tokens * width, dtype=self._embedding.dtype)
        return self._kept[name][: n_tokens * width].view(n_tokens, width)

    def forget(self) -> None:
        """Give the kept memory back."""
        self._kept.clear()


def packed_pass(model: Any, general: HookedPass) -> PackedPass | None:
    """The pass for a model on the CPU; None where it does not qualify, there is no native code, or a trial disagrees."""
    if model.device.type != "cpu" or not general.causal or not _qualifies(model):
        return None
    native = kernels(model.dtype)
    if native is None:
        return None
    packed = PackedPass(model, native)
    return packed if _agree(packed, general, model) else None


def _agree(packed: PackedPass, general: HookedPass, model: Any) -> bool:
    """Whether both ways give the same states of every layer for a few tokens."""
    generator = torch.Generator().manual_seed(0)
    n_layers, vocabulary = len(model.layers), len(model.embed_tokens.weight)
    rows = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in _TRIAL_LENGTHS]
    ours_LSD, theirs_LSD = (_states(way, rows, n_layers) for way in (packed, general))
    errors_LS = (ours_LSD - theirs_LSD).norm(dim=-1) / theirs_LSD.norm(dim=-1)
    return bool(errors_LS.median(dim=1).values.max() < _TRIAL_ERRORS[model.dtype])


def _states(way: PackedPass | HookedPass, rows: Sequence[list[int]], n_layers: int) -> torch.Tensor:
    """The states of all tokens, layers first, of rows computed alone, so that every way lays them out alike."""
    wanted = {"resid": frozenset(range(1, n_layers + 1))}
    by_row: list[torch.Tensor] = []
    for row in rows:
        states: list[torch.Tensor] = []
        prompt = Prompt(tuple(row), 0, len(row), len(row))
        way.forward([prompt], wanted, lambda _component, _layer, hidden_ND, to=states: to.append(hidden_ND.float().clone()))  # type: ignore[misc]
        by_row.append(torch.stack(states))
    return torch.cat(by_row, dim=1)


def _qualifies(model: Any) -> bool:
    """Whether a model is made of the blocks this was written for, with widths that the kernels take."""
    config = model.config
    blocks = list(getattr(model, "layers", ()))
    if {type(block).__name__ for block in blocks} - _BLOCKS or not blocks or config.hidden_act != "silu":
        return False
    if turns_from(config) is not None or _has_window(config):
        return False
    attention = blocks[0].self_attn
    widths = [config.hidden_size, config.intermediate_size, attention.head_dim // 2]
    return all(width > 0 and width % LANES == 0 for width in widths)


def _has_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) if kinds is None else set(kinds) != {"full_attention"}


def _take_over(block: Any) -> _Block:
    attention, mlp = block.self_attn, block.mlp
    return _Block(
        norm=block.input_layernorm.weight,
        qkv=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=(_weight_of(attention, "q_norm"), _weight_of(attention, "k_norm")),
        attention_out=_joined(attention.o_proj),
        mlp_norm=block.post_attention_layernorm.weight,
        gate_up=_joined(mlp.gate_proj, mlp.up_proj),
        down=_joined(mlp.down_proj),
    )


def _weight_of(module: nn.Module, name: str) -> torch.Tensor | None:
    norm: nn.Module | None = getattr(module, name, None)
    return None if norm is None else norm.get_parameter("weight")


def _joined(*linears: nn.Linear) -> _Linear:
    """Linear maps of one input as one; each keeps its weights, as a part of the joined ones."""
    if len(linears) == 1:
        return _Linear(linears[0].weight.T, linears[0].bias)
    weight_OI = torch.cat([linear.weight for linear in linears])
    parts = torch.split(weight_OI, [linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    return _Linear(weight_OI.T, torch.cat(biases) if biases else None)


def _bounds(prompts: Sequence[Prompt]) -> list[int]:
    """Where each prompt's tokens begin, and where the last end."""
    return list(itertools.accumulate((len(prompt.ids) for prompt in prompts), initial=0))
