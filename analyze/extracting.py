"""Ask for more states of a run's own model, extracted the way the run was: same weights, template, precision and attention."""

from dataclasses import replace
from typing import Any

from analyze.query import Run
from extract.corpus import Corpus
from extract.request import Request


def same_way(run: Run, corpus: Corpus, sites: str, layers: str, **other: Any) -> Request:
    """What to extract of a corpus so that its states can be held against the run's.

    Args:
        sites, layers: as in Request.
        other: fields of Request that are to differ from the run's, such as `continuation`, `reply` or `template`.
    """
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
