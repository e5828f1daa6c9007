"""The store: many runs, each a manifest, its tables, its shards and their logs. docs/store.md is the norm for this file.

A shard exists when the last entry of its log is a receipt. Its objects are written under a name no other attempt uses and
made durable, and only then is the log's next entry created, create-if-absent: of two writers one wins whole, and a writer
that dies leaves bytes nobody names. One Zarr array per run, written region by region, was rejected: two attempts would
share its objects, and a crash could leave half of each.

Receipts are never removed. What takes one back (`verify --repair`) or makes sure that an abandoned attempt can never be
committed (`gc`) is another entry of the same log, a void. A lock or a lease was rejected: a writer that sleeps through its
lease wakes up and commits, while here it finds that the entry it was going to write is taken.
"""

import contextlib
import errno
import io
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet

from extract.documents import (
    LOG_ENTRY,
    MANIFEST,
    LogEntry,
    Manifest,
    Receipt,
    StoredObject,
    Void,
    now,
    seal,
    unseal,
)
from extract.durable import Part, is_unfinished
from extract.encoding import METADATA_KEY, Layout, Values
from extract.identity import FORMAT_VERSION, Identity, canonical_json, sha256_hex, sha256_of_parts
from extract.objects import LocalObjects, Objects, open_objects
from extract.sites import Site
from extract.tokens import Prompt

STORE_FILE = "affectome.json"
RUN_FILE = "run.json"

_LOG_NAME = re.compile(r"(\d{6,})-(\d+)\.json")
_RUN_NAME = re.compile(r"[0-9a-f]{16}")


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

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's receipt, or None while the shard does not exist.

        Raises:
            ValueError: the last entry of its log is damaged.
        """
        length = self.log_lengths().get(shard, 0)
        last = self.log_entry(shard, length - 1) if length else None
        return last if isinstance(last, Receipt) else None

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
        """Read `utterances` or `tokens`.

        Raises:
            ValueError: its bytes are not those the manifest names.
        """
        try:
            data = read_checked(self.objects, self._table_entry(name))
        except ValueError as error:
            raise ValueError(f"{error}; see affectome verify --repair") from error
        return pyarrow.parquet.read_table(io.BytesIO(data))

    def prompts(self, shard: int) -> list[Prompt]:
        """The tokenized rows of a shard: one row group of tokens.parquet, whose pages carry checksums.

        Raises:
            ValueError: the file is missing or damaged.
        """
        key = self._table_entry("tokens").path
        try:
            with self.objects.open(key) as opened, pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True) as file:
                return prompts_of(file.read_row_group(shard))
        except (OSError, pa.ArrowException) as error:  # a page's wrong checksum is an OSError
            raise ValueError(f"{self.objects.url(key)} cannot be read: {error}; see affectome verify") from error

    def _table_entry(self, name: str) -> StoredObject:
        return next(entry for entry in self.manifest.tables if entry.path.endswith(f"/{name}.parquet"))

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
            case "offset":
                return Layout.plan((layers, stop - start, len(identity.offsets), width), dtype, compression)
            case _:
                return Layout.plan((layers, stop - start, width), dtype, compression)

    def write_attempt(
        self, shard: int, arrays: Mapping[str, Values], row_offsets: Sequence[int] = ()
    ) -> tuple[str, tuple[StoredObject, ...]]:
        """Make a shard's arrays durable under a name of their own; they count only once a receipt names them.

        Args:
            arrays: for each site its values in stored form, of the shape that `layout` says.
            row_offsets: as in `layout`.

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


class Store:
    """A place that holds runs."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        """Where it is."""

    @property
    def location(self) -> str:
        """The directory or URL that opens it again."""
        return self.objects.url()

    @staticmethod
    def check(location: str) -> Objects:
        """The place a location names, when a store is there or could be made there; nothing is written.

        Raises:
            ValueError: something else is there, or a store of another version.
        """
        objects = open_objects(location)
        if isinstance(objects, LocalObjects) and objects.root.is_file():
            raise ValueError(f"{location} is a file, not a store; give a directory")
        names = [name for name in objects.names("") if not is_unfinished(name)]
        if STORE_FILE in names:
            _check_marker(objects)
        elif names:
            raise ValueError(
                f"{objects.url()} is not a store: it has no {STORE_FILE} but holds other things; give a new directory, "
                "or, where the file was lost, write it again with affectome verify --repair"
            )
        return objects

    @classmethod
    def open(cls, location: str, create: bool = False) -> "Store":
        """Open a store, or make one where there is nothing yet.

        Raises:
            ValueError: there is no store, something else is there, it has another version, or the place cannot hold one.
        """
        objects = cls.check(location)
        if not objects.exists(STORE_FILE):
            if not create:
                raise ValueError(f"there is no store at {objects.url()}; make one with: affectome extract --store {location}")
            _check_creates_exclusively(objects)
            objects.create(STORE_FILE, _MARKER)
            _check_marker(objects)  # another process may have been first
        return cls(objects)

    @classmethod
    def restore_marker(cls, location: str) -> bool:
        """Write a lost or damaged `affectome.json` again, where there are runs.

        Returns:
            Whether there was something to restore.

        Raises:
            ValueError: the store has another version.
        """
        objects = open_objects(location)
        if not any(_RUN_NAME.fullmatch(name) for name in objects.names("runs")):
            return False
        try:
            _check_marker(objects)
        except _DamagedMarkerError:
            objects.replace(STORE_FILE, _MARKER)
            return True
        return False

    def run_ids(self) -> list[str]:
        """Runs that have a manifest, or shards and so should have one, sorted.

        A directory with neither is a creation that died or is going on, and means nothing yet.
        """
        ids = [name for name in self.objects.names("runs") if _RUN_NAME.fullmatch(name)]
        return [run_id for run_id in ids if {RUN_FILE, "receipts"} & set(self.objects.names(f"runs/{run_id}"))]

    def run(self, prefix: str) -> StoredRun:
        """The run whose id starts with `prefix`.

        Raises:
            ValueError: as in `run_id`; or its manifest is damaged.
        """
        return self._read(self.run_id(prefix))

    def run_id(self, prefix: str) -> str:
        """The id in `run_ids` that starts with `prefix`.

        Raises:
            ValueError: none or more than one starts so; the message names the choices.
        """
        found = [run_id for run_id in self.run_ids() if run_id.startswith(prefix)]
        if len(found) != 1 or not prefix:
            choices = ", ".join(found or self.run_ids()) or "none yet"
            problem = f"{len(found)} runs start with {prefix!r}" if found else f"no run starts with {prefix!r}"
            raise ValueError(f"{problem} in {self.location}; runs: {choices}")
        return found[0]

    def runs(self) -> list[StoredRun]:
        """All runs, by id.

        Raises:
            ValueError: a manifest is damaged.
        """
        return [self._read(run_id) for run_id in self.run_ids()]

    def find(self, identity: Identity) -> StoredRun | None:
        """The run of this identity, if it was created before."""
        run_id = identity.run_id
        return self._read(run_id) if self.objects.exists(f"runs/{run_id}/{RUN_FILE}") else None

    def surviving_receipt(self, run_id: str) -> Receipt | None:
        """A receipt of a run that lost its manifest, which says what was pinned; None where there is none."""
        objects = self.objects.at(f"runs/{run_id}")
        for name in reversed(objects.names("receipts")):
            with contextlib.suppress(ValueError):
                document = unseal(LOG_ENTRY, objects.read(f"receipts/{name}"))
                if isinstance(document, Receipt) and document.run_id == run_id:
                    return document
        return None

    def create_run(self, manifest: Manifest, tables: Mapping[str, pa.Table]) -> StoredRun:
        """Create a run, or return the one another process created first.

        Args:
            manifest: without its tables, which are written here.
            tables: `utterances` and `tokens`.
        """
        objects = self.objects.at(f"runs/{manifest.run_id}")
        prefix = f"tables/{secrets.token_hex(4)}"
        written = []
        try:
            for name, table in sorted(tables.items()):
                data = _parquet_bytes(table, manifest.rows_per_shard)
                objects.write(f"{prefix}/{name}.parquet", [data])
                written.append(StoredObject(f"{prefix}/{name}.parquet", len(data), sha256_hex(data)))
            objects.settle(prefix)
        except BaseException:
            objects.remove(prefix)
            raise
        if not objects.create(RUN_FILE, seal(MANIFEST, replace(manifest, tables=tuple(written)))):
            objects.remove(prefix)
        return self._read(manifest.run_id)

    def forget_manifest(self, run_id: str) -> None:
        """Remove a run's manifest, so that the next launch of its extraction creates it and its tables anew; shards stay."""
        self.objects.remove(f"runs/{run_id}/{RUN_FILE}")

    def _read(self, run_id: str) -> StoredRun:
        objects = self.objects.at(f"runs/{run_id}")
        try:
            manifest = unseal(MANIFEST, objects.read(RUN_FILE))
        except FileNotFoundError as error:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} is missing; launch its extraction again") from error
        except ValueError as error:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} {error}; see affectome verify --repair") from error
        if not run_id == manifest.run_id == manifest.identity.run_id:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} is damaged: its identity is not that of run {run_id}")
        return StoredRun(objects, manifest)


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
    return pyarrow.parquet.read_table(io.BytesIO(_parquet_bytes(table, table.num_rows)))


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


_MARKER = canonical_json({"format": "affectome-store", "version": FORMAT_VERSION})


class _DamagedMarkerError(ValueError):
    """`affectome.json` is not what any version wrote."""


def _check_marker(objects: Objects) -> None:
    try:
        data = objects.read(STORE_FILE)
        version = json.loads(data)["version"]
        whole = data == canonical_json({"format": "affectome-store", "version": version}) and isinstance(version, int)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _DamagedMarkerError(
            f"{objects.url(STORE_FILE)} is missing or damaged, or {objects.url()} is not a store; "
            "write it again with affectome verify --repair"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the store at {objects.url()} has format version {version}, "
            f"but this affectome reads up to {FORMAT_VERSION}; upgrade affectome"
        )
    if version < FORMAT_VERSION:
        raise ValueError(
            f"the store at {objects.url()} has format version {version}, which was never released; "
            "extract again into a new directory"
        )


def _check_creates_exclusively(objects: Objects) -> None:
    """The protocol stands on create-if-absent; a filesystem that says it can and overwrites would mix writers."""
    key = f".probe.{secrets.token_hex(4)}.tmp"
    try:
        first, second = objects.create(key, b"first"), objects.create(key, b"second")
    finally:
        objects.remove(key)
    if not first or second:
        raise ValueError(f"{objects.url()} cannot hold a store: its filesystem overwrites where it should create exclusively")


def _parquet_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=rows_per_group, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
