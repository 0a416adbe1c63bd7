"""Rollout storage: contents, growth, reuse, and selection of the used steps."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import ACTION_SPACES, OBSERVATION_SPACES
from gymnasium import spaces

from sb3_pg.common.buffers import PolicyGradientBuffer, PolicyGradientDictBuffer

VECTOR = OBSERVATION_SPACES["box"]


def make(
    observation: spaces.Space[Any] = VECTOR,
    action: spaces.Space[Any] = ACTION_SPACES["discrete"],
    capacity: int = 4,
    n_envs: int = 2,
) -> PolicyGradientBuffer:
    buffer_class: Any = PolicyGradientDictBuffer if isinstance(observation, spaces.Dict) else PolicyGradientBuffer
    buffer: PolicyGradientBuffer = buffer_class(capacity, observation, action, device="cpu", n_envs=n_envs)
    return buffer


def batch(space: spaces.Space[Any], n: int) -> Any:
    """n samples, stacked as a vectorised environment does."""
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def fill(buffer: PolicyGradientBuffer, n_steps: int, **flags: np.ndarray) -> list[dict[str, Any]]:
    """
    Add random steps; flags that are not given are False, ``used`` True.

    :return: the arguments of each step
    """
    rng = np.random.default_rng(0)
    given = []
    for t in range(n_steps):
        n_envs = buffer.n_envs
        step = {
            "obs": batch(buffer.observation_space, n_envs),
            "actions": batch(buffer.action_space, n_envs),
            "rewards": rng.normal(size=n_envs).astype(np.float32),
            **{name: np.zeros(n_envs, dtype=bool) for name in ("episode_starts", "terminated", "truncated")},
            "used": np.ones(n_envs, dtype=bool),
            **{name: column[t] for name, column in flags.items()},
        }
        buffer.add(**step)
        given.append(step)
    return given


def column(*numbers: int) -> np.ndarray:
    """Flags of one environment."""
    return np.array(numbers, dtype=bool)[:, None]


@pytest.mark.parametrize("observation", [key for key in OBSERVATION_SPACES if not key.startswith("dict")])
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_samples_are_the_added_steps(observation: str, action: str) -> None:
    buffer = make(OBSERVATION_SPACES[observation], ACTION_SPACES[action])
    rng = np.random.default_rng(1)
    flags = {name: rng.random((6, 2)) < 0.3 for name in ("episode_starts", "terminated", "truncated")}
    given = fill(buffer, 6, **flags)
    buffer.finish(np.zeros(2, dtype=np.int64))
    for name in ("rewards", "episode_starts", "terminated", "truncated", "used"):
        assert np.array_equal(getattr(buffer, name), [step[name] for step in given])
    samples = buffer.samples()
    assert isinstance(samples.observations, th.Tensor)
    stacked = np.concatenate([step["obs"] for step in given])  # time-major: both environments of step 0 first
    assert samples.observations.numpy().dtype == OBSERVATION_SPACES[observation].dtype
    assert np.array_equal(samples.observations.numpy().reshape(stacked.shape), stacked)
    actions = np.concatenate([step["actions"] for step in given])
    assert np.allclose(samples.actions.numpy(), actions, rtol=1e-6)
    assert samples.actions.dtype == (th.int64 if action == "discrete" else th.float32)
    assert samples.actions.shape == actions.shape


@pytest.mark.parametrize("observation", ["dict", "dict_image"])
def test_dictionaries_are_stored_key_by_key(observation: str) -> None:
    space = OBSERVATION_SPACES[observation]
    assert isinstance(space, spaces.Dict)
    buffer = make(space)
    given = fill(buffer, 5)
    buffer.finish(np.zeros(2, dtype=np.int64))
    samples = buffer.samples().observations
    assert isinstance(samples, dict)
    assert set(samples) == set(space.spaces)
    for key, tensor in samples.items():
        stacked = np.concatenate([step["obs"][key] for step in given])
        assert tensor.numpy().dtype == space[key].dtype
        assert np.array_equal(tensor.numpy().reshape(stacked.shape), stacked)


def test_actions_of_double_precision_are_returned_in_single_precision() -> None:
    buffer = make(action=spaces.Box(-1.0, 1.0, (2, 2), np.float64))
    given = fill(buffer, 3)
    buffer.finish(np.zeros(2, dtype=np.int64))
    assert buffer.samples().actions.dtype == th.float32
    stacked = np.concatenate([step["actions"] for step in given]).reshape(6, 4)
    assert np.array_equal(buffer.samples().actions.numpy(), stacked.astype(np.float32))


def test_continuous_actions_of_an_integer_type_are_not_rounded() -> None:
    """A Gaussian policy samples real numbers, regardless of the dtype of the space."""
    buffer = make(action=spaces.Box(0, 10, (2,), np.int64))
    actions = np.array([[0.25, -1.5], [7.75, 12.125]], dtype=np.float32)
    step = fill(make(), 1)[0]
    buffer.add(**{**step, "actions": actions})
    buffer.finish(np.zeros(2, dtype=np.int64))
    assert np.array_equal(buffer.samples().actions.numpy(), actions)


def test_added_arrays_are_copied() -> None:
    buffer = make()
    given = fill(buffer, 1)[0]
    before = buffer.rewards[0].copy(), buffer.observations[0].copy()
    given["rewards"] += 1
    given["obs"] += 1
    assert np.array_equal(buffer.rewards[0], before[0])
    assert np.array_equal(buffer.observations[0], before[1])


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_storage_grows_and_keeps_its_contents(observation: str) -> None:
    buffer = make(OBSERVATION_SPACES[observation], capacity=2)
    given = fill(buffer, 11)
    buffer.finish(np.zeros(2, dtype=np.int64))
    assert buffer.capacity == 16
    assert buffer.rewards.shape == (11, 2)
    assert np.array_equal(buffer.rewards, [step["rewards"] for step in given])
    stored, added = (buffer.observations, [step["obs"] for step in given])
    if isinstance(stored, dict):
        stored, added = stored["vector"], [obs["vector"] for obs in added]
    assert np.array_equal(stored, added)


def test_storage_is_reused_by_the_next_rollout() -> None:
    buffer = make(capacity=2)
    fill(buffer, 11)
    buffer.finish(np.zeros(2, dtype=np.int64))
    arrays = {name: getattr(buffer, name) for name in ("observations", "actions", "rewards", "terminated")}
    buffer.reset()
    given = fill(buffer, 7)
    buffer.finish(np.zeros(2, dtype=np.int64))
    assert buffer.capacity == 16
    assert all(np.shares_memory(getattr(buffer, name), array) for name, array in arrays.items())
    assert buffer.rewards.shape == (7, 2)
    assert np.array_equal(buffer.rewards, [step["rewards"] for step in given])


def test_a_reset_clears_final_observations() -> None:
    buffer = make()
    buffer.add_final_observation(1, VECTOR.sample())
    buffer.reset()
    assert buffer.final_indices == []
    assert buffer.final_observations == []


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_final_observations_are_in_the_order_of_their_indices(observation: str) -> None:
    space = OBSERVATION_SPACES[observation]
    buffer = make(space)
    finals = [space.sample() for _ in range(3)]
    for t, env, final in ((0, 1, finals[0]), (2, 0, finals[1]), (2, 1, finals[2])):
        fill(buffer, t - buffer.pos)
        buffer.add_final_observation(env, final)
    fill(buffer, 1)
    assert buffer.final_indices == [(0, 1), (2, 0), (2, 1)]
    result = buffer.final_observations_tensor()
    if isinstance(result, dict):
        assert isinstance(space, spaces.Dict)
        for key in space.spaces:
            expected = np.stack([np.asarray(final[key]) for final in finals])
            assert np.array_equal(result[key].numpy().reshape(expected.shape), expected)
    else:
        expected = np.stack(finals)
        assert np.array_equal(result.numpy().reshape(expected.shape), expected)
        # The policy must get both in the same format.
        buffer.finish(np.zeros(2, dtype=np.int64))
        stored = buffer.samples().observations
        assert isinstance(stored, th.Tensor)
        assert stored.shape[1:] == result.shape[1:]
        assert stored.dtype == result.dtype


def test_episode_steps_are_counted_from_the_start_even_in_an_earlier_rollout() -> None:
    buffer = make(n_envs=3)
    starts = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)
    fill(buffer, 5, episode_starts=starts)
    buffer.finish(np.array([7, 9, 100]))
    assert buffer.episode_steps.tolist() == [[7, 0, 100], [8, 1, 101], [0, 2, 102], [1, 0, 103], [0, 0, 104]]


def test_only_used_steps_are_selected_in_chronological_order() -> None:
    buffer = make()
    used = np.array([[1, 1], [1, 0], [0, 0], [1, 0]], dtype=bool)
    given = fill(buffer, 4, used=used)
    buffer.finish(np.zeros(2, dtype=np.int64))
    rewards = [step["rewards"] for step in given]
    assert buffer.n_used == 4
    assert buffer.select(buffer.rewards).tolist() == [rewards[0][0], rewards[0][1], rewards[1][0], rewards[3][0]]
    samples = buffer.samples()
    assert len(samples.actions) == len(samples.observations) == 4


def test_selecting_everything_copies_nothing() -> None:
    buffer = make()
    fill(buffer, 4)
    buffer.finish(np.zeros(2, dtype=np.int64))
    assert np.shares_memory(buffer.select(buffer.rewards), buffer.rewards)
    assert buffer.select(buffer.rewards).tolist() == buffer.rewards.ravel().tolist()


def test_episodes_are_numbered_without_gaps_over_the_used_steps() -> None:
    """The first environment completes its two episodes after three steps, the second after five."""
    buffer = make()
    terminated = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [0, 0]], dtype=bool)
    truncated = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [0, 1]], dtype=bool)
    used = np.array([[1, 1], [1, 1], [1, 1], [0, 1], [0, 1]], dtype=bool)
    fill(buffer, 5, terminated=terminated, truncated=truncated, used=used)
    buffer.finish(np.zeros(2, dtype=np.int64))
    first, second = buffer.episodes()[[0, 2, 4]].tolist(), buffer.episodes()[[1, 3, 5, 6, 7]].tolist()
    assert first == [0, 0, 1]
    assert second == [2, 2, 2, 3, 3]


def test_one_environment_and_one_step() -> None:
    buffer = make(n_envs=1, capacity=1)
    given = fill(buffer, 1, terminated=column(1), episode_starts=column(1))
    buffer.finish(np.array([5]))
    assert buffer.episode_steps.tolist() == [[0]]
    assert buffer.episodes().tolist() == [0]
    assert buffer.samples().actions.tolist() == given[0]["actions"].tolist()
