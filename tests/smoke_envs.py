"""Scripted environments, and a callback that records every step, for tests of collection and updates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

Script = Sequence[tuple[int, str]]

# Two environments whose episodes end at different steps, in every possible way.
SCRIPTS: list[Script] = [
    [(3, "truncated"), (2, "terminated"), (5, "both"), (4, "truncated")],
    [(4, "terminated"), (1, "truncated"), (6, "terminated"), (2, "both")],
]


class ScriptedEnv(gym.Env[Any, Any]):
    """
    Episodes with given lengths and endings, repeated. The observation is (environment, episode, step) / 10, so it is unique
    within a test, and final observations differ from first ones. The reward depends on all three and on the action.

    :param number: index of the environment
    :param script: (length, ``"terminated"``, ``"truncated"`` or ``"both"``) of each episode
    :param action_space: two discrete actions by default
    :param observe: converts (environment, episode, step) to an observation of the observation space
    :param observation_space: three numbers by default
    """

    def __init__(
        self,
        number: int,
        script: Script,
        action_space: spaces.Space[Any] | None = None,
        observe: Callable[[int, int, int], Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
    ) -> None:
        self.number, self.script = number, script
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.observation_space = observation_space or spaces.Box(0.0, 100.0, (3,), np.float32)
        self._observe = observe or (lambda *indices: np.array(indices, dtype=np.float32) / 10)
        self._episode, self._t = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._episode, self._t = self._episode + 1, 0
        return self._observe(self.number, self._episode, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        length, ending = self.script[self._episode % len(self.script)]
        reward = scripted_reward(self.number, self._episode, self._t, action)
        self._t += 1
        over = self._t == length
        terminated, truncated = over and ending in ("terminated", "both"), over and ending in ("truncated", "both")
        info = {"is_success": self._episode % 2 == 0} if over else {}
        return self._observe(self.number, self._episode, self._t), reward, terminated, truncated, info


def scripted_reward(number: int, episode: int, t: int, action: Any) -> float:
    """
    Reward of :class:`ScriptedEnv`.

    :param number: index of the environment
    :param episode: index of the episode
    :param t: index of the step in the episode
    :param action: action taken
    :return: the reward
    """
    return 0.5 * t - 0.3 * (episode % 4) + 0.2 * number + float(np.sum(action)) - 0.4


def scripted_vec_env(scripts: Sequence[Script] = SCRIPTS, **kwargs: Any) -> DummyVecEnv:
    """
    Vectorise monitored :class:`ScriptedEnv`.

    :param scripts: script of each environment
    :param kwargs: further arguments of :class:`ScriptedEnv`
    :return: the environments
    """

    def make(number: int) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: Monitor(ScriptedEnv(number, scripts[number], **kwargs))

    return DummyVecEnv([make(number) for number in range(len(scripts))])


@dataclass
class Step:
    """
    One step of one environment, as returned by the environment.

    :param obs: observation of the policy
    :param action: sampled action
    :param reward: reward of the environment
    :param next_obs: next observation; the final one if the episode is over
    :param terminated: the episode terminated
    :param truncated: the episode was truncated, and did not terminate at the same step
    :param t: number of steps of the episode before this one
    """

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    truncated: bool
    t: int

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


@dataclass
class Rollout:
    """
    The steps between two updates.

    :param steps: steps of each environment
    :param before: result of ``at_start`` of :class:`Recorder`
    :param at_end: result of ``at_end`` of :class:`Recorder`
    """

    steps: list[list[Step]]
    before: Any = None
    at_end: Any = None


class Recorder(BaseCallback):
    """
    Record every step from the local variables of callbacks, with an independent count of episode steps.

    :param at_start: called with the model when a rollout begins
    :param at_end: called with the model when a rollout is complete
    :param stop_after: stop training at this call; ``None``: never
    """

    def __init__(
        self,
        at_start: Callable[[Any], Any] = lambda _: None,
        at_end: Callable[[Any], Any] = lambda _: None,
        stop_after: int | None = None,
    ) -> None:
        super().__init__()
        self._at_start, self._at_end, self._stop_after = at_start, at_end, stop_after
        self.rollouts: list[Rollout] = []
        self._lengths: list[int] = []

    def _on_rollout_start(self) -> None:
        n_envs = self.training_env.num_envs
        self.rollouts.append(Rollout([[] for _ in range(n_envs)], before=self._at_start(self.model)))
        if self.model._last_episode_starts is not None and np.all(self.model._last_episode_starts):
            self._lengths = [0] * n_envs

    def _on_step(self) -> bool:
        for i, (reward, done, info) in enumerate(
            zip(self.locals["rewards"], self.locals["dones"], self.locals["infos"], strict=True)
        ):
            truncated = bool(done and info["TimeLimit.truncated"])
            next_obs = info["terminal_observation"] if done else take(self.locals["new_obs"], i)
            step = Step(
                obs=take(self.model._last_obs, i),
                action=np.array(self.locals["actions"][i]),
                reward=float(reward),
                next_obs=next_obs,
                terminated=bool(done and not truncated),
                truncated=truncated,
                t=self._lengths[i],
            )
            self.rollouts[-1].steps[i].append(step)
            self._lengths[i] = 0 if done else self._lengths[i] + 1
        return self._stop_after is None or self.n_calls < self._stop_after

    def _on_rollout_end(self) -> None:
        self.rollouts[-1].at_end = self._at_end(self.model)


def take(obs: Any, i: int) -> Any:
    """
    Select the observation of one environment.

    :param obs: array ``[N, ...]`` or dictionary of such arrays
    :param i: index of the environment
    :return: copy of its observation
    """
    return {key: np.array(part[i]) for key, part in obs.items()} if isinstance(obs, dict) else np.array(obs[i])
