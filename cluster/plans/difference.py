"""What a store lacks of a plan: for each model, corpus and template what is to be done, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.plans.comparisons import due_comparison, earlier_peers
from cluster.plans.holdings import CorpusDigests, Holdings, Wanted, peers_of, pooled_sites
from cluster.plans.models import PassedOver, PlannedModel
from cluster.plans.schema import Analyses, CorpusEntry, PlanFile, TemplateEntry
from extract.corpus import Corpus, read_corpus
from extract.request import Request
from extract.stored_run import StoredRun


class Step(StrEnum):
    """Something to be done for a run, in this order."""

    EXTRACT = "extract"
    FINISH = "finish"
    PROBE = "probe"
    PERSISTENCE = "persistence"
    COMPARE = "compare"


@dataclass(frozen=True, slots=True)
class Target:
    """A run that a plan wants."""

    model: PlannedModel
    """Its model, pinned."""
    corpus: CorpusEntry
    """As the plan has it."""
    template: TemplateEntry
    """As the plan has it."""
    wanted: Wanted = field(repr=False)
    """What recognises it in a store, and what is asked of an extraction."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing of a run that a plan wants."""

    target: Target
    """The run."""
    run: StoredRun | None
    """The run in the store; None where there is none."""
    steps: tuple[Step, ...]
    """What is to be done; empty for nothing."""
    reason: str
    """Why, in a few words."""
    problem: str | None = None
    """Why it cannot be done, in a sentence; None where it can."""


def targets(plan: PlanFile, models: Sequence[PlannedModel]) -> tuple[list[Target], list[PassedOver]]:
    """Every run that a plan wants, model after model, and the corpora that could not be read."""
    corpora: list[tuple[CorpusEntry, Corpus, CorpusDigests]] = []
    failed = []
    for entry in plan.corpora:
        try:
            corpus = read_corpus(entry.path)
            corpus = corpus if entry.limit is None else corpus.head(entry.limit)
            corpora.append((entry, corpus, CorpusDigests.of(corpus)))
        except ValueError as error:
            failed.append(PassedOver(f"corpus {entry}", str(error)))
    found = []
    for model in models:
        for entry, corpus, digests in corpora:
            for template in plan.templates:
                wanted = Wanted.of(model, _request(plan, model, corpus, template), digests)
                found.append(Target(model, entry, template, wanted))
    return found, failed


def _request(plan: PlanFile, model: PlannedModel, corpus: Corpus, template: TemplateEntry) -> Request:
    return Request(
        model=model.name,
        corpus=corpus,
        sites=plan.sites,
        layers=plan.layers,
        template=template.source,
        system=template.system,
        date=plan.date,
        compute_dtype=plan.dtype,
        stored_dtype=plan.stored_dtype,
        truncate=plan.truncate,
        compression=plan.compression,
    )


def difference(wanted: Sequence[Target], analyses: Analyses, holdings: Holdings) -> list[Gap]:
    """What a store lacks, target by target."""
    gaps: list[Gap] = []
    for target in wanted:
        try:
            gap = _gap(target, analyses, holdings)
        except ValueError as error:  # damage to one run is not the others' business
            gap = Gap(target, None, (), "not to be judged", str(error))
        gaps.append(gap)
    return [_with_comparison(gap, gaps[:index], analyses, holdings) for index, gap in enumerate(gaps)]


def _gap(target: Target, analyses: Analyses, holdings: Holdings) -> Gap:
    run = holdings.find(target.wanted)
    analysing = tuple(
        step for step, asked in ((Step.PROBE, analyses.probes), (Step.PERSISTENCE, analyses.persistence)) if asked
    )
    if run is None:
        reason = "no such run" if target.wanted.weights else "not imported yet, so its runs are not known"
        return Gap(target, None, (Step.EXTRACT, *analysing), reason)
    stored, asked = holdings.columns(run), target.wanted.columns
    differing = [name for name in dict.fromkeys((*stored, *asked)) if stored.get(name) != asked.get(name)]
    if differing:
        return Gap(
            target,
            run,
            (),
            "other labels or columns",
            f"run {run.run_id} holds these texts already, but with other values in {', '.join(differing)}; stored runs never "
            "change, so plan the corrected corpus for another store",
        )
    missing = holdings.rows_missing(run)
    if missing:
        reason = f"{missing:,} of {run.manifest.n_rows:,} rows are missing"
        return Gap(target, run, (Step.FINISH, *analysing), reason)
    return _unanalysed(target, run, analyses, holdings)


def _unanalysed(target: Target, run: StoredRun, analyses: Analyses, holdings: Holdings) -> Gap:
    steps, reasons = [], []
    if analyses.probes is not None:
        sites = [site for site in pooled_sites(run) if site not in holdings.probes(run, analyses.probes.kind)]
        if sites:
            steps.append(Step.PROBE)
            reasons.append(f"no probes of {', '.join(sites)}")
    if analyses.persistence is not None and holdings.persistence(run, analyses.persistence) is None:
        steps.append(Step.PERSISTENCE)
        reasons.append("no persistence")
    return Gap(target, run, tuple(steps), "; ".join(reasons) or "complete")


def _with_comparison(gap: Gap, before: Sequence[Gap], analyses: Analyses, holdings: Holdings) -> Gap:
    """The gap with a comparison to do, where there will be an earlier run once everything else is done."""
    if analyses.probes is None or gap.problem is not None:
        return gap
    if gap.steps:
        due = _has_earlier(gap, before, holdings)
    else:
        assert gap.run is not None
        due = due_comparison(gap.run, holdings, analyses) is not None
    reason = "not compared" if due and not gap.steps else gap.reason
    return Gap(gap.target, gap.run, (*gap.steps, Step.COMPARE), reason) if due else gap


def _has_earlier(gap: Gap, before: Sequence[Gap], holdings: Holdings) -> bool:
    """Whether a run of the same utterances and template is in the store, or comes before this one in the plan."""
    if gap.run is not None:
        return bool(earlier_peers(gap.run, holdings))
    alike = (each.target for each in before if each.problem is None)
    planned = any((each.corpus, each.template) == (gap.target.corpus, gap.target.template) for each in alike)
    manifests = (run.manifest for run in holdings.runs if not run.manifest.identity.imported)
    return planned or any(gap.target.wanted.peers == peers_of(manifest) for manifest in manifests)
