"""
Gaussian action distributions: isotropic, diagonal or full covariance, squashed or not.

A *sample* u is an unbounded vector drawn from the Gaussian; an *action* is u itself, or tanh(u) if the distribution is
squashed. All functions take samples, never actions: near its bounds tanh cannot be inverted, in float32 from |u| = 9 on.
"""

import math

import numpy as np
import numpy.typing as npt
import torch as th
from torch import distributions as D  # noqa: N812 # one letter, as in torch's own code
from torch.nn import functional as F

FloatArray = npt.NDArray[np.float32]

COVARIANCES = ("isotropic", "diagonal", "full")

LOG_2 = math.log(2)
LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)
# The largest float32 below 1.
LARGEST_TANH = 1 - 2**-24


def n_standard_deviations(covariance: str, dim: int) -> int:
    """
    :param covariance: one of ``COVARIANCES``
    :param dim: number of dimensions A
    :return: number of standard deviations (diagonal entries of the Cholesky factor) to specify
    """
    return 1 if covariance == "isotropic" else dim


def n_off_diagonal(covariance: str, dim: int) -> int:
    """
    :param covariance: one of ``COVARIANCES``
    :param dim: number of dimensions A
    :return: number of entries of the Cholesky factor below its diagonal
    """
    return dim * (dim - 1) // 2 if covariance == "full" else 0


def cholesky_factor(diagonal: th.Tensor, off_diagonal: th.Tensor) -> th.Tensor:
    """
    :param diagonal: ``[..., A]``, positive
    :param off_diagonal: ``[..., A (A - 1) / 2]``, row by row
    :return: ``[..., A, A]``, lower triangular
    """
    dim = diagonal.shape[-1]
    rows, columns = th.tril_indices(dim, dim, offset=-1, device=diagonal.device)
    factor = th.diag_embed(diagonal)
    factor[..., rows, columns] = off_diagonal
    return factor


def log_tanh_derivative(sample: th.Tensor) -> th.Tensor:
    """
    ``log(d tanh(u) / du) = log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))``, which is exact for every u, where
    ``1 - tanh(u)^2`` itself is rounded to zero from |u| = 9 on.

    :param sample: u
    :return: the same shape
    """
    return 2 * (LOG_2 - sample - F.softplus(-2 * sample))


def inverse_tanh(actions: FloatArray) -> FloatArray:
    """
    :param actions: actions, clipped to [-1, 1]
    :return: samples whose tanh is as close to the actions as float32 allows, the same shape
    """
    samples: FloatArray = np.arctanh(np.clip(actions, -LARGEST_TANH, LARGEST_TANH).astype(np.float32))
    return samples


def uniform_samples(n: int, dim: int, squash: bool) -> tuple[FloatArray, FloatArray]:
    """
    Draw actions uniformly from [-1, 1], with numpy's global generator, which SB3 seeds.

    :param n: number of actions N
    :param dim: number of dimensions A
    :param squash: whether the action is tanh of the sample
    :return: samples that correspond to the actions, ``[N, A]``, and their log-density, ``[N]``
    """
    actions = np.random.uniform(-1, 1, size=(n, dim)).astype(np.float32)  # noqa: NPY002 # the generator that SB3 seeds
    log_probs = np.full(n, -dim * LOG_2, dtype=np.float32)
    if not squash:
        return actions, log_probs
    samples = inverse_tanh(actions)
    return samples, log_probs + log_tanh_derivative(th.from_numpy(samples)).sum(dim=1).numpy()


class GaussianActions:
    """
    Distribution of actions, ``u = mean + L z`` with ``z ~ N(0, I)``, the action being u or tanh(u).

    :param mean: ``[S, A]``
    :param std: diagonal of L, positive: ``[S, A]``, or ``[S, 1]`` if it is the same in all dimensions
    :param off_diagonal: ``[S, A (A - 1) / 2]``, entries of L below its diagonal; ``None``: all zero
    :param squash: whether the action is tanh(u)
    """

    def __init__(self, mean: th.Tensor, std: th.Tensor, off_diagonal: th.Tensor | None = None, squash: bool = False) -> None:
        self.squash = squash
        # Mean of the samples, [S, A].
        self.mean = mean
        self._std = std if std.shape == mean.shape else std.expand_as(mean)
        # torch's distribution only for full covariances: its overhead exceeds the arithmetic.
        self._correlated: D.MultivariateNormal | None = None
        if off_diagonal is not None:
            factor = cholesky_factor(self._std, off_diagonal)
            # Without torch's validation, which doubles the time: the algorithm checks its losses.
            self._correlated = D.MultivariateNormal(mean, scale_tril=factor, validate_args=False)

    @property
    def stddev(self) -> th.Tensor:
        """Standard deviation of each coordinate of the samples, ``[S, A]``."""
        return self._std if self._correlated is None else self._correlated.stddev

    def rsample(self, n_samples: int) -> th.Tensor:
        """
        :param n_samples: number of draws K
        :return: samples ``[K, S, A]``, functions of the parameters (reparametrised)
        """
        if self._correlated is not None:
            return self._correlated.rsample(th.Size((n_samples,)))
        return self.samples_from(self.draw_noise(n_samples))

    def draw_noise(self, n_samples: int) -> th.Tensor:
        """
        :param n_samples: number of draws K
        :return: z, ``[K, S, A]``
        """
        return th.randn(n_samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)

    def samples_from(self, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: z, ``[K, S, A]``
        :return: samples of uncorrelated coordinates, ``[K, S, A]``
        """
        return th.addcmul(self.mean, self._std, noise)

    def actions(self, samples: th.Tensor) -> th.Tensor:
        """
        :param samples: ``[..., A]``
        :return: the corresponding actions, ``[..., A]``
        """
        return th.tanh(samples) if self.squash else samples

    def sample_log_prob(self, samples: th.Tensor) -> th.Tensor:
        """
        Log-density of the samples, as needed for importance ratios: there, the Jacobian of tanh cancels.

        :param samples: ``[..., S, A]``
        :return: ``[..., S]``
        """
        if self._correlated is not None:
            log_prob: th.Tensor = self._correlated.log_prob(samples)  # type: ignore[no-untyped-call]  # torch
            return log_prob
        standard = (samples - self.mean) / self._std
        return (-0.5 * standard.square() - self._std.log() - LOG_SQRT_2_PI).sum(dim=-1)

    def log_prob(self, samples: th.Tensor) -> th.Tensor:
        """
        Log-density of the actions that correspond to the samples.

        :param samples: ``[..., S, A]``
        :return: ``[..., S]``
        """
        log_prob = self.sample_log_prob(samples)
        return log_prob - log_tanh_derivative(samples).sum(dim=-1) if self.squash else log_prob
