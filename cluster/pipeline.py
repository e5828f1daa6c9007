"""The analyses with their progress, shared by the single commands, the demo and plans. Extraction is in cluster.launch."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow.compute as pc

from analyze import results
from analyze.columns import CLASSES, LABEL, SETS, form_of
from analyze.geometry import GeometryResult, measure_geometry
from analyze.mapping import Mapper
from analyze.multilabel import MultiLabelResult, ProbedSets, check_for_sets, probe_sets
from analyze.persistence import OFFSETS, PersistenceResult, continued_request, make_classifier, measure_persistence
from analyze.probes import DEFAULT, ProbeResult, ProbeSpec, probe_layers
from analyze.projection import project
from analyze.query import Run
from analyze.report import write_report
from analyze.report.findings import headline_probe
from analyze.saved import load_probes, save_probes
from analyze.transfer import Source, TransferResult, measure_transfer
from analyze.valued import ProbedValues, ValueResult, check_for_values, probe_values
from cluster.console import Meter, note, progress
from cluster.execution import Execution
from cluster.launch import extract
from cluster.mapping import mapper_of
from extract.corpus import read_passages
from extract.objects import LocalObjects
from extract.sites import Site

_Probed = TypeVar("_Probed", ProbeResult, MultiLabelResult, ValueResult)


def probe(
    run: Run, site: str, layers: Sequence[int], spec: ProbeSpec = DEFAULT, execution: Execution | None = None
) -> ProbeResult:
    """Probe layers and keep the probes and their scores; what was kept before for the same layers is used again."""
    if (kept := _kept(results.probes(run), site, layers, spec)) is not None:
        return kept
    spec.check()  # what cannot be is refused before Ray is started
    with _probing(site, layers, execution) as (advance, mapper):
        probed = probe_layers(run, site, layers, spec, advance, mapper)
    save_probes(run, probed)  # first the probes: whoever finds scores finds what they are of
    results.save(run, probed.result)
    return probed.result


def probe_column(
    run: Run, site: str, layers: Sequence[int], spec: ProbeSpec, execution: Execution | None = None
) -> ProbeResult | MultiLabelResult | ValueResult:
    """As `probe`, of whatever the column of the specification holds: classes, lists of labels, or numbers."""
    form = form_of(run, spec.column)
    if form == CLASSES:
        return probe(run, site, layers, spec, execution)
    probed: ProbedSets | ProbedValues
    if form == SETS:
        if (kept_sets := _kept(results.multilabels(run), site, layers, spec)) is not None:
            return kept_sets
        check_for_sets(spec)
        with _probing(site, layers, execution) as (advance, mapper):
            probed = probe_sets(run, site, layers, spec, advance, mapper)
    else:
        if (kept_values := _kept(results.values(run), site, layers, spec)) is not None:
            return kept_values
        check_for_values(spec)
        with _probing(site, layers, execution) as (advance, mapper):
            probed = probe_values(run, site, layers, spec, advance, mapper)
    save_probes(run, probed)
    results.save(run, probed.result)
    return probed.result


def _kept(kept: Sequence[_Probed], site: str, layers: Sequence[int], spec: ProbeSpec) -> _Probed | None:
    for result in kept:
        if (result.site, result.spec, [entry.layer for entry in result.layers]) == (site, spec, list(layers)):
            note(f"probes of {site} were kept with run {result.run_id}")
            return result
    return None


@contextlib.contextmanager
def _probing(site: str, layers: Sequence[int], execution: Execution | None) -> Iterator[tuple[Meter, Mapper]]:
    with mapper_of(execution) as mapper, progress(f"probing {site}", len(layers), "layers") as advance:
        yield advance, mapper


def persistence(
    run: Run, layer: int, passage_id: str, per_label: int, kind: str, location: str, execution: Execution | None = None
) -> PersistenceResult:
    """Continue a sample of a run's utterances with a neutral passage, probe along it and keep the result."""
    make_classifier(kind)  # an unknown kind is refused before minutes of extraction
    request = continued_request(run, layer, passage_text(passage_id), per_label)
    continued = Run(extract(request, location, execution))
    for kept in results.persistence(run):
        if (kept.continued_run_id, kept.layer, kept.kind) == (continued.run_id, layer, kind):
            note(f"persistence at layer {layer} was kept with run {run.run_id}")
            return kept
    with mapper_of(execution) as mapper, progress("probing along the continuation", len(OFFSETS), "offsets") as advance:
        result = measure_persistence(run, continued, layer, kind, advance, mapper)
    results.save(run, result)
    return result


def geometry(run: Run, site: str, layers: Sequence[int], execution: Execution | None = None) -> GeometryResult:
    """Measure the geometry of layers and keep it; what was kept before for the same layers is used again."""
    for kept in results.geometries(run):
        if (kept.site, [entry.layer for entry in kept.layers]) == (site, list(layers)):
            note(f"the geometry of {site} was kept with run {run.run_id}")
            return kept
    with mapper_of(execution) as mapper, progress(f"measuring {site}", len(layers), "layers") as advance:
        result = measure_geometry(run, site, layers, advance, mapper)
    results.save(run, result)
    return result


def transfer(
    sources: Sequence[Source], site: str, layers: Sequence[int], spec: ProbeSpec = DEFAULT, execution: Execution | None = None
) -> TransferResult:
    """Train on each source, test on every one, and keep the result with the first source's run."""
    with mapper_of(execution) as mapper, progress(f"transferring {site}", len(layers), "layers") as advance:
        result = measure_transfer(sources, site, layers, spec, advance, mapper)
    results.save(sources[0].run, result)
    return result


def report(run: Run, directory: Path) -> Path:
    """Write a run's report from the results kept with it; probes that are missing are made first."""
    kept_probes = [kept for kept in results.probes(run) if kept.spec.column == LABEL]
    full = [kept for kept in kept_probes if tuple(entry.layer for entry in kept.layers) == run.layers_of(kept.site)]
    sites = [site for site in run.sites if Site.parse(site).pooled]
    if not sites:
        raise ValueError(f"run {run.run_id} keeps no site with one vector for each utterance, such as resid.last, to report on")
    full += [probe(run, site, run.layers_of(site)) for site in sites if site not in {kept.site for kept in full}]
    best = headline_probe(full)
    _, probes = load_probes(run, best.site, [entry.layer for entry in best.layers], best.spec)
    projection = project(run, best.site, best.best_layer, probes[best.best_layer])
    return write_report(run, full, results.persistence(run), projection, directory)


def report_directory(run: Run) -> Path:
    """Where a run's report goes when nobody says: beside the run, or here when the run is not on this machine."""
    objects = run.stored.objects
    return objects.root / "report" if isinstance(objects, LocalObjects) else Path(f"affectome-report-{run.run_id}")


def passage_text(passage_id: str) -> str:
    """A built-in neutral passage.

    Raises:
        ValueError: there is no such passage; the message names the choices.
    """
    passages = read_passages()
    found = passages.filter(pc.equal(passages["passage_id"], passage_id))["text"].to_pylist()
    if not found:
        raise ValueError(f"there is no passage {passage_id!r}; choose from {', '.join(passages['passage_id'].to_pylist())}")
    return str(found[0])
