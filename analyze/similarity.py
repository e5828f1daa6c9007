"""The stored states nearest to some vectors, and those that lie furthest along a direction, exactly and in bounded memory.

States pass block by block. A matrix product in float64 says of every state within which bounds its score lies; a state whose
bounds reach the best of those found so far is scored again by itself, by sums that do not depend on what else is in its block.
So the answer and its order are those of a brute force over all rows, to the last bit: equal states have equal scores, and of
equal scores the lower row comes first. An index of approximate neighbours was rejected: it is built from all states for every
site and layer, which costs more than many exact answers, and it may leave out the one that matters. Products in float32 were
rejected too: states of some models have norms of 10,000 and differ by 1, and reading them takes longer than either product.

Shape suffixes: N rows, B rows of a block, D width, Q queries, K neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyze.query import Run
from extract.sites import Site

Floats = NDArray[np.float64]

METRICS = ("cosine", "dot", "euclidean")
"""How near two states are: the cosine of their angle, their product (of both, more is nearer), their distance (less is)."""

_BLOCK_BYTES = 4 << 20  # what a processor's caches hold: larger blocks take up to five times as long
_FEWEST_ROWS = 128  # of a block, however many queries there are
_FEWEST_QUERIES = 32  # for a matrix product: over a small one BLAS's threads mostly wait for each other
_PRODUCT_BYTES = 32 << 20  # of a block of which there is one
_BUFFER_BYTES = 32 << 20  # read at once, of what a buffer holds as float32
_LEAST = np.finfo(np.float64).tiny  # more than what products too small for float64 can add up to


@dataclass(frozen=True, slots=True)
class Scaling:
    """How states are seen: `(state - origin) / scale`, feature by feature."""

    origin_D: Floats
    """What is taken off."""
    scale_D: Floats
    """What the rest is divided by; nothing is 0."""

    def seen(self, states_ND: Floats, out: Floats | None = None) -> Floats:
        """States as they are seen."""
        return np.divide(np.subtract(states_ND, self.origin_D, out=out), self.scale_D, out=out)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The rows nearest to each query, the nearest first."""

    metric: str
    """One of METRICS."""
    rows_QK: NDArray[np.int64]
    """Row numbers. K is what was asked for, or as many as there are."""
    scores_QK: Floats
    """Cosines, products or distances."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Some rows and their scores, the first one first."""

    rows_K: NDArray[np.int64]
    """Row numbers."""
    scores_K: Floats
    """Projections on the direction, in the states' own units."""


@dataclass(frozen=True, slots=True)
class Extremes:
    """Both ends of a direction."""

    top: Ranked
    """The rows that lie furthest along it, the furthest first."""
    bottom: Ranked
    """Those that lie furthest against it, the furthest first."""


def nearest(
    run: Run,
    site: str,
    layer: int,
    queries_QD: ArrayLike,
    k: int,
    *,
    metric: str = "cosine",
    scaling: Scaling | None = None,
    where: str | None = None,
    rows: ArrayLike | None = None,
    device: str = "cpu",
) -> Neighbours:
    """The k rows of a run nearest to each query.

    A query that is a stored row finds that row too. The cosine of a state of zeros is 0 with everything.

    Args:
        site, layer, where, rows: as in Run.hidden, each row once; the site keeps one state of each utterance.
        queries_QD: Q vectors as wide as the states, or one, (D,).
        k: how many neighbours, from 1; all rows where there are fewer.
        metric: one of METRICS.
        scaling: how states and queries are seen; as they are without it (analyze.scaling.scaling_of makes others).
        device: where products are computed, `cpu` or a CUDA device of torch; worth the way from a hundred queries on.

    Raises:
        ValueError: as from Run.hidden; the site keeps several states of an utterance; or queries, k, metric or device cannot
            be.
    """
    queries_QD = checked_vectors(run, queries_QD, "a query")
    check_search(run, site, k, metric)
    if scaling is not None:
        queries_QD = scaling.seen(queries_QD)
    if metric == "cosine":
        queries_QD = _near_one(queries_QD)
        if not queries_QD.any(axis=1).all():
            scaled = "" if scaling is None else " once it is scaled,"
            raise ValueError(f"a query is 0 everywhere{scaled} so it has no direction and no cosine; take the metric euclidean")
    scoring, multiply = _SCORINGS[metric], _product(queries_QD, device)
    slack, qq_Q = 4 * (run.manifest.width + 8) * np.finfo(np.float64).eps, _squares(queries_QD)
    best = [_Best(k) for _ in queries_QD]
    for rows_B, states_BD in blocks(run, site, layer, where, rows, n_queries=len(queries_QD)):
        if scaling is not None:
            scaling.seen(states_BD, out=states_BD)
        lower_QB, upper_QB = scoring.bounds(multiply(states_BD), qq_Q[:, None], _squares(states_BD), slack)
        least_Q1 = np.array([[found.least] for found in best])
        for index in np.flatnonzero((upper_QB >= least_Q1).any(axis=1)):
            near = best[index].candidates(lower_QB[index], upper_QB[index])
            best[index].add(rows_B[near], scoring.exact(states_BD[near], queries_QD[index]))
    rows_QK, ranks_QK = map(np.stack, zip(*(found.ordered() for found in best), strict=True))
    return Neighbours(metric, rows_QK, 0.0 - ranks_QK if metric == "euclidean" else ranks_QK)


def along(
    run: Run,
    site: str,
    layer: int,
    direction_D: ArrayLike,
    k: int,
    *,
    where: str | None = None,
    rows: ArrayLike | None = None,
    device: str = "cpu",
) -> Extremes:
    """The k rows of a run that lie furthest along a direction, and the k that lie furthest against it.

    Scores are projections on the direction at length 1: `state @ direction / |direction|`, in the states' own units.

    Args:
        direction_D: any length but 0, such as from analyze.directions.
        site, layer, k, where, rows, device: as in `nearest`.

    Raises:
        ValueError: as from `nearest`; or the direction is 0 everywhere.
    """
    direction = checked_vectors(run, direction_D, "a direction")
    if len(direction) != 1:
        raise ValueError(f"give one direction, not {len(direction)}")
    near_one_D = _near_one(direction)[0]
    if not near_one_D.any():
        raise ValueError("the direction is 0 everywhere, so no state lies along it")
    unit_D = near_one_D / np.linalg.norm(near_one_D)
    both = nearest(run, site, layer, np.stack([unit_D, -unit_D]), k, metric="dot", where=where, rows=rows, device=device)
    return Extremes(Ranked(both.rows_QK[0], both.scores_QK[0]), Ranked(both.rows_QK[1], 0.0 - both.scores_QK[1]))


def blocks(
    run: Run, site: str, layer: int, where: str | None = None, rows: ArrayLike | None = None, *, n_queries: int = 1
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Rows in order, and their states in float64, (B, D), for the caller to write on, which are there until the next block.

    Args:
        where, rows: which rows, as in Run.hidden.
        n_queries: how many products with each state are to be held beside them.

    Raises:
        ValueError: as from Run.hidden.
    """
    width = run.manifest.width
    n_bytes = _BLOCK_BYTES if n_queries < _FEWEST_QUERIES else _PRODUCT_BYTES
    n_block = max(_FEWEST_ROWS, n_bytes // (8 * max(width, n_queries)))
    memory_BD = np.empty((n_block, width))  # of all blocks: new memory for each takes longer than what is computed with it
    buffer_rows = max(n_block, _BUFFER_BYTES // (4 * width))
    for batch in run.batches(site, layer, n_block, where, rows=rows, buffer_rows=buffer_rows):
        states_BD = memory_BD[: len(batch.rows)]
        np.copyto(states_BD, batch.hidden)
        yield batch.rows, states_BD


def check_search(run: Run, site: str, k: int, metric: str) -> None:
    """Make sure that there is such a search, before anything is read or computed for it.

    Raises:
        ValueError: as from `nearest`, of site, k and metric.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; choose from {', '.join(METRICS)}")
    if k < 1:
        raise ValueError(f"give a number of neighbours from 1, not {k}")
    check_one_state(run, site)


def check_one_state(run: Run, site: str) -> None:
    """Make sure that a site keeps one state of each utterance.

    Raises:
        ValueError: it keeps several; the message names sites of the run that do not.
    """
    parsed = Site.parse(site)
    if parsed.on_grid or parsed.position == "all":
        single = [other for other in map(Site.parse, run.sites) if not other.on_grid and other.position != "all"]
        choices = f"choose from {', '.join(map(str, single))}" if single else f"run {run.run_id} has no site with one"
        raise ValueError(f"{site} keeps several states of an utterance, and one is compared here; {choices}")


def checked_vectors(run: Run, vectors: ArrayLike, what: str) -> Floats:
    """Vectors of a run's width, (Q, D) in float64, from several or one.

    Args:
        what: what each is called in a message.

    Raises:
        ValueError: they are of another width or shape, or one holds what is not a finite number.
    """
    try:
        vectors_QD = np.atleast_2d(np.asarray(vectors, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is {run.manifest.width:,} numbers, and this is not: {error}") from error
    if vectors_QD.ndim != 2 or vectors_QD.shape[1] != run.manifest.width:
        shape = " x ".join(map(str, np.shape(vectors))) or "one number"
        raise ValueError(f"{what} is {run.manifest.width:,} numbers, as the states of run {run.run_id}, and this is {shape}")
    if not (np.abs(vectors_QD) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{what} holds a value that is not a finite number")
    if not len(vectors_QD):
        raise ValueError(f"give {what} at least")
    return vectors_QD


@dataclass(frozen=True, slots=True)
class _Scoring:
    """How a metric ranks states; a higher rank is nearer."""

    bounds: Callable[[Floats, Floats, Floats, float], tuple[Floats, Floats]]
    """From products (Q, B), squares of queries (Q, 1) and of states (B,) and the slack of a product: bounds of each `exact`."""
    exact: Callable[[Floats, Floats], Floats]
    """Of states (N, D) and a query (D,)."""


def _dot_bounds(product_QB: Floats, qq_Q1: Floats, xx_B: Floats, slack: float) -> tuple[Floats, Floats]:
    """A sum of D products, in any order, is off by D roundings of the sum of their sizes at most, which is |x| |q| at most."""
    around_QB = slack * np.sqrt(qq_Q1) * np.sqrt(xx_B) + _LEAST
    return product_QB - around_QB, product_QB + around_QB


def _dot(x_ND: Floats, q_D: Floats) -> Floats:
    return np.asarray((x_ND * q_D).sum(axis=1))


def _cosine_bounds(product_QB: Floats, qq_Q1: Floats, xx_B: Floats, slack: float) -> tuple[Floats, Floats]:
    cosine_QB = _cosines(product_QB, qq_Q1, xx_B)
    return np.clip(cosine_QB - slack, -1, 1), np.clip(cosine_QB + slack, -1, 1)


def _cosine(x_ND: Floats, q_D: Floats) -> Floats:
    return np.clip(_cosines(_dot(x_ND, q_D), np.asarray((q_D * q_D).sum()), (x_ND * x_ND).sum(axis=1)), -1, 1)


def _cosines(product: Floats, qq: Floats, xx: Floats) -> Floats:
    """Under one root: so a state's cosine with itself is 1 and not nearly 1."""
    lengths = np.sqrt(qq * xx)
    cosines: Floats = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    return cosines


def _euclidean_bounds(product_QB: Floats, qq_Q1: Floats, xx_B: Floats, slack: float) -> tuple[Floats, Floats]:
    square_QB = qq_Q1 - 2 * product_QB + xx_B
    around_QB = slack * (np.sqrt(qq_Q1) + np.sqrt(xx_B)) ** 2 + _LEAST
    return -np.sqrt(np.maximum(square_QB + around_QB, 0)), -np.sqrt(np.maximum(square_QB - around_QB, 0))


def _euclidean(x_ND: Floats, q_D: Floats) -> Floats:
    return np.asarray(-np.sqrt(((x_ND - q_D) ** 2).sum(axis=1)))


_SCORINGS = {
    "cosine": _Scoring(_cosine_bounds, _cosine),
    "dot": _Scoring(_dot_bounds, _dot),
    "euclidean": _Scoring(_euclidean_bounds, _euclidean),
}


class _Best:
    """The best rows so far, for one query.

    They are put in order when they are twice as many as asked for: with each block, many neighbours would be sorted very often.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._rows = [np.empty(0, np.int64)]
        self._ranks = [np.empty(0, np.float64)]
        self._n = 0
        self.least = -np.inf
        """What a row must reach to be among the best, or less."""

    def candidates(self, lower_B: Floats, upper_B: Floats) -> NDArray[np.int64]:
        """Those of later rows that may be among them, by the bounds of their ranks."""
        near = np.flatnonzero(upper_B >= self.least)
        if len(near) > self._k:
            near = near[upper_B[near] >= np.partition(lower_B[near], -self._k)[-self._k]]
        return near

    def add(self, rows: NDArray[np.int64], ranks: Floats) -> None:
        self._rows.append(rows)
        self._ranks.append(ranks)
        self._n += len(rows)
        if self._n > 2 * self._k or (self.least == -np.inf and self._n >= self._k):
            self.ordered()

    def ordered(self) -> tuple[NDArray[np.int64], Floats]:
        """The best rows and their ranks, the best first; the others are let go."""
        rows, ranks = np.concatenate(self._rows), np.concatenate(self._ranks)
        order = np.lexsort((rows, -ranks))[: self._k]
        rows_K, ranks_K = rows[order], ranks[order]
        self._rows, self._ranks, self._n = [rows_K], [ranks_K], len(rows_K)
        if len(rows_K) == self._k:
            self.least = float(ranks_K[-1])
        return rows_K, ranks_K


def _squares(vectors_ND: Floats) -> Floats:
    return np.asarray(np.vecdot(vectors_ND, vectors_ND))


def _near_one(vectors_QD: Floats) -> Floats:
    """Each times a power of two, which changes no digit, so that no square is too large or too small."""
    return np.asarray(np.ldexp(vectors_QD, -np.frexp(np.abs(vectors_QD).max(axis=1, keepdims=True))[1]))


def _product(queries_QD: Floats, device: str) -> Callable[[Floats], Floats]:
    """What multiplies queries with the states of a block, (B, D) to (Q, B)."""
    if device == "cpu" and len(queries_QD) < _FEWEST_QUERIES:
        return lambda states_BD: np.vecdot(queries_QD[:, None], states_BD)
    if device == "cpu":
        return lambda states_BD: queries_QD @ states_BD.T
    import torch

    try:
        there_QD = torch.tensor(queries_QD, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:  # no such device, none here, or one without float64
        raise ValueError(f"cannot multiply in float64 on {device!r}; choose cpu, or a CUDA device such as cuda:0") from error
    return lambda states_BD: (there_QD @ torch.from_numpy(states_BD).to(device).T).cpu().numpy()
