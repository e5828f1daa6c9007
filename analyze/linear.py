"""Linear probes in closed form, from the moments of a layer: discriminant analysis, ridge regression, mean differences.

Every probe reads states that are standardised by the rows it was fitted on; its weights are kept for raw states, so that
whoever applies one needs nothing else. Coefficients are those of scikit-learn for the same regularisation (the tests' oracle).

Shape suffixes: N rows, D width, K classes or columns.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from analyze.moments import Floats, Moments

_NOISE = 1e-12  # share of the second moment below which a variance is rounding
_ABSENT = 1e-12  # share of a class without rows


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Scores of each class, or a value, as a linear map of raw states."""

    weight_DK: Floats
    """What each feature adds."""
    bias_K: Floats
    """The scores of the state 0."""
    gives: str
    """What the scores are: `logits` (their softmax is a probability), `log-odds` (each one's logistic function is), `margins`
    (they only rank), or `values`."""

    def around(self, origin_D: NDArray[np.floating]) -> "LinearProbe":
        """The same probe for states less an origin."""
        return LinearProbe(self.weight_DK, self.bias_K + origin_D.astype(np.float64) @ self.weight_DK, self.gives)


@dataclass(frozen=True, slots=True)
class Standardised:
    """Moments in units of their own standard deviations, around their own mean."""

    mean_D: Floats
    """Mean of the states, around the origin."""
    scale_D: Floats
    """Their standard deviation; 1 for constant features."""
    covariance_DD: Floats
    """Their correlation matrix."""
    with_y_DK: Floats
    """Covariance with each column of the target."""
    y_K: Floats
    """Mean of each column of the target."""


def standardise(moments: Moments) -> Standardised:
    """Centre and scale moments as scikit-learn's StandardScaler does the rows."""
    mean_D, y_K = moments.x_D / moments.weight, moments.y_T / moments.weight
    second_D = np.diagonal(moments.xx_DD) / moments.weight
    variance_D = second_D - mean_D**2
    constant_D = variance_D <= _NOISE * second_D
    scale_D = np.where(constant_D, 1.0, np.sqrt(np.where(constant_D, 1.0, variance_D)))
    covariance_DD = moments.xx_DD / moments.weight - np.outer(mean_D, mean_D)
    covariance_DD[constant_D] = 0
    covariance_DD[:, constant_D] = 0
    with_y_DK = moments.xy_DT / moments.weight - np.outer(mean_D, y_K)
    with_y_DK[constant_D] = 0
    covariance_DD /= np.outer(scale_D, scale_D)
    return Standardised(mean_D, scale_D, covariance_DD, with_y_DK / scale_D[:, None], y_K)


def discriminant(moments: Moments, shrinkage: float) -> LinearProbe:
    """Linear discriminant analysis with the within-class covariance shrunk towards a multiple of the identity.

    As scikit-learn's LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage) on standardised states.

    Args:
        moments: with a one-hot target; a class without rows is never named.
        shrinkage: 0 for the covariance itself, 1 for the identity alone.
    """
    unit = standardise(moments)
    share_K = np.maximum(unit.y_K, _ABSENT)
    mean_DK = unit.with_y_DK / share_K  # of the classes, around the mean of all
    within_DD = unit.covariance_DD - (mean_DK * unit.y_K) @ mean_DK.T
    width = len(within_DD)
    shrunk_DD = (1 - shrinkage) * within_DD
    shrunk_DD[np.diag_indices(width)] += shrinkage * np.trace(within_DD) / width
    weight_DK = _solve(shrunk_DD, mean_DK)
    bias_K = np.log(share_K) - 0.5 * np.einsum("dk,dk->k", mean_DK, weight_DK)
    return _in_raw_units(weight_DK, bias_K, unit, "logits")


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Standardised states in directions in which they are uncorrelated: what all questions about the same rows share."""

    unit: Standardised
    """Of the rows, with some target."""
    variance_E: Floats
    """Along each direction, ascending."""
    direction_DE: Floats
    """The directions, of length 1."""


def spectrum(moments: Moments) -> Spectrum:
    """Rotate states so that they can be regularised anew, or asked another question, without solving again."""
    unit = standardise(moments)
    variance_E, direction_DE = np.linalg.eigh(unit.covariance_DD)
    return Spectrum(unit, variance_E, direction_DE)


def discriminants(moments: Moments, shared: Spectrum, shrinkage: float) -> LinearProbe:
    """For each label the discriminant analysis of those that have it against those that do not.

    The within-class covariance of a label is the covariance of all less a part of rank one, so that one rotation solves for
    every label and shrinkage; as many factorisations as there are labels and shrinkages would cost minutes a layer.

    Args:
        moments: with a target of labels.
        shared: the spectrum of the same rows.
        shrinkage: as in `discriminant`.
    """
    unit, width = shared.unit, len(shared.variance_E)
    share_K = np.clip(moments.y_T / moments.weight, _ABSENT, 1 - _ABSENT)
    product_K = share_K * (1 - share_K)
    with_y_DK = moments.xy_DT / moments.weight - np.outer(unit.mean_D, moments.y_T / moments.weight)
    with_y_DK[np.diagonal(unit.covariance_DD) == 0] = 0
    turned_EK = shared.direction_DE.T @ (with_y_DK / unit.scale_D[:, None])
    trace_K = shared.variance_E.sum() - (turned_EK**2).sum(axis=0) / product_K
    variance_EK = (1 - shrinkage) * shared.variance_E[:, None] + shrinkage * np.maximum(trace_K, 0) / width
    least = width * np.finfo(np.float64).eps * max(float(variance_EK.max()), _ABSENT)
    solved_EK = np.divide(turned_EK, variance_EK, out=np.zeros_like(turned_EK), where=variance_EK > least)
    explained_K = (1 - shrinkage) * np.einsum("ek,ek->k", turned_EK, solved_EK) / product_K
    solved_EK /= np.maximum(1 - explained_K, _NOISE) * product_K
    apart_K = np.einsum("ek,ek->k", turned_EK, solved_EK) * product_K
    bias_K = np.log(share_K / (1 - share_K)) - 0.5 * apart_K * (1 / share_K**2 - 1 / (1 - share_K) ** 2)
    return _in_raw_units(shared.direction_DE @ solved_EK, bias_K, unit, "log-odds")


def ridge(moments: Moments, alpha: float, gives: str) -> LinearProbe:
    """Least squares with a penalty of `alpha` on the squared weights of standardised states.

    As scikit-learn's Ridge(alpha) on values, and RidgeClassifier(alpha), whose targets are -1 and 1, on classes.

    Args:
        gives: `values` for a target of numbers, `margins` for a one-hot target.
    """
    unit = standardise(moments)
    penalised_DD = unit.covariance_DD * moments.weight
    penalised_DD[np.diag_indices(len(penalised_DD))] += alpha
    weight_DK = _solve(penalised_DD, unit.with_y_DK * moments.weight)
    if gives == "values":
        return _in_raw_units(weight_DK, unit.y_K, unit, gives)
    return _in_raw_units(2 * weight_DK, 2 * unit.y_K - 1, unit, gives)


def difference(moments: Moments) -> LinearProbe:
    """The direction from the mean of all other classes to a class's own, in standardised states; 0 halfway between.

    The emotion direction of "Do LLMs Feel?" (arXiv 2510.11328) and its kin; what it gives are margins.
    """
    unit = standardise(moments)
    own_DK = unit.with_y_DK / np.maximum(unit.y_K, _ABSENT)
    rest_DK = -unit.with_y_DK / np.maximum(1 - unit.y_K, _ABSENT)
    weight_DK = own_DK - rest_DK
    length_K = np.linalg.norm(weight_DK, axis=0)
    weight_DK = weight_DK / np.where(length_K > 0, length_K, 1.0)
    bias_K = -0.5 * np.einsum("dk,dk->k", own_DK + rest_DK, weight_DK)
    bias_K[unit.y_K == 0] = -np.inf  # a class without rows is never named
    return _in_raw_units(weight_DK, bias_K, unit, "margins")


def _solve(positive_DD: Floats, right_DK: Floats) -> Floats:
    """Solve with a symmetric matrix that is positive, or only just not: then in the least-squares sense."""
    try:
        factor = scipy.linalg.cho_factor(positive_DD, lower=True, check_finite=False)
        diagonal_D = np.diagonal(factor[0])
        if diagonal_D.min() > 1e-7 * diagonal_D.max():
            solved: Floats = scipy.linalg.cho_solve(factor, right_DK, check_finite=False)
            return solved
    except np.linalg.LinAlgError:
        pass
    least: Floats = scipy.linalg.lstsq(positive_DD, right_DK, check_finite=False)[0]
    return least


def _in_raw_units(weight_DK: Floats, bias_K: Floats, unit: Standardised, gives: str) -> LinearProbe:
    raw_DK = weight_DK / unit.scale_D[:, None]
    return LinearProbe(raw_DK, bias_K - unit.mean_D @ raw_DK, gives)
