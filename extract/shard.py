"""The unit of work: one shard of one run, from token ids to a receipt. Executors only decide where and when it runs.

A shard is a fixed range of corpus rows and is batched from its own rows alone, so that any worker on any day makes
the same bytes for it. Work stealing inside a shard was rejected: it would tie the bytes to who computed them.

Shape suffixes: L layers, N rows of the shard, B rows of a batch, O offsets, D width.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.encoding import UnfitValueError, Values, to_stored
from extract.engine import Engine, engine, plan_batches
from extract.sites import Site
from extract.store import Receipt, Store, StoredRun, now
from extract.tokens import Prompt, tokens_digest

_RECORDED_LIBRARIES = ("affectome", "torch", "transformers", "tokenizers", "zarr", "numpy")


class ExtractionError(RuntimeError):
    """A shard could not be computed; the message names row and layer."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to extract."""

    store: str
    """The store's directory."""
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
    committed = run.receipt(task.shard)
    if committed is not None:
        return committed
    began = time.perf_counter()
    prompts = run.prompts(task.shard)
    identity = run.manifest.identity
    loaded = engine(task.model_directory, identity.weights, identity.compute_dtype, identity.attention, task.device)
    ready = time.perf_counter()
    arrays = _compute(loaded, run, task.shard, prompts, on_rows)
    computed = time.perf_counter()
    attempt, objects = run.write_attempt(task.shard, arrays)
    written = time.perf_counter()
    start, stop = run.shard_rows(task.shard)
    receipt = Receipt(
        run_id=run.run_id,
        shard=task.shard,
        start=start,
        stop=stop,
        attempt=attempt,
        objects=objects,
        tokens=tokens_digest(prompts),
        n_tokens=sum(len(prompt.ids) for prompt in prompts),
        n_truncated=sum(prompt.truncated for prompt in prompts),
        device=_device_name(task.device),
        host=platform.node(),
        seconds={"load": ready - began, "compute": computed - ready, "write": written - computed},
        versions={name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
        finished=now(),
    )
    if run.commit(receipt):
        return receipt
    winner = run.receipt(task.shard)
    assert winner is not None
    return winner


def _compute(
    loaded: Engine, run: StoredRun, shard: int, prompts: Sequence[Prompt], on_rows: Callable[[int], None]
) -> dict[str, Values]:
    manifest, identity = run.manifest, run.manifest.identity
    sites = [Site.parse(site) for site in identity.sites]
    arrays: dict[str, Values] = {}
    for batch in plan_batches([len(prompt.ids) for prompt in prompts], manifest.token_budget):
        pooled = loaded.pool([prompts[row] for row in batch], identity.layers, sites, identity.offsets)
        for site, states_LBD in pooled.items():
            try:
                values_LBD = to_stored(states_LBD, identity.stored_dtype)
            except UnfitValueError as error:
                row = run.shard_rows(shard)[0] + batch[error.index[1]]
                raise ExtractionError(_unfit_sentence(error, identity.layers, row, site, identity.stored_dtype)) from error
            if str(site) not in arrays:
                n_layers, _, *rest = values_LBD.shape
                arrays[str(site)] = np.empty((n_layers, len(prompts), *rest), values_LBD.dtype)
            arrays[str(site)][:, batch] = values_LBD
        on_rows(len(batch))
    return arrays


def _unfit_sentence(error: UnfitValueError, layers: Sequence[int], row: int, site: Site, stored_dtype: str) -> str:
    where = f"row {row:,}, layer {layers[error.index[0]]}, {site}"
    if np.isfinite(error.value):
        return f"{where}: the value {error.value:g} does not fit into {stored_dtype}; store bfloat16 or float32 instead"
    return f"{where}: the hidden state is not finite ({error.value}); try --dtype float32"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {platform.processor() or platform.machine()}"
