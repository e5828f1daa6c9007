"""How: the geometry of the labels as a picture, findings and a table."""

from collections.abc import Sequence

from analyze import drawing, geometry_plots
from analyze.geometry import N_PERMUTATIONS, PAIRS, GeometryResult, Grouping, LayerGeometry
from analyze.report.page import Picture, Section, Table
from analyze.report.words import layers_of, share, share_cell, signed_score

_TOLD = 0.05
_FIRST_PLACE = 1


def geometry_section(result: GeometryResult, best_layer: int) -> Section:
    """Everything the page says about the geometry of a site.

    Args:
        best_layer: the layer at which probes of the site are best.
    """
    entry = shown(result, best_layer)
    return Section(f"{result.site}, without any probe", (_picture(result, entry),), _findings(result, entry), (_table(result),))


def shown(result: GeometryResult, best_layer: int) -> LayerGeometry:
    """The layer that is told of: the probes' best, or the one nearest to it."""
    return min(result.layers, key=lambda entry: abs(entry.layer - best_layer))


def between_sentence(entry: LayerGeometry) -> str:
    """How much of a layer's variance lies between the labels."""
    if entry.p_value > _TOLD:
        said = "not told from what permuted labels get"
    else:
        said = f"more than in {1 - entry.p_value:.1%} of {N_PERMUTATIONS} permutations of the labels"
    return (
        f"At layer {entry.layer}, {share(entry.between)} of the variance of standardised states lies between the labels, "
        f"{said} "
        f"(p = {entry.p_value:.3f})."
    )


def _picture(result: GeometryResult, entry: LayerGeometry) -> Picture:
    return Picture(
        png=drawing.png(geometry_plots.geometry(result, entry.layer)),
        alternative="Variance between labels by layer; cosines between the labels' directions; similarity of layers.",
        caption=(
            f"{result.n_utterances:,} utterances of {result.n_situations:,} situations, states standardised. Left: share of "
            "the "
            "variance that lies between labels (epsilon squared) with a 95% band; the dotted line is the layer of the middle. "
            f"Middle: cosines between the directions from the mean of all labels to each. Right: similarity of layers, from "
            f"{result.n_compared:,} utterances."
        ),
    )


def _findings(result: GeometryResult, entry: LayerGeometry) -> tuple[str, ...]:
    highest = max(result.layers, key=lambda each: each.between.value)
    near = [each.layer for each in result.layers if each is not highest and each.between.high >= highest.between.low]
    said = [
        between_sentence(entry),
        f"It is largest at layer {highest.layer}, {share(highest.between)}; {_overlapping(near)} overlap that interval.",
        f"Silhouette at layer {entry.layer}: {signed_score(entry.silhouette)}, where 0 means no nearer to the own label than "
        "to the "
        "next and 1 means clusters apart.",
        f"Closest directions at layer {entry.layer}: {_closest(result, entry)}.",
    ]
    if entry.grouping is not None:
        said.append(_grouping_sentence(entry.grouping, entry.layer))
    if len(result.layers) > 1:
        said.append(_similarity_sentence(result))
    return tuple(said)


def _overlapping(layers: Sequence[int]) -> str:
    return f"those of {layers_of(layers)}" if layers else "those of no other layer"


def _closest(result: GeometryResult, entry: LayerGeometry) -> str:
    names = result.classes
    pairs = [(entry.cosines[one][other], names[other], names[one]) for one in range(len(names)) for other in range(one)]
    return ", ".join(f"{first} with {second} ({cosine:.2f})" for cosine, first, second in sorted(pairs, reverse=True)[:3])


def _grouping_sentence(grouping: Grouping, layer: int) -> str:
    pairs = ", ".join(f"{one} with {other}" for one, other in PAIRS)
    said = (
        f"The pairs that arXiv 2510.04064 finds together ({pairs}) have a mean cosine {signed_score(grouping.contrast)} "
        "against "
        f"other pairs at layer {layer}, place {grouping.rank} of all {grouping.n_pairings} pairings. "
    )
    if grouping.contrast.low <= 0:
        return said + "That they lie together is not shown here."
    if grouping.rank == _FIRST_PLACE:
        return said + "They lie together here too."
    return said + "They lie closer than other pairs on average, but another pairing lies closer still."


def _similarity_sentence(result: GeometryResult) -> str:
    layers = [entry.layer for entry in result.layers]
    neighbours = [result.similarity[index][index + 1] for index in range(len(layers) - 1)]
    least = min(range(len(neighbours)), key=lambda index: neighbours[index])
    return (
        f"Neighbouring layers are alike (debiased CKA {min(neighbours):.2f} to {max(neighbours):.2f}); the largest step is "
        "from "
        f"layer {layers[least]} to {layers[least + 1]}. First and last layer: {result.similarity[0][-1]:.2f}."
    )


def _table(result: GeometryResult) -> Table:
    header: Sequence[str] = ("layer", "between labels", "p", "silhouette", "closest labels")
    rows = tuple(
        (
            str(entry.layer),
            share_cell(entry.between),
            f"{entry.p_value:.3f}",
            signed_score(entry.silhouette),
            _closest(result, entry).partition(",")[0],
            *([] if entry.grouping is None else [f"{signed_score(entry.grouping.contrast)}, {entry.grouping.rank}"]),
        )
        for entry in result.layers
    )
    grouped = result.layers[0].grouping is not None
    return Table("Every layer", (*header, *(["the paper's pairs, place"] if grouped else [])), rows)
