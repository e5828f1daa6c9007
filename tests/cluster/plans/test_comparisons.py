"""Comparisons are kept with the runs of a store and made again exactly when they are no longer what would be made."""

import json
import secrets
from pathlib import Path

import numpy as np
import pytest

from analyze import results
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from cluster.plans.comparisons import earlier_peers
from cluster.plans.holdings import Holdings
from cluster.plans.refresh import Outcome, carry_out, look
from cluster.plans.schema import PlanFile, read_plan
from extract.corpus import read_corpus
from extract.importing import ImportRequest, import_states
from extract.objects import open_objects
from extract.states_file import open_states
from tests.cluster.plans.conftest import Workshop
from tests.s3 import S3Server

PLAN = "store: {store}\ncorpora: [texts.jsonl]\nmodels: [{{directory: made}}]\nsites: resid.last\nanalyses: {{probes: }}\n"


def plan_of(workshop: Workshop, store: str = "store") -> PlanFile:
    workshop.corpus()
    return read_plan(workshop.plan(PLAN.format(store=store)))


def refresh(plan: PlanFile) -> list[Outcome]:
    outcomes = carry_out(look(plan), plan)
    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    return outcomes


def test_a_comparison_is_written_once_and_again_when_it_is_lost_or_damaged(workshop: Workshop) -> None:
    plan = plan_of(workshop)
    workshop.model("a")
    assert [outcome.page for outcome in refresh(plan)] == [None]
    workshop.model("b", seed=1)
    first, second = refresh(plan)
    assert first.page is None
    assert second.page == f"{plan.store}/comparisons/{second.run_id}/comparison.md"
    document = Path(second.page).with_name("comparison.json")
    whole = json.loads(document.read_text())
    assert [outcome.page for outcome in refresh(plan)] == [None, None]
    for damage in (document.unlink, lambda: document.write_text("{"), lambda: document.write_text('{"versions": {}}')):
        damage()
        assert [[str(step) for step in gap.steps] for gap in look(plan).gaps] == [[], ["compare"]]
        assert [outcome.page for outcome in refresh(plan)] == [None, second.page]
        assert json.loads(document.read_text())["result"] == whole["result"]


def test_after_an_upgrade_everything_is_measured_and_compared_anew(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(workshop)
    for seed, name in enumerate("ba"):  # in the plan the later one comes first
        workshop.model(name, seed=seed)
        refresh(plan)
    monkeypatch.setattr(results, "versions", lambda: {"affectome": "upgraded"})
    later, earlier = refresh(plan)
    assert (later.gap.steps, earlier.gap.steps) == (("probe", "compare"), ("probe",))
    assert later.page is not None
    assert json.loads(Path(later.page).with_name("comparison.json").read_text())["versions"] == {"affectome": "upgraded"}
    assert all(not gap.steps for gap in look(plan).gaps)


def test_runs_of_other_labels_are_not_compared(workshop: Workshop) -> None:
    plan = plan_of(workshop)
    workshop.model("a")
    refresh(plan)
    texts = workshop.directory / "texts.jsonl"
    texts.write_text(texts.read_text().replace('"joy"', '"bliss"'))
    workshop.model("b", seed=1)
    relabelled, other = carry_out(look(plan), plan)
    assert "with other values in label" in str(relabelled.failure)
    assert (other.failure, other.page) == (None, None)
    holdings = Holdings(plan.store)
    assert [earlier_peers(run, holdings) for run in holdings.runs] == [[], []]


def test_imported_runs_are_nobodys_peers(workshop: Workshop) -> None:
    plan = plan_of(workshop)
    workshop.model("a")
    (outcome,) = refresh(plan)
    states, texts = workshop.directory / "x.npy", read_corpus(str(workshop.directory / "texts.jsonl"))
    np.save(states, np.random.default_rng(0).standard_normal((3, texts.n_rows, 4)).astype(np.float32))
    run = import_states(ImportRequest(open_states(str(states)), texts, "resid.last", "theirs", template="raw"), plan.store)
    results.save(Run(run), probe_layers(Run(run), "resid.last", (0, 1, 2), ProbeSpec("linear")).result)
    workshop.model("b", seed=1)
    outcome = refresh(plan)[1]
    page = Path(str(outcome.page)).read_text()
    assert "beside 1 earlier run" in page
    assert "theirs" not in page
    holdings = Holdings(plan.store)
    assert run.run_id in [each.run_id for each in holdings.runs]
    assert all(run.run_id not in [peer.run_id for peer in earlier_peers(each, holdings)] for each in holdings.runs)


def test_a_remote_store_keeps_its_comparisons_too(
    workshop: Workshop, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    plan = plan_of(workshop, f"s3://affectome/plans-{secrets.token_hex(4)}")
    for seed, name in enumerate("ab"):
        workshop.model(name, seed=seed)
    first, second = refresh(plan)
    assert (first.page, second.page) == (None, f"{plan.store}/comparisons/{second.run_id}/comparison.md")
    assert open_objects(plan.store).names(f"comparisons/{second.run_id}") == [
        "comparison.json",
        "comparison.md",
        "comparison.png",
    ]
    assert all(not gap.steps for gap in look(plan).gaps)
