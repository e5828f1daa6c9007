"""The analyses with their progress, shared by the single commands, the demo and plans. Extraction is in cluster.launch."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc

from analyze import results
from analyze.columns import CLASSES, LABEL, SETS, form_of
from analyze.comparing import Similarity, shared_sites, write_comparison
from analyze.comparison import Measured, compare
from analyze.geometry import GeometryResult, compare_models, measure_geometry
from analyze.mapping import Mapper
from analyze.multilabel import MultiLabelResult, ProbedSets, check_for_sets, probe_sets
from analyze.persistence import (
    PersistenceResult,
    continued_request,
    make_classifier,
    measure_persistence,
    replied_request,
)
from analyze.probes import DEFAULT, Probed, ProbeResult, ProbeSpec, probe_layers
from analyze.projection import project
from analyze.prompting import Condition, PromptingResult, measure_prompting, n_steps, plan_prompting
from analyze.query import Run, open_store
from analyze.report import write_report
from analyze.report.evidence import Evidence
from analyze.report.findings import headline_probe
from analyze.report.persistence import shown_layer
from analyze.saved import has_probes, load_probes, save_probes
from analyze.transfer import Source, TransferResult, measure_transfer
from analyze.valued import ProbedValues, ValueResult, check_for_values, probe_values
from analyze.zeroshot import ZeroShotResult, measure_zero_shot, zero_shot_request
from cluster.console import Meter, note, progress
from cluster.execution import Execution
from cluster.launch import extract
from cluster.mapping import mapper_of
from extract.corpus import read_passages
from extract.decoding import Decoding
from extract.objects import LocalObjects
from extract.request import Request
from extract.sites import Site

_Probed = TypeVar("_Probed", ProbeResult, MultiLabelResult, ValueResult)


def probe(
    run: Run, site: str, layers: Sequence[int], spec: ProbeSpec = DEFAULT, execution: Execution | None = None
) -> ProbeResult:
    """Probe layers and keep the probes and their scores; what was kept before for the same layers is used again."""
    if (kept := _kept(run, results.probes(run), site, layers, spec)) is not None:
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
        if (kept_sets := _kept(run, results.multilabels(run), site, layers, spec)) is not None:
            return kept_sets
        check_for_sets(spec)
        with _probing(site, layers, execution) as (advance, mapper):
            probed = probe_sets(run, site, layers, spec, advance, mapper)
    else:
        if (kept_values := _kept(run, results.values(run), site, layers, spec)) is not None:
            return kept_values
        check_for_values(spec)
        with _probing(site, layers, execution) as (advance, mapper):
            probed = probe_values(run, site, layers, spec, advance, mapper)
    save_probes(run, probed)
    results.save(run, probed.result)
    return probed.result


def _kept(run: Run, kept: Sequence[_Probed], site: str, layers: Sequence[int], spec: ProbeSpec) -> _Probed | None:
    """Scores that are kept together with their probes: without these they are made again."""
    for result in kept:
        measured = result.site, result.spec, [entry.layer for entry in result.layers]
        if measured == (site, spec, list(layers)) and has_probes(run, site, layers, spec):
            note(f"probes of {site} were kept with run {result.run_id}")
            return result
    return None


@contextlib.contextmanager
def _probing(site: str, layers: Sequence[int], execution: Execution | None) -> Iterator[tuple[Meter, Mapper]]:
    with mapper_of(execution) as mapper, progress(f"probing {site}", len(layers), "layers") as advance:
        yield advance, mapper


def persistence(
    run: Run,
    layers: Sequence[int],
    passage_id: str,
    per_label: int,
    kind: str,
    location: str,
    execution: Execution | None = None,
) -> list[PersistenceResult]:
    """Continue a sample of a run's utterances with a neutral passage, probe along it at some layers and keep the results."""
    make_classifier(kind)  # an unknown kind is refused before minutes of extraction
    return _along(run, continued_request(run, layers, passage_text(passage_id), per_label), kind, location, execution)


def reply_persistence(
    run: Run,
    layers: Sequence[int],
    decoding: Decoding,
    template: str | None,
    per_label: int,
    kind: str,
    location: str,
    execution: Execution | None = None,
) -> list[PersistenceResult]:
    """Let the model reply to a sample of a run's utterances, probe along the replies at some layers and keep the results."""
    make_classifier(kind)
    return _along(run, replied_request(run, layers, decoding, per_label, template), kind, location, execution)


def _along(run: Run, request: Request, kind: str, location: str, execution: Execution | None = None) -> list[PersistenceResult]:
    continued = Run(extract(request, location, execution))
    kept = {(each.continued_run_id, each.layer, each.kind): each for each in results.persistence(run)}
    found = []
    for layer in continued.layers:
        if (continued.run_id, layer, kind) in kept:
            note(f"persistence at layer {layer} was kept with run {run.run_id}")
            found.append(kept[continued.run_id, layer, kind])
            continue
        n_offsets = len(continued.manifest.identity.offsets)
        with mapper_of(execution) as mapper, progress(f"probing along layer {layer}", n_offsets, "offsets") as advance:
            found.append(measure_persistence(run, continued, layer, kind, advance, mapper))
        results.save(run, found[-1])
    return found


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
    """Train on each source, test on every one, and keep the result with the first source's run; what was kept is used again."""
    asked = tuple(source.name for source in sources), tuple(source.run.run_id for source in sources), site, spec
    for kept in results.transfers(sources[0].run):
        if (kept.sources, kept.run_ids, kept.site, kept.spec) == asked and kept.layers == tuple(layers):
            note(f"this transfer was kept with run {sources[0].run.run_id}")
            return kept
    with mapper_of(execution) as mapper, progress(f"transferring {site}", len(layers), "layers") as advance:
        result = measure_transfer(sources, site, layers, spec, advance, mapper)
    results.save(sources[0].run, result)
    return result


def compare_runs(runs: Sequence[Run], kind: str, directory: Path, execution: Execution | None = None) -> Path:
    """Set the first run beside the others, with what was kept of each; probes that are missing are made first.

    Raises:
        ValueError: the runs are of different utterances or labels, or share no site.
    """
    sites = shared_sites(runs)
    forced = _forced_alike(runs, kind)
    measured = [_measured(run, sites, kind, execution, each) for run, each in zip(runs, forced, strict=True)]
    comparison = compare(measured[0], sorted(measured[1:], key=lambda each: each.run.manifest.created))
    by_id = {run.run_id: run for run in runs}
    with mapper_of(execution) as mapper:
        similarities = [
            Similarity(
                site,
                profile,
                runs[0].layers_of(site),
                by_id[profile.run_id].layers_of(site),
                np.array(compare_models(runs[0], by_id[profile.run_id], site, mapper)),
            )
            for site in sites
            for profile in comparison.earlier
        ]
    return write_comparison(comparison, similarities, runs[0], directory)


def _measured(
    run: Run, sites: Sequence[str], kind: str, execution: Execution | None, forced: PersistenceResult | None
) -> Measured:
    return Measured(run, tuple(probe(run, site, run.layers_of(site), ProbeSpec(kind), execution) for site in sites), forced)


def _forced_alike(runs: Sequence[Run], kind: str) -> list[PersistenceResult | None]:
    """Forced persistence that every run has of the same text after the same utterances, on one grid; None where there is none.

    Of several layers the one that is best by the first of its kept probes of resid.last, else the middle one.
    """
    by_run: list[dict[tuple[object, ...], list[PersistenceResult]]] = []
    for run in runs:
        of_text: dict[tuple[object, ...], list[PersistenceResult]] = {}
        for kept in results.persistence(run):
            if kept.decoding is None and kept.kind == kind:
                continued = open_store(run.stored.store_location).run(kept.continued_run_id).manifest.identity
                of_text.setdefault((continued.continuation, continued.corpus, kept.offsets), []).append(kept)
        by_run.append(of_text)
    shared = set(by_run[0]).intersection(*by_run[1:])
    if not shared:
        return [None] * len(runs)
    text = min(shared, key=str)
    return [shown_layer(of_text[text], _best_last(run, kind)) for run, of_text in zip(runs, by_run, strict=True)]


def _best_last(run: Run, kind: str) -> int:
    best = [kept.best_layer for kept in results.probes(run) if (kept.site, kept.spec) == ("resid.last", ProbeSpec(kind))]
    return best[0] if best else -1


def prompting(
    run: Run,
    conditions: Sequence[Condition],
    layers: Sequence[int],
    per_label: int,
    max_tokens: int,
    location: str,
    execution: Execution | None = None,
) -> PromptingResult:
    """Let a run's model reply to a sample under each system prompt, compare states and replies, and keep the result."""
    plan = plan_prompting(run, conditions, layers, per_label, max_tokens)
    prompted = []
    for condition, request in zip(plan.conditions, plan.requests, strict=True):
        note(f"system prompt {condition.name}")
        prompted.append(Run(extract(request, location, execution)))
    for kept in results.promptings(run):
        if (kept.conditions, kept.run_ids) == (plan.conditions, tuple(each.run_id for each in prompted)):
            note(f"the effects of these system prompts were kept with run {run.run_id}")
            return kept
    with mapper_of(execution) as mapper, progress("comparing system prompts", n_steps(layers), "steps") as advance:
        result = measure_prompting(run, plan, prompted, advance, mapper)
    results.save(run, result)
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
    kept_probes = [kept for kept in results.probes(run) if kept.spec.column == LABEL]
    full = [kept for kept in kept_probes if tuple(entry.layer for entry in kept.layers) == run.layers_of(kept.site)]
    sites = [site for site in run.sites if Site.parse(site).pooled]
    if not sites:
        raise ValueError(f"run {run.run_id} keeps no site with one vector for each utterance, such as resid.last, to report on")
    full += [probe(run, site, run.layers_of(site)) for site in sites if site not in {kept.site for kept in full}]
    best = headline_probe(full)
    _, probes = load_probes(run, best.site, [entry.layer for entry in best.layers], best.spec)
    projection = project(run, best.site, best.best_layer, probes[best.best_layer])
    geometries: dict[str, GeometryResult] = {}
    for kept in sorted(results.geometries(run), key=lambda kept: len(kept.layers)):
        geometries[kept.site] = kept  # of several that with the most layers
    transfers = [kept for kept in results.transfers(run) if set(kept.run_ids) == {run.run_id}]
    evidence = Evidence(
        probes=full,
        projection=projection,
        persistence=results.persistence(run),
        geometries=list(geometries.values()),
        transfers=transfers,
        zero_shots=list({kept.asked_run_id: kept for kept in results.zero_shots(run)}.values()),  # the one beside a probe
        promptings=results.promptings(run),
    )
    return write_report(run, evidence, directory)


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
