"""What is missing, against what an extraction itself would find: the run's identity is the oracle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from analyze.probes import ProbeSpec
from analyze.query import Run
from cluster import pipeline
from cluster.launch import extract
from cluster.plans.difference import Gap, Step, difference, targets
from cluster.plans.holdings import CorpusDigests, Holdings, Wanted
from cluster.plans.models import resolve
from cluster.plans.schema import ModelsEntry, PlanFile, TemplateEntry, read_plan
from extract.corpus import read_corpus
from extract.documents import Manifest
from extract.request import Request
from extract.run import plan_run
from tests.cluster.plans.conftest import Workshop

JINJA = "{{ system }}Say: {{ text }}"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other sites": {"sites": "resid.last"},
    "sites in another order": {"sites": "resid.mean, resid.last"},
    "some layers": {"layers": "0:2"},
    "the same layers": {"layers": "0,1,2,3"},
    "float32 stored": {"stored_dtype": "float32"},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "float32": {"compute_dtype": "float32"},
    "truncated": {"truncate": True},
    "chat": {"template": "chat"},
    "chat, another date": {"template": "chat", "date": "2030-01-01"},
    "raw, another date": {"date": "2030-01-01"},
    "chat, a system prompt": {"template": "chat", "system": "Be calm."},
    "jinja": {"template": JINJA},
    "jinja, a system prompt": {"template": JINJA, "system": "Be calm. "},
    "few-shot": {"template": "few-shot"},
    "other texts": {"limit": 4},
    "offsets": {"sites": "resid.offset", "offsets": (0, 1), "continuation": " and so on"},
    "other offsets": {"sites": "resid.offset", "offsets": (0, 2), "continuation": " and so on"},
    "another continuation": {"sites": "resid.offset", "offsets": (0, 1), "continuation": " and then it"},
}


DATED = "{{ strftime_now('%d %b %Y') }}{% for message in messages %} {{ message['content'] }}{% endfor %}"
Made = dict[str, tuple[Request, Manifest]]


def make_each(model: str, variants: dict[str, dict[str, Any]], directory: Path) -> Made:
    """Each variant's request, and the manifest of the run that an extraction of it makes in a store of its own."""
    made = {}
    for number, (name, variant) in enumerate(variants.items()):
        options = dict(variant)
        request = Request(model, read_corpus("builtin").head(options.pop("limit", 5)), **options)
        made[name] = request, plan_run(request, str(directory / str(number))).run.manifest
    return made


def check_recognised(model: str, made: Made, fetched: bool = True) -> int:
    """Each request recognises exactly the runs that an extraction of it would find; returns how many pairs are alike.

    Args:
        fetched: whether to look at the model's files, as is done with local ones and not with those of the hub.
    """
    (planned,) = resolve([ModelsEntry(model)]).found
    planned = planned if fetched else replace(planned, tokenizer=None)
    n_alike = 0
    for asked, (request, own) in made.items():
        as_planned = replace(request, template=TemplateEntry(request.template).source)
        wanted = Wanted.of(planned, as_planned, CorpusDigests.of(request.corpus))
        for name, (_, manifest) in made.items():
            identity = manifest.identity
            if request.compute_dtype == "auto":  # an extraction takes the run that is there, in either precision
                identity = replace(identity, compute_dtype=own.identity.compute_dtype)
            assert wanted.is_run(manifest) == (identity == own.identity), (asked, name)
            n_alike += identity == own.identity
    return n_alike


def test_a_run_is_recognised_exactly_where_an_extraction_would_find_it(workshop: Workshop) -> None:
    model = str(workshop.model("one", blocks=3))
    made = make_each(model, VARIANTS, workshop.directory)
    assert check_recognised(model, made) > len(VARIANTS)  # some are the same run by another name
    check_recognised(model, made, fetched=False)


def test_a_date_makes_another_run_only_of_a_chat_template_that_writes_it(workshop: Workshop) -> None:
    model = workshop.model("dated")
    (model / "chat_template.jinja").write_text(DATED)
    variants = {name: VARIANTS[name] for name in VARIANTS if "date" in name or name in ("plain", "chat")}
    made = make_each(str(model), variants, workshop.directory)
    assert made["chat"][1].run_id != made["chat, another date"][1].run_id
    check_recognised(str(model), made)
    check_recognised(str(model), made, fetched=False)


def test_local_models_that_differ_in_nothing_but_their_chat_template_are_told_apart(workshop: Workshop) -> None:
    plain, edited = workshop.model("plain"), workshop.model("edited")
    (edited / "chat_template.jinja").write_text("{% for message in messages %}So: {{ message['content'] }}{% endfor %}")
    made = {
        path: make_each(str(path), {"chat": {"template": "chat"}}, workshop.directory / path.name)["chat"]
        for path in (plain, edited)
    }
    (planned,) = resolve([ModelsEntry(str(edited))]).found
    wanted = Wanted.of(planned, made[edited][0], CorpusDigests.of(made[edited][0].corpus))
    assert [wanted.is_run(manifest) for _, manifest in made.values()] == [False, True]


def plan_for(workshop: Workshop, more: str = "") -> PlanFile:
    workshop.corpus()
    return read_plan(workshop.plan(f"store: store\ncorpora: [texts.jsonl]\nmodels: [{{directory: made}}]\n{more}"))


def gaps_of(plan: PlanFile) -> list[Gap]:
    wanted, failed = targets(plan, resolve(plan.models).found)
    assert failed == []
    return difference(wanted, plan.analyses, Holdings(plan.store))


def steps_of(plan: PlanFile) -> list[list[str]]:
    return [[str(step) for step in gap.steps] for gap in gaps_of(plan)]


def test_a_store_that_is_not_there_lacks_everything_and_is_not_made(workshop: Workshop) -> None:
    workshop.model("one")
    plan = plan_for(workshop, "templates: [raw, few-shot]\nanalyses: {probes: , persistence: }\n")
    assert steps_of(plan) == [["extract", "probe", "persistence"]] * 2
    assert not Path(plan.store).exists()


def test_step_after_step_less_is_missing_until_nothing_is(workshop: Workshop) -> None:
    workshop.model("one")
    plan = plan_for(workshop, "analyses: {probes: {kind: logistic}}\n")
    (gap,) = gaps_of(plan)
    unfinished = plan_run(gap.target.wanted.request, plan.store).run
    (gap,) = gaps_of(plan)
    assert (gap.steps, gap.reason) == ((Step.FINISH, Step.PROBE), "30 of 30 rows are missing")
    assert gap.run is not None
    assert gap.run.run_id == unfinished.run_id
    run = Run(extract(gap.target.wanted.request, plan.store))
    (gap,) = gaps_of(plan)
    assert (gap.steps, gap.reason) == ((Step.PROBE,), "no probes of resid.last, resid.mean")
    pipeline.probe(run, "resid.last", run.layers, ProbeSpec("logistic"))
    pipeline.probe(run, "resid.mean", run.layers, ProbeSpec("linear"))
    (gap,) = gaps_of(plan)
    assert (gap.steps, gap.reason) == ((Step.PROBE,), "no probes of resid.mean")
    pipeline.probe(run, "resid.mean", run.layers, ProbeSpec("logistic"))
    (gap,) = gaps_of(plan)
    assert (gap.steps, gap.reason) == ((), "complete")


def test_persistence_is_missing_until_it_is_that_of_the_plan(workshop: Workshop) -> None:
    workshop.model("one")
    plan = plan_for(workshop, "analyses: {persistence: {per_label: 5}}\n")
    run = Run(extract(gaps_of(plan)[0].target.wanted.request, plan.store))
    assert steps_of(plan) == [["persistence"]]
    layer = pipeline.probe(run, "resid.last", run.layers, ProbeSpec("linear")).best_layer
    wanted = plan.analyses.persistence
    assert wanted is not None
    pipeline.persistence(run, (layer,), wanted.passage, 6, wanted.kind, plan.store)
    assert steps_of(plan) == [["persistence"]]
    pipeline.persistence(run, (layer,), wanted.passage, 5, wanted.kind, plan.store)
    assert steps_of(plan) == [[]]


def test_a_second_model_is_to_be_compared_with_the_first(workshop: Workshop) -> None:
    workshop.model("a")
    plan = plan_for(workshop, "analyses: {probes: }\n")
    assert steps_of(plan) == [["extract", "probe"]]
    workshop.model("b", seed=1)
    assert steps_of(plan) == [["extract", "probe"], ["extract", "probe", "compare"]]


def test_a_model_whose_weights_changed_is_another_model(workshop: Workshop) -> None:
    workshop.model("one")
    plan = plan_for(workshop)
    extract(gaps_of(plan)[0].target.wanted.request, plan.store)
    assert steps_of(plan) == [[]]
    workshop.model("one", seed=1)
    assert steps_of(plan) == [["extract"]]


def test_corrected_labels_are_a_problem_that_is_told(workshop: Workshop) -> None:
    workshop.model("one")
    plan = plan_for(workshop)
    extract(gaps_of(plan)[0].target.wanted.request, plan.store)
    texts = workshop.directory / "texts.jsonl"
    texts.write_text(texts.read_text().replace('"joy"', '"bliss"'))
    (gap,) = gaps_of(plan)
    assert gap.steps == ()
    assert "with other values in label" in str(gap.problem)


def test_damage_to_one_run_does_not_hide_the_others(workshop: Workshop) -> None:
    workshop.model("a")
    workshop.model("b", seed=1)
    plan = plan_for(workshop)
    runs = [extract(gap.target.wanted.request, plan.store) for gap in gaps_of(plan)]
    (receipt,) = Path(plan.store, "runs", runs[0].run_id, "receipts").iterdir()
    receipt.write_bytes(receipt.read_bytes()[1:])
    damaged, whole = gaps_of(plan)
    assert "see affectome verify --repair" in str(damaged.problem)
    assert (whole.steps, whole.problem) == ((), None)
    manifest = Path(plan.store, "runs", runs[1].run_id, "run.json")
    manifest.write_bytes(manifest.read_bytes()[1:])
    (unread,) = Holdings(plan.store).damaged
    assert unread.name == f"run {runs[1].run_id}"


def test_a_corpus_that_cannot_be_read_costs_only_its_own_runs(workshop: Workshop) -> None:
    workshop.model("one")
    workshop.corpus()
    text = "store: store\ncorpora: [texts.jsonl, absent.csv]\nmodels: [{directory: made}]\n"
    plan = read_plan(workshop.plan(text))
    wanted, failed = targets(plan, resolve(plan.models).found)
    assert len(wanted) == 1
    assert [each.name for each in failed] == [f"corpus {workshop.directory / 'absent.csv'}"]
