"""What a user asks to have extracted. Light to import, so that a command line can describe it before loading torch."""

from dataclasses import dataclass

from extract.corpus import Corpus
from extract.decoding import Decoding

DEFAULT_SITES = "resid.last,resid.mean"
DEFAULT_DATE = "2024-07-26"
"""What a chat template that writes today's date is told, so that a run is the same on every day: Llama 3's own default."""
LEAST_ROWS_PER_SHARD = 1024
MOST_ROWS_PER_SHARD = 4096
LEAST_SHARDS = 64
SHARD_BYTES = 1 << 29
SHARD_REPLY_TOKENS = 1 << 16
"""Tokens of replies that a shard may have: writing them takes minutes on a CPU, and a crash costs a shard."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks to have extracted."""

    model: str
    """Name, directory or hub id."""
    corpus: Corpus
    """The utterances."""
    sites: str = DEFAULT_SITES
    """Comma-separated sites."""
    layers: str = "all"
    """`all`, `8,16` or `0:12`."""
    template: str = "raw"
    """`raw`, `chat`, `few-shot`, a Jinja file, or Jinja that writes `{{ text }}` (extract.templates)."""
    system: str = ""
    """System prompt, for templates that have a place for one."""
    date: str = DEFAULT_DATE
    """The day that a chat template which writes the date is told, in ISO 8601."""
    continuation: str = ""
    """Text forced after every prompt."""
    offsets: tuple[int, ...] = ()
    """Token offsets from the utterance's last token, for `offset` sites; from the prompt's last token, for `reply` sites."""
    reply: Decoding | None = None
    """How to draw the model's own replies to the prompts; None for no replies."""
    compute_dtype: str = "auto"
    """Precision of the model: a key of extract.loading.COMPUTE_DTYPES; `auto` as extract.budget.fastest_dtype says."""
    stored_dtype: str = "bfloat16"
    """Precision of the store: one of extract.encoding.STORED_DTYPES."""
    attention: str = "auto"
    """Attention implementation of transformers; `auto` as extract.loading.default_attention says."""
    truncate: bool = False
    """Cut utterances too long for the model instead of refusing them."""
    compression: str = "none"
    """How chunks are compressed, where the run is new: one of extract.encoding.COMPRESSIONS."""
    rows_per_shard: int | None = None
    """Rows of a shard, where the run is new; without it, as extract.run.rows_per_shard says."""
    token_budget: int | None = None
    """Most tokens of a batch, where the run is new; without it, as extract.budget.fit_token_budget says."""


def rows_per_shard(n_rows: int, row_bytes: float) -> int:
    """Rows of a shard where the user asks for no number.

    Many, because a layer reads at the speed of the disk only from objects of some megabytes (benchmarks/store.py); fewer in
    a small corpus, so that there is something to share out and little to do again; and never more than keep a shard, which
    is held in memory, near SHARD_BYTES.
    """
    rows = min(MOST_ROWS_PER_SHARD, max(LEAST_ROWS_PER_SHARD, -(-n_rows // LEAST_SHARDS)))
    return max(1, min(rows, int(SHARD_BYTES / row_bytes)))
