"""The unit of work: one shard of one run, from token ids to a receipt. Executors only decide where and when it runs.

A shard is a fixed range of corpus rows and is batched from its own rows alone, so that any worker on any day makes
the same bytes for it. Work stealing inside a shard was rejected: it would tie the bytes to who computed them.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from extract.compute import compute_shard
from extract.documents import Receipt, now
from extract.engine import engine
from extract.store import Store
from extract.tokens import offsets_of, tokens_digest

_RECORDED_LIBRARIES = ("affectome", "torch", "transformers", "tokenizers", "zarr", "numpy")


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to extract."""

    store: str
    """The store's directory or URL."""
    run_id: str
    """The run, 16 hex digits."""
    shard: int
    """Number of the shard, from 0."""
    model_directory: Path
    """Where the run's model is on this machine."""
    device: str
    """Device of torch to compute on."""


def extract_shard(task: ShardTask, on_rows: Callable[[int], None] = lambda _: None) -> Receipt:
    """Compute a shard, make it durable and commit it.

    Args:
        on_rows: called with the number of rows computed, batch by batch.

    Returns:
        The shard's receipt: this attempt's, or that of another attempt which committed first.

    Raises:
        ExtractionError: a hidden state is not finite or does not fit the stored dtype.
        ValueError: the run's tables or the model cannot be read.
    """
    run = Store.open(task.store).run(task.run_id)
    entry = run.log_lengths().get(task.shard, 0)
    if entry:
        last = run.log_entry(task.shard, entry - 1)
        if isinstance(last, Receipt):
            return last
    began = time.perf_counter()
    prompts = run.prompts(task.shard)
    row_offsets = offsets_of(prompts)
    identity = run.manifest.identity
    loaded = engine(task.model_directory, identity.weights, identity.compute_dtype, identity.attention, task.device)
    ready = time.perf_counter()
    found = compute_shard(loaded, run, task.shard, prompts, row_offsets, on_rows)
    computed = time.perf_counter()
    attempt, objects = run.write_attempt(task.shard, found.arrays, row_offsets)
    written = time.perf_counter()
    start, stop = run.shard_rows(task.shard)
    receipt = Receipt(
        run_id=run.run_id,
        shard=task.shard,
        entry=entry,
        start=start,
        stop=stop,
        attempt=attempt,
        objects=objects,
        token_budget=run.manifest.token_budget,
        compression=run.manifest.compression,
        tokens=tokens_digest(prompts),
        n_tokens=sum(len(prompt.ids) for prompt in prompts),
        n_truncated=sum(prompt.truncated for prompt in prompts),
        n_shared=found.n_shared,
        n_halved=found.n_halved,
        device=_device_name(task.device),
        host=platform.node(),
        seconds={"load": ready - began, "compute": computed - ready, "write": written - computed},
        versions={name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
        finished=now(),
    )
    if run.commit(receipt):
        return receipt
    return extract_shard(task, on_rows)  # finds the winner's receipt; or its void, and then the shard is to be done again


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {platform.processor() or platform.machine()}"
