"""Replies: against transformers one by one, whatever they are written beside, and as a part of a stored run."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from analyze.query import Run
from extract.corpus import Corpus, read_corpus
from extract.decoding import Decoding, Reply
from extract.engine import Engine
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.tokens import Prompt
from extract.verify import verify
from extract.writing import ROWS_AT_ONCE, draw, mixed, plan_replies
from tests.conftest import WRITING_CONTEXT

OFFSETS = (0, 1, 3, 8, 12)


@pytest.fixture(scope="module")
def engine(writing_model: Model) -> Engine:
    return Engine(writing_model.directory, "float32", "sdpa", "cpu", writes=True)


def prompt_of(ids: tuple[int, ...]) -> Prompt:
    return Prompt(ids, 0, len(ids), len(ids))


_prompts = st.lists(st.lists(st.integers(3, 49151), min_size=1, max_size=12).map(tuple).map(prompt_of), min_size=1, max_size=5)


@cache
def plain_model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def likeliest_one_by_one(model: Model, ids: tuple[int, ...], max_tokens: int) -> Reply:
    """By the plain model without a cache, a token at a time."""
    plain = plain_model(model.directory)
    ends, said = set(plain.config.eos_token_id), list(ids)
    for _ in range(max_tokens):
        with torch.inference_mode():
            token = int(plain(torch.tensor([said])).logits[0, -1].argmax())
        if token in ends:
            return Reply(tuple(said[len(ids) :]), ended=True)
        said.append(token)
    return Reply(tuple(said[len(ids) :]), ended=False)


@settings(max_examples=4, deadline=None)
@given(prompts=_prompts)
def test_at_temperature_0_replies_are_the_likeliest_tokens_one_by_one(
    engine: Engine, writing_model: Model, prompts: list[Prompt]
) -> None:
    written = engine.write(prompts, Decoding(6))
    assert written == [likeliest_one_by_one(writing_model, prompt.ids, 6) for prompt in prompts]


_head = st.lists(st.integers(3, 49151), min_size=8, max_size=20).map(tuple)


def begun_with(head: tuple[int, ...], prompts: list[Prompt]) -> list[Prompt]:
    return [Prompt(head + p.ids, len(head), len(head) + p.stop, len(head) + p.prompt_stop) for p in prompts]


@settings(max_examples=4, deadline=None)
@given(head=_head, prompts=_prompts)
def test_what_prompts_begin_with_is_computed_once_and_makes_no_other_reply(
    engine: Engine, writing_model: Model, head: tuple[int, ...], prompts: list[Prompt]
) -> None:
    whole = begun_with(head, prompts)
    assert engine.write(whole, Decoding(6)) == [likeliest_one_by_one(writing_model, prompt.ids, 6) for prompt in whole]


def test_replies_behind_a_shared_beginning_are_drawn_with_the_same_random_numbers(engine: Engine) -> None:
    whole = begun_with(tuple(range(100, 120)), [prompt_of((5, 6)), prompt_of((7,)), prompt_of((8, 9, 10, 11))])
    drawn = Decoding(6, temperature=0.8)
    assert engine.write(whole, drawn) == [engine.write([prompt], drawn)[0] for prompt in whole]


@pytest.mark.parametrize("window", [12, 40])
def test_attention_through_a_window_sees_the_same_tokens_behind_a_shared_beginning(window: int, tmp_path: Path) -> None:
    """A window that is shorter than a batch is long would count the padding between a row's beginning and its rest."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=300, num_key_value_heads=2, sliding_window=window, initializer_range=0.5, eos_token_id=[2], **sizes
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    head = tuple(range(10, 20))
    rests = [tuple(range(start, start + length)) for start, length in ((30, 14), (50, 2), (60, 7), (80, 1))]
    prompts = begun_with(head, [prompt_of(rest) for rest in rests])
    written = Engine(tmp_path, "float32", "sdpa", "cpu", writes=True).write(prompts, Decoding(6))
    model = Model(str(tmp_path), tmp_path)
    assert written == [likeliest_one_by_one(model, prompt.ids, 6) for prompt in prompts]


@settings(max_examples=4, deadline=None)
@given(prompts=_prompts, seed=st.integers(0, 3))
def test_what_a_prompt_is_answered_does_not_depend_on_the_rows_beside_it(
    engine: Engine, prompts: list[Prompt], seed: int
) -> None:
    decoding = Decoding(6, temperature=0.8, top_p=0.95, seed=seed)
    alone = [engine.write([prompt], decoding)[0] for prompt in prompts]
    assert engine.write(prompts, decoding) == alone
    assert engine.write(prompts[::-1], decoding) == alone[::-1]


def test_other_seeds_give_other_replies(engine: Engine) -> None:
    prompts = [prompt_of((5, 6, number)) for number in range(3, 11)]
    assert engine.write(prompts, Decoding(6, 1.0, seed=0)) != engine.write(prompts, Decoding(6, 1.0, seed=1))


def splitmix(state: int) -> int:
    """As its authors write it, in numbers without sign."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@given(st.integers(-(2**63), 2**63 - 1))
def test_bits_are_mixed_as_splitmix64_mixes_them(value: int) -> None:
    assert int(mixed(torch.tensor([value]))[0]) % 2**64 == splitmix(value % 2**64)


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.integers(-600, 600).map(lambda value: value / 100), min_size=2, max_size=9, unique=True),
    temperature=st.floats(0.3, 3),
    top_p=st.floats(0.05, 1),
    seed=st.integers(0, 9),
)
def test_tokens_are_drawn_as_often_as_the_softmax_of_the_likeliest_says(
    logits: list[float], temperature: float, top_p: float, seed: int
) -> None:
    """Within six standard deviations of a binomial."""
    drawn = draw(torch.tensor([logits]).expand(20_000, -1), temperature, top_p, mixed(torch.arange(20_000) + 20_000 * seed))
    found = np.bincount(drawn[:, 0].numpy(), minlength=len(logits)) / 20_000
    share = np.exp(np.array(logits, np.float32).astype(np.float64) / temperature)
    share /= share.sum()
    order = np.argsort(-share, kind="stable")
    before = np.concatenate([[0], np.cumsum(share[order])[:-1]])
    kept = np.where(np.isin(np.arange(len(share)), order[before < top_p - 1e-9]), share, 0)
    also = np.where(np.isin(np.arange(len(share)), order[before < top_p + 1e-9]), share, 0)  # at the very edge both are right
    for each in (kept / kept.sum(), also / also.sum()):
        if (np.abs(found - each) <= 6 * np.sqrt(each * (1 - each) / 20_000)).all():
            return
    raise AssertionError((found, kept, also))


def test_a_nearly_flat_distribution_is_drawn_from_to_its_end() -> None:
    """More tokens than are sorted at first: 2,000 draws of 10,000 tokens are of 1,813 different ones on average."""
    for top_p in (1.0, 0.99):
        logits = torch.zeros(1, 10_000).expand(2000, -1)
        drawn = draw(logits, 1.0, top_p, mixed(torch.arange(2000)))[:, 0].tolist()
        assert 1750 < len(set(drawn)) < 1880
        assert max(drawn) > 9900


def test_rounding_moves_no_draw_but_that_of_a_tie() -> None:
    logits = torch.randn(500, 5000, generator=torch.Generator().manual_seed(0))
    keys = mixed(torch.arange(500))
    moved = logits * (1 + 1e-6 * torch.randn(500, 5000, generator=torch.Generator().manual_seed(1)))
    assert (draw(logits, 1.0, 1.0, keys) == draw(moved, 1.0, 1.0, keys)).sum() >= 499


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=300),
    max_tokens=st.integers(1, 512),
    budget=st.sampled_from([64, 4096, 65_536]),
)
def test_every_prompt_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], max_tokens: int, budget: int) -> None:
    prompts = [prompt_of((1,) * length) for length in lengths]
    batches = list(plan_replies(prompts, max_tokens, budget))
    assert sorted(place for batch in batches for place in batch) == list(range(len(prompts)))
    for batch in batches:
        assert len(batch) <= ROWS_AT_ONCE
        assert len(batch) == 1 or len(batch) * (max(lengths[place] for place in batch) + max_tokens) <= 8 * budget


@pytest.fixture
def request_of(writing_model: Model) -> Request:
    """Thirty utterances that are replied to, in shards of eight."""
    texts = read_corpus("builtin").table["text"].to_pylist()
    short = [row for row, text in enumerate(texts) if len(text) < 200][:30]
    return Request(
        writing_model.name,
        read_corpus("builtin").take(short),
        sites="resid.last,resid.prompt_last,resid.reply",
        template="chat",
        offsets=OFFSETS,
        reply=Decoding(12, 1.0),
        compute_dtype="float32",
        stored_dtype="float32",
        rows_per_shard=8,
    )


def written_run(request: Request, store: Path) -> Run:
    plan = plan_run(request, str(store))
    extract_missing(plan)
    return Run(plan.run)


def test_a_run_keeps_replies_and_the_states_that_plain_transformers_has_along_them(
    request_of: Request, writing_model: Model, tmp_path: Path
) -> None:
    run = written_run(request_of, tmp_path / "store")
    replies = run.replies()
    assert replies["row"].to_pylist() == list(range(30))
    lengths = replies["n_tokens"].to_pylist()
    assert min(lengths) < 8 < max(lengths)
    assert all(ended or length == 12 for ended, length in zip(replies["ended"].to_pylist(), lengths, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(writing_model.directory)
    assert replies["text"].to_pylist() == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in replies["ids"].to_pylist()
    ]
    plain = AutoModel.from_pretrained(writing_model.directory, dtype=torch.float32)
    along, last = run.hidden("resid.reply", 1), run.hidden("resid.prompt_last", 1)
    np.testing.assert_array_equal(along[:, 0], last)
    prompts = run.stored.table("tokens")["ids"].to_pylist()
    for row, (prompt, ids) in enumerate(zip(prompts, replies["ids"].to_pylist(), strict=True)):
        with torch.inference_mode():
            states = plain(torch.tensor([prompt + ids]), output_hidden_states=True).hidden_states[1][0].numpy()
        for place, offset in enumerate(OFFSETS):
            if offset > len(ids):
                assert not along[row, place].any()
            else:
                np.testing.assert_allclose(along[row, place], states[len(prompt) - 1 + offset], atol=1e-4)
    assert verify(run.stored).whole


def test_a_shard_done_again_in_another_store_holds_the_same_bytes(request_of: Request, tmp_path: Path) -> None:
    one, other = (written_run(request_of, tmp_path / name) for name in ("one", "other"))
    assert one.run_id == other.run_id
    digests = [[sorted(entry.sha256 for entry in receipt.objects) for receipt in run.stored.receipts()] for run in (one, other)]
    assert digests[0] == digests[1]


def test_damaged_replies_are_found_and_taken_back(request_of: Request, tmp_path: Path) -> None:
    run = written_run(request_of, tmp_path / "store")
    (damaged,) = (tmp_path / "store" / "runs" / run.run_id / "shards").glob("000002-*/replies.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    verdict = verify(run.stored)
    assert verdict.damaged_shards == [2]
    assert "replies.parquet is damaged" in str(verdict.problems[0])
    with pytest.raises(ValueError, match=r"replies.parquet is damaged: its SHA-256 is not the one that was written"):
        run.replies()


def test_settings_that_have_no_part_in_greedy_decoding_make_no_other_run() -> None:
    assert Decoding(5, 0.0, 0.9, 7).checked() == Decoding(5)
    assert Decoding(5, 0.7, 0.9, 7).checked() == Decoding(5, 0.7, 0.9, 7)


@pytest.mark.parametrize(
    ("decoding", "sentence"),
    [
        (Decoding(0), "a reply of 0 tokens is none; take 1 or more"),
        (Decoding(5, -1.0), "there is no temperature -1; take 0"),
        (Decoding(5, float("nan")), "there is no temperature nan"),
        (Decoding(5, 1.0, 0.0), "top-p 0 is no share"),
        (Decoding(5, 1.0, 1.5), r"top-p 1.5 is no share"),
        (Decoding(5, 1.0, 1.0, -1), "seed -1 is negative"),
        (Decoding(5, 1.0, 1.0, 2**63), "seed 9223372036854775808 is too large"),
    ],
)
def test_impossible_settings_are_refused(decoding: Decoding, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decoding.checked()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"continuation": "And then."}, "a continuation is forced after every prompt and a reply is the model's own"),
        ({"reply": None}, "ask for some with --reply TOKENS"),
        ({"offsets": (0, 13)}, "replies of at most 12 tokens have no token at offset 13"),
        ({"offsets": (-1, 0)}, "replies of at most 12 tokens have no token at offset -1"),
        ({"offsets": ()}, "reply sites and a grid of offsets go together"),
        (
            {"reply": Decoding(WRITING_CONTEXT - 5)},
            r"30 of 30 texts are with 187 for their reply longer than the model's 192 tokens",
        ),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_anything_is_written(
    request_of: Request, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_run(replace(request_of, **change), str(tmp_path / "store"))
    assert not (tmp_path / "store" / "runs").exists()


def test_a_model_without_its_head_cannot_reply(tiny_model: Model, tmp_path: Path) -> None:
    corpus = Corpus("one", pa.table({"utterance_id": ["a"], "text": ["Hello."]}))
    request = Request(tiny_model.name, corpus, reply=Decoding(4), compute_dtype="float32")
    with pytest.raises(ValueError, match=r"lacks 1 of its weights \(first: lm_head.weight\)"):
        plan_run(request, str(tmp_path / "store"))


def test_what_ends_a_reply_is_a_part_of_what_a_run_is(request_of: Request, writing_model: Model, tmp_path: Path) -> None:
    planned = plan_run(request_of, str(tmp_path / "store")).run
    assert planned.manifest.identity.reply_ends == tuple(range(2, 49152, 10))
    other = tmp_path / "model"
    shutil.copytree(writing_model.directory, other)
    settings_file = other / "generation_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"eos_token_id": [2, 12]}))
    again = plan_run(replace(request_of, model=str(other)), str(tmp_path / "store")).run
    assert again.manifest.identity.weights == planned.manifest.identity.weights
    assert again.manifest.identity.reply_ends == (2, 12)
    assert again.run_id != planned.run_id


def test_local_attention_under_another_name_sees_no_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    local = GPTNeoConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=12,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
        initializer_range=0.5,
        eos_token_id=0,
        bos_token_id=0,
    )
    GPTNeoForCausalLM(local).save_pretrained(tmp_path)
    writer = Engine(tmp_path, "float32", "eager", "cpu", writes=True)
    shared = tuple(range(10, 18))
    prompts = [prompt_of((*shared, *range(20, 20 + n))) for n in (1, 14, 3, 9)]
    assert writer.write(prompts, Decoding(8)) == [writer.write([prompt], Decoding(8))[0] for prompt in prompts]


def test_a_run_without_replies_says_so(request_of: Request, tmp_path: Path) -> None:
    run = written_run(replace(request_of, reply=None, sites="resid.last", offsets=()), tmp_path / "store")
    with pytest.raises(ValueError, match="keeps no replies; extract one with --reply TOKENS"):
        run.replies()
