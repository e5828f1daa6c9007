"""The three questions of "Decoding Emotion in the Deep" (arXiv 2510.04064), each with what this run says to it.

An answer repeats no more than its section shows, controls and intervals included; what was not measured is said to be so.
"""

from collections.abc import Sequence

from analyze.curves import ALL_EMOTIONS
from analyze.geometry import GeometryResult
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.report.geometry import between_sentence, shown
from analyze.report.page import Answer
from analyze.report.persistence import half_life_words, leaks, shown_layer
from analyze.report.words import layer_cell, noun, score, share

_NOT_MEASURED = "Not measured for this run; how to is told below."
_NOT_MEASURABLE = (
    "It cannot be measured: these states were imported, and the model that could go on from them is not known here."
)


def answers(
    best: ProbeResult, how: GeometryResult | None, persistence: Sequence[PersistenceResult], layer: int, imported: bool
) -> tuple[Answer, ...]:
    """How, where, and for how long.

    Args:
        layer: at which persistence is told, where several were measured.
        imported: whether the states were made elsewhere, so that persistence cannot be measured.
    """
    what = noun(best.classes)
    return (
        Answer(f"How does it lay the {what}s out?", _NOT_MEASURED if how is None else _how(best, how)),
        Answer(f"Where can the {what} be read?", _where(best)),
        Answer(f"For how long does the {what} stay readable?", _for_how_long(persistence, layer, imported)),
    )


def _how(best: ProbeResult, how: GeometryResult) -> str:
    return between_sentence(shown(how, best.best_layer))


def _where(best: ProbeResult) -> str:
    if best.where is None:
        return "No layer is shown to be above chance by cross-validation inside the training split."
    where, top = best.where, best.best.test
    return (
        f"Onset at layer {layer_cell(where.onset)}, peak at layer {layer_cell(where.peak)}, in brackets 95% intervals; on "
        "unseen "
        f"utterances the best layer, {best.best_layer}, gets {share(top.accuracy)}, a probe of shuffled labels "
        f"{share(best.best.control.accuracy)}."
    )


def _for_how_long(persistence: Sequence[PersistenceResult], layer: int, imported: bool) -> str:
    if imported:
        return _NOT_MEASURABLE
    forced = [result for result in persistence if result.decoding is None]
    replied = [result for result in persistence if result.decoding is not None]
    said = [_forced(shown_layer(forced, layer))] if forced else []
    said += [_replied(shown_layer(replied, layer))] if replied else []
    return " ".join(said) or _NOT_MEASURED


def _forced(result: PersistenceResult) -> str:
    refit, fixed = (result.curve(ALL_EMOTIONS, reader) for reader in ("refit", "offset-0"))
    last = result.offsets[-1]
    return (
        f"After {last} tokens of the same neutral text, layer {result.layer}: AUROC {score(refit.auroc[-1])} for a probe "
        "fitted "
        f"there and {score(fixed.auroc[-1])} for the one fitted at the utterance's end (0.5 is chance). Half-lives: "
        f"{half_life_words(refit.half_life, last)} and {half_life_words(fixed.half_life, last)}."
    )


def _replied(result: PersistenceResult) -> str:
    last, refit = result.offsets[-1], result.curve(ALL_EMOTIONS, "refit")
    said = f"{last} tokens into the model's own replies: {score(refit.auroc[-1])}"
    return f"{said}; but the replies' words alone tell the label." if leaks(result) else f"{said}."
