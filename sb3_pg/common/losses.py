"""Losses: pure torch, free functions of tensors. Each is the negative of what is maximised."""

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


def approximate_kl(old_log_prob: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    """
    Estimate of KL(old || new) from samples of the old policy, without negative terms: the mean of ``(r - 1) - log r`` with
    ``r = pi_new / pi_old`` (Schulman 2020, "Approximating KL divergence", k3).

    :param old_log_prob: ``[S]``
    :param log_prob: ``[S]``, of the same actions
    :return: scalar
    """
    log_ratio = log_prob - old_log_prob
    return (th.exp(log_ratio) - 1 - log_ratio).mean()


def bounded_td_target(
    rewards: th.Tensor,
    discounts: th.Tensor,
    terminated: th.Tensor,
    next_values: th.Tensor,
    bounds: tuple[float, float] | None,
) -> th.Tensor:
    """
    ``clip(r + gamma^m (1 - terminated) V', bounds)``, the target of a critic that is known to have bounded values
    (Andrychowicz et al. 2017, appendix A).

    :param rewards: ``[B, 1]``, sums of m discounted rewards
    :param discounts: ``[B, 1]``, ``gamma^m``
    :param terminated: ``[B, 1]``, 1 where the episode terminated within these steps
    :param next_values: ``[B, 1]``, target network's value m steps later
    :param bounds: least and greatest value; ``None``: no clipping
    :return: ``[B, 1]``
    """
    target = rewards + discounts * (1 - terminated) * next_values
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
