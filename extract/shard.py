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
from numpy.typing import NDArray

from extract.documents import Receipt, now
from extract.encoding import UnfitValueError, Values, to_stored
from extract.engine import Engine, engine, plan_batches
from extract.sites import Site
from extract.store import Store, StoredRun
from extract.tokens import Prompt, offsets_of, tokens_digest

_RECORDED_LIBRARIES = ("affectome", "torch", "transformers", "tokenizers", "zarr", "numpy")


class ExtractionError(RuntimeError):
    """A shard could not be computed; the message names row and layer."""


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
    arrays = _compute(loaded, run, task.shard, prompts, row_offsets, on_rows)
    computed = time.perf_counter()
    attempt, objects = run.write_attempt(task.shard, arrays, row_offsets)
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
        device=_device_name(task.device),
        host=platform.node(),
        seconds={"load": ready - began, "compute": computed - ready, "write": written - computed},
        versions={name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
        finished=now(),
    )
    if run.commit(receipt):
        return receipt
    return extract_shard(task, on_rows)  # finds the winner's receipt; or its void, and then the shard is to be done again


def _compute(
    loaded: Engine,
    run: StoredRun,
    shard: int,
    prompts: Sequence[Prompt],
    row_offsets: Sequence[int],
    on_rows: Callable[[int], None],
) -> dict[str, Values]:
    manifest, identity = run.manifest, run.manifest.identity
    sites = [Site.parse(site) for site in identity.sites]
    layouts = {str(site): run.layout(shard, str(site), row_offsets) for site in sites}
    arrays: dict[str, Values] = {site: np.empty(layout.shape, layout.dtype) for site, layout in layouts.items()}
    for batch in plan_batches([len(prompt.ids) for prompt in prompts], manifest.token_budget):
        pooled = loaded.pool([prompts[row] for row in batch], identity.layers, sites, identity.offsets)
        for site, states_LBD in pooled.items():
            places = _tokens_of(batch, row_offsets) if site.position == "all" else np.asarray(batch)
            try:
                values_LBD = to_stored(states_LBD, identity.stored_dtype)
            except UnfitValueError as error:
                place = places[error.index[1]]
                inside = np.searchsorted(row_offsets, place, side="right") - 1 if site.position == "all" else place
                row = run.shard_rows(shard)[0] + int(inside)
                raise ExtractionError(
                    _unfit_sentence(error, run.layers(str(site)), row, site, identity.stored_dtype)
                ) from error
            arrays[str(site)][:, places] = values_LBD
        on_rows(len(batch))
    return arrays


def _tokens_of(rows: Sequence[int], row_offsets: Sequence[int]) -> NDArray[np.int64]:
    """Where the tokens of some rows are in an array of tokens."""
    return np.concatenate([np.arange(row_offsets[row], row_offsets[row + 1]) for row in rows])


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
