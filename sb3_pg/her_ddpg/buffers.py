"""Replay of whole episodes with goals that are chosen in hindsight, when sampling."""

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
    "the environment ended an episode and has no compute_terminated(): whether a transition ends the episode is kept as it "
    "was recorded when its goal is replaced. Pass terminate_on_success=True if exactly the success ends it, or False for no "
    "warning"
)

Array = npt.NDArray[Any]


class HindsightReplayBuffer(HerReplayBuffer):
    """
    Replay buffer of whole episodes. A share of each batch has its desired goal replaced by one that was achieved, and its
    reward recomputed by the environment (Andrychowicz et al. 2017).

    It differs from SB3's ``HerReplayBuffer`` in that it needs no environment to be built, unpickled or filled, only to
    sample; in the strategy ``random``; in n-step returns along the segment of one goal; in that a new goal may change where
    the episode terminates; and in its storage: each observation is kept once, memory is taken with the first transition, and
    dictionaries of information are not kept at all.

    Rows: each environment owns ``buffer_size // n_envs`` of them, a ring. An episode of T steps takes T + 1, the last one for
    its final observation.

    :param buffer_size: number of rows of all environments together
    :param observation_space: with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param action_space: space of the actions
    :param env: environments whose ``compute_reward`` is asked; may be set later, see ``set_env``
    :param device: device of the samples
    :param n_envs: number of environments
    :param optimize_memory_usage: must be False; observations are kept once in any case
    :param handle_timeout_termination: whether an episode cut by a time limit counts as not terminated
    :param n_sampled_goal: number of samples with a replaced goal for each one with the original goal
    :param goal_selection_strategy: ``"future"``, ``"final"``, ``"episode"`` (goals achieved in the same episode, see
        :func:`sb3_pg.her_ddpg.hindsight.goal_offsets`), ``"random"`` (achieved anywhere in the buffer), or SB3's enumeration
    :param copy_info_dict: must be False; rewards must not depend on ``info``
    :param n_steps: length of the returns
    :param gamma: discount factor of these returns
    :param reward_range: least and greatest reward that the environment can give; ``None``: not known
    :param terminate_on_success: whether a transition terminates exactly if its reward is the greatest one; ``None``: ask the
        environment's ``compute_terminated``, or keep what was recorded where it has none
    :raises ValueError: an option out of range or not supported
    """

    # What an unpickled buffer takes over from the one it replaces: see load_replay_buffer of the algorithm.
    SETTINGS = (
        "env",
        "device",
        "n_sampled_goal",
        "her_ratio",
        "goal_selection_strategy",
        "n_steps",
        "gamma",
        "reward_range",
        "terminate_on_success",
        "rng",
        "_asks_terminated",
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
        # Not HerReplayBuffer's own constructor: it would allocate another storage.
        BaseBuffer.__init__(self, max(buffer_size // n_envs, 1), observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True is not needed here: each observation is kept once; use False")
        if copy_info_dict:
            raise ValueError("copy_info_dict=True is not supported: compute_reward must depend on the two goals alone")
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
        """Forget everything."""
        # Row arrays, [n_envs * buffer_size, ...]; empty until the first transition.
        self._rows: dict[str, Array] = {}
        # Next row of each environment within its ring, and steps of its running episode.
        self._positions = np.zeros(self.n_envs, dtype=np.int64)
        self._elapsed = np.zeros(self.n_envs, dtype=np.int64)
        # Row and length of each episode that finished since the last call of sample_new_episodes().
        self._new_episodes: list[tuple[int, int]] = []
        self._sampleable: IntArray | None = None
        # Rows of each ring that were ever written.
        self._used = 0
        # Of the base class, which counts one position for all environments: nothing here reads it.
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

        :param obs: ``[N, ...]`` each
        :param next_obs: ``[N, ...]`` each; the final observation where the episode is over
        :param action: ``[N, ...]``, scaled to [-1, 1]
        :param reward: ``[N]``
        :param done: ``[N]``, whether the episode is over
        :param infos: only ``TimeLimit.truncated`` is read
        :raises ValueError: a reward out of ``reward_range``, or an episode longer than the buffer
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
        # np.zeros takes memory when it is written to, not before.
        store = {
            key: np.zeros((n, *get_obs_shape(space)), dtype=_storage_dtype(space))
            for key, space in self.observation_space.spaces.items()
        }
        store["action"] = np.zeros((n, self.action_dim), dtype=np.float32)
        store["reward"] = np.zeros(n, dtype=np.float32)
        store["terminated"] = np.zeros(n, dtype=np.bool_)
        store["elapsed"] = np.zeros(n, dtype=np.int32)
        # Steps until the end of the row's episode, this one included; 0 where there is nothing to sample.
        store["remaining"] = np.zeros(n, dtype=np.int32)
        return store

    def _make_room(self, rows: IntArray, next_rows: IntArray) -> None:
        """Forget the whole episodes that rows about to be written belong to. Episodes are met at their first row."""
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
            self.terminate_on_success = False  # what None comes to here; said once
        return terminated

    def _finish_episodes(self, env_indices: IntArray) -> None:
        """Make the running episodes of these environments available."""
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
        """Let the running episodes end here, as if cut by a time limit: their environments will be reset."""
        self._finish_episodes(np.flatnonzero(self._elapsed))

    def size(self) -> int:
        """
        :return: number of transitions that can be sampled
        """
        return len(self._sampleable_rows())

    @property
    def can_sample(self) -> bool:
        """Whether an episode is complete."""
        return self.size() > 0

    def set_env(self, env: VecEnv | None) -> None:
        """
        :param env: environments to ask for rewards from now on
        """
        self.env = env
        self._asks_terminated = env is not None and has_compute_terminated(env)

    def adopt_settings(self, other: "HindsightReplayBuffer") -> None:
        """
        Keep the experience, and take everything else from another buffer.

        :param other: where from
        """
        for name in self.SETTINGS:
            setattr(self, name, getattr(other, name))

    def __getstate__(self) -> dict[str, Any]:
        # Not the environments; of the rows only those that were written.
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
        :param env: must be ``None``: rewards and observations come as the environment gives them
        :return: ``[B, ...]`` each, rewards, dones and discounts ``[B, 1]``; the first ``int(her_ratio * B)`` have a goal that
            was achieved. With n steps, ``rewards`` are their discounted sums, ``next_observations`` come that many steps
            later, and ``discounts`` multiply their value
        :raises ValueError: there is no complete episode yet, no environment to ask for rewards, or a ``VecNormalize``
        """
        if env is not None:
            raise ValueError(
                "HindsightReplayBuffer does not normalise by VecNormalize: the policy has a normaliser of its own"
            )
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
        Every transition of the episodes that finished since the last call, once, with the goals that training would see.

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
        """Rows that come some steps later in the same ring."""
        shifted: IntArray = rows + steps
        position = rows % self.buffer_size + steps
        return shifted + self.buffer_size * ((position < 0).astype(np.int64) - (position >= self.buffer_size))

    def _observations(self, rows: IntArray, goals: Array) -> TensorDict:
        arrays = {key: self._take(key, rows) for key in ("observation", "achieved_goal")} | {"desired_goal": goals}
        return {key: self.to_torch(array, copy=False) for key, array in arrays.items()}

    def _goals(self, rows: IntArray, n_virtual: int) -> Array:
        """The desired goals, ``[B, ...]``: achieved ones for the first ``n_virtual`` rows, the original ones for the rest."""
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
        """Returns, numbers of steps and terminations of the segments that begin at these rows, ``[B]`` each."""
        lengths = np.minimum(self._take("remaining", rows), self.n_steps).astype(np.int64)
        # Behind the end of a shorter segment its last row again: whatever it is worth, it is not counted.
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
        """Rewards and terminations ``[S]`` of arriving at one goal when another is desired; ``None``: as recorded."""
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
    Rewards by the first environment's vectorised ``compute_reward``.

    :param env: environments
    :param achieved: goals that were achieved, ``[B, ...]``
    :param desired: goals that were desired, ``[B, ...]``
    :return: ``[B]``
    """
    (rewards,) = env.env_method("compute_reward", achieved, desired, [{}] * len(achieved), indices=[0])
    return np.asarray(rewards, dtype=np.float32)


def compute_terminated(env: VecEnv, achieved: Array, desired: Array) -> BoolArray:
    """
    Terminations by the first environment's ``compute_terminated``, which may be one constant for all.

    :param env: environments
    :param achieved: goals that were achieved, ``[B, ...]``
    :param desired: goals that were desired, ``[B, ...]``
    :return: ``[B]``
    """
    (terminated,) = env.env_method("compute_terminated", achieved, desired, [{}] * len(achieved), indices=[0])
    return np.broadcast_to(np.asarray(terminated, dtype=np.bool_), (len(achieved),))


def has_compute_terminated(env: VecEnv) -> bool:
    """
    :param env: environments
    :return: whether they say if a goal ends the episode
    """
    return env.has_attr("compute_terminated")


def check_rewards(rewards: Array, reward_range: tuple[float, float] | None) -> None:
    """
    :param rewards: any shape
    :param reward_range: least and greatest reward; ``None``: anything finite
    :raises ValueError: a reward is outside, or not finite
    """
    low, high = (-np.inf, np.inf) if reward_range is None else reward_range
    least, greatest = rewards.min(), rewards.max()
    # Written so that NaN fails.
    if not (low <= least and greatest <= high and np.isfinite(least) and np.isfinite(greatest)):
        raise ValueError(
            f"the environment gave rewards from {least} to {greatest}, outside of reward_range={reward_range}: pass the true "
            "reward_range=(least, greatest), or None for targets without clipping"
        )


def _strategy(strategy: GoalSelectionStrategy | str) -> str:
    name = strategy.name if isinstance(strategy, GoalSelectionStrategy) else strategy
    if not isinstance(name, str) or name.lower() not in GOAL_STRATEGIES:
        raise ValueError(
            f"goal_selection_strategy={strategy!r} is unknown: choose one of {', '.join(map(repr, GOAL_STRATEGIES))}"
        )
    return name.lower()


def _storage_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """The networks compute in float32: more would only take memory."""
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float32) if dtype == np.float64 else dtype
