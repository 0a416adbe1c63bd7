"""Losses: free functions of tensors. Each is the negative of what is maximised."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from torch.nn import functional as F


def policy_gradient_loss(log_prob: th.Tensor, weights: th.Tensor, scale: float) -> th.Tensor:
    """
    ``-scale * sum_t log pi(a_t | s_t) w_t``, whose gradient is the score-function estimate (Williams 1992).

    :param log_prob: ``[S]``, log-probability of each taken action, with gradient
    :param weights: ``[S]``, what multiplies the score of each step; constants
    :param scale: 1 / (number of episodes) for whole episodes. Not 1 / (number of steps): that number is random and depends on
        the actions, which would bias the estimate. 1 / S for rollouts of fixed length.
    :return: scalar
    """
    return -(log_prob * weights).sum() * scale


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor, scale: float) -> th.Tensor:
    """
    ``-scale * sum_t H(pi(. | s_t))``.

    :param entropy: ``[S]``, or ``None`` where it has no closed form: ``-log_prob`` is then its sample estimate
    :param log_prob: ``[S]``
    :param scale: the same as in the policy loss, so that the bonus keeps its weight relative to the rewards
    :return: scalar
    """
    return -(-log_prob if entropy is None else entropy).sum() * scale


def value_loss(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """
    Mean squared error of a critic.

    :param values: ``[S]``, with gradient
    :param returns: ``[S]``, targets; constants
    :return: scalar
    """
    return F.mse_loss(values, returns)


def approximate_kl(old_log_prob: npt.NDArray[np.floating[Any]], log_prob: npt.NDArray[np.floating[Any]]) -> float:
    """
    Estimate of KL(old || new) from samples of the old policy, without negative terms: the mean of ``(r - 1) - log r`` with
    ``r = pi_new / pi_old`` (Schulman 2020, "Approximating KL divergence", k3). For the log, so without gradient.

    :param old_log_prob: ``[S]``
    :param log_prob: ``[S]``, of the same actions
    :return: the estimate
    """
    log_ratio = log_prob - old_log_prob
    return float((np.exp(log_ratio) - 1 - log_ratio).mean())


def pathwise_loss(q_values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``-sum_s w_s mean_z Q(s, a(s, z))``, whose gradient through the actions is the value gradient of a reparametrised policy
    (Heess et al. 2015, eq. 9 with the critic in place of the return; Silver et al. 2014 where the policy has no noise).

    :param q_values: ``[K, S]``, values of K actions in each state, with gradient through the actions
    :param weights: ``[S]``, weight of each state; ``1 / S`` makes it a mean
    :return: scalar
    """
    return -(q_values.mean(dim=0) * weights).sum()


def likelihood_ratio_loss(log_prob: th.Tensor, q_values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``-sum_s w_s mean_a log pi(a | s) Q(s, a)``, whose gradient estimates the same as that of :func:`pathwise_loss` without
    the derivative of Q (the score function; Degris et al. 2012).

    :param log_prob: ``[K, S]``, of K actions in each state, drawn from the policy and constant; with gradient
    :param q_values: ``[K, S]``, constants
    :param weights: ``[S]``, weight of each state
    :return: scalar
    """
    return -((log_prob * q_values.detach()).mean(dim=0) * weights).sum()


def critic_loss(q_values: th.Tensor, targets: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``1/2 sum_i sum_s w_s (Q_i(s, a) - target_s)^2``.

    :param q_values: ``[C, S]``, of each critic, with gradient
    :param targets: ``[S]``, constants
    :param weights: ``[S]``, weight of each step; ``1 / S`` makes it a mean
    :return: scalar
    """
    return 0.5 * ((q_values - targets).square() * weights).sum()


def temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float, weights: th.Tensor) -> th.Tensor:
    """
    ``-log(alpha) (sum_s w_s mean_a log pi(a | s) + target)``: raises the weight of the entropy bonus while the entropy is
    below its target (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", eq. 18).

    :param log_ent_coef: logarithm of alpha, ``[1]``, with gradient
    :param log_prob: ``[K, S]``, of actions drawn from the policy
    :param target_entropy: in nats
    :param weights: ``[S]``, weight of each state, summing to 1
    :return: scalar
    """
    return -(log_ent_coef * ((log_prob.detach().mean(dim=0) + target_entropy) * weights).sum()).sum()


def td_target(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_values: th.Tensor,
    bounds: tuple[float, float] | None = None,
) -> th.Tensor:
    """
    ``r + gamma^m V'``, clipped for a critic that is known to have bounded values (Andrychowicz et al. 2017,
    appendix A).

    :param rewards: ``[B, ...]``, sums of m discounted rewards
    :param discounts: the same shape, ``gamma^m``, or 0 where the episode terminated within these steps
    :param next_values: the same shape, target network's value m steps later
    :param bounds: least and greatest value; ``None``: no clipping
    :return: the same shape
    """
    target = th.addcmul(rewards, discounts, next_values)
    return target if bounds is None else target.clamp(*bounds)


def deterministic_policy_loss(q_values: th.Tensor, actions: th.Tensor, action_l2: float) -> th.Tensor:
    """
    ``-mean Q(s, pi(s)) + action_l2 mean |pi(s)|^2``: the deterministic policy gradient (Silver et al. 2014) with a penalty
    that keeps the tanh of the actor out of saturation.

    :param q_values: ``[B, 1]``, with gradient through the actions
    :param actions: ``[B, A]``, the policy's, scaled to [-1, 1]
    :param action_l2: weight of the penalty, which is a mean over the dimensions of the action too
    :return: scalar
    """
    return -q_values.mean() + action_l2 * actions.square().mean()
