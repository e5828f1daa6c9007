"""docs/store.md is the norm: its example runs as printed, and what it says of the bytes holds."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from analyze.query import Run
from extract.corpus import read_corpus
from extract.models import Model
from extract.objects import LocalObjects
from extract.request import Request
from extract.run import Plan, extract_missing, plan_run

PAGE = Path(__file__).parents[1] / "docs" / "store.md"


@pytest.fixture
def plan(tiny_model: Model, tmp_path: Path) -> Plan:
    made = plan_run(Request(tiny_model.name, read_corpus("builtin").head(20), rows_per_shard=8), str(tmp_path / "store"))
    extract_missing(made)
    return made


def root_of(plan: Plan) -> Path:
    assert isinstance(plan.run.objects, LocalObjects)
    return plan.run.objects.root


def test_the_example_reads_what_the_product_reads(plan: Plan) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(example) == 1
    names: dict[str, object] = {}
    exec(example[0].replace("STORE", plan.store.location), names)  # noqa: S102 - the page's own example
    np.testing.assert_array_equal(np.asarray(names["hidden"]), Run(plan.run).hidden("resid.last", 2))
    assert names["utterances"] == Run(plan.run).utterances()


def test_the_id_is_the_digest_of_the_identity_as_the_page_says(plan: Plan) -> None:
    document = json.loads((root_of(plan) / "run.json").read_text())
    canonical = json.dumps(document["identity"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(canonical.encode()).hexdigest()[:16] == document["run_id"] == root_of(plan).name


def test_a_document_ends_in_the_digest_of_its_own_bytes_as_the_page_says(plan: Plan) -> None:
    for path in (root_of(plan) / "run.json", *(root_of(plan) / "receipts").iterdir()):
        body, _, seal = path.read_text().rpartition(",\n")
        assert json.loads("{" + seal)["sha256"] == hashlib.sha256(body.encode()).hexdigest()


def test_the_example_passes_over_what_was_taken_back(plan: Plan) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[0]
    assert plan.run.void(1, 1, "to see it left out")
    names: dict[str, object] = {}
    exec(example.replace("STORE", plan.store.location), names)  # noqa: S102 - the page's own example
    assert len(np.asarray(names["hidden"])) == 12


def test_every_name_in_a_run_is_one_the_page_describes(plan: Plan) -> None:
    described = re.compile(
        r"run\.json|tables/[0-9a-f]{8}/(utterances|tokens)\.parquet|receipts/\d{6}-\d+\.json"
        r"|shards/\d{6}-[0-9a-f]{8}/resid\.(last|mean)/(zarr\.json|c\.\d+\.0\.0)"
    )
    files = [str(path.relative_to(root_of(plan))) for path in root_of(plan).rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [name for name in files if not described.fullmatch(name)] == []


def test_the_page_names_every_field_of_the_documents(plan: Plan) -> None:
    page = PAGE.read_text()
    manifest = json.loads((root_of(plan) / "run.json").read_text())
    receipt = json.loads((root_of(plan) / "receipts" / "000000-0.json").read_text())
    plan.run.void(0, 1, "to see one")
    void = json.loads((root_of(plan) / "receipts" / "000000-1.json").read_text())
    for field in (*manifest, *manifest["identity"], *receipt, *void):
        assert f"`{field}`" in page or field in ("path", "size"), field
