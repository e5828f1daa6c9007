"""The model asked in words: zero-shot answers beside a probe, and what system prompts do to state and reply."""

from collections.abc import Iterator

from analyze.prompted_states import Shift
from analyze.prompting import PromptingResult
from analyze.report.page import Section, Table
from analyze.report.words import layers_of, score, share, share_cell, signed_share, signed_share_cell
from analyze.scores import Interval
from analyze.zeroshot import ProbeBeside, ZeroShotResult

_PROMPT_LAST = "resid.prompt_last"
_TOLD = 0.05


def zero_shot_section(result: ZeroShotResult) -> Section:
    """Everything the page says about the model's own answers."""
    return Section("The model asked for the emotion as JSON", (), tuple(_zero_shot_findings(result)), (_answers_table(result),))


def prompting_section(result: PromptingResult) -> Section:
    """Everything the page says about system prompts."""
    names = [condition.name for condition in result.conditions]
    title = f"System prompts: {', '.join(names[:-1])} and {names[-1]}"
    tables = _readings_table(result), _shifts_table(result), _replies_table(result)
    return Section(title, (), tuple(_prompting_findings(result)), tables)


def _zero_shot_findings(result: ZeroShotResult) -> Iterator[str]:
    yield (
        f"Asked about the same {result.n_utterances:,} test utterances, the model gives a valid answer to "
        f"{share(result.coverage)} "
        f"and the true one to {share(result.accuracy)} of all; always naming the commonest label gets {result.chance:.0%}. "
        f"{_against_chance(result.accuracy, result.chance)}"
    )
    if result.accuracy_of_valid is not None:
        yield (
            f"Counted over valid answers alone, as arXiv 2510.04064 counts: {share(result.accuracy_of_valid)}. Macro-F1 over "
            "all: "
            f"{score(result.macro_f1)}."
        )
    yield _favourite(result)
    if result.beside is not None:
        yield from _beside(result.beside)


def _against_chance(accuracy: Interval, chance: float) -> str:
    if accuracy.low > chance:
        return "That is above chance, interval and all."
    return "That is below chance, interval and all." if accuracy.high < chance else "The interval includes chance."


def _favourite(result: ZeroShotResult) -> str:
    given = [sum(row[index] for row in result.confusion) for index in range(len(result.classes))]
    if not sum(given):
        return "No answer is a valid one: it did not answer, which is not to say that it cannot tell."
    most = max(range(len(given)), key=lambda index: given[index])
    of_valid = given[most] / max(1, sum(given))
    return (
        f"Its commonest answer is {result.classes[most]}, {of_valid:.0%} of the valid ones. Labels were listed in alphabetical "
        "order; an answer that follows the place in the list is not told from one that follows the text."
    )


def _beside(beside: ProbeBeside) -> Iterator[str]:
    yield (
        f"The {beside.spec.kind} probe of {beside.site} at layer {beside.layer} names {share(beside.accuracy)} of the same "
        f"utterances: the difference, paired by utterance, is {signed_share(beside.difference)}. {_ahead(beside.difference)}"
    )
    if beside.difference_of_valid is not None:
        yield (
            f"On the utterances with a valid answer the difference is {signed_share(beside.difference_of_valid)}. "
            f"{_ahead(beside.difference_of_valid)}"
        )


def _ahead(difference: Interval) -> str:
    if difference.low > 0:
        return "The state tells more than the model says."
    return "The model says more than the probe reads." if difference.high < 0 else "Neither is shown to be ahead."


def _answers_table(result: ZeroShotResult) -> Table:
    rows = tuple(
        (label, f"{sum(cells):,}", share_cell(recall), f"{sum(row[index] for row in result.confusion):,}", f"{cells[-1]:,}")
        for index, (label, recall, cells) in enumerate(zip(result.classes, result.recall, result.confusion, strict=True))
    )
    return Table("By label", ("label", "utterances", "recall", "answered", "without a valid answer"), rows)


def _prompting_findings(result: PromptingResult) -> Iterator[str]:
    first = result.conditions[0].name
    if result.default_system:
        yield (
            f"Under {first} the model's chat template writes a system prompt of its own: "
            f"\N{LEFT DOUBLE QUOTATION MARK}{result.default_system}\N{RIGHT DOUBLE QUOTATION MARK}."
        )
    yield from _state_findings(result)
    yield from _reply_findings(result)


def _state_findings(result: PromptingResult) -> Iterator[str]:
    layer = result.layers[len(result.layers) // 2]
    for shift in result.shifts:
        if (shift.site, shift.layer) == (_PROMPT_LAST, layer) and shift.distance is not None and shift.p_value is not None:
            told = "more than sign flips give" if shift.p_value <= _TOLD else "not told from sign flips"
            yield (
                f"State before the reply, layer {layer}: from {shift.start} to {shift.end} it moves {shift.distance.value:.2f} "
                f"({shift.distance.low:.2f} to {shift.distance.high:.2f}) standard deviations of a feature, {told} (p = "
                f"{shift.p_value:.3f}). {_towards(result, shift)}"
            )
    for reading in result.readings:
        if (reading.site, reading.layer) == (_PROMPT_LAST, layer) and reading.condition != result.conditions[0].name:
            change = "a change" if reading.change.low > 0 or reading.change.high < 0 else "no change shown"
            yield (
                f"The user's emotion under {reading.condition}: own probe {share(reading.accuracy)}, "
                f"{signed_share(reading.change)} "
                f"against {result.conditions[0].name} ({change}); chance {result.chance:.0%}, n = {result.n_utterances:,}."
            )


def _towards(result: PromptingResult, shift: Shift) -> str:
    moved = [
        f"{name} {signed_share(move)}"
        for name, move in zip(result.classes, shift.moves, strict=True)
        if move.low > 0 or move.high < 0
    ]
    if not moved:
        return f"The probe of {result.conditions[0].name} then names no label more or less often, intervals and all."
    return f"The probe's mean probabilities change: {', '.join(moved)}; one in twenty such intervals misses by chance."


def _reply_findings(result: PromptingResult) -> Iterator[str]:
    yield (
        f"Replies of at most {result.max_tokens:,} tokens read by a bag of words fitted to {result.n_words_fitted:,} other "
        f"utterances of the corpus (it names {share(result.words_accuracy)} of the utterances themselves). A lexical proxy and "
        "no "
        "judge: it cannot tell a reply that names the user's emotion from one that expresses it."
    )
    for reply in result.replies:
        change = (
            ""
            if reply is result.replies[0]
            else f", {signed_share(reply.accuracy_change)} against {result.replies[0].condition}"
        )
        yield f"Under {reply.condition} the words of {share(reply.accuracy)} of the replies read as the user's emotion{change}."


def _readings_table(result: PromptingResult) -> Table:
    header = (
        "site",
        "layer",
        "system prompt",
        "own probe",
        "AUROC",
        "against the first, points",
        "the first's probe",
        "its loss, points",
    )
    rows = tuple(
        (
            reading.site,
            str(reading.layer),
            reading.condition,
            share_cell(reading.accuracy),
            score(reading.auroc),
            signed_share_cell(reading.change),
            share_cell(reading.first_accuracy),
            signed_share_cell(reading.loss),
        )
        for reading in result.readings
    )
    return Table(f"What probes read under each, at {layers_of(result.layers)}", header, rows)


def _shifts_table(result: PromptingResult) -> Table:
    rows = tuple(
        (
            shift.site,
            str(shift.layer),
            f"{shift.start} to {shift.end}",
            "\N{EN DASH}" if shift.distance is None else score(shift.distance),
            "\N{EN DASH}" if shift.p_value is None else f"{shift.p_value:.3f}",
            *(signed_share_cell(move) for move in shift.moves),
        )
        for shift in result.shifts
    )
    return Table(
        "How states move, and each label's mean probability, points",
        ("site", "layer", "", "distance", "p", *result.classes),
        rows,
    )


def _replies_table(result: PromptingResult) -> Table:
    rows = tuple(
        (
            reply.condition,
            f"{reply.n_tokens.value:.1f}",
            share_cell(reply.ended),
            share_cell(reply.accuracy),
            *(f"{mean.value:.2f}" for mean in reply.probability),
        )
        for reply in result.replies
    )
    return Table(
        "Replies, and the bag of words' mean probabilities",
        ("system prompt", "tokens", "ended", "accuracy", *result.classes),
        rows,
    )
