"""What identifies imported states: a SHA-256 for each row, whatever the file's format, byte order or the shards' size.

One digest over the file's bytes was rejected: the same numbers as .npy and as .safetensors would be two runs, and what a
shard was made from could not be told without all the others.

Shape suffixes: L layers, N rows, D width.
"""

import hashlib

import numpy as np
import pyarrow as pa

from extract.encoding import Values

DIGEST_BYTES = 32
"""Bytes of a row's digest."""


def row_digests(states_LND: Values) -> bytes:
    """For each row the SHA-256 of its values in stored form, little-endian, layer after layer; one digest after another."""
    rows_ND = np.ascontiguousarray(states_LND.swapaxes(0, 1)).reshape(states_LND.shape[1], -1)
    return b"".join(hashlib.sha256(row.data).digest() for row in rows_ND.view(np.uint8))


def digests_table(digests: bytes) -> pa.Table:
    """Digests of rows from 0 as states.parquet holds them: `row`, `sha256`."""
    n_rows = len(digests) // DIGEST_BYTES
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), n_rows, [None, pa.py_buffer(digests)])
    return pa.table({"row": pa.array(range(n_rows), pa.int64()), "sha256": column})


def digests_in(table: pa.Table) -> bytes:
    """The digests of rows of states.parquet, one after another."""
    return b"".join(table["sha256"].to_pylist())


def digests_of(digests: bytes, start: int, stop: int) -> bytes:
    """Those of the rows from `start` to before `stop`."""
    return digests[start * DIGEST_BYTES : stop * DIGEST_BYTES]
