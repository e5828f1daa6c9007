"""System prompts: what is asked for, what the chat template makes of it, and a real, tiny model from end to end."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from analyze import results
from analyze.examples import labelled_examples
from analyze.mapping import Item, ignore
from analyze.mapping import Result as Mapped
from analyze.prompting import (
    SYSTEM_PROMPTS,
    Condition,
    PromptingPlan,
    PromptingResult,
    chosen_conditions,
    measure_prompting,
    n_steps,
    plan_prompting,
    quartiles,
    written_before,
)
from analyze.query import Run
from analyze.scores import mean_interval
from extract.corpus import Corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run

EMOTIONS = ("fear", "joy", "neutral")
WORDS = {"fear": "afraid dark trembling", "joy": "glad sunny laughing", "neutral": "a table with legs"}
DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def corpus_of(n_situations: int) -> Corpus:
    """Each situation told twice."""
    rows = [
        {
            "utterance_id": f"{name}-{index}-{telling}",
            "text": f"{telling} {index} {WORDS[name]}",
            "label": name,
            "pair_id": f"{name}-{index}",
        }
        for index in range(n_situations)
        for name in EMOTIONS
        for telling in ("one", "two")
    ]
    return Corpus("small", pa.Table.from_pylist(rows))


def extracted(request: Request, location: str) -> Run:
    plan = plan_run(request, location)
    extract_missing(plan)
    return Run(plan.run)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("prompting") / "store")


@pytest.fixture(scope="module")
def run(writing_model: Model, store: str) -> Run:
    request = Request(writing_model.name, corpus_of(14), layers="1", compute_dtype="float32", stored_dtype="float32")
    return extracted(request, store)


@pytest.fixture(scope="module")
def plan(run: Run) -> PromptingPlan:
    return plan_prompting(run, chosen_conditions([]), (1, 2), 6, 12)


@pytest.fixture(scope="module")
def prompted(plan: PromptingPlan, store: str) -> list[Run]:
    return [extracted(request, store) for request in plan.requests]


@pytest.fixture(scope="module")
def result(run: Run, plan: PromptingPlan, prompted: list[Run]) -> PromptingResult:
    return measure_prompting(run, plan, prompted)


def test_every_condition_is_the_same_sample_with_its_own_system_prompt(plan: PromptingPlan, writing_model: Model) -> None:
    assert [condition.name for condition in plan.conditions] == ["none", "emotional", "composed"]
    tokenizer = AutoTokenizer.from_pretrained(writing_model.directory)
    for condition, request in zip(plan.conditions, plan.requests, strict=True):
        assert request.corpus.table.equals(plan.requests[0].corpus.table)
        assert (request.template, request.system) == ("chat", SYSTEM_PROMPTS[condition.name])
        messages = [{"role": "user", "content": "Hello."}]
        if condition.system:
            messages.insert(0, {"role": "system", "content": condition.system})
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert str(whole).startswith(f"{condition.before}Hello.")
    assert plan.default_system == DEFAULT
    assert DEFAULT in plan.conditions[0].before
    assert DEFAULT not in plan.conditions[1].before


def test_a_real_model_is_measured_under_every_condition(
    run: Run, plan: PromptingPlan, prompted: list[Run], result: PromptingResult
) -> None:
    names = [condition.name for condition in plan.conditions]
    assert (result.run_id, result.classes, result.n_utterances, result.n_situations) == (run.run_id, EMOTIONS, 18, 18)
    assert result.run_ids == tuple(each.run_id for each in prompted)
    places = [(site, layer) for site in ("resid.last", "resid.prompt_last") for layer in (1, 2)]
    assert [(entry.site, entry.layer, entry.condition) for entry in result.readings] == [
        (*place, name) for place in places for name in names
    ]
    pairs = [("none", "emotional"), ("none", "composed"), ("emotional", "composed")]
    assert [(entry.site, entry.layer, entry.start, entry.end) for entry in result.shifts] == [
        (*place, *pair) for place in places for pair in pairs
    ]
    for place in result.along:
        lengths = np.array(prompted[names.index(place.condition)].replies()["n_tokens"].to_pylist())
        assert place.n_utterances == (lengths >= place.offset).sum()
    assert {place.offset for place in result.along} == {1, 4}
    for entry, each in zip(result.replies, prompted, strict=True):
        replies = each.replies()
        assert entry.n_tokens.value == pytest.approx(np.mean(replies["n_tokens"].to_pylist()))
        assert entry.ended.value == pytest.approx(np.mean(replies["ended"].to_pylist()))
        assert sum(share.value for share in entry.probability) == pytest.approx(1)
    assert result.chance == pytest.approx(1 / 3)


def test_a_bag_of_words_learns_from_situations_that_were_not_sampled_and_reads_the_replies(
    run: Run, prompted: list[Run], result: PromptingResult
) -> None:
    sampled = prompted[0].utterances()
    kept = [row for row in run.utterances().to_pylist() if row["pair_id"] not in sampled["pair_id"].to_pylist()]
    assert result.n_words_fitted == len(kept) == 2 * 3 * (14 - 6)
    vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer=lambda text: re.findall(r"\w+", text.lower()))
    features = vectorizer.fit_transform([row["text"] for row in kept])
    model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000).fit(features, [row["label"] for row in kept])
    truth, groups = np.array(sampled["label"].to_pylist()), labelled_examples(prompted[0]).groups
    said = [model.predict_proba(vectorizer.transform(each.replies()["text"].to_pylist())) for each in prompted]
    for entry, said_NK in zip(result.replies, said, strict=True):
        right = model.classes_[said_NK.argmax(axis=1)] == truth
        first = model.classes_[said[0].argmax(axis=1)] == truth
        assert entry.accuracy.value == right.mean()
        assert entry.accuracy_change.value == pytest.approx(mean_interval(right.astype(float) - first, groups).value)
        assert [share.value for share in entry.probability] == pytest.approx(said_NK.mean(axis=0).tolist())
        moved = [mean_interval(change, groups) for change in (said_NK - said[0]).T]
        assert [share.low for share in entry.probability_change] == pytest.approx([each.low for each in moved])
    assert result.words_accuracy.value == 1  # the words of an emotion are the same in all of its utterances


def through_pickle(
    function: Callable[[Item], Mapped], items: Sequence[Item], on_done: Callable[[int], None] = ignore
) -> list[Mapped]:
    """What a mapper in another process does."""
    copied = ForkingPickler.loads(ForkingPickler.dumps(function))
    done = [copied(item) for item in reversed(items)]
    on_done(len(done))
    return done[::-1]


def test_another_mapper_finds_the_same_numbers_and_they_are_read_back_as_they_were(
    run: Run, plan: PromptingPlan, prompted: list[Run], result: PromptingResult
) -> None:
    amounts: list[int] = []
    assert measure_prompting(run, plan, prompted, amounts.append, through_pickle) == result
    assert sum(amounts) == n_steps((1, 2))
    results.save(run, result)
    results.save(run, result)
    assert results.promptings(run) == [result]


def test_where_a_condition_is_the_same_run_nothing_changes(run: Run, plan: PromptingPlan, prompted: list[Run]) -> None:
    found = measure_prompting(run, plan, [prompted[0]] * 3)
    for shift in found.shifts:
        assert shift.distance is not None
        assert (shift.distance.high, shift.p_value) == (0, 1)
        assert all(move.low == move.high == 0 for move in shift.moves)
    assert all(reading.change.high == reading.loss.high == 0 for reading in found.readings)
    assert found.replies[0] == replace(found.replies[1], condition="none")


def test_conditions_are_built_in_or_the_users_own() -> None:
    assert chosen_conditions(["composed", "mine=Be kind = good."]) == (
        Condition("none", ""),
        Condition("composed", SYSTEM_PROMPTS["composed"]),
        Condition("mine", "Be kind = good."),
    )
    assert chosen_conditions([]) == tuple(Condition(name, system) for name, system in SYSTEM_PROMPTS.items())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["calm"], r"there is no system prompt 'calm'; choose from none, emotional, composed, or write NAME=TEXT"),
        (["none=Be."], "cannot read the system prompt 'none=Be.'"),
        (["a b=Be."], "write NAME=TEXT, the name of letters, digits and dashes"),
        (["mine= "], "cannot read the system prompt 'mine= '"),
        (["mine=Be.", "mine=Become."], "two system prompts have one name"),
        (["none"], "nothing to hold against none"),
    ],
)
def test_conditions_that_cannot_be_are_refused(asked: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chosen_conditions(asked)


def test_quartiles_are_layers_of_the_model_and_never_the_embedding() -> None:
    assert quartiles(30) == (8, 15, 22, 30)
    assert quartiles(28) == (7, 14, 21, 28)
    assert [quartiles(n_layers) for n_layers in (1, 2, 3)] == [(1,), (1, 2), (1, 2, 3)]


@pytest.fixture(scope="module")
def tokenizer(writing_model: Model) -> PreTrainedTokenizerBase:
    """Gets other chat templates."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(writing_model.directory)
    return loaded


def written_by(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[list[str], str]:
    """What stands before an utterance under none and a system prompt, and the default one, by some chat template."""
    tokenizer.chat_template = template
    conditions = (Condition("none", ""), Condition("brief", "Be brief."))
    written, default = written_before("a model", tokenizer, conditions, "2024-07-26")
    return [condition.before for condition in written], default


def turns(system: str) -> str:
    """A chat template that writes `system` where there is a system prompt."""
    return (
        "{% for message in messages %}{% if message['role'] == 'system' %}" + system + "{% else %}"
        "<user>{{ message['content'] }}</user>{% endif %}{% endfor %}<assistant>"
    )


INTO_THE_FIRST = (
    "{% set said = messages[0]['content'] if messages[0]['role'] == 'system' else DEFAULT %}<system>{{ said }}</system>"
    + turns("")
)
"""A chat template that writes a system prompt in any case."""


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "^a model has no chat template, so there is no place for a system prompt; take a model tuned to chat$"),
        (turns(""), r"takes no system prompt \(template 'chat' does not write the system prompt"),
        (
            turns("{{ raise_exception('No system role.') }}"),
            r"takes no system prompt \(the template cannot be rendered: No sys",
        ),
        (
            "<user>{{ messages[-1]['content'] }}{% if messages[1] is defined %}{{ messages[0]['content'] }}{% endif %}",
            "writes the system prompt after the utterance; take another model",
        ),
        (
            INTO_THE_FIRST.replace("DEFAULT", "'Be brief.'"),
            "^system prompt 'brief' is what a model is given by its chat template under",
        ),
    ],
    ids=["none", "left out", "refused", "behind", "the same"],
)
def test_a_chat_template_without_a_place_for_a_system_prompt_is_refused(
    tokenizer: PreTrainedTokenizerBase, template: str | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        written_by(tokenizer, template)


@pytest.mark.parametrize(
    ("template", "before", "default"),
    [
        (turns("<system>{{ message['content'] }}</system>"), ["<user>", "<system>Be brief.</system><user>"], ""),
        (turns("{{ message['content'] }}\n"), ["<user>", "Be brief.\n<user>"], ""),
        (
            INTO_THE_FIRST.replace("DEFAULT", "'Be good.'"),
            ["<system>Be good.</system><user>", "<system>Be brief.</system><user>"],
            "Be good.",
        ),
        (INTO_THE_FIRST.replace("DEFAULT", "''"), ["<system></system><user>", "<system>Be brief.</system><user>"], ""),
        (
            "<user>{{ messages | map(attribute='content') | join('; ') }}</user>",
            ["<user>", "<user>Be brief.; "],
            "",
        ),
    ],
    ids=["a turn", "bare", "default", "empty", "in the user's turn"],
)
def test_what_a_template_writes_when_no_system_prompt_is_given_is_told(
    tokenizer: PreTrainedTokenizerBase, template: str, before: list[str], default: str
) -> None:
    assert written_by(tokenizer, template) == (before, default)


def test_a_sample_that_leaves_too_little_to_learn_words_from_is_refused(run: Run) -> None:
    with pytest.raises(
        ValueError, match=r"label 'fear' has 4 situations besides the sampled ones, .*sample fewer with --per-label"
    ):
        plan_prompting(run, chosen_conditions([]), (1,), 10, 4)
    with pytest.raises(ValueError, match="4 utterances of each label are too few; take 5 or more"):
        plan_prompting(run, chosen_conditions([]), (1,), 4, 4)
    with pytest.raises(ValueError, match="a reply of 0 tokens is none"):
        plan_prompting(run, chosen_conditions([]), (1,), 5, 0)


def test_a_run_without_labels_and_a_model_without_a_head_are_refused(
    writing_model: Model, tiny_model: Model, store: str, tmp_path: Path
) -> None:
    bare = Corpus("bare", corpus_of(6).table.drop_columns(["label"]))
    run = Run(plan_run(Request(writing_model.name, bare, layers="1", compute_dtype="float32"), store).run)
    with pytest.raises(ValueError, match="has no column 'label', which this analysis needs"):
        plan_prompting(run, chosen_conditions([]), (1,), 5, 4)
    headless = Run(plan_run(Request(tiny_model.name, corpus_of(12), layers="1", compute_dtype="float32"), store).run)
    first = plan_prompting(headless, [Condition("none", ""), Condition("brief", "Hi.")], (1,), 5, 4).requests[0]
    with pytest.raises(ValueError, match=r"lacks 1 of its weights \(first: lm_head.weight\)"):
        plan_run(first, str(tmp_path / "store"))
