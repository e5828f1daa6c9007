"""Ask a stored run for rows and hidden states: `where` in SQL, a site, a layer, and an array comes back.

The table of utterances is small and goes through DuckDB with external access off; hidden states are read chunk by
chunk from Zarr, and only those chunks that hold an asked row at an asked layer.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.sealed import first_line, sealed
from extract.arrays import StoredArray, open_array
from extract.documents import Manifest, Receipt
from extract.encoding import Layout, Values, numpy_dtype
from extract.sites import Site
from extract.store import Store as StoredRuns
from extract.stored_run import StoredRun


@dataclass(frozen=True, slots=True)
class TokenStates:
    """Hidden states of the tokens of some utterances, one utterance after another."""

    hidden: Values
    """(T, D)."""
    row_offsets: NDArray[np.int64]
    """(n + 1,): the tokens of utterance i are `hidden[row_offsets[i]:row_offsets[i + 1]]`."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What is read of one shard."""

    array: StoredArray
    """The shard's array of the site."""
    entries: NDArray[np.int64]
    """Positions on its second axis."""
    n_entries: NDArray[np.int64]
    """How many of them belong to each row."""

    @property
    def whole(self) -> bool:
        """Whether it is all there is of the shard."""
        return len(self.entries) == self.array.layout.shape[1]

    def read(self, index: int, hidden: Values) -> None:
        if self.whole:
            self.array.read_layer(index, hidden)
        else:
            self.array.read_entries(index, self.entries, hidden)


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run, for reading. What is read once, receipts and metadata, is kept; open the run again to see a later state."""

    stored: StoredRun
    """Where it is and what it is."""
    _whole: list[Receipt] = field(default_factory=list, init=False, repr=False, compare=False)
    _layouts: dict[str, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def layers_of(self, site: str) -> tuple[int, ...]:
        """Layers the run holds at one of its sites: what attention and MLP add has no layer 0, the final norm only the last."""
        return self.stored.layers(site)

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
        with sealed({"utterances": table}) as connection:
            try:  # a filter takes one expression; pasted into a statement it could close the clause and go on
                rows = connection.view("utterances").filter(where).project("row").fetchnumpy()["row"]
            except (duckdb.Error, RuntimeError, UnicodeEncodeError) as error:
                columns = ", ".join(table.column_names)
                raise ValueError(f"cannot use where={where!r}: {first_line(error)} (columns: {columns})") from error
        return table.take(pa.array(np.sort(np.asarray(rows, np.int64))))

    def replies(self) -> pa.Table:
        """What the model said to each utterance, in corpus order: row, text, n_tokens, ended (by the model itself), ids.

        Raises:
            ValueError: the run keeps no replies, is not complete, or is damaged.
        """
        if self.manifest.identity.reply is None:
            raise ValueError(f"run {self.run_id} keeps no replies; extract one with --reply TOKENS")
        with ThreadPoolExecutor(self.stored.objects.readers) as pool:
            return pa.concat_tables(pool.map(self.stored.replies, self._receipts()))

    def hidden(self, site: str, layer: int, where: str | None = None, dtype: str = "float32") -> Values:
        """Hidden states of one layer at one site.

        Args:
            site: such as `resid.last`.
            layer: 0 for the embedding output, i for block i.
            where: as in `utterances`; the rows come in the same order.
            dtype: `float32`, or `stored` for the form that is kept, at half the memory for two-byte dtypes: bfloat16 comes as
                its bits in uint16, for `torch.from_numpy(bits).view(torch.bfloat16)`.

        Returns:
            (n, d), or (n, offsets, d) for an `offset` or `reply` site; zeros where a reply has ended.

        Raises:
            ValueError: the run has no such site or layer, is not complete, or is damaged; or the site keeps every token
                (`hidden_tokens` reads those).
        """
        return self.hidden_rows(site, layer, self._row_numbers(where), dtype)

    def hidden_rows(self, site: str, layer: int, rows: NDArray[np.int64], dtype: str = "float32") -> Values:
        """As `hidden`, for row numbers that ascend without repeats.

        Raises:
            ValueError: as in `hidden`; or the rows do not ascend, or the run has none of that number.
        """
        if Site.parse(site).position == "all":
            raise ValueError(f"{site} keeps every token, so its rows differ in length; read it with hidden_tokens")
        return self._read(site, layer, rows, self._numpy_dtype(dtype))[0]

    def hidden_tokens(self, site: str, layer: int, where: str | None = None, dtype: str = "float32") -> TokenStates:
        """Hidden states of every token of the utterances, at one layer of an `all` site.

        Args:
            site: such as `resid.all`.
            layer: as in `hidden`.
            where: as in `utterances`; the rows come in the same order.
            dtype: as in `hidden`.

        Raises:
            ValueError: as in `hidden`; or the site does not keep every token.
        """
        if Site.parse(site).position != "all":
            raise ValueError(f"{site} does not keep every token; read it with hidden")
        hidden, n_tokens = self._read(site, layer, self._row_numbers(where), self._numpy_dtype(dtype))
        return TokenStates(hidden, np.concatenate([[0], np.cumsum(n_tokens)]))

    def require_complete(self) -> None:
        """Refuse a run that lacks shards.

        Raises:
            ValueError: shards are missing, or a receipt is damaged.
        """
        self._receipts()

    def _row_numbers(self, where: str | None) -> NDArray[np.int64]:
        if where is None:
            return np.arange(self.manifest.n_rows)
        return np.asarray(self.utterances(where)["row"].to_numpy())

    def _numpy_dtype(self, dtype: str) -> np.dtype[Any]:
        if dtype not in ("float32", "stored"):
            raise ValueError(f"cannot read hidden states as {dtype!r}; choose from float32, stored")
        return np.dtype(np.float32) if dtype == "float32" else numpy_dtype(self.manifest.identity.stored_dtype)

    def _read(self, site: str, layer: int, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> tuple[Values, NDArray[np.int64]]:
        """Hidden states of ascending rows, and how many entries of the array belong to each row."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.manifest.n_rows or (np.diff(rows) <= 0).any()):
            raise ValueError(f"rows must ascend, without repeats, from 0 to {self.manifest.n_rows - 1:,} at most")
        receipts = self._receipts()
        index = self._layer_index(site, layer)
        bounds = np.searchsorted(rows, [receipt.start for receipt in receipts] + [self.manifest.n_rows])
        pieces = [
            (receipt, rows[begin:end])
            for receipt, (begin, end) in zip(receipts, itertools.pairwise(bounds.tolist()), strict=True)
            if begin < end
        ]
        with ThreadPoolExecutor(self.stored.objects.readers) as pool:
            parts = list(pool.map(lambda piece: self._part(site, *piece), pieces))
            hidden = np.empty((sum(len(part.entries) for part in parts), *self._entry_shape(site)), dtype)
            ends = itertools.accumulate(len(part.entries) for part in parts)
            places = [hidden[end - len(part.entries) : end] for part, end in zip(parts, ends, strict=True)]
            list(pool.map(lambda part, place: part.read(index, place), parts, places))
        return hidden, np.concatenate([np.empty(0, np.int64), *(part.n_entries for part in parts)])

    def _part(self, site: str, receipt: Receipt, rows: NDArray[np.int64]) -> _Part:
        array = open_array(self.stored.objects, receipt, str(Site.parse(site)), self._layouts)
        return _Part(array, *_entries(array.layout, rows - receipt.start))

    def _entry_shape(self, site: str) -> tuple[int, ...]:
        offsets = (len(self.manifest.identity.offsets),) if Site.parse(site).on_grid else ()
        return *offsets, self.manifest.width

    def _layer_index(self, site: str, layer: int) -> int:
        if str(Site.parse(site)) not in self.sites:
            raise ValueError(f"run {self.run_id} does not hold {site}; it holds {', '.join(self.sites)}")
        layers = self.layers_of(site)
        if layer not in layers:
            raise ValueError(f"run {self.run_id} does not hold layer {layer} of {site}; it holds {_ranges(layers)}")
        return layers.index(layer)

    def _receipts(self) -> tuple[Receipt, ...]:
        """The receipt of every shard, read once when the run is complete."""
        if not self._whole:
            receipts = self.stored.receipts()
            n_missing = self.stored.n_shards - len(receipts)
            if n_missing:
                raise ValueError(
                    f"run {self.run_id} is not complete: {n_missing:,} of {self.stored.n_shards:,} shards are missing; "
                    "launch the same affectome extract again to finish it"
                )
            self._whole[:] = receipts
        return tuple(self._whole)


def _entries(layout: Layout, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The entries of an array that belong to some rows of its shard, and how many belong to each."""
    if layout.row_offsets is None:
        return rows, np.ones(len(rows), np.int64)
    bounds = np.asarray(layout.row_offsets, np.int64)
    lengths = bounds[rows + 1] - bounds[rows]
    first = np.repeat(bounds[rows] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return first + np.arange(lengths.sum()), lengths


class Store:
    """A store, for reading."""

    def __init__(self, stored: StoredRuns) -> None:
        self.stored = stored
        """The store underneath."""

    @property
    def location(self) -> str:
        """The directory or URL that opens it."""
        return self.stored.location

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
