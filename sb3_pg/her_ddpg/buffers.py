"""Replay of whole episodes, with goals that are relabelled in hindsight when sampling."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, TensorDict
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pg.her_ddpg.hindsight import EPISODE_STRATEGIES, BoolArray, FloatArray, IntArray, goal_offsets, segment_returns

GOAL_STRATEGIES = (*EPISODE_STRATEGIES, "random")
AMBIGUOUS_TERMINATION = (
    "the environment terminated an episode and has no compute_terminated(): relabelled transitions keep their recorded "
    "termination. Pass terminate_on_success=True if an episode terminates exactly on success, or False to silence this warning"
)

Array = npt.NDArray[Any]


class HindsightReplayBuffer(HerReplayBuffer):
    """
    Replay buffer of whole episodes. In a share of each minibatch the desired goal is replaced by an achieved one, and the
    environment recomputes the reward (Andrychowicz et al. 2017).

    Unlike SB3's ``HerReplayBuffer``, it needs environments only to sample, has the strategy ``random``, computes n-step
    returns with one goal per segment, and lets a new goal change where the episode terminates. Each observation is stored
    once, memory is allocated with the first transition, and info dictionaries are not stored.

    Each environment has a ring of ``buffer_size // n_envs`` rows. An episode of T steps occupies T + 1 rows, the last one for
    its final observation.

    :param buffer_size: number of rows, over all environments
    :param observation_space: with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param action_space: space of the actions
    :param env: environments that compute rewards; may be set later, see ``set_env``
    :param device: device of the samples
    :param n_envs: number of environments
    :param optimize_memory_usage: must be False; each observation is stored only once in any case
    :param handle_timeout_termination: whether an episode cut by a time limit counts as not terminated
    :param n_sampled_goal: number of relabelled samples per sample with the original goal
    :param goal_selection_strategy: ``"future"``, ``"final"``, ``"episode"`` (goals achieved in the same episode, see
        :func:`sb3_pg.her_ddpg.hindsight.goal_offsets`), ``"random"`` (achieved anywhere in the buffer), or SB3's enumeration
    :param copy_info_dict: must be False; rewards must not depend on ``info``
    :param n_steps: number of steps of the n-step returns
    :param gamma: discount factor of these returns
    :param reward_range: minimum and maximum reward of the environment; ``None``: unknown
    :param terminate_on_success: whether a transition terminates exactly at the maximum reward; ``None``: call the
        environment's ``compute_terminated``, or keep recorded terminations if it has none
    :raises ValueError: an option is out of range or not supported
    """

    # Attributes that a loaded buffer takes from the one it replaces, see HERDDPG.load_replay_buffer().
    SETTINGS = (
        *("env", "device", "n_sampled_goal", "her_ratio", "goal_selection_strategy", "n_steps", "gamma"),
        *("reward_range", "terminate_on_success", "rng", "_asks_terminated"),
    )
    goal_selection_strategy: str  # type: ignore[assignment]  # SB3's enumeration lacks "random"

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        env: VecEnv | None = None,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        reward_range: tuple[float, float] | None = None,
        terminate_on_success: bool | None = None,
    ) -> None:
        # Not HerReplayBuffer's constructor, which would allocate its own storage.
        BaseBuffer.__init__(self, max(buffer_size // n_envs, 1), observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True is not needed: each observation is stored only once. Use False")
        if copy_info_dict:
            raise ValueError("copy_info_dict=True is not supported: compute_reward must depend only on the two goals")
        if not (isinstance(n_sampled_goal, int) and n_sampled_goal >= 0):
            raise ValueError(f"n_sampled_goal={n_sampled_goal!r} must be an integer of at least 0")
        self.set_env(env)
        self.optimize_memory_usage, self.copy_info_dict = optimize_memory_usage, copy_info_dict
        self.handle_timeout_termination = handle_timeout_termination
        self.n_sampled_goal = n_sampled_goal
        self.her_ratio = 1 - 1 / (n_sampled_goal + 1)
        self.goal_selection_strategy = _strategy(goal_selection_strategy)
        self.n_steps, self.gamma = n_steps, gamma
        self.reward_range, self.terminate_on_success = reward_range, terminate_on_success
        self.rng = np.random.default_rng()
        self.reset()

    def reset(self) -> None:
        """Clear the buffer."""
        # Row arrays, [n_envs * buffer_size, ...]; empty until the first transition.
        self._rows: dict[str, Array] = {}
        # Next row of each environment within its ring, and number of steps of its current episode.
        self._positions = np.zeros(self.n_envs, dtype=np.int64)
        self._elapsed = np.zeros(self.n_envs, dtype=np.int64)
        # First row and length of each episode completed since the last call of sample_new_episodes().
        self._new_episodes: list[tuple[int, int]] = []
        self._sampleable: IntArray | None = None
        # Number of rows of each ring that have been written.
        self._used = 0
        # Attributes of the base class, which has one position for all environments. They are not used here.
        self.pos, self.full = 0, False

    # ---- storage -----------------------------------------------------------------------------------------------------------

    def add(  # type: ignore[override]  # observations are dictionaries
        self,
        obs: dict[str, Array],
        next_obs: dict[str, Array],
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of each environment.

        :param obs: observations, ``[N, ...]`` each
        :param next_obs: next observations, ``[N, ...]`` each; the final observation where the episode ended
        :param action: ``[N, ...]``, scaled to [-1, 1]
        :param reward: ``[N]``
        :param done: ``[N]``, whether the episode ended
        :param infos: info dictionaries, of which only ``TimeLimit.truncated`` is read
        :raises ValueError: a reward is outside of ``reward_range``, or an episode is longer than the buffer
        """
        if not self._rows:
            self._rows = self._allocate()
        check_rewards(reward, self.reward_range)
        if self._elapsed.max() + 2 > self.buffer_size:
            raise ValueError(
                f"an episode is longer than the buffer's {self.buffer_size} rows for each of {self.n_envs} environments: "
                "raise buffer_size"
            )
        first = np.arange(self.n_envs) * self.buffer_size
        rows, next_rows = first + self._positions, first + (self._positions + 1) % self.buffer_size
        self._make_room(rows, next_rows)
        self._used = max(self._used, min(int(self._positions.max()) + 2, self.buffer_size))
        store = self._rows
        for key in ("observation", "achieved_goal", "desired_goal"):
            store[key][rows] = np.reshape(obs[key], (self.n_envs, *store[key].shape[1:]))
            store[key][next_rows] = np.reshape(next_obs[key], (self.n_envs, *store[key].shape[1:]))
        store["action"][rows] = np.reshape(action, (self.n_envs, self.action_dim))
        store["reward"][rows] = reward
        store["terminated"][rows] = self._terminations(done, infos)
        store["elapsed"][rows] = self._elapsed
        self._elapsed += 1
        self._positions = (self._positions + 1) % self.buffer_size
        self._finish_episodes(np.flatnonzero(done))

    def _allocate(self) -> dict[str, Array]:
        n = self.n_envs * self.buffer_size
        assert isinstance(self.observation_space, spaces.Dict)
        # np.zeros only reserves memory, which is allocated when it is written.
        store = {
            key: np.zeros((n, *get_obs_shape(space)), dtype=_storage_dtype(space))
            for key, space in self.observation_space.spaces.items()
        }
        store["action"] = np.zeros((n, self.action_dim), dtype=np.float32)
        store["reward"] = np.zeros(n, dtype=np.float32)
        store["terminated"] = np.zeros(n, dtype=np.bool_)
        store["elapsed"] = np.zeros(n, dtype=np.int32)
        # Steps until the end of the episode, including this one; 0 in rows that cannot be sampled.
        store["remaining"] = np.zeros(n, dtype=np.int32)
        return store

    def _make_room(self, rows: IntArray, next_rows: IntArray) -> None:
        """Remove whole episodes before they are overwritten, which always starts at their first row."""
        remaining = self._rows["remaining"]
        touched = np.concatenate([rows[self._elapsed == 0], next_rows])
        for row in touched[remaining[touched] > 0]:
            remaining[self._shift(row, np.arange(remaining[row]))] = 0
            self._sampleable = None
            self._new_episodes = [episode for episode in self._new_episodes if episode[0] != row]

    def _terminations(self, done: Array, infos: list[dict[str, Any]]) -> BoolArray:
        terminated = np.array(done, dtype=np.bool_)
        if self.handle_timeout_termination:
            for i in np.flatnonzero(terminated):
                terminated[i] = not infos[i].get("TimeLimit.truncated", False)
        if self.terminate_on_success is None and self.env is not None and not self._asks_terminated and terminated.any():
            warnings.warn(AMBIGUOUS_TERMINATION, stacklevel=2)
            self.terminate_on_success = False  # the same as None here, without a second warning
        return terminated

    def _finish_episodes(self, env_indices: IntArray) -> None:
        """End the current episodes of these environments, so that they can be sampled."""
        for i in env_indices:
            length = int(self._elapsed[i])
            first, position = int(i) * self.buffer_size, int(self._positions[i])
            start = first + (position - length) % self.buffer_size
            self._rows["remaining"][self._shift(np.int64(start), np.arange(length))] = np.arange(length, 0, -1)
            self._new_episodes.append((start, length))
            # The row at the position holds the final observation.
            self._positions[i] = (position + 1) % self.buffer_size
            self._elapsed[i] = 0
            self._sampleable = None

    def truncate_last_trajectory(self) -> None:
        """Truncate the current episodes, as a time limit does. The environments must be reset afterwards."""
        self._finish_episodes(np.flatnonzero(self._elapsed))

    def size(self) -> int:
        """
        :return: number of transitions that can be sampled
        """
        return len(self._sampleable_rows())

    def set_env(self, env: VecEnv | None) -> None:
        """
        :param env: environments that compute rewards
        """
        self.env = env
        self._asks_terminated = env is not None and has_compute_terminated(env)

    def adopt_settings(self, other: "HindsightReplayBuffer") -> None:
        """
        Keep the experience, and take all settings from another buffer.

        :param other: buffer with the settings
        """
        for name in self.SETTINGS:
            setattr(self, name, getattr(other, name))

    def __getstate__(self) -> dict[str, Any]:
        # Without the environments, and without rows that were never written.
        state = {key: value for key, value in self.__dict__.items() if key not in ("env", "_sampleable")}
        split = {key: rows.reshape(self.n_envs, -1, *rows.shape[1:]) for key, rows in self._rows.items()}
        return {**state, "_rows": {key: rows[:, : self._used].copy() for key, rows in split.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sampleable = None
        self.set_env(None)
        saved, self._rows = self._rows, {}
        if saved:
            self._rows = self._allocate()
            for key, rows in saved.items():
                whole = self._rows[key].reshape(self.n_envs, -1, *rows.shape[2:])  # a view
                whole[:, : rows.shape[1]] = rows

    # ---- sampling ----------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]  # as SB3's own
        """
        Sample transitions with replacement, all equally likely.

        :param batch_size: B
        :param env: must be ``None``, since observations and rewards are not normalised here
        :return: ``[B, ...]`` each; rewards, dones and discounts ``[B, 1]``. The goals of the first ``int(her_ratio * B)`` are
            relabelled. With n-step returns, ``rewards`` are their discounted sums, ``next_observations`` are those n steps
            later, and ``discounts`` multiply the values of these
        :raises ValueError: there is no complete episode, no environment to compute rewards, or a ``VecNormalize``
        """
        if env is not None:
            raise ValueError("HindsightReplayBuffer does not support VecNormalize: the policy normalises its inputs itself")
        sampleable = self._sampleable_rows()
        if len(sampleable) == 0:
            raise ValueError("no episode is complete yet: collect at least one whole episode before sampling")
        rows = sampleable[self.rng.integers(0, len(sampleable), batch_size)]
        n_virtual = int(self.her_ratio * batch_size)
        goals = self._goals(rows, n_virtual)
        returns, steps, terminated = self._returns(rows, goals, n_virtual)
        return DictReplayBufferSamples(
            observations=self._observations(rows, goals),
            actions=self.to_torch(self._take("action", rows), copy=False),
            next_observations=self._observations(self._shift(rows, steps), goals),
            dones=self.to_torch(terminated.astype(np.float32)[:, None], copy=False),
            rewards=self.to_torch(returns[:, None], copy=False),
            discounts=self.to_torch((self.gamma**steps).astype(np.float32)[:, None], copy=False),
        )

    def sample_new_episodes(self) -> TensorDict | None:
        """
        Return each transition of the episodes completed since the last call once, with goals relabelled as in training.

        :return: ``observation`` and ``desired_goal``, ``[B, ...]`` each; ``None`` without new episodes
        """
        if not self._new_episodes:
            return None
        rows = np.concatenate([self._shift(np.int64(start), np.arange(length)) for start, length in self._new_episodes])
        self._new_episodes = []
        rows = self.rng.permutation(rows)
        goals = self._goals(rows, int(self.her_ratio * len(rows)))
        observations = self._observations(rows, goals)
        return {key: observations[key] for key in ("observation", "desired_goal")}

    def _sampleable_rows(self) -> IntArray:
        if self._sampleable is None:
            remaining = self._rows.get("remaining", np.zeros(0, dtype=np.int32))
            self._sampleable = np.flatnonzero(remaining)
        return self._sampleable

    def _take(self, key: str, rows: IntArray) -> Array:
        return np.take(self._rows[key], rows, axis=0)

    def _shift(self, rows: IntArray | np.int64, steps: IntArray) -> IntArray:
        """Rows that are a number of steps later in the same ring."""
        shifted: IntArray = rows + steps
        position = rows % self.buffer_size + steps
        return shifted + self.buffer_size * ((position < 0).astype(np.int64) - (position >= self.buffer_size))

    def _observations(self, rows: IntArray, goals: Array) -> TensorDict:
        arrays = {key: self._take(key, rows) for key in ("observation", "achieved_goal")} | {"desired_goal": goals}
        return {key: self.to_torch(array, copy=False) for key, array in arrays.items()}

    def _goals(self, rows: IntArray, n_virtual: int) -> Array:
        """Desired goals, ``[B, ...]``: achieved goals for the first ``n_virtual`` rows, the original ones for the rest."""
        goals = self._take("desired_goal", rows)
        virtual = rows[:n_virtual]
        if self.goal_selection_strategy == "random":
            sampleable = self._sampleable_rows()
            states = self._shift(sampleable[self.rng.integers(0, len(sampleable), n_virtual)], np.ones(1, dtype=np.int64))
        else:
            elapsed, remaining = (self._take(key, virtual).astype(np.int64) for key in ("elapsed", "remaining"))
            states = self._shift(virtual, goal_offsets(self.goal_selection_strategy, elapsed, remaining, self.rng))
        goals[:n_virtual] = self._take("achieved_goal", states)
        return goals

    def _returns(self, rows: IntArray, goals: Array, n_virtual: int) -> tuple[FloatArray, IntArray, BoolArray]:
        """Returns, numbers of steps and terminations of the segments that start at these rows, ``[B]`` each."""
        lengths = np.minimum(self._take("remaining", rows), self.n_steps).astype(np.int64)
        # Shorter segments are padded with their last row, which segment_returns() ignores.
        steps = np.minimum(np.arange(self.n_steps), lengths[:, None] - 1)
        segments = self._shift(rows[:, None], steps)
        rewards, terminated = self._take("reward", segments), self._take("terminated", segments)
        if n_virtual > 0:
            after = self._shift(segments[:n_virtual].ravel(), np.ones(1, dtype=np.int64))
            achieved, desired = self._take("achieved_goal", after), np.repeat(goals[:n_virtual], self.n_steps, axis=0)
            new_rewards, new_terminated = self._ask_environment(achieved, desired)
            rewards[:n_virtual] = new_rewards.reshape(n_virtual, -1)
            if new_terminated is not None:
                terminated[:n_virtual] = new_terminated.reshape(n_virtual, -1)
        return segment_returns(rewards, terminated, lengths, self.gamma)

    def _ask_environment(self, achieved: Array, desired: Array) -> tuple[FloatArray, BoolArray | None]:
        """Rewards and terminations of pairs of goals, ``[S]`` each; ``None`` in place of terminations: keep recorded ones."""
        if self.env is None:
            raise ValueError("the replay buffer needs an environment to compute rewards: call set_env() first")
        rewards = compute_rewards(self.env, achieved, desired)
        check_rewards(rewards, self.reward_range)
        if self.terminate_on_success:
            assert self.reward_range is not None
            return rewards, rewards >= self.reward_range[1]
        if self.terminate_on_success is None and self._asks_terminated:
            return rewards, compute_terminated(self.env, achieved, desired)
        return rewards, None


def compute_rewards(env: VecEnv, achieved: Array, desired: Array) -> FloatArray:
    """
    Compute rewards with the vectorised ``compute_reward`` of the first environment.

    :param env: environments
    :param achieved: achieved goals, ``[B, ...]``
    :param desired: desired goals, ``[B, ...]``
    :return: ``[B]``
    """
    (rewards,) = env.env_method("compute_reward", achieved, desired, [{}] * len(achieved), indices=[0])
    return np.asarray(rewards, dtype=np.float32)


def compute_terminated(env: VecEnv, achieved: Array, desired: Array) -> BoolArray:
    """
    Compute terminations with the ``compute_terminated`` of the first environment, which may return a constant.

    :param env: environments
    :param achieved: achieved goals, ``[B, ...]``
    :param desired: desired goals, ``[B, ...]``
    :return: ``[B]``
    """
    (terminated,) = env.env_method("compute_terminated", achieved, desired, [{}] * len(achieved), indices=[0])
    return np.broadcast_to(np.asarray(terminated, dtype=np.bool_), (len(achieved),))


def has_compute_terminated(env: VecEnv) -> bool:
    """
    :param env: environments
    :return: whether they have ``compute_terminated``
    """
    return env.has_attr("compute_terminated")


def check_rewards(rewards: Array, reward_range: tuple[float, float] | None) -> None:
    """
    :param rewards: any shape
    :param reward_range: minimum and maximum reward; ``None``: any finite reward
    :raises ValueError: a reward is out of range or not finite
    """
    low, high = (-np.inf, np.inf) if reward_range is None else reward_range
    least, greatest = rewards.min(), rewards.max()
    # Comparisons with NaN are false.
    if not (low <= least and greatest <= high and np.isfinite(least) and np.isfinite(greatest)):
        raise ValueError(
            f"the environment returned rewards from {least} to {greatest}, outside of reward_range={reward_range}: pass the "
            "correct reward_range=(minimum, maximum), or None for targets without clipping"
        )


def _strategy(strategy: GoalSelectionStrategy | str) -> str:
    name = strategy.name if isinstance(strategy, GoalSelectionStrategy) else strategy
    if not isinstance(name, str) or name.lower() not in GOAL_STRATEGIES:
        raise ValueError(
            f"goal_selection_strategy={strategy!r} is unknown: choose one of {', '.join(map(repr, GOAL_STRATEGIES))}"
        )
    return name.lower()


def _storage_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """float32 instead of float64, since the networks compute in float32."""
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float32) if dtype == np.float64 else dtype
