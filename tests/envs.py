"""Tiny environments with known solutions: finite MDPs, a quadratic bandit, and one task for every kind of space."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

__all__ = [
    "ACTION_SPACES",
    "OBSERVATION_SPACES",
    "MatchEnv",
    "QuadraticEnv",
    "TabularEnv",
    "TabularMDP",
    "TabularVecEnv",
    "bandit",
    "cancelling_rewards",
    "chain",
    "endless",
    "layered_mdp",
    "quota_trap",
    "random_mdp",
    "steering",
]


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """
    A finite Markov decision process with S states and A actions.

    :param initial: ``[S]`` probability of each first state, zero where ``terminal``
    :param transition: ``[S, A, S]`` probability of the next state (rows of terminal states are never used)
    :param rewards: ``[S, A, S]`` reward of a transition, or ``[S, A]`` where it does not depend on the next state
    :param terminal: ``[S]`` True where entering the state ends the episode (terminated)
    :param horizon: number of steps after which an episode is truncated, None if there is no time limit
    :raises ValueError: if a shape is wrong or probabilities do not sum to one
    """

    initial: np.ndarray
    transition: np.ndarray
    rewards: np.ndarray
    terminal: np.ndarray
    horizon: int | None = None

    def __post_init__(self) -> None:
        n_states, n_actions, _ = shape = self.transition.shape
        if self.initial.shape != (n_states,) or self.terminal.shape != (n_states,) or shape[2] != n_states:
            raise ValueError("initial and terminal must be [S], transition [S, A, S]")
        if self.rewards.shape == (n_states, n_actions):
            object.__setattr__(self, "rewards", np.repeat(self.rewards[:, :, None], n_states, axis=2))
        if self.rewards.shape != shape:
            raise ValueError("rewards must be [S, A, S] or [S, A]")
        alive = ~self.terminal
        if not (np.isclose(self.initial[alive].sum(), 1) and np.allclose(self.transition[alive].sum(axis=2), 1)):
            raise ValueError("initial (outside terminal states) and the rows of transition must sum to one")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError("horizon must be None or at least 1")

    @property
    def n_states(self) -> int:
        """Number of states S, terminal ones included."""
        return int(self.transition.shape[0])

    @property
    def n_actions(self) -> int:
        """Number of actions A."""
        return int(self.transition.shape[1])


def _inverse_cdf(probabilities: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis; rounding up to 1 keeps uniform numbers in [0, 1) below the last entry."""
    cumulative = np.cumsum(probabilities, axis=-1)
    cumulative[cumulative >= cumulative[..., -1:] - 1e-12] = 1.0
    return cumulative


class TabularEnv(gym.Env[np.int64, np.int64]):
    """
    Gymnasium environment of a :class:`TabularMDP`: the observation is the state's number.

    :param mdp: the process to run
    """

    def __init__(self, mdp: TabularMDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.n_states)
        self.action_space = spaces.Discrete(mdp.n_actions)
        self._initial_cdf = _inverse_cdf(mdp.initial)
        self._transition_cdf = _inverse_cdf(mdp.transition)
        self._state = np.int64(0)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._state = np.int64(np.sum(self.np_random.random() >= self._initial_cdf))
        self._t = 0
        return self._state, {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        next_state = np.int64(np.sum(self.np_random.random() >= self._transition_cdf[self._state, action]))
        reward = float(self.mdp.rewards[self._state, action, next_state])
        self._state, self._t = next_state, self._t + 1
        terminated = bool(self.mdp.terminal[next_state])
        truncated = self._t == self.mdp.horizon and not terminated
        return next_state, reward, terminated, truncated, {}


class TabularVecEnv(VecEnv):
    """
    Many copies of a :class:`TabularMDP` stepped at once, with the conventions of SB3's ``DummyVecEnv`` of monitored
    environments: reset as soon as done, ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` in the infos.

    :param mdp: the process to run
    :param n_envs: number of copies N
    :param seed: seed of the first reset
    """

    def __init__(self, mdp: TabularMDP, n_envs: int, seed: int | None = None) -> None:
        self.mdp = mdp
        super().__init__(n_envs, spaces.Discrete(mdp.n_states), spaces.Discrete(mdp.n_actions))
        self._initial_cdf = _inverse_cdf(mdp.initial)
        self._transition_cdf = _inverse_cdf(mdp.transition)
        self._horizon = mdp.horizon or 0  # a step count is never 0, so 0 stands for no limit
        self._rng = np.random.default_rng()
        self._actions = np.zeros(n_envs, dtype=np.int64)
        self._states = np.zeros(n_envs, dtype=np.int64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._returns = np.zeros(n_envs)
        self._start_time = time.time()
        if seed is not None:
            self.seed(seed)

    def _draw_initial(self, n: int) -> np.ndarray:
        return np.asarray(np.sum(self._rng.random((n, 1)) >= self._initial_cdf, axis=1))

    def reset(self) -> np.ndarray:
        if self._seeds[0] is not None:
            self._rng = np.random.default_rng(self._seeds[0])
        self._states = self._draw_initial(self.num_envs)
        self._lengths[:] = 0
        self._returns[:] = 0.0
        self._reset_seeds()
        self._reset_options()
        return self._states.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        cdf = self._transition_cdf[self._states, self._actions]
        next_states = np.sum(self._rng.random((self.num_envs, 1)) >= cdf, axis=1)
        rewards = self.mdp.rewards[self._states, self._actions, next_states]
        self._lengths += 1
        self._returns += rewards
        terminated = self.mdp.terminal[next_states]
        truncated = ~terminated & (self._lengths == self._horizon)
        dones = terminated | truncated
        self._states = next_states
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": cut} for cut in truncated.tolist()]
        if dones.any():
            self._finish(np.flatnonzero(dones), infos)
        return self._states.copy(), rewards.astype(np.float32), dones, infos

    def _finish(self, done: np.ndarray, infos: list[dict[str, Any]]) -> None:
        elapsed = round(time.time() - self._start_time, 6)
        for i in done.tolist():
            infos[i]["terminal_observation"] = self._states[i]
            infos[i]["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": elapsed}
        self._states = self._states.copy()
        self._states[done] = self._draw_initial(len(done))
        self._lengths[done] = 0
        self._returns[done] = 0.0

    def close(self) -> None:
        pass

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the copies share all their attributes")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise NotImplementedError("there are no separate environments to call")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        # Callers ask for Monitor because of the episode statistics, which are provided.
        return [wrapper_class.__name__ == "Monitor" for _ in self._indices(indices)]


def _flags(n_states: int, *terminal: int) -> np.ndarray:
    flags = np.zeros(n_states, dtype=bool)
    flags[list(terminal)] = True
    return flags


def _first(n_states: int) -> np.ndarray:
    return np.asarray(np.eye(n_states)[0])


def bandit(*means: float) -> TabularMDP:
    """
    K arms, one step: arm a pays ``means[a]``. The optimal value is ``max(means)``; with uniform logits the gradient
    of the expected reward with respect to logit a is ``(means[a] - mean(means)) / K``.

    Two arms that pay +1 and -1, chosen with probability 1/2, are the counterexample to baselines: score times reward
    is the same for both arms, so without baseline the variance is zero, and a leave-one-out baseline can only raise it.

    :param means: the reward of each arm
    :return: the MDP (one state and a terminal one)
    """
    transition = np.zeros((2, len(means), 2))
    transition[:, :, 1] = 1
    return TabularMDP(_first(2), transition, np.array([means, np.zeros(len(means))]), _flags(2, 1))


def chain(length: int, leave_reward: float = 0.1) -> TabularMDP:
    """
    States 0..length-1. Action 1 moves on, action 0 leaves with ``leave_reward``; moving on from the last state pays 1.
    Both terminate the episode. While ``gamma ** (length - 1) > leave_reward`` the optimal policy always moves on, and
    the optimal value of state s is ``gamma ** (length - 1 - s)``.

    :param length: number of non-terminal states
    :param leave_reward: reward for leaving early
    :return: the MDP
    """
    transition = np.zeros((length + 1, 2, length + 1))
    transition[:, 0, length] = 1
    transition[np.arange(length), 1, np.arange(length) + 1] = 1
    transition[length, 1, length] = 1
    rewards = np.zeros((length + 1, 2))
    rewards[:length, 0] = leave_reward
    rewards[length - 1, 1] = 1
    return TabularMDP(_first(length + 1), transition, rewards, _flags(length + 1, length))


def endless(time_limit: int, n_states: int = 2) -> TabularMDP:
    """
    Reward 1 at every step of an endless task, cut by a time limit that the observation does not show (the next state is
    uniform over ``n_states``, whatever the action), so the value of every state and policy is ``1 / (1 - gamma)``.
    Treating the cut as a termination gives less: for the first state ``(1 - gamma ** time_limit) / (1 - gamma)``.

    :param time_limit: steps until truncation
    :param n_states: number of states
    :return: the MDP
    """
    transition = np.full((n_states, 2, n_states), 1 / n_states)
    return TabularMDP(
        np.full(n_states, 1 / n_states), transition, np.ones((n_states, 2)), np.zeros(n_states, dtype=bool), time_limit
    )


def quota_trap(long: int = 10) -> TabularMDP:
    """
    The first action decides: 0 pays 1 and ends the episode after one step, 1 pays 2 and leads into a corridor where
    nothing matters, for an episode of ``long`` steps. With uniform logits the gradient with respect to the first state's
    logit of action 0 is -0.25. Dividing one episode's estimate by its length gives +0.20 (``long`` = 10), and keeping
    the episodes that finish first prefers the short ones and so flips the sign as well.

    :param long: length of the long episode
    :return: the MDP (states: the start, ``long - 1`` of the corridor, the terminal one)
    """
    n_states = long + 1
    transition = np.zeros((n_states, 2, n_states))
    transition[np.arange(long), :, np.arange(long) + 1] = 1
    transition[long, :, long] = 1
    transition[0, 0] = np.eye(n_states)[long]
    rewards = np.zeros((n_states, 2))
    rewards[0] = [1, 2]
    return TabularMDP(_first(n_states), transition, rewards, _flags(n_states, long))


def cancelling_rewards(size: float = 3.0) -> TabularMDP:
    """
    Two steps whose rewards cancel: the first pays +-``size`` at random (by the first state), the second takes it back,
    and each action 1 adds 1. The total return has no noise from ``size``, but the reward-to-go of the second step has,
    so here ``total_return`` has the smaller variance: the usual ordering is not a theorem.

    :param size: the part that cancels (gamma = 1)
    :return: the MDP (first states 0 and 1, second states 2 and 3, terminal state 4)
    """
    transition = np.zeros((5, 2, 5))
    transition[[0, 1], :, [2, 3]] = 1
    transition[2:, :, 4] = 1
    rewards = np.zeros((5, 2))
    rewards[:4] = np.array([[size], [-size], [-size], [size]]) + np.array([0, 1])
    return TabularMDP(np.array([0.5, 0.5, 0, 0, 0]), transition, rewards, _flags(5, 4))


def steering(time_limit: int) -> TabularMDP:
    """
    Action a leads to state a, until a time limit; action 1 pays 1. So a critic that prefers a state biases every estimator
    that bootstraps from the next state, and bootstrapping at the cut makes a large difference.

    :param time_limit: steps until truncation
    :return: the MDP (two states, none of them terminal)
    """
    transition = np.repeat(np.eye(2)[None], 2, axis=0)
    return TabularMDP(np.array([0.5, 0.5]), transition, np.array([[0.0, 1.0], [0.0, 1.0]]), _flags(2), time_limit)


def _random_rewards(rng: np.random.Generator, n_states: int, n_actions: int) -> np.ndarray:
    """Noise, plus a trend over the actions: gradients exceed their sampling error after few episodes."""
    noise = 0.5 * rng.normal(size=(n_states, n_actions, n_states))
    return np.asarray(noise + np.linspace(-1, 1, n_actions)[:, None])


def random_mdp(seed: int, n_states: int = 3, n_actions: int = 2, stop: float = 0.25, horizon: int | None = None) -> TabularMDP:
    """
    Random transitions and rewards (which depend on the next state), with cycles: episodes of random length.

    :param seed: random seed
    :param n_states: number of non-terminal states; the terminal one comes last
    :param n_actions: number of actions
    :param stop: mean probability to terminate at a step; each state and action has its own between 0.2 and 1.8 times that
    :param horizon: time limit, None for none
    :return: the MDP
    """
    rng = np.random.default_rng(seed)
    total = n_states + 1
    ends = stop * rng.uniform(0.2, 1.8, size=(total, n_actions))
    transition = np.zeros((total, n_actions, total))
    transition[:, :, :n_states] = rng.dirichlet(np.ones(n_states), size=(total, n_actions)) * (1 - ends)[:, :, None]
    transition[:, :, n_states] = ends
    initial = np.append(rng.dirichlet(np.ones(n_states)), 0.0)
    return TabularMDP(initial, transition, _random_rewards(rng, total, n_actions), _flags(total, n_states), horizon)


def layered_mdp(seed: int, depth: int = 2, width: int = 2, n_actions: int = 2, stop: float = 0.4) -> TabularMDP:
    """
    Like :func:`random_mdp` but each step leads to the next of ``depth`` layers of ``width`` states, the last of which
    terminates: episodes of random length, no truncation, and few enough of them to enumerate.

    :param seed: random seed
    :param depth: number of layers, the longest episode
    :param width: number of states of each layer
    :param n_actions: number of actions
    :param stop: mean probability to terminate before the last layer
    :return: the MDP (state ``layer * width + i``, the terminal one last)
    """
    rng = np.random.default_rng(seed)
    total = depth * width + 1
    transition = np.zeros((total, n_actions, total))
    for layer in range(depth):
        rows = slice(layer * width, (layer + 1) * width)
        ends = stop * rng.uniform(0.2, 1.8, size=(width, n_actions)) if layer < depth - 1 else np.ones((width, n_actions))
        transition[rows, :, total - 1] = ends
        if layer < depth - 1:
            onward = rng.dirichlet(np.ones(width), size=(width, n_actions)) * (1 - ends)[:, :, None]
            transition[rows, :, (layer + 1) * width : (layer + 2) * width] = onward
    transition[total - 1, :, total - 1] = 1
    initial = np.zeros(total)
    initial[:width] = rng.dirichlet(np.ones(width))
    return TabularMDP(initial, transition, _random_rewards(rng, total, n_actions), _flags(total, total - 1))


class QuadraticEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    One step: the observation is uniform over {-1, 1}^D, the reward is ``-|a - target * observation|^2``. For Gaussian
    actions with means ``m(s)`` and standard deviations ``sigma``,
    J = -E_s[ |m(s) - target s|^2 + |sigma|^2 ]; the best action is ``target * observation``, the best value 0.

    :param dim: number of dimensions D of observation and action
    :param target: factor of the best action
    """

    def __init__(self, dim: int = 2, target: float = 0.5) -> None:
        self.target = target
        self.observation_space = spaces.Box(-1.0, 1.0, (dim,), np.float32)
        # So wide that SB3's clipping never affects a Gaussian of unit scale.
        self.action_space = spaces.Box(-100.0, 100.0, (dim,), np.float32)
        self._obs = np.zeros(dim, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._obs = self.np_random.choice(np.array([-1, 1], dtype=np.float32), self._obs.shape)
        return self._obs.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -float(np.sum((action - self.target * self._obs) ** 2))
        return self._obs.copy(), reward, True, False, {}


OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict": spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": spaces.Discrete(2)}),
    "dict_image": spaces.Dict(
        {"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vector": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    ),
}
"""One space of each kind of observation that SB3's policies accept."""

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(2),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(2),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
}
"""One space of each kind of action that SB3's on-policy algorithms accept."""


def _extreme(space: spaces.Space[Any], bit: int) -> Any:
    """The lowest (bit 0) or highest (bit 1) element of a space."""
    if isinstance(space, spaces.Dict):
        return {key: _extreme(part, bit) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return np.int64(space.start + bit * (space.n - 1))
    if isinstance(space, spaces.MultiDiscrete):
        return (bit * (space.nvec - 1)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.full(space.shape, bit, dtype=space.dtype)
    if isinstance(space, spaces.Box):
        return (space.high if bit else space.low).copy()
    raise ValueError(f"no extreme element of {space}")


class MatchEnv(gym.Env[Any, Any]):
    """
    Copy a bit: the observation shows 0 or 1 as the lowest or highest element of its space; the reward is the share of the
    action's components that are the lowest or highest as well (Box: that have the same sign).
    A new bit comes after every step. The optimal value without discount is ``length``.

    :param observation: key of ``OBSERVATION_SPACES``
    :param action: key of ``ACTION_SPACES``
    :param length: steps of an episode
    :param truncate: cut the episode by a time limit rather than terminate it
    """

    def __init__(self, observation: str = "box", action: str = "discrete", length: int = 4, truncate: bool = False) -> None:
        self.observation_space = OBSERVATION_SPACES[observation]
        self.action_space = ACTION_SPACES[action]
        self.length = length
        self.truncate = truncate
        self._bit = 0
        self._t = 0

    def _observe(self) -> Any:
        self._bit = int(self.np_random.integers(2))
        return _extreme(self.observation_space, self._bit)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Box):
            matches = (np.asarray(action) > 0) == bool(self._bit)
        else:
            matches = np.asarray(action) == _extreme(self.action_space, self._bit)
        self._t += 1
        over = self._t == self.length
        return self._observe(), float(np.mean(matches)), over and not self.truncate, over and self.truncate, {}
