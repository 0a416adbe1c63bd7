"""The one collect loop of the on-policy algorithms, by rollouts of fixed length or by whole episodes."""

import math
from abc import abstractmethod
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.common.base import RepairedAlgorithm
from sb3_pg.common.buffers import Array, Observations, PolicyGradientBuffer, PolicyGradientDictBuffer
from sb3_pg.common.networks import index_observations
from sb3_pg.estimators.returns import BoolArray, FloatArray
from sb3_pg.fast.numpy_networks import NumpyNetworks, numpy_networks

# The values of a rollout are computed in batches of at most this many observations: enough to keep the processor busy, few
# enough that the activations of an image network fit into memory.
VALUE_BATCH_SIZE = 4096
# Steps for which storage is allocated before the length of the episodes is known.
INITIAL_EPISODE_CAPACITY = 128


class RolloutCollector(RepairedAlgorithm, OnPolicyAlgorithm):
    """
    Collects rollouts for VPG and NStepA2C.

    It differs from SB3's ``OnPolicyAlgorithm.collect_rollouts`` in four ways:

    - rewards are stored as they come. SB3 adds ``gamma V(final observation)`` to the reward of a truncated step, which is
      wrong for every estimator that does not bootstrap in just that way; here truncation is stored apart from termination;
    - it can collect whole episodes (``n_episodes``): the same number from each environment, after a reset of all. Taking the
      first ones that finish would be biased towards short episodes;
    - acting evaluates the policy alone, in numpy where it is a standard one (:mod:`sb3_pg.fast.numpy_networks`). The
      critic sees the whole rollout at once, afterwards, since its parameters do not change in between; the final
      observations of truncated episodes are one batch too;
    - after a callback has stopped the training in mid-rollout, the next ``learn()`` resets the environments.
    """

    rollout_buffer: PolicyGradientBuffer
    n_episodes: int | None
    _episode_steps: npt.NDArray[np.int64]
    # The fast path; None: there is none for this policy, or learn() has not looked yet.
    _numpy_networks: NumpyNetworks | None = None

    def collect_rollouts(  # type: ignore[override]  # the length may depend on the episodes
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: PolicyGradientBuffer,
        n_rollout_steps: int | None,
    ) -> bool:
        """
        Fill the buffer with ``n_rollout_steps`` steps of each environment, or with ``n_episodes`` whole episodes.

        :param env: training environments
        :param callback: called after each vectorised step
        :param rollout_buffer: filled with the rollout
        :param n_rollout_steps: steps per environment; ``None``: whole episodes
        :return: False if a callback stopped the training
        """
        self._set_evaluation_mode()
        rollout_buffer.reset()
        episodes_left = self._begin_rollout(env)
        assert self._last_episode_starts is not None
        steps_before = np.where(self._last_episode_starts, 0, self._steps_of_running_episodes(env.num_envs))
        used = np.ones(env.num_envs, dtype=np.bool_)
        n_steps = 0
        callback.on_rollout_start()

        while used.any() if n_rollout_steps is None else n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            assert self._last_obs is not None
            actions = self._sample_actions(self._last_obs)
            clipped_actions = self._environment_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            n_steps += 1

            callback.update_locals(locals())
            if not callback.on_step():
                self._forget_observation()
                return False

            self._update_info_buffer([info for info, use in zip(infos, used, strict=True) if use], dones[used])
            self._store_step(rollout_buffer, actions, rewards, dones, infos, used)
            if n_rollout_steps is None:
                episodes_left -= dones
                used = episodes_left > 0
            self._last_obs = new_obs  # type: ignore[assignment]  # SB3 declares it as None
            self._last_episode_starts = dones

        rollout_buffer.finish(steps_before)
        self._episode_steps = rollout_buffer.episode_steps[-1] + 1
        self._complete_rollout(rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # The policy may have got hooks or methods of its own since.
        self._numpy_networks = None
        return super()._setup_learn(*args, **kwargs)

    @abstractmethod
    def _complete_rollout(self, rollout_buffer: PolicyGradientBuffer) -> None:
        """Compute what the update needs, such as values, returns and advantages, from the stored rollout."""

    def _begin_rollout(self, env: VecEnv) -> npt.NDArray[np.int64]:
        """
        :return: ``[N]``, number of episodes each environment is to deliver; zeros if the rollout has a fixed length
        """
        if self._numpy_networks is None or not self._numpy_networks.belong_to(self.policy):
            self._numpy_networks = numpy_networks(self.policy)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        if self.n_episodes is None:
            return np.zeros(env.num_envs, dtype=np.int64)
        self._reset_environments(env)
        return np.full(env.num_envs, self.n_episodes // env.num_envs, dtype=np.int64)

    def _start_statistics(self) -> None:
        """Empty windows of episode statistics."""
        self.ep_info_buffer = deque(maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)

    def _reset_environments(self, env: VecEnv) -> None:
        self._last_obs = env.reset()  # type: ignore[assignment]  # SB3 declares it as None
        self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)

    def _steps_of_running_episodes(self, n_envs: int) -> npt.NDArray[np.int64]:
        """Number of steps of the running episodes, zeros if the environments have been replaced."""
        steps = getattr(self, "_episode_steps", None)
        return steps if steps is not None and len(steps) == n_envs else np.zeros(n_envs, dtype=np.int64)

    def _set_evaluation_mode(self) -> None:
        # To set it anew visits every module, at each rollout of a few steps.
        if self.policy.training:
            self.policy.set_training_mode(False)

    def _sample_actions(self, obs: Observations) -> Array:
        """
        :param obs: observations, ``[N, ...]``
        :return: actions as sampled, ``[N, *action_space.shape]``
        """
        if self._numpy_networks is not None:
            sampled = self._numpy_networks.sample(np.asarray(obs))
        else:
            with th.no_grad():
                distribution = self.policy.get_distribution(obs_as_tensor(obs, self.device))
                sampled = distribution.get_actions().cpu().numpy()
        assert self.action_space.shape is not None
        return sampled.reshape(-1, *self.action_space.shape)

    def _environment_actions(self, actions: Array) -> Array:
        """Actions within the bounds of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        # A Gaussian has no bounds. The sample itself is stored: clipping is part of the environment.
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _store_step(
        self,
        rollout_buffer: PolicyGradientBuffer,
        actions: Array,
        rewards: Array,
        dones: BoolArray,
        infos: list[dict[str, Any]],
        used: BoolArray,
    ) -> None:
        truncated = np.zeros_like(dones)
        for i in np.flatnonzero(dones):
            # SB3's vectorised environments set the flag only if the episode did not terminate at the same step. Others may not
            # tell the final observation: then there is nothing to bootstrap with.
            truncated[i] = infos[i].get("TimeLimit.truncated", False) and infos[i].get("terminal_observation") is not None
            if truncated[i] and used[i]:
                rollout_buffer.add_final_observation(int(i), infos[i]["terminal_observation"])
        assert self._last_obs is not None and self._last_episode_starts is not None
        terminated = dones & ~truncated
        rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, terminated, truncated, used)

    def _compute_values(self, rollout_buffer: PolicyGradientBuffer) -> None:
        """
        Set ``values`` and ``next_values`` of a complete rollout, both ``[T, N]``: one batch for the stored observations, one
        for the observations after the last step, one for the final observations of truncated episodes.
        """
        self._set_evaluation_mode()
        shape = rollout_buffer.rewards.shape
        flat = rollout_buffer.observations_of(lambda array: array.reshape(-1, *array.shape[2:]))
        values = self._predict_values(flat).reshape(shape)
        next_values = np.empty_like(values)
        next_values[:-1] = values[1:]
        assert self._last_obs is not None
        next_values[-1] = self._predict_values(obs_as_tensor(self._last_obs, self.device))
        if rollout_buffer.final_indices:
            rows, columns = zip(*rollout_buffer.final_indices, strict=True)
            next_values[rows, columns] = self._predict_values(rollout_buffer.final_observations_tensor())
        rollout_buffer.values, rollout_buffer.next_values = values, next_values

    def _predict_values(self, obs: th.Tensor | dict[str, th.Tensor]) -> FloatArray:
        """
        :param obs: observations, ``[B, ...]``
        :return: ``[B]``
        """
        if self._numpy_networks is not None:
            assert isinstance(obs, th.Tensor)
            return self._numpy_networks.values(obs.numpy())
        size = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        with th.no_grad():
            chunks = [
                self.policy.predict_values(index_observations(obs, slice(i, i + VALUE_BATCH_SIZE)))
                for i in range(0, size, VALUE_BATCH_SIZE)
            ]
        values: FloatArray = th.cat(chunks).flatten().cpu().numpy()
        return values

    def _make_rollout_buffer(self, n_steps: int | None) -> PolicyGradientBuffer:
        """
        :param n_steps: length of the rollouts, ``None`` if it is not known beforehand
        :return: empty buffer
        :raises ValueError: ``rollout_buffer_class`` cannot store what the estimators need
        """
        return self._choose_buffer_class()(
            INITIAL_EPISODE_CAPACITY if n_steps is None else n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _choose_buffer_class(self) -> type[PolicyGradientBuffer]:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        expected: type[PolicyGradientBuffer] = PolicyGradientDictBuffer if is_dict else PolicyGradientBuffer
        buffer_class: type[RolloutBuffer] = self.rollout_buffer_class or expected
        if not issubclass(buffer_class, expected):
            raise ValueError(
                f"rollout_buffer_class={buffer_class.__name__} cannot store what {type(self).__name__} needs (truncation "
                f"apart from termination): use a subclass of sb3_pg.common.buffers.{expected.__name__}, or None"
            )
        return buffer_class


def as_schedule(name: str, value: float | str | Schedule) -> Schedule:
    """
    Schedule of a second learning rate, which the zoo does not convert.

    :param name: name of the argument, for the message
    :param value: constant, schedule, or the zoo's notation ``"lin_1e-3"`` for linear decay to zero
    :return: function of the remaining progress (1 at the start, 0 at the end)
    :raises ValueError: none of these, or not positive
    """
    if callable(value):
        # Plain floats: a numpy number would end up in the saved optimizer, which torch then refuses to load.
        return FloatSchedule(value)
    kind, separator, number = value.rpartition("_") if isinstance(value, str) else ("", "", value)
    try:
        initial = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        initial = math.nan
    if kind + separator not in ("", "lin_") or not 0 < initial < math.inf:
        raise ValueError(f'{name}={value!r} must be a positive number, a schedule, or "lin_<number>" such as "lin_1e-3"')
    return LinearSchedule(initial, 0.0, 1.0) if kind == "lin" else ConstantSchedule(initial)
