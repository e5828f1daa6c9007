"""The analyses with their progress, shared by the single commands, the demo and plans. Extraction is in cluster.launch."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from analyze import results
from analyze.geometry import GeometryResult, measure_geometry
from analyze.persistence import OFFSETS, PersistenceResult, continued_request, make_classifier, measure_persistence
from analyze.probes import DEFAULT, Probed, ProbeResult, ProbeSpec, probe_layers
from analyze.projection import project
from analyze.query import Run
from analyze.report import write_report
from analyze.report.findings import headline_probe
from analyze.saved import load_probes, save_probes
from analyze.transfer import Source, TransferResult, measure_transfer
from analyze.zeroshot import ZeroShotResult, measure_zero_shot, zero_shot_request
from cluster.console import note, progress
from cluster.execution import Execution
from cluster.launch import extract
from cluster.mapping import mapper_of
from extract.corpus import read_passages
from extract.objects import LocalObjects
from extract.sites import Site


def probe(
    run: Run, site: str, layers: Sequence[int], spec: ProbeSpec = DEFAULT, execution: Execution | None = None
) -> ProbeResult:
    """Probe layers and keep the probes and their scores; what was kept before for the same layers is used again."""
    for kept in results.probes(run):
        if (kept.site, kept.spec, [entry.layer for entry in kept.layers]) == (site, spec, list(layers)):
            note(f"probes of {site} were kept with run {run.run_id}")
            return kept
    spec.check()  # what cannot be is refused before Ray is started
    with mapper_of(execution) as mapper, progress(f"probing {site}", len(layers), "layers") as advance:
        probed = probe_layers(run, site, layers, spec, advance, mapper)
    save_probes(run, probed)  # first the probes: whoever finds scores finds what they are of
    results.save(run, probed.result)
    return probed.result


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


def zero_shot(
    run: Run, site: str, kind: str, max_tokens: int, location: str, execution: Execution | None = None
) -> ZeroShotResult:
    """Ask a run's model about its test utterances, hold the answers against probes where some are kept, and keep the result."""
    ProbeSpec(kind).check()  # an unknown kind is refused before a minute of writing
    asked = Run(extract(zero_shot_request(run, max_tokens), location, execution))
    result = measure_zero_shot(run, asked, _kept_probes(run, site, ProbeSpec(kind)))
    results.save(run, result)
    return result


def report(run: Run, directory: Path) -> Path:
    """Write a run's report from the results kept with it; probes that are missing are made first."""
    full = [kept for kept in results.probes(run) if tuple(entry.layer for entry in kept.layers) == run.layers_of(kept.site)]
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


def _kept_probes(run: Run, site: str, spec: ProbeSpec) -> Probed | None:
    """The probes of a site with their scores, of the most layers that are kept; None where none are."""
    kept = [result for result in results.probes(run) if (result.site, result.spec) == (site, spec)]
    if not kept:
        return None
    result = max(kept, key=lambda each: len(each.layers))
    layers = [entry.layer for entry in result.layers]
    _, probes = load_probes(run, site, layers, spec)
    return Probed(result, tuple(probes[layer] for layer in layers))
