"""affectome geometry: how each layer lays the labels out."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from cluster.commands.options import (
    AddressOption,
    JsonOption,
    LayersOption,
    RunArgument,
    SiteOption,
    StoreArgument,
    WorkersOption,
    chosen_layers,
)
from cluster.console import Row, print_json, print_rows
from cluster.execution import Execution

if TYPE_CHECKING:  # it takes seconds to load
    from analyze.geometry import GeometryResult, Grouping, LayerGeometry


def geometry(
    store: StoreArgument,
    run: RunArgument,
    site: SiteOption = "resid.last",
    layers: LayersOption = "all",
    workers: WorkersOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far apart the labels lie on each layer and which lie together."""
    from analyze.query import open_store
    from cluster import pipeline

    opened = open_store(store).run(run)
    result = pipeline.geometry(opened, site, chosen_layers(opened, site, layers), Execution(workers, address))
    if as_json:
        print_json(asdict(result))
    else:
        print_geometry(result)


def print_geometry(result: "GeometryResult") -> None:
    """Print a table of layers."""
    said = f"{result.n_utterances:,} utterances of {result.n_situations:,} situations"
    print_rows(f"{result.site}: {said}", [_row(result, layer) for layer in result.layers], as_json=False)


def _row(result: "GeometryResult", layer: "LayerGeometry") -> Row:
    between, grouping = layer.between, layer.grouping
    pairs: Row = {} if grouping is None else {"pairs_of_the_paper": _pairs_text(grouping)}
    return {
        "layer": layer.layer,
        "between_[95%]": f"{between.value:.3f} [{between.low:.3f}, {between.high:.3f}]",
        "p": layer.p_value,
        "silhouette": layer.silhouette.value,
        "closest": _closest(result, layer),
        **pairs,
    }


def _pairs_text(grouping: "Grouping") -> str:
    return f"{grouping.contrast.value:+.2f}, rank {grouping.rank} of {grouping.n_pairings}"


def _closest(result: "GeometryResult", layer: "LayerGeometry") -> str:
    names = result.classes
    pairs = [(layer.cosines[one][other], names[one], names[other]) for one in range(len(names)) for other in range(one)]
    cosine, first, second = max(pairs)
    return f"{second} and {first}, {cosine:.2f}"
