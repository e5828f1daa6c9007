"""One model over several devices: everything lies and goes where it should, and the numbers are those of one device.

This machine may have no GPU. That tensors are moved is seen with torch's `meta` device beside the CPU, which computes shapes
and refuses to mix with another; that numbers stay is seen with the CPU twice.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from extract.engine import Engine
from extract.loading import default_attention
from extract.models import Model
from extract.sites import Site
from extract.spread import shares, spread
from extract.tokens import Prompt
from tests.extract.architectures import ARCHITECTURES

NAMES = ("llama", "qwen3", "qwen3-moe", "gemma3", "gpt2", "gpt-neox", "bert")
SITES = [Site.parse(name) for name in ("resid.last", "resid.mean", "resid.all")]
PROMPTS = [Prompt((1, 5, 9, 2, 7, 7), 1, 6, 6), Prompt((1, 5, 9, 8), 1, 4, 4)]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("spread")
    for name in NAMES:
        ARCHITECTURES[name].save(root / name)
    return {name: root / name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_block_reads_what_was_moved_to_its_device(name: str, directories: dict[str, Path]) -> None:
    options = {"add_pooling_layer": False} if name == "bert" else {}  # behind the blocks, where the engine never gets
    model: Any = AutoModel.from_pretrained(directories[name], dtype=torch.bfloat16, **options).eval()
    spread(model, (torch.device("cpu"), torch.device("meta")))
    blocks = list(model.get_submodule(ARCHITECTURES[name].blocks))
    places = [{weight.device.type for weight in block.parameters()} for block in blocks]
    assert places == [{"cpu"}, {"meta"}, {"meta"}] or places == [{"cpu"}, {"cpu"}, {"meta"}]
    arguments = {} if name == "bert" else {"use_cache": False}
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[1, 5, 9, 2]]), **arguments)[0]
    assert output.device.type == "meta"
    norm = ARCHITECTURES[name].norm
    assert norm is None or next(model.get_submodule(norm).parameters()).device.type == "meta"


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_one_device(name: str, directories: dict[str, Path]) -> None:
    directory = directories[name]
    attention = default_attention(Model(str(directory), directory))
    several = Engine(directory, "float32", attention, "cpu,cpu")
    one = Engine(directory, "float32", "eager" if attention == "eager" else attention, "cpu")
    assert several.forward == "transformers"
    sites = [*SITES, *([] if name == "bert" else [Site.parse("attn_out.last"), Site.parse("final_norm.mean")])]
    found, expected = (each.pool(PROMPTS, range(4), sites) for each in (several, one))
    for site in sites:
        torch.testing.assert_close(found[site], expected[site], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_shared_prefix_stays_where_its_blocks_are(name: str, directories: dict[str, Path]) -> None:
    common = tuple(range(3, 15))
    prompts = [Prompt((*common, 20, 21, 22), 12, 15, 15), Prompt((*common, 30), 12, 13, 13)]
    several = Engine(directories[name], "float32", "sdpa", "cpu,cpu")
    prefix = several.share(prompts, range(4), SITES)
    assert prefix is not None
    found, expected = several.pool(prompts, range(4), SITES, (), prefix), several.pool(prompts, range(4), SITES)
    for site in SITES:
        torch.testing.assert_close(found[site], expected[site], atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8))
def test_devices_get_consecutive_blocks_of_about_the_same_bytes(sizes: list[int], n_devices: int) -> None:
    found = shares(sizes, n_devices)
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < n_devices
    for device in range(n_devices):
        mine = sum(size for size, place in zip(sizes, found, strict=True) if place == device)
        assert mine <= sum(sizes) / n_devices + max(sizes)
