"""Is a run whole? Every row once, every object with the bytes its receipt names, every value finite; and what to do if not.

Looks at the objects themselves: each is read once, held against its receipt, decoded chunk by chunk against the chunks'
own checksums, and searched for values that are not finite. Objects are checked side by side, because digests leave the
interpreter free and a network needs more than one request to be busy.

Repairing takes back the receipts of damaged shards, so that the next launch does exactly those again. Mending bytes in
place was rejected: what is computed again is known to be right.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from extract.corpus import texts_digest
from extract.documents import Receipt, StoredObject
from extract.encoding import METADATA_KEY, Layout, is_finite
from extract.identity import sha256_hex
from extract.objects import Objects
from extract.row_digests import digests_in
from extract.store import Store
from extract.stored_run import REPLIES_FILE, StoredRun, attempt_prefix, prompts_of, read_checked
from extract.tokens import offsets_of, tokens_digest


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a run."""

    shard: int | None
    """The shard it spoils; None for the run's tables."""
    sentence: str
    """What is wrong, and where."""
    missing: bool = False
    """Whether the shard does not exist, so that there is nothing to take back."""

    def __str__(self) -> str:
        return self.sentence if self.shard is None else f"shard {self.shard}: {self.sentence}"


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
    problems: tuple[Problem, ...]
    """Empty when the run is whole."""
    log_lengths: Mapping[int, int]
    """How far each shard's log went when it was looked at; what was written later is not judged."""

    @property
    def whole(self) -> bool:
        """Whether every row is there and right."""
        return not self.problems

    @property
    def damaged_shards(self) -> list[int]:
        """Shards with a problem, in order."""
        return sorted({problem.shard for problem in self.problems if problem.shard is not None})

    @property
    def damaged_tables(self) -> bool:
        """Whether the run's tables have a problem."""
        return any(problem.shard is None for problem in self.problems)


def verify(run: StoredRun, fast: bool = False, on_shards: Callable[[int], None] = lambda _: None) -> Verdict:
    """Check a run to the last byte.

    Args:
        fast: read the receipts only: is every row accounted for, by receipts that are what was written?
        on_shards: called with the number of shards checked, as they are checked.
    """
    with ThreadPoolExecutor(run.objects.concurrency) as pool:
        lengths = run.log_lengths()
        found = list(_receipts(run, lengths, pool))
        receipts = [each for each in found if isinstance(each, Receipt)]
        problems = [each for each in found if isinstance(each, Problem)]
        if not fast:
            tables, inputs = _read_tables(run)
            problems += [Problem(None, sentence) for sentence in tables]
        on_shards(run.n_shards - len(receipts))
        for receipt in receipts:
            sentences = _receipt_problems(run, receipt) if fast else _shard_problems(run, receipt, inputs, pool)
            problems += [Problem(receipt.shard, sentence) for sentence in sentences]
            on_shards(1)
    spoiled = {problem.shard for problem in problems}
    return Verdict(
        run_id=run.run_id,
        n_rows=run.manifest.n_rows,
        n_rows_whole=sum(receipt.n_rows for receipt in receipts if receipt.shard not in spoiled),
        n_receipts=len(receipts),
        n_objects=0 if fast else sum(len(receipt.objects) for receipt in receipts),
        n_bytes=0 if fast else sum(receipt.n_bytes for receipt in receipts),
        problems=tuple(sorted(problems, key=lambda problem: -1 if problem.shard is None else problem.shard)),
        log_lengths=lengths,
    )


def requeue(store: Store, run: StoredRun, verdict: Verdict) -> list[int]:
    """Take back what a verdict found wrong, so that the next launch of the run's extraction does it again, and only it.

    Returns:
        The shards that the next launch will do because of it. Where tables were damaged the manifest is removed as well, and
        the launch writes both anew.
    """
    missing = {problem.shard for problem in verdict.problems if problem.missing}
    if verdict.damaged_tables:
        store.forget_manifest(run.run_id)
    return [  # whoever is doing a missing one now is to keep the entry he is going to write
        shard
        for shard in verdict.damaged_shards
        if shard in missing or run.void(shard, verdict.log_lengths[shard], "verify --repair found it damaged")
    ]


def _receipts(run: StoredRun, lengths: Mapping[int, int], pool: ThreadPoolExecutor) -> Iterator[Receipt | Problem]:
    """The receipt of every shard, or what is wrong with it."""

    def read(shard: int) -> Receipt | Problem:
        if shard not in lengths:
            return Problem(shard, f"no receipt: {_rows(run, shard)} are missing", missing=True)
        try:
            last = run.log_entry(shard, lengths[shard] - 1)
        except ValueError as error:
            return Problem(shard, str(error))
        if isinstance(last, Receipt):
            return last
        return Problem(shard, f"taken back ({last.reason}): {_rows(run, shard)} are missing", missing=True)

    return pool.map(read, range(run.n_shards))


def _read_tables(run: StoredRun) -> tuple[list[str], pa.Table | None]:
    """What is wrong with the tables, and what the shards are made from where that is right."""
    problems: list[str] = []
    tables: dict[str, pa.Table] = {}
    identity = run.manifest.identity
    for name in ("utterances", run.inputs):
        try:
            table = run.table(name)
        except ValueError as error:
            problems.append(str(error))
            continue
        if table["row"].to_pylist() != list(range(run.manifest.n_rows)):
            problems.append(f"{name}.parquet does not hold rows 0 to {run.manifest.n_rows - 1:,}, once each")
        elif name == "utterances" and texts_digest(table) != identity.corpus:
            problems.append("utterances.parquet holds other texts than the run was made from")
        elif name == "states" and sha256_hex(digests_in(table)) != identity.states:
            problems.append("states.parquet holds other digests than those of the states that were imported")
        else:
            tables[name] = table
    return problems, tables.get(run.inputs)


def _receipt_problems(run: StoredRun, receipt: Receipt) -> Iterator[str]:
    """What a receipt alone shows: whether it names an array for each site, and for each of them an object for each layer."""
    prefix = attempt_prefix(receipt.shard, receipt.attempt)
    named = [entry.path for entry in receipt.objects]
    for site in run.manifest.identity.sites:
        inside = [path for path in named if path.startswith(f"{prefix}/{site}/")]
        n_objects = len(run.layers(site)) + 1
        if len(set(inside)) != n_objects or f"{prefix}/{site}/{METADATA_KEY}" not in inside:
            yield f"{site}: its receipt names {len(set(inside))} objects instead of {n_objects}"
    n_wanted = sum(len(run.layers(site)) + 1 for site in run.manifest.identity.sites)
    if run.manifest.identity.reply is not None:
        n_wanted += 1
        if f"{prefix}/{REPLIES_FILE}" not in named:
            yield "its receipt names no replies"
    if len(named) != n_wanted:
        yield f"its receipt names {len(named)} objects, which are not those of its sites"


def _shard_problems(run: StoredRun, receipt: Receipt, inputs: pa.Table | None, pool: ThreadPoolExecutor) -> Iterator[str]:
    incomplete = list(_receipt_problems(run, receipt))
    yield from incomplete
    if incomplete:
        return
    row_offsets: list[int] | None = None
    if inputs is not None:
        row_offsets, digest = _made_from(run, inputs.slice(receipt.start, receipt.n_rows))
        if digest != receipt.tokens:
            yield f"it was made from other {run.inputs} than {run.inputs}.parquet holds"
    if run.manifest.identity.reply is not None:
        try:
            run.replies(receipt)
        except ValueError as error:
            yield f"replies: {error}"
    entries = {entry.path: entry for entry in receipt.objects}
    for site in run.manifest.identity.sites:
        prefix = f"{attempt_prefix(receipt.shard, receipt.attempt)}/{site}"
        metadata = entries.pop(f"{prefix}/{METADATA_KEY}")
        layout: Layout | None = None
        try:
            layout = Layout.read(read_checked(run.objects, metadata))
        except ValueError as error:
            yield f"{site}: {run.objects.url(prefix)}: {error}"
        if layout is not None and row_offsets is not None:
            expected = run.layout(receipt.shard, site, row_offsets)
            if (layout.shape, layout.row_offsets) != (expected.shape, expected.row_offsets):
                yield f"{site} has shape {layout.shape} instead of {expected.shape}, or other rows than {run.inputs}.parquet"
                layout = None
        check = partial(_object_problem, run.objects, layout)
        objects = [entry for path, entry in entries.items() if path.startswith(f"{prefix}/")]
        for entry, problem in zip(objects, pool.map(check, objects), strict=True):
            if problem:
                yield f"{site}, {_layer_name(run, entry)}: {problem}"


def _made_from(run: StoredRun, inputs: pa.Table) -> tuple[list[int], str]:
    """Where each row's tokens begin, none in an imported run, and the digest that a receipt of these inputs has."""
    if run.manifest.identity.imported:
        return [], sha256_hex(digests_in(inputs))
    prompts = prompts_of(inputs)
    return offsets_of(prompts), tokens_digest(prompts)


def _object_problem(objects: Objects, layout: Layout | None, entry: StoredObject) -> str | None:
    """What is wrong with the object of a layer; where its array's metadata is damaged, only its bytes are looked at."""
    try:
        data = read_checked(objects, entry)
        if layout is not None and not _all_finite(layout, data):
            return f"{objects.url(entry.path)} holds values that are not finite"
    except ValueError as error:
        return str(error)
    return None


def _all_finite(layout: Layout, data: bytes) -> bool:
    values = np.empty(layout.shape[1:], layout.dtype)
    layout.read_object(io.BytesIO(data), len(data), values)
    return is_finite(values, layout.stored_dtype)


def _layer_name(run: StoredRun, entry: StoredObject) -> str:
    site, name = entry.path.split("/")[-2:]
    return f"layer {run.layers(site)[int(name.split('.')[1])]}"


def _rows(run: StoredRun, shard: int) -> str:
    start, stop = run.shard_rows(shard)
    return f"rows {start:,} to {stop - 1:,}"
