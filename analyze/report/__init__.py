"""The report of a run: one HTML file that stands alone, and its pictures beside it.

This file puts the page together and writes it; each part is made where its subject is: `findings`, `pictures`,
`persistence`, `limits` and `provenance` speak through `words`, and fill the values of `page`, which the template lays out.
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.projection import Projection
from analyze.query import Run
from analyze.report import findings, pictures, provenance
from analyze.report.limits import limits
from analyze.report.page import Page, Picture
from analyze.report.persistence import persistence_sections
from analyze.report.words import noun
from extract import durable
from extract.corpus import BUILTIN as BUILTIN_CORPUS

REPORT_FILE = "report.html"


def write_report(
    run: Run,
    probes: Sequence[ProbeResult],
    persistence: Sequence[PersistenceResult],
    projection: Projection,
    directory: Path,
) -> Path:
    """Write report.html and its pictures.

    Args:
        run: the run the results are of.
        probes: one or more, such as one for each site.
        persistence: may be empty; then the report says how to measure it.
        directory: made where there is nothing yet; files of these names are replaced.

    Returns:
        Where report.html is.

    Raises:
        ValueError: there are no probes.
    """
    if not probes:
        raise ValueError(
            f"there is nothing to report on run {run.run_id}; make probes first: affectome probe STORE {run.run_id}"
        )
    page = _page(run, probes, persistence, projection)
    durable.ensure_directory(directory)
    files = _png_files(page)
    for name, png in files.items():
        durable.replace(directory / name, png)
    for earlier in directory.glob("persistence*.png"):  # of a report that had more curves than this one
        if earlier.name not in files:
            earlier.unlink()
    path = directory / REPORT_FILE
    durable.replace(path, _render(page).encode())
    return path


def _page(run: Run, probes: Sequence[ProbeResult], persistence: Sequence[PersistenceResult], projection: Projection) -> Page:
    manifest, receipts, best = run.manifest, run.stored.receipts(), findings.headline_probe(probes)
    measured = provenance.with_continuations(run, persistence)
    corpus = "the built-in corpus" if manifest.corpus == BUILTIN_CORPUS else manifest.corpus
    return Page(
        title=f"Where {noun(best.classes)} can be read in {manifest.model}, on {corpus}",
        headline=findings.headline(best, manifest.n_layers),
        lead=findings.lead(best, probes),
        layer_map=pictures.layer_map(best, probes),
        best_layers=findings.best_table(probes),
        every_layer=findings.layer_tables(probes),
        where=findings.where(probes),
        persistence=persistence_sections(persistence, _layer_of_last(probes)),
        persistence_command=provenance.commands_to_measure_persistence(run),
        confusion=pictures.confusion(best),
        projection=pictures.projection(projection),
        limits=limits(manifest, best, probes, persistence),
        facts=provenance.facts(run, receipts, best, measured),
        work=provenance.work(receipts),
        commands=provenance.commands(run, probes, measured),
    )


def _layer_of_last(probes: Sequence[ProbeResult]) -> int:
    """The best layer for `resid.last`, which persistence is measured at by default."""
    return next((probe.best_layer for probe in probes if probe.site == "resid.last"), probes[0].best_layer)


def _png_files(page: Page) -> dict[str, bytes]:
    """The pictures of a page by the names they have beside it."""
    return {
        "layer-map.png": page.layer_map.png,
        "confusion.png": page.confusion.png,
        "projection.png": page.projection.png,
    } | {_persistence_file(index): picture.png for index, picture in enumerate(_persistence_pictures(page))}


def _persistence_pictures(page: Page) -> list[Picture]:
    return [picture for section in page.persistence for picture in section.pictures]


def _persistence_file(index: int) -> str:
    return f"persistence-{index + 1}.png" if index else "persistence.png"


def _render(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("analyze"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(page=page)
