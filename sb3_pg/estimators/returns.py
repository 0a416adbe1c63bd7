"""Returns and advantages of stored trajectories: pure numpy, no torch, no Stable-Baselines3.

Conventions, the same in every function:

- arrays are time-major, shape ``[T, N]``: ``T`` steps of ``N`` environments;
- ``rewards[t]`` is the reward of step ``t``, as returned by the environment;
- ``next_values[t]`` is ``V(s_{t+1})``, where ``s_{t+1}`` is the *final observation* if the episode ends at ``t``.
  It is not read where ``terminated[t]``;
- ``terminated[t]``: the MDP ended at ``t``, so there is no bootstrap;
- ``truncated[t]``: the episode was cut at ``t`` (time limit): bootstrap, but the sum stops. ``terminated`` takes precedence;
- after the last row every trajectory is cut and bootstraps with ``next_values[T - 1]``.

Floating point arrays must share one dtype, which is also the dtype of the result. A wrong rank, shape, dtype or range
raises ``ValueError``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


def lambda_returns(
    rewards: FloatArray,
    next_values: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    gamma: float,
    lambda_: float,
) -> FloatArray:
    r"""
    The lambda-return (Sutton & Barto 2018, eq. 12.2, in its recursive form):

    ``G_t = r_t + g_t [(1 - l_t) v_{t+1} + l_t G_{t+1}]``,
    ``g_t = gamma (1 - terminated_t)``, ``l_t = lambda (1 - done_t)``.

    ``lambda_ = 0`` gives the one-step target, ``lambda_ = 1`` the bootstrapped reward-to-go.

    :param rewards: ``[T, N]``
    :param next_values: ``[T, N]``, ``V(s_{t+1})``
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :param lambda_: in [0, 1]
    :return: ``[T, N]``
    :raises ValueError: wrong rank, shape, dtype or range
    """
    _check_arrays(dict(rewards=rewards, next_values=next_values), dict(terminated=terminated, truncated=truncated))
    _check_unit_interval(gamma=gamma, lambda_=lambda_)
    ones = np.ones_like(rewards)
    discounts, mixing = _discounts(rewards, terminated, gamma), np.where(terminated | truncated, 0, lambda_ * ones)
    bootstrap = np.where(terminated, 0, next_values)
    # After the last row the trajectory is cut: G_T = v_T, regardless of lambda.
    mixing[-1] = 0
    return _solve_backwards(rewards + discounts * (1 - mixing) * bootstrap, discounts * mixing)


def gae(
    rewards: FloatArray,
    values: FloatArray,
    next_values: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    gamma: float,
    lambda_: float,
) -> FloatArray:
    """
    Generalised advantage estimation (Schulman et al. 2016, eq. 16): ``A_t = sum_l (gamma lambda)^l delta_{t+l}`` with
    ``delta_t = r_t + g_t v_{t+1} - v_t``. It equals the lambda-return minus ``v_t``.

    :param rewards: ``[T, N]``
    :param values: ``[T, N]``, ``V(s_t)``
    :param next_values: ``[T, N]``, ``V(s_{t+1})``
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :param lambda_: in [0, 1]
    :return: ``[T, N]``
    :raises ValueError: wrong rank, shape, dtype or range
    """
    _check_arrays(dict(rewards=rewards, values=values), {})
    return lambda_returns(rewards, next_values, terminated, truncated, gamma, lambda_) - values


def n_step_returns(
    rewards: FloatArray,
    next_values: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    gamma: float,
    n: int,
) -> FloatArray:
    """
    The sliding n-step return (Sutton & Barto 2018, eq. 7.1): ``sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n})``.
    The look-ahead is shorter only where the episode ends or the array is cut earlier.

    :param rewards: ``[T, N]``
    :param next_values: ``[T, N]``, ``V(s_{t+1})``
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :param n: number of rewards to look ahead, at least 1
    :return: ``[T, N]``
    :raises ValueError: wrong rank, shape, dtype or range
    """
    _check_arrays(dict(rewards=rewards, next_values=next_values), dict(terminated=terminated, truncated=truncated))
    _check_unit_interval(gamma=gamma)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")
    discounts = _discounts(rewards, terminated, gamma)
    bootstrap = np.where(terminated, 0, next_values)
    stops = (terminated | truncated)[:-1]
    returns = rewards + discounts * bootstrap
    # G^(k)_t = r_t + g_t G^(k-1)_{t+1}: one pass over the whole array for each additional reward.
    for _ in range(min(int(n), len(rewards)) - 1):
        returns[:-1] = rewards[:-1] + discounts[:-1] * np.where(stops, bootstrap[:-1], returns[1:])
    return returns


def reward_to_go(
    rewards: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    gamma: float,
    next_values: FloatArray | None = None,
) -> FloatArray:
    """
    The discounted sum of the rewards from step ``t`` to the end of its episode, ``sum_{t'>=t} gamma^(t'-t) r_t'``.

    :param rewards: ``[T, N]``
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :param next_values: ``[T, N]``, ``V(s_{t+1})``, the bootstrap of truncated episodes and of the cut after the last row;
        ``None``: no bootstrap, the time limit is part of the task
    :return: ``[T, N]``
    :raises ValueError: wrong rank, shape, dtype or range
    """
    if next_values is None:
        next_values = np.zeros_like(rewards)
    return lambda_returns(rewards, next_values, terminated, truncated, gamma, 1.0)


def total_returns(rewards: FloatArray, terminated: BoolArray, truncated: BoolArray, gamma: float) -> FloatArray:
    """
    The return ``R(tau) = sum_t gamma^t r_t`` of the episode that the step belongs to, where ``t`` counts from its
    first step. Row 0 counts as the start of an episode and the last row as the end of one.

    :param rewards: ``[T, N]``
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :return: ``[T, N]``, constant within an episode
    :raises ValueError: wrong rank, shape, dtype or range
    """
    from_here = reward_to_go(rewards, terminated, truncated, gamma)
    return np.take_along_axis(from_here, episode_start_rows(terminated | truncated), axis=0)


def retrace_returns(
    rewards: FloatArray,
    q_values: FloatArray,
    next_state_values: FloatArray,
    importance_ratios: FloatArray,
    terminated: BoolArray,
    truncated: BoolArray,
    gamma: float,
    lambda_: float,
) -> FloatArray:
    """
    Retrace(lambda) targets (Munos et al. 2016, eq. 3 and 4, as a recursion):

    ``G_t = r_t + g_t [V'_t + c_{t+1} (1 - done_t) (G_{t+1} - Q_{t+1})]``,
    ``g_t = gamma (1 - terminated_t)``, ``c_t = lambda min(1, rho_t)``.

    Row ``t`` of ``q_values`` and ``importance_ratios`` belongs to ``(s_t, a_t)``, so row 0 is not read; the last row
    bootstraps with ``V'``.

    :param rewards: ``[T, N]``
    :param q_values: ``[T, N]``, ``Q(s_t, a_t)``
    :param next_state_values: ``[T, N]``, ``V'_t``, an estimate of the value of ``s_{t+1}`` under the target policy
    :param importance_ratios: ``[T, N]``, ``rho_t = pi(a_t | s_t) / mu(a_t | s_t)``, non-negative
    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :param gamma: discount factor in [0, 1]
    :param lambda_: in [0, 1]
    :return: ``[T, N]``
    :raises ValueError: wrong rank, shape, dtype or range
    """
    floats = dict(rewards=rewards, q_values=q_values, next_state_values=next_state_values, importance_ratios=importance_ratios)
    _check_arrays(floats, dict(terminated=terminated, truncated=truncated))
    _check_unit_interval(gamma=gamma, lambda_=lambda_)
    if np.any(importance_ratios[1:] < 0):
        raise ValueError("importance_ratios must not be negative")
    discounts = _discounts(rewards, terminated, gamma)
    bootstrap = np.where(terminated, 0, next_state_values)
    traces = np.zeros_like(rewards)  # row t holds c_{t+1} (1 - done_t)
    traces[:-1] = np.where((terminated | truncated)[:-1], 0, lambda_ * np.minimum(importance_ratios[1:], 1))
    next_q = np.zeros_like(rewards)
    next_q[:-1] = q_values[1:]
    return _solve_backwards(rewards + discounts * (bootstrap - traces * next_q), discounts * traces)


def episode_start_rows(done: BoolArray) -> npt.NDArray[np.intp]:
    """
    Row in which the episode of each step begins. Row 0 counts as the start of an episode.

    :param done: ``[T, N]``, bool, the episode ended at this step
    :return: ``[T, N]``
    """
    starts = np.zeros(done.shape, dtype=np.intp)
    starts[1:] = np.where(done[:-1], np.arange(1, len(done), dtype=np.intp)[:, None], 0)
    return np.maximum.accumulate(starts, axis=0)


def _solve_backwards(offsets: FloatArray, factors: FloatArray) -> FloatArray:
    """
    Solve ``x_t = offsets_t + factors_t x_{t+1}``, ``x_T = 0``, in place: both arguments are overwritten.

    Affine maps compose, so the recursion is a scan: after the pass with shift ``k``, row ``t`` holds the composition of the
    rows ``t .. t + 2k - 1``. This takes log2(T) passes of whole-array arithmetic instead of a loop over T rows.
    """
    x, f = offsets, factors
    shift = 1
    while shift < len(x):
        x[:-shift] += f[:-shift] * x[shift:]
        f[:-shift] *= f[shift:]
        shift *= 2
    return x


def _discounts(rewards: FloatArray, terminated: BoolArray, gamma: float) -> FloatArray:
    """``g_t = gamma (1 - terminated_t)``, in the dtype of the rewards."""
    return np.where(terminated, 0, gamma * np.ones_like(rewards))


def _check_arrays(floats: dict[str, FloatArray], bools: dict[str, BoolArray]) -> None:
    """Check that all arrays are ``[T, N]`` with T, N >= 1 and one shape, values floating point of one dtype and flags bool."""
    reference = floats["rewards"]
    for name, array in {**floats, **bools}.items():
        if not isinstance(array, np.ndarray) or array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name} must be a non-empty array of shape [T, N], got {_describe(array)}")
        if array.shape != reference.shape:
            raise ValueError(f"{name} must have the shape of rewards {reference.shape}, got {array.shape}")
    for name, array in floats.items():
        if array.dtype.kind != "f" or array.dtype != reference.dtype:
            raise ValueError(
                f"{name} must be floating point, with the dtype of rewards ({reference.dtype}), got {array.dtype}"
            )
    for name, flags in bools.items():
        if flags.dtype != np.bool_:
            raise ValueError(f"{name} must be of dtype bool, got {flags.dtype}")


def _check_unit_interval(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")


def _describe(array: Any) -> str:
    return f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
