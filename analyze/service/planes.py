"""States in the plane, for a picture: computed once and kept for the next time.

Shape suffixes: N utterances.
"""

from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Response
from numpy.typing import NDArray

from analyze.plane import Placed, place_states
from analyze.query import Run
from analyze.service.answers import json_answer
from analyze.service.asked import MOST, Condition, LayerNumber, RunName, SiteName, Which
from analyze.service.documents import PlaneDocument
from analyze.service.kept import Kept
from analyze.service.limits import check_count
from analyze.service.shelf import Shelf

_PLANES_KEPT = 16
_MOST_CLASSES = 200
_DIGITS = 4


class Planes:
    """The planes of a service that were asked for last."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._kept = Kept[tuple[str, str, int, int | None, str | None], Placed](_PLANES_KEPT)

    def draw(self, run: Run, site: str, layer: int, at: int | None, where: str | None) -> Placed:
        """Utterances of a run in the plane of their states.

        Raises:
            ValueError: as from plane.place_states and Which.chosen.
            OverLimitError: they are too many, or the condition takes too much.
        """

        def make() -> Placed:
            most = self._shelf.settings.most_projected
            rows_N = Which(where=where).chosen(self._shelf, run)
            check_count(len(rows_N), most, "utterances in one plane", "choose fewer with where, such as row % 10 = 0")
            return place_states(run, site, layer, rows_N, at)

        return self._kept.get((run.run_id, site, layer, at, where), make)

    def drawn(self, run: Run, site: str, layer: int, where: str | None) -> Placed | None:
        """The plane of these utterances at a site without a grid, if it was drawn and is still there."""
        return self._kept.peek((run.run_id, site, layer, None, where))


def router(shelf: Shelf, planes: Planes) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/api/runs/{run}/projection", response_model=PlaneDocument)
    def projection(
        run: RunName,
        site: SiteName,
        layer: LayerNumber,
        where: Condition = None,
        colour: Annotated[str | None, Query(description="A column with few values, to colour by.", max_length=1000)] = None,
        at: Annotated[int | None, Query(description="At a site on a grid: which offset.", ge=-MOST, le=MOST)] = None,
    ) -> Response:
        """Utterances in the plane in which their standardised states spread most (PCA)."""
        with shelf.run(run) as opened:
            placed = planes.draw(opened, site, layer, at, where)
            classes, label_N = ([], []) if colour is None else _classes(opened.utterances(), colour, placed.rows_N)
        x_N, y_N = short(placed.points_N2).T.tolist()
        return json_answer(
            {
                "row": placed.rows_N.tolist(),
                "x": x_N,
                "y": y_N,
                "variance": placed.plane.variance,
                "classes": classes,
                "label": label_N,
                "n": len(placed.rows_N),
                "n_fitted": placed.n_fitted,
            }
        )

    return routes


def _classes(utterances: pa.Table, column: str, rows_N: NDArray[np.int64]) -> tuple[list[str], list[int]]:
    """The values of a column, sorted, those of all rows, and each chosen row's as an index into them, -1 for none.

    Of all rows, so that a class has the same index whichever rows are chosen.
    """
    if column not in utterances.column_names:
        raise ValueError(f"there is no column {column!r} to colour by; choose from {', '.join(utterances.column_names)}")
    values = utterances[column]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not any(of(kind) for of in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)):
        raise ValueError(f"column {column!r} holds {kind}; colour by one of text, whole numbers or booleans")
    texts = pc.cast(values, pa.string())
    classes = sorted(pc.unique(texts.drop_null()).to_pylist())
    if len(classes) > _MOST_CLASSES:
        raise ValueError(f"column {column!r} has {len(classes):,} values; colour by one with at most {_MOST_CLASSES}")
    codes = pc.fill_null(pc.index_in(texts.take(pa.array(rows_N)), pa.array(classes, pa.string())), -1)
    return classes, codes.to_pylist()


def short(points_N2: NDArray[np.float32]) -> NDArray[np.float64]:
    """Numbers to a few significant digits."""
    points = points_N2.astype(np.float64)
    with np.errstate(divide="ignore"):
        places = _DIGITS - 1 - np.floor(np.log10(np.abs(points)))
    scale = 10.0 ** np.where(np.isfinite(places), places, 0)
    return np.round(points * scale) / scale
