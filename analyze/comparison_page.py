"""A comparison as a page: Markdown with one picture, so that it reads in a terminal, a mail and a browser of repositories."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analyze.comparison import Change, Comparison, LayerPoint, RunProfile, SiteProfile, half_life
from analyze.drawing import FAINT, INK, WIDTH, png
from analyze.report.words import score, share_cell

PICTURE_FILE = "comparison.png"

_DEPTHS = tuple(step / 10 for step in range(11))
_LONGEST_TEMPLATE = 60
_NEW_COLOUR = "#0B4F8A"
_EARLIER_COLOURS = ("#D1600B", "#117733", "#882255", "#44AA99", "#7A6A00", "#6B6B6B")
_STYLES = ("-", "--", ":", "-.")


def page(comparison: Comparison, corpus: str, template: str, beside: str = "earlier") -> str:
    """The page, in Markdown.

    Args:
        corpus: what the user called the corpus.
        template: what made the prompts.
        beside: what the others are to this run.
    """
    run, everybody = comparison.run, [comparison.run, *reversed(comparison.earlier)]
    lines = [
        f"# {_text(run.label)} beside {len(comparison.earlier)} {beside} run{'s' if len(comparison.earlier) > 1 else ''}",
        "",
        f"Run `{run.run_id}` on {_text(corpus)}, template {_text(_short(template))}.",
        "",
        *(line for change in comparison.changes for line in _change(change)),
        f"![Accuracy of probes against relative depth]({PICTURE_FILE})",
        "",
        "Accuracy on the test utterances against the share of the model's depth, with the 95% band of this run; rings mark the",
        "best layers, chosen without the test utterances. Intervals are over situations; they cover no other seed or corpus.",
    ]
    for site in run.sites:
        lines += ["", f"## {site.site}", "", *_best_table(everybody, site.site)]
        lines += ["", f"Accuracy of the {site.kind} probe by relative depth, at the nearest layer:", ""]
        lines += _depth_table(everybody, site.site)
    if run.half_lives is not None:
        lines += ["", "## For how long", "", *_half_life_table(everybody)]
    return "\n".join(lines) + "\n"


def _change(change: Change) -> tuple[str, ...]:
    return f"Against {_text(change.label)}, {change.why}:", "", *(f"- {_text(each)}" for each in change.sentences), ""


def picture(comparison: Comparison) -> bytes:
    """Accuracy against relative depth, a panel for each site, as a PNG file."""
    profiles = (comparison.run, *comparison.earlier)
    sites = [site.site for site in comparison.run.sites]
    columns = min(2, len(sites))
    rows = -(-len(sites) // columns)
    figure = Figure(figsize=(WIDTH, 3.4 * rows + 0.3 * len(profiles) + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, site in zip(panels, sites, strict=False):
        lines = [_draw(axes, profile.at(site), index) for index, profile in enumerate(profiles)]
        _finish(axes, site)
    for axes in panels[len(sites) :]:
        axes.set_axis_off()
    names = [f"run {profile.run_id[:6]}, {_printable(profile.label)}" for profile in profiles]
    for text in figure.legend(lines, names, loc="outside lower left", frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)  # a path may hold what looks like mathematics
    return png(figure)


def _short(template: str) -> str:
    words = " ".join(template.split())
    return words if len(words) <= _LONGEST_TEMPLATE else f"{words[:_LONGEST_TEMPLATE]}..."


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _draw(axes: Axes, profile: SiteProfile, index: int) -> Line2D:
    """Draw one run, the new one first and with its band."""
    new = index == 0
    colour = _NEW_COLOUR if new else _EARLIER_COLOURS[(index - 1) % len(_EARLIER_COLOURS)]
    style = "-" if new else _STYLES[(index - 1) // len(_EARLIER_COLOURS) % len(_STYLES)]
    depths, accuracy = [point.depth for point in profile.layers], [point.accuracy for point in profile.layers]
    if new:
        axes.fill_between(depths, [a.low for a in accuracy], [a.high for a in accuracy], color=colour, alpha=0.16, lw=0)
        axes.axhline(profile.chance, color=INK, lw=0.9, ls=":")
    axes.plot(profile.best.depth, profile.best.accuracy.value, "o", ms=8, mfc="white", mec=colour, mew=2, zorder=5)
    return axes.plot(depths, [a.value for a in accuracy], color=colour, ls=style, lw=2.4 if new else 1.3, zorder=4)[0]


def _finish(axes: Axes, site: str) -> None:
    axes.set_title(site, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("share of the depth (0 = embedding output, 1 = last block)", fontsize=9, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _best_table(profiles: Sequence[RunProfile], site: str) -> Iterator[str]:
    yield from _header("model", "run", "created", "best layer", "depth", "accuracy", "AUROC")
    for profile in profiles:
        best = profile.at(site).best
        place = f"{best.layer} of {profile.n_layers}", f"{best.depth:.2f}"
        scores = share_cell(best.accuracy), score(best.auroc)
        yield _row(_text(profile.label), f"`{profile.run_id}`", profile.created[:10], *place, *scores)


def _half_life_table(profiles: Sequence[RunProfile]) -> Iterator[str]:
    yield from _header("model", "layer", "half-life, refit at each offset", "half-life, probe of offset 0")
    for profile in profiles:
        halves = profile.half_lives
        if halves is not None:
            lives = (half_life(each, halves.last_offset) for each in (halves.refit, halves.fixed))
            yield _row(_text(profile.label), str(halves.layer), *lives)


def _depth_table(profiles: Sequence[RunProfile], site: str) -> Iterator[str]:
    yield from _header("model", *(f"{depth:.1f}" for depth in _DEPTHS))
    for profile in profiles:
        nearest = (_nearest(profile.at(site), depth) for depth in _DEPTHS)
        yield _row(_text(profile.label), *(f"{point.accuracy.value:.1%}" for point in nearest))


def _nearest(profile: SiteProfile, depth: float) -> LayerPoint:
    return min(profile.layers, key=lambda point: abs(point.depth - depth))


def _header(*cells: str) -> tuple[str, str]:
    return _row(*cells), _row(*("---" for _ in cells))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Words as they stand, whatever Markdown would make of them."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#$" else letter for letter in " ".join(text.split()))
