"""Replay of sequences: SB3's replay buffers with behaviour log-probabilities, sampled in segments of episodes."""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg.estimators.returns import BoolArray, FloatArray

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]


class SequenceSamples(NamedTuple):
    """
    B segments of T steps. Tensors are flattened in time-major order, ``[T * B, ...]``; arrays are ``[T, B]``, as
    :mod:`sb3_pg.estimators.returns` reads them.

    :param observations: ``[T * B, ...]``
    :param samples: Gaussian samples, before tanh or clipping, ``[T * B, A]``
    :param next_observations: ``[T * B, ...]``; the final observation where an episode ended
    :param rewards: ``[T, B]``
    :param terminated: ``[T, B]``
    :param truncated: ``[T, B]``; also set where a segment ends before its episode
    :param log_probs: log-density of the samples under the policy that drew them, ``[T, B]``; NaN where it is unknown
    :param weights: ``[T * B]``, summing to 1: zero for steps that do not belong to the segment, otherwise 1 / (B * steps of
        the segment)
    """

    observations: th.Tensor | TensorDict
    samples: th.Tensor
    next_observations: th.Tensor | TensorDict
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    log_probs: FloatArray
    weights: th.Tensor


class _Sequences(ReplayBuffer):
    """
    Common part of the sequence buffers.

    :param buffer_size: capacity in steps, over all environments
    :param observation_space: observation space
    :param action_space: action space
    :param device: PyTorch device
    :param n_envs: number of environments N
    :param optimize_memory_usage: must be False: the final observations of truncated episodes would be lost
    :param handle_timeout_termination: whether to distinguish truncation from termination; otherwise time limits terminate
    :raises ValueError: ``optimize_memory_usage=True``
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage=True would lose the final observations of truncated episodes, from which targets "
                "bootstrap: use optimize_memory_usage=False and a smaller buffer_size"
            )
        # Memory is allocated with the first step: a model that only predicts needs none.
        super().__init__(
            n_envs,
            observation_space,
            action_space,
            device,
            n_envs,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.buffer_size = max(buffer_size // n_envs, 1)
        self._allocated = False

    def _allocate(self) -> None:
        """Allocate the memory for all steps."""
        super().__init__(
            self.buffer_size * self.n_envs,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            handle_timeout_termination=self.handle_timeout_termination,
        )
        # Gaussian samples are real numbers, also for a Box of integers.
        self.actions = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=np.float32)
        self.log_probs = np.full((self.buffer_size, self.n_envs), np.nan, dtype=np.float32)
        self._allocated = True

    def add(self, *args: Any, **kwargs: Any) -> None:
        """
        Append one vectorised step. Its log-probabilities are NaN until :meth:`set_log_probs` is called.

        :param args: as in SB3; the actions are samples of the Gaussian
        :param kwargs: as in SB3
        """
        if not self._allocated:
            self._allocate()
        self.log_probs[self.pos] = np.nan
        super().add(*args, **kwargs)

    def set_log_probs(self, log_probs: FloatArray) -> None:
        """
        Store the log-probabilities of the latest step.

        :param log_probs: log-density of its samples under the policy that drew them, ``[N]``
        """
        self.log_probs[self.pos - 1] = log_probs

    def cut(self) -> None:
        """Mark the latest step as truncated, because the next one will not continue it."""
        if self.size():
            latest = self.pos - 1
            self.timeouts[latest] = np.where(self.dones[latest], self.timeouts[latest], 1)
            self.dones[latest] = 1

    def sample_segments(self, n_segments: int, length: int, env: VecNormalize | None = None) -> SequenceSamples:
        """
        Draw segments in which every stored step has the same expected weight: draw a step, place a window of the given length
        uniformly among those that contain the step, and keep the stored part of the window that belongs to the step's
        episode. The kept steps share the weight of the segment.

        (Segments that start at the drawn step would reduce the weight of the first steps of an episode, down to a fraction of
        1 / length; so would dropping windows that do not fit.)

        :param n_segments: number of segments B
        :param length: number of steps T of the window
        :param env: normalises observations and rewards
        :return: the segments
        """
        size = self.size()
        anchors, envs = _random_integers(size, n_segments), _random_integers(self.n_envs, n_segments)
        if length == 1:
            return self._single_steps(anchors, envs, env)
        offsets = _random_integers(length, n_segments)
        # Steps are counted from the oldest stored one.
        steps = anchors - offsets + np.arange(length)[:, None]  # [T, B]
        stored = (steps >= 0) & (steps < size)
        oldest = self.pos if self.full else 0
        flat = (oldest + np.clip(steps, 0, size - 1)) % self.buffer_size * self.n_envs + envs
        # Number of episodes that ended before each row: it is the same for all rows of the anchor's episode.
        done = self.dones.ravel()[flat] > 0
        ended = np.zeros((length, n_segments), dtype=np.intp)
        np.cumsum(done[:-1] & stored[:-1], axis=0, out=ended[1:])
        used = stored & (ended == ended[offsets, np.arange(n_segments)])
        return self._gather(flat, used, env)

    def whole(self, env: VecNormalize | None = None) -> SequenceSamples:
        """
        :param env: normalises observations and rewards
        :return: all stored steps, as one segment per environment; no step may have been overwritten
        """
        shape = (self.size(), self.n_envs)
        return self._gather(np.arange(self.size() * self.n_envs).reshape(shape), np.ones(shape, dtype=np.bool_), env)

    def _single_steps(self, ages: Indices, envs: Indices, env: VecNormalize | None) -> SequenceSamples:
        """
        Return the same as :meth:`_gather` for segments of one step. With small minibatches of single steps, the common case,
        the work on segments would take longer than all matrix products of an update.

        :param ages: ``[B]``, index of each step in time; 0 is the oldest one
        :param envs: ``[B]``, environment of each step
        :param env: normalises observations and rewards
        """
        rows = (ages + self.pos) % self.buffer_size if self.full else ages
        flat = rows if self.n_envs == 1 else rows * self.n_envs + envs
        observations, next_observations = self._observations_at(flat, env)
        # Timeouts are only set where an episode is done.
        terminated = (self.dones.take(flat) > self.timeouts.take(flat))[None]
        rewards = self._normalize_reward(self.rewards.take(flat), env)
        return SequenceSamples(
            observations,
            self._tensor(self.actions.reshape(-1, self.action_dim).take(flat, axis=0)),
            next_observations,
            np.asarray(rewards, dtype=np.float32)[None],
            terminated,
            ~terminated,
            self.log_probs.take(flat)[None],
            _equal_weights(len(flat), self.device),
        )

    def _gather(self, flat: Indices, used: BoolArray, env: VecNormalize | None) -> SequenceSamples:
        """
        :param flat: ``[T, B]``, ``row * n_envs + environment`` of each step
        :param used: ``[T, B]``, whether each step belongs to its segment; contiguous in each column
        :param env: normalises observations and rewards
        """
        observations, next_observations = self._observations_at(flat.ravel(), env)
        timeouts = self.timeouts.ravel()[flat] > 0
        done = self.dones.ravel()[flat] > 0
        # Where a segment ends before its episode, the recursion must not read the next row.
        last = used.copy()
        last[:-1] &= ~used[1:]
        weights = used / (used.sum(axis=0) * used.shape[1])
        return SequenceSamples(
            observations,
            self._tensor(self.actions.reshape(-1, self.action_dim)[flat.ravel()]),
            next_observations,
            np.asarray(self._normalize_reward(self.rewards.ravel()[flat], env), dtype=np.float32),
            done & ~timeouts,
            (done & timeouts) | (last & ~done),
            self.log_probs.ravel()[flat],
            self._tensor(weights.ravel().astype(np.float32)),
        )

    def _observations_at(
        self, flat: Indices, env: VecNormalize | None
    ) -> tuple[th.Tensor | TensorDict, th.Tensor | TensorDict]:
        arrays = (self.observations, self.next_observations)
        gathered = (self._normalize_obs(array.reshape(-1, *array.shape[2:]).take(flat, axis=0), env) for array in arrays)
        observations, next_observations = map(self._tensor, gathered)
        return observations, next_observations

    def _tensor(self, array: Any) -> th.Tensor:
        # as_tensor() queries the device first, which takes longer.
        return th.from_numpy(array) if self.device.type == "cpu" else self.to_torch(array)


def importance_ratios(log_prob: FloatArray, behaviour_log_prob: FloatArray) -> FloatArray:
    """
    ``pi(u | s) / mu(u | s)``, truncated at 1 as in Retrace.

    :param log_prob: log-density of the samples under the current policy, ``[T, B]``
    :param behaviour_log_prob: log-density under the policy that drew them, ``[T, B]``
    :return: ``[T, B]``
    :raises ValueError: a behaviour density is unknown
    """
    if np.isnan(behaviour_log_prob).any():
        raise ValueError(
            "the behaviour log-probabilities of the replay buffer are unknown (it was filled with action_noise, or by hand): "
            "use off_policy_correction='none'"
        )
    ratios: FloatArray = np.exp(np.minimum(log_prob - behaviour_log_prob, 0))
    return ratios


@functools.lru_cache(maxsize=8)
def _equal_weights(n: int, device: th.device) -> th.Tensor:
    """``[n]``, summing to 1. Cached: must not be modified."""
    return th.full((n,), 1 / n, device=device)


def _random_integers(high: int, size: int) -> Indices:
    """Uniform in [0, high). With ``high == 1``, no random numbers are drawn."""
    if high == 1:
        return np.zeros(size, dtype=np.intp)
    # Takes less than half the time of randint() for the size of a minibatch. Rounding down never reaches `high`, and the
    # integers are uniform up to the resolution of 53 bits.
    uniform = np.random.random_sample(size)  # noqa: NPY002 # the generator that SB3 seeds
    return (high * uniform).astype(np.intp)


class SequenceReplayBuffer(_Sequences):
    """
    Replay buffer of sequences. Each step consists of the observation before and after it, the Gaussian sample (in place of
    SB3's action), its log-density under the policy that drew it, the reward, and whether the episode terminated or was
    truncated.

    The parameters are those of SB3's ``ReplayBuffer``; ``optimize_memory_usage=True`` is rejected.
    """


class SequenceDictReplayBuffer(_Sequences, DictReplayBuffer):
    """:class:`SequenceReplayBuffer` for dictionary observations."""

    def _observations_at(
        self, flat: Indices, env: VecNormalize | None
    ) -> tuple[th.Tensor | TensorDict, th.Tensor | TensorDict]:
        results = []
        for arrays in (self.observations, self.next_observations):
            gathered = {key: array.reshape(-1, *array.shape[2:])[flat] for key, array in arrays.items()}
            normalised = self._normalize_obs(gathered, env)
            assert isinstance(normalised, dict)
            results.append({key: self._tensor(array) for key, array in normalised.items()})
        return results[0], results[1]
