"""Losses: values computed by hand, gradients, and exact values on a finite distribution."""

import math

import pytest
import torch as th

from sb3_pg.common import losses


def leaf(*numbers: float) -> th.Tensor:
    return th.tensor(numbers, dtype=th.float64, requires_grad=True)


def gradient(loss: th.Tensor, of: th.Tensor) -> list[float]:
    assert loss.shape == ()
    (result,) = th.autograd.grad(loss, of)
    return [float(number) for number in result]


def test_policy_gradient_loss_by_hand() -> None:
    log_prob = leaf(-0.5, -2.0, -1.0)
    loss = losses.policy_gradient_loss(log_prob, th.tensor([2.0, -1.0, 4.0]), scale=0.5)
    assert loss.item() == pytest.approx(-0.5 * (-1.0 + 2.0 - 4.0))
    assert gradient(loss, log_prob) == pytest.approx([-1.0, 0.5, -2.0])


def test_policy_gradient_loss_of_a_softmax_is_the_gradient_of_the_expectation() -> None:
    """Every action weighted by its probability: the sum of p(a) grad log p(a) w(a) is the gradient of sum p(a) w(a)."""
    logits, rewards = leaf(0.3, -1.0, 0.8), th.tensor([1.0, -2.0, 0.5], dtype=th.float64)
    probs = th.softmax(logits, 0)
    estimate = gradient(losses.policy_gradient_loss(th.log_softmax(logits, 0), probs.detach() * rewards, 1.0), logits)
    exact = gradient((probs * rewards).sum(), logits)
    assert [-number for number in estimate] == pytest.approx(exact)


def test_entropy_loss_by_hand() -> None:
    entropy, log_prob = leaf(0.7, 0.1), leaf(-3.0, -5.0)
    loss = losses.entropy_loss(entropy, log_prob, scale=0.25)
    assert loss.item() == pytest.approx(-0.2)
    assert gradient(loss, entropy) == pytest.approx([-0.25, -0.25])


def test_entropy_loss_without_closed_form_estimates_it_by_minus_log_prob() -> None:
    log_prob = leaf(-3.0, -5.0)
    loss = losses.entropy_loss(None, log_prob, scale=0.25)
    assert loss.item() == pytest.approx(-2.0)
    assert gradient(loss, log_prob) == pytest.approx([0.25, 0.25])


def test_value_loss_by_hand() -> None:
    values, returns = leaf(1.0, 2.0), th.tensor([3.0, 1.0], dtype=th.float64)
    loss = losses.value_loss(values, returns)
    assert loss.item() == pytest.approx((4 + 1) / 2)
    assert gradient(loss, values) == pytest.approx([-2.0, 1.0])


def test_approximate_kl_by_hand() -> None:
    old, new = th.tensor([math.log(0.5), math.log(0.2)]), th.tensor([math.log(0.25), math.log(0.4)])
    expected = ((0.5 - 1 - math.log(0.5)) + (2 - 1 - math.log(2))) / 2
    assert losses.approximate_kl(old.numpy(), new.numpy()) == pytest.approx(expected)


def test_approximate_kl_is_zero_for_equal_policies_and_positive_sample_by_sample() -> None:
    old = th.log_softmax(th.tensor([0.1, 2.0, -1.0], dtype=th.float64), 0)
    assert losses.approximate_kl(old.numpy(), old.numpy()) == 0
    for shift in (-1.0, -1e-3, 1e-3, 1.0):
        assert losses.approximate_kl(old[:1].numpy(), old[:1].numpy() + shift) > 0


def test_approximate_kl_estimates_the_divergence_of_old_from_new() -> None:
    """Actions in the proportions in which the old policy takes them (1/2, 1/4, 1/4) give the exact divergence."""
    old, new = th.tensor([0.5, 0.25, 0.25], dtype=th.float64), th.tensor([0.2, 0.5, 0.3], dtype=th.float64)
    actions = th.tensor([0, 0, 1, 2])
    exact = (old * (old / new).log()).sum().item()
    assert losses.approximate_kl(old.log()[actions].numpy(), new.log()[actions].numpy()) == pytest.approx(exact)
