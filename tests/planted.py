"""A run of three tiny shards whose numbers are known, made without a model: each state says whose it is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from extract.corpus import texts_digest
from extract.documents import Manifest, Receipt, StoredObject, now
from extract.identity import Identity
from extract.request import DEFAULT_DATE
from extract.store import Store
from extract.stored_run import StoredRun
from extract.tokens import Prompt, offsets_of, tokens_digest

SITES = ("resid.all", "resid.last")
LAYERS, ROWS, ROWS_PER_SHARD, WIDTH = (0, 1), 5, 2, 3


def planted(site: str, layer: int, rows: Sequence[int]) -> NDArray[np.float32]:
    """The states of some rows, (N, D): a number for each row, token, layer and coordinate, exact in float32."""
    tokens = [
        (row, token) for row in rows for token in range(_n_tokens(row)) if site == "resid.all" or token == _n_tokens(row) - 1
    ]
    return np.array([[layer * 1000 + row * 10 + token + d / 4 for d in range(WIDTH)] for row, token in tokens], np.float32)


IDENTITY = Identity(
    weights="sha256:" + "0" * 64,
    tokenizer="0" * 64,
    template="",
    continuation="",
    corpus="0" * 64,
    sites=SITES,
    offsets=(),
    layers=LAYERS,
    compute_dtype="float32",
    stored_dtype="float32",
    attention="sdpa",
    truncate=False,
)
"""Of a run that no model made."""


def manifest_of(identity: Identity, n_rows: int, width: int, rows_per_shard: int, compression: str = "none") -> Manifest:
    """The manifest of a run that no model made."""
    return Manifest(
        run_id=identity.run_id,
        identity=identity,
        n_rows=n_rows,
        n_layers=max(identity.layers),
        width=width,
        rows_per_shard=rows_per_shard,
        token_budget=4096,
        compression=compression,
        tables=(),
        model="planted",
        template="raw",
        system="",
        date=DEFAULT_DATE,
        corpus="planted",
        created=now(),
    )


def receipt_of(
    run: StoredRun,
    shard: int,
    entry: int,
    written: tuple[str, tuple[StoredObject, ...]],
    tokens: str = "0" * 64,
    n_tokens: int = 0,
) -> Receipt:
    """The receipt of an attempt that no model made."""
    start, stop = run.shard_rows(shard)
    attempt, objects = written
    return Receipt(
        run_id=run.run_id,
        shard=shard,
        entry=entry,
        start=start,
        stop=stop,
        attempt=attempt,
        objects=objects,
        tokens=tokens,
        n_tokens=n_tokens,
        n_truncated=0,
        n_computed=0,
        n_shared=0,
        forward="transformers",
        n_halved=0,
        token_budget=run.manifest.token_budget,
        compression=run.manifest.compression,
        device="none",
        host="none",
        seconds={},
        versions={},
        finished=now(),
    )


def plant_run(store: Store, compression: str = "none") -> StoredRun:
    """A run of three shards, none of which exists yet."""
    prompts = [_prompt(row) for row in range(ROWS)]
    columns = {name: [getattr(prompt, name) for prompt in prompts] for name in ("start", "stop", "prompt_stop", "truncated")}
    tokens = pa.table({"row": range(ROWS), "ids": [prompt.ids for prompt in prompts], **columns})
    utterances = pa.table({"row": range(ROWS), "utterance_id": [f"u{row}" for row in range(ROWS)], "text": ["text"] * ROWS})
    identity = replace(IDENTITY, corpus=texts_digest(utterances))
    manifest = manifest_of(identity, ROWS, WIDTH, ROWS_PER_SHARD, compression)
    return store.create_run(manifest, {"utterances": utterances, "tokens": tokens})


def write_planted(run: StoredRun, shard: int, entry: int) -> Receipt:
    """Write an attempt at a shard that began when its log held `entry` entries; nothing is committed."""
    start, stop = run.shard_rows(shard)
    prompts = run.prompts(shard)
    arrays = {site: np.stack([planted(site, layer, range(start, stop)) for layer in LAYERS]) for site in SITES}
    written = run.write_attempt(shard, arrays, offsets_of(prompts))
    return receipt_of(run, shard, entry, written, tokens_digest(prompts), sum(len(prompt.ids) for prompt in prompts))


def _n_tokens(row: int) -> int:
    return row % 3 + 1


def _prompt(row: int) -> Prompt:
    stop = 1 + _n_tokens(row)
    return Prompt(tuple(range(row, row + stop + 1)), 1, stop, stop + 1)
