"""Whom a search finds: queries from texts or vectors, and answers as tables of utterances, for notebooks and the command line.

Shape suffixes: D width, Q queries, K rows found.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from analyze.query import Run
from analyze.scaling import scaling_of
from analyze.similarity import along, check_search, nearest

Queries = str | Sequence[str] | ArrayLike
"""A text, several, a vector, or several."""


def nearest_utterances(
    run: Run,
    site: str,
    layer: int,
    queries: Queries,
    k: int = 10,
    where: str | None = None,
    *,
    metric: str = "cosine",
    scaling: str = "none",
) -> pa.Table:
    """The utterances nearest to each query, the nearest first.

    Args:
        queries: texts, which the run's own model reads, or vectors.
        scaling: one of scaling.SCALINGS: `none`, `centred` or `standardised`.
        site, layer, k, metric, where: as in similarity.nearest.

    Returns:
        `query`, counted from 0, `score`, and the columns of the utterances but for any that are called so too.

    Raises:
        ValueError: as from similarity.nearest, or from new_texts.states_of_texts.
    """
    check_search(run, site, k, metric)  # what cannot be is refused before a model is loaded
    run.explain(site, layer, where)
    seen = scaling_of(run, site, layer, scaling)
    queries_QD = _vectors(run, site, layer, queries)
    found = nearest(run, site, layer, queries_QD, k, metric=metric, scaling=seen, where=where)
    n_queries, n_found = found.rows_QK.shape
    which = np.repeat(np.arange(n_queries), n_found)
    return _utterances(run, {"query": which, "score": found.scores_QK.reshape(-1)}, found.rows_QK.reshape(-1))


def utterances_along(
    run: Run, site: str, layer: int, direction_D: ArrayLike, k: int = 10, where: str | None = None
) -> pa.Table:
    """The utterances that lie furthest along a direction, and then those that lie furthest against it.

    Args:
        site, layer, direction_D, k, where: as in similarity.along.

    Returns:
        `end`, top or bottom, `score`, the projection on the direction at length 1, and the columns of the utterances but for
        any that are called so too.

    Raises:
        ValueError: as from similarity.along.
    """
    found = along(run, site, layer, direction_D, k, where=where)
    ends = ["top"] * len(found.top.rows_K) + ["bottom"] * len(found.bottom.rows_K)
    scores = np.concatenate([found.top.scores_K, found.bottom.scores_K])
    return _utterances(run, {"end": ends, "score": scores}, np.concatenate([found.top.rows_K, found.bottom.rows_K]))


def _vectors(run: Run, site: str, layer: int, queries: Queries) -> ArrayLike:
    texts = [queries] if isinstance(queries, str) else queries
    if not (isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)):
        return queries
    from analyze.new_texts import states_of_texts  # it takes seconds to load

    return states_of_texts(run, site, layer, texts)


def _utterances(run: Run, found: dict[str, ArrayLike], rows: NDArray[np.int64]) -> pa.Table:
    """What was found of some rows, and their columns."""
    table = run.utterances().take(pa.array(rows))
    own = {name: table[name] for name in table.column_names if name not in found}
    return pa.table({name: pa.array(values) for name, values in found.items()} | own)
