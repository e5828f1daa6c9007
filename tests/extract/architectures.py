"""Small models of the architectures people use, with random weights, and where the parts of each are by its own source code.

The product finds those parts by measuring (extract.anatomy); the names here were read from transformers' modelling files, so
that a test can compare the two.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModel

N_LAYERS, WIDTH, VOCABULARY, CONTEXT = 3, 32, 100, 64

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": N_LAYERS, "n_head": 4, "n_positions": CONTEXT}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOW = 8


@dataclass(frozen=True)
class Architecture:
    """A configuration, and the names of its parts."""

    config: str
    """Name of the configuration class."""
    options: dict[str, Any]
    """What it is made with."""
    blocks: str = "layers"
    """Name of the list of blocks."""
    attention: str = "self_attn"
    """In a block, the module whose output attention adds to the residual stream."""
    mlp: str = "mlp"
    """In a block, the module whose output the MLP adds."""
    norm: str | None = "norm"
    """The norm after the last block."""
    packed: bool = False
    """Whether our own pass computes it, where there is a compiler."""

    def save(self, directory: Path) -> None:
        """Write a model with random weights; norms differ from one and biases from zero, so that a missing one is seen."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options, initializer_range=0.2)
        factory: Any = AutoModel
        model = factory.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name.lower() else 0.0, std=0.2)
        model.save_pretrained(directory)


ARCHITECTURES = {
    "llama": Architecture("LlamaConfig", {**_GROUPED, "head_dim": 32}, packed=True),
    "llama-narrow": Architecture("LlamaConfig", _GROUPED),
    "mistral": Architecture("MistralConfig", {**_GROUPED, "sliding_window": _WINDOW}),
    "mistral-without-window": Architecture("MistralConfig", {**_GROUPED, "head_dim": 32, "sliding_window": None}, packed=True),
    "qwen2": Architecture("Qwen2Config", {**_GROUPED, "hidden_size": 64, "num_attention_heads": 2}, packed=True),
    "qwen3": Architecture("Qwen3Config", {**_GROUPED, "head_dim": 64}, packed=True),
    "gemma": Architecture("GemmaConfig", {**_GROUPED, "head_dim": 32, "hidden_activation": "silu", "hidden_act": "silu"}),
    "olmo": Architecture("OlmoConfig", {**_GROUPED, "head_dim": 32}),
    "smollm3": Architecture("SmolLM3Config", {**_GROUPED, "head_dim": 32, "no_rope_layers": [1, 0, 1]}),
    "llama-gelu": Architecture("LlamaConfig", {**_GROUPED, "head_dim": 32, "hidden_act": "gelu"}),
    "granite": Architecture("GraniteConfig", {**_GROUPED, "head_dim": 32, "embedding_multiplier": 3.0}),
    "qwen3-moe": Architecture("Qwen3MoeConfig", {**_GROUPED, **_EXPERTS, "head_dim": 8}),
    "gemma2": Architecture(
        "Gemma2Config",
        {**_GROUPED, "head_dim": 8, "sliding_window": _WINDOW},
        attention="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        {**_GROUPED, "head_dim": 8, "sliding_window": _WINDOW},
        attention="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
    ),
    "phi3": Architecture("Phi3Config", _GROUPED),
    "gpt2": Architecture("GPT2Config", _GPT2, blocks="h", attention="attn", norm="ln_f"),
    "gpt-neox": Architecture("GPTNeoXConfig", _COMMON, attention="attention", norm="final_layer_norm"),
    "gpt-neox-in-turn": Architecture(
        "GPTNeoXConfig", {**_COMMON, "use_parallel_residual": False}, attention="attention", norm="final_layer_norm"
    ),
    "olmo2": Architecture("Olmo2Config", _GROUPED, attention="post_attention_layernorm", mlp="post_feedforward_layernorm"),
    "bert": Architecture(
        "BertConfig", _COMMON, blocks="encoder.layer", attention="attention.output.dense", mlp="output.dense", norm=None
    ),
}

CAUSAL = tuple(name for name in ARCHITECTURES if name != "bert")
"""Those whose tokens see only what is before them."""


class Plain:
    """Plain transformers in float32, one text at a time."""

    def __init__(self, name: str, directory: Path) -> None:
        self._parts = ARCHITECTURES[name]
        self._model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.no_grad()
    def states(self, ids: tuple[int, ...], component: str) -> NDArray[np.float32]:
        """(layers that exist, T, D) of a component."""
        caught: list[torch.Tensor] = []
        handles = [module.register_forward_hook(_catcher(caught)) for module in self._modules(component)]
        hidden = self._model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        states_LTD = torch.stack([hidden[0], *caught] if component == "resid" else caught)[:, 0]
        result: NDArray[np.float32] = states_LTD.numpy()
        return result

    def _modules(self, component: str) -> list[torch.nn.Module]:
        blocks = list(self._model.get_submodule(self._parts.blocks))
        if component == "final_norm":
            assert self._parts.norm is not None
            return [self._model.get_submodule(self._parts.norm)]
        names = {"resid": "", "attn_out": self._parts.attention, "mlp_out": self._parts.mlp}
        return [block.get_submodule(names[component]) for block in blocks]


def _catcher(caught: list[torch.Tensor]) -> Any:
    return lambda _module, _args, output: caught.append((output if isinstance(output, torch.Tensor) else output[0]).clone())
