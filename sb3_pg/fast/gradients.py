"""
Hand-derived gradients of the losses in :mod:`sb3_pg.common.losses` with respect to the outputs of the networks: pure numpy.

Shapes: logits, means and actions of a Gaussian ``[S, A]``; actions of a categorical, weights, values and returns ``[S]``;
``log_std`` ``[A]``. ``scale`` and ``ent_coef`` have the same meaning as there.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

LOG_TWO_PI = math.log(2 * math.pi)


class PolicyGradient(NamedTuple):
    """
    Losses of a policy and their derivatives.

    :param log_prob: ``[S]``, log-probability of each action
    :param policy_loss: ``-scale * sum_t log pi(a_t | s_t) w_t``
    :param entropy_loss: ``-scale * sum_t H(pi(. | s_t))``
    :param outputs: ``[S, A]``, derivative of ``policy_loss + ent_coef * entropy_loss`` with respect to logits or means
    :param log_std: ``[A]``, derivative with respect to ``log_std``; ``None`` for a categorical
    """

    log_prob: FloatArray
    policy_loss: float
    entropy_loss: float
    outputs: FloatArray
    log_std: FloatArray | None


def categorical_log_prob(logits: FloatArray, actions: IntArray) -> FloatArray:
    """:return: log-probability of each action, ``[S]``"""
    log_prob: FloatArray = _log_softmax(logits)[np.arange(len(actions)), actions]
    return log_prob


def gaussian_log_prob(means: FloatArray, log_std: FloatArray, actions: FloatArray) -> FloatArray:
    """:return: log-density of each action, ``[S]``"""
    z = (actions - means) * np.exp(-log_std)
    log_prob: FloatArray = -0.5 * (z * z).sum(axis=1) - (log_std.sum() + 0.5 * LOG_TWO_PI * len(log_std))
    return log_prob


def categorical_policy_gradient(
    logits: FloatArray, actions: IntArray, weights: FloatArray, scale: float, ent_coef: float
) -> PolicyGradient:
    """``d log p_a / d logits = onehot(a) - p`` and ``d H / d logits = -p (log p + H)``."""
    log_p = _log_softmax(logits)
    p = np.exp(log_p)
    entropy = -(p * log_p).sum(axis=1, keepdims=True)
    rows = np.arange(len(actions))
    log_prob, weighted = log_p[rows, actions], scale * weights
    outputs = p * weighted[:, None]
    outputs[rows, actions] -= weighted
    if ent_coef != 0:
        outputs += (ent_coef * scale) * p * (log_p + entropy)
    return PolicyGradient(log_prob, -float(log_prob @ weighted), -scale * float(entropy.sum()), outputs, None)


def gaussian_policy_gradient(
    means: FloatArray, log_std: FloatArray, actions: FloatArray, weights: FloatArray, scale: float, ent_coef: float
) -> PolicyGradient:
    """With ``z = (a - mean) / std``: ``d log pi / d mean = z / std, d log pi / d log_std = z^2 - 1, d H / d log_std = 1``."""
    log_prob, weighted = gaussian_log_prob(means, log_std, actions), scale * weights
    inverse_std = np.exp(-log_std)
    z = (actions - means) * inverse_std
    total_scale = scale * len(actions)
    entropy_loss = -total_scale * (float(log_std.sum()) + 0.5 * (1 + LOG_TWO_PI) * len(log_std))
    grad_log_std = weighted.sum() - weighted @ (z * z) - ent_coef * total_scale
    outputs = z * inverse_std * -weighted[:, None]
    return PolicyGradient(log_prob, -float(log_prob @ weighted), entropy_loss, outputs, grad_log_std)


def value_gradient(values: FloatArray, returns: FloatArray) -> tuple[float, FloatArray]:
    """:return: mean squared error, and its derivative with respect to the values, ``[S]``"""
    errors = values - returns
    return float(errors @ errors) / len(errors), (2 / len(errors)) * errors


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted: FloatArray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
