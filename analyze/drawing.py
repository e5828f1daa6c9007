"""What all pictures share: sizes, colours, bands, axes of layers, and text that is drawn as it stands.

Figures are made through matplotlib's object API. pyplot was rejected: it keeps global state and picks a display, and these
functions run in threads and on servers.
"""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyze.scores import Interval

WIDTH = 10.0
"""Inches of every figure; at DPI dots it is sharp where a page shows it 1,000 pixels wide."""
DPI = 160
SERIES_COLOURS = ("#0B4F8A", "#D1600B", "#117733", "#882255", "#44AA99", "#7A6A00")
"""Of sites, conditions and models, in order."""
INK, MUTED, FAINT = "#222222", "#6B6B6B", "#E4E4E4"
"""Text and axes, notes, and lines to read values off."""

_LONGEST_LABEL = 24


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, facecolor="white")
    return sink.getvalue()


def draw_band(axes: Axes, x: Sequence[float], points: Sequence[Interval], colour: str, alpha: float = 0.16) -> None:
    """A 95% band."""
    lows, highs = [point.low for point in points], [point.high for point in points]
    axes.fill_between(x, lows, highs, color=colour, alpha=alpha, lw=0, zorder=1)


def clean(axes: Axes) -> None:
    """Axes without a box, with faint lines to read values off."""
    open_frame(axes)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)


def open_frame(axes: Axes) -> None:
    """Axes without a box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")


def label_layers(axes: Axes, layers: Sequence[int]) -> None:
    """An axis of layers, from the first to the last."""
    span = max(layers[-1] - layers[0], 1)
    ticks = spaced([float(layer) for layer in layers], span / 18)
    axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xlabel("layer (0 = embedding output)", fontsize=10, color=INK)


def edges(layers: Sequence[int]) -> NDArray[np.float64]:
    """Where the cells of ascending layers begin and end: halfway between neighbours."""
    middles = [(low + high) / 2 for low, high in itertools.pairwise(layers)]
    return np.array([layers[0] - 0.5, *middles, layers[-1] + 0.5])


def spaced(positions: Sequence[float], gap: float) -> list[float]:
    """Positions from both ends' point of view: the first, the last, and those between that keep their distance."""
    kept = [positions[0]]
    for position in positions[1:-1]:
        if position - kept[-1] >= gap and positions[-1] - position >= gap:
            kept.append(position)
    return kept + ([positions[-1]] if len(positions) > 1 else [])


def finish_bar(bar: Colorbar, label: str) -> None:
    """A colour bar without a box."""
    bar.set_label(label, color=MUTED, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=MUTED, length=0)


def plain(text: str, longest: int = _LONGEST_LABEL) -> str:
    """Text that matplotlib draws as it stands: no mathematics between dollars, one line, not hidden by a leading underscore."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    short = printable if len(printable) <= longest else f"{printable[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
    shown = short.replace("$", r"\$")
    return f"\N{HAIR SPACE}{shown}" if shown.startswith("_") else shown
