"""Refresh a store by a plan: find what is missing, do it one model after another, compare what is new with what was there.

The store is the only memory: what is done is what receipts and kept results say, so a refresh that is stopped anywhere goes on
where it was, and one that finds everything there does nothing.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analyze.probes import ProbeSpec
from analyze.query import Run
from cluster import pipeline
from cluster.console import note
from cluster.execution import Execution
from cluster.launch import extract
from cluster.plans.comparisons import due_comparison, write_comparison
from cluster.plans.difference import Gap, Step, difference, targets
from cluster.plans.holdings import LAYER_SITE, Holdings, pooled_sites
from cluster.plans.models import PassedOver, resolve
from cluster.plans.schema import Analyses, PlanFile
from extract.stored_run import StoredRun

_LONGEST_SENTENCE = 400


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a plan comes to today."""

    gaps: tuple[Gap, ...]
    """Every run that it wants, whether something is missing of it or not."""
    left_out: tuple[PassedOver, ...]
    """Models that its filters take away."""
    failed: tuple[PassedOver, ...]
    """What could not be found out: entries, corpora, damaged runs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run that a plan wants."""

    gap: Gap
    """What was missing of it."""
    run_id: str | None
    """The run; None where there is none."""
    seconds: float
    """How long it took."""
    failure: str | None
    """Why it is not as the plan wants it, in a sentence; None where it is."""
    page: str | None = None
    """Where its new comparison with earlier runs is; None where none was written."""


def look(plan: PlanFile) -> Outlook:
    """Find out what is missing. Nothing is written, and of the hub's models nothing is fetched but metadata.

    Raises:
        ValueError: there is something else than a store where the plan has its store.
    """
    holdings = Holdings(plan.store)
    resolution = resolve(plan.models)
    wanted, unreadable = targets(plan, resolution.found)
    gaps = difference(wanted, plan.analyses, holdings)
    return Outlook(tuple(gaps), resolution.left_out, (*resolution.failed, *unreadable, *holdings.damaged))


def carry_out(outlook: Outlook, plan: PlanFile, execution: Execution | None = None) -> list[Outcome]:
    """Do what is missing, then write the comparisons that are due. A failure does not stop what comes after it.

    Args:
        execution: where shards and probes are computed (cluster.launch.extract).
    """
    n_work = sum(bool(set(gap.steps) - {Step.COMPARE}) for gap in outlook.gaps)
    number, outcomes = 0, []
    for gap in outlook.gaps:
        if set(gap.steps) - {Step.COMPARE}:
            number += 1
            note(f"{number:,} of {n_work:,}: {gap.target.model.name}, {gap.target.corpus}, {gap.target.template}")
        outcomes.append(_outcome(gap, plan, execution))
    return _compared(outcomes, plan)


def _outcome(gap: Gap, plan: PlanFile, execution: Execution | None) -> Outcome:
    began, run_id = time.monotonic(), gap.run.run_id if gap.run else None
    try:
        run = _complete(gap, plan, execution) if gap.problem is None else None
        run_id, failure = run.run_id if run else run_id, gap.problem
    except Exception as error:  # one model's trouble, whatever it is, must not cost the others their night
        failure = _sentence(error)
        note(f"failed: {failure}")
    return Outcome(gap, run_id, time.monotonic() - began, failure)


def _complete(gap: Gap, plan: PlanFile, execution: Execution | None) -> StoredRun:
    """Do the steps of a gap but the comparison. This is the one place where a refresh computes."""
    run = gap.run
    if run is None or Step.FINISH in gap.steps:
        request = gap.target.wanted.request
        if run is not None:  # what was left to this affectome's choice was chosen when the run was created
            identity = run.manifest.identity
            request = replace(request, compute_dtype=identity.compute_dtype, attention=identity.attention)
        run = extract(request, plan.store, execution)
    if Step.PROBE in gap.steps:
        _probe(run, plan.analyses, execution)
    if Step.PERSISTENCE in gap.steps:
        _measure_persistence(run, plan, execution)
    return run


def _probe(run: StoredRun, analyses: Analyses, execution: Execution | None) -> None:
    assert analyses.probes is not None
    opened = Run(run)
    for site in pooled_sites(run):
        pipeline.probe(opened, site, run.layers(site), ProbeSpec(analyses.probes.kind), execution)


def _measure_persistence(run: StoredRun, plan: PlanFile, execution: Execution | None) -> None:
    wanted, opened = plan.analyses.persistence, Run(run)
    assert wanted is not None
    layer = pipeline.probe(opened, LAYER_SITE, run.layers(LAYER_SITE), ProbeSpec(wanted.kind), execution).best_layer
    pipeline.persistence(opened, (layer,), wanted.passage, wanted.per_label, wanted.kind, plan.store, execution)


def _compared(outcomes: Sequence[Outcome], plan: PlanFile) -> list[Outcome]:
    """The outcomes, with the comparisons that are due after all of them."""
    if plan.analyses.probes is None:
        return list(outcomes)
    holdings = Holdings(plan.store)
    return [_with_comparison(outcome, holdings, plan.analyses) for outcome in outcomes]


def _with_comparison(outcome: Outcome, holdings: Holdings, analyses: Analyses) -> Outcome:
    run = next((run for run in holdings.runs if run.run_id == outcome.run_id), None)
    if run is None or outcome.failure is not None or holdings.store is None:
        return outcome
    began = time.monotonic()
    try:
        comparison = due_comparison(run, holdings, analyses)
        page = write_comparison(holdings.store, comparison, run) if comparison else None
    except Exception as error:  # as above
        return replace(outcome, failure=_sentence(error))
    return replace(outcome, page=page, seconds=outcome.seconds + time.monotonic() - began)


def _sentence(error: Exception) -> str:
    """An error in one line, not longer than a line should be; with --debug all of it goes to standard error."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    said = " ".join(str(error).split())
    if not (said and isinstance(error, ValueError | RuntimeError | OSError)):
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= _LONGEST_SENTENCE else f"{said[:_LONGEST_SENTENCE]}... (all of it with --debug)"
