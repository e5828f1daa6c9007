"""A model directory to what transformers makes of it: its shape, its tokenizer, its weights without their heads.

Nothing here reaches the network or runs a model's own code.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from extract.models import Model
from extract.quiet import quiet_transformers

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Precisions a model may run in; float16 overflows in models people use (docs/store.md, section 4)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a model before a run of it can be planned."""

    n_layers: int
    """Number of blocks, L; layers are 0..L."""
    width: int
    """Width of the residual stream, D."""
    context: int
    """The most tokens the model reads at once."""


def read_shape(model: Model) -> Shape:
    """Read a model's shape from its configuration, without its weights.

    Raises:
        ValueError: the configuration is not one transformers knows, or it names no context.
    """
    text = _read_config(model).get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if context is None:
        raise ValueError(f"the configuration of {model.name} does not say how many tokens it reads; it is not supported yet")
    return Shape(text.num_hidden_layers, text.hidden_size, context)


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ValueError: the directory holds none.
    """
    return _tokenizer(model.directory, model.name, model.tokenizer_digest)


@lru_cache(maxsize=2)
def _tokenizer(directory: Path, name: str, _digest: str) -> PreTrainedTokenizerBase:
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the tokenizer of {name}: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def default_attention(model: Model) -> str:
    """The attention implementation a model runs with where nobody asks: `sdpa`, or `eager` where it has no other (Gemma 2).

    Raises:
        ValueError: the configuration is not one transformers knows.
    """
    config = _read_config(model)
    factory: Any = AutoModel
    try:
        with torch.device("meta"), quiet_transformers():
            factory.from_config(config, attn_implementation="sdpa")
    except ValueError:
        return "eager"
    return "sdpa"


def reply_ends(directory: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a reply of a model, ascending: of its generation settings, else of its configuration.

    Raises:
        ValueError: neither can be read.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            has_own = (directory / "generation_config.json").is_file()
            own = GenerationConfig.from_pretrained(directory).eos_token_id if has_own else None
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read what ends a reply of the model in {directory}: {error}") from error
    ends = own if own is not None else config.get_text_config().eos_token_id
    return tuple(sorted({ends} if isinstance(ends, int) else set(ends or ())))


def _read_config(model: Model) -> Any:
    try:
        return AutoConfig.from_pretrained(model.directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the configuration of {model.name}: {error}") from error


def load_weights(directory: Path, dtype: torch.dtype, attention: str, with_head: bool = False) -> Any:
    """Load a model from safetensors, all of its weights: without its heads, or with the one that predicts the next token.

    transformers fills weights that the files lack with random numbers and says so in a notice, so they are refused here; a
    pooler that comes after the blocks may be absent.

    Raises:
        ValueError: transformers cannot build the model, or weights are missing.
    """
    kind: Any = AutoModelForCausalLM if with_head else AutoModel
    try:
        with quiet_transformers():
            model, loading = kind.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, LookupError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load the model in {directory}: {error}") from error
    lacking = sorted({*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])})
    lacking = [key for key in lacking if not key.startswith("pooler.")]
    if lacking:
        only_head = with_head and not any(key.startswith(f"{model.base_model_prefix}.") for key in lacking)
        meaning = ": it has no head that predicts the next token, so it cannot reply" if only_head else ""
        raise ValueError(f"the model in {directory} lacks {len(lacking)} of its weights (first: {lacking[0]}){meaning}")
    return model
