"""The plane in which hidden states spread most: principal components of standardised states, in bounded memory.

As in the report's picture (analyze.projection), every coordinate is standardised first: a few coordinates of the residual
stream are hundreds of times larger than the others and would be the whole picture. States are read twice and never held: once
for their moments, once to place them. Where the moments of all would take seconds, a random sample of the rows, the same each
time, stands for all of them; every k-th row would not, because corpora alternate: of two classes on alternate rows it saw one.

scikit-learn's PCA was rejected, because it holds the states in float64.

Shape suffixes: N states, D width.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from analyze.query import Run
from extract.sites import Site

MOST_PRODUCTS = 100_000_000_000
"""Multiplications for the moments, from which on not all rows go into them: a second or two on one core."""

MOST_WIDTH = 16_384
"""Widest states of which there is a plane: their moments take 2 GiB."""

_ROWS_OF_MOMENTS = 1024
_BYTES_AT_ONCE = 16 << 20  # of states in float32
_TOLERANCE = 1e-8  # of eigenvalues; a picture shows no more
_FEW = 64  # coordinates, of which all axes are found as fast as two

_States = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Two axes through standardised states."""

    mean_D: NDArray[np.float64]
    """Mean of each coordinate."""
    weight_D2: NDArray[np.float64]
    """What a state less the mean is multiplied with: the axes, each coordinate divided by its standard deviation."""
    variance: tuple[float, float]
    """Share of the variance of the standardised states along each axis; zeros where all states are alike."""

    def place(self, hidden_ND: _States) -> _States:
        """Where states lie, (N, 2)."""
        return (hidden_ND - self.mean_D.astype(np.float32)) @ self.weight_D2.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """States in their plane."""

    plane: Plane
    """The plane."""
    rows_N: NDArray[np.int64]
    """Whose states they are."""
    points_N2: NDArray[np.float32]
    """Where they lie."""
    n_fitted: int
    """To how many of them the plane was fitted."""


def fit_plane(blocks: Iterable[_States]) -> Plane:
    """The plane of states that come block after block.

    The sign of an axis is the one that makes its largest weight positive, so that it is the same each time.

    Raises:
        ValueError: a state is not finite.
    """
    n, moments = 0, None
    for hidden_ND in blocks:
        block_ND = np.asarray(hidden_ND, np.float32)
        if moments is None:  # moments about a point near the mean lose no digits
            shift_D = block_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
            sum_D, moments = np.zeros(block_ND.shape[1]), np.zeros((block_ND.shape[1], block_ND.shape[1]))
        with np.errstate(invalid="ignore", over="ignore"):  # told below
            block_ND = block_ND - shift_D
            sum_D += block_ND.sum(axis=0, dtype=np.float64)
            moments += block_ND.T @ block_ND
        n += len(block_ND)
    if moments is None:
        raise ValueError("no utterance is chosen, so there is no plane; choose some")
    if not np.isfinite(moments).all():
        raise ValueError("some of these states are not finite, so there is no plane; choose others")
    off_D, covariance_DD = sum_D / n, moments
    covariance_DD /= n
    for begin in range(0, len(off_D), _ROWS_OF_MOMENTS):
        covariance_DD[begin : begin + _ROWS_OF_MOMENTS] -= np.outer(off_D[begin : begin + _ROWS_OF_MOMENTS], off_D)
    mean_D, variance_D = shift_D + off_D, np.diag(covariance_DD)
    return Plane(mean_D, *_axes(covariance_DD, _varies(variance_D, mean_D, n)))


def _varies(variance_D: NDArray[np.float64], mean_D: NDArray[np.float64], n: int) -> NDArray[np.bool_]:
    """Which coordinates differ by more than rounding; the bound is that of scikit-learn's StandardScaler."""
    eps = np.finfo(np.float64).eps
    return variance_D > n * eps * variance_D + (n * mean_D * eps) ** 2


def _axes(covariance_DD: NDArray[np.float64], varies_D: NDArray[np.bool_]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Weights of the two axes, (D, 2), and the share of the variance along each; the covariance is overwritten."""
    kept = np.flatnonzero(varies_D)
    weight_D2 = np.zeros((len(varies_D), 2))
    if not kept.size:
        return weight_D2, (0.0, 0.0)
    scale_K = np.sqrt(np.diag(covariance_DD)[kept])
    correlation_KK = covariance_DD if varies_D.all() else covariance_DD[np.ix_(kept, kept)]
    correlation_KK /= scale_K[:, None]
    correlation_KK /= scale_K
    values, vectors_KA = _two_largest(correlation_KK)
    vectors_KA = vectors_KA[:, ::-1]
    largest = np.abs(vectors_KA).argmax(axis=0)
    vectors_KA = vectors_KA * np.sign(vectors_KA[largest, np.arange(vectors_KA.shape[1])])
    weight_D2[kept, : vectors_KA.shape[1]] = vectors_KA / scale_K[:, None]
    first_share, second_share = (*(float(max(0.0, value)) / len(kept) for value in values[::-1]), 0.0)[:2]
    return weight_D2, (first_share, second_share)


def _two_largest(correlation_KK: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Its two largest eigenvalues, ascending, and their vectors as columns; of a single coordinate, the one there is.

    By Lanczos: of 4,096 coordinates that takes 0.1 s on one core, and all eigenvalues take many seconds.
    """
    if len(correlation_KK) > _FEW:
        start_K = np.random.default_rng(0).standard_normal(len(correlation_KK))
        with contextlib.suppress(ArpackNoConvergence):  # several eigenvalues are nearly alike
            values, vectors_KA = eigsh(correlation_KK, 2, which="LA", v0=start_K, tol=_TOLERANCE)
            order = np.argsort(values)
            return values[order], vectors_KA[:, order]
    values, vectors_KA = eigh(correlation_KK)
    return values[-2:], vectors_KA[:, -2:]


def place_states(run: Run, site: str, layer: int, rows_N: NDArray[np.int64], at: int | None = None) -> Placed:
    """The states of some rows of a run in their plane.

    Args:
        rows_N: which rows.
        at: of a site on a grid of offsets, which of these.

    Raises:
        ValueError: the run lacks the site, the layer, a row or the offset, is not complete, or is damaged; no row is chosen; or
            states are wider than MOST_WIDTH.
    """
    width = run.manifest.width
    if width > MOST_WIDTH:
        raise ValueError(
            f"states of run {run.run_id} are {width:,} wide, and a plane is found of at most {MOST_WIDTH:,}; read the states "
            "themselves and reduce them first"
        )
    index = _offset_index(run, site, at)
    size = max(1, _BYTES_AT_ONCE // (4 * width * (1 if index is None else len(run.manifest.identity.offsets))))

    def blocks(rows: NDArray[np.int64]) -> Iterable[_States]:
        for batch in run.batches(site, layer, size, rows=rows):
            yield batch.hidden if index is None else batch.hidden[:, index]

    fitted = _sample(rows_N, max(2, MOST_PRODUCTS // width**2))
    plane = fit_plane(blocks(fitted))
    return Placed(plane, rows_N, np.concatenate([plane.place(hidden_ND) for hidden_ND in blocks(rows_N)]), len(fitted))


def _sample(rows_N: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """So many rows at most, in their order."""
    if len(rows_N) <= most:
        return rows_N
    return rows_N[np.sort(np.random.default_rng(0).choice(len(rows_N), most, replace=False))]


def _offset_index(run: Run, site: str, at: int | None) -> int | None:
    """Which entry of a grid of offsets is asked for; None at a site that has none."""
    offsets = run.manifest.identity.offsets if Site.parse(site).on_grid else ()
    if at is not None and not offsets:
        raise ValueError(f"{site} keeps one state for each utterance and no offsets; leave at out")
    if not offsets:
        return None
    if at not in offsets:
        raise ValueError(
            f"{site} keeps a state at each of several offsets; say which with at, one of {', '.join(map(str, offsets))}"
        )
    return offsets.index(at)
