"""The report of a run: one HTML file that stands alone, and its pictures and tables beside it.

This file puts the page together and writes it; each part is made where its subject is: `answers`, `findings`, `pictures`,
`geometry`, `persistence`, `contrast`, `asked`, `limits` and `provenance` speak through `words`, and fill the values of `page`,
which the template lays out; `tables` are the same numbers for other programs.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from jinja2 import Environment, PackageLoader, StrictUndefined

from analyze.geometry import GeometryResult
from analyze.probes import ProbeResult
from analyze.query import Run
from analyze.report import findings, pictures, provenance, tables
from analyze.report.answers import answers
from analyze.report.asked import prompting_section, zero_shot_section
from analyze.report.contrast import contrast_section
from analyze.report.evidence import Evidence
from analyze.report.geometry import geometry_section
from analyze.report.limits import limits
from analyze.report.page import Page, Section
from analyze.report.persistence import persistence_sections
from analyze.report.words import noun
from extract import durable
from extract.corpus import BUILTIN as BUILTIN_CORPUS

REPORT_FILE = "report.html"


def write_report(run: Run, evidence: Evidence, directory: Path) -> Path:
    """Write report.html, its pictures, and its numbers as Parquet in `tables`.

    Args:
        run: the run the results are of.
        directory: made where there is nothing yet; files of these names are replaced, and those of an earlier report that
            this one does not have are removed.

    Returns:
        Where report.html is.

    Raises:
        ValueError: there are no probes.
    """
    if not evidence.probes:
        raise ValueError(
            f"there is nothing to report on run {run.run_id}; make probes first: affectome probe STORE {run.run_id}"
        )
    page = _page(run, evidence)
    files = _png_files(page) | {f"tables/{name}.parquet": _parquet(table) for name, table in _tables(evidence).items()}
    for name, content in files.items():
        durable.ensure_directory((directory / name).parent)
        durable.replace(directory / name, content)
    for pattern in ("persistence*.png", "how*.png", "contrast*.png", "tables/*.parquet"):
        for earlier in directory.glob(pattern):
            if str(earlier.relative_to(directory)) not in files:
                earlier.unlink()
    path = directory / REPORT_FILE
    durable.replace(path, _render(page).encode())
    return path


def _page(run: Run, evidence: Evidence) -> Page:
    probes, persistence = evidence.probes, evidence.persistence
    manifest, receipts, best = run.manifest, run.stored.receipts(), findings.headline_probe(probes)
    measured = provenance.with_continuations(run, persistence)
    how = _geometry_of(evidence, best)
    corpus = "the built-in corpus" if manifest.corpus == BUILTIN_CORPUS else manifest.corpus
    return Page(
        title=f"Where {noun(best.classes)} can be read in {manifest.model}, on {corpus}",
        headline=findings.headline(best, manifest.n_layers),
        lead=findings.lead(best, probes),
        answers=answers(best, how, persistence),
        layer_map=pictures.layer_map(best, probes),
        best_layers=findings.best_table(probes),
        every_layer=findings.layer_tables(probes),
        where=findings.where(probes),
        how=() if how is None else (geometry_section(how, best.best_layer),),
        how_command=provenance.commands_to_measure(run, "geometry", "--site", best.site),
        persistence=persistence_sections(persistence, _layer_of_last(probes)),
        persistence_command=provenance.commands_to_measure(run, "persistence"),
        contrasts=tuple(contrast_section(result) for result in evidence.transfers),
        asked=(
            *(zero_shot_section(result) for result in evidence.zero_shots),
            *(prompting_section(result) for result in evidence.promptings),
        ),
        confusion=pictures.confusion(best),
        projection=pictures.projection(evidence.projection),
        limits=limits(manifest, best, probes, persistence),
        facts=provenance.facts(run, receipts, best, measured),
        work=provenance.work(receipts),
        commands=provenance.commands(run, evidence, measured),
    )


def _geometry_of(evidence: Evidence, best: ProbeResult) -> GeometryResult | None:
    """That of the headline's site."""
    return next((result for result in evidence.geometries if result.site == best.site), None)


def _layer_of_last(probes: Sequence[ProbeResult]) -> int:
    """The best layer for `resid.last`, which persistence is measured at by default."""
    return next((probe.best_layer for probe in probes if probe.site == "resid.last"), probes[0].best_layer)


def _tables(evidence: Evidence) -> dict[str, pa.Table]:
    """The tables of what was measured."""
    made = {
        "probes": tables.probe_table(evidence.probes),
        "persistence": tables.persistence_table(evidence.persistence),
        "geometry": tables.geometry_table(evidence.geometries),
        "transfer": tables.transfer_table(evidence.transfers),
        "zero-shot": tables.zero_shot_table(evidence.zero_shots),
        "prompting": tables.prompting_table(evidence.promptings),
    }
    return {name: table for name, table in made.items() if table.num_rows}


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _png_files(page: Page) -> dict[str, bytes]:
    """The pictures of a page by the names they have beside it."""
    return (
        {
            "layer-map.png": page.layer_map.png,
            "confusion.png": page.confusion.png,
            "projection.png": page.projection.png,
        }
        | _numbered("persistence", page.persistence)
        | _numbered("how", page.how)
        | _numbered("contrast", page.contrasts)
    )


def _numbered(name: str, sections: Sequence[Section]) -> dict[str, bytes]:
    shown = [picture.png for section in sections for picture in section.pictures]
    return {f"{name}-{index + 1}.png" if index else f"{name}.png": png for index, png in enumerate(shown)}


def _render(page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("analyze"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(page=page)
