"""
Moments of gradient estimates, computed from their scalar products: pure numpy.

With ``B`` independent estimates ``x_i`` of expectation ``m``, ``mean_{i != j} x_i . x_j`` is an unbiased estimate of
``|m|^2``. ``|mean_i x_i|^2`` is not: its bias is ``1/B`` of the variance, which dominates in noisy cases.
So everything is computed from the matrix of scalar products, whose size does not depend on the number of parameters. A
bootstrap sample is a vector of counts (an estimate that was drawn twice does not form a pair with itself).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

N_BOOTSTRAP = 1000
# Number of columns multiplied at a time: float64 copies of all columns would take twice the memory of the estimates.
_BLOCK = 1 << 16


class Interval(NamedTuple):
    """
    An estimate with its 95% bootstrap interval.

    :param value: point estimate
    :param low: 2.5% quantile
    :param high: 97.5% quantile
    """

    value: float
    low: float
    high: float


class Summary(NamedTuple):
    """
    Properties of an estimator ``x`` of the gradient ``g``.

    :param variance: ``tr Cov x``, the sum of the variances of all parameters
    :param snr: ``|E x|^2 / tr Cov x``
    :param cosine: ``E[x . r / (|x| |r|)]`` with the reference gradient ``r``
    :param bias: ``|E x - g| / |g|``; zero where the unbiased estimate of its square is negative
    """

    variance: Interval
    snr: Interval
    cosine: Interval
    bias: Interval


@dataclass(frozen=True, eq=False)
class Reference:
    """
    Many estimates by an unbiased estimator, whose mean serves as the reference gradient.

    :param estimates: ``[M, P]``, independent of all estimates that are compared with the reference
    """

    estimates: FloatArray

    @cached_property
    def products(self) -> FloatArray:
        """``[M, M]``, scalar products of the estimates."""
        return scalar_products(self.estimates, self.estimates)

    @cached_property
    def accuracy(self) -> float:
        """
        Estimated cosine between the reference and the true gradient, ``sqrt(|g|^2 / |r|^2)`` with an unbiased ``|g|^2``;
        0 if that estimate is not positive, so that the reference is nothing but noise.
        """
        ones = np.ones((1, len(self.products)))
        squared_norm, mean_squared = float(off_diagonal_mean(self.products, ones)[0]), float(self.products.mean())
        return float(np.sqrt(squared_norm / mean_squared)) if squared_norm > 0 else 0.0


def scalar_products(left: FloatArray, right: FloatArray) -> FloatArray:
    """
    :param left: ``[B, P]``
    :param right: ``[M, P]``
    :return: ``[B, M]``, float64
    """
    products = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        products += left[:, columns].astype(np.float64) @ right[:, columns].astype(np.float64).T
    return products


def off_diagonal_mean(products: FloatArray, counts: FloatArray) -> FloatArray:
    """
    ``sum_{i != j} w_i w_j G_ij / sum_{i != j} w_i w_j``: an unbiased estimate of ``|E x|^2`` for ``w = 1``.

    :param products: ``[B, B]``, G, scalar products of the estimates
    :param counts: ``[R, B]``, w, multiplicity of each estimate in each bootstrap sample
    :return: ``[R]``
    """
    squares = counts**2
    total = np.sum((counts @ products) * counts, axis=1) - squares @ np.diag(products)
    result: FloatArray = total / (counts.sum(axis=1) ** 2 - squares.sum(axis=1))
    return result


def summarize(estimates: FloatArray, reference: Reference, rng: np.random.Generator) -> Summary:
    """
    Compute the properties of an estimator from independent estimates.

    :param estimates: ``[B, P]``, B at least 2
    :param reference: reference gradient
    :param rng: random generator of the bootstrap samples
    :return: all properties with their intervals; NaN where a property is not defined (no variance, zero gradient)
    :raises ValueError: fewer than two estimates
    """
    if len(estimates) < 2:
        raise ValueError(f"a variance needs at least two estimates, got {len(estimates)}: raise n_batches")
    own = scalar_products(estimates, estimates)
    others = reference.products
    cross = scalar_products(estimates, reference.estimates)
    # The first "sample" is the data itself.
    counts, other_counts = (_resample(len(products), rng) for products in (own, others))

    squared_norms = off_diagonal_mean(own, counts)
    squares = np.diag(own)
    # The expectation of half the squared distance of two estimates is the variance, and it cannot be negative.
    variances = np.maximum(off_diagonal_mean((squares[:, None] + squares) / 2 - own, counts), 0)
    lengths = np.sqrt(squares) * np.sqrt(others.mean())
    directions = np.divide(cross.mean(axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    reference_squared_norms = off_diagonal_mean(others, other_counts)
    crossed = np.sum((counts @ cross) * other_counts, axis=1) / cross.size
    squared_biases = squared_norms - 2 * crossed + reference_squared_norms
    with np.errstate(divide="ignore", invalid="ignore"):
        return Summary(
            variance=_interval(variances),
            snr=_interval(np.where(variances > 0, squared_norms / variances, np.nan)),
            cosine=_interval(counts @ directions / len(own)),
            bias=_interval(np.sqrt(np.maximum(squared_biases, 0) / np.maximum(reference_squared_norms, 0))),
        )


def _resample(size: int, rng: np.random.Generator) -> FloatArray:
    """Multiplicities ``[1 + N_BOOTSTRAP, size]`` of the data in the bootstrap samples; the first sample is the data itself."""
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=N_BOOTSTRAP)
    # A sample that consists of a single estimate has no pairs. It is improbable unless there are only two or three estimates.
    drawn[drawn.max(axis=1) == size] = 1
    return np.concatenate([np.ones((1, size)), drawn])


def _interval(samples: FloatArray) -> Interval:
    low, high = np.quantile(samples[1:], (0.025, 0.975))
    return Interval(float(samples[0]), float(low), float(high))
