"""Runs with planted numbers: what is in the store is known exactly, so the analyses can be held against it."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from analyze.query import Run
from extract.decoding import Decoding, Reply, replies_table
from extract.encoding import to_stored
from extract.store import Store
from extract.stored_run import StoredRun
from tests.planted import IDENTITY, manifest_of, receipt_of

Columns = Mapping[str, Sequence[object]]


@dataclass(frozen=True, slots=True)
class Plant:
    """Makes a stored run that holds given numbers."""

    factory: pytest.TempPathFactory

    def __call__(
        self,
        hidden: NDArray[np.float32],
        columns: Columns,
        *,
        layers: tuple[int, ...] | None = None,
        offsets: tuple[int, ...] = (),
        stored_dtype: str = "float32",
        rows_per_shard: int = 1024,
        missing: Collection[int] = (),
        lengths: Sequence[int] = (),
        replies: Sequence[Sequence[int]] = (),
        compression: str = "none",
    ) -> Run:
        """A run over utterances with `columns`.

        Args:
            hidden: (L, N, D) at `resid.last`; (L, N, O, D) at `resid.offset`, with `offsets`; or (L, T, D) at `resid.all`,
                with `lengths`, the tokens of each utterance.
            replies: token ids of each utterance's reply; then `offsets` are those of `resid.reply`.
        """
        n_layers, n_entries, *_, width = hidden.shape
        n_rows = len(lengths) or n_entries
        site = "resid.reply" if replies else "resid.offset" if offsets else "resid.all" if lengths else "resid.last"
        layers = layers or tuple(range(n_layers))
        reply = Decoding(max(map(len, replies))) if replies else None
        identity = replace(IDENTITY, sites=(site,), offsets=offsets, layers=layers, stored_dtype=stored_dtype, reply=reply)
        manifest = manifest_of(identity, n_rows, width, rows_per_shard, compression)
        base = {"row": range(n_rows), "utterance_id": [f"u{row}" for row in range(n_rows)], "text": ["text"] * n_rows}
        utterances = pa.table({name: _column(values) for name, values in (base | dict(columns)).items()})
        store = Store.open(str(self.factory.mktemp("store")), create=True)
        stored = store.create_run(manifest, {"utterances": utterances, "tokens": pa.table({"row": list(range(n_rows))})})
        for shard in sorted(set(range(stored.n_shards)) - set(missing)):
            _write_shard(stored, shard, site, hidden, lengths, replies)
        return Run(stored)


def _column(values: object) -> object:
    return values if isinstance(values, pa.Array) else list(cast(Sequence[object], values))


def _write_shard(
    stored: StoredRun,
    shard: int,
    site: str,
    hidden: NDArray[np.float32],
    lengths: Sequence[int],
    replies: Sequence[Sequence[int]],
) -> None:
    start, stop = stored.shard_rows(shard)
    bounds = list(itertools.accumulate(lengths, initial=0)) if lengths else list(range(stop + 1))
    row_offsets = [bound - bounds[start] for bound in bounds[start : stop + 1]]
    part = torch.from_numpy(hidden[:, bounds[start] : bounds[stop]].copy())
    values = to_stored(part, stored.manifest.identity.stored_dtype)
    said = [Reply(tuple(ids), ended=True) for ids in replies[start:stop]]
    table = replies_table(start, said, ["" for _ in said]) if replies else None
    written = stored.write_attempt(shard, {site: values}, row_offsets, table)
    assert stored.commit(receipt_of(stored, shard, 0, written, n_tokens=stop - start))


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    """Makes stored runs with planted numbers, each in a store of its own."""
    return Plant(tmp_path_factory)
