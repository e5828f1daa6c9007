"""For how long: one persistence measurement as its picture, its findings and its table of half-lives.

A half-life that was not reached is told as a lower bound, never as a value.
"""

from analyze import plots
from analyze.persistence import ALL_EMOTIONS, CHANCE, HalfLife, PersistenceResult
from analyze.report.page import PersistenceSection, Picture, Table
from analyze.report.words import score
from analyze.scores import Interval


def persistence_section(result: PersistenceResult) -> PersistenceSection:
    """Everything the page says about one measurement."""
    return PersistenceSection(_picture(result), _findings(result), _half_life_table(result))


def half_life_words(half_life: HalfLife, last_offset: int) -> str:
    """A half-life for people: `49 tokens`, `more than 400`, or why there is none."""
    if not half_life.above_chance:
        return "not above chance at offset 0"
    return f"more than {last_offset}" if half_life.tokens is None else f"{plots.token_count(half_life.tokens)} tokens"


def _picture(result: PersistenceResult) -> Picture:
    last = result.offsets[-1]
    return Picture(
        png=plots.png(plots.persistence_curves(result)),
        alternative=f"AUROC against token offset, from 0 to {last}, for the mean over labels and for each label.",
        caption=(
            f"{result.n_utterances:,} utterances at layer {result.layer}, each followed by the same neutral text; every "
            "score is of utterances the probe was not fitted on, with 95% bands. Solid: a probe fitted at that offset. "
            "Dashed: the probe fitted at the utterance's last token. Dash-dotted: labels shuffled. The diamond marks a "
            "half-life, the line through it its 95% interval."
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
        _same_form(refit_end, fixed_end, last),
    )


def _against_chance(auroc: Interval) -> str:
    if auroc.low > CHANCE:
        return "above chance"
    return "below chance" if auroc.high < CHANCE else "not told from chance"


def _same_form(refit: Interval, fixed: Interval, last: int) -> str:
    if refit.low > fixed.high and refit.low > CHANCE:
        return (
            f"At offset {last} the refit probe is ahead of the probe of offset 0, interval and all: what can be read there "
            "is, in part, no longer in the form it had at the utterance's last token."
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
        cells = (cell for curve in curves for cell in (_half_life_cell(curve.half_life, last), score(curve.auroc[-1])))
        rows.append((emotion, score(curves[0].auroc[0]), *cells))
    columns = (f"{reader}: {what}" for reader in readers for what in ("half-life", f"AUROC at {last}"))
    return Table(
        caption=(
            "Half-life in tokens, with 95% intervals: where the score above chance first halves; a curve may rise again after "
            "it"
        ),
        header=("label", f"AUROC at {first}", *columns),
        rows=tuple(rows),
        marked=(0,),
    )
