"""Ask the model itself: which emotion is this? Its answers on the very utterances that its probes are scored on.

As in arXiv 2510.04064 the labels are listed in the prompt, the answer is asked for as JSON and the likeliest tokens are taken.
A reply is a valid answer where the first JSON object in it names one of the labels. The paper scored valid answers only, so
that a model which answers seldom is scored on what it finds easy; here accuracy is over all utterances, an invalid answer
being wrong, and the paper's way stands beside it. Comparing the probabilities of the labels as continuations was rejected: it
is another question than the paper's, and what it finds depends on how many tokens a label has.

Shape suffixes: N utterances, K classes, A answers (the classes and none).
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.examples import Examples, labelled_examples, split_examples
from analyze.extracting import same_way
from analyze.fitting import read_probabilities
from analyze.probes import Probed, ProbeSpec
from analyze.query import Run
from analyze.scores import Interval, difference_interval, macro_f1_interval, share_interval
from analyze.states import states_of
from extract.corpus import Corpus
from extract.decoding import Decoding
from extract.loading import load_tokenizer
from extract.models import find_model
from extract.request import Request

MAX_TOKENS = 24
"""Tokens of an answer: enough for the JSON with a label of a few words."""

_QUESTION = """Classify the emotion of the text. Labels: %s.
Answer only with JSON such as {"emotion": "<label>"}.

Text: """
_ENDS_IN = "\nJSON:"
_KEY = "emotion"
_CHEAPEST_SITE, _CHEAPEST_LAYER = "resid.prompt_last", "0"  # a run keeps states; those of layer 0 take no pass
_N_SHOWN = 5
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class ProbeBeside:
    """A probe of the same run on the same utterances: the model's state held against its answer."""

    site: str
    """Where the probe reads."""
    spec: ProbeSpec
    """Which probe."""
    layer: int
    """The layer it reads: the best by cross-validation inside the training split."""
    accuracy: Interval
    """The probe's, on every utterance that was asked about."""
    difference: Interval
    """The probe's accuracy less the zero-shot accuracy over all; paired by utterance."""
    accuracy_of_valid: Interval | None
    """The probe's, on the utterances with a valid answer; None where there are none."""
    difference_of_valid: Interval | None
    """The probe's accuracy less the zero-shot accuracy on the utterances with a valid answer; None where there are none."""


@dataclass(frozen=True, slots=True)
class ZeroShotResult:
    """What a run's model answers when it is asked."""

    run_id: str
    """The run whose test utterances it was asked about."""
    asked_run_id: str
    """The run that keeps its replies."""
    prompt: str
    """The prompt, with `{{ text }}` where the utterance stands."""
    max_tokens: int
    """Most tokens of a reply."""
    classes: tuple[str, ...]
    """The labels, in the order in which the prompt lists them and of every matrix here."""
    n_utterances: int
    """Utterances it was asked about: the test side of the split."""
    n_situations: int
    """Situations they tell; intervals are over these."""
    n_truncated: int
    """Those of them that lost tokens, for the prompt was longer than the model's context."""
    split: str
    """How the split was made."""
    chance: float
    """Accuracy of always naming the commonest class of the training split."""
    coverage: Interval
    """Share of utterances with a valid answer."""
    accuracy: Interval
    """Share of all utterances whose answer is valid and true."""
    accuracy_of_valid: Interval | None
    """Share of valid answers that are true, which is how arXiv 2510.04064 counts; None where there are none."""
    macro_f1: Interval
    """Mean over classes of the F1 score, over all utterances."""
    recall: tuple[Interval, ...]
    """For each class the share of its utterances that were given it."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of utterances by true class (rows) and answer (columns); the last column is for invalid answers."""
    invalid_replies: tuple[tuple[str, int], ...]
    """The commonest replies without a valid answer, as they begin, and how often each was given."""
    beside: ProbeBeside | None
    """A probe on the same utterances; None where none was kept."""


def zero_shot_request(run: Run, max_tokens: int = MAX_TOKENS) -> Request:
    """What to extract so that the run's model is asked about the utterances that its probes are scored on.

    A system prompt that the run has is kept. An utterance that does not fit into the context beside the question is cut.

    Raises:
        ValueError: the run has no usable labels, or labels that differ in case alone; or its model is not what it was.
    """
    examples = labelled_examples(run)
    _by_answer(examples.classes)
    table = run.utterances()
    rows = examples.rows[split_examples(examples).test]
    corpus = Corpus(f"{run.run_id} test", table.drop_columns(["row", "n_tokens"])).take(rows.tolist())
    request = same_way(run, corpus, _CHEAPEST_SITE, _CHEAPEST_LAYER)
    template = _template(examples.classes, _has_chat_template(run, request.model), bool(request.system))
    return replace(request, template=template, reply=Decoding(max_tokens), truncate=True)


def measure_zero_shot(run: Run, asked: Run, probed: Probed | None = None) -> ZeroShotResult:
    """Score a model's answers.

    Args:
        run: the run whose model was asked.
        asked: a run made from `zero_shot_request`.
        probed: probes of the run and their scores, to hold the answers against.

    Raises:
        ValueError: the run of replies is not complete, or is of other utterances.
    """
    replies = asked.replies()["text"].to_pylist()
    examples = labelled_examples(run)
    split = split_examples(examples)
    tested = examples.take(split.test)
    _check_same_utterances(run, asked, tested)
    classes, truth_N, groups_N = examples.classes, examples.truth[split.test], tested.groups
    n_classes, place = len(classes), _by_answer(classes)
    answer_N = np.array([place.get(read_answer(reply) or "", n_classes) for reply in replies])
    valid_N, right_N = answer_N < n_classes, answer_N == truth_N
    commonest = int(np.bincount(examples.truth[~split.test]).argmax())
    manifest = asked.manifest
    assert manifest.identity.reply is not None, "it has replies"
    return ZeroShotResult(
        run_id=run.run_id,
        asked_run_id=asked.run_id,
        prompt=manifest.identity.template.removeprefix(f"{manifest.template}\n"),
        max_tokens=manifest.identity.reply.max_tokens,
        classes=classes,
        n_utterances=len(truth_N),
        n_situations=len(np.unique(groups_N)),
        n_truncated=sum(asked.stored.table("tokens")["truncated"].to_pylist()),
        split=split.made,
        chance=float(np.mean(truth_N == commonest)),
        coverage=share_interval(valid_N, groups_N),
        accuracy=share_interval(right_N, groups_N),
        accuracy_of_valid=share_interval(right_N[valid_N], groups_N[valid_N]) if valid_N.any() else None,
        macro_f1=macro_f1_interval(truth_N, answer_N, n_classes, groups_N),
        recall=tuple(share_interval(right_N[truth_N == k], groups_N[truth_N == k]) for k in range(n_classes)),
        confusion=_confusion(truth_N, answer_N, n_classes),
        invalid_replies=_commonest([reply for reply, valid in zip(replies, valid_N, strict=True) if not valid]),
        beside=None if probed is None else _beside(run, probed, tested, right_N, valid_N),
    )


def read_answer(reply: str) -> str | None:
    """The emotion that a reply names, casefolded and without blanks around it; None where it names none.

    It is the text under `emotion`, which must be there once, in the first JSON object of the reply. What stands around the
    object, such as a fence of three backticks, does not count. What begins like an object and is not one, cut short or
    otherwise no JSON, is passed over; an object inside of an object is a part of that.
    """
    pairs = _first_object(reply)
    named = [value for key, value in pairs or () if key == _KEY]
    if len(named) != 1 or not isinstance(named[0], str):
        return None
    return _comparable(named[0])


_Pairs = list[tuple[str, object]]


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=lambda pairs: pairs,  # a key given twice must be seen
    parse_int=lambda _: None,  # thousands of digits take Python long, or it refuses them
    parse_float=lambda _: None,
    parse_constant=_no_constant,
)


def _first_object(reply: str) -> _Pairs | None:
    for brace in re.finditer(r"\{", reply):
        try:
            pairs: _Pairs = _DECODER.raw_decode(reply, brace.start())[0]
        except ValueError:
            continue
        except RecursionError:  # a thousand objects inside of each other
            return None
        return pairs
    return None


def _comparable(label: str) -> str:
    return label.strip().casefold()


def _by_answer(classes: Sequence[str]) -> dict[str, int]:
    """The class that an answer means.

    Raises:
        ValueError: two labels cannot be told apart in an answer.
    """
    found: dict[str, int] = {}
    for index, label in enumerate(classes):
        other = found.setdefault(_comparable(label), index)
        if other != index:
            raise ValueError(
                f"labels {classes[other]!r} and {label!r} differ in case or blanks alone, so an answer could mean either; "
                "rename one"
            )
    return found


def _template(classes: Sequence[str], through_chat: bool, with_system: bool) -> str:
    """Jinja that asks about a text: a user's message where there is a chat template, else plain text."""
    message = f"{_verbatim(_QUESTION % ', '.join(classes))}{{{{ text }}}}{_ENDS_IN}"
    if through_chat:  # models that think before they answer are told not to: the answer's few tokens would not hold that
        return f"{{% set message %}}{message}{{% endset %}}{{{{ chat(message, enable_thinking=false) }}}}"
    return f"{{{{ system }}}}\n\n{message}" if with_system else message


def _verbatim(text: str) -> str:
    """Jinja that writes a text, whatever braces it has."""
    return text.replace("{", '{{ "{" }}')


def _has_chat_template(run: Run, name: str) -> bool:
    """Whether the tokenizer of the run's model has one; the model must be the one that the run was made with."""
    model, identity = find_model(name), run.manifest.identity
    if (model.weights_identity, model.tokenizer_digest) != (identity.weights, identity.tokenizer):
        raise ValueError(
            f"the weights or the tokenizer of {run.manifest.model} changed after run {run.run_id}, so another model would "
            "answer; extract the run anew first"
        )
    return bool(load_tokenizer(model).chat_template)


def _check_same_utterances(run: Run, asked: Run, tested: Examples) -> None:
    names = run.utterances()["utterance_id"].take(pa.array(tested.rows))
    if names.to_pylist() != asked.utterances()["utterance_id"].to_pylist():
        raise ValueError(f"run {asked.run_id} does not hold replies to the test utterances of run {run.run_id}; ask it anew")


def _confusion(truth_N: NDArray[np.int64], answer_N: NDArray[np.int64], n_classes: int) -> tuple[tuple[int, ...], ...]:
    counts_KA = np.zeros((n_classes, n_classes + 1), np.int64)
    np.add.at(counts_KA, (truth_N, answer_N), 1)
    return tuple(tuple(int(cell) for cell in row) for row in counts_KA)


def _commonest(replies: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(reply[:_LONGEST_SHOWN] for reply in replies).most_common(_N_SHOWN))


def _beside(run: Run, probed: Probed, tested: Examples, right_N: NDArray[np.bool_], valid_N: NDArray[np.bool_]) -> ProbeBeside:
    result = probed.result
    probe = probed.probes[[entry.layer for entry in result.layers].index(result.best_layer)]
    states = states_of(run, result.site, result.best_layer, tested.rows)
    (said_NK,) = read_probabilities(states, [(probe, np.arange(states.n_rows))])
    probe_right_N = np.array(result.classes)[said_NK.argmax(axis=1)] == tested.labels
    difference_N, groups_N = probe_right_N.astype(np.float64) - right_N, tested.groups
    some = bool(valid_N.any())
    return ProbeBeside(
        site=result.site,
        spec=result.spec,
        layer=result.best_layer,
        accuracy=share_interval(probe_right_N, groups_N),
        difference=difference_interval(difference_N, groups_N),
        accuracy_of_valid=share_interval(probe_right_N[valid_N], groups_N[valid_N]) if some else None,
        difference_of_valid=difference_interval(difference_N[valid_N], groups_N[valid_N]) if some else None,
    )
