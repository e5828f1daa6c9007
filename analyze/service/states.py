"""Utterances and hidden states of a run, as `Run.utterances` and `Run.hidden_arrow` give them."""

import math
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from analyze.exporting import json_rows
from analyze.service.answers import ARROW, arrow_answer, columns_of, json_answer, rows_answer
from analyze.service.asked import Form, RunName, SiteName, Which, taken
from analyze.service.documents import ReadingDocument, RowsDocument, UtterancesDocument
from analyze.service.limits import check_bytes, check_count
from analyze.service.shelf import Shelf
from analyze.slices import Reading

Layers = Annotated[
    list[Annotated[int, Query(ge=0, le=2**31)]],
    Query(description="A layer; repeat it for several.", alias="layer", min_length=1, max_length=1000),
]
AsWhich = Annotated[Which, Depends()]

_JSON_BYTES_OF_A_NUMBER = 20
_ARROW_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {ARROW: {}}}}


def router(shelf: Shelf) -> APIRouter:
    """The routes."""
    routes, settings = APIRouter(), shelf.settings

    @routes.get("/api/runs/{run}/utterances", response_model=UtterancesDocument, responses=_ARROW_ANSWER)
    def utterances(run: RunName, which: AsWhich, form: Annotated[Form, Query(alias="format")] = "json") -> Response:
        """Utterances with the columns of their corpus, in corpus order or that of `rows`."""
        with shelf.run(run) as opened:
            chosen = which.chosen(shelf, opened)
            page = which.page(chosen)
            check_count(len(page), settings.most_rows, "rows")
            found = taken(opened.utterances(), page)
        check_bytes(found.nbytes, settings.most_bytes if form == "arrow" else settings.most_json_bytes)
        if form == "arrow":
            return arrow_answer(found)
        rows = [row for batch in found.to_batches() for row in json_rows(batch)]
        return json_answer({"n": len(chosen), "columns": columns_of(found.schema), "rows": rows})

    @routes.get("/api/runs/{run}/hidden", response_model=RowsDocument, responses=_ARROW_ANSWER)
    def hidden(
        run: RunName,
        site: SiteName,
        layers: Layers,
        which: AsWhich,
        form: Annotated[Form, Query(alias="format")] = "arrow",
    ) -> Response:
        """Hidden states: `row`, and for each layer a column such as `layer_12` of lists of one length."""
        with shelf.run(run) as opened:
            rows = which.page(which.chosen(shelf, opened))
            check_bytes(_bytes(opened.explain(site, layers, rows=rows), form), settings.most_bytes)
            states = opened.hidden_arrow(site, layers, rows=rows)
        return arrow_answer(states) if form == "arrow" else rows_answer(states)

    @routes.get("/api/runs/{run}/explain", response_model=ReadingDocument)
    def explain(run: RunName, site: SiteName, layers: Layers, which: AsWhich) -> Response:
        """What `hidden` would read and give; no state is read for it."""
        with shelf.run(run) as opened:
            reading = opened.explain(site, layers, rows=which.page(which.chosen(shelf, opened)))
        return json_answer(asdict(reading) | {"memory_bytes": reading.memory_bytes})

    return routes


def _bytes(reading: Reading, form: Form) -> int:
    """Size of an answer."""
    return reading.memory_bytes if form == "arrow" else math.prod(reading.shape) * _JSON_BYTES_OF_A_NUMBER
