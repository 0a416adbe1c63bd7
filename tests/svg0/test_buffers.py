"""Sequence buffers: segments stay within episodes, also in a full ring, and weight all stored steps equally."""

import io
import itertools
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pg.svg0 import buffers
from sb3_pg.svg0.buffers import SequenceDictReplayBuffer, SequenceReplayBuffer, SequenceSamples

Buffer = SequenceReplayBuffer | SequenceDictReplayBuffer

BOX = spaces.Box(-np.inf, np.inf, (1,), np.float64)
DICT = spaces.Dict({"number": BOX, "kind": spaces.Discrete(3)})
ACTIONS = spaces.Box(-2.0, 2.0, (2,), np.float32)

# (length, ending) of the episodes of two environments.
SCRIPTS = [
    [(3, "truncated"), (1, "terminated"), (5, "terminated"), (4, "truncated")],
    [(4, "terminated"), (2, "truncated"), (1, "truncated"), (6, "terminated")],
]


def make(size: int, dictionary: bool = False, n_envs: int = 2, **kwargs: Any) -> Buffer:
    if dictionary:
        return SequenceDictReplayBuffer(size * n_envs, DICT, ACTIONS, "cpu", n_envs, **kwargs)
    return SequenceReplayBuffer(size * n_envs, BOX, ACTIONS, "cpu", n_envs, **kwargs)


class Filler:
    """
    Adds steps of scripted episodes. The observation of environment i is 1000 i + a counter that increases by one with each
    step, and by ten between episodes, so that it identifies the step; the reward is minus the observation, the sample and its
    log-density are multiples of it.

    :param buffer: buffer to fill
    """

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.obs = np.array([[0.0], [1000.0]])
        self.plans = [itertools.cycle(script) for script in SCRIPTS]
        self.left = [next(plan) for plan in self.plans]
        self.ends: dict[float, str] = {}

    def observe(self, obs: np.ndarray) -> Any:
        if isinstance(self.buffer, SequenceDictReplayBuffer):
            return {"number": obs.copy(), "kind": (obs[:, 0] % 3).astype(np.int64)}
        return obs.copy()

    def step(self) -> None:
        obs, next_obs = self.obs, self.obs + 1
        dones, infos = np.zeros(2, dtype=bool), []
        for i, (left, ending) in enumerate(self.left):
            dones[i] = left == 1
            infos.append({"TimeLimit.truncated": ending == "truncated"} if dones[i] else {})
            if dones[i]:
                self.ends[float(obs[i, 0])] = ending
            self.left[i] = next(self.plans[i]) if dones[i] else (left - 1, ending)
        samples = np.repeat(obs, 2, axis=1) * 1e-3
        self.buffer.add(self.observe(obs), self.observe(next_obs), samples, -obs[:, 0], dones, infos)
        self.buffer.set_log_probs(-2 * obs[:, 0])
        self.obs = next_obs + 10 * dones[:, None]


def filled(buffer: Buffer, n_steps: int) -> Filler:
    filler = Filler(buffer)
    for _ in range(n_steps):
        filler.step()
    return filler


def numbers(observations: Any, shape: tuple[int, ...]) -> np.ndarray:
    tensor = observations["number"] if isinstance(observations, dict) else observations
    return np.asarray(tensor).reshape(shape)


def every_segment(buffer: Buffer, length: int, monkeypatch: pytest.MonkeyPatch) -> SequenceSamples:
    """All possible draws, once each: every combination of anchor, environment and offset."""
    size = buffer.size()
    grid = np.stack(np.meshgrid(range(size), range(2), range(length), indexing="ij")).reshape(3, -1)
    rows = iter(grid)
    with monkeypatch.context() as patch:
        patch.setattr(buffers, "_random_integers", lambda high, n: _checked(next(rows), high, n))
        return buffer.sample_segments(grid.shape[1], length)


def _checked(row: np.ndarray, high: int, n: int) -> np.ndarray:
    assert len(row) == n
    assert row.max() == high - 1
    return row


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("n_steps", [1, 5, 12, 13, 19, 24, 40])
@pytest.mark.parametrize("length", [1, 2, 4, 7, 20])
def test_segments_lie_within_episodes(dictionary: bool, n_steps: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring holds 12 steps of each environment; it is partly filled, just full, and overwritten several times."""
    buffer = make(12, dictionary)
    filler = filled(buffer, n_steps)
    batch = every_segment(buffer, length, monkeypatch)
    shape = batch.rewards.shape
    obs, next_obs = (numbers(part, shape) for part in (batch.observations, batch.next_observations))
    weights = batch.weights.numpy().reshape(shape)
    used = weights > 0
    latest = set((filler.buffer.rewards[filler.buffer.pos - 1] * -1).tolist())
    for column in range(shape[1]):
        rows = np.flatnonzero(used[:, column])
        assert rows.tolist() == list(range(rows[0], rows[-1] + 1))
        own = obs[rows, column]
        # Consecutive numbers: one environment, one episode.
        assert np.all(np.diff(own) == 1)
        assert np.all(next_obs[rows, column] == own + 1)
        ends = [filler.ends.get(number) for number in own]
        assert set(ends[:-1]) <= {None}
        assert batch.terminated[rows, column].tolist() == [end == "terminated" for end in ends]
        # The recursion of returns stops at the end of the segment.
        assert not batch.truncated[rows[:-1], column].any()
        assert batch.terminated[rows[-1], column] or batch.truncated[rows[-1], column]
        # The segment is as long as possible.
        assert rows[-1] == length - 1 or ends[-1] is not None or own[-1] in latest
        assert np.allclose(weights[rows, column], 1 / (len(rows) * shape[1]))
    assert np.all(batch.rewards[used] == -obs[used])
    assert np.allclose(batch.log_probs[used], -2 * obs[used])
    assert np.allclose(batch.samples.numpy().reshape(*shape, 2)[used], obs[used][:, None] * 1e-3)
    if isinstance(batch.observations, dict):
        assert np.array_equal(batch.observations["kind"].numpy().reshape(shape)[used], obs[used] % 3)


@pytest.mark.parametrize("n_steps", [1, 5, 12, 19, 40])
@pytest.mark.parametrize("length", [1, 2, 4, 20])
def test_every_stored_step_has_the_same_weight(n_steps: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make(12)
    filled(buffer, n_steps)
    batch = every_segment(buffer, length, monkeypatch)
    stored = -buffer.rewards[: buffer.size()].ravel()
    weights = {float(number): 0.0 for number in stored}
    for number, weight in zip(numbers(batch.observations, (-1,)), batch.weights.numpy(), strict=True):
        weights[float(number)] += float(weight)
    assert len(weights) == 2 * min(n_steps, 12)
    assert np.allclose(list(weights.values()), 1 / len(weights))


def test_the_oldest_steps_are_not_joined_to_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one endless episode, only the write position can end a segment."""
    monkeypatch.setitem(globals(), "SCRIPTS", [[(10**6, "terminated")]] * 2)
    buffer = make(6)
    filled(buffer, 10)
    batch = every_segment(buffer, 4, monkeypatch)
    obs, used = numbers(batch.observations, (4, -1)), batch.weights.numpy().reshape(4, -1) > 0
    pairs = used[1:] & used[:-1]
    assert np.all(np.diff(obs, axis=0)[pairs] == 1)
    assert pairs.any()
    assert set(obs[used]) == {*range(4, 10), *range(1004, 1010)}


def test_random_segments_have_the_requested_shape() -> None:
    buffer = make(12)
    filled(buffer, 9)
    np.random.seed(0)  # noqa: NPY002 # the generator that SB3 seeds
    batch = buffer.sample_segments(5, 3)
    assert batch.rewards.shape == batch.terminated.shape == batch.truncated.shape == batch.log_probs.shape == (3, 5)
    assert batch.weights.shape == (15,)
    assert batch.weights.sum() == pytest.approx(1)
    assert batch.samples.shape == (15, 2)
    assert {batch.rewards.dtype, batch.log_probs.dtype} == {np.dtype(np.float32)}
    assert batch.samples.dtype == batch.weights.dtype == th.float32
    again = [numbers(buffer.sample_segments(5, 3).observations, (3, 5)) for _ in range(20)]
    assert len({array.tobytes() for array in again}) == 20


def test_the_whole_buffer_is_one_segment_per_environment() -> None:
    buffer = make(12)
    filler = filled(buffer, 7)
    batch = buffer.whole()
    obs = numbers(batch.observations, (7, 2))
    assert np.array_equal(obs, -buffer.rewards[:7])
    assert np.allclose(batch.weights, 1 / 14)
    ends = np.vectorize(lambda number: filler.ends.get(float(number), ""))(obs)
    assert np.array_equal(batch.terminated, ends == "terminated")
    last = np.arange(7)[:, None] == 6
    assert np.array_equal(batch.truncated, (ends == "truncated") | (last & (ends == "")))


def test_a_cut_only_truncates_unfinished_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make(12)
    buffer.cut()  # of an empty buffer
    assert buffer.dones.max() == 0
    filled(buffer, 4)  # an episode of each environment has just ended
    before = buffer.dones.copy(), buffer.timeouts.copy()
    assert before[0][3].tolist() == [1, 1]
    buffer.cut()
    assert np.array_equal(buffer.dones, before[0])
    assert np.array_equal(buffer.timeouts, before[1])
    other = make(12)
    filled(other, 6)
    assert other.dones[5].tolist() == [0, 1]
    other.cut()
    assert other.dones[5].tolist() == [1, 1]
    assert other.timeouts[5].tolist() == [1, 1]
    filled(other, 3)
    batch = every_segment(other, 4, monkeypatch)
    obs, used = numbers(batch.observations, (4, -1)), batch.weights.numpy().reshape(4, -1) > 0
    assert np.all(np.diff(obs, axis=0)[used[1:] & used[:-1]] == 1)


def test_log_probs_are_nan_until_they_are_set() -> None:
    buffer = make(3)
    filler = filled(buffer, 5)
    assert not np.isnan(buffer.log_probs).any()
    obs = filler.obs
    buffer.add(obs, obs + 1, np.zeros((2, 2)), np.zeros(2), np.zeros(2), [{}, {}])
    assert np.isnan(buffer.log_probs).sum(axis=1).tolist() == [0, 0, 2]
    buffer.set_log_probs(np.array([1.0, 2.0]))
    assert buffer.log_probs[2].tolist() == [1.0, 2.0]


def test_time_limits_can_count_as_terminations() -> None:
    buffer = make(12, handle_timeout_termination=False)
    filled(buffer, 12)
    batch = buffer.whole()
    assert np.array_equal(batch.terminated, buffer.dones > 0)
    assert np.array_equal(batch.truncated, (buffer.dones == 0) & (np.arange(12)[:, None] == 11))


@pytest.mark.parametrize("dictionary", [False, True])
def test_optimize_memory_usage_is_rejected(dictionary: bool) -> None:
    with pytest.raises(ValueError, match=r"optimize_memory_usage=True .*final observations"):
        make(12, dictionary, optimize_memory_usage=True)


@pytest.mark.parametrize("dictionary", [False, True])
def test_pickled_buffers_draw_the_same_segments(dictionary: bool) -> None:
    buffer = make(12, dictionary)
    filled(buffer, 19)
    copy = pickle.load(io.BytesIO(pickle.dumps(buffer)))
    draws = []
    for each in (buffer, copy):
        np.random.seed(1)  # noqa: NPY002 # the generator that SB3 seeds
        draws.append(each.sample_segments(6, 4))
    assert np.array_equal(numbers(draws[0].observations, (-1,)), numbers(draws[1].observations, (-1,)))
    assert np.array_equal(draws[0].log_probs, draws[1].log_probs)


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.float16])
def test_samples_are_real_numbers_for_any_action_space(dtype: Any) -> None:
    buffer = SequenceReplayBuffer(4, BOX, spaces.Box(-3, 3, (1,), dtype), "cpu")
    buffer.add(np.zeros(1), np.ones(1), np.array([[0.123456]]), np.zeros(1), np.zeros(1), [{}])
    assert buffer.whole().samples.item() == pytest.approx(0.123456, abs=1e-7)


class SpacesOnly(gym.Env[np.ndarray, np.ndarray]):
    """Only provides spaces."""

    observation_space = BOX
    action_space = ACTIONS


@pytest.mark.parametrize("whole", [False, True])
def test_observations_and_rewards_are_normalised(whole: bool) -> None:
    normalise = VecNormalize(DummyVecEnv([SpacesOnly] * 2))
    vars(normalise.obs_rms).update(mean=np.array([500.0]), var=np.array([40000.0]))
    normalise.ret_rms.var = np.array(250000.0)
    buffer = make(12)
    filled(buffer, 9)
    np.random.seed(0)  # noqa: NPY002 # the generator that SB3 seeds
    batch = buffer.whole(normalise) if whole else buffer.sample_segments(6, 4, normalise)
    obs, next_obs = numbers(batch.observations, (-1,)), numbers(batch.next_observations, (-1,))
    raw = -batch.rewards.ravel() * 500
    assert batch.rewards.dtype == np.float32
    assert np.allclose(obs, (raw - 500) / 200, atol=1e-4)
    assert np.allclose(next_obs, (raw + 1 - 500) / 200, atol=1e-4)


def test_sampling_single_steps_as_in_sb3() -> None:
    buffer = make(12)
    filled(buffer, 9)
    batch = buffer.sample(7)
    assert np.array_equal(batch.rewards, -numbers(batch.observations, (7, 1)))


def test_memory_per_step_is_as_documented() -> None:
    """Two observations, four bytes per action dimension, and 16 bytes."""
    space = spaces.Box(-1, 1, (17,), np.float64)
    buffer = SequenceReplayBuffer(1000, space, spaces.Box(-1, 1, (6,)), "cpu")

    def size() -> int:
        return sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray))

    # No memory before the first step.
    assert size() < 1000
    observation = np.zeros((1, 17))
    buffer.add(observation, observation, np.zeros((1, 6)), np.zeros(1), np.zeros(1), [{}])
    assert size() == 1000 * (2 * 17 * 8 + 6 * 4 + 16)
    assert buffer.size() == 1
