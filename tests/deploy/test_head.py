"""A RayJob's entrypoint on a real head: what the operator does by HTTP, what the job leaves, what Prometheus is shown."""

import json
import re
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from extract.models import Model
from extract.store import Store
from tests.deploy.alone import run_alone
from tests.deploy.files import ROOT, manifest
from tests.deploy.head import Witness
from tests.deploy.queries import panel_queries, rule_queries

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the job's store is to be."""
    return tmp_path_factory.mktemp("head") / "store"


@pytest.fixture(scope="module")
def witness(tiny_model: Model, store: Path) -> Witness:
    """What was seen of the job of rayjob.yaml, with a model, a corpus and machines that are here."""
    corpus, seen = store.with_name("mine.jsonl"), store.with_name("witness.json")
    corpus.write_text("\n".join(json.dumps({"text": f"text number {n} of many"}) for n in range(40)))
    here: dict[str, object] = {"model": tiny_model.name, "corpus": corpus, "store": store}
    here |= {"workers": 2, "gpus-per-worker": 0, "cpus-per-worker": 1}
    entrypoint = manifest("RayJob", "rayjob.yaml").body["spec"]["entrypoint"]
    for option, value in here.items():
        entrypoint, changes = re.subn(rf"--{option} \S+", f"--{option} {value}", entrypoint)
        assert changes == 1
    done = run_alone([sys.executable, "-m", "tests.deploy.head", entrypoint, seen], {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    return Witness(**json.loads(seen.read_text()))


def test_the_head_refuses_whoever_has_no_token(witness: Witness) -> None:
    assert witness.without_token == 401


def test_the_job_ends_with_a_run_in_the_store(witness: Witness, store: Path) -> None:
    assert witness.status == "SUCCEEDED", witness.logs
    opened = Store.open(str(store))
    (run_id,) = opened.run_ids()
    assert not opened.run(run_id).missing_shards()
    assert run_id in witness.logs


def test_rules_and_dashboard_ask_for_names_and_labels_that_the_head_exports(witness: Witness) -> None:
    exported: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(witness.metrics):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    wanted = {metric for query in [*rule_queries(), *panel_queries()] for metric in query.metrics()}
    without_cause = {"ray_affectome_retries_total", "ray_affectome_quarantined_total"}  # nothing failed
    gpus = {name for name in wanted if "gpu" in name or "gram" in name}
    recorded = {name for name in wanted if ":" in name}
    assert wanted - without_cause - gpus - recorded <= set(exported)
    for query in [*rule_queries(), *panel_queries()]:
        for metric, labels in query.labels().items():
            if metric in exported:
                assert labels <= exported[metric] | {"instance"}, query
