"""Read a run around the product: objects as bytes, documents as JSON, arrays with zarr-python, tables with pyarrow."""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from tests.s3 import S3Server

Objects = Mapping[str, bytes]
"""Bytes by key, relative to the store."""

_LOG = re.compile(r"runs/[0-9a-f]{16}/receipts/(\d{6})-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store of one run holds."""

    rows: Counter[int]
    """How often each corpus row is in a shard that counts."""
    texts: list[str]
    """The utterances, by row."""
    arrays: Mapping[str, NDArray[Any]]
    """For each site its stored bits, (layers, rows or tokens, width), shard after shard."""
    offsets: list[int]
    """Tokens of each row in the `all` array, shard after shard."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a store differs from the one of an undisturbed run; all zero where it does not."""

    rows_lost: int
    rows_doubled: int
    corrupt: int
    """Arrays and tables with other values."""


def local_objects(store: Path) -> Objects:
    """Every file of a store on a disk."""
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def s3_objects(server: S3Server, url: str) -> Objects:
    """Every object of a store on S3."""
    root = url.removeprefix("s3://")
    filesystem = server.filesystem()
    paths = filesystem.find(root)
    found = filesystem.cat(paths) if paths else {}
    return {path.removeprefix(f"{root}/"): data for path, data in found.items()}


def live_receipts(objects: Objects) -> dict[int, dict[str, Any]]:
    """The receipt of each shard that exists."""
    last: dict[int, tuple[int, str]] = {}
    for key in objects:
        if match := _LOG.fullmatch(key):
            shard, entry = int(match[1]), int(match[2])
            last[shard] = max(last.get(shard, (-1, "")), (entry, key))
    documents = {shard: json.loads(objects[key]) for shard, (_, key) in sorted(last.items())}
    return {shard: document for shard, document in documents.items() if document["kind"] == "receipt"}


def unnamed_attempts(objects: Objects) -> set[str]:
    """Attempts at shards that no receipt names."""
    attempts = {key.split("/")[3] for key in objects if re.fullmatch(r"runs/[0-9a-f]{16}/shards/.*", key)}
    return attempts - {f"{shard:06d}-{receipt['attempt']}" for shard, receipt in live_receipts(objects).items()}


def read_around(objects: Objects) -> Contents:
    """Everything a store of one run holds."""
    (run_key,) = [key for key in objects if key.endswith("/run.json")]
    run = run_key.removesuffix("run.json")
    manifest = json.loads(objects[run_key])
    rows: Counter[int] = Counter()
    parts: dict[str, list[NDArray[Any]]] = {site: [] for site in manifest["identity"]["sites"]}
    lengths: list[int] = []
    for shard, receipt in live_receipts(objects).items():
        rows.update(range(receipt["start"], receipt["stop"]))
        for site, arrays in parts.items():
            array = _open_array(objects, f"{run}shards/{shard:06d}-{receipt['attempt']}/{site}/")
            arrays.append(np.asarray(array[...]))
            if site.endswith(".all"):
                row_offsets: Any = array.attrs["row_offsets"]
                lengths += np.diff(row_offsets).tolist()
    texts = next(entry["path"] for entry in manifest["tables"] if entry["path"].endswith("/utterances.parquet"))
    table = pyarrow.parquet.read_table(io.BytesIO(objects[run + texts]))
    joined = {site: np.concatenate(arrays, axis=1) for site, arrays in parts.items() if arrays}
    return Contents(rows, table["text"].to_pylist(), joined, lengths)


def compare(contents: Contents, reference: Contents) -> Difference:
    """Hold a store against that of an undisturbed run."""
    same = [
        site in contents.arrays and contents.arrays[site].tobytes() == array.tobytes()
        for site, array in reference.arrays.items()
    ]
    same += [contents.texts == reference.texts, contents.offsets == reference.offsets]
    return Difference(
        rows_lost=len(reference.rows - contents.rows),
        rows_doubled=(contents.rows - reference.rows).total(),
        corrupt=same.count(False),
    )


def _open_array(objects: Objects, prefix: str) -> zarr.Array[Any]:
    make = default_buffer_prototype().buffer.from_bytes
    inside = {key.removeprefix(prefix): make(data) for key, data in objects.items() if key.startswith(prefix)}
    layers = json.loads(objects[f"{prefix}zarr.json"])["shape"][0]
    assert len(inside) == layers + 1, f"{prefix} lacks objects, which zarr would take for zeros"
    return zarr.open_array(MemoryStore(inside), mode="r")
