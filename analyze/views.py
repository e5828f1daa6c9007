"""What SQL over a store is asked of: everything in it that is not a tensor, a table for each kind of thing.

    runs         each run                         utterances   the texts of all runs, with the columns of their corpora
    receipts     each shard that exists           replies      what models said, shard by shard as far as a run is
    probes       each file of kept probes         scores, persistence, transfer, geometry, zero_shot, prompting
                                                               results kept by analyses, an interval a row

A table is read through the store, which checks every byte, and only where it is asked for: of `runs` not one utterance is read.
Handing DuckDB the Parquet files was rejected: it would read damaged ones, and could be told to read others.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analyze.query import Run, Store
from extract.decoding import replies_table
from extract.documents import Receipt

_STAGES = ("load", "compute", "copy", "write")
_TIME = pa.timestamp("us")  # in UTC, without a zone: whoever asks where it is `> '2026-11-01'` need name none
_TEXTS = pa.list_(pa.string())
_NUMBERS = pa.list_(pa.int64())

_RUN = pa.schema(
    {
        "run_id": pa.string(),
        "model": pa.string(),
        "corpus": pa.string(),
        "template": pa.string(),
        "system": pa.string(),
        "n_rows": pa.int64(),
        "sites": _TEXTS,
        "layers": _NUMBERS,
        "offsets": _NUMBERS,
        "n_layers": pa.int64(),
        "width": pa.int64(),
        "compute_dtype": pa.string(),
        "stored_dtype": pa.string(),
        "attention": pa.string(),
        "weights": pa.string(),
        "imported": pa.bool_(),
        "reply_tokens": pa.int64(),
        "compression": pa.string(),
        "created": _TIME,
        "n_shards": pa.int64(),
        "n_done": pa.int64(),
        "complete": pa.bool_(),
        "n_tokens": pa.int64(),
        "bytes": pa.int64(),
        "finished": _TIME,
    }
)
_RECEIPT = pa.schema(
    {
        "run_id": pa.string(),
        "shard": pa.int64(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "n_tokens": pa.int64(),
        "n_computed": pa.int64(),
        "n_truncated": pa.int64(),
        "n_halved": pa.int64(),
        "forward": pa.string(),
        "device": pa.string(),
        "host": pa.string(),
        **{f"seconds_{stage}": pa.float64() for stage in _STAGES},
        "bytes": pa.int64(),
        "objects": pa.int64(),
        "attempt": pa.string(),
        "entry": pa.int64(),
        "versions": pa.map_(pa.string(), pa.string()),
        "finished": _TIME,
    }
)
_PROBES = pa.schema(
    {
        "run_id": pa.string(),
        "site": pa.string(),
        "kind": pa.string(),
        "label_column": pa.string(),
        "balance": pa.string(),
        "strength": pa.float64(),
        "layers": _NUMBERS,
        "classes": _TEXTS,
        "file": pa.string(),
        "made": _TIME,
    }
)


@dataclass(frozen=True, slots=True)
class View:
    """One of the tables."""

    says: str
    """What a row is."""
    read: Callable[[Store], pa.Table]
    """Reads it."""


def _runs(store: Store) -> pa.Table:
    return _table(_RUN, _of_each(store, lambda run: [_run_row(run)]))


def _run_row(run: Run) -> Mapping[str, object]:
    stored, manifest = run.stored, run.manifest
    identity, receipts = manifest.identity, stored.receipts()
    return {
        "run_id": run.run_id,
        "model": manifest.model,
        "corpus": manifest.corpus,
        "template": manifest.template,
        "system": manifest.system,
        "n_rows": manifest.n_rows,
        "sites": identity.sites,
        "layers": identity.layers,
        "offsets": identity.offsets,
        "n_layers": manifest.n_layers,
        "width": manifest.width,
        "compute_dtype": identity.compute_dtype,
        "stored_dtype": identity.stored_dtype,
        "attention": identity.attention,
        "weights": identity.weights,
        "imported": identity.imported,
        "reply_tokens": None if identity.reply is None else identity.reply.max_tokens,
        "compression": manifest.compression,
        "created": _time(manifest.created),
        "n_shards": stored.n_shards,
        "n_done": len(receipts),
        "complete": len(receipts) == stored.n_shards,
        "n_tokens": None if identity.imported else sum(receipt.n_tokens for receipt in receipts),
        "bytes": sum(receipt.n_bytes for receipt in receipts),
        "finished": max((_time(receipt.finished) for receipt in receipts), default=None),
    }


def _receipts(store: Store) -> pa.Table:
    return _table(_RECEIPT, _of_each(store, lambda run: [_receipt_row(receipt) for receipt in run.stored.receipts()]))


def _receipt_row(receipt: Receipt) -> Mapping[str, object]:
    same = (
        "run_id",
        "shard",
        "start",
        "stop",
        "n_tokens",
        "n_computed",
        "n_truncated",
        "n_halved",
        "forward",
        "device",
        "host",
    )
    return {
        **{name: getattr(receipt, name) for name in same},
        **{f"seconds_{stage}": receipt.seconds.get(stage) for stage in _STAGES},
        "bytes": receipt.n_bytes,
        "objects": len(receipt.objects),
        "attempt": receipt.attempt,
        "entry": receipt.entry,
        "versions": sorted(receipt.versions.items()),
        "finished": _time(receipt.finished),
    }


def _utterances(store: Store) -> pa.Table:
    empty = pa.table(
        {"row": pa.array([], pa.int64()), "utterance_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}
    )
    return _stacked([_named("", empty), *_of_runs(store, lambda run: _named(run.run_id, run.utterances()))])


def _replies(store: Store) -> pa.Table:
    empty = replies_table(0, [], [])

    def of_run(run: Run) -> pa.Table:
        if run.manifest.identity.reply is None:
            return _named(run.run_id, empty)
        return _named(run.run_id, pa.concat_tables([empty, *map(run.stored.replies, run.stored.receipts())]))

    return pa.concat_tables([_named("", empty), *_of_runs(store, of_run)])


def _kept_probes(store: Store) -> pa.Table:
    from analyze.saved import kept_probes  # it takes seconds to load

    def of_run(run: Run) -> list[Mapping[str, object]]:
        return [
            {
                "run_id": made.run_id,
                "site": made.site,
                "kind": made.spec.kind,
                "label_column": made.spec.column,
                "balance": made.spec.balance,
                "strength": made.spec.strength,
                "layers": made.layers,
                "classes": made.classes,
                "file": run.stored.objects.url(name),
                "made": _time(made.made),
            }
            for name, made in kept_probes(run)
        ]

    return _table(_PROBES, _of_each(store, of_run))


def results_of(runs: Sequence[Run], name: str, n_at_once: int) -> pa.Table:
    """The results of one kind that are kept with some runs, by the present versions.

    Args:
        name: scores, persistence, transfer, geometry, zero_shot or prompting.
        n_at_once: how many runs are read at once.

    Raises:
        ValueError: one is damaged.
    """
    from analyze import results  # these take seconds to load
    from analyze.report import tables

    kinds: Mapping[str, tuple[Callable[[Run], list[Any]], Callable[[list[Any]], pa.Table]]] = {
        "scores": (results.probes_of_any, tables.probe_table),
        "persistence": (results.persistence, tables.persistence_table),
        "transfer": (results.transfers, tables.transfer_table),
        "geometry": (results.geometries, tables.geometry_table),
        "zero_shot": (results.zero_shots, tables.zero_shot_table),
        "prompting": (results.promptings, tables.prompting_table),
    }
    kept, table = kinds[name]
    with ThreadPoolExecutor(n_at_once) as pool:
        return table([each for found in pool.map(kept, runs) for each in found])


def _results(name: str) -> Callable[[Store], pa.Table]:
    return lambda store: results_of(store.runs(), name, store.stored.objects.readers)


VIEWS: Mapping[str, View] = {
    "runs": View("a run", _runs),
    "utterances": View("an utterance of a run", _utterances),
    "replies": View("what a model said to an utterance", _replies),
    "receipts": View("a shard that exists", _receipts),
    "probes": View("a file of kept probes", _kept_probes),
    "scores": View("an interval of a probe", _results("scores")),
    "persistence": View("an interval of a persistence curve", _results("persistence")),
    "transfer": View("an interval of a transfer", _results("transfer")),
    "geometry": View("an interval of a geometry", _results("geometry")),
    "zero_shot": View("an interval of a zero-shot result", _results("zero_shot")),
    "prompting": View("an interval of what system prompts do", _results("prompting")),
}
"""The tables by name."""


def _of_runs(store: Store, read: Callable[[Run], Any]) -> list[Any]:
    """What is read of each run, several at once."""
    with ThreadPoolExecutor(store.stored.objects.readers) as pool:
        return list(pool.map(read, store.runs()))


def _of_each(store: Store, read: Callable[[Run], Sequence[Any]]) -> list[Any]:
    return [each for found in _of_runs(store, read) for each in found]


def _table(schema: pa.Schema, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def _named(run_id: str, table: pa.Table) -> pa.Table:
    """The table with the run's id in front; a column of a corpus that is called so gives way."""
    names: list[str] = []
    for name in table.column_names:
        while name.lower() == "run_id" or name in names:
            name = f"corpus_{name}"
        names.append(name)
    ids = pa.repeat(run_id, table.num_rows)
    return table.rename_columns(names).add_column(0, "run_id", ids)


def _stacked(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of different columns one below another: what one lacks is null, and what has different types becomes text."""
    kinds: dict[str, set[pa.DataType]] = {}
    plain = [_plain(part) for part in parts]
    for part in plain:
        for field in part.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in kinds.items() if not _stack(found)}
    return pa.concat_tables([_as_text(part, mixed) for part in plain], promote_options="permissive")


def _stack(kinds: Iterable[pa.DataType]) -> bool:
    try:
        pa.unify_schemas([pa.schema({"column": kind}) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _plain(table: pa.Table) -> pa.Table:
    """Categories as their values, and half floats, which DuckDB does not know, as floats."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[index].cast(field.type.value_type))
        elif pa.types.is_float16(field.type):
            table = table.set_column(index, field.name, table[index].cast(pa.float32()))
    return table


def _as_text(table: pa.Table, columns: Iterable[str]) -> pa.Table:
    for name in columns:
        index = table.schema.get_field_index(name)
        if index >= 0:
            table = table.set_column(index, name, _texts(table[index]))
    return table


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text; lists and the like as JSON."""
    try:
        return pc.cast(values, pa.string())
    except pa.ArrowException:
        texts = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
