"""Fixtures: real models and data. Nothing here stands in for the product."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from extract.models import Model, find_model
from extract.packages import BUILTIN
from tests.s3 import s3_server

__all__ = ["s3_server"]

WRITING_CONTEXT = 192
"""Tokens that the model which replies reads at once."""
_GOEMOTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "goemotions"


@pytest.fixture(scope="session")
def builtin_model() -> Model:
    """SmolLM2-135M-Instruct, imported into the user's cache the first time."""
    return find_model(BUILTIN)


@pytest.fixture(scope="session")
def tiny_model(builtin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Llama of 3 blocks and width 32 with random weights, the built-in model's tokenizer, and a context of 64 tokens."""
    torch.manual_seed(0)
    model = LlamaModel(_small_llama(num_hidden_layers=3, head_dim=32, max_position_embeddings=64, initializer_range=0.2))
    return _saved(model, builtin_model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def deep_model(builtin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Llama of 16 blocks and width 32 with a head and random weights, and the built-in model's tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(_small_llama(num_hidden_layers=16, max_position_embeddings=64, initializer_range=0.2))
    return _saved(model, builtin_model, tmp_path_factory.mktemp("models") / "deep")


@pytest.fixture(scope="session")
def writing_model(builtin_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A Llama with a head and random weights that ends about every tenth token, and the built-in model's tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        _small_llama(
            num_hidden_layers=2,
            max_position_embeddings=WRITING_CONTEXT,
            initializer_range=0.3,
            eos_token_id=list(range(2, 49152, 10)),
        )
    )
    model.generation_config.repetition_penalty = 5.0  # of a model's own settings, only what ends a reply counts
    return _saved(model, builtin_model, tmp_path_factory.mktemp("models") / "writing")


def _small_llama(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, **more
    )


def _saved(model: Any, tokenized_as: Model, directory: Path) -> Model:
    """A model on disk, with another's tokenizer."""
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenized_as.directory / name, directory / name)
    return Model(str(directory), directory)


@pytest.fixture(scope="session")
def goemotions() -> Path:
    """A directory with GoEmotions as Parquet; the project passes its tests without it."""
    if not _GOEMOTIONS.is_dir():
        pytest.skip("GoEmotions is not here; these tests want its Parquet files in ../shared/data/goemotions")
    return _GOEMOTIONS
