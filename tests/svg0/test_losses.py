"""Losses of SVG(0), computed by hand."""

import pytest
import torch as th

from sb3_pg.svg0 import svg0 as losses


def leaf(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float64, requires_grad=True)


def gradient(loss: th.Tensor, parameter: th.Tensor) -> list[float]:
    assert loss.shape == ()
    (result,) = th.autograd.grad(loss, parameter)
    return [float(number) for number in result]


def test_pathwise_loss_by_hand() -> None:
    """Two draws in each of two states: the mean over the draws, weighted over the states."""
    q_values = leaf(1.0, 2.0, 3.0, 6.0)
    loss = losses.pathwise_loss(q_values.reshape(2, 2), th.tensor([0.25, 0.75], dtype=th.float64))
    assert loss.item() == pytest.approx(-(0.25 * 2.0 + 0.75 * 4.0))
    assert gradient(loss, q_values) == pytest.approx([-0.125, -0.375, -0.125, -0.375])


def test_likelihood_ratio_loss_by_hand() -> None:
    log_prob, q_values = leaf(-1.0, -2.0, -3.0, -4.0), leaf(1.0, 2.0, 3.0, 6.0)
    loss = losses.likelihood_ratio_loss(
        log_prob.reshape(2, 2), q_values.reshape(2, 2), th.tensor([0.25, 0.75], dtype=th.float64)
    )
    assert loss.item() == pytest.approx(0.25 * (1 + 9) / 2 + 0.75 * (4 + 24) / 2)
    assert gradient(loss, log_prob) == pytest.approx([-0.125, -0.75, -0.375, -2.25])


def test_likelihood_ratio_loss_does_not_differentiate_the_critic() -> None:
    parameter = leaf(2.0)
    loss = losses.likelihood_ratio_loss(parameter.reshape(1, 1), (3 * parameter).reshape(1, 1), th.ones(1))
    assert gradient(loss, parameter) == [-6.0]


def test_critic_loss_by_hand() -> None:
    """Two critics and two steps, the second of which has zero weight."""
    q_values = leaf(1.0, 5.0, 4.0, -5.0)
    loss = losses.critic_loss(q_values.reshape(2, 2), th.tensor([3.0, 0.0]), th.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(0.5 * (4 + 1))
    assert gradient(loss, q_values) == pytest.approx([-2.0, 0.0, 1.0, 0.0])


def test_temperature_loss_by_hand() -> None:
    """The entropies are 1 and 3, the target is 4: too low by 2 on (weighted) average, so the coefficient must increase."""
    log_ent_coef, log_prob = leaf(0.5), leaf(-1.0, -3.0)
    loss = losses.temperature_loss(log_ent_coef, log_prob[None], 4.0, th.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx(-0.5 * 2)
    assert gradient(loss, log_ent_coef) == pytest.approx([-2.0])
