"""Turn a GGUF file once into a dense safetensors model directory.

transformers' own GGUF loading keeps weights packed, computes in float32 and refuses to save; here its readers unpack
the blocks, the weights are rounded to bfloat16 once, and from then on the model is an ordinary directory that loads
in seconds.

GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) but transformers ignores the name for Llama-family files, which
moves token boundaries around digits and runs of spaces; the ones known here are put right, an unknown one is refused.
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.reader import read_gguf_metadata

from extract.identity import file_sha256
from extract.models import Model, check_name, models_directory
from extract.packages import PACKAGED
from extract.quiet import quiet_transformers

PROVENANCE_FILE = "affectome.json"
"""Says which GGUF a model directory was made from."""

_MAGIC = b"GGUF"


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_BYTE_PAIR_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _digits_then_byte_level,
}
"""`tokenizer.ggml.pre` to the pre-tokenizer its model was trained with, for byte-pair vocabularies."""


def import_gguf(source: Path, name: str) -> Model:
    """Write `source` as bfloat16 safetensors with its tokenizer under the models directory, all of it or nothing.

    Args:
        source: a GGUF file of a causal language model.
        name: the name it gets in `affectome models list`.

    Raises:
        ValueError: not a GGUF file, a name that cannot be a directory, or a pre-tokenizer that cannot be rebuilt exactly.
    """
    check_name(name)
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    with source.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{source} is not a GGUF file")
    target = models_directory() / name
    digest = file_sha256(source)
    if name in PACKAGED and digest != PACKAGED[name].sha256:
        raise ValueError(f"{name} is the name of a packaged model, which {source} is not; choose another --name")
    if target.exists():
        return _imported_before(target, name, source, digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{name}.{secrets.token_hex(4)}.tmp"  # starts with a dot, which no model name may
    try:
        temporary.mkdir()
        _convert(source, digest, temporary)
        _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _imported_before(target, name, source, digest)


def _imported_before(target: Path, name: str, source: Path, digest: str) -> Model:
    """The model at `target`, when it was made from this very file."""
    try:
        provenance = json.loads((target / PROVENANCE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{target} is not an imported model; move it away if it exists, and import again") from error
    if provenance.get("source_sha256") != digest:
        raise ValueError(f"{target} was made from another file than {source}; choose another --name, or remove it first")
    return Model(name, target)


def _convert(source: Path, digest: str, directory: Path) -> None:
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.parent,
                gguf_file=source.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        _restore_pre_tokenizer(source, tokenizer)
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error) as error:
        # what a damaged file makes the readers raise; each one means the same to the user
        raise ValueError(f"{source} cannot be read as a model: {error}") from error
    packed, loading = loaded
    missing = sorted(set(loading["missing_keys"]) - _tied_keys(packed))
    if missing:  # transformers fills what the file lacks with random numbers
        raise ValueError(f"{source} lacks {len(missing)} of the model's tensors (first: {missing[0]})")
    with quiet_transformers():
        _save_dense(packed, directory)
        tokenizer.save_pretrained(directory)
    provenance = {"source": source.name, "source_sha256": digest, "dtype": "bfloat16"}
    (directory / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1))


def _tied_keys(model: Any) -> set[str]:
    """Parameters that are another parameter under a second name, and so stand in no file."""
    tied = model.config.get_text_config().tie_word_embeddings
    return set(model.all_tied_weights_keys) if tied else set()


def _save_dense(packed: torch.nn.Module, directory: Path) -> None:
    """Save the unpacked weights through a fresh model, because the one that read the GGUF refuses to be saved."""
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh: Any = type(packed)(config)
    fresh = fresh.to(torch.bfloat16).to_empty(device="cpu")
    fresh.load_state_dict({key: value.to(torch.bfloat16) for key, value in packed.state_dict().items()})
    fresh.tie_weights()
    fresh.config.dtype = torch.bfloat16
    fresh.save_pretrained(directory)


def _restore_pre_tokenizer(source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    fields = _string_fields(source)
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return  # SentencePiece vocabularies carry their rules in the vocabulary
    known = fields.get("tokenizer.ggml.pre", "gpt-2")
    if known not in _BYTE_PAIR_PRE_TOKENIZERS:
        raise ValueError(
            f"its pre-tokenizer {known!r} cannot be rebuilt exactly from a GGUF; use the model's safetensors directory instead"
        )
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.pre_tokenizer = _BYTE_PAIR_PRE_TOKENIZERS[known]()


def _string_fields(source: Path) -> dict[str, str]:
    metadata, _ = read_gguf_metadata(str(source))
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _move_into_place(temporary: Path, target: Path) -> None:
    """Give the finished directory its name; where another import was faster, its result stands."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    with contextlib.suppress(OSError):
        temporary.rename(target)
