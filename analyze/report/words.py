"""Numbers, intervals and labels as a reader wants them; every part of the report writes them the same way."""

from collections.abc import Iterable, Sequence

from analyze.plots import EMOTION_COLOURS
from analyze.scores import Interval
from analyze.where import LayerEstimate


def noun(classes: Iterable[str]) -> str:
    """`emotion` where the labels are those of the built-in corpus, otherwise `label`."""
    return "emotion" if all(name in EMOTION_COLOURS for name in classes) else "label"


def share(value: Interval) -> str:
    """A share for a sentence: `71% (67-75%)`."""
    return (
        f"{max(value.value, 0.0):.0%} ({share_range(value)})"
        if value.low >= 0
        else f"{value.value:.1%} ({100 * value.low:.1f} to {value.high:.1%})"
    )


def share_range(value: Interval) -> str:
    """The interval of a share alone: `67-75%`."""
    return f"{100 * value.low:.0f}\N{EN DASH}{value.high:.0%}"


def share_cell(value: Interval) -> str:
    """A share for a table, with one decimal: `71.0% (67.0-75.0)`."""
    return f"{value.value:.1%} ({100 * value.low:.1f}\N{EN DASH}{100 * value.high:.1f})"


def signed_share(value: Interval) -> str:
    """A difference of shares for a sentence, in points: `+31 points (25 to 37)`."""
    return f"{100 * value.value:+.0f} points ({100 * value.low:.0f} to {100 * value.high:.0f})"


def signed_share_cell(value: Interval) -> str:
    """A difference of shares for a table, in points: `+31.2 (25.0 to 37.4)`."""
    return f"{100 * value.value:+.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def layer_cell(value: LayerEstimate) -> str:
    """A layer with its interval: `3 (2-5)`."""
    return f"{value.layer} ({value.low}\N{EN DASH}{value.high})"


def score(value: Interval) -> str:
    """An F1 or an AUROC: `0.86 (0.82-0.90)`."""
    return f"{value.value:.2f} ({value.low:.2f}\N{EN DASH}{value.high:.2f})"


def signed_score(value: Interval) -> str:
    """A difference of AUROCs, or a height above chance: `+0.31 (0.25 to 0.37)`."""
    return f"{value.value:+.2f} ({value.low:.2f} to {value.high:.2f})"


def layers_of(layers: Iterable[int]) -> str:
    """Ascending layers, one or more: `layer 3`, `layers 0 to 3 and 7`."""
    chosen = list(layers)
    return f"layer{'s' if len(chosen) > 1 else ''} {ranges(chosen)}"


def ranges(layers: Sequence[int]) -> str:
    """Ascending layers, one or more: `0 to 3 and 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    *others, last = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"{', '.join(others)} and {last}" if others else last
