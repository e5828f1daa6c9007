"""A model's answers: what is asked, which replies count, and the scores of made-up replies against scikit-learn."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score
from transformers import AutoTokenizer, BertConfig, BertModel

from analyze import results
from analyze.examples import labelled_examples, split_examples
from analyze.fitting import read_probabilities
from analyze.probes import Probed, probe_layers
from analyze.query import Run
from analyze.scores import mean_interval
from analyze.states import states_in
from analyze.zeroshot import ZeroShotResult, measure_zero_shot, read_answer, zero_shot_request
from extract.corpus import Corpus
from extract.decoding import Decoding, Reply, replies_table
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store
from tests.analyze.conftest import Plant
from tests.planted import IDENTITY, manifest_of, receipt_of

EMOTIONS = ("fear", "joy", "neutral")
MESSAGE = (
    "Classify the emotion of the text. Labels: fear, joy, neutral.\n"
    'Answer only with JSON such as {"emotion": "<label>"}.\n\nText: %s\nJSON:'
)


@pytest.mark.parametrize(
    "reply",
    [
        '{"emotion": "joy"}',
        '  {"emotion":" JOY\\n"} and so on {"emotion": "fear"}',
        'Sure!\n```json\n{\n  "emotion": "joy"\n}\n```',
        '{"why": {"emotion": "fear"}, "emotion": "joy", "sure": 1e999}',
        '{"emotion": "\\u006aoy"}',
        '{so {"emotion": "joy"}',
    ],
)
def test_the_first_json_object_says_the_emotion_whatever_stands_around_it(reply: str) -> None:
    assert read_answer(reply) == "joy"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "joy",
        '"emotion": "joy"',
        "{'emotion': 'joy'}",
        '{"emotion": "joy"',
        '{"Emotion": "joy"}',
        '{"emotion": ["joy"]}',
        '{"emotion": {"emotion": "joy"}}',
        '{"emotion": "joy", "emotion": "joy"}',
        '{"emotion": 7}',
        '{"emotion": null}',
        '{} {"emotion": "joy"}',
        '{"answer": {"emotion": "joy"}}',
        '{"emotion": NaN}',
        '{"n": ' + "9" * 10_000 + "}",
        '{"a": ' * 5_000 + "1" + "}" * 5_000,
        '{"a": ' * 3_000,
    ],
)
def test_a_reply_without_one_emotion_in_its_first_json_object_names_none(reply: str) -> None:
    assert read_answer(reply) is None


_junk = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["emotion", "", "a"]) | st.text(), inner),
    max_leaves=8,
)
_pieces = st.sampled_from(["{", "}", '"', ":", ",", "[", "\\", '"emotion"', '"joy"', "```", "\n", "\ud800", "1e9", "-"])


@settings(max_examples=200)
@given(reply=_junk.map(json.dumps) | st.lists(_pieces | st.text(max_size=3), max_size=20).map("".join))
def test_whatever_is_replied_is_read_without_an_error(reply: str) -> None:
    answer = read_answer(reply)
    assert answer is None or ("{" in reply and isinstance(answer, str))


@given(
    answer=st.text(),
    others=st.dictionaries(st.text().filter(lambda key: key != "emotion"), _junk, max_size=3),
    before=st.text().filter(lambda text: "{" not in text),
    after=st.text(),
)
def test_any_text_can_be_the_answer_beside_any_other_keys(
    answer: str, others: dict[str, object], before: str, after: str
) -> None:
    pairs = [*others.items(), ("emotion", answer)]
    try:
        written = json.dumps(dict(pairs), allow_nan=False)
    except ValueError:  # NaN and infinity are no JSON
        return
    assert read_answer(f"{before}{written}{after}") == answer.strip().casefold()


N_PAIRS = 30


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    """Situations told twice, of three emotions; layer 1 says which, layer 0 nothing."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3 * N_PAIRS) % 3, 2)
    states = np.stack([rng.standard_normal((len(truth), 8)), rng.standard_normal((len(truth), 8)) + np.eye(3, 8)[truth]])
    columns = {"label": [EMOTIONS[label] for label in truth], "pair_id": [f"p{row // 2}" for row in range(len(truth))]}
    return plant(states.astype(np.float32), columns)


@pytest.fixture(scope="module")
def probed(run: Run) -> Probed:
    return probe_layers(run, "resid.last", run.layers)


def rows_tested(run: Run) -> list[int]:
    examples = labelled_examples(run)
    return [int(row) for row in examples.rows[split_examples(examples).test]]


def replied_run(run: Run, rows: Sequence[int], replies: Sequence[str], store: Path) -> Run:
    """A run that keeps these replies to some of the run's utterances."""
    site, n_rows = "resid.prompt_last", len(rows)
    identity = replace(IDENTITY, sites=(site,), layers=(0,), reply=Decoding(24), template="say what\nHow? {{ text }}")
    manifest = replace(manifest_of(identity, n_rows, 2, n_rows), template="say what")
    utterances = run.utterances().take(pa.array(rows)).drop_columns(["row"])
    utterances = utterances.add_column(0, "row", pa.array(range(n_rows)))
    tokens = pa.table({"row": range(n_rows), "truncated": [row == 0 for row in range(n_rows)]})
    stored = Store.open(str(store), create=True).create_run(manifest, {"utterances": utterances, "tokens": tokens})
    table = replies_table(0, [Reply((), ended=True)] * n_rows, replies)
    written = stored.write_attempt(0, {site: np.zeros((1, n_rows, 2), np.float32)}, (), table)
    assert stored.commit(receipt_of(stored, 0, 0, written))
    return Run(stored)


def answered(run: Run, answers: Sequence[str | None], store: Path, probed: Probed | None = None) -> ZeroShotResult:
    replies = ["I cannot say" if answer is None else json.dumps({"emotion": answer}) for answer in answers]
    return measure_zero_shot(run, replied_run(run, rows_tested(run), replies, store), probed)


def labels_of(run: Run) -> list[str]:
    return [run.utterances()["label"][row].as_py() for row in rows_tested(run)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), skill=st.floats(0, 1), silent=st.sampled_from([0.0, 0.3, 1.0]))
def test_scores_equal_those_of_scikit_learn_with_an_invalid_answer_as_one_more_wrong_name(
    run: Run, tmp_path_factory: pytest.TempPathFactory, seed: int, skill: float, silent: float
) -> None:
    rng, truth = np.random.default_rng(seed), labels_of(run)
    said = [name if rng.random() < skill else EMOTIONS[rng.integers(3)] for name in truth]
    answers = ["no such label" if rng.random() < silent else name.upper() for name in said]
    result = answered(run, answers, tmp_path_factory.mktemp("store"))
    read = [answer.lower() for answer in answers]
    names = [*EMOTIONS, "no such label"]
    assert result.classes == EMOTIONS
    assert result.accuracy.value == pytest.approx(accuracy_score(truth, read))
    assert result.macro_f1.value == pytest.approx(f1_score(truth, read, labels=EMOTIONS, average="macro", zero_division=0))
    assert result.macro_f1.low <= result.macro_f1.value <= result.macro_f1.high
    recalls = recall_score(truth, read, labels=EMOTIONS, average=None)
    assert [recall.value for recall in result.recall] == pytest.approx(recalls.tolist())
    assert result.confusion == tuple(map(tuple, confusion_matrix(truth, read, labels=names)[:-1].tolist()))
    valid = [place for place, name in enumerate(read) if name in EMOTIONS]
    assert result.coverage.value == pytest.approx(len(valid) / len(truth))
    if valid:
        assert result.accuracy_of_valid is not None
        of_valid = accuracy_score([truth[place] for place in valid], [read[place] for place in valid])
        assert result.accuracy_of_valid.value == pytest.approx(of_valid)
        assert result.accuracy_of_valid.low < result.accuracy_of_valid.high
    else:
        assert result.accuracy_of_valid is None


def test_situations_and_not_utterances_make_the_intervals(run: Run, tmp_path: Path) -> None:
    truth = labels_of(run)
    pairs_right = [name if place // 2 % 2 else None for place, name in enumerate(truth)]
    one_of_each = [name if place % 2 else None for place, name in enumerate(truth)]
    together, apart = (answered(run, each, tmp_path / name) for each, name in ((pairs_right, "a"), (one_of_each, "b")))
    assert together.n_utterances == 2 * together.n_situations == len(truth)
    assert together.accuracy.value == pytest.approx(apart.accuracy.value, abs=0.06)
    width = together.accuracy.high - together.accuracy.low
    assert width > 1.2 * (apart.accuracy.high - apart.accuracy.low)


def test_a_probe_is_held_against_the_answers_on_the_same_utterances(run: Run, probed: Probed, tmp_path: Path) -> None:
    truth = np.array(labels_of(run))
    rng = np.random.default_rng(3)
    answers = [None if rng.random() < 0.3 else EMOTIONS[rng.integers(3)] for _ in truth]
    result = answered(run, answers, tmp_path, probed)
    beside = result.beside
    assert beside is not None
    assert (beside.site, beside.layer) == ("resid.last", probed.result.best_layer)
    assert beside.accuracy == probed.result.best.test.accuracy
    rows = rows_tested(run)
    states = states_in(run.hidden("resid.last", beside.layer)[rows])
    (said,) = read_probabilities(states, [(probed.probes[beside.layer], np.arange(len(rows)))])
    probe_right = np.array(EMOTIONS)[said.argmax(axis=1)] == truth
    model_right = np.array([answer == name for answer, name in zip(answers, truth, strict=True)])
    valid = np.array([answer is not None for answer in answers])
    groups = np.array(rows) // 2
    differences = probe_right.astype(float) - model_right
    assert beside.difference == mean_interval(differences, groups)
    assert beside.difference_of_valid == mean_interval(differences[valid], groups[valid])
    assert beside.accuracy_of_valid is not None
    assert beside.accuracy_of_valid.value == pytest.approx(probe_right[valid].mean())
    results.save(run, result)
    assert results.zero_shots(run) == [result]


def test_a_model_that_never_answers_has_no_accuracy_of_valid_answers(run: Run, probed: Probed, tmp_path: Path) -> None:
    result = answered(run, [None] * len(rows_tested(run)), tmp_path, probed)
    assert (result.coverage.value, result.accuracy.value, result.macro_f1.value) == (0, 0, 0)
    assert result.coverage.high > 0
    assert result.accuracy_of_valid is None
    assert result.beside is not None
    assert result.beside.difference_of_valid is None
    assert result.beside.difference.value == pytest.approx(result.beside.accuracy.value)
    assert result.invalid_replies == (("I cannot say", len(rows_tested(run))),)
    assert (result.prompt, result.n_truncated) == ("How? {{ text }}", 1)


def test_replies_to_other_utterances_are_refused(run: Run, tmp_path: Path) -> None:
    rows = rows_tested(run)
    asked = replied_run(run, [*rows[1:], 0 if rows[0] else 1], ["joy"] * len(rows), tmp_path)
    with pytest.raises(ValueError, match="does not hold replies to the test utterances"):
        measure_zero_shot(run, asked)


def corpus_of(labels: Sequence[str | None]) -> Corpus:
    texts = [f"This is {index} of {label}" for index in range(6) for label in labels]
    return Corpus("made", pa.table({"utterance_id": texts, "text": texts, "label": list(labels) * 6}))


def run_of(model: Model, store: Path, corpus: Corpus | None = None, template: str = "raw", system: str = "") -> Run:
    asked = corpus or corpus_of(EMOTIONS)
    request = Request(model.name, asked, "resid.last", "1", template, system, compute_dtype="float32")
    plan = plan_run(request, str(store))
    extract_missing(plan)
    return Run(plan.run)


def asked_run(run: Run, store: Path, max_tokens: int = 4) -> Run:
    plan = plan_run(zero_shot_request(run, max_tokens), str(store))
    extract_missing(plan)
    return Run(plan.run)


def without_chat_template(model: Model, directory: Path) -> Model:
    shutil.copytree(model.directory, directory)
    (directory / "chat_template.jinja").unlink()
    return Model(str(directory), directory)


def test_the_question_goes_through_the_models_own_chat_template(writing_model: Model, tmp_path: Path) -> None:
    run = run_of(writing_model, tmp_path / "store", template="chat", system="You are calm.")
    asked = asked_run(run, tmp_path / "store")
    tokenizer = AutoTokenizer.from_pretrained(writing_model.directory)
    rows = rows_tested(run)
    assert asked.utterances()["text"].to_pylist() == [run.utterances()["text"][row].as_py() for row in rows]
    for text, ids in zip(asked.utterances()["text"].to_pylist(), asked.stored.table("tokens")["ids"].to_pylist(), strict=True):
        messages = [{"role": "system", "content": "You are calm."}, {"role": "user", "content": MESSAGE % text}]
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    result = measure_zero_shot(run, asked)
    assert result.n_utterances == len(rows)
    assert result.prompt.count("{{ text }}") == 1
    assert MESSAGE % "{{ text }}" in result.prompt


def test_a_model_without_a_chat_template_is_asked_in_plain_text(writing_model: Model, tmp_path: Path) -> None:
    run = run_of(without_chat_template(writing_model, tmp_path / "base"), tmp_path / "store")
    asked = asked_run(run, tmp_path / "store")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    texts = asked.utterances()["text"].to_pylist()
    assert [tokenizer.decode(ids) for ids in asked.stored.table("tokens")["ids"].to_pylist()] == [
        MESSAGE % text for text in texts
    ]
    assert measure_zero_shot(run, asked).prompt == MESSAGE % "{{ text }}"


def test_labels_are_listed_as_they_are_whatever_braces_they_have(writing_model: Model, tmp_path: Path) -> None:
    labels = ("{% raw %}", "{{ joy }}", "{# no #}")
    run = run_of(writing_model, tmp_path / "store", corpus_of(labels))
    assert f"Labels: {', '.join(sorted(labels))}." in measure_zero_shot(run, asked_run(run, tmp_path / "store")).prompt


def test_a_model_that_could_think_first_is_told_not_to(writing_model: Model, tmp_path: Path) -> None:
    model = without_chat_template(writing_model, tmp_path / "thinking")
    jinja = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    (model.directory / "chat_template.jinja").write_text(jinja)
    run = run_of(model, tmp_path / "store")
    assert measure_zero_shot(run, asked_run(run, tmp_path / "store")).prompt == MESSAGE % "{{ text }}" + "<think></think>"


def test_long_utterances_are_cut_and_counted(writing_model: Model, tmp_path: Path) -> None:
    corpus = corpus_of(EMOTIONS)
    texts = [f"{text} " + "again and " * 68 for text in corpus.table["text"].to_pylist()]
    long = Corpus("long", corpus.table.set_column(1, "text", pa.array(texts)))
    run = run_of(writing_model, tmp_path / "store", long)
    result = measure_zero_shot(run, asked_run(run, tmp_path / "store"))
    assert result.n_truncated == result.n_utterances


def test_what_cannot_be_asked_is_refused_in_a_sentence(tiny_model: Model, tmp_path: Path) -> None:
    unlabelled = run_of(tiny_model, tmp_path / "store", Corpus("bare", corpus_of(EMOTIONS).table.drop_columns(["label"])))
    with pytest.raises(ValueError, match="has no column 'label', which this analysis needs"):
        zero_shot_request(unlabelled)
    alike = run_of(tiny_model, tmp_path / "store", corpus_of(["Joy", "joy ", "fear"]))
    with pytest.raises(ValueError, match="labels 'Joy' and 'joy ' differ in case or blanks alone"):
        zero_shot_request(alike)


def test_a_model_that_changed_is_not_asked(writing_model: Model, tmp_path: Path) -> None:
    model = without_chat_template(writing_model, tmp_path / "changed")
    run = run_of(model, tmp_path / "store")
    path = model.directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="so another model would answer; extract the run anew first"):
        zero_shot_request(run)


def test_an_encoder_and_a_model_without_its_head_say_that_they_cannot_reply(
    tiny_model: Model, writing_model: Model, tmp_path: Path
) -> None:
    headless = run_of(without_chat_template(tiny_model, tmp_path / "headless"), tmp_path / "store")
    directory = tmp_path / "encoder"
    shutil.copytree(without_chat_template(writing_model, tmp_path / "base").directory, directory)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=49152, max_position_embeddings=192, **sizes)).save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    encoder = run_of(Model(str(directory), directory), tmp_path / "store")
    for run in (headless, encoder):
        with pytest.raises(ValueError, match="has no head that predicts the next token, so it cannot reply"):
            asked_run(run, tmp_path / "store")
