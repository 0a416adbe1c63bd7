"""Loss functions of the on-policy algorithms, to be minimised."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from torch.nn import functional as F


def policy_gradient_loss(log_prob: th.Tensor, weights: th.Tensor, scale: float) -> th.Tensor:
    """
    ``-scale * sum_t log pi(a_t | s_t) w_t``, whose gradient is the score-function estimate (Williams 1992).

    :param log_prob: ``[S]``, log-probability of each taken action, with gradient
    :param weights: ``[S]``, weight of the score of each step, without gradient
    :param scale: 1 / S for rollouts of fixed length, 1 / (number of episodes) for whole episodes, whose number of steps
        depends on the actions: dividing by it would bias the estimate
    :return: scalar
    """
    return -(log_prob * weights).sum() * scale


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor, scale: float) -> th.Tensor:
    """
    ``-scale * sum_t H(pi(. | s_t))``.

    :param entropy: ``[S]``, or ``None`` if it has no closed form: ``-log_prob`` is then its sample estimate
    :param log_prob: ``[S]``, log-probability of each taken action
    :param scale: the same as in the policy loss, so that the bonus keeps its weight relative to the rewards
    :return: scalar
    """
    return -(-log_prob if entropy is None else entropy).sum() * scale


def value_loss(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """
    Mean squared error of a critic.

    :param values: ``[S]``, values of the critic, with gradient
    :param returns: ``[S]``, targets, without gradient
    :return: scalar
    """
    return F.mse_loss(values, returns)


def approximate_kl(old_log_prob: npt.NDArray[np.floating[Any]], log_prob: npt.NDArray[np.floating[Any]]) -> float:
    """
    Non-negative estimate of KL(old || new) from samples of the old policy: the mean of ``(r - 1) - log r`` with
    ``r = pi_new / pi_old`` (Schulman 2020, "Approximating KL divergence", k3). For logging, so without gradient.

    :param old_log_prob: ``[S]``, log-probabilities under the old policy
    :param log_prob: ``[S]``, log-probabilities of the same actions under the new policy
    :return: the estimate
    """
    log_ratio = log_prob - old_log_prob
    return float((np.exp(log_ratio) - 1 - log_ratio).mean())
