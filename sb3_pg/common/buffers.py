"""Rollout storage of the on-policy algorithms. The estimators are in :mod:`sb3_pg.estimators`."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict

from sb3_pg.estimators.baselines import IntArray, episode_ids
from sb3_pg.estimators.returns import BoolArray, FloatArray

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]


class PolicyGradientSamples(NamedTuple):
    """
    The used steps of a rollout, flattened in time-major order to ``[S, ...]``.

    :param observations: observations of the policy
    :param actions: sampled actions, before clipping to the bounds of the action space
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor


class PolicyGradientBuffer(RolloutBuffer):
    """
    Rollout of ``T`` steps in ``N`` environments. Rewards are unmodified, termination and truncation are stored separately,
    and with whole episodes the length is known only at the end.

    Differences from SB3's ``RolloutBuffer``: all arrays stay time-major ``[T, N, ...]``; storage is doubled when it is full
    and reused by the next rollout; the algorithm sets returns and advantages at the end of the rollout.

    - ``rewards``, ``terminated``, ``truncated``: what the environments returned at each step;
    - ``episode_starts``: the step is the first of its episode;
    - ``episode_steps``: index of the step in its episode, which may have started in an earlier rollout;
    - ``used``: the step belongs to the batch. With whole episodes, an environment that has completed its quota keeps
      stepping with the others, but these steps are not used;
    - ``values``: values of the critic, stored while acting if ``has_values``, otherwise set by the algorithm at the end;
    - ``next_values``, ``returns``, ``advantages``: ``[T, N]``, set by the algorithm at the end.

    :param buffer_size: initial capacity in steps
    :param observation_space: observation space
    :param action_space: action space
    :param device: PyTorch device
    :param gae_lambda: unused (the algorithm calls the estimators); kept for SB3's signature
    :param gamma: unused, for the same reason
    :param n_envs: number of environments N
    """

    terminated: BoolArray
    truncated: BoolArray
    used: BoolArray
    episode_steps: npt.NDArray[np.int64]
    next_values: FloatArray
    _storage: dict[str, Array]

    def reset(self) -> None:
        """Clear the rollout and keep the storage."""
        self.pos = 0
        self.full = False
        self.has_values = True
        self.final_observations: list[Observations] = []
        self.final_indices: list[tuple[int, int]] = []
        if not hasattr(self, "_storage"):
            self._storage = {name: self._allocate(shape, dtype) for name, (shape, dtype) in self._layout().items()}
        self._expose(self.capacity)

    @property
    def capacity(self) -> int:
        """Number of steps for which storage is allocated."""
        return len(self._storage["rewards"])

    @property
    def n_used(self) -> int:
        """Number of used steps S."""
        return int(self.used.sum())

    def add(  # type: ignore[override]  # takes what the environment returned; SB3's takes values and log-probabilities
        self,
        obs: Observations,
        actions: Array,
        rewards: Array,
        episode_starts: Array,
        terminated: BoolArray,
        truncated: BoolArray,
        used: BoolArray,
        values: FloatArray | None = None,
    ) -> None:
        """
        Append one vectorised step.

        :param obs: observations that the policy acted on, ``[N, ...]``
        :param actions: actions as the policy sampled them, ``[N, ...]``
        :param rewards: ``[N]``
        :param episode_starts: ``[N]``, bool
        :param terminated: ``[N]``, bool
        :param truncated: ``[N]``, bool
        :param used: ``[N]``, bool
        :param values: values of the critic, ``[N]``; ``None``: not computed yet
        """
        if self.pos == self.capacity:
            self._grow()
        for name, observations in self._named_observations(obs).items():
            target = self._storage[name][self.pos]
            target[...] = observations.reshape(target.shape)
        storage, t = self._storage, self.pos
        storage["actions"][t] = actions.reshape(self.n_envs, self.action_dim)
        storage["rewards"][t] = rewards
        storage["episode_starts"][t] = episode_starts
        storage["terminated"][t] = terminated
        storage["truncated"][t] = truncated
        storage["used"][t] = used
        if values is None:
            self.has_values = False
        else:
            storage["values"][t] = values
        self.pos += 1

    def add_final_observation(self, env_index: int, final_observation: Observations) -> None:
        """
        Store the final observation of a truncated episode; call before :meth:`add` of the same step.

        :param env_index: index of the environment
        :param final_observation: its final observation, not batched
        """
        self.final_indices.append((self.pos, env_index))
        self.final_observations.append(final_observation)

    def finish(self, steps_before: npt.NDArray[np.int64]) -> None:
        """
        Complete the rollout: trim the arrays to the steps taken and count the steps of the episodes.

        :param steps_before: ``[N]``, number of steps that the current episodes took before this rollout
        """
        self.full = True
        self._expose(self.pos)
        rows = np.arange(self.pos, dtype=np.int64)[:, None]
        last_start = np.maximum.accumulate(np.where(self.episode_starts > 0, rows, -1), axis=0)
        self.episode_steps = np.where(last_start >= 0, rows - last_start, rows + steps_before)

    def episodes(self) -> IntArray:
        """
        :return: ``[S]``, episode number of each used step, in ``[0, K)``. Only with whole episodes
        """
        # The used steps of an environment come before its unused ones: np.unique closes the gaps in the numbering.
        return np.unique(episode_ids(self.terminated, self.truncated)[self.used], return_inverse=True)[1].ravel()

    def samples(self) -> PolicyGradientSamples:
        """:return: the used steps as tensors, flattened"""
        actions = self.select(self.actions)
        # A categorical distribution indexes with integers; SB3's other distributions take floats.
        discrete = isinstance(self.action_space, spaces.Discrete)
        actions = actions.ravel().astype(np.int64, copy=False) if discrete else actions.astype(np.float32, copy=False)
        return PolicyGradientSamples(self.observations_of(self.select), self.tensor(actions))

    def select(self, array: Array) -> Array:
        """
        :param array: ``[T, N, ...]``
        :return: ``[S, ...]``, the used steps in time-major order; a view where all steps are used
        """
        if self.used.all():
            return array.reshape(-1, *array.shape[2:])
        return array[self.used]

    def tensor(self, array: Array) -> th.Tensor:
        """Tensor on the buffer's device, sharing memory with the array where possible."""
        return self.to_torch(array, copy=False)

    def observations_of(self, select: Any) -> th.Tensor | TensorDict:
        """Observations as tensors, with ``select`` applied to each stored array ``[T, N, ...]``."""
        return self.tensor(select(self.observations))

    def final_observations_tensor(self) -> th.Tensor | TensorDict:
        """Final observations of the truncated episodes as tensors ``[M, ...]``, in the order of ``final_indices``."""
        arrays = [self._named_observations(observation)["observations"] for observation in self.final_observations]
        return self.tensor(np.stack(arrays).reshape(-1, *self.obs_shape))

    def _layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape per environment and step, and dtype, of each array."""
        flags: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(("terminated", "truncated", "used"), ((), np.bool_))
        floats: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(
            ("rewards", "episode_starts", "values"), ((), np.float32)
        )
        # A Gaussian samples real numbers, even for a Box of integers.
        dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
        actions = {"actions": ((self.action_dim,), dtype)}
        return {**self._observation_layout(), **actions, **floats, **flags}

    def _observation_layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"observations": (self.obs_shape, self.observation_space.dtype)}

    def _named_observations(self, obs: Observations) -> dict[str, Array]:
        """Arrays of an observation by their names in the storage."""
        return {"observations": np.asarray(obs)}

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros((self.buffer_size, self.n_envs, *shape), dtype=dtype)

    def _grow(self) -> None:
        for name, array in self._storage.items():
            self._storage[name] = np.concatenate([array, np.zeros_like(array)])
        self._expose(self.capacity)

    def _expose(self, length: int) -> None:
        """Point the public attributes at the first ``length`` rows of the storage."""
        for name in ("actions", "rewards", "episode_starts", "values", "terminated", "truncated", "used"):
            setattr(self, name, self._storage[name][:length])
        self._expose_observations(length)

    def _expose_observations(self, length: int) -> None:
        self.observations = self._storage["observations"][:length]


class PolicyGradientDictBuffer(PolicyGradientBuffer, DictRolloutBuffer):  # type: ignore[misc]  # `add`, see above
    """:class:`PolicyGradientBuffer` for dictionary observations: observations and final observations are dictionaries."""

    observations: dict[str, Array]
    obs_shape: dict[str, tuple[int, ...]]
    observation_space: spaces.Dict

    def observations_of(self, select: Any) -> TensorDict:
        return {key: self.tensor(select(array)) for key, array in self.observations.items()}

    def final_observations_tensor(self) -> TensorDict:
        keys = self.obs_shape
        stacked = {key: np.stack([np.asarray(obs[key]) for obs in self.final_observations]) for key in keys}
        return {key: self.tensor(array.reshape(-1, *self.obs_shape[key])) for key, array in stacked.items()}

    def _observation_layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {f"observations/{key}": (shape, self.observation_space[key].dtype) for key, shape in self.obs_shape.items()}

    def _named_observations(self, obs: Observations) -> dict[str, Array]:
        assert isinstance(obs, dict)
        return {f"observations/{key}": np.asarray(obs[key]) for key in self.obs_shape}

    def _expose_observations(self, length: int) -> None:
        self.observations = {key: self._storage[f"observations/{key}"][:length] for key in self.obs_shape}


def rollout_buffer_class(
    chosen: type[RolloutBuffer] | None, space: spaces.Space[Any], owner: str
) -> type[PolicyGradientBuffer]:
    """
    :param chosen: the option ``rollout_buffer_class``
    :param space: observation space
    :param owner: name of the algorithm, for the error message
    :return: class of the rollout buffer
    :raises ValueError: the chosen class cannot store what the estimators need
    """
    expected: type[PolicyGradientBuffer] = PolicyGradientDictBuffer if isinstance(space, spaces.Dict) else PolicyGradientBuffer
    if chosen is None:
        return expected
    if not issubclass(chosen, expected):
        raise ValueError(
            f"rollout_buffer_class={chosen.__name__} cannot store what {owner} needs (truncation separate from termination): "
            f"use a subclass of sb3_pg.common.buffers.{expected.__name__}, or None"
        )
    return chosen
