"""What runs there are, and the results that are kept with them."""

from dataclasses import asdict

from fastapi import APIRouter, Response

from analyze.query import Run
from analyze.service.answers import json_answer, rows_answer
from analyze.service.asked import RunName
from analyze.service.documents import RowsDocument, RunDocument, RunsDocument, SiteDocument
from analyze.service.shelf import Shelf
from analyze.views import results_of
from extract.sites import Site


def router(shelf: Shelf) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/api/runs", response_model=RunsDocument)
    def runs() -> Response:
        """The runs of the store, newest first."""
        found, problems = [], []
        for run_id in shelf.store.stored.run_ids():
            try:
                with shelf.run(run_id) as run:
                    found.append(_document(run))
            except ValueError as error:  # one damaged run must not hide the others
                problems.append(str(error))
        newest = sorted(found, key=lambda run: run.created, reverse=True)
        return json_answer(asdict(RunsDocument(newest, problems)))

    @routes.get("/api/runs/{run}", response_model=RunDocument)
    def one(run: RunName) -> Response:
        """A run."""
        with shelf.run(run) as opened:
            return json_answer(asdict(_document(opened)))

    @routes.get("/api/runs/{run}/scores", response_model=RowsDocument)
    def scores(run: RunName) -> Response:
        """The scores of the probes that are kept with a run, an interval a row."""
        with shelf.run(run) as opened:
            return rows_answer(results_of([opened], "scores", 1))

    @routes.get("/api/runs/{run}/persistence", response_model=RowsDocument)
    def persistence(run: RunName) -> Response:
        """The persistence curves that are kept with a run, an interval a row."""
        with shelf.run(run) as opened:
            return rows_answer(results_of([opened], "persistence", 1))

    return routes


def _document(run: Run) -> RunDocument:
    manifest = run.manifest
    return RunDocument(
        run_id=run.run_id,
        model=manifest.model,
        corpus=manifest.corpus,
        template=manifest.template,
        system=manifest.system,
        n_rows=manifest.n_rows,
        width=manifest.width,
        complete=run.n_missing() == 0,
        created=manifest.created,
        imported=manifest.identity.imported,
        sites=[_site(run, Site.parse(site)) for site in run.sites],
    )


def _site(run: Run, site: Site) -> SiteDocument:
    offsets = run.manifest.identity.offsets if site.on_grid else ()
    return SiteDocument(str(site), run.layers_of(str(site)), offsets, site.position == "all")
