"""The store: many runs in one place, each a manifest, its tables, its shards and their logs. docs/store.md is the norm.

What a run is made of, and how shards get into it, is in extract.stored_run. Here runs are found and created: a run's name is
its identity's, so that whoever asks for the same extraction finds the same run, and a new run never touches an old one.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from extract.documents import (
    LOG_ENTRY,
    MANIFEST,
    Manifest,
    Receipt,
    StoredObject,
    seal,
    unseal,
)
from extract.durable import is_unfinished
from extract.identity import FORMAT_VERSION, Identity, canonical_json, sha256_hex
from extract.objects import LocalObjects, Objects, open_objects
from extract.stored_run import StoredRun, parquet_bytes, through_parquet

STORE_FILE = "affectome.json"
RUN_FILE = "run.json"

_RUN_NAME = re.compile(r"[0-9a-f]{16}")


class UnknownRunError(ValueError):
    """No run of a store is called so."""


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
                raise ValueError(
                    f"there is no store at {objects.url()}; make one with affectome extract --store {location}, or "
                    f"affectome import {location}"
                )
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
            UnknownRunError: none starts so; the message names the choices, as the next one's does.
            ValueError: more than one starts so.
        """
        held = self.run_ids()
        if not prefix:
            choices = ", ".join(held) or "none yet"
            raise ValueError(f"say which run of {self.location} by its id, or by how that begins; runs: {choices}")
        found = [run_id for run_id in held if run_id.startswith(prefix)]
        if not found:
            choices = ", ".join(held) or "none yet"
            raise UnknownRunError(f"no run starts with {prefix!r} in {self.location}; runs: {choices}")
        if len(found) > 1:
            raise ValueError(f"{len(found)} runs start with {prefix!r} in {self.location}; runs: {', '.join(found)}")
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
            tables: `utterances`, and `tokens` or `states`.
        """
        objects = self.objects.at(f"runs/{manifest.run_id}")
        prefix = f"tables/{secrets.token_hex(4)}"
        written = []
        try:
            for name, table in sorted(tables.items()):
                data = parquet_bytes(table, manifest.rows_per_shard)
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
        """Remove a run's manifest, so that the same command creates it and its tables anew; shards stay."""
        self.objects.remove(f"runs/{run_id}/{RUN_FILE}")

    def _read(self, run_id: str) -> StoredRun:
        objects = self.objects.at(f"runs/{run_id}")
        try:
            manifest = unseal(MANIFEST, objects.read(RUN_FILE))
        except FileNotFoundError as error:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} is missing; launch its extraction or import again") from error
        except ValueError as error:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} {error}; see affectome verify --repair") from error
        if not run_id == manifest.run_id == manifest.identity.run_id:
            raise ValueError(f"manifest {objects.url(RUN_FILE)} is damaged: its identity is not that of run {run_id}")
        return StoredRun(objects, manifest)


def check_same_columns(run: StoredRun, utterances: pa.Table) -> None:
    """A run found again must hold the labels and columns it is asked with, or an analysis would read stale ones.

    Raises:
        ValueError: it holds others.
    """
    stored, asked = run.table("utterances"), through_parquet(utterances)
    names = dict.fromkeys(stored.column_names + asked.column_names)
    differing = [
        name
        for name in names
        if name not in stored.column_names or name not in asked.column_names or not _same_values(stored[name], asked[name])
    ]
    if differing:
        raise ValueError(
            f"run {run.run_id} holds these texts already, but with other values in {', '.join(differing)}; "
            "stored runs never change, so put the corrected corpus into another store"
        )


def _same_values(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns are equal; unlike Arrow's own comparison, a NaN equals a NaN."""
    return bool(one.type == other.type and (one.equals(other) or repr(one.to_pylist()) == repr(other.to_pylist())))


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
