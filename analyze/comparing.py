"""Set runs of the same utterances beside each other on request: probes of the sites they share, and how alike their layers are.

`affectome refresh` keeps comparisons of what a plan makes; this one is of any runs, of any models, in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analyze import comparison_page, drawing
from analyze.comparison import Comparison, RunProfile
from analyze.geometry import MOST_COMPARED
from analyze.moments import Floats
from analyze.query import Run
from extract import durable
from extract.sites import Site

PAGE_FILE, SIMILARITY_FILE = "comparison.md", "similarity.png"
_COLUMNS = 3
_LABEL_COLUMNS = ("label", "split", "pair_id")


@dataclass(frozen=True, slots=True)
class Similarity:
    """How alike the layers of two models are at one site."""

    site: str
    """Where the states were read."""
    other: RunProfile
    """The run beside the first."""
    layers: tuple[int, ...]
    """Of the first run: the rows."""
    other_layers: tuple[int, ...]
    """Of the other run: the columns."""
    cka_LM: Floats
    """Debiased linear CKA."""


def shared_sites(runs: Sequence[Run]) -> list[str]:
    """The sites with one vector for each utterance that every run holds, in the order of the first.

    Raises:
        ValueError: the runs are fewer than two, of different utterances, or share no such site.
    """
    if len({run.run_id for run in runs}) < max(2, len(runs)):
        raise ValueError("a comparison needs two runs or more, each once")
    first = runs[0]
    for run in runs[1:]:
        if (run.manifest.template, run.manifest.system) != (first.manifest.template, first.manifest.system):
            raise ValueError(
                f"runs {first.run_id} and {run.run_id} read the utterances in different templates or under different system "
                "prompts; affectome transfer holds those against each other"
            )
        if run.manifest.identity.corpus != first.manifest.identity.corpus:
            raise ValueError(f"runs {first.run_id} and {run.run_id} are of different utterances, so they cannot be compared")
        for column in _LABEL_COLUMNS:
            if _column(run, column) != _column(first, column):
                raise ValueError(
                    f"the utterances of runs {first.run_id} and {run.run_id} have different values of {column!r}, so their "
                    "probes "
                    "are asked different things; extract both with one corpus file"
                )
    sites = [site for site in first.sites if Site.parse(site).pooled and all(site in run.sites for run in runs)]
    if not sites:
        held = "; ".join(f"{run.run_id}: {', '.join(run.sites)}" for run in runs)
        raise ValueError(f"the runs share no site with one vector for each utterance ({held})")
    return sites


def _column(run: Run, name: str) -> list[object] | None:
    table = run.utterances()
    return table[name].to_pylist() if name in table.column_names else None


def write_comparison(comparison: Comparison, similarities: Sequence[Similarity], run: Run, directory: Path) -> Path:
    """Write comparison.md and its pictures.

    Args:
        run: the first run of the comparison.
        directory: made where there is nothing yet; files of these names are replaced.

    Returns:
        Where comparison.md is.
    """
    page = comparison_page.page(comparison, run.manifest.corpus, run.manifest.template, beside="other")
    page += "\n".join(("", "## How alike", "", *(f"- {_sentence(each)}" for each in similarities), ""))
    page += f"\n![Similarity of layers]({SIMILARITY_FILE})\n\nDebiased linear CKA (Kornblith et al. 2019) of at most "
    page += f"{MOST_COMPARED:,} utterances: rows are the layers of the first run, columns those of the other.\n"
    durable.ensure_directory(directory)
    durable.replace(directory / comparison_page.PICTURE_FILE, comparison_page.picture(comparison))
    durable.replace(directory / SIMILARITY_FILE, drawing.png(similarity_maps(similarities)))
    durable.replace(directory / PAGE_FILE, page.encode())
    return directory / PAGE_FILE


def similarity_maps(similarities: Sequence[Similarity]) -> Figure:
    """A map of layers by layers for each site and other run."""
    columns = min(_COLUMNS, len(similarities))
    rows = -(-len(similarities) // columns)
    figure = Figure(figsize=(drawing.WIDTH, 3.6 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, each in zip(panels, similarities, strict=False):
        across, down = drawing.edges(each.other_layers), drawing.edges(each.layers)
        mesh = axes.pcolormesh(across, down, each.cka_LM.clip(0, 1), cmap="viridis", vmin=0, vmax=1, linewidth=0)
        title = f"{drawing.plain(each.site)}: {drawing.plain(each.other.title)}"
        axes.set_title(title, loc="left", fontsize=10, color=drawing.INK)
        axes.set_xlabel(f"layer of run {each.other.run_id[:6]}", fontsize=9, color=drawing.INK)
        axes.set_ylabel("layer of the first run", fontsize=9, color=drawing.INK)
        axes.tick_params(length=0, labelsize=9, colors=drawing.INK)
        axes.spines[:].set_visible(False)
    for axes in panels[len(similarities) :]:
        axes.set_axis_off()
    drawing.finish_bar(figure.colorbar(mesh, ax=panels, fraction=0.025, pad=0.012), "debiased linear CKA")
    return figure


def _sentence(each: Similarity) -> str:
    row, column = divmod(int(each.cka_LM.argmax()), len(each.other_layers))
    ends = f"{each.cka_LM[0, 0]:.2f} between the first layers held, {each.cka_LM[-1, -1]:.2f} between the last"
    return (
        f"{each.site} beside {each.other.label}: layer {each.layers[row]} and its layer {each.other_layers[column]} are most "
        f"alike (CKA {each.cka_LM[row, column]:.2f}); {ends}."
    )
