"""The documents of a run: its manifest, and the receipts and voids of its shards. docs/store.md, section 3.

A document is JSON that ends in the SHA-256 of its own bytes, so that no bit of it changes unseen and its digest need not
be kept elsewhere. Digesting the parsed content was rejected: bytes that parse to the same content would pass, and it
costs ten times as much to check.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from extract.identity import Identity

ObjectPath = Annotated[str, StringConstraints(pattern=r"^(tables|shards)(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$")]
"""A path that cannot lead out of a run's directory."""

_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n', re.ASCII)
_SEAL_BYTES = len(b',\n "sha256": "' + b"0" * 64 + b'"\n}\n')


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object and the proof of its bytes."""

    path: ObjectPath
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
    compression: str
    """One of extract.encoding.COMPRESSIONS; it changes no number, so it is pinned here and not in the identity."""
    tables: tuple[StoredObject, ...]
    """utterances.parquet, and tokens.parquet or, of an imported run, states.parquet."""
    model: str
    """What the user called the model."""
    template: str
    """What makes the prompts again: `raw`, `chat`, or Jinja that writes `{{ text }}`."""
    system: str
    """The system prompt; may be empty."""
    date: str
    """The day a chat template that writes the date was told, in ISO 8601."""
    corpus: str
    """What the user called the corpus."""
    created: str
    """When, in ISO 8601, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The proof that a shard is whole."""

    kind: Literal["receipt"] = "receipt"
    """What the document is."""
    run_id: str
    """The run it belongs to."""
    shard: int
    """Number of the shard, from 0."""
    entry: int
    """Number of the document in the shard's log, from 0."""
    start: int
    """First corpus row."""
    stop: int
    """One past the last corpus row."""
    attempt: str
    """Name of the attempt that won, 8 hex digits."""
    objects: tuple[StoredObject, ...]
    """Everything the shard consists of."""
    token_budget: int
    """The manifest's, with which the rows were batched."""
    compression: str
    """The manifest's, with which the arrays were written."""
    tokens: str
    """SHA-256 of the token ids and spans that were computed (extract.tokens.tokens_digest), or of imported rows' digests."""
    n_tokens: int
    """Tokens of all prompts, without padding."""
    n_computed: int
    """Tokens that went through the model: of each prompt as far as something reads it, what all begin with once."""
    n_shared: int
    """Tokens that all prompts begin with and that were computed once."""
    forward: str
    """Whose forward pass computed it: `transformers` (perhaps `, compiled`), `packed` (extract.packed), or `imported`."""
    n_halved: int
    """Batches that did not fit into memory and were cut in two; that moves bfloat16 bits."""
    n_truncated: int
    """Utterances that lost tokens to the model's context."""
    device: str
    """Where it was computed."""
    host: str
    """On which machine."""
    seconds: Mapping[str, float]
    """Wall time of each stage: load, compute, copy (to the host, in stored form), write."""
    versions: Mapping[str, str]
    """Versions of the libraries that made it."""
    finished: str
    """When, in ISO 8601, UTC."""

    @property
    def n_rows(self) -> int:
        """Rows of the shard."""
        return self.stop - self.start

    @property
    def rows_per_shard(self) -> int:
        """Rows of the shards that its run was cut into."""
        return self.start // self.shard if self.shard else self.n_rows

    @property
    def n_bytes(self) -> int:
        """Bytes of the shard's objects."""
        return sum(entry.size for entry in self.objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """An entry of a shard's log that takes back what came before it."""

    kind: Literal["void"] = "void"
    """What the document is."""
    run_id: str
    """The run it belongs to."""
    shard: int
    """Number of the shard, from 0."""
    entry: int
    """Number of the document in the shard's log, from 0."""
    reason: str
    """Why, in a sentence."""
    made: str
    """When, in ISO 8601, UTC."""
    nonce: str
    """8 random hex digits: two who void at once are told apart (extract.objects.Objects.create)."""


LogEntry = Receipt | Void
"""A document of a shard's log; the last one counts."""

Document = TypeVar("Document")
MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)
LOG_ENTRY: TypeAdapter[LogEntry] = TypeAdapter(Annotated[LogEntry, Field(discriminator="kind")])


def seal(adapter: TypeAdapter[Document], document: Document) -> bytes:
    """A document as bytes that end in the SHA-256 of the bytes before it."""
    content: dict[str, Any] = adapter.dump_python(document, mode="json")
    body = json.dumps(content, indent=1, ensure_ascii=False).encode().removesuffix(b"\n}")
    return body + f',\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def unseal(adapter: TypeAdapter[Document], data: bytes) -> Document:
    """Read a sealed document.

    Raises:
        ValueError: not one of its bits is to be trusted; the message says why and wants the path in front.
    """
    body, found = data[:-_SEAL_BYTES], _SEAL.fullmatch(data[-_SEAL_BYTES:])
    if found is None or hashlib.sha256(body).hexdigest().encode() != found[1]:
        raise ValueError("is damaged: it is not the document that was written")
    try:
        content = json.loads(data)
        del content["sha256"]
        return adapter.validate_python(content)
    except ValidationError as error:  # whole, but of another version or made by somebody else
        problem = error.errors()[0]
        raise ValueError(f"is damaged: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}") from error


def now(timespec: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """The present in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec=timespec)
