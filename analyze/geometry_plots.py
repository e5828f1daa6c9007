"""The pictures of geometry and of transfer between conditions; those of probes and persistence are in analyze.plots.

Shape suffixes: K classes, L layers.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analyze import drawing
from analyze.geometry import GeometryResult, LayerGeometry
from analyze.scores import Interval
from analyze.transfer import TransferResult, in_words

_STYLES = ("--", ":", "-.")
_PERMUTATION_LEVEL = 0.05


def geometry(result: GeometryResult, layer: int) -> Figure:
    """Variance between labels by layer, cosines between the labels' directions at one layer, and CKA between layers."""
    figure = Figure(figsize=(drawing.WIDTH, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _draw_between(left, result, layer)
    _draw_cosines(figure, middle, result, next(entry for entry in result.layers if entry.layer == layer))
    _draw_similarity(figure, right, result)
    return figure


def contrast(result: TransferResult) -> Figure:
    """By layer, how well probes of each condition read each condition: which label, and whether there is an emotion."""
    layers = result.layers
    with_affect = result.cells[0].affect_auroc is not None
    figure = Figure(figsize=(drawing.WIDTH if with_affect else drawing.WIDTH / 2, 3.9), layout="constrained")
    panels = np.ravel(figure.subplots(1, 2 if with_affect else 1, sharey=True, squeeze=False))
    for axes, affect in zip(panels, (False, True), strict=False):
        for place, train in enumerate(result.sources):
            for test in result.sources:
                points = [_point(result, layer, train, test, affect) for layer in layers]
                colour = drawing.SERIES_COLOURS[place % len(drawing.SERIES_COLOURS)]
                style = "-" if train == test else _STYLES[result.sources.index(test) % len(_STYLES)]
                drawing.draw_band(axes, layers, points, colour, alpha=0.1)
                label = f"trained {drawing.plain(in_words(train))}, tested {drawing.plain(in_words(test))}"
                axes.plot(
                    layers, [point.value for point in points], color=colour, ls=style, lw=1.8, marker="o", ms=2.5, label=label
                )
        axes.axhline(0.5, color=drawing.INK, lw=0.9, ls=":", zorder=1)
        title = "Emotion, or neutral?" if affect else f"Which of {len(result.classes)} labels?"
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=drawing.INK)
        lowest = min(value for line in axes.lines for value in np.asarray(line.get_ydata(), np.float64))
        axes.set_ylim(min(0.4, np.floor(10 * lowest) / 10), 1.01)
        drawing.clean(axes)
        drawing.label_layers(axes, layers)
    panels[0].set_ylabel("AUROC, 95% band", fontsize=10, color=drawing.INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9.5, handlelength=2.6)
    return figure


def _point(result: TransferResult, layer: int, train: str, test: str, affect: bool) -> Interval:
    cell = result.cell(layer, train, test)
    if not affect:
        return cell.auroc
    assert cell.affect_auroc is not None, "all cells have it or none"
    return cell.affect_auroc


def _draw_between(axes: Axes, result: GeometryResult, layer: int) -> None:
    layers, between = [entry.layer for entry in result.layers], [entry.between for entry in result.layers]
    colour = drawing.SERIES_COLOURS[0]
    drawing.draw_band(axes, layers, between, colour)
    axes.plot(layers, [point.value for point in between], color=colour, lw=2, marker="o", ms=2.5)
    unclear = [entry for entry in result.layers if entry.p_value > _PERMUTATION_LEVEL]
    if unclear:
        x, y = [entry.layer for entry in unclear], [entry.between.value for entry in unclear]
        axes.plot(x, y, ls="", marker="x", color=drawing.MUTED, ms=6, label="not told from permuted labels")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    axes.axvline(layer, color=drawing.MUTED, lw=0.9, ls=":")
    axes.set_ylim(bottom=min(0.0, *(point.low for point in between)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("Variance between labels", loc="left", fontsize=11, fontweight="bold", color=drawing.INK)
    drawing.clean(axes)
    drawing.label_layers(axes, layers)


def _draw_cosines(figure: Figure, axes: Axes, result: GeometryResult, entry: LayerGeometry) -> None:
    cosine_KK, names = np.array(entry.cosines), [drawing.plain(name, 12) for name in result.classes]
    image = axes.imshow(cosine_KK, cmap="PuOr_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 8:
        for (row, column), value in np.ndenumerate(cosine_KK):
            if row != column:
                ink = "white" if abs(value) > 0.65 else drawing.INK
                text = f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_title(f"Cosines, layer {entry.layer}", loc="left", fontsize=11, fontweight="bold", color=drawing.INK)
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
    drawing.finish_bar(figure.colorbar(image, ax=axes, location="bottom", fraction=0.045, pad=0.02), "cosine of directions")


def _draw_similarity(figure: Figure, axes: Axes, result: GeometryResult) -> None:
    layers, similarity_LL = [entry.layer for entry in result.layers], np.array(result.similarity)
    if len(layers) == 1:
        axes.set_axis_off()
        return
    edges = drawing.edges(layers)
    mesh = axes.pcolormesh(edges, edges, np.clip(similarity_LL, 0, 1), cmap="viridis", norm=None, vmin=0, vmax=1, linewidth=0)
    axes.set_aspect("equal")
    axes.set_title("Similarity of layers (CKA)", loc="left", fontsize=11, fontweight="bold", color=drawing.INK)
    drawing.label_layers(axes, layers)
    axes.set_yticks(axes.get_xticks(), [text.get_text() for text in axes.get_xticklabels()])
    axes.set_ylim(edges[0], edges[-1])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    drawing.finish_bar(figure.colorbar(mesh, ax=axes, location="bottom", fraction=0.045, pad=0.02), "debiased linear CKA")
