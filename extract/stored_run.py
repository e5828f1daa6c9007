"""A run in a store: where its things are, its shards' logs, and how an attempt becomes a shard. docs/store.md is the norm.

A shard exists when the last entry of its log is a receipt. Its objects are written under a name no other attempt uses and
made durable, and only then is the log's next entry created, create-if-absent: of two writers one wins whole, and a writer
that dies leaves bytes nobody names. One Zarr array per run, written region by region, was rejected: two attempts would
share its objects, and a crash could leave half of each.

Receipts are never removed. What takes one back (`verify --repair`) or makes sure that an abandoned attempt can never be
committed (`gc`) is another entry of the same log, a void. A lock or a lease was rejected: a writer that sleeps through its
lease wakes up and commits, while here it finds that the entry it was going to write is taken.
"""

import errno
import io
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet

from extract.corpus import parquet_table
from extract.decoding import check_replies
from extract.documents import (
    LOG_ENTRY,
    LogEntry,
    Manifest,
    Receipt,
    StoredObject,
    Void,
    now,
    seal,
    unseal,
)
from extract.durable import Part
from extract.encoding import METADATA_KEY, Layout, Values
from extract.identity import sha256_hex, sha256_of_parts
from extract.objects import Objects
from extract.sites import Site
from extract.tokens import Prompt

REPLIES_FILE = "replies.parquet"
"""Of a shard of a run that keeps replies; beside the arrays, which are folders."""
_LOG_NAME = re.compile(r"(\d{6,})-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run in a store: knows where things are and how to add to them."""

    objects: Objects
    """`runs/RUN_ID` of the store; keys are relative to it."""
    manifest: Manifest = field(repr=False)
    """What it is."""

    @property
    def run_id(self) -> str:
        """16 hex digits."""
        return self.manifest.run_id

    @property
    def store_location(self) -> str:
        """The directory or URL of the store it is in."""
        return self.objects.url().rsplit("/", 2)[0]

    @property
    def command(self) -> str:
        """What makes it, and makes again what was taken back."""
        return "affectome import" if self.manifest.identity.imported else "affectome extract"

    @property
    def inputs(self) -> str:
        """The table of what its shards are made from: `tokens`, or `states` of an imported run."""
        return "states" if self.manifest.identity.imported else "tokens"

    @property
    def n_shards(self) -> int:
        """How many shards the run has when it is complete."""
        return -(-self.manifest.n_rows // self.manifest.rows_per_shard)

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """First and one past the last row of a shard."""
        start = shard * self.manifest.rows_per_shard
        return start, min(start + self.manifest.rows_per_shard, self.manifest.n_rows)

    def shard_size(self, shard: int) -> int:
        """Rows of a shard."""
        start, stop = self.shard_rows(shard)
        return stop - start

    # What there is of each shard.

    def log_lengths(self) -> dict[int, int]:
        """For each shard that has a log, the number its next entry will have; one listing, nothing is read."""
        lengths: dict[int, int] = {}
        for match in map(_LOG_NAME.fullmatch, self.objects.names("receipts")):
            if match:
                shard, entry = int(match[1]), int(match[2])
                lengths[shard] = max(lengths.get(shard, 0), entry + 1)
        return lengths

    def log_entry(self, shard: int, entry: int) -> LogEntry:
        """One entry of a shard's log.

        Raises:
            ValueError: it is damaged, or that of another shard.
        """
        key = log_key(shard, entry)
        try:
            document = unseal(LOG_ENTRY, self.objects.read(key))
        except FileNotFoundError as error:
            raise ValueError(f"receipt {self.objects.url(key)} is missing") from error
        except ValueError as error:
            raise ValueError(f"receipt {self.objects.url(key)} {error}; see affectome verify --repair") from error
        if (document.run_id, document.shard, document.entry) != (self.run_id, shard, entry):
            raise ValueError(f"receipt {self.objects.url(key)} is that of another shard; see affectome verify --repair")
        if isinstance(document, Receipt) and not self._fits(document):
            raise ValueError(f"receipt {self.objects.url(key)} is of shards cut otherwise; see affectome verify --repair")
        return document

    def _fits(self, receipt: Receipt) -> bool:
        """Whether a receipt was made with what the manifest pins."""
        rows, made_with = (receipt.start, receipt.stop), (receipt.token_budget, receipt.compression)
        pinned = (self.manifest.token_budget, self.manifest.compression)
        return rows == self.shard_rows(receipt.shard) and made_with == pinned

    def end_of_log(self, shard: int) -> tuple[int, Receipt | None]:
        """Which entry a shard's log gets next, and the receipt it ends with; None while the shard does not exist.

        Raises:
            ValueError: the last entry is damaged.
        """
        n_entries = self.log_lengths().get(shard, 0)
        last = self.log_entry(shard, n_entries - 1) if n_entries else None
        return n_entries, last if isinstance(last, Receipt) else None

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's receipt, or None while the shard does not exist.

        Raises:
            ValueError: the last entry of its log is damaged.
        """
        return self.end_of_log(shard)[1]

    def receipts(self) -> list[Receipt]:
        """The receipts of the shards that exist, in order.

        Raises:
            ValueError: the last entry of a log is damaged.
        """
        return [entry for entry in self.last_entries(self.log_lengths()) if isinstance(entry, Receipt)]

    def last_entries(self, lengths: Mapping[int, int]) -> list[LogEntry]:
        """The last entry of each log of a shard that the run has, by shard; they are read concurrently.

        Args:
            lengths: of logs, as from `log_lengths`.

        Raises:
            ValueError: one is damaged.
        """
        with ThreadPoolExecutor(self.objects.concurrency) as pool:
            there = sorted((shard, length) for shard, length in lengths.items() if shard < self.n_shards)
            return list(pool.map(lambda item: self.log_entry(item[0], item[1] - 1), there))

    def missing_shards(self) -> list[int]:
        """Shards that do not exist.

        Raises:
            ValueError: the last entry of a log is damaged.
        """
        there = {receipt.shard for receipt in self.receipts()}
        return [shard for shard in range(self.n_shards) if shard not in there]

    # Tables.

    def table(self, name: str) -> pa.Table:
        """Read `utterances`, or `tokens` or `states`, whichever `inputs` says.

        Raises:
            ValueError: its bytes are not those the manifest names.
        """
        try:
            data = read_checked(self.objects, self._table_entry(name))
        except ValueError as error:
            raise ValueError(f"{error}; see affectome verify --repair") from error
        return parquet_table(data)

    def prompts(self, shard: int) -> list[Prompt]:
        """The tokenized rows of a shard: one row group of tokens.parquet, whose pages carry checksums.

        Raises:
            ValueError: the file is missing or damaged.
        """
        key = self._table_entry("tokens").path
        try:
            with self.objects.open(key) as opened, pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True) as file:
                return prompts_of(file.read_row_group(shard, use_threads=False))  # no thread of Arrow's holds the file
        except (OSError, pa.ArrowException) as error:  # a page's wrong checksum is an OSError
            raise ValueError(f"{self.objects.url(key)} cannot be read: {error}; see affectome verify") from error

    def _table_entry(self, name: str) -> StoredObject:
        return next(entry for entry in self.manifest.tables if entry.path.endswith(f"/{name}.parquet"))

    def replies(self, receipt: Receipt) -> pa.Table:
        """What the model said to the rows of a shard.

        Raises:
            ValueError: it is missing or damaged.
        """
        entry = next(entry for entry in receipt.objects if entry.path.endswith(f"/{REPLIES_FILE}"))
        table = parquet_table(read_checked(self.objects, entry))
        reply = self.manifest.identity.reply
        assert reply is not None, "its receipt names replies"
        try:
            check_replies(table, receipt.start, receipt.stop, reply.max_tokens)
        except ValueError as error:
            raise ValueError(f"{self.objects.url(entry.path)} is damaged: {error}") from error
        return table

    # Writing a shard.

    def layers(self, site: str) -> tuple[int, ...]:
        """The layers that an array of a site holds, in order."""
        return Site.parse(site).layers(self.manifest.identity.layers, self.manifest.n_layers)

    def layout(self, shard: int, site: str, row_offsets: Sequence[int]) -> Layout:
        """How the array of one site of one shard lies.

        Args:
            row_offsets: where the tokens of each row begin, and where the last end, in an array of tokens.
        """
        identity, (start, stop) = self.manifest.identity, self.shard_rows(shard)
        layers, width, dtype = len(self.layers(site)), self.manifest.width, identity.stored_dtype
        compression = self.manifest.compression
        match Site.parse(site).position:
            case "all":
                return Layout.plan((layers, row_offsets[-1], width), dtype, compression, row_offsets)
            case "offset" | "reply":
                return Layout.plan((layers, stop - start, len(identity.offsets), width), dtype, compression)
            case _:
                return Layout.plan((layers, stop - start, width), dtype, compression)

    def write_attempt(
        self, shard: int, arrays: Mapping[str, Values], row_offsets: Sequence[int] = (), replies: pa.Table | None = None
    ) -> tuple[str, tuple[StoredObject, ...]]:
        """Make a shard's arrays durable under a name of their own; they count only once a receipt names them.

        Args:
            arrays: for each site its values in stored form, of the shape that `layout` says.
            row_offsets: as in `layout`.
            replies: what the model said, where the run keeps that (extract.decoding.replies_table).

        Returns:
            The attempt's name and its objects.
        """
        attempt = secrets.token_hex(4)
        prefix = attempt_prefix(shard, attempt)
        layouts = {site: self.layout(shard, site, row_offsets) for site in sorted(arrays)}
        keys = [(site, layer) for site, layout in layouts.items() for layer in (None, *range(layout.shape[0]))]

        def write(item: tuple[str, int | None]) -> StoredObject:
            site, layer = item
            layout = layouts[site]
            if layer is None:
                return self._write(f"{prefix}/{site}/{METADATA_KEY}", [layout.metadata])
            return self._write(f"{prefix}/{site}/{layout.key(layer)}", list(layout.encode(arrays[site][layer])))

        for site, layout in layouts.items():
            assert arrays[site].shape == layout.shape, (site, arrays[site].shape, layout.shape)
        try:
            with ThreadPoolExecutor(self.objects.concurrency) as pool:
                written = tuple(pool.map(write, keys))
            if replies is not None:
                written += (self._write(f"{prefix}/{REPLIES_FILE}", [parquet_bytes(replies, replies.num_rows)]),)
            self.objects.settle(prefix)
        except BaseException:  # a full disk gets its space back; what a killed attempt leaves is nobody's
            self.objects.remove(prefix)
            raise
        return attempt, written

    def _write(self, key: str, parts: Sequence[Part]) -> StoredObject:
        digest, size = sha256_of_parts(parts)
        self.objects.write(key, parts)
        return StoredObject(key, size, digest)

    def commit(self, receipt: Receipt) -> bool:
        """Create a shard's receipt as the entry of the log that it names.

        Returns:
            False when that entry was taken: then what stands there counts, and this attempt's bytes are removed.
        """
        key = log_key(receipt.shard, receipt.entry)
        try:
            created = self.objects.create(key, seal(LOG_ENTRY, receipt))
        except OSError as error:
            if error.errno == errno.ENOSPC and not self.objects.exists(key):  # other failures may hide a success
                self.objects.remove(attempt_prefix(receipt.shard, receipt.attempt))
            raise
        if not created:
            self.objects.remove(attempt_prefix(receipt.shard, receipt.attempt))
        return created

    def void(self, shard: int, entry: int, reason: str) -> bool:
        """Take back whatever a shard's log holds before `entry`; nobody who began before can commit any more.

        Returns:
            False when that entry was taken.
        """
        document = Void(run_id=self.run_id, shard=shard, entry=entry, reason=reason, made=now(), nonce=secrets.token_hex(4))
        return self.objects.create(log_key(shard, entry), seal(LOG_ENTRY, document))


def attempt_prefix(shard: int, attempt: str) -> str:
    """Where the objects of one attempt at a shard are."""
    return f"shards/{shard:06d}-{attempt}"


def log_key(shard: int, entry: int) -> str:
    """Where an entry of a shard's log is."""
    return f"receipts/{shard:06d}-{entry}.json"


def prompts_of(tokens: pa.Table) -> list[Prompt]:
    """Rows of tokens.parquet as prompts."""
    columns = (tokens[name].to_pylist() for name in ("ids", "start", "stop", "prompt_stop", "truncated"))
    return [Prompt(tuple(ids), *rest) for ids, *rest in zip(*columns, strict=True)]


def through_parquet(table: pa.Table) -> pa.Table:
    """The table as it reads once it was stored: Parquet knows fewer types than Arrow."""
    return parquet_table(parquet_bytes(table, table.num_rows))


def read_checked(objects: Objects, entry: StoredObject) -> bytes:
    """Read an object.

    Raises:
        ValueError: it is missing, or its bytes are not the ones that were written.
    """
    try:
        data = objects.read(entry.path)
    except FileNotFoundError as error:
        raise ValueError(f"{objects.url(entry.path)} is missing") from error
    if len(data) != entry.size:
        raise ValueError(f"{objects.url(entry.path)} holds {len(data):,} bytes instead of {entry.size:,}")
    if sha256_hex(data) != entry.sha256:
        raise ValueError(f"{objects.url(entry.path)} is damaged: its SHA-256 is not the one that was written")
    return data


def parquet_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    """A table as a file of the store has it; the checksums let a reader find what a disk damaged."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=rows_per_group, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
