"""The store: many runs, each a manifest, its tables, its shards and their receipts. docs/store.md is the norm for
this file.

A shard exists when its receipt exists. Its objects are written under a name no other attempt uses and made durable,
and only then is the receipt created, create-if-absent: of two writers one wins whole, and a writer that dies leaves
bytes nobody names. One Zarr array per run, written region by region, was rejected: two attempts would share its
objects, and a crash could leave half of each.
"""

import io
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from extract import durable
from extract.encoding import Values, encode, open_array
from extract.identity import FORMAT_VERSION, Identity, canonical_json, sha256_hex
from extract.tokens import Prompt

STORE_FILE = "affectome.json"
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object and the proof of its bytes."""

    path: str
    """Relative to the run's directory."""
    size: int
    """Bytes."""
    sha256: str
    """64 hex digits."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run is; written once, when it is created."""

    run_id: str
    """16 hex digits, from the identity."""
    identity: Identity
    """Everything that changes the numbers."""
    n_rows: int
    """Utterances asked for."""
    n_layers: int
    """Blocks of the model, L."""
    width: int
    """Width of a hidden state, D."""
    rows_per_shard: int
    """Rows of every shard but the last; pinned, so that any worker on any day makes the same shards."""
    token_budget: int
    """Most tokens of a batch, padding included; pinned, because batch composition moves bfloat16 bits."""
    tables: tuple[StoredObject, ...]
    """utterances.parquet and tokens.parquet."""
    model: str
    """What the user called the model."""
    template: str
    """What the user called the template."""
    corpus: str
    """What the user called the corpus."""
    created: str
    """When, in ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that a shard is whole."""

    run_id: str
    """The run it belongs to."""
    shard: int
    """Number of the shard, from 0."""
    start: int
    """First corpus row."""
    stop: int
    """One past the last corpus row."""
    attempt: str
    """Name of the attempt that won, 8 hex digits."""
    objects: tuple[StoredObject, ...]
    """Everything the shard consists of."""
    tokens: str
    """SHA-256 of the token ids and spans that were computed (extract.tokens.tokens_digest)."""
    n_tokens: int
    """Tokens computed, without padding."""
    n_truncated: int
    """Utterances that lost tokens to the model's context."""
    device: str
    """Where it was computed."""
    host: str
    """On which machine."""
    seconds: Mapping[str, float]
    """Wall time of each stage: load, compute, write."""
    versions: Mapping[str, str]
    """Versions of the libraries that made it."""
    finished: str
    """When, in ISO 8601, UTC."""


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)
_RECEIPT: TypeAdapter[Receipt] = TypeAdapter(Receipt)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run on disk: knows where things are and how to add to them."""

    directory: Path
    """`runs/RUN_ID` of the store."""
    manifest: Manifest = field(repr=False)
    """What it is."""

    @property
    def run_id(self) -> str:
        """16 hex digits."""
        return self.manifest.run_id

    @property
    def n_shards(self) -> int:
        """How many shards the run has when it is complete."""
        return -(-self.manifest.n_rows // self.manifest.rows_per_shard)

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """First and one past the last row of a shard."""
        start = shard * self.manifest.rows_per_shard
        return start, min(start + self.manifest.rows_per_shard, self.manifest.n_rows)

    def receipt_path(self, shard: int) -> Path:
        """Where a shard's receipt is or will be."""
        return self.directory / "receipts" / f"{shard:06d}.json"

    def receipt(self, shard: int) -> Receipt | None:
        """A shard's receipt, or None while the shard does not exist.

        Raises:
            ValueError: the receipt is there but damaged or that of another shard.
        """
        path = self.receipt_path(shard)
        try:
            receipt = _RECEIPT.validate_python(_unsealed(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ValueError(f"receipt {path} is damaged: {_first_problem(error)}") from error
        if (receipt.run_id, receipt.shard, (receipt.start, receipt.stop)) != (self.run_id, shard, self.shard_rows(shard)):
            raise ValueError(f"receipt {path} is that of another shard")
        return receipt

    def receipts(self) -> Iterator[Receipt]:
        """The receipts that exist, in order of shards."""
        return (receipt for shard in range(self.n_shards) if (receipt := self.receipt(shard)) is not None)

    def missing_shards(self) -> list[int]:
        """Shards without a receipt."""
        return [shard for shard in range(self.n_shards) if not self.receipt_path(shard).exists()]

    def table(self, name: str) -> pa.Table:
        """Read `utterances` or `tokens`.

        Raises:
            ValueError: its bytes are not those the manifest names.
        """
        return pyarrow.parquet.read_table(io.BytesIO(read_checked(self.directory, self._table_entry(name))))

    def _table_entry(self, name: str) -> StoredObject:
        return next(entry for entry in self.manifest.tables if entry.path.endswith(f"/{name}.parquet"))

    def prompts(self, shard: int) -> list[Prompt]:
        """The tokenized rows of a shard: one row group of tokens.parquet, whose pages carry checksums.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = self.directory / self._table_entry("tokens").path
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read_row_group(shard)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from error
        columns = (table[name].to_pylist() for name in ("ids", "start", "stop", "prompt_stop", "truncated"))
        return [Prompt(tuple(ids), *rest) for ids, *rest in zip(*columns, strict=True)]

    def layer_values(self, receipt: Receipt, site: str, index: int, rows: NDArray[np.int64] | None = None) -> Values:
        """One layer of one site of one shard, in stored form.

        The metadata carries no checksum and a missing object would read as zeros, both in silence, so the one is held
        against the receipt's digest and the other against its size; chunks carry checksums of their own.

        Args:
            index: the layer's position in the run's layers.
            rows: rows counted from the receipt's start, ascending; all of them without it.

        Raises:
            ValueError: the object is missing or damaged.
        """
        directory = self.array_directory(receipt, site)
        entries = {self.directory / entry.path: entry for entry in receipt.objects}
        read_checked(self.directory, entries[directory / "zarr.json"])
        array = open_array(directory)
        path = directory / "c" / str(index) / Path(*("0" for _ in array.shape[1:]))
        size = entries[path].size
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{path} is missing or has another size than its receipt says; see affectome verify")
        try:
            return np.asarray(array[index] if rows is None else array.oindex[index, rows])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {error}; see affectome verify") from error

    def array_directory(self, receipt: Receipt, site: str) -> Path:
        """Where the Zarr array of one site of one shard is."""
        return self.directory / _attempt_path(receipt.shard, receipt.attempt) / site

    def write_attempt(self, shard: int, arrays: Mapping[str, Values]) -> tuple[str, tuple[StoredObject, ...]]:
        """Make a shard's arrays durable under a name of their own; they count only once a receipt names them.

        Args:
            arrays: for each site its values, (L, rows, D) or (L, rows, O, D), in stored form.
        """
        attempt = secrets.token_hex(4)
        written = []
        try:
            for site, values in sorted(arrays.items()):
                names = ("layer", "row", "width") if values.ndim == 3 else ("layer", "row", "offset", "width")
                for key, data in sorted(encode(values, self.manifest.identity.stored_dtype, names).items()):
                    written.append(write_object(self.directory, f"{_attempt_path(shard, attempt)}/{site}/{key}", data))
        except (
            BaseException
        ):  # a full disk gets its space back; what a killed attempt leaves is nobody's (docs/store.md, section 5)
            shutil.rmtree(self.directory / _attempt_path(shard, attempt), ignore_errors=True)
            raise
        return attempt, tuple(written)

    def commit(self, receipt: Receipt) -> bool:
        """Create the receipt. False when another attempt was first: then that one stands and this one's bytes are removed."""
        path = self.receipt_path(receipt.shard)
        durable.ensure_directory(path.parent)
        created = durable.create(path, _sealed(_RECEIPT.dump_python(receipt, mode="json")))
        if not created:
            shutil.rmtree(self.directory / _attempt_path(receipt.shard, receipt.attempt), ignore_errors=True)
        return created


class Store:
    """A directory of runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """The store's directory."""

    @staticmethod
    def check(location: str) -> Path:
        """The directory a location names, when a store is there or could be made there; nothing is written.

        Raises:
            ValueError: something else is there, or a store of a newer affectome.
        """
        if "://" in location and not location.startswith("file://"):
            raise ValueError(f"cannot open {location}: this version keeps stores on local disks; give a directory")
        root = Path(location.removeprefix("file://")).expanduser()
        marker = root / STORE_FILE
        if marker.exists():
            _check_marker(marker)
        elif root.is_file():
            raise ValueError(f"{root} is a file, not a store; give a directory")
        elif root.is_dir() and any(not durable.is_unfinished(entry) for entry in root.iterdir()):
            raise ValueError(f"{root} is not a store: it has no {STORE_FILE} but holds other things; give a new directory")
        return root

    @classmethod
    def open(cls, location: str, create: bool = False) -> "Store":
        """Open a store, or make one where there is nothing yet.

        Raises:
            ValueError: there is no store, something else is there, or it was written by a newer affectome.
        """
        root = cls.check(location)
        marker = root / STORE_FILE
        if not marker.exists():
            if not create:
                raise ValueError(f"there is no store at {root}; make one with: affectome extract --store {root}")
            durable.ensure_directory(root)
            durable.create(marker, canonical_json({"format": "affectome-store", "version": FORMAT_VERSION}))
            _check_marker(marker)  # another process may have been first
        return cls(root)

    def run_ids(self) -> list[str]:
        """Runs that have a manifest, sorted."""
        return sorted(path.parent.name for path in self.root.glob(f"runs/*/{RUN_FILE}"))

    def directories(self) -> list[str]:
        """Names that runs have or should have: a run whose manifest was lost is here and not in `run_ids`."""
        return sorted(path.name for path in self.root.glob("runs/*"))

    def run(self, prefix: str) -> StoredRun:
        """The run whose id starts with `prefix`.

        Raises:
            ValueError: no run, or more than one, starts so; the message names the choices.
        """
        found = [run_id for run_id in self.run_ids() if run_id.startswith(prefix)]
        if len(found) != 1 or not prefix:
            choices = ", ".join(found or self.run_ids()) or "none yet"
            problem = f"{len(found)} runs start with {prefix!r}" if found else f"no run starts with {prefix!r}"
            raise ValueError(f"{problem} in {self.root}; runs: {choices}")
        return self._read(found[0])

    def runs(self) -> list[StoredRun]:
        """All runs, by id."""
        return [self._read(run_id) for run_id in self.run_ids()]

    def find(self, identity: Identity) -> StoredRun | None:
        """The run of this identity, if it was created before."""
        run_id = identity.run_id
        return self._read(run_id) if (self.root / "runs" / run_id / RUN_FILE).exists() else None

    def create_run(self, manifest: Manifest, tables: Mapping[str, pa.Table]) -> StoredRun:
        """Create a run, or return the one another process created first.

        Args:
            manifest: without its tables, which are written here.
            tables: `utterances` and `tokens`.
        """
        directory = self.root / "runs" / manifest.run_id
        attempt = secrets.token_hex(4)
        written = tuple(
            write_object(directory, f"tables/{attempt}/{name}.parquet", _parquet_bytes(table, manifest.rows_per_shard))
            for name, table in sorted(tables.items())
        )
        document = _MANIFEST.dump_python(manifest, mode="json") | {"tables": [asdict(entry) for entry in written]}
        durable.create(directory / RUN_FILE, _sealed(document))
        return self._read(manifest.run_id)

    def _read(self, run_id: str) -> StoredRun:
        directory = self.root / "runs" / run_id
        try:
            manifest = _MANIFEST.validate_python(_unsealed(directory / RUN_FILE))
        except ValidationError as error:
            raise ValueError(f"manifest {directory / RUN_FILE} is damaged: {_first_problem(error)}") from error
        if not run_id == manifest.run_id == manifest.identity.run_id:
            raise ValueError(f"manifest {directory / RUN_FILE} is damaged: its identity is not that of run {run_id}")
        return StoredRun(directory, manifest)


def through_parquet(table: pa.Table) -> pa.Table:
    """The table as it reads once it was stored: Parquet knows fewer types than Arrow."""
    return pyarrow.parquet.read_table(io.BytesIO(_parquet_bytes(table, table.num_rows)))


def write_object(directory: Path, path: str, data: bytes) -> StoredObject:
    """Write an object durably and say what was written."""
    target = directory / path
    durable.ensure_directory(target.parent)
    durable.replace(target, data)
    return StoredObject(path, len(data), sha256_hex(data))


def read_checked(directory: Path, entry: StoredObject) -> bytes:
    """Read an object.

    Raises:
        ValueError: it is missing, or its bytes are not the ones that were written.
    """
    path = directory / entry.path
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    if len(data) != entry.size:
        raise ValueError(f"{path} holds {len(data):,} bytes instead of {entry.size:,}")
    if sha256_hex(data) != entry.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one that was written")
    return data


def now() -> str:
    """The present second in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _attempt_path(shard: int, attempt: str) -> str:
    return f"shards/{shard:06d}-{attempt}"


def _parquet_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=rows_per_group, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _sealed(document: dict[str, Any]) -> bytes:
    """Readable JSON that carries the SHA-256 of its own canonical content."""
    return json.dumps(document | {"sha256": sha256_hex(canonical_json(document))}, indent=1, ensure_ascii=False).encode()


def _unsealed(path: Path) -> dict[str, Any]:
    """Read a sealed document.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not the document that was written.
    """
    data = path.read_bytes()
    try:
        document = json.loads(data)
        seal = document.pop("sha256")
        whole = seal == sha256_hex(canonical_json(document)) and data == _sealed(document)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: it is not the document that was written")
    return dict(document)


def _check_marker(marker: Path) -> None:
    try:
        content = json.loads(marker.read_bytes())
        version = content["version"] if content["format"] == "affectome-store" else None
    except (ValueError, KeyError, TypeError):
        version = None
    if not isinstance(version, int):
        raise ValueError(f"{marker} is damaged, or {marker.parent} is not a store")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"the store at {marker.parent} has format version {version}, "
            f"but this affectome reads up to {FORMAT_VERSION}; upgrade affectome"
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
