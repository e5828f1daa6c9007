"""The engine against plain transformers, one text at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel, BertConfig, BertModel

from extract.corpus import read_corpus
from extract.engine import Engine
from extract.loading import load_tokenizer
from extract.models import Model
from extract.parity import check_parity
from extract.sites import POSITIONS, Site
from extract.templates import Template
from extract.tokens import Prompt

TEXTS = ["no", "I waited at the gate for an hour.", "why would anyone 12345 do that?", "so good, so good, so good", "ok then"]


@pytest.fixture(scope="module")
def tiny_engine(tiny_model: Model) -> Engine:
    return Engine(tiny_model.directory, "float32", "sdpa", "cpu")


def reference_states(model: Model, prompt: Prompt) -> NDArray[np.float32]:
    """(L + 1, T, D) by plain transformers in float32; the last layer is taken before the final norm, from the last block."""
    plain = AutoModel.from_pretrained(model.directory, dtype=torch.float32)
    caught: list[torch.Tensor] = []
    plain.layers[-1].register_forward_hook(lambda _m, _a, out: caught.append(out if isinstance(out, torch.Tensor) else out[0]))
    with torch.no_grad():
        hidden = plain(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    states: NDArray[np.float32] = torch.stack([*hidden[:-1], caught[0]])[:, 0].numpy()
    return states


def expected(states_LTD: NDArray[np.float32], prompt: Prompt, position: str, offsets: Sequence[int]) -> NDArray[np.float32]:
    own: NDArray[np.float32] = states_LTD[:, prompt.start : prompt.stop]
    mean: NDArray[np.float32]
    match position:
        case "last":
            return own[:, -1]
        case "first":
            return own[:, 0]
        case "mean":
            mean = own.mean(axis=1)
            return mean
        case "all":
            return own
        case "prompt_last":
            return states_LTD[:, prompt.prompt_stop - 1]
        case "prompt_mean":
            mean = states_LTD[:, : prompt.prompt_stop].mean(axis=1)
            return mean
        case "reply":
            return states_LTD[:, [prompt.prompt_stop - 1 + offset for offset in offsets]]
        case _:
            return states_LTD[:, [prompt.stop - 1 + offset for offset in offsets]]


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize("position", POSITIONS)
def test_every_layer_at_every_position_equals_plain_transformers(
    tiny_model: Model, tiny_engine: Engine, position: str, template: str
) -> None:
    prompts = list(Template(template, load_tokenizer(tiny_model)).prompts(TEXTS))
    continued = [Prompt((*prompt.ids, 40, 41, 42, 43), prompt.start, prompt.stop, prompt.prompt_stop) for prompt in prompts]
    site = Site("resid", position)
    offsets = (0, 1, 4) if site.on_grid else ()
    pooled = tiny_engine.pool(continued, range(4), [site], offsets)[site].numpy()
    rows = [expected(reference_states(tiny_model, prompt), prompt, position, offsets) for prompt in continued]
    reference = np.concatenate(rows, axis=1) if position == "all" else np.stack(rows, axis=1)
    assert pooled.shape == reference.shape
    np.testing.assert_allclose(pooled, reference, rtol=1e-4, atol=1e-5)


def test_asking_for_fewer_layers_gives_the_same_numbers(tiny_model: Model, tiny_engine: Engine) -> None:
    prompts = list(Template("raw", load_tokenizer(tiny_model)).prompts(TEXTS))
    site = Site("resid", "last")
    everything = tiny_engine.pool(prompts, range(4), [site])[site]
    for layers in ([0], [2], [0, 3], [1, 2]):
        assert torch.equal(tiny_engine.pool(prompts, layers, [site])[site], everything[layers])


def test_a_bidirectional_model_gets_a_mask(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    plain: Any = BertModel(config)
    plain.eval()
    plain.save_pretrained(directory)
    prompts = [Prompt((5, 6, 7), 0, 3, 3), Prompt((8, 9, 10, 11, 12, 13, 14), 0, 7, 7)]
    site = Site("resid", "mean")
    pooled = Engine(directory, "float32", "sdpa", "cpu").pool(prompts, range(3), [site])[site]
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden = plain(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(pooled[:, row], torch.stack(hidden)[:, 0].mean(dim=1), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.lists(st.integers(3, 49151), min_size=1, max_size=40), min_size=1, max_size=8))
def test_a_row_does_not_depend_on_its_neighbours(tiny_engine: Engine, ids: list[list[int]]) -> None:
    prompts = [Prompt(tuple(row), 0, len(row), len(row)) for row in ids]
    sites = [Site("resid", "last"), Site("resid", "mean")]
    together = tiny_engine.pool(prompts, range(4), sites)
    for row, prompt in enumerate(prompts):
        alone = tiny_engine.pool([prompt], range(4), sites)
        for site in sites:
            torch.testing.assert_close(together[site][:, row], alone[site][:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_the_built_in_model_agrees_with_plain_transformers(builtin_model: Model, dtype: str, limit: float) -> None:
    entries = check_parity(builtin_model, dtype, read_corpus("builtin").head(24).table["text"].to_pylist(), "cpu")
    assert [entry.layer for entry in entries] == [*(str(layer) for layer in range(31)), "final_norm"]
    for entry in entries:
        error = max(entry.last_worst, entry.mean_worst) if dtype == "float32" else max(entry.last_median, entry.mean_median)
        assert error < limit, entry


def test_a_model_of_unknown_structure_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("broken")
    (directory / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ValueError, match="cannot load the model"):
        Engine(directory, "float32", "sdpa", "cpu")
