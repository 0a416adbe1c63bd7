"""Gaussian action distributions: densities against numerical integration and formulas, gradients against closed forms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_pg.common.distributions import (
    COVARIANCES,
    GaussianActions,
    cholesky_factor,
    log_tanh_derivative,
    n_off_diagonal,
    n_standard_deviations,
)
from sb3_pg.svg0.svg0 import likelihood_ratio_loss, pathwise_loss

MEAN = [0.3, -0.7, 0.1]
FACTOR = [[0.5, 0.0, 0.0], [-0.3, 0.8, 0.0], [0.2, 0.4, 0.3]]


def tensor(numbers: Any) -> th.Tensor:
    return th.tensor(numbers, dtype=th.float64)


def gaussian(rows: list[th.Tensor], squash: bool = False) -> GaussianActions:
    return GaussianActions(rows[0], rows[1], rows[2] if len(rows) > 2 else None, squash)


def parameters(covariance: str, n_rows: int = 1) -> list[th.Tensor]:
    """Mean, diagonal and, for full covariances, the entries below it, repeated in each row; they require gradients."""
    diagonal = [0.6] if covariance == "isotropic" else [row[i] for i, row in enumerate(FACTOR)]
    rows = [MEAN, diagonal, *([[-0.3, 0.2, 0.4]] if covariance == "full" else [])]
    return [tensor(row).repeat(n_rows, 1).requires_grad_() for row in rows]


def factor_of(covariance: str) -> np.ndarray:
    if covariance == "isotropic":
        return 0.6 * np.eye(3)
    return np.array(FACTOR) if covariance == "full" else np.diag(np.diag(FACTOR))


def test_a_cholesky_factor_by_hand() -> None:
    factor = cholesky_factor(tensor([[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]), tensor([[4.0, 5.0, 6.0], [0.0, -1.0, 0.5]]))
    assert factor.tolist() == [
        [[1.0, 0.0, 0.0], [4.0, 2.0, 0.0], [5.0, 6.0, 3.0]],
        [[7.0, 0.0, 0.0], [0.0, 8.0, 0.0], [-1.0, 0.5, 9.0]],
    ]


@pytest.mark.parametrize(("covariance", "numbers"), [("isotropic", (1, 0)), ("diagonal", (4, 0)), ("full", (4, 6))])
def test_numbers_of_parameters(covariance: str, numbers: tuple[int, int]) -> None:
    assert (n_standard_deviations(covariance, 4), n_off_diagonal(covariance, 4)) == numbers


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_density_equals_the_formula(covariance: str) -> None:
    """``-1/2 x' Sigma^-1 x - 1/2 log det(2 pi Sigma)`` with ``Sigma = L L'``."""
    points = tensor([[0.0, 0.0, 0.0], [1.5, -2.0, 0.3], [-0.4, 0.9, 2.0]])
    sigma = factor_of(covariance) @ factor_of(covariance).T
    shifted = points.numpy() - np.array(MEAN)
    expected = -0.5 * np.einsum("si,ij,sj->s", shifted, np.linalg.inv(sigma), shifted)
    expected -= 0.5 * np.linalg.slogdet(2 * np.pi * sigma)[1]
    distribution = gaussian(parameters(covariance, 3))
    assert np.allclose(distribution.sample_log_prob(points).detach(), expected)
    assert np.allclose(distribution.log_prob(points).detach(), expected)
    assert np.allclose(distribution.stddev.detach(), np.sqrt(np.diag(sigma)))
    assert th.equal(distribution.actions(points), points)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_are_the_mean_plus_the_factor_times_the_noise(covariance: str) -> None:
    th.manual_seed(3)
    samples = gaussian(parameters(covariance, 4)).rsample(5)
    th.manual_seed(3)
    zeros, ones = th.zeros(4, 3, dtype=th.float64), th.ones(4, 3, dtype=th.float64)
    noise = GaussianActions(zeros, ones, th.zeros(4, 3, dtype=th.float64) if covariance == "full" else None).rsample(5)
    assert samples.shape == (5, 4, 3)
    assert len(np.unique(noise)) == 60
    assert np.allclose(samples.detach(), np.array(MEAN) + noise.numpy() @ factor_of(covariance).T)


@pytest.mark.parametrize("mean", [0.0, -0.8, 2.5])
@pytest.mark.parametrize("std", [0.1, 0.7, 1.5])
def test_the_squashed_density_is_the_derivative_of_the_distribution_function(mean: float, std: float) -> None:
    """Of P(tanh(u) <= a) = Phi((artanh(a) - mean) / std), by finite differences; the density integrates to one."""
    edges = np.linspace(-1, 1, 20001)[1:-1]
    centres = (edges[1:] + edges[:-1]) / 2
    distribution = GaussianActions(tensor([[mean]]), tensor([[std]]), squash=True)
    density = distribution.log_prob(tensor(np.arctanh(centres))[:, None, None]).exp().numpy()[:, 0]
    cdf = np.array([0.5 * (1 + math.erf((u - mean) / std / math.sqrt(2))) for u in np.arctanh(edges)])
    differences = np.diff(cdf) / np.diff(edges)
    inner = np.abs(centres) < 0.99
    assert np.allclose(density[inner], differences[inner], atol=1e-3 * density.max())
    assert (density * np.diff(edges)).sum() == pytest.approx(cdf[-1] - cdf[0], abs=2e-3)


def test_the_squashed_density_of_a_full_covariance_integrates_to_one() -> None:
    u = np.linspace(-5, 5, 401)
    edges = np.tanh(u)
    centres = np.arctanh((edges[1:] + edges[:-1]) / 2)
    grid = tensor(np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 1, 2))
    distribution = GaussianActions(tensor([[0.2, -0.3]]), tensor([[0.5, 0.6]]), tensor([[0.4]]), squash=True)
    areas = np.outer(np.diff(edges), np.diff(edges)).ravel()
    assert (distribution.log_prob(grid).exp().numpy()[:, 0] * areas).sum() == pytest.approx(1, abs=1e-3)


def test_the_tanh_correction_is_exact_in_the_middle_and_finite_near_the_bounds() -> None:
    middle = tensor(np.linspace(-3, 3, 61))
    assert np.allclose(log_tanh_derivative(middle), th.log(1 - th.tanh(middle) ** 2), atol=1e-12)
    far = th.tensor([-1000.0, -40.0, -10.0, 10.0, 40.0, 1000.0], requires_grad=True)
    correction = log_tanh_derivative(far)
    # cosh(u) = exp(|u|) / 2 there, so log(1 / cosh(u)^2) = 2 log 2 - 2 |u|.
    assert np.allclose(correction.detach(), 2 * math.log(2) - 2 * np.abs(far.detach().numpy()), rtol=1e-6)
    (gradient,) = th.autograd.grad(correction.sum(), far)
    assert np.allclose(gradient, -2 * np.sign(far.detach().numpy()), atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_saturated_samples_have_finite_densities_and_gradients(covariance: str) -> None:
    rows = [row.detach().float().requires_grad_() for row in parameters(covariance)]
    distribution = gaussian(rows, squash=True)
    log_prob = distribution.log_prob(th.tensor([[[50.0, -50.0, 9.5]]]))
    assert log_prob.isfinite().all()
    for gradient in th.autograd.grad(log_prob.sum(), rows):
        assert gradient.isfinite().all()


# ----------------------------------------------------------------------------------------- gradients on a quadratic Q

CURVATURE = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.5]])
SLOPE = np.array([1.0, -0.5, 0.7])
OFFSET = 3.0
N_DRAWS = 100_000


def quadratic(actions: th.Tensor) -> th.Tensor:
    """``Q(a) = c + g' a - 1/2 a' H a``"""
    bent = th.einsum("...i,ij,...j->...", actions, tensor(CURVATURE), actions)
    return OFFSET + actions @ tensor(SLOPE) - 0.5 * bent


def closed_form(covariance: str) -> list[np.ndarray]:
    """Gradients of ``E Q = c + g' m - 1/2 (m' H m + tr(H L L'))`` with respect to the parameters."""
    by_factor = -CURVATURE @ factor_of(covariance)
    by_mean = SLOPE - CURVATURE @ np.array(MEAN)
    if covariance == "isotropic":
        return [by_mean, np.array([np.trace(by_factor)])]
    return [by_mean, np.diag(by_factor), *([by_factor[np.tril_indices(3, -1)]] if covariance == "full" else [])]


def pathwise(distribution: GaussianActions) -> th.Tensor:
    q_values = quadratic(distribution.actions(distribution.rsample(1)))
    return pathwise_loss(q_values, th.ones(q_values.shape[1], dtype=th.float64))


def likelihood_ratio(distribution: GaussianActions) -> th.Tensor:
    samples = distribution.rsample(1).detach()
    weights = th.ones(samples.shape[1], dtype=th.float64)
    return likelihood_ratio_loss(distribution.sample_log_prob(samples), quadratic(samples), weights)


def gradients(loss: Callable[[GaussianActions], th.Tensor], covariance: str) -> list[np.ndarray]:
    """One estimate for each row of the parameters, ``[N_DRAWS, P]`` for each of them, in the direction of ascent."""
    th.manual_seed(0)
    rows = parameters(covariance, N_DRAWS)
    return [-gradient.numpy() for gradient in th.autograd.grad(loss(gaussian(rows)), rows)]


@pytest.mark.parametrize("loss", [pathwise, likelihood_ratio])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_both_estimators_are_unbiased(loss: Callable[[GaussianActions], th.Tensor], covariance: str) -> None:
    """The means are within six standard errors of the closed form, and the errors are small."""
    for estimates, exact in zip(gradients(loss, covariance), closed_form(covariance), strict=True):
        error = estimates.std(axis=0) / math.sqrt(N_DRAWS)
        assert np.all(np.abs(estimates.mean(axis=0) - exact) < 6 * error + 1e-12)
        assert np.all(error < 0.05)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_pathwise_estimator_has_the_lower_variance(covariance: str) -> None:
    variances = [
        sum(estimates.var(axis=0).sum() for estimates in gradients(loss, covariance)) for loss in (pathwise, likelihood_ratio)
    ]
    assert 2 * variances[0] < variances[1]


def test_the_entropy_gradient_of_a_squashed_gaussian_flows_through_the_samples() -> None:
    """Against finite differences of the entropy, computed by quadrature. At constant samples the mean gradient is zero."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)

    def entropy(mean: float, std: float) -> float:
        u = mean + std * nodes
        log_density = -0.5 * nodes**2 - math.log(std * math.sqrt(2 * math.pi)) - np.log(1 - np.tanh(u) ** 2)
        return -float((weights * log_density).sum() / weights.sum())

    step = 1e-5
    exact = [
        (entropy(0.4 + step, 0.6) - entropy(0.4 - step, 0.6)) / (2 * step),
        (entropy(0.4, 0.6 + step) - entropy(0.4, 0.6 - step)) / (2 * step),
    ]
    th.manual_seed(0)
    rows = [tensor([[number]]).repeat(N_DRAWS, 1).requires_grad_() for number in (0.4, 0.6)]
    distribution = gaussian(rows, squash=True)
    samples = distribution.rsample(1)
    through, stopped = (
        th.autograd.grad(-distribution.log_prob(drawn).sum(), rows, retain_graph=True) for drawn in (samples, samples.detach())
    )
    for gradient, constant, value in zip(through, stopped, exact, strict=True):
        error = float(gradient.std()) / math.sqrt(N_DRAWS)
        assert abs(float(gradient.mean()) - value) < 6 * error
        assert abs(value) > 100 * error
        assert abs(float(constant.mean())) < 6 * float(constant.std()) / math.sqrt(N_DRAWS)
