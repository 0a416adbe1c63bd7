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
