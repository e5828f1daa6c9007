"""What makes two runs the same run: canonical JSON and SHA-256 over everything that changes the numbers.

Device, batch sizes, library versions, host and time do not change what is asked for; they go into the receipts. A
random run id was rejected: it would make every restart a new run and every comparison a guess.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from extract.decoding import Decoding
from extract.durable import Part

FORMAT_VERSION = 2
"""Version of the store format (docs/store.md); a part of every run's identity."""

RUN_ID_DIGITS = 16
IMPORTED = "imported:"
"""How the weights of a run begin whose states were made elsewhere (extract.importing)."""


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes on every machine.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON cannot carry.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of some bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_parts(parts: Sequence[Part]) -> tuple[str, int]:
    """The SHA-256 of the parts one after another, and their size in bytes."""
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += memoryview(part).nbytes
    return digest.hexdigest(), size


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes as 64 hex digits, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that changes a run's numbers (docs/store.md, section 2)."""

    weights: str
    """`sha256:` of the safetensors files and the configuration, or `hub:` and the commit they were pinned to; of a run whose
    states were made elsewhere `imported:`, what the user calls the model, `@sha256:` and the digest of the states."""
    tokenizer: str
    """SHA-256 of the tokenizer's files."""
    template: str
    """Text of the template, in Jinja, and what it renders to."""
    continuation: str
    """Text forced after every prompt; empty for none."""
    corpus: str
    """SHA-256 of the row ids and texts, in order."""
    sites: tuple[str, ...]
    """Sites kept, sorted, such as `resid.last`."""
    offsets: tuple[int, ...]
    """Token offsets from the last token of the utterance, for `offset` sites; empty otherwise."""
    layers: tuple[int, ...]
    """Layers kept, ascending; 0 is the embedding output."""
    compute_dtype: str
    """`bfloat16` or `float32`."""
    stored_dtype: str
    """`bfloat16`, `float16` or `float32`."""
    attention: str
    """Attention implementation of transformers, such as `sdpa`."""
    truncate: bool
    """Whether utterances too long for the model were cut at its context."""
    format_version: int = FORMAT_VERSION
    """Version of the store format."""
    reply: Decoding | None = None
    """How the model's replies to the prompts are drawn; None where it is not asked for any."""
    reply_ends: tuple[int, ...] = ()
    """Ids of the tokens that end a reply, ascending; empty where it is not asked for any."""

    @property
    def imported(self) -> bool:
        """Whether the states were made elsewhere."""
        return self.weights.startswith(IMPORTED)

    @property
    def states(self) -> str:
        """The digest of an imported run's states."""
        assert self.imported, "an extracted run is known by what computed it"
        return self.weights.rpartition("@sha256:")[2]

    @property
    def run_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON of this identity."""
        return sha256_hex(canonical_json(asdict(self)))[:RUN_ID_DIGITS]
