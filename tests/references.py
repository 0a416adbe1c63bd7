"""Slow references for the estimators: double loops over the defining sums, in Python floats.

None of them is a recursion: the tested code solves recursions, and a reference of the same form could share its mistakes.
Arrays are ``[T, N]``; every result is float64. The arguments are those of the tested functions.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def lambda_returns(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, gamma: float, lambda_: float
) -> Array:
    """``(1 - lambda) sum_{k<m} lambda^(k-1) G^(k) + lambda^(m-1) G^(m)``, m steps to the end (Sutton & Barto, eq. 12.3)."""
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        m = _last_row(terminated, truncated, t, i) - t + 1
        k_step = [_k_step_return(rewards, next_values, terminated, gamma, t, i, k) for k in range(1, m + 1)]
        inner = sum(lambda_ ** (k - 1) * k_step[k - 1] for k in range(1, m))
        result[t, i] = (1 - lambda_) * inner + lambda_ ** (m - 1) * k_step[m - 1]
    return result


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lambda_: float,
) -> Array:
    """``sum_l (gamma lambda)^l delta_{t+l}``; assumes ``values[t + 1] == next_values[t]`` within an episode."""
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        result[t, i] = sum(
            (gamma * lambda_) ** (u - t)
            * (float(rewards[u, i]) + gamma * _bootstrap(next_values, terminated, u, i) - float(values[u, i]))
            for u in range(t, _last_row(terminated, truncated, t, i) + 1)
        )
    return result


def n_step_returns(rewards: Array, next_values: Array, terminated: Array, truncated: Array, gamma: float, n: int) -> Array:
    """``G^(min(n, m))``, m steps to the end."""
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        m = _last_row(terminated, truncated, t, i) - t + 1
        result[t, i] = _k_step_return(rewards, next_values, terminated, gamma, t, i, min(n, m))
    return result


def reward_to_go(rewards: Array, terminated: Array, truncated: Array, gamma: float, next_values: Array | None = None) -> Array:
    """The discounted rewards up to the end, plus the bootstrap there if values are given."""
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        last = _last_row(terminated, truncated, t, i)
        result[t, i] = sum(gamma ** (u - t) * float(rewards[u, i]) for u in range(t, last + 1))
        if next_values is not None:
            result[t, i] += gamma ** (last + 1 - t) * _bootstrap(next_values, terminated, last, i)
    return result


def total_returns(rewards: Array, terminated: Array, truncated: Array, gamma: float) -> Array:
    """The discounted rewards of the whole episode around step t, discounted from its first step."""
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        first, last = _first_row(terminated, truncated, t, i), _last_row(terminated, truncated, t, i)
        result[t, i] = sum(gamma ** (u - first) * float(rewards[u, i]) for u in range(first, last + 1))
    return result


def retrace_returns(
    rewards: Array,
    q_values: Array,
    next_state_values: Array,
    importance_ratios: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lambda_: float,
) -> Array:
    """
    ``Q_t + sum_{u>=t} gamma^(u-t) c_{t+1} ... c_u (r_u + gamma V'_u - Q_u)`` (Munos et al. 2016, eq. 3); in the term
    ``u = t`` the two ``Q_t`` cancel, so it is left out of both.
    """
    result = np.empty(rewards.shape)
    for t, i in np.ndindex(rewards.shape):
        result[t, i] = 0.0
        for u in range(t, _last_row(terminated, truncated, t, i) + 1):
            trace = math.prod(lambda_ * min(1.0, float(importance_ratios[w, i])) for w in range(t + 1, u + 1))
            target = float(rewards[u, i]) + gamma * _bootstrap(next_state_values, terminated, u, i)
            result[t, i] += gamma ** (u - t) * trace * (target - (float(q_values[u, i]) if u > t else 0.0))
    return result


def episode_start_rows(done: Array) -> Array:
    """The first row of the episode of step t."""
    result = np.empty(done.shape, dtype=int)
    for t, i in np.ndindex(done.shape):
        result[t, i] = _first_row(done, done, t, i)
    return result


def episode_ids(terminated: Array, truncated: Array) -> Array:
    """Number the episodes of one environment after the other; each done and each environment starts a new number."""
    result = np.empty(terminated.shape, dtype=int)
    number = -1
    for i in range(terminated.shape[1]):
        for t in range(terminated.shape[0]):
            if t == 0 or terminated[t - 1, i] or truncated[t - 1, i]:
                number += 1
            result[t, i] = number
    return result


def leave_one_out_mean(weights: Array, episodes: Array) -> Array:
    """Mean over the steps of other episodes, for each step."""
    result = np.empty(len(weights))
    for step, own in enumerate(episodes):
        others = [float(weight) for weight, episode in zip(weights, episodes, strict=True) if episode != own]
        result[step] = math.fsum(others) / len(others)
    return result


def optimal_baseline(estimates: Array, scores: Array) -> Array:
    """``sum_{j != k} x_j g_j / sum_{j != k} g_j^2``, and 0 where all those g are 0."""
    result = np.empty(estimates.shape)
    for k, p in np.ndindex(estimates.shape):
        others = [(float(estimates[j, p]), float(scores[j, p])) for j in range(len(estimates)) if j != k]
        denominator = math.fsum(g * g for _, g in others)
        result[k, p] = math.fsum(x * g for x, g in others) / denominator if denominator else 0.0
    return result


def _k_step_return(rewards: Array, next_values: Array, terminated: Array, gamma: float, t: int, i: int, k: int) -> float:
    """``G^(k)_t``: k rewards, which must not exceed the end of the episode, and the value after them."""
    discounted = sum(gamma**u * float(rewards[t + u, i]) for u in range(k))
    return discounted + gamma**k * _bootstrap(next_values, terminated, t + k - 1, i)


def _bootstrap(next_values: Array, terminated: Array, t: int, i: int) -> float:
    return 0.0 if terminated[t, i] else float(next_values[t, i])


def _last_row(terminated: Array, truncated: Array, t: int, i: int) -> int:
    """The last row of the episode around step t, or of the array."""
    while t < len(terminated) - 1 and not (terminated[t, i] or truncated[t, i]):
        t += 1
    return t


def _first_row(terminated: Array, truncated: Array, t: int, i: int) -> int:
    """The first row of the episode around step t, or of the array."""
    while t > 0 and not (terminated[t - 1, i] or truncated[t - 1, i]):
        t -= 1
    return t
