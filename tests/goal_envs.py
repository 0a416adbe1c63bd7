"""Goal environments with known rewards and transitions."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

Array = npt.NDArray[Any]
Observation = dict[str, Array]
RADIUS = 0.25


def goal_space(observation: spaces.Space[Any], goal: spaces.Space[Any]) -> spaces.Dict:
    """
    :param observation: space of the observation
    :param goal: space of both goals
    :return: space of a goal environment
    """
    return spaces.Dict({"observation": observation, "achieved_goal": goal, "desired_goal": goal})


class PointGoalEnv(gym.Env[Observation, Array]):
    """
    Move a point in the square [-1, 1]^2 to a random goal. The reward is 0 within ``RADIUS`` of the goal, otherwise -1.

    :param terminate: whether reaching the goal terminates the episode
    :param scale: bounds of the action space, which is not symmetric: [-scale, 2 scale]
    :param render_mode: render mode, passed by SB3 and the zoo
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}  # type: ignore[misc]  # gymnasium's is no ClassVar

    def __init__(self, terminate: bool = False, scale: float = 0.5, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space: Any = goal_space(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
        self.action_space = spaces.Box(-scale, 2 * scale, (2,))
        self.terminate = terminate
        self.place, self.goal = np.zeros(2), np.zeros(2)

    def _observe(self) -> Observation:
        place, goal = self.place.astype(np.float32), self.goal.astype(np.float32)
        return {"observation": np.append(place, np.float32(0.5)), "achieved_goal": place, "desired_goal": goal}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {"is_success": False}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + np.asarray(action) * 0.6, -1, 1)
        observation = self._observe()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}))
        terminated = bool(self.compute_terminated(observation["achieved_goal"], observation["desired_goal"], {}))
        return observation, reward, terminated, False, {"is_success": reward == 0}

    def render(self) -> Array:
        """
        :return: 64 x 64 pixels, the goal in green and the point in white
        """
        picture = np.zeros((64, 64, 3), np.uint8)
        for place, colour in ((self.goal, (0, 255, 0)), (self.place, (255, 255, 255))):
            row, column = ((place + 1) / 2 * 60).astype(int)
            picture[row : row + 4, column : column + 4] = colour
        return picture

    def compute_reward(self, achieved_goal: Array, desired_goal: Array, info: Any) -> Any:  # noqa: ARG002 # the interface
        """
        :param achieved_goal: ``[..., 2]``
        :param desired_goal: ``[..., 2]``
        :param info: not read
        :return: ``[...]``
        """
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
        return -(distance > RADIUS).astype(np.float32)

    def compute_terminated(self, achieved_goal: Array, desired_goal: Array, info: Any) -> Any:
        """
        :param achieved_goal: ``[..., 2]``
        :param desired_goal: ``[..., 2]``
        :param info: not read
        :return: ``[...]``
        """
        return self.compute_reward(achieved_goal, desired_goal, info) == (0 if self.terminate else 1)


class InfoReward(PointGoalEnv):
    """Reads its rewards from ``info``. Defined here so that subprocesses can import it."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # only infos count
        """
        Compute rewards.

        :param achieved_goal: ignored
        :param desired_goal: ignored
        :param info: info dictionary, or one for each reward
        :return: 0 or -1 each
        """
        if isinstance(info, dict):
            return float(info["is_success"]) - 1
        return np.array([float(i["is_success"]) - 1 for i in info])


class CountingGoalEnv(gym.Env[Observation, Array]):
    """
    Episodes of given lengths. Every observation encodes its origin: the state after t steps of episode e in environment i
    is ``10000 i + 100 e + t``, which is the observation and the achieved goal; the desired goal is its negative.

    :param number: number of the environment
    :param script: (length, ``"terminated"`` or ``"truncated"``) of each episode, repeated
    """

    def __init__(self, number: int, script: Sequence[tuple[int, str]]) -> None:
        box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space: Any = goal_space(box, box)
        self.action_space = spaces.Box(-1, 1, (1,))
        self.number, self.script = number, script
        self._episode, self._t = -1, 0

    def _observe(self) -> Observation:
        code = np.array([10000.0 * self.number + 100 * self._episode + self._t])
        return {"observation": code, "achieved_goal": code, "desired_goal": -1 - code}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._episode, self._t = self._episode + 1, 0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:  # noqa: ARG002 # follows the script
        length, ending = self.script[self._episode % len(self.script)]
        self._t += 1
        over = self._t == length
        observation = self._observe()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})[0])
        return observation, reward, over and ending == "terminated", over and ending == "truncated", {"is_success": over}

    def compute_reward(self, achieved_goal: Array, desired_goal: Array, info: Any) -> Any:  # noqa: ARG002 # the interface
        """
        A different number for each pair of goals, in [-1, 0].

        :param achieved_goal: ``[..., 1]``
        :param desired_goal: ``[..., 1]``
        :param info: not read
        :return: ``[...]``
        """
        return pair_reward(achieved_goal, desired_goal)[..., 0].reshape(-1)


def pair_reward(achieved: Any, desired: Any) -> Any:
    """
    Reward of :class:`CountingGoalEnv`.

    :param achieved: code of the achieved goal
    :param desired: code of the desired goal
    :return: the reward
    """
    return -((np.asarray(achieved, np.float64) * 3 + np.asarray(desired, np.float64) * 5 + 7) % 11) / 11


def point_envs(n_envs: int = 2, horizon: int = 10, monitor: bool = True, **kwargs: Any) -> DummyVecEnv:
    """
    :param n_envs: number of environments
    :param horizon: time limit
    :param monitor: whether to record episodes
    :param kwargs: arguments of :class:`PointGoalEnv`
    :return: the environments
    """

    def make() -> gym.Env[Any, Any]:
        env = gym.wrappers.TimeLimit(PointGoalEnv(**kwargs), horizon)
        return Monitor(env) if monitor else env

    return DummyVecEnv([make] * n_envs)


def counting_envs(scripts: Sequence[Sequence[tuple[int, str]]]) -> DummyVecEnv:
    """
    :param scripts: script of each environment
    :return: the environments
    """

    def make(number: int) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: Monitor(CountingGoalEnv(number, scripts[number]))

    return DummyVecEnv([make(number) for number in range(len(scripts))])
