"""Ask a stored run for rows and hidden states: `where` in SQL, a site, a layer, and an array comes back.

The table of utterances is small and goes through DuckDB with external access off; hidden states are read chunk by
chunk from Zarr, and only those chunks that hold an asked row at an asked layer.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from extract.encoding import to_float32
from extract.sites import Site
from extract.store import Manifest, StoredRun
from extract.store import Store as StoredRuns


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run, for reading."""

    stored: StoredRun
    """Where it is and what it is."""

    @property
    def run_id(self) -> str:
        """16 hex digits."""
        return self.stored.run_id

    @property
    def manifest(self) -> Manifest:
        """What the run is: model, corpus, sites, layers, precision."""
        return self.stored.manifest

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers the run holds."""
        return self.manifest.identity.layers

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites the run holds."""
        return self.manifest.identity.sites

    def utterances(self, where: str | None = None) -> pa.Table:
        """The utterances, in corpus order.

        Args:
            where: a SQL condition over their columns, such as `label = 'fear' and split = 'test'`.

        Raises:
            ValueError: the condition is not SQL over these columns.
        """
        table = self.stored.table("utterances")
        if where is None:
            return table
        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            connection.register("utterances", table)
            connection.execute("SET lock_configuration = true")
            try:  # a filter takes one expression; pasted into a statement it could close the clause and go on
                rows = connection.view("utterances").filter(where).project("row").fetchnumpy()["row"]
            except (duckdb.Error, RuntimeError, UnicodeEncodeError) as error:
                columns = ", ".join(table.column_names)
                raise ValueError(f"cannot use where={where!r}: {str(error).splitlines()[0]} (columns: {columns})") from error
        return table.take(pa.array(np.sort(np.asarray(rows, np.int64))))

    def hidden(self, site: str, layer: int, where: str | None = None) -> NDArray[np.float32]:
        """Hidden states of one layer at one site.

        Args:
            site: such as `resid.last`.
            layer: 0 for the embedding output, i for the output of block i.
            where: as in `utterances`; the rows come in the same order.

        Returns:
            (n, d), or (n, offsets, d) for an `offset` site.

        Raises:
            ValueError: the run has no such site or layer, is not complete, or is damaged.
        """
        rows = self.utterances(where)["row"].to_numpy() if where is not None else np.arange(self.manifest.n_rows)
        return self.hidden_rows(site, layer, rows)

    def hidden_rows(self, site: str, layer: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `hidden`, for ascending row numbers."""
        self.require_complete()
        name = str(Site.parse(site))
        if name not in self.sites:
            raise ValueError(f"run {self.run_id} does not hold {name}; it holds {', '.join(self.sites)}")
        if layer not in self.layers:
            raise ValueError(f"run {self.run_id} does not hold layer {layer}; it holds {_ranges(self.layers)}")
        identity = self.manifest.identity
        offsets = (len(identity.offsets),) if Site.parse(name).position == "offset" else ()
        parts = [np.empty((0, *offsets, self.manifest.width), np.float32)]
        shards = rows // self.manifest.rows_per_shard
        for shard in np.unique(shards):
            receipt = self.stored.receipt(int(shard))
            assert receipt is not None
            inside = rows[shards == shard] - receipt.start
            wanted = None if len(inside) == receipt.stop - receipt.start else inside
            values = self.stored.layer_values(receipt, name, self.layers.index(layer), wanted)
            parts.append(to_float32(values, identity.stored_dtype))
        return np.concatenate(parts)

    def require_complete(self) -> None:
        """Refuse a run that lacks shards.

        Raises:
            ValueError: shards are missing; says how many.
        """
        missing = self.stored.missing_shards()
        if missing:
            raise ValueError(
                f"run {self.run_id} is not complete: {len(missing):,} of {self.stored.n_shards:,} shards are missing; "
                "launch the same affectome extract again to finish it"
            )


class Store:
    """A store, for reading."""

    def __init__(self, stored: StoredRuns) -> None:
        self.stored = stored
        """The store underneath."""

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self.stored.root

    def run(self, prefix: str) -> Run:
        """The run whose id starts with `prefix`.

        Raises:
            ValueError: no run, or more than one, starts so.
        """
        return Run(self.stored.run(prefix))

    def runs(self) -> list[Run]:
        """All runs, by id."""
        return [Run(run) for run in self.stored.runs()]


def open_store(location: str) -> Store:
    """Open a store for reading.

    Raises:
        ValueError: there is no store there, or a newer affectome wrote it.
    """
    return Store(StoredRuns.open(location))


def _ranges(layers: tuple[int, ...]) -> str:
    contiguous = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f"{layers[0]} to {layers[-1]}" if contiguous else ", ".join(map(str, layers))
