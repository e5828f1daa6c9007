"""From a request to a committed run: numbers, identity, restarts, refusals."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from analyze.query import Run
from extract.corpus import Corpus, read_corpus
from extract.encoding import to_float32
from extract.engine import forget_engine
from extract.models import Model
from extract.request import Request
from extract.run import Plan, extract_missing, plan_run
from extract.shard import Committed, ShardTask, extract_shard, extract_shards
from extract.stored_run import StoredRun, attempt_prefix, log_key
from extract.verify import verify


@pytest.fixture
def request_of(tiny_model: Model) -> Request:
    """Thirty utterances through the tiny model, in shards of eight."""
    return Request(
        tiny_model.name, read_corpus("builtin").head(30), rows_per_shard=8, compute_dtype="float32", stored_dtype="float32"
    )


def stored_values(run: StoredRun, site: str) -> NDArray[np.float32]:
    """(L, N, D), read around the product's reader."""
    prefixes = [attempt_prefix(receipt.shard, receipt.attempt) for receipt in run.receipts()]
    parts = [np.asarray(zarr.open_array(run.objects.url(f"{prefix}/{site}"), mode="r")[...]) for prefix in prefixes]
    return to_float32(np.concatenate(parts, axis=1), run.manifest.identity.stored_dtype)


def done(request: Request, store: Path) -> Plan:
    plan = plan_run(request, str(store))
    extract_missing(plan)
    return plan


@pytest.mark.slow
def test_200_utterances_of_mixed_length_equal_plain_transformers_one_by_one(builtin_model: Model, tmp_path: Path) -> None:
    corpus = read_corpus("builtin")
    by_length = np.argsort([len(text) for text in corpus.table["text"].to_pylist()], kind="stable")
    chosen = corpus.take(by_length[:: len(by_length) // 199][:200].tolist())
    assert chosen.n_rows == 200
    request = Request(builtin_model.name, chosen, compute_dtype="float32", stored_dtype="float32", rows_per_shard=64)
    plan = done(request, tmp_path / "store")
    last_LND, mean_LND = (stored_values(plan.run, site) for site in ("resid.last", "resid.mean"))
    tokenizer = AutoTokenizer.from_pretrained(builtin_model.directory)
    plain = AutoModel.from_pretrained(builtin_model.directory, dtype=torch.float32)
    last_block: list[torch.Tensor] = []
    plain.layers[-1].register_forward_hook(
        lambda _m, _a, out: last_block.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    for row, text in enumerate(chosen.table["text"].to_pylist()):
        last_block.clear()
        with torch.no_grad():
            hidden = plain(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        states_LTD = torch.stack([*hidden[:-1], last_block[0]])[:, 0].numpy()
        for stored, reference in ((last_LND[:, row], states_LTD[:, -1]), (mean_LND[:, row], states_LTD.mean(axis=1))):
            error = np.linalg.norm(stored - reference, axis=1) / np.linalg.norm(reference, axis=1)
            assert error.max() < 1e-4, (row, text)


def test_a_second_launch_finds_the_run_and_computes_nothing(request_of: Request, tmp_path: Path) -> None:
    first = done(request_of, tmp_path / "store")
    receipts = list(first.run.receipts())
    again = plan_run(replace(request_of, rows_per_shard=5, token_budget=100), str(tmp_path / "store"))
    assert again.run == first.run
    assert again.tasks() == []
    assert list(again.run.receipts()) == receipts


def test_the_same_request_has_the_same_id_and_bytes_in_another_store(request_of: Request, tmp_path: Path) -> None:
    one, two = done(request_of, tmp_path / "one"), done(request_of, tmp_path / "two")
    assert one.run.run_id == two.run.run_id
    digests = [
        [(entry.path.split("/", 2)[2], entry.sha256) for receipt in plan.run.receipts() for entry in receipt.objects]
        for plan in (one, two)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "change",
    [
        {"template": "chat"},
        {"layers": "0:2"},
        {"sites": "resid.first"},
        {"compute_dtype": "bfloat16"},
        {"stored_dtype": "bfloat16"},
        {"attention": "eager"},
        {"truncate": False},
        {"continuation": "and so on"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_numbers_changes_the_id(request_of: Request, tmp_path: Path, change: dict[str, Any]) -> None:
    request_of = replace(request_of, corpus=request_of.corpus.head(5), truncate=True)
    base = plan_run(request_of, str(tmp_path / "store"))
    changed = plan_run(replace(request_of, **change), str(tmp_path / "store"))
    assert base.run.run_id != changed.run.run_id


def test_a_lost_shard_is_done_again_to_the_same_bytes(request_of: Request, tmp_path: Path) -> None:
    plan = done(request_of, tmp_path / "store")
    before = stored_values(plan.run, "resid.mean")
    plan.run.objects.remove(log_key(2, 0))
    assert plan.n_rows_done == 22
    extract_missing(plan)
    np.testing.assert_array_equal(stored_values(plan.run, "resid.mean"), before)
    assert verify(plan.run).whole


def beside(plan: Plan) -> list[ShardTask]:
    """The missing shards, each to be written while the next is computed, as on a GPU."""
    return [replace(task, device="cpu:0") for task in plan.tasks()]


def test_shards_that_are_written_beside_the_next_hold_the_same_bytes(request_of: Request, tmp_path: Path) -> None:
    alone, plan = done(request_of, tmp_path / "alone"), plan_run(request_of, str(tmp_path / "beside"))
    tasks = beside(plan)
    assert [receipt.shard for receipt in extract_shards(tasks)] == [task.shard for task in tasks]
    for site in plan.run.manifest.identity.sites:
        np.testing.assert_array_equal(stored_values(plan.run, site), stored_values(alone.run, site))


def test_a_shard_that_cannot_be_written_beside_the_next_is_told_and_done_again(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_run(request_of, str(tmp_path / "store"))
    write = StoredRun.write_attempt

    def full_at_1(run: StoredRun, shard: int, *arguments: Any) -> Any:
        if shard == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(run, shard, *arguments)

    monkeypatch.setattr(StoredRun, "write_attempt", full_at_1)
    with pytest.raises(OSError, match="No space left"):
        extract_shards(beside(plan))
    monkeypatch.undo()
    assert plan.run.receipt(0) is not None
    assert 1 in plan.run.missing_shards()
    extract_shards(beside(plan))
    assert verify(plan.run).whole


def test_of_two_attempts_at_a_shard_one_wins_and_both_end_well(request_of: Request, tmp_path: Path) -> None:
    plan = plan_run(request_of, str(tmp_path / "store"))
    task = plan.tasks()[1]
    first = extract_shard(task)
    winner = first.receipt
    assert first.here
    assert extract_shard(task) == Committed(winner, here=False)
    attempt, objects = plan.run.write_attempt(
        1, {site: np.zeros((4, 8, 32), np.float32) for site in plan.run.manifest.identity.sites}
    )
    assert not plan.run.commit(replace(winner, attempt=attempt, objects=objects))
    assert plan.run.receipt(1) == winner


def test_killed_midway_the_next_launch_finishes_with_the_same_bytes(tiny_model: Model, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    table = read_corpus("builtin").table.slice(0, 96)
    pyarrow.parquet.write_table(table, corpus)
    program = (
        "import sys; from extract.corpus import read_corpus; from extract.run import *; "
        "plan = plan_run(Request(sys.argv[1], read_corpus(sys.argv[2]), rows_per_shard=1, truncate=True), sys.argv[3]); "
        "extract_missing(plan)"
    )
    command = [sys.executable, "-c", program, tiny_model.name, str(corpus), str(tmp_path / "store")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "default"})
    receipts = tmp_path / "store" / "runs"
    while len(list(receipts.glob("*/receipts/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    request = Request(tiny_model.name, read_corpus(str(corpus)), rows_per_shard=1, truncate=True)
    plan = plan_run(request, str(tmp_path / "store"))
    assert 0 < len(plan.tasks()) < 96
    assert not verify(plan.run).whole
    extract_missing(plan)
    assert verify(plan.run).whole
    quiet = done(request, tmp_path / "quiet")
    np.testing.assert_array_equal(stored_values(plan.run, "resid.last"), stored_values(quiet.run, "resid.last"))


def test_two_launches_at_once_share_one_run_and_both_end_well(tiny_model: Model, tmp_path: Path) -> None:
    program = (
        "import sys; from extract.corpus import read_corpus; from extract.request import Request; from extract.run import *; "
        "request = Request(sys.argv[1], read_corpus('builtin').head(60), rows_per_shard=4, truncate=True); "
        "extract_missing(plan_run(request, sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, tiny_model.name, str(tmp_path / "store")]
    launches = [subprocess.Popen(command) for _ in range(2)]
    assert [launch.wait() for launch in launches] == [0, 0]
    request = Request(tiny_model.name, read_corpus("builtin").head(60), rows_per_shard=4, truncate=True)
    plan = plan_run(request, str(tmp_path / "store"))
    assert plan.tasks() == []
    assert verify(plan.run).whole
    named = {Path(entry.path).parts[1] for receipt in plan.run.receipts() for entry in receipt.objects}
    assert {path.name for path in Path(plan.run.objects.url("shards")).iterdir()} == named


def test_a_text_that_tokenizes_to_nothing_is_refused_with_its_row(request_of: Request, tmp_path: Path) -> None:
    table = pa.table({"utterance_id": ["a", "b"], "text": ["fine", "\x04"]})  # a character this vocabulary lacks
    with pytest.raises(ValueError, match=r"row 1, id 'b', has no tokens of its own \(text '\\x04'\); remove it"):
        plan_run(replace(request_of, corpus=Corpus("mine", table)), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_extraction_needs_no_labels(request_of: Request, tmp_path: Path) -> None:
    plan = done(
        replace(request_of, corpus=Corpus("mine", request_of.corpus.table.select(["utterance_id", "text"]))), tmp_path / "store"
    )
    assert Run(plan.run).hidden("resid.last", 2).shape == (30, 32)


def test_a_text_longer_than_the_context_is_refused_with_its_row_and_cut_on_request(request_of: Request, tmp_path: Path) -> None:
    long = pa.table({"utterance_id": ["a", "b", "c"], "text": ["short", "very " * 100 + "long", "short again"]})
    request = replace(request_of, corpus=Corpus("mine", long))
    with pytest.raises(ValueError, match=r"1 of 3 texts .* 64 tokens \(first: row 1, id 'b', 101 tokens\).*--truncate"):
        plan_run(request, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
    plan = done(replace(request, truncate=True), tmp_path / "store")
    assert [receipt.n_truncated for receipt in plan.run.receipts()] == [1]
    assert Run(plan.run).utterances()["n_tokens"].to_pylist()[1] == 64


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layers": "4"}, "no layer 4; this model has layers 0 .* to 3"),
        ({"layers": "x"}, "cannot read layers 'x'"),
        ({"sites": "resid.middle"}, "no site 'resid.middle'; join one of resid"),
        ({"sites": "mlp.last"}, "no site 'mlp.last'"),
        ({"template": "haiku"}, "no template 'haiku'; choose from raw, chat"),
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"compute_dtype": "float16"}, "'float16' is no compute dtype"),
        ({"stored_dtype": "int8"}, "'int8' is no stored dtype"),
        ({"sites": "resid.offset"}, "offset sites and a grid of offsets go together"),
        ({"sites": "resid.offset", "offsets": (0, 5)}, "row 0 has no token at offset 5"),
        ({"rows_per_shard": 0}, "must be 1 or more"),
        ({"attention": "nonsense"}, "cannot load the model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    request_of: Request, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_run(replace(request_of, **change), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_other_labels_for_a_stored_run_are_refused(request_of: Request, tmp_path: Path) -> None:
    plan_run(request_of, str(tmp_path / "store"))
    table = request_of.corpus.table
    relabelled = table.set_column(table.column_names.index("label"), "label", pa.array(["joy"] * 30))
    with pytest.raises(ValueError, match="other values in label"):
        plan_run(replace(request_of, corpus=Corpus("builtin", relabelled)), str(tmp_path / "store"))


def test_a_plan_whose_model_changed_is_refused(tiny_model: Model, request_of: Request, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(tiny_model.directory)
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model.directory).save_pretrained(directory)
    plan = plan_run(replace(request_of, model=str(directory)), str(tmp_path / "store"))
    with torch.no_grad():
        plain.model.embed_tokens.weight.add_(1)
    plain.save_pretrained(directory)
    forget_engine()  # as in another process
    with pytest.raises(ValueError, match="are not those the run was planned with"):
        extract_missing(plan)


def test_a_checkpoint_that_lacks_weights_is_refused_before_anything_is_written(
    tiny_model: Model, request_of: Request, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model.directory, directory)
    weights = load_file(directory / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1." not in name}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 9 of its weights \(first: layers\.1\."):
        plan_run(replace(request_of, model=str(directory)), str(tmp_path / "store"))
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot load the model"):
        plan_run(replace(request_of, model=str(directory)), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_columns_of_every_kind_are_kept_and_found_again(request_of: Request, tmp_path: Path) -> None:
    table = pa.table(
        {
            "utterance_id": ["a", "b"],
            "text": ["one", "two"],
            "when": pa.array([0, 86400], pa.timestamp("s")),
            "valence": [float("nan"), 0.5],
            "source": pa.array(["x", "y"]).dictionary_encode(),
            "tags": [["p"], ["q", "r"]],
        }
    )
    request = replace(request_of, corpus=Corpus("mine", table))
    first = done(request, tmp_path / "store")
    assert plan_run(request, str(tmp_path / "store")).run == first.run


def test_a_store_killed_at_birth_is_still_a_place_for_a_store(request_of: Request, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / ".affectome.json.0a1b2c3d.tmp").write_bytes(b"")
    assert done(request_of, store).tasks() == []


def test_a_model_saved_again_in_the_same_place_is_loaded_again(tiny_model: Model, request_of: Request, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(tiny_model.directory)
    AutoTokenizer.from_pretrained(tiny_model.directory).save_pretrained(directory)
    states = []
    for change in (0.0, 1.0):
        with torch.no_grad():
            plain.model.embed_tokens.weight.add_(change)
        plain.save_pretrained(directory)
        states.append(stored_values(done(replace(request_of, model=str(directory)), tmp_path / "store").run, "resid.last")[0])
    np.testing.assert_allclose(states[1], states[0] + 1, atol=1e-5)
