"""The pictures of a report: accuracy and AUROC by layer, persistence, confusion, and two projections.

Figures are made through matplotlib's object API. pyplot was rejected: it keeps global state and picks a display, and
these functions run in threads and on servers. What is worth reading off (best layer, half-life) stands in legends and
panel titles rather than beside the curves, where it would collide with them on other data.

Shape suffixes: K classes, L layers.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import PercentFormatter

from analyze.curves import ALL_EMOTIONS, CHANCE, Curve, HalfLife
from analyze.drawing import (
    INK,
    MUTED,
    SERIES_COLOURS,
    WIDTH,
    clean,
    draw_band,
    edges,
    finish_bar,
    label_layers,
    open_frame,
    plain,
    spaced,
)
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.projection import Points, Projection
from analyze.scores import Interval

EMOTION_COLOURS = {
    "anger": "#EE6677",
    "disgust": "#228833",
    "fear": "#AA3377",
    "joy": "#CCBB44",
    "sadness": "#4477AA",
    "surprise": "#66CCEE",
    "neutral": "#8C8C8C",
}
"""One colour for each built-in label: Paul Tol's bright scheme, which the colour-blind can tell apart."""

_OTHER_COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#777777")
_TURNS = 16
"""Points of all classes are drawn in turns, so that no class lies on top of every other."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_READER_WORDS = {
    "refit": "refit at each offset",
    "offset-0": "fitted at offset 0",
    "offset-aware": "one probe for all offsets",
    "words": "the reply's words",
}


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """One colour for each class: the fixed ones where every class has one, otherwise a palette in order."""
    if all(name in EMOTION_COLOURS for name in classes):
        return {name: EMOTION_COLOURS[name] for name in classes}
    return {name: _OTHER_COLOURS[index % len(_OTHER_COLOURS)] for index, name in enumerate(classes)}


def probe_names(probes: Sequence[ProbeResult]) -> list[str]:
    """What to call each probe: its site, with its kind where kinds differ."""
    several = len({probe.kind for probe in probes}) > 1
    return [f"{probe.site} ({probe.kind})" if several else probe.site for probe in probes]


def layer_map(probes: Sequence[ProbeResult], title: str) -> Figure:
    """Accuracy against layer for every probe, above the one-vs-rest AUROC of each class at each layer.

    Args:
        probes: one or more, of one run.
    """
    heights = [3.4] + [0.55 + 0.27 * len(probe.classes) for probe in probes]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout=ConstrainedLayoutEngine(hspace=0.03, h_pad=0.06))
    top, *maps = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    names = probe_names(probes)
    _draw_accuracy(top, probes, names)
    lowest = min(area.value for probe in probes for entry in probe.layers for area in entry.test.class_auroc)
    floor = CHANCE if lowest >= CHANCE - 0.1 else 0.0  # colours start lower only where something is well below chance
    norm = Normalize(floor, 1.0)
    mesh = [_draw_class_map(axes, probe, name, norm) for axes, probe, name in zip(maps, probes, names, strict=True)][-1]
    label_layers(maps[-1], sorted({entry.layer for probe in probes for entry in probe.layers}))
    extend = "min" if lowest < floor else "neither"
    finish_bar(figure.colorbar(mesh, ax=maps, fraction=0.025, pad=0.012, extend=extend), "AUROC")
    figure.suptitle(plain(title, 90), x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def persistence_curves(result: PersistenceResult) -> Figure:
    """AUROC against token offset: the mean over emotions for every reader, and each emotion by itself."""
    columns = min(4, -(-len(result.emotions) // 2))
    rows = max(2, -(-len(result.emotions) // columns))
    figure = Figure(figsize=(WIDTH, 1.2 + 1.75 * rows), layout=ConstrainedLayoutEngine(wspace=0.02))
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[0.62 * columns, *[1] * columns])
    low = _lowest(result)
    whole = figure.add_subplot(grid[:2, 0])
    _draw_readers(whole, result)
    _finish_offsets(whole, result.offsets, low, roomy=True)
    colours = class_colours(result.emotions)
    for index, emotion in enumerate(result.emotions):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row, column + 1])
        _draw_emotion(axes, result, emotion, colours[emotion])
        _finish_offsets(axes, result.offsets, low, roomy=False)
        if column:
            axes.set_yticklabels([])
        if index + columns < len(result.emotions):
            axes.set_xticklabels([])
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10, handlelength=2.6)
    after = "utterance's last token" if result.decoding is None else "prompt's last token"
    whole.set_xlabel(f"tokens after the {after}", fontsize=10, color=INK)
    return figure


def persistence_map(results: Sequence[PersistenceResult]) -> Figure:
    """Mean AUROC by layer and offset, of the refit probe and of the probe of offset 0.

    Args:
        results: two or more of one continuation, by ascending layer.
    """
    layers, offsets = [result.layer for result in results], results[0].offsets
    figure = Figure(figsize=(WIDTH, 1.4 + min(4.6, 0.24 * len(layers) + 1)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, reader in ((left, "refit"), (right, "offset-0")):
        area_LO = np.array([_values(result.curve(ALL_EMOTIONS, reader).auroc) for result in results])
        mesh = axes.pcolormesh(
            np.arange(len(offsets) + 1), edges(layers), area_LO, cmap="viridis", norm=Normalize(CHANCE, 1.0), linewidth=0
        )
        axes.set_xticks(np.arange(len(offsets)) + 0.5, [str(offset) for offset in offsets])
        axes.set_title(_READER_WORDS[reader], loc="left", fontsize=11, color=INK)
        axes.set_xlabel("token offset", fontsize=10, color=INK)
        axes.tick_params(length=0, labelsize=9, colors=INK)
        axes.spines[:].set_visible(False)
    left.set_ylabel("layer", fontsize=10, color=INK)
    finish_bar(figure.colorbar(mesh, ax=[left, right], fraction=0.025, pad=0.012, extend="min"), "AUROC, mean over labels")
    return figure


def confusion_matrix(result: ProbeResult) -> Figure:
    """Counts by true and predicted class at the best layer, shaded by their share of the true class."""
    count_KK = np.array(result.best.test.confusion)
    share_KK = count_KK / np.maximum(count_KK.sum(axis=1, keepdims=True), 1)
    n_classes = len(result.classes)
    side = min(0.62 * max(n_classes, 4), WIDTH - 3)
    figure = Figure(figsize=(side + 3, side + 1.5), layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(count_KK):
        if not count and n_classes > 12:
            continue
        colour = "white" if share_KK[row, column] > 0.55 else (INK if count else "#B5B5B5")
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=10 if n_classes <= 12 else 6)
    labels = [plain(name) for name in result.classes]
    sizes = [f"{label} ({count:,})" for label, count in zip(labels, count_KK.sum(axis=1), strict=True)]
    axes.set_xticks(range(n_classes), labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n_classes), sizes)
    axes.set_xlabel("named by the probe", fontsize=10)
    axes.set_ylabel("true label (utterances)", fontsize=10)
    axes.set_title(f"{plain(result.site)}, layer {result.best_layer}", loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=PercentFormatter(1, decimals=0))
    finish_bar(bar, "share of the true label")
    return figure


def projection(result: Projection) -> Figure:
    """Test utterances in the plane: PCA of their hidden states, and of the probe's class probabilities."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_points(left, result, result.states, result.states_variance, "Hidden states")
    _draw_points(right, result, result.probabilities, result.probabilities_variance, "Class probabilities of the probe")
    colours = class_colours(result.classes)
    handles = [
        Line2D([], [], linestyle="", marker=_marker(index), color=colours[name], markersize=6, label=plain(name))
        for index, name in enumerate(result.classes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False, fontsize=10)
    figure.suptitle(
        f"Test utterances, {plain(result.site)}, layer {result.layer}", x=0.012, ha="left", fontsize=13, fontweight="bold"
    )
    return figure


def half_life_text(half_life: HalfLife, last_offset: int) -> str:
    """A half-life without its interval, such as `49` or `> 400`; a dash where there was nothing to halve."""
    if not half_life.above_chance:
        return "\N{EN DASH}"
    return f"> {last_offset}" if half_life.tokens is None else token_count(half_life.tokens)


def token_count(value: float) -> str:
    """A number of tokens, with one decimal where it matters."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _draw_accuracy(axes: Axes, probes: Sequence[ProbeResult], names: Sequence[str]) -> None:
    for index, (probe, name) in enumerate(zip(probes, names, strict=True)):
        colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
        layers = [entry.layer for entry in probe.layers]
        accuracy, control = [entry.test.accuracy for entry in probe.layers], [entry.control.accuracy for entry in probe.layers]
        best = probe.best.test.accuracy.value
        label = f"{plain(name, 40)}, best layer {probe.best_layer}: {best:.0%}"
        draw_band(axes, layers, accuracy, colour)
        axes.plot(layers, _values(accuracy), color=colour, lw=2, marker="o", ms=2.5, label=label, zorder=4)
        axes.plot(probe.best_layer, best, marker="o", ms=9, mfc="white", mec=colour, mew=2.2, ls="", zorder=5)
        axes.plot(layers, _values(control), color=colour, lw=1, ls=(0, (4, 2)), alpha=0.6, zorder=2)
    ring = "best layer, chosen without the test utterances"
    axes.plot([], [], marker="o", ms=8, mfc="white", mec=MUTED, mew=2, ls="", label=ring)
    axes.plot([], [], color=MUTED, lw=1, ls=(0, (4, 2)), label="fitted to shuffled labels")
    chance = probes[0].chance
    axes.axhline(chance, color=INK, lw=0.9, ls=":", zorder=1, label=f"chance, {chance:.0%}")
    axes.set_ylim(0, 1)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("accuracy on unseen\nutterances, 95% band", fontsize=10, color=INK)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, fontsize=10, borderaxespad=0.2, columnspacing=2.0
    )
    clean(axes)
    axes.tick_params(axis="x", labelbottom=False)


def _values(points: Sequence[Interval]) -> list[float]:
    return [point.value for point in points]


def _draw_class_map(axes: Axes, probe: ProbeResult, name: str, norm: Normalize) -> QuadMesh:
    layers = [entry.layer for entry in probe.layers]
    edge, n_classes = edges(layers), len(probe.classes)
    area_KL = np.array([[area.value for area in entry.test.class_auroc] for entry in probe.layers]).T
    mesh = axes.pcolormesh(edge, np.arange(n_classes + 1), area_KL, cmap="viridis", norm=norm, linewidth=0)
    best = layers.index(probe.best_layer)
    outline = Rectangle((edge[best], 0), edge[best + 1] - edge[best], n_classes, fill=False, clip_on=False, zorder=5)
    outline.set(edgecolor=INK, linewidth=2)
    axes.add_patch(outline)
    axes.set_ylim(n_classes, 0)
    axes.set_yticks(np.arange(n_classes) + 0.5, [plain(label) for label in probe.classes])
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{plain(name, 40)}: AUROC of each label against the rest (outlined: best layer, {probe.best_layer})",
        loc="left",
        fontsize=10,
        color=INK,
        pad=4,
    )
    return mesh


def _lowest(result: PersistenceResult) -> float:
    shown = [curve for curve in result.curves if curve.emotion == ALL_EMOTIONS or curve.reader != "shuffled"]
    lowest = min(point.value for curve in shown for point in curve.auroc)
    return float(max(0.0, min(0.4, np.floor(lowest * 10) / 10)))


def _draw_readers(axes: Axes, result: PersistenceResult) -> None:
    last = result.offsets[-1]
    styles: dict[str, tuple[str, Literal["-", "--", ":"], float]] = {
        "refit": ("#0B4F8A", "-", 2.2),
        "offset-0": ("#D1600B", "--", 2.0),
    }
    if result.decoding is not None:
        styles |= {"offset-aware": ("#882255", "-", 1.0), "words": ("#117733", ":", 2.0)}
    for reader, (colour, style, width) in styles.items():
        curve = result.curve(ALL_EMOTIONS, reader)
        label = f"{_READER_WORDS[reader]}, half-life {half_life_text(curve.half_life, last)}"
        draw_band(axes, result.offsets, curve.auroc, colour)
        axes.plot(result.offsets, _values(curve.auroc), color=colour, ls=style, lw=width, marker="o", ms=3, label=label)
        _mark_half_life(axes, curve, last, colour)
    shuffled = result.curve(ALL_EMOTIONS, "shuffled")
    draw_band(axes, result.offsets, shuffled.auroc, MUTED, alpha=0.2)
    axes.plot(result.offsets, _values(shuffled.auroc), color=MUTED, lw=1.2, ls="-.", label="fitted to shuffled labels")
    axes.set_title("Mean over labels", loc="left", fontsize=12, fontweight="bold", color=INK, pad=8)
    axes.set_ylabel("AUROC, one label against the rest", fontsize=10, color=INK)


def _mark_half_life(axes: Axes, curve: Curve, last: int, colour: str) -> None:
    half_life = curve.half_life
    if half_life.tokens is None:
        return
    level = CHANCE + (curve.auroc[0].value - CHANCE) / 2
    low = half_life.tokens if half_life.low is None else half_life.low
    high = last if half_life.high is None else half_life.high
    axes.plot([low, high], [level, level], color=INK, lw=1.2, zorder=6)
    axes.plot(half_life.tokens, level, marker="D", ms=7, mfc="white", mec=colour, mew=2, ls="", zorder=7)


def _draw_emotion(axes: Axes, result: PersistenceResult, emotion: str, colour: str) -> None:
    last = result.offsets[-1]
    refit, fixed = (result.curve(emotion, reader) for reader in ("refit", "offset-0"))
    draw_band(axes, result.offsets, refit.auroc, colour, alpha=0.2)
    axes.plot(result.offsets, _values(refit.auroc), color=colour, lw=2)
    axes.plot(result.offsets, _values(fixed.auroc), color=_darker(colour), lw=1.2, ls="--")
    axes.set_title(f"{plain(emotion, 16)}\n", loc="left", fontsize=10, fontweight="bold", color=INK, pad=3)
    halves = f"half-life {half_life_text(refit.half_life, last)}, dashed {half_life_text(fixed.half_life, last)}"
    axes.text(0, 1.03, halves, transform=axes.transAxes, fontsize=7.5, color=MUTED, va="bottom")


def _darker(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return red * 0.6, green * 0.6, blue * 0.6


def _finish_offsets(axes: Axes, offsets: Sequence[int], low: float, roomy: bool) -> None:
    axes.axhline(CHANCE, color=INK, lw=0.9, ls=":", zorder=1)
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    positions_O = np.asarray(SymmetricalLogTransform(10, 1, 0.6).transform_non_affine(np.array(offsets, float)))
    offset_at = dict(zip(positions_O.tolist(), offsets, strict=True))
    gap = float(positions_O[-1] - positions_O[0]) / (10 if roomy else 5)
    ticks = [offset_at[position] for position in spaced(list(offset_at), gap)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(offsets[0] - 0.12, offsets[-1] * 1.12)
    axes.set_ylim(low, 1.0)
    axes.set_yticks(np.arange(low, 1.01, 0.1 if roomy else 0.2))
    axes.yaxis.set_major_formatter("{x:.1f}")
    clean(axes)
    axes.tick_params(labelsize=9 if roomy else 8)


def _draw_points(axes: Axes, result: Projection, points: Points, variance: tuple[float, float], title: str) -> None:
    place_N2, truth_N = np.array(points), np.array(result.truth)
    colours = class_colours(result.classes)
    turn_N = np.arange(len(truth_N)) % _TURNS
    size = float(np.clip(10_000 / len(truth_N), 4, 22))
    for turn, (index, name) in itertools.product(range(_TURNS), enumerate(result.classes)):
        chosen = place_N2[(truth_N == index) & (turn_N == turn)]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=size, marker=_marker(index), color=colours[name], alpha=0.8, edgecolor="white", lw=0.3
        )
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(f"first axis, {variance[0]:.0%} of the variance", fontsize=10)
    axes.set_ylabel(f"second axis, {variance[1]:.0%}", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    open_frame(axes)


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]
