"""Ask for more states of a run's own model, extracted the way the run was: same weights, template, precision and attention."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyze.examples import FEWEST_SITUATIONS, Examples
from analyze.query import Run
from extract.corpus import Corpus
from extract.identity import sha256_hex
from extract.request import Request


def same_way(run: Run, corpus: Corpus, sites: str, layers: str, **other: Any) -> Request:
    """What to extract of a corpus so that its states can be held against the run's.

    Args:
        sites, layers: as in Request.
        other: fields of Request that are to differ from the run's, such as `continuation`, `reply` or `template`.

    Raises:
        ValueError: the run was imported.
    """
    require_model(run)
    manifest, identity = run.manifest, run.manifest.identity
    weights = identity.weights
    same = Request(
        model=weights.removeprefix("hub:") if weights.startswith("hub:") else manifest.model,  # the commit, not the newest
        corpus=corpus,
        sites=sites,
        layers=layers,
        template=manifest.template,
        system=manifest.system,
        date=manifest.date,
        compute_dtype=identity.compute_dtype,
        stored_dtype=identity.stored_dtype,
        attention=identity.attention,
        truncate=identity.truncate,
    )
    return replace(same, **other)


def require_model(run: Run) -> None:
    """Refuse a run whose states were made elsewhere.

    Raises:
        ValueError: it was imported.
    """
    if run.manifest.identity.imported:
        raise ValueError(
            f"run {run.run_id} was imported; its model is not known here, so nothing new can be put to it: "
            "extract the texts with affectome extract for that"
        )


def stratified_sample(run: Run, examples: Examples, per_label: int) -> Corpus:
    """Some of the run's utterances, chosen by their ids alone, so that a smaller sample is part of a larger one.

    Args:
        examples: the run's.
        per_label: most utterances of each label, of as many situations as there are.

    Raises:
        ValueError: those are too few for an analysis, or the run was imported.
    """
    require_model(run)
    if per_label < FEWEST_SITUATIONS:
        raise ValueError(f"{per_label} utterances of each label are too few; take {FEWEST_SITUATIONS} or more")
    table = run.utterances()
    chosen = [int(row) for label in examples.classes for row in _ranked(examples, table, label)[:per_label]]
    return Corpus(f"{run.run_id} sample", table.drop_columns(["row", "n_tokens"])).take(sorted(chosen))


def _ranked(examples: Examples, table: pa.Table, label: str) -> NDArray[np.int64]:
    """The rows of a label in an order that depends on their ids alone, first one of every situation, then the rest."""
    mine = examples.labels == label
    rows, groups = examples.rows[mine], examples.groups[mine]
    digests = [sha256_hex(name.encode()) for name in table["utterance_id"].take(pa.array(rows)).to_pylist()]
    order = np.argsort(digests)
    first_of_each = np.sort(np.unique(groups[order], return_index=True)[1])
    ranked: NDArray[np.int64] = rows[np.concatenate([order[first_of_each], np.delete(order, first_of_each)])]
    return ranked
