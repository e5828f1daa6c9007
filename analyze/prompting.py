"""What system prompts do to the state and to the reply: the same utterances under each, through the model's chat template.

arXiv 2510.04064 measured this in the replies alone, by a judge. Here every condition is a run of its own, with the states at
the utterance's last token and the prompt's, those along the reply, and the reply itself; analyze.prompted_states says how
states are compared and analyze.reply_words how replies are. What a template writes when no system prompt is given is the
model's own: often a default of its maker, so `none` is told together with it. Writing an empty system prompt instead was
rejected, because no user of the model sees that.

Shape suffixes: N utterances, O offsets, D width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from analyze.examples import FEWEST_SITUATIONS, Examples, labelled_examples
from analyze.extracting import same_way, stratified_sample
from analyze.mapping import Mapper, ignore, in_threads
from analyze.prompted_states import Along, Reading, Shift, compare, read_along
from analyze.query import Run
from analyze.reply_words import ReplyWords, fit_words, read_words, words_accuracy
from analyze.scores import Interval
from extract.decoding import Decoding
from extract.loading import load_tokenizer
from extract.models import find_model
from extract.request import Request
from extract.templates import CHAT, Template

SYSTEM_PROMPTS = {
    "none": "",
    "emotional": "You are a very emotional assistant. You feel everything strongly, and your answers are full of feeling.",
    "composed": "You are a calm and composed assistant. You take everything evenly, and your answers are level and steady.",
}
"""The conditions of arXiv 2510.04064 in words of our own: no system prompt, and two of one form and length."""
SITES = ("resid.last", "resid.prompt_last")
"""Where conditions are compared: the last token of the utterance, which sees the system prompt, and that of the prompt."""
OFFSETS = (1, 4, 16, 64, 256)
"""Where states are read in the replies, as far as those may reach: tokens from the prompt's last."""

_NONE = "none"
_ALONG = "resid.reply"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_MARKER = "\N{LEFT WHITE SQUARE BRACKET}system\N{RIGHT WHITE SQUARE BRACKET}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A system prompt."""

    name: str
    """What tables call it."""
    system: str
    """The system prompt; empty for none."""
    before: str = ""
    """All that the chat template writes before an utterance under it: what the model reads first."""


@dataclass(frozen=True, slots=True)
class PromptingPlan:
    """What to extract so that conditions can be compared."""

    conditions: tuple[Condition, ...]
    """The system prompts; the first is none."""
    requests: tuple[Request, ...]
    """For each, the run to extract."""
    default_system: str
    """What the chat template writes as a system prompt when none is given; empty where it writes none."""


@dataclass(frozen=True, slots=True)
class PromptingResult:
    """What system prompts do to the states and replies of one run's model."""

    run_id: str
    """The run whose utterances were sampled."""
    classes: tuple[str, ...]
    """The labels, in the order of every tuple over labels here."""
    n_utterances: int
    """How many were sampled: each under every condition."""
    n_situations: int
    """Situations they tell; intervals are over these."""
    max_tokens: int
    """Most tokens of a reply."""
    layers: tuple[int, ...]
    """Which layers."""
    default_system: str
    """What the chat template writes as a system prompt under `none`; empty where it writes none."""
    conditions: tuple[Condition, ...]
    """The system prompts; the first is none."""
    run_ids: tuple[str, ...]
    """The run of each condition."""
    readings: tuple[Reading, ...]
    """By site, layer and condition."""
    shifts: tuple[Shift, ...]
    """By site, layer and pair of conditions."""
    along: tuple[Along, ...]
    """By layer, condition and offset."""
    replies: tuple[ReplyWords, ...]
    """By condition."""
    words_accuracy: Interval
    """Of the bag of words that reads the replies, on the sampled utterances themselves."""
    n_words_fitted: int
    """Utterances it was fitted to, all of other situations than the sampled ones."""
    chance: float
    """Accuracy of always naming the commonest label of the sample."""


def chosen_conditions(asked: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions as a user names them; the built-in ones where there are none. `none` is always there, and first.

    Args:
        asked: each the name of a built-in one, or NAME=TEXT.

    Raises:
        ValueError: one is neither, or two have one name.
    """
    chosen = [Condition(_NONE, "")]
    for text in asked or [name for name in SYSTEM_PROMPTS if name != _NONE]:
        name, given, system = text.partition("=")
        if not given and name not in SYSTEM_PROMPTS:
            raise ValueError(f"there is no system prompt {name!r}; choose from {', '.join(SYSTEM_PROMPTS)}, or write NAME=TEXT")
        if given and (not _NAME.fullmatch(name) or name in SYSTEM_PROMPTS or not system.strip()):
            raise ValueError(
                f"cannot read the system prompt {text!r}; write NAME=TEXT, the name of letters, digits and dashes and none of "
                f"{', '.join(SYSTEM_PROMPTS)}"
            )
        if name != _NONE:
            chosen.append(Condition(name, system if given else SYSTEM_PROMPTS[name]))
    if len({condition.name for condition in chosen}) < len(chosen):
        raise ValueError("two system prompts have one name; give each a name of its own")
    if len(chosen) == 1:
        raise ValueError("without a system prompt there is nothing to hold against none; leave --system out, or give one more")
    return tuple(chosen)


def quartiles(n_layers: int) -> tuple[int, ...]:
    """The layers at 25, 50, 75 and 100% of a model's depth."""
    return tuple(sorted({max(1, round(n_layers * quarter / 4)) for quarter in range(1, 5)}))


def plan_prompting(
    run: Run, conditions: Sequence[Condition], layers: Sequence[int], per_label: int, max_tokens: int
) -> PromptingPlan:
    """What to extract: a stratified sample of the run's utterances with each system prompt, and the greedy replies.

    Args:
        conditions: from `chosen_conditions`.
        per_label: most utterances of each label, of as many situations as there are.
        max_tokens: a reply ends here where the model does not end it before.

    Raises:
        ValueError: the run has too few labelled utterances, or the model's chat template takes no system prompt.
    """
    Decoding(max_tokens).checked()
    examples = labelled_examples(run)
    corpus = stratified_sample(run, examples, per_label)
    _outside(run, examples, corpus.table["utterance_id"].to_pylist())
    offsets = tuple(offset for offset in OFFSETS if offset <= max_tokens)
    asked = same_way(run, corpus, ",".join((*SITES, _ALONG)), ",".join(map(str, layers)), offsets=offsets)
    # an utterance that is cut would be cut elsewhere under each system prompt
    asked = replace(asked, template=CHAT, reply=Decoding(max_tokens), truncate=False)
    tokenizer = load_tokenizer(find_model(asked.model))
    written, default_system = written_before(asked.model, tokenizer, conditions, asked.date)
    return PromptingPlan(written, tuple(replace(asked, system=condition.system) for condition in written), default_system)


def written_before(
    model: str, tokenizer: PreTrainedTokenizerBase, conditions: Sequence[Condition], date: str
) -> tuple[tuple[Condition, ...], str]:
    """The conditions with what the chat template writes before an utterance, and what it writes as a system prompt by itself.

    Args:
        model: what the user calls it, for errors.
        date: the day that a template which writes the date is told.

    Raises:
        ValueError: there is no chat template, it takes no system prompt, or one is what it writes by itself.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"{model} has no chat template, so there is no place for a system prompt; take a model tuned to chat")
    bare = Template(CHAT, tokenizer, date=date).before
    try:
        marked = Template(CHAT, tokenizer, _MARKER, date).before
    except ValueError as error:
        raise ValueError(f"the chat template of {model} takes no system prompt ({error}); take another model") from error
    head, written, tail = marked.partition(_MARKER)
    if not written:
        raise ValueError(f"the chat template of {model} writes the system prompt after the utterance; take another model")
    n_own = len(bare) - len(head) - len(tail)
    own = bare[len(head) : len(head) + n_own].strip() if n_own > 0 and bare.startswith(head) and bare.endswith(tail) else ""
    for condition in conditions:
        if own and condition.system.strip() == own:
            raise ValueError(
                f"system prompt {condition.name!r} is what {model} is given by its chat template under none; leave it out"
            )
    before = [Template(CHAT, tokenizer, condition.system, date).before for condition in conditions]
    return tuple(replace(each, before=text) for each, text in zip(conditions, before, strict=True)), own


def measure_prompting(
    run: Run,
    plan: PromptingPlan,
    prompted: Sequence[Run],
    on_done: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> PromptingResult:
    """Compare states and replies under every condition of a plan.

    Args:
        run: the run that was sampled: the bag of words learns from the rest of it.
        prompted: the runs of the plan's requests, in order.
        on_done: called with the number of steps done, of `n_steps`.
        mapper: where they are done; the numbers are the same everywhere.

    Raises:
        ValueError: a run is not complete.
    """
    for each in prompted:
        each.require_complete()
    names = [condition.name for condition in plan.conditions]
    examples, replies = labelled_examples(prompted[0]), [each.replies() for each in prompted]
    lengths = [table["n_tokens"].to_numpy() for table in replies]
    layers = prompted[0].layers
    work = _Work(names, prompted, lengths, examples)
    done = mapper(work, [(site, layer) for site in (*SITES, _ALONG) for layer in layers], on_done)

    table = prompted[0].utterances()
    whole = labelled_examples(run)
    outside = _outside(run, whole, table["utterance_id"].to_pylist())
    reader = fit_words(_texts(run, whole.rows[outside]), whole.truth[outside])
    said = [replies_table.take(examples.rows) for replies_table in replies]
    return PromptingResult(
        run_id=run.run_id,
        classes=examples.classes,
        n_utterances=len(examples.rows),
        n_situations=len(np.unique(examples.groups)),
        max_tokens=plan.requests[0].reply.max_tokens if plan.requests[0].reply else 0,
        layers=layers,
        default_system=plan.default_system,
        conditions=plan.conditions,
        run_ids=tuple(each.run_id for each in prompted),
        readings=tuple(reading for layer in done for reading in layer.readings),
        shifts=tuple(shift for layer in done for shift in layer.shifts),
        along=tuple(place for layer in done for place in layer.along),
        replies=tuple(read_words(reader, names, said, examples.truth, examples.groups)),
        words_accuracy=words_accuracy(reader, _texts(prompted[0], examples.rows), examples.truth, examples.groups),
        n_words_fitted=int(outside.sum()),
        chance=float(np.bincount(examples.truth).max() / len(examples.truth)),
    )


def n_steps(layers: Sequence[int]) -> int:
    """How many steps `measure_prompting` takes: one for each site and layer."""
    return len(layers) * len((*SITES, _ALONG))


@dataclass(frozen=True, slots=True)
class _Done:
    """What is found at one site and layer."""

    readings: Sequence[Reading] = ()
    shifts: Sequence[Shift] = ()
    along: Sequence[Along] = ()


class _Work:
    """What is done at each site and layer."""

    def __init__(
        self, names: Sequence[str], runs: Sequence[Run], lengths: Sequence[NDArray[np.int64]], examples: Examples
    ) -> None:
        self._names, self._runs, self._lengths, self._examples = names, runs, lengths, examples

    def __call__(self, place: tuple[str, int]) -> _Done:
        """Compare conditions, or read each one's replies."""
        site, layer = place
        if site == _ALONG:
            parts = [self._along(index, layer) for index in range(len(self._runs))]
            return _Done(along=[each for part in parts for each in part])
        hidden = [run.hidden_rows(site, layer, self._examples.rows) for run in self._runs]
        readings, shifts = compare(self._names, hidden, self._examples.truth, self._examples.groups, site, layer)
        return _Done(readings, shifts)

    def _along(self, index: int, layer: int) -> list[Along]:
        run, examples = self._runs[index], self._examples
        hidden_NOD = run.hidden_rows(_ALONG, layer, examples.rows)
        length_N, found = self._lengths[index][examples.rows], []
        for place, offset in enumerate(run.manifest.identity.offsets):
            reached_N = length_N >= offset
            states = hidden_NOD[reached_N, place]
            auroc = read_along(states, examples.truth[reached_N], examples.groups[reached_N], len(examples.classes))
            found.append(Along(self._names[index], layer, offset, int(reached_N.sum()), auroc))
        return found


def _texts(run: Run, rows: NDArray[np.int64]) -> list[str]:
    texts: list[str] = run.utterances()["text"].take(rows).to_pylist()
    return texts


def _outside(run: Run, examples: Examples, sampled: Sequence[str]) -> NDArray[np.bool_]:
    """Which of a run's examples are of other situations than the sampled utterances: what the bag of words learns from."""
    drawn_N = np.isin(np.array(run.utterances()["utterance_id"].to_pylist())[examples.rows], list(sampled))
    outside_N = ~np.isin(examples.groups, examples.groups[drawn_N])
    for name in examples.classes:
        n_situations = len(np.unique(examples.groups[outside_N & (examples.labels == name)]))
        if n_situations < FEWEST_SITUATIONS:
            raise ValueError(
                f"label {name!r} has {n_situations} situations besides the sampled ones, and the bag of words that reads the "
                f"replies learns from {FEWEST_SITUATIONS} or more; sample fewer with --per-label, or add utterances"
            )
    return outside_N
