"""The report of a run: one HTML file that stands alone, and its pictures and tables beside it.

This file puts the page together and writes it; each part is made where its subject is: `answers`, `findings`, `pictures`,
`geometry`, `persistence`, `contrast`, `asked`, `limits` and `provenance` speak through `words`, and fill the values of `page`,
which the template lays out; `tables` are the same numbers for other programs.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from jinja2 import Environment, PackageLoader, StrictUndefined

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
LAST = "resid.last"
"""The site whose best layer persistence is measured at by default."""
_TABLES: dict[str, Callable[[Evidence], pa.Table]] = {
    "probes": lambda evidence: tables.probe_table(evidence.probes),
    "persistence": lambda evidence: tables.persistence_table(evidence.persistence),
    "geometry": lambda evidence: tables.geometry_table(evidence.geometries),
    "transfer": lambda evidence: tables.transfer_table(evidence.transfers),
    "zero-shot": lambda evidence: tables.zero_shot_table(evidence.zero_shots),
    "prompting": lambda evidence: tables.prompting_table(evidence.promptings),
}
_OURS = re.compile(rf"(persistence|how|contrast)(-\d+)?\.png|tables/({'|'.join(_TABLES)})\.parquet")
"""Names that a report writes, and may remove when it has less than the one before; the directory may hold other files."""


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
    for earlier in (*directory.glob("*.png"), *directory.glob("tables/*.parquet")):
        name = earlier.relative_to(directory).as_posix()
        if name not in files and _OURS.fullmatch(name):
            earlier.unlink()
    path = directory / REPORT_FILE
    durable.replace(path, _render(page).encode())
    return path


def _page(run: Run, evidence: Evidence) -> Page:
    probes, persistence = evidence.probes, evidence.persistence
    manifest, receipts, best = run.manifest, run.stored.receipts(), findings.headline_probe(probes)
    measured = provenance.with_continuations(run, persistence)
    how = next((result for result in evidence.geometries if result.site == best.site), None)
    corpus = "the built-in corpus" if manifest.corpus == BUILTIN_CORPUS else manifest.corpus
    return Page(
        title=f"Where {noun(best.classes)} can be read in {manifest.model}, on {corpus}",
        headline=findings.headline(best, manifest.n_layers),
        lead=findings.lead(best, probes),
        answers=answers(best, how, persistence, _best_layer(LAST, probes), manifest.identity.imported),
        layer_map=pictures.layer_map(best, probes),
        best_layers=findings.best_table(probes),
        every_layer=findings.layer_tables(probes),
        where=findings.where(probes),
        how=tuple(geometry_section(result, _best_layer(result.site, probes)) for result in evidence.geometries),
        how_command=provenance.commands_to_measure(run, "geometry", "--site", best.site),
        persistence=persistence_sections(persistence, _best_layer(LAST, probes)),
        persistence_command=""
        if manifest.identity.imported
        else provenance.commands_to_measure(run, "persistence", *_persistence_arguments(run, best)),
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


def _best_layer(site: str, probes: Sequence[ProbeResult]) -> int:
    """The best layer of a site; of another one where it was not probed."""
    return next((probe.best_layer for probe in probes if probe.site == site), probes[0].best_layer)


def _persistence_arguments(run: Run, best: ProbeResult) -> tuple[str, ...]:
    """Without resid.last there is no layer that persistence is measured at by default."""
    return () if LAST in run.sites else ("--layers", str(best.best_layer))


def _tables(evidence: Evidence) -> dict[str, pa.Table]:
    """The tables of what was measured."""
    made = {name: make(evidence) for name, make in _TABLES.items()}
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
