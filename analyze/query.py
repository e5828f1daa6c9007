"""Ask a stored run for rows and hidden states: `where` in SQL or row numbers, a site, layers, and an array comes back.

The table of utterances is small and goes through DuckDB with external access off; hidden states are read chunk by
chunk from Zarr, and only those chunks that hold an asked row at an asked layer (analyze.slices). What does not fit in memory
comes in batches (analyze.streaming).
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from analyze.condition import matching
from analyze.slices import Reading, SiteArrays
from analyze.streaming import BUFFER_BYTES, Batch, Stream, Streaming
from extract.documents import Manifest, Receipt
from extract.encoding import Layout, Values, numpy_dtype, to_torch
from extract.sites import Site
from extract.store import Store as StoredRuns
from extract.stored_run import StoredRun

if TYPE_CHECKING:  # it takes seconds to load, and whoever wants arrays needs none of it
    import torch

    from analyze.dataset import StreamedStates
    from analyze.finding import Queries


class Which(TypedDict, total=False):
    """Which rows, besides `where`."""

    rows: ArrayLike | None
    """Row numbers instead of `where`; they come in the order given and as often as they are given."""
    offset: int
    """How many of the rows to leave out first."""
    limit: int | None
    """How many of the others come at most."""


@dataclass(frozen=True, slots=True)
class TokenStates:
    """Hidden states of the tokens of some utterances, one utterance after another."""

    hidden: Values
    """(T, D), or (L, T, D) where several layers were asked for."""
    row_offsets: NDArray[np.int64]
    """(n + 1,): the tokens of utterance i are `hidden[row_offsets[i]:row_offsets[i + 1]]`."""


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
        return table.take(pa.array(matching(table, where)))

    def replies(self) -> pa.Table:
        """What the model said to each utterance, in corpus order: row, text, n_tokens, ended (by the model itself), ids.

        Raises:
            ValueError: the run keeps no replies, is not complete, or is damaged.
        """
        if self.manifest.identity.reply is None:
            raise ValueError(f"run {self.run_id} keeps no replies; extract one with --reply TOKENS")
        with ThreadPoolExecutor(self.stored.objects.readers) as pool:
            return pa.concat_tables(pool.map(self.stored.replies, self._receipts()))

    def hidden(
        self,
        site: str,
        layer: int | Sequence[int],
        where: str | None = None,
        dtype: str = "float32",
        *,
        rows: ArrayLike | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> Values:
        """Hidden states at one site.

        Args:
            site: such as `resid.last`.
            layer: 0 for the embedding output, i for block i; or several, in any order.
            where: as in `utterances`; the rows come in the same order.
            dtype: `float32`, or `stored` for the form that is kept, at half the memory for two-byte dtypes: bfloat16 comes as
                its bits in uint16 (`hidden_torch` gives bfloat16 itself).
            rows: row numbers instead of `where`; they come in the order given and as often as they are given.
            offset: how many of the rows to leave out first.
            limit: how many of the others come at most.

        Returns:
            (n, d), or (n, offsets, d) for an `offset` or `reply` site, zeros where a reply has ended; where several layers are
            asked for, with an axis of layers before.

        Raises:
            ValueError: the run has no such site, layer or row, is not complete, or is damaged; or the site keeps every token
                (`hidden_tokens` reads those).
        """
        _check_pooled(site)
        return self._read(site, layer, dtype, self._chosen(where, rows, offset, limit))[0]

    def hidden_rows(self, site: str, layer: int | Sequence[int], rows: ArrayLike, dtype: str = "float32") -> Values:
        """As `hidden`, for row numbers."""
        return self.hidden(site, layer, dtype=dtype, rows=rows)

    def hidden_torch(
        self, site: str, layer: int | Sequence[int], where: str | None = None, **which: Unpack[Which]
    ) -> "torch.Tensor":
        """As `hidden`, as a tensor in the precision that is kept; its bytes are the store's, neither converted nor copied."""
        return to_torch(self.hidden(site, layer, where, "stored", **which), self.manifest.identity.stored_dtype)

    def hidden_arrow(self, site: str, layer: int | Sequence[int], where: str | None = None, **which: Unpack[Which]) -> pa.Table:
        """As `hidden`, as a table: `row`, and for each layer a column such as `layer_12` of lists of one length.

        Lists hold float32, or float16 where that is kept (Arrow has no bfloat16); on a grid of offsets they hold lists.
        """
        _check_pooled(site)
        chosen, layers = self._chosen(where, **which), _several(layer)
        dtype = "stored" if self.manifest.identity.stored_dtype == "float16" else "float32"
        hidden_LND, _ = self._read(site, layers, dtype, chosen)
        columns = {f"layer_{layer}": _lists(hidden_ND) for layer, hidden_ND in zip(layers, hidden_LND, strict=True)}
        return pa.table({"row": chosen, **columns})

    def hidden_tokens(
        self,
        site: str,
        layer: int | Sequence[int],
        where: str | None = None,
        dtype: str = "float32",
        **which: Unpack[Which],
    ) -> TokenStates:
        """Hidden states of every token of the utterances, at an `all` site such as `resid.all`; the rest as in `hidden`.

        Raises:
            ValueError: as in `hidden`; or the site does not keep every token.
        """
        if Site.parse(site).position != "all":
            raise ValueError(f"{site} does not keep every token; read it with hidden")
        hidden, n_tokens = self._read(site, layer, dtype, self._chosen(where, **which))
        return TokenStates(hidden, np.concatenate([[0], np.cumsum(n_tokens)]))

    def explain(self, site: str, layer: int | Sequence[int], where: str | None = None, **which: Unpack[Which]) -> Reading:
        """What `hidden`, or `hidden_tokens`, would read and return; no state is read for it.

        Raises:
            ValueError: as in `hidden`.
        """
        arrays, indexes = self._arrays(site), self._layer_indexes(site, layer)
        plan = arrays.plan(self._chosen(where, **which))
        shape = (plan.n_entries, *self._entry_shape(site))
        return Reading(*plan.touched(indexes), shape if isinstance(layer, (int, np.integer)) else (len(indexes), *shape))

    def batches(
        self,
        site: str,
        layer: int | Sequence[int],
        size: int,
        where: str | None = None,
        dtype: str = "float32",
        *,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **streaming: Unpack[Streaming],
    ) -> Iterator[Batch]:
        """Hidden states batch after batch, in bounded memory: three buffers at most, one of them read ahead.

        Args:
            site, layer, where, dtype: as in `hidden`.
            size: rows of a batch; the last one may have fewer.
            epoch: which pass over the rows this is, from 0; each is shuffled in its own way.
            rank: which reader of `world_size` this is, from 0. Together they read every row once, each as many as the others
                or one more.
            world_size: how many readers share the rows.
            streaming: what is shuffled (docs/slices.md).

        Raises:
            ValueError: as in `hidden`; or a number is out of its range.
        """
        return self._stream(site, layer, size, where, dtype, **streaming).batches(epoch, rank, world_size)

    def dataset(
        self,
        site: str,
        layer: int | Sequence[int],
        size: int,
        where: str | None = None,
        dtype: str = "stored",
        *,
        rank: int = 0,
        world_size: int = 1,
        **streaming: Unpack[Streaming],
    ) -> "StreamedStates":
        """As `batches`, for `torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=4)`.

        Args:
            dtype: `stored` for tensors in the precision that is kept, or `float32`.

        Raises:
            ValueError: as in `batches`.
        """
        from analyze.dataset import StreamedStates

        return StreamedStates(self._stream(site, layer, size, where, dtype, **streaming), rank, world_size)

    def nearest(
        self,
        site: str,
        layer: int,
        queries: "Queries",
        k: int = 10,
        where: str | None = None,
        *,
        metric: str = "cosine",
        scaling: str = "none",
    ) -> pa.Table:
        """The utterances nearest to texts or vectors, exactly; as analyze.finding.nearest_utterances."""
        from analyze.finding import nearest_utterances

        return nearest_utterances(self, site, layer, queries, k, where, metric=metric, scaling=scaling)

    def along(self, site: str, layer: int, direction: ArrayLike, k: int = 10, where: str | None = None) -> pa.Table:
        """The utterances at both ends of a direction (analyze.directions); as analyze.finding.utterances_along."""
        from analyze.finding import utterances_along

        return utterances_along(self, site, layer, direction, k, where)

    def opened_again(self) -> "Run":
        """The same run, opened anew in this process."""
        return open_store(self.stored.store_location).run(self.run_id)

    def n_missing(self) -> int:
        """How many shards do not exist yet.

        Raises:
            ValueError: a receipt is damaged.
        """
        if not self._whole:
            receipts = self.stored.receipts()
            if len(receipts) < self.stored.n_shards:
                return self.stored.n_shards - len(receipts)
            self._whole[:] = receipts
        return 0

    def require_complete(self) -> None:
        """Refuse a run that lacks shards.

        Raises:
            ValueError: shards are missing, or a receipt is damaged.
        """
        self._receipts()

    def _row_numbers(self, where: str | None) -> NDArray[np.int64]:
        return np.arange(self.manifest.n_rows) if where is None else matching(self.stored.table("utterances"), where)

    def _chosen(
        self, where: str | None, rows: ArrayLike | None = None, offset: int = 0, limit: int | None = None
    ) -> NDArray[np.int64]:
        """The rows asked for, in the order asked for."""
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"offset and limit are numbers of rows, from 0: offset={offset}, limit={limit}")
        if where is not None and rows is not None:
            raise ValueError("where and rows both say which rows; give one of them")
        chosen = self._row_numbers(where) if rows is None else self._checked(rows)
        return chosen[offset : None if limit is None else offset + limit]

    def _checked(self, rows: ArrayLike) -> NDArray[np.int64]:
        numbers = np.asarray(rows)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise ValueError("rows must be a list of row numbers; numpy.flatnonzero makes one of a mask")
        absent = numbers[(numbers < 0) | (numbers >= self.manifest.n_rows)]
        if absent.size:
            raise ValueError(f"run {self.run_id} has no row {absent[0]}; its rows are 0 to {self.manifest.n_rows - 1:,}")
        return numbers.astype(np.int64)

    def _numpy_dtype(self, dtype: str) -> np.dtype[Any]:
        if dtype not in ("float32", "stored"):
            raise ValueError(f"cannot read hidden states as {dtype!r}; choose from float32, stored")
        return np.dtype(np.float32) if dtype == "float32" else numpy_dtype(self.manifest.identity.stored_dtype)

    def _read(
        self, site: str, layer: int | Sequence[int], dtype: str, rows: NDArray[np.int64]
    ) -> tuple[Values, NDArray[np.int64]]:
        """Hidden states of rows, and how many entries belong to each row."""
        as_read, arrays, indexes = self._numpy_dtype(dtype), self._arrays(site), self._layer_indexes(site, layer)
        plan = arrays.plan(rows)
        hidden_LTD = plan.read(indexes, self._entry_shape(site), as_read)
        return hidden_LTD[0] if isinstance(layer, (int, np.integer)) else hidden_LTD, plan.lengths_N

    def _stream(
        self, site: str, layer: int | Sequence[int], size: int, where: str | None, dtype: str, **streaming: Unpack[Streaming]
    ) -> Stream:
        _check_pooled(site)
        arrays, indexes = self._arrays(site), self._layer_indexes(site, layer)
        rows, seed = self._chosen(where, streaming.get("rows")), streaming.get("shuffle_seed")
        row_bytes = len(indexes) * math.prod(self._entry_shape(site)) * self._numpy_dtype("stored").itemsize
        self._numpy_dtype(dtype)  # refuses what is none
        buffer_rows = streaming.get("buffer_rows")
        if buffer_rows is None:
            buffer_rows = max(1, BUFFER_BYTES // max(1, row_bytes))
        return Stream(self, site, layer, dtype, size, rows, None if seed is None else arrays.chunks(rows), seed, buffer_rows)

    def _arrays(self, site: str) -> SiteArrays:
        receipts = self._receipts()
        if str(Site.parse(site)) not in self.sites:
            raise ValueError(f"run {self.run_id} does not hold {site}; it holds {', '.join(self.sites)}")
        return SiteArrays(self.stored, receipts, Site.parse(site), self._layouts)

    def _entry_shape(self, site: str) -> tuple[int, ...]:
        offsets = (len(self.manifest.identity.offsets),) if Site.parse(site).on_grid else ()
        return *offsets, self.manifest.width

    def _layer_indexes(self, site: str, layer: int | Sequence[int]) -> list[int]:
        held = self.layers_of(site)
        absent = [layer for layer in _several(layer) if layer not in held]
        if absent:
            raise ValueError(f"run {self.run_id} does not hold layer {absent[0]} of {site}; it holds {_ranges(held)}")
        return [held.index(layer) for layer in _several(layer)]

    def _receipts(self) -> tuple[Receipt, ...]:
        """The receipt of every shard, read once when the run is complete."""
        n_missing = self.n_missing()
        if n_missing:
            raise ValueError(
                f"run {self.run_id} is not complete: {n_missing:,} of {self.stored.n_shards:,} shards are missing; "
                f"launch the same {self.stored.command} again to finish it"
            )
        return tuple(self._whole)


def _check_pooled(site: str) -> None:
    if Site.parse(site).position == "all":
        raise ValueError(f"{site} keeps every token, so its rows differ in length; read it with hidden_tokens")


def _several(layer: int | Sequence[int]) -> list[int]:
    return [int(layer)] if isinstance(layer, (int, np.integer)) else list(layer)


def _lists(hidden: Values) -> pa.Array:
    """An array's rows as lists of one length."""
    lists = pa.array(hidden.reshape(-1))
    for length in reversed(hidden.shape[1:]):
        lists = pa.FixedSizeListArray.from_arrays(lists, length)
    return lists


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
