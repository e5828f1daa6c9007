"""Batches that do not fit into memory, in a process that really has too little of it; shared prefixes in a run."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analyze.query import Run
from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store
from extract.tokens import Prompt

ROWS = 4000
BUDGET = 1_000_000

_PROGRAM = """
import json, resource, sys
from pathlib import Path
from extract.compute import ExtractionError
from extract.corpus import read_corpus
from extract.request import Request
from extract.run import extract_missing, plan_run

model, corpus, store, spare, budget, rows = sys.argv[1:]
request = Request(
    model,
    read_corpus(corpus),
    compute_dtype="float32",
    stored_dtype="float32",
    token_budget=int(budget),
    rows_per_shard=int(rows),
)
extract_missing(plan_run(Request(model, read_corpus("builtin").head(4), compute_dtype="float32"), store + "-warm"))
plan = plan_run(request, store)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(spare) * 2**20, resource.RLIM_INFINITY))
try:
    (receipt,) = extract_missing(plan)
    print(json.dumps([receipt.n_halved, plan.run.run_id]))
except ExtractionError as error:
    print(json.dumps([-1, str(error)]))
"""


def extract_with(spare_mib: int, model: Model, corpus: Path, store: Path) -> tuple[int, str]:
    """Extract in a process that may take so much memory more than it has when it begins."""
    arguments = [model.name, str(corpus), str(store), str(spare_mib), str(BUDGET), str(ROWS)]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n_halved, said = json.loads(done.stdout.splitlines()[-1])
    return n_halved, said


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to tell how much memory a process has")
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_receipt_says_so(tiny_model: Model, tmp_path: Path) -> None:
    corpus = tmp_path / "many.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": f"text number {row}" + " and more words" * 14}) for row in range(ROWS)))
    assert extract_with(20_000, tiny_model, corpus, tmp_path / "plenty")[0] == 0
    n_halved, run_id = extract_with(96, tiny_model, corpus, tmp_path / "little")
    assert n_halved > 0
    plenty, little = (Run(Store.open(str(tmp_path / name)).run(run_id)) for name in ("plenty", "little"))
    for site in ("resid.last", "resid.mean"):
        np.testing.assert_allclose(little.hidden(site, 3), plenty.hidden(site, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("template", ["chat", "few-shot"])
def test_a_run_with_a_shared_prefix_holds_the_numbers_of_whole_prompts(
    builtin_model: Model, tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(
        builtin_model.name,
        read_corpus("builtin").head(12),
        template=template,
        layers="0,1,15,30",
        sites="resid.last,resid.prompt_last,resid.prompt_mean,attn_out.mean",
        compute_dtype="float32",
        stored_dtype="float32",
    )
    with_prefix = plan_run(request, str(tmp_path / "with"))
    (receipt,) = extract_missing(with_prefix)
    assert receipt.n_shared >= 8
    without = plan_run(request, str(tmp_path / "without"))
    monkeypatch.setattr("extract.engine.shared_length", _no_prefix)
    (receipt,) = extract_missing(without)
    assert receipt.n_shared == 0
    for site in request.sites.split(","):
        for layer in (1, 15, 30):
            ours, theirs = (Run(plan.run).hidden(site, layer) for plan in (with_prefix, without))
            error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
            assert error.max() < 1e-4, (site, layer)


def test_tokens_that_nothing_reads_are_not_computed(
    builtin_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(
        builtin_model.name,
        read_corpus("builtin").head(12),
        template="few-shot",
        layers="1,30",
        sites="resid.last,resid.mean",
        compute_dtype="float32",
        stored_dtype="float32",
    )
    plan = plan_run(request, str(tmp_path / "read"))
    prompts = plan.run.prompts(0)
    (receipt,) = extract_missing(plan)
    assert receipt.n_tokens == sum(len(prompt.ids) for prompt in prompts)
    assert receipt.n_computed == sum(prompt.stop for prompt in prompts) - 11 * receipt.n_shared
    whole = plan_run(request, str(tmp_path / "whole"))
    monkeypatch.setattr("extract.compute.reach", _everything)
    (receipt,) = extract_missing(whole)
    assert receipt.n_computed == receipt.n_tokens - 11 * receipt.n_shared
    for site, layer in itertools.product(("resid.last", "resid.mean"), (1, 30)):
        ours, theirs = (Run(made.run).hidden(site, layer) for made in (plan, whole))
        assert np.linalg.norm(ours - theirs, axis=1).max() < 1e-4 * np.linalg.norm(theirs, axis=1).min()


def _everything(_site: object, prompt: Prompt, _offsets: object) -> int:
    return len(prompt.ids)


def _no_prefix(*_: object) -> int:
    return 0
