"""Every architecture, component and position against plain transformers at batch 1, in float32."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModel

from extract.engine import Engine
from extract.hooked import HookedPass
from extract.kernels import kernels
from extract.loading import default_attention, load_weights
from extract.models import Model
from extract.prefix import shared_length
from extract.rotary import apart
from extract.sites import COMPONENTS, POSITIONS, Site
from extract.tokens import Prompt
from tests.extract.architectures import ARCHITECTURES, CAUSAL, N_LAYERS, VOCABULARY, Architecture, Plain

OFFSETS = (0, 1, 4)
TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model on disk."""
    root = tmp_path_factory.mktemp("architectures")
    for name, architecture in ARCHITECTURES.items():
        architecture.save(root / name)
    return {name: root / name for name in ARCHITECTURES}


def engine_of(directory: Path) -> Engine:
    """The engine as a run would load it, in float32 on the CPU."""
    return Engine(directory, "float32", default_attention(Model(str(directory), directory)), "cpu")


def prompt_of(rng: np.random.Generator, n_before: int, n_own: int, n_after: int) -> Prompt:
    """A prompt of random tokens: what is before the utterance, the utterance, and what is after it, continued by four more."""
    ids = tuple(rng.integers(3, VOCABULARY, n_before + n_own + n_after + 4).tolist())
    return Prompt(ids, n_before, n_before + n_own, n_before + n_own + n_after)


def expected(states_LTD: NDArray[np.float32], prompt: Prompt, position: str) -> NDArray[np.float32]:
    """What a position keeps of a prompt's states, layers first."""
    own = states_LTD[:, prompt.start : prompt.stop]
    behind = np.zeros_like(states_LTD)  # where a reply has ended
    replied = np.concatenate([states_LTD[:, prompt.prompt_stop - 1 :], behind], axis=1)
    picked: dict[str, NDArray[np.float32]] = {
        "last": own[:, -1],
        "first": own[:, 0],
        "mean": own.mean(axis=1),
        "all": own,
        "offset": states_LTD[:, [prompt.stop - 1 + offset for offset in OFFSETS]],
        "prompt_last": states_LTD[:, prompt.prompt_stop - 1],
        "prompt_mean": states_LTD[:, : prompt.prompt_stop].mean(axis=1),
        "reply": replied[:, list(OFFSETS)],
    }
    return picked[position]


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    """Relative L2 error of every vector below the tolerance; zeros are zeros."""
    assert ours.shape == theirs.shape
    error, length = np.linalg.norm(ours - theirs, axis=-1), np.linalg.norm(theirs, axis=-1)
    assert (error <= TOLERANCE * length).all()


def components_of(name: str) -> tuple[str, ...]:
    return tuple(component for component in COMPONENTS if component != "final_norm" or ARCHITECTURES[name].norm)


def check(engine: Engine, plain: Plain, prompts: Sequence[Prompt], sites: Sequence[Site], n_shared: int = 0) -> None:
    """Compare one batch at some sites, computed with the prefix of so many tokens that its prompts share."""
    everything = range(N_LAYERS + 1)
    prefix = engine.share(prompts, everything, sites, OFFSETS)
    assert (prefix.n_tokens if prefix else 0) == n_shared
    pooled = engine.pool(prompts, everything, sites, OFFSETS, prefix)
    components = {site.component for site in sites}
    states = {(prompt, component): plain.states(prompt.ids, component) for prompt in prompts for component in components}
    for site in sites:
        rows = [expected(states[prompt, site.component], prompt, site.position) for prompt in prompts]
        theirs = np.concatenate(rows, axis=1) if site.position == "all" else np.stack(rows, axis=1)
        assert_close(pooled[site].numpy(), theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_component_at_every_position_equals_plain_transformers(name: str, directories: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    shapes = [(0, 1, 0), (3, 9, 0), (0, 17, 5), (6, 2, 2), (1, 30, 1)]  # some longer than the sliding windows
    prompts = [prompt_of(rng, *shape) for shape in shapes]
    sites = [Site(component, position) for component in components_of(name) for position in POSITIONS]
    check(engine_of(directories[name]), Plain(name, directories[name]), prompts, sites)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_own_pass_computes_the_block_it_was_made_for_and_no_other(name: str, directories: dict[str, Path]) -> None:
    has_compiler = kernels(torch.float32) is not None
    assert engine_of(directories[name]).padded == (not has_compiler or not ARCHITECTURES[name].packed)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shared_prefix_computed_once_gives_the_numbers_of_whole_prompts(name: str, directories: dict[str, Path]) -> None:
    rng = np.random.default_rng(2)
    shared = tuple(rng.integers(3, VOCABULARY, 21).tolist())  # longer than the sliding windows
    prompts = [_after(shared, prompt_of(rng, *shape)) for shape in [(0, 1, 0), (3, 9, 0), (2, 17, 5), (1, 20, 1)]]
    sites = [Site(component, position) for component in components_of(name) for position in POSITIONS]
    n_shared = len(shared) if name in CAUSAL else 0
    check(engine_of(directories[name]), Plain(name, directories[name]), prompts, sites, n_shared)


def _after(shared: tuple[int, ...], prompt: Prompt) -> Prompt:
    n = len(shared)
    return Prompt((*shared, *prompt.ids), prompt.start + n, prompt.stop + n, prompt.prompt_stop + n)


@given(
    shared=st.lists(st.integers(3, 5), max_size=14).map(tuple),
    shapes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=4),
    offsets=st.lists(st.integers(-3, 2), max_size=3).map(tuple),
)
def test_the_shared_prefix_is_the_longest_that_no_site_reads_into(
    shared: tuple[int, ...], shapes: list[tuple[int, int, int]], offsets: tuple[int, ...]
) -> None:
    prompts = [_after(shared, prompt_of(np.random.default_rng(row % 2), *shape)) for row, shape in enumerate(shapes)]
    read = [min(p.start, p.prompt_stop - 1, *(p.stop - 1 + offset for offset in offsets)) for p in prompts]
    longest = max(n for n in range(min(len(p.ids) for p in prompts)) if n <= max(0, min(read)) and _alike(prompts, n))
    assert shared_length(prompts, offsets) == (longest if longest >= 8 and len(prompts) > 1 else 0)


def _alike(prompts: Sequence[Prompt], n_tokens: int) -> bool:
    return len({prompt.ids[:n_tokens] for prompt in prompts}) == 1


@pytest.mark.parametrize("layers", [[0], [1], [0, 2], [3]])
def test_a_prefix_reaches_as_deep_as_the_layers_asked_for(layers: list[int], directories: dict[str, Path]) -> None:
    engine, plain = _loaded("gpt2", directories["gpt2"])
    rng = np.random.default_rng(3)
    prompts = [_after(tuple(range(3, 19)), prompt_of(rng, 2, 5 + row, 3)) for row in range(3)]
    sites = [Site("resid", "last"), Site("resid", "prompt_mean")]
    prefix = engine.share(prompts, layers, sites)
    assert (prefix is None) == (layers == [0])
    pooled = engine.pool(prompts, layers, sites, (), prefix)
    for site in sites:
        theirs = [expected(plain.states(prompt.ids, "resid")[layers], prompt, site.position) for prompt in prompts]
        assert_close(pooled[site].numpy(), np.stack(theirs, axis=1))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert"])
@settings(deadline=None, max_examples=15)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 20), st.integers(0, 9)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_any_batch_equals_plain_transformers(
    name: str, directories: dict[str, Path], shapes: list[tuple[int, int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    engine, plain = _loaded(name, directories[name])
    check(engine, plain, [prompt_of(rng, *shape) for shape in shapes], [Site("resid", "last"), Site("attn_out", "mean")])


_LOADED: dict[str, tuple[Engine, Plain]] = {}


def _loaded(name: str, directory: Path) -> tuple[Engine, Plain]:
    if name not in _LOADED:
        _LOADED[name] = engine_of(directory), Plain(name, directory)
    return _LOADED[name]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
def test_layers_and_components_are_computed_no_further_than_asked(name: str, directories: dict[str, Path]) -> None:
    engine = engine_of(directories[name])
    prompts = [prompt_of(np.random.default_rng(1), 2, 7, 0)]
    sites = [Site("resid", "last"), Site("mlp_out", "mean")]
    everything = engine.pool(prompts, range(N_LAYERS + 1), sites)
    for layers in ([1], [2], [0, 2], [1, 3]):
        part = engine.pool(prompts, layers, sites)
        assert torch.equal(part[sites[0]], everything[sites[0]][layers])
        assert torch.equal(part[sites[1]], everything[sites[1]][[layer - 1 for layer in layers if layer]])


def test_the_final_norm_of_a_model_that_has_none_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="BertModel has no norm after its last block"):
        engine_of(directories["bert"]).check_components(["final_norm"])


def test_no_prefix_is_shared_where_positions_turn_by_the_length_of_the_text(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    Architecture("LlamaConfig", {**ARCHITECTURES["llama"].options, "rope_parameters": rope}).save(tmp_path)
    rng = np.random.default_rng(4)
    prompts = [_after(tuple(range(3, 19)), prompt_of(rng, 2, 5 + row, 3)) for row in range(3)]
    assert engine_of(tmp_path).share(prompts, [3], [Site("resid", "last")]) is None


def test_texts_beyond_the_original_context_are_computed_apart(tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}  # a head is eight wide, and two numbers turn together
    options = {**ARCHITECTURES["phi3"].options, "rope_parameters": rope, "original_max_position_embeddings": 16}
    Architecture("Phi3Config", options).save(tmp_path)
    engine, plain = engine_of(tmp_path), Plain("phi3", tmp_path)
    assert engine.turns_from == 16
    rng = np.random.default_rng(6)
    prompts = [prompt_of(rng, 0, length - 4, 0) for length in (9, 40, 16, 17, 12)]
    groups = apart([len(prompt.ids) for prompt in prompts], engine.turns_from)
    assert groups == [[0, 2, 4], [1, 3]]
    for rows in groups:
        check(engine, plain, [prompts[row] for row in rows], [Site("resid", "last")])
    with pytest.raises(AssertionError):
        check(engine, plain, prompts, [Site("resid", "last")])


def test_a_projection_behind_the_last_block_is_no_norm(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
    }
    options |= {"do_layer_norm_before": False, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
    factory: Any = AutoModel
    factory.from_config(transformers.OPTConfig(**options)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no norm after its last block"):
        engine_of(tmp_path).check_components(["final_norm"])


def test_what_blocks_add_is_refused_where_it_cannot_be_told(tmp_path: Path) -> None:
    scaled = Architecture("GraniteConfig", {**ARCHITECTURES["llama"].options, "residual_multiplier": 0.5})
    scaled.save(tmp_path)
    engine = engine_of(tmp_path)
    engine.check_components(["resid", "final_norm"])
    with pytest.raises(ValueError, match="cannot tell what attention and MLP add in block 1 of Granite"):
        engine.check_components(["attn_out"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch
@pytest.mark.parametrize("name", ["llama-narrow", "gemma3", "gpt2", "qwen3-moe"])
def test_compiled_blocks_give_the_numbers_of_their_own_code(name: str, directories: dict[str, Path]) -> None:
    attention = default_attention(Model(name, directories[name]))
    model = load_weights(directories[name], torch.float32, attention).eval().requires_grad_(False)
    device = torch.device("cpu")
    compiled, general = HookedPass(model, device, compiled=True), HookedPass(model, device)
    if shutil.which("c++"):
        assert compiled.name == "transformers, compiled"
    rng = np.random.default_rng(5)
    watched: list[dict[str, frozenset[int]]] = [{"resid": frozenset({0, 2, 3})}, {"attn_out": frozenset({1, 2})}]
    for wanted, n_rows in itertools.product(watched, (1, 3, 5)):
        prompts = [prompt_of(rng, 1, 4 + 3 * row, 0) for row in range(n_rows)]
        states: list[list[torch.Tensor]] = [[], []]
        for found, one_pass in zip(states, (compiled, general), strict=True):
            one_pass.forward(prompts, wanted, lambda _c, _l, hidden_ND, found=found: found.append(hidden_ND.clone()))  # type: ignore[misc]
        for ours, theirs in zip(*states, strict=True):
            assert (ours - theirs).abs().max() < TOLERANCE * theirs.abs().max()
