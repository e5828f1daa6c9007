"""A shard's token ids to its arrays in stored form: batches through the engine, one of them ahead of what is being kept.

While the device computes a batch, the host converts and places the one before. A batch whose states do not fit into memory
is halved until it does: shrinking the budget for the rest was rejected, because then a shard's bytes would depend on where
the memory ran out.

Shape suffixes: L layers, N rows of the shard, B rows of a batch, D width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from extract.batches import plan_packed_batches, plan_padded_batches
from extract.decoding import Decoding, Reply
from extract.encoding import UnfitValueError, Values, to_stored
from extract.engine import Engine
from extract.pooling import reach
from extract.prefix import Prefix
from extract.rotary import apart
from extract.sites import Site
from extract.stored_run import StoredRun
from extract.tokens import Prompt
from extract.writing import plan_replies


class ExtractionError(RuntimeError):
    """A shard could not be computed; the message names the row."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What a shard holds."""

    arrays: dict[str, Values]
    """For each site its values in stored form, of the shape `StoredRun.layout` says."""
    n_computed: int
    """Tokens that went through the model, padding not counted."""
    n_shared: int
    """Tokens that all prompts begin with and that were computed once."""
    n_halved: int
    """Batches that did not fit into memory and were cut in two."""
    copy_seconds: float
    """Of the wall time, what bringing states to the host in stored form took."""


@dataclass(frozen=True, slots=True)
class _Pooled:
    """A batch on its way."""

    rows: list[int]
    """Its rows, counted in the shard."""
    states: dict[Site, torch.Tensor]
    """What each site keeps of them, perhaps still being computed."""
    mark: object
    """When it is computed (Engine.mark)."""


def compute_shard(
    loaded: Engine,
    run: StoredRun,
    shard: int,
    prompts: Sequence[Prompt],
    row_offsets: Sequence[int],
    on_rows: Callable[[int], None],
) -> Computed:
    """Compute one shard.

    Args:
        row_offsets: where the utterance's own tokens of each row begin among those of all, and where the last end.
        on_rows: called with the number of rows computed, batch by batch.

    Raises:
        ExtractionError: a hidden state is not finite or does not fit the stored dtype, or a row does not fit into memory.
    """
    return _Shard(loaded, run, shard, prompts, row_offsets).compute(on_rows)


def write_replies(loaded: Engine, prompts: Sequence[Prompt], decoding: Decoding, token_budget: int) -> tuple[list[Reply], int]:
    """The model's replies to the prompts of a shard, in order, and how many batches were halved for lack of memory.

    Raises:
        ExtractionError: a single prompt's keys and values do not fit into memory.
    """
    written: dict[int, Reply] = {}
    n_halved = 0

    def write(places: list[int]) -> None:
        nonlocal n_halved
        try:
            replies = loaded.write([prompts[place] for place in places], decoding)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(places) == 1:
                raise ExtractionError(
                    f"a reply of {decoding.max_tokens:,} tokens does not fit into the memory of {loaded.device}; ask for a "
                    "shorter one, or take a larger device"
                ) from error
        else:
            written.update(zip(places, replies, strict=True))
            return
        loaded.free_memory()
        n_halved += 1
        write(places[: len(places) // 2])
        write(places[len(places) // 2 :])

    lengths = [len(prompt.ids) + decoding.max_tokens for prompt in prompts]
    for rows in apart(lengths, loaded.turns_from):
        for batch in plan_replies([prompts[row] for row in rows], decoding.max_tokens, token_budget):
            write([rows[place] for place in batch])
    return [written[place] for place in range(len(prompts))], n_halved


class _Shard:
    """The work on one shard."""

    def __init__(
        self, loaded: Engine, run: StoredRun, shard: int, prompts: Sequence[Prompt], row_offsets: Sequence[int]
    ) -> None:
        self._loaded, self._run, self._first_row = loaded, run, run.shard_rows(shard)[0]
        self._row_offsets = row_offsets
        self._identity = run.manifest.identity
        self._sites = [Site.parse(site) for site in self._identity.sites]
        alike = loaded.causal and loaded.turns_from is None
        self._prompts = [self._as_far_as_read(prompt) for prompt in prompts] if alike else prompts
        layouts = {str(site): run.layout(shard, str(site), row_offsets) for site in self._sites}
        self._arrays: dict[str, Values] = {site: np.empty(layout.shape, layout.dtype) for site, layout in layouts.items()}
        self._n_halved = 0
        self._copy_seconds = 0.0

    def _as_far_as_read(self, prompt: Prompt) -> Prompt:
        stop = max(reach(site, prompt, self._identity.offsets) for site in self._sites)
        return replace(prompt, ids=prompt.ids[:stop])

    def compute(self, on_rows: Callable[[int], None]) -> Computed:
        prefix = self._shared()
        n_shared = 0 if prefix is None else prefix.n_tokens
        before: _Pooled | None = None
        for rows in self._batches(n_shared):
            for pooled in self._pooled(rows, prefix):
                if before is not None:
                    self._keep(before)
                before = pooled
            on_rows(len(rows))
        if before is not None:
            self._keep(before)
        if self._n_halved:  # memory is short, and writing needs some
            self._loaded.free_memory()
        n_computed = sum(len(prompt.ids) for prompt in self._prompts) - n_shared * (len(self._prompts) - 1)
        return Computed(self._arrays, n_computed, n_shared, self._n_halved, self._copy_seconds)

    def _shared(self) -> Prefix | None:
        """What all prompts begin with; None where there is no memory for it, and each is computed whole, or refused."""
        try:
            return self._loaded.share(self._prompts, self._identity.layers, self._sites, self._identity.offsets)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        self._loaded.free_memory()
        return None

    def _batches(self, n_shared: int) -> Iterator[list[int]]:
        lengths = [len(prompt.ids) - n_shared for prompt in self._prompts]
        budget = self._run.manifest.token_budget
        for group in apart(lengths, self._loaded.turns_from):
            of_group = [lengths[row] for row in group]
            if self._loaded.padded:
                batches = plan_padded_batches(of_group, budget, n_shared)
            else:
                batches = plan_packed_batches(of_group, budget)
            yield from ([group[row] for row in batch] for batch in batches)

    def _pooled(self, rows: list[int], prefix: Prefix | None) -> Iterator[_Pooled]:
        """A batch, or its halves where it does not fit into memory."""
        prompts = [self._prompts[row] for row in rows]
        states: dict[Site, torch.Tensor] | None = None
        try:
            states = self._loaded.pool(prompts, self._identity.layers, self._sites, self._identity.offsets, prefix)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(rows) == 1:
                n_tokens = len(prompts[0].ids)
                raise ExtractionError(
                    f"row {self._first_row + rows[0]:,}: its {n_tokens:,} tokens do not fit into the memory of "
                    f"{self._loaded.device}; shorten it, or take a larger device"
                ) from error
        if states is not None:  # what failed is forgotten by now, and its memory free
            yield _Pooled(rows, states, self._loaded.mark())
            return
        self._n_halved += 1
        self._loaded.free_memory()
        middle = len(rows) // 2
        yield from self._pooled(rows[:middle], prefix)
        yield from self._pooled(rows[middle:], prefix)

    def _keep(self, pooled: _Pooled) -> None:
        began = time.perf_counter()
        with self._loaded.after(pooled.mark):
            for site, states_LBD in pooled.states.items():
                places = _tokens_of(pooled.rows, self._row_offsets) if site.position == "all" else np.asarray(pooled.rows)
                for index, states_BD in enumerate(states_LBD):  # one by one: what is converted takes its memory again
                    try:
                        values_BD = to_stored(states_BD, self._identity.stored_dtype)
                    except UnfitValueError as error:
                        raise ExtractionError(self._unfit_sentence(error, site, index, int(places[error.index[0]]))) from error
                    self._arrays[str(site)][index, places] = values_BD
        self._copy_seconds += time.perf_counter() - began

    def _unfit_sentence(self, error: UnfitValueError, site: Site, index: int, place: int) -> str:
        row = int(np.searchsorted(self._row_offsets, place, side="right")) - 1 if site.position == "all" else place
        layer = self._run.layers(str(site))[index]
        where = f"row {self._first_row + row:,}, layer {layer}, {site}"
        if np.isfinite(error.value):
            stored = self._identity.stored_dtype
            return f"{where}: the value {error.value:g} does not fit into {stored}; store bfloat16 or float32 instead"
        return f"{where}: the hidden state is not finite ({error.value}); try --dtype float32"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _tokens_of(rows: Sequence[int], row_offsets: Sequence[int]) -> NDArray[np.int64]:
    """Where the tokens of some rows are in an array of tokens."""
    return np.concatenate([np.arange(row_offsets[row], row_offsets[row + 1]) for row in rows])
