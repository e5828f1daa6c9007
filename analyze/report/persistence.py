"""For how long: persistence along one continuation, or along replies, as pictures, findings and a table of half-lives.

A half-life that was not reached is told as a lower bound, never as a value; a reply whose words tell the label is flagged.
"""

from collections.abc import Sequence

from analyze import drawing, plots
from analyze.curves import ALL_EMOTIONS, CHANCE, HalfLife
from analyze.persistence import WORDS, PersistenceResult
from analyze.report.page import Picture, Section, Table
from analyze.report.words import layers_of, score, signed_score
from analyze.scores import Interval


def persistence_sections(persistence: Sequence[PersistenceResult], best_layer: int) -> tuple[Section, ...]:
    """Everything the page says about persistence: forced continuations first, then replies.

    Args:
        best_layer: where several layers were measured, the one to show in full, if it is among them.
    """
    by_run: dict[tuple[bool, str, str], list[PersistenceResult]] = {}
    for result in persistence:
        by_run.setdefault((result.decoding is not None, result.continued_run_id, result.kind), []).append(result)
    return tuple(_section(by_run[key], best_layer) for key in sorted(by_run))


def shown_layer(results: Sequence[PersistenceResult], layer: int) -> PersistenceResult:
    """Of several layers the one asked for, if it was measured; else the middle one."""
    ascending = sorted(results, key=lambda result: result.layer)
    return next((result for result in ascending if result.layer == layer), ascending[len(ascending) // 2])


def leaks(result: PersistenceResult) -> list[int]:
    """The offsets at which the words of replies alone tell the label, interval and all."""
    if result.decoding is None:
        return []
    words = result.curve(ALL_EMOTIONS, WORDS).auroc
    return [offset for offset, point in zip(result.offsets, words, strict=True) if point.low > CHANCE]


def _section(results: Sequence[PersistenceResult], best_layer: int) -> Section:
    shown, ascending = shown_layer(results, best_layer), sorted(results, key=lambda result: result.layer)
    pictures = (_picture(shown), *([_map(ascending)] if len(ascending) > 1 else []))
    what = "The same neutral text after every utterance" if shown.decoding is None else "The model's own replies"
    title = f"{what} (run {shown.continued_run_id[:6]}, {shown.kind} probe)"
    return Section(title, pictures, (*_findings(shown), *_reply_findings(shown)), (_half_life_table(shown),))


def half_life_words(half_life: HalfLife, last_offset: int) -> str:
    """A half-life for people: `49 tokens`, `more than 400`, or why there is none."""
    if not half_life.above_chance:
        return "not above chance at offset 0"
    return f"more than {last_offset}" if half_life.tokens is None else f"{plots.token_count(half_life.tokens)} tokens"


def _picture(result: PersistenceResult) -> Picture:
    last = result.offsets[-1]
    if result.decoding is None:
        what, more = f"{result.n_utterances:,} utterances at layer {result.layer}, each followed by the same neutral text", ""
        readers = "Dashed: the probe fitted at the utterance's last token."
    else:
        what = (
            f"{result.n_utterances:,} utterances at layer {result.layer}, each replied to by the model; {result.n_at[-1]:,} of "
            f"the replies reach offset {last}"
        )
        readers = "Dashed: the probe fitted at the prompt's last token."
        more = " Dotted: a bag of the reply's words so far. Thin: one probe for all offsets."
    return Picture(
        png=drawing.png(plots.persistence_curves(result)),
        alternative=f"AUROC against token offset, from 0 to {last}, for the mean over labels and for each label.",
        caption=(
            f"{what}; every score is of utterances the probe was not fitted on, with 95% bands. Solid: a probe fitted at that "
            f"offset. {readers} Dash-dotted: labels shuffled.{more} The diamond marks a half-life, the line through it its 95% "
            "interval."
        ),
    )


def _map(results: Sequence[PersistenceResult]) -> Picture:
    return Picture(
        png=drawing.png(plots.persistence_map(results)),
        alternative="Mean AUROC of the refit probe and of the probe of offset 0, by layer and token offset.",
        caption=(
            f"Mean AUROC over labels at {layers_of(result.layer for result in results)}, n = {results[0].n_utterances:,} "
            "utterances: left a probe fitted at that offset and layer, right the probe fitted at offset 0 of the same layer."
        ),
    )


def _findings(result: PersistenceResult) -> tuple[str, ...]:
    refit, fixed = (result.curve(ALL_EMOTIONS, reader) for reader in ("refit", "offset-0"))
    start, refit_end, fixed_end = refit.auroc[0], refit.auroc[-1], fixed.auroc[-1]
    first, last = result.offsets[0], result.offsets[-1]
    return (
        f"Mean AUROC over labels is {score(start)} at offset {first}. {last} tokens later, a probe fitted there gets "
        f"{score(refit_end)}, {_against_chance(refit_end)}; the probe fitted at offset {first} gets {score(fixed_end)}, "
        f"{_against_chance(fixed_end)}.",
        f"Half-life of the mean: {_half_life_sentence(refit.half_life, last)} for a probe refit at each offset (information "
        f"is there in some linear form); {_half_life_sentence(fixed.half_life, last)} for the probe of offset 0 (it is there "
        "in the same form).",
        _same_form(refit_end, fixed_end, last, "utterance" if result.decoding is None else "prompt"),
        f"Over all tokens from {first} to {last} the refit probe stands {signed_score(refit.area)} above chance on average, "
        f"the probe of offset {first} {signed_score(fixed.area)}.",
    )


def _reply_findings(result: PersistenceResult) -> tuple[str, ...]:
    if result.decoding is None or result.beyond_words is None:
        return ()
    last, words, leaking = result.offsets[-1], result.curve(ALL_EMOTIONS, WORDS).auroc, leaks(result)
    said = f"A bag of the reply's words alone gets {score(words[-1])} at offset {last}. "
    if leaking:
        said += (
            f"The replies leak the label in their words (at offset{'s' if len(leaking) > 1 else ''} "
            f"{', '.join(map(str, leaking))}, interval and all): reading it from a state there does not show that the state "
            "kept it."
        )
    else:
        said += "At no offset is it above chance, interval and all: the words are not shown to tell the label."
    beyond = result.beyond_words[-1]
    ahead = "more than the words, interval and all" if beyond.low > 0 else "not shown to be more than the words"
    return (
        said,
        f"At offset {last} the refit probe is {signed_score(beyond)} ahead of the words: the state tells {ahead}.",
        f"Replies end: {result.n_at[0]:,} utterances are there at offset 0, {result.n_at[-1]:,} at offset {last}. What happens "
        "along the curve is also a change of who is there.",
    )


def _against_chance(auroc: Interval) -> str:
    if auroc.low > CHANCE:
        return "above chance"
    return "below chance" if auroc.high < CHANCE else "not told from chance"


def _same_form(refit: Interval, fixed: Interval, last: int, first: str) -> str:
    if refit.low > fixed.high and refit.low > CHANCE:
        return (
            f"At offset {last} the refit probe is ahead of the probe of offset 0, interval and all: what can be read there "
            f"is, in part, not in the form it had at the {first}'s last token."
        )
    if fixed.low > refit.high:
        return (
            f"At offset {last} the probe of offset 0 is ahead of the refit one, interval and all: no change of form is shown."
        )
    return f"At offset {last} neither probe is ahead of the other, interval and all: a change of form is not shown there."


def _half_life_sentence(half_life: HalfLife, last: int) -> str:
    words = half_life_words(half_life, last)
    if not half_life.above_chance:
        return words
    if half_life.low is None:
        return f"{words} tokens, the whole 95% interval included,"
    counted = words if half_life.tokens is not None else f"{words} tokens"
    return f"{counted} (95% interval {_interval(half_life, f'more than {last}')})"


def _half_life_cell(half_life: HalfLife, last: int) -> str:
    words = half_life_words(half_life, last)
    if half_life.low is None:
        return words
    return f"{words.removesuffix(' tokens')} ({_interval(half_life, f'> {last}')})"


def _interval(half_life: HalfLife, beyond: str) -> str:
    """Both ends in tokens; `beyond` stands for an end past the last offset."""
    return " to ".join(beyond if end is None else plots.token_count(end) for end in (half_life.low, half_life.high))


def _half_life_table(result: PersistenceResult) -> Table:
    first, last = result.offsets[0], result.offsets[-1]
    readers = ("refit", "offset-0")
    rows = []
    for emotion in (ALL_EMOTIONS, *result.emotions):
        curves = [result.curve(emotion, reader) for reader in readers]
        cells = [
            cell
            for curve in curves
            for cell in (_half_life_cell(curve.half_life, last), signed_score(curve.area), score(curve.auroc[-1]))
        ]
        if result.decoding is not None:
            cells.append(score(result.curve(emotion, WORDS).auroc[-1]))
        rows.append((emotion, score(curves[0].auroc[0]), *cells))
    columns = [f"{reader}: {what}" for reader in readers for what in ("half-life", "mean above chance", f"AUROC at {last}")]
    if result.decoding is not None:
        columns.append(f"{WORDS}: AUROC at {last}")
    return Table(
        caption=(
            "Half-life in tokens, with 95% intervals: where the score above chance first halves; a curve may rise again after "
            "it"
        ),
        header=("label", f"AUROC at {first}", *columns),
        rows=tuple(rows),
        marked=(0,),
    )
