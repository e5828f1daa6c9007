"""Hidden states of texts that are in no run, as a run of them would hold them; nothing is written for them.

They go through the run's own model, template, precision and batches, and through the form they would be kept in. The model
stays loaded in this process (extract.engine keeps one), so a sentence after the first costs its forward pass. A store that is
thrown away was rejected: making its files durable, one by one, and removing them took as long again.

Shape suffixes: N texts, D width.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.extracting import same_way
from analyze.query import Run
from extract.compute import compute_shard
from extract.corpus import Corpus
from extract.documents import Manifest
from extract.encoding import to_float32
from extract.engine import default_device, engine
from extract.identity import Identity
from extract.run import UnreadableTextError, read_request
from extract.sites import Site
from extract.stored_run import StoredRun
from extract.tokens import offsets_of

_SHOWN = 40  # characters of a text in a message

_COMPUTING = threading.Lock()
"""Held while the one model of this process is loaded or computes: neither may happen twice at once."""


def states_of_texts(run: Run, site: str, layer: int, texts: Sequence[str]) -> NDArray[np.float32]:
    """What a run would hold of texts at a site, (N, D).

    They are the run's own bytes for a text of its own wherever those do not depend on the rest of a batch (docs/extract.md,
    "The same bytes"). Safe to call from several threads: one is served after the other.

    Args:
        layer: of the model; whether the run holds it does not matter.

    Raises:
        ValueError: the model is gone or is not what it was, it has no such site or layer, or a text cannot be read.
        ExtractionError: a state is not finite or does not fit into the run's stored dtype.
    """
    corpus = _corpus(texts)
    with _COMPUTING:
        try:
            asked = read_request(same_way(run, corpus, site, str(layer)))
        except UnreadableTextError as error:
            raise ValueError(_unreadable(texts[error.row], error)) from error
        identity = asked.identity
        for what in ("weights", "tokenizer", "template"):
            if getattr(identity, what) != getattr(run.manifest.identity, what):
                raise ValueError(f"the {what} of {run.manifest.model} changed after run {run.run_id}; extract it anew first")
        loaded = engine(asked.model.directory, identity, default_device())
        of_texts = StoredRun(run.stored.objects, _manifest(run, identity, len(texts)))
        computed = compute_shard(loaded, of_texts, 0, asked.prompts, offsets_of(asked.prompts), lambda _: None)
    return to_float32(computed.arrays[str(Site.parse(site))][0], identity.stored_dtype)


def _unreadable(text: str, error: UnreadableTextError) -> str:
    """The same without the row, and without remedies that only a corpus has."""
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    if not error.n_tokens:
        return f"the text {shown} has no tokens of its own, so it has no state; give one with words"
    return f"the text {shown} has {error.n_tokens:,} tokens with its template, and the model reads {error.most:,}; shorten it"


def _corpus(texts: Sequence[str]) -> Corpus:
    if not texts:
        raise ValueError("there is no text to read; give one at least")
    names = [f"text {number}" for number in range(1, len(texts) + 1)]
    try:
        return Corpus("new texts", pa.table({"utterance_id": names, "text": list(texts)}))
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is not Unicode: it holds {error.object[error.start : error.end]!r}") from error


def _manifest(run: Run, identity: Identity, n_rows: int) -> Manifest:
    """Of a run of one shard that is never written: batched as the run is."""
    return replace(
        run.manifest, run_id=identity.run_id, identity=identity, n_rows=n_rows, rows_per_shard=max(1, n_rows), tables=()
    )
