"""Is a run whole? Every row once, every object with the bytes its receipt names, every value finite.

Looks at the objects themselves, not through the code that wrote them: sizes and SHA-256 first, then shapes, checksums
and values. Nothing is repaired here; a problem is named with shard, array and layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from extract.corpus import texts_digest
from extract.encoding import open_array, to_float32
from extract.sites import Site
from extract.store import Receipt, StoredRun, read_checked
from extract.tokens import tokens_digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying a run found."""

    run_id: str
    """The run."""
    n_rows: int
    """Rows asked for."""
    n_rows_whole: int
    """Rows in shards without a problem."""
    n_receipts: int
    """Receipts found and right."""
    n_objects: int
    """Objects read and compared."""
    n_bytes: int
    """Bytes read and compared."""
    problems: tuple[str, ...]
    """One sentence each; empty when the run is whole."""

    @property
    def whole(self) -> bool:
        """Whether every row is there and right."""
        return not self.problems


def verify(run: StoredRun, on_shards: Callable[[int], None] = lambda _: None) -> Verdict:
    """Check a run to the last byte.

    Args:
        on_shards: called with the number of shards checked, as they are checked.
    """
    problems = list(_table_problems(run))
    n_rows = n_receipts = n_objects = n_bytes = 0
    for shard in range(run.n_shards):
        start, stop = run.shard_rows(shard)
        try:
            receipt = run.receipt(shard)
            found = [f"no receipt: rows {start:,} to {stop - 1:,} are missing"] if receipt is None else []
        except ValueError as error:
            receipt, found = None, [str(error)]
        if receipt is not None:
            found = list(_shard_problems(run, receipt))
            n_receipts += 1
            n_objects += len(receipt.objects)
            n_bytes += sum(entry.size for entry in receipt.objects)
        problems += [f"shard {shard}: {problem}" for problem in found]
        n_rows += 0 if found else stop - start
        on_shards(1)
    return Verdict(run.run_id, run.manifest.n_rows, n_rows, n_receipts, n_objects, n_bytes, tuple(problems))


def _table_problems(run: StoredRun) -> Iterator[str]:
    for name in ("utterances", "tokens"):
        try:
            table = run.table(name)
        except ValueError as error:
            yield str(error)
            continue
        if table["row"].to_pylist() != list(range(run.manifest.n_rows)):
            yield f"{name}.parquet does not hold rows 0 to {run.manifest.n_rows - 1:,}, once each"
        if name == "utterances" and texts_digest(table) != run.manifest.identity.corpus:
            yield "utterances.parquet holds other texts than the run was made from"


def _shard_problems(run: StoredRun, receipt: Receipt) -> Iterator[str]:
    damaged = False
    for entry in receipt.objects:
        try:
            read_checked(run.directory, entry)
        except ValueError as error:
            damaged = True
            yield str(error)
    if damaged:
        return  # what is not the bytes that were written needs no further look
    try:
        if tokens_digest(run.prompts(receipt.shard)) != receipt.tokens:
            yield "it was computed from other tokens than tokens.parquet holds"
    except ValueError as error:
        yield str(error)
    for site in run.manifest.identity.sites:
        yield from _array_problems(run, receipt, site)


def _array_problems(run: StoredRun, receipt: Receipt, site: str) -> Iterator[str]:
    identity = run.manifest.identity
    offsets = (len(identity.offsets),) if Site.parse(site).position == "offset" else ()
    expected = (len(identity.layers), receipt.stop - receipt.start, *offsets, run.manifest.width)
    try:
        array = open_array(run.array_directory(receipt, site))
        if array.shape != expected:
            yield f"{site} has shape {array.shape} instead of {expected}"
            return
        for index, layer in enumerate(identity.layers):
            if not np.isfinite(to_float32(run.layer_values(receipt, site, index), identity.stored_dtype)).all():
                yield f"{site}, layer {layer}, holds values that are not finite"
    except ValueError as error:
        yield f"{site}: {error}"
