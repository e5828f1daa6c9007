"""Utterances whose states are nearest to another state, and those at both ends of a direction, exactly (analyze.similarity).

Shape suffixes: N rows, D width, K rows found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from analyze.exporting import json_rows
from analyze.plane import Plane
from analyze.query import Run
from analyze.scaling import moments, scaling_of
from analyze.service.answers import json_answer
from analyze.service.asked import MOST, MOST_SQL, RunName, Which, taken
from analyze.service.documents import ExtremesDocument, NeighboursDocument
from analyze.service.kept import Kept
from analyze.service.limits import check_count
from analyze.service.planes import Planes, short
from analyze.service.shelf import Shelf
from analyze.similarity import Scaling, along, check_one_state, checked_vectors, nearest

LABEL = "label"  # analyze.columns.LABEL, which takes seconds to load
_SHOWN = ("row", "utterance_id", "label", "text")
_MOST_NUMBERS = 100_000
_SCALINGS_KEPT = 16

_Condition = Annotated[str, Field(max_length=MOST_SQL)]
_Name = Annotated[str, Field(max_length=1000)]


class _Asked(BaseModel):
    """What both ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: Annotated[str, Field(max_length=64)]
    """Where states were read, such as `resid.last`; it keeps one of each utterance."""
    layer: Annotated[int, Field(ge=0, le=MOST)]
    """0 for the embedding output, i for block i."""
    k: Annotated[int, Field(ge=1)] = 10
    """How many utterances."""


class Nearest(_Asked):
    """One of text, row and vector, and what its neighbours are."""

    text: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    """A new text, which the run's own model reads."""
    row: Annotated[int, Field(ge=0, le=MOST)] | None = None
    """A row of the run."""
    vector: Annotated[Sequence[FiniteFloat], Field(max_length=_MOST_NUMBERS)] | None = None
    """Numbers, as many as a state has."""
    metric: Literal["cosine", "dot", "euclidean"] = "cosine"
    """How near two states are."""
    scaling: Literal["none", "centred", "standardised"] = "none"
    """How states and query are seen before they are compared: less the run's mean, and divided by its deviations."""
    where: _Condition | None = None
    """Only utterances that fulfil this SQL condition."""


class Along(_Asked):
    """A direction: of a class of a kept probe, or from one mean state to another."""

    label: _Name | None = None
    """A class of a probe that `affectome probe` kept; of a probe of numbers, its column."""
    column: _Name = LABEL
    """The column that the probe reads."""
    kind: _Name | None = None
    """Which probe, as in the results kept with a run; null for what `affectome probe` fits when nobody says."""
    balance: _Name | None = None
    """How labels weigh in its fit; null for what is usual."""
    strength: FiniteFloat | None = None
    """Its regularisation; null where cross-validation chose it."""
    solver: _Name | None = None
    """What fitted it; null for what is usual."""
    where: _Condition | None = None
    """Instead of a label: the direction leads to the mean state of these utterances, by a SQL condition."""
    other: _Condition | None = None
    """From the mean state of these."""
    among: _Condition | None = None
    """Only utterances that fulfil this SQL condition are found."""


def router(shelf: Shelf, planes: Planes) -> APIRouter:
    """The routes."""
    routes, settings = APIRouter(), shelf.settings
    scalings = Kept[tuple[str, str, int, str], Scaling | None](_SCALINGS_KEPT)

    def scaling_for(run: Run, asked: Nearest) -> Scaling | None:
        if asked.scaling == "none":
            return None
        key = (run.run_id, asked.site, asked.layer, asked.scaling)
        return scalings.get(key, lambda: scaling_of(run, asked.site, asked.layer, asked.scaling))

    @routes.post("/api/runs/{run}/neighbours", response_model=NeighboursDocument)
    def neighbours(run: RunName, asked: Nearest) -> Response:
        """The utterances nearest to a text, a row or a vector, the nearest first."""
        check_count(asked.k, settings.most_neighbours, "neighbours", "ask for a smaller k")
        with shelf.run(run) as opened:
            rows_N = _rows(shelf, opened, asked.where)
            query_D = _query(shelf, opened, asked)
            scaling = scaling_for(opened, asked)
            found = nearest(
                opened, asked.site, asked.layer, query_D, asked.k, metric=asked.metric, scaling=scaling, rows=rows_N
            )
            shown = _shown(opened, found.rows_QK[0], found.scores_QK[0])
            placed = planes.drawn(opened, asked.site, asked.layer, asked.where)
        place = None if placed is None else _place(placed.plane, query_D)
        return json_answer({"metric": found.metric, "scaling": asked.scaling, "neighbours": shown, "place": place})

    @routes.post("/api/runs/{run}/along", response_model=ExtremesDocument)
    def extremes(run: RunName, asked: Along) -> Response:
        """The utterances that lie furthest along a direction, and those that lie furthest against it."""
        check_count(asked.k, settings.most_neighbours, "utterances of each end", "ask for a smaller k")
        with shelf.run(run) as opened:
            rows_N = _rows(shelf, opened, asked.among)
            direction_D, of = _direction(shelf, opened, asked)
            found = along(opened, asked.site, asked.layer, direction_D, asked.k, rows=rows_N)
            ends = {"top": found.top, "bottom": found.bottom}
            shown = {name: _shown(opened, end.rows_K, end.scores_K) for name, end in ends.items()}
        return json_answer({"of": of, **shown})

    return routes


def _place(plane: Plane, query_D: NDArray[np.float64]) -> list[float] | None:
    """Where a query lies in a plane; None where that is beyond all numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        place_2 = plane.place(query_D.astype(np.float32)[None])
    return short(place_2)[0].tolist() if np.isfinite(place_2).all() else None


def _rows(shelf: Shelf, run: Run, where: str | None) -> NDArray[np.int64] | None:
    """The rows of a condition; None for all."""
    return None if where is None else Which(where=where).chosen(shelf, run)


def _query(shelf: Shelf, run: Run, asked: Nearest) -> NDArray[np.float64]:
    """What is asked for as a state, (D,)."""
    if sum(given is not None for given in (asked.text, asked.row, asked.vector)) != 1:
        raise ValueError("give one of text, row and vector")
    if asked.vector is not None:
        return np.asarray(checked_vectors(run, asked.vector, "a query")[0])
    _check_readable(run, asked)  # before a model is loaded
    if asked.row is not None:
        return np.asarray(run.hidden(asked.site, asked.layer, rows=[asked.row])[0], np.float64)
    if not shelf.settings.texts:
        raise ValueError("this service reads no new texts; ask by row or vector, or start it without --no-texts")
    from analyze.new_texts import states_of_texts  # these take seconds to load
    from extract.compute import ExtractionError

    assert asked.text is not None, "one of the three is given"
    try:
        return np.asarray(states_of_texts(run, asked.site, asked.layer, [asked.text])[0], np.float64)
    except ExtractionError as error:
        raise ValueError(f"this text cannot be read: {error}") from error


def _check_readable(run: Run, asked: _Asked) -> None:
    check_one_state(run, asked.site)
    run.explain(asked.site, asked.layer, rows=[])


def _direction(shelf: Shelf, run: Run, asked: Along) -> tuple[NDArray[np.float64], Mapping[str, Any]]:
    """The direction asked for, (D,), and what made it."""
    if (asked.label is None) == (asked.where is None) or (asked.where is None) != (asked.other is None):
        raise ValueError("give a label of a kept probe, or both where and other; among says which utterances are found")
    from analyze.directions import probe_direction  # it takes seconds to load

    _check_readable(run, asked)
    if asked.label is not None:
        said = asked.model_dump(include={"column", "kind", "balance", "strength", "solver"}, exclude_none=True)
        found = probe_direction(run, asked.site, asked.layer, asked.label, **said)
        return found.vector_D, {"label": found.label, **asdict(found.spec)}
    to, start = (
        moments(run, asked.site, asked.layer, rows=_rows(shelf, run, each)).mean_D for each in (asked.where, asked.other)
    )
    return to - start, {"where": asked.where, "other": asked.other}


def _shown(run: Run, rows_K: NDArray[np.int64], scores_K: NDArray[np.float64]) -> list[Mapping[str, Any]]:
    """Utterances and their scores."""
    utterances = run.utterances()
    found = taken(utterances.select([name for name in _SHOWN if name in utterances.column_names]), rows_K)
    rows = [row for batch in found.to_batches() for row in json_rows(batch)]
    return [{**row, "score": score} for row, score in zip(rows, scores_K.tolist(), strict=True)]
