"""
Moments of gradient estimates, from their scalar products alone: pure numpy.

With ``B`` independent estimates ``x_i`` of expectation ``m``, ``mean_{i != j} x_i . x_j`` is an unbiased estimate of
``|m|^2``. ``|mean_i x_i|^2`` is not: it contains ``1/B`` of the variance, and in noisy cases little else.
So everything is computed from the matrix of scalar products, whose size does not depend on the number of parameters, and a
bootstrap sample is a vector of counts (an estimate that was drawn twice still makes no pair with itself).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

N_BOOTSTRAP = 1000
# Columns that are multiplied at a time: float64 copies of all of them would take twice the memory of the estimates.
_BLOCK = 1 << 16


class Interval(NamedTuple):
    """
    A number with its 95% bootstrap interval.

    :param value: estimate
    :param low: 2.5% quantile
    :param high: 97.5% quantile
    """

    value: float
    low: float
    high: float


class Summary(NamedTuple):
    """
    What is said about an estimator ``x`` of the gradient ``g``.

    :param variance: ``tr Cov x``, the sum of the variances of all parameters
    :param snr: ``|E x|^2 / tr Cov x``
    :param cosine: ``E[x . r / (|x| |r|)]`` with the reference gradient ``r``
    :param bias: ``|E x - g| / |g|``; zero where its square, estimated without bias, came out negative
    """

    variance: Interval
    snr: Interval
    cosine: Interval
    bias: Interval


@dataclass(frozen=True, eq=False)
class Reference:
    """
    Estimates by an unbiased estimator, many more of them, that stand for the gradient.

    :param estimates: ``[M, P]``, independent of everything that is compared with them
    """

    estimates: FloatArray

    @cached_property
    def products(self) -> FloatArray:
        """``[M, M]``, scalar products of the estimates."""
        return scalar_products(self.estimates, self.estimates)

    @cached_property
    def accuracy(self) -> float:
        """
        Cosine between the reference and the gradient it stands for, ``sqrt(|g|^2 / |r|^2)`` with an unbiased ``|g|^2``;
        0 where that is not positive: the reference then is nothing but noise.
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
    :param counts: ``[R, B]``, w, how often each estimate is in each sample
    :return: ``[R]``
    """
    squares = counts**2
    total = np.sum((counts @ products) * counts, axis=1) - squares @ np.diag(products)
    result: FloatArray = total / (counts.sum(axis=1) ** 2 - squares.sum(axis=1))
    return result


def summarize(estimates: FloatArray, reference: Reference, rng: np.random.Generator) -> Summary:
    """
    Describe an estimator by independent estimates.

    :param estimates: ``[B, P]``, B at least 2
    :param reference: many estimates of the gradient itself
    :param rng: draws the bootstrap samples
    :return: each number with its interval; not-a-number where it is not defined (no variance, no gradient)
    :raises ValueError: fewer than two estimates
    """
    if len(estimates) < 2:
        raise ValueError(f"a variance takes at least two estimates, got {len(estimates)}: raise n_batches")
    own = scalar_products(estimates, estimates)
    others = reference.products
    cross = scalar_products(estimates, reference.estimates)
    # The first "sample" of each is the data itself.
    counts, other_counts = (_resample(len(products), rng) for products in (own, others))

    squared_norms = off_diagonal_mean(own, counts)
    squares = np.diag(own)
    # Half the squared distance of two estimates has the variance as its expectation, and is not negative.
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
    """``[1 + N_BOOTSTRAP, size]``: how often each of the data is in each sample; once in the first, which is the data."""
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=N_BOOTSTRAP)
    # A sample of one and the same estimate has no pairs. It hardly occurs unless there are but two or three.
    drawn[drawn.max(axis=1) == size] = 1
    return np.concatenate([np.ones((1, size)), drawn])


def _interval(samples: FloatArray) -> Interval:
    low, high = np.quantile(samples[1:], (0.025, 0.975))
    return Interval(float(samples[0]), float(low), float(high))
