"""The replay buffer against the scripted steps of the environments, and hindsight relabelling against slow loops."""

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goal_envs import CountingGoalEnv, counting_envs, pair_reward, point_envs
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_pg.her_ddpg import HindsightReplayBuffer
from sb3_pg.her_ddpg.buffers import GOAL_STRATEGIES
from sb3_pg.her_ddpg.hindsight import goal_offsets, segment_returns

GAMMA = 0.8
SCRIPTS: list[list[tuple[int, str]]] = [
    [(3, "truncated"), (1, "terminated"), (5, "truncated")],
    [(4, "terminated"), (2, "truncated")],
]


def make_buffer(env: VecEnv, size: int = 400, **kwargs: Any) -> HindsightReplayBuffer:
    space = env.observation_space
    assert isinstance(space, spaces.Dict)
    options = {"env": env, "device": "cpu", "n_envs": env.num_envs, "gamma": GAMMA, "terminate_on_success": False, **kwargs}
    buffer = HindsightReplayBuffer(size, space, env.action_space, **options)
    buffer.rng = np.random.default_rng(0)
    return buffer


def fill(buffer: HindsightReplayBuffer, env: VecEnv, n_steps: int, obs: Any = None) -> Any:
    """Step ``n_steps`` times with actions -1 + t/1000, and return the last observation."""
    obs = env.reset() if obs is None else obs
    for t in range(n_steps):
        actions = np.full((env.num_envs, 1), -1 + t / 1000, np.float32)
        new_obs: Any
        new_obs, rewards, dones, infos = env.step(actions)
        next_obs = {key: array.copy() for key, array in new_obs.items()}
        for i in np.flatnonzero(dones):
            for key in next_obs:
                next_obs[key][i] = infos[i]["terminal_observation"][key]
        buffer.add(obs, next_obs, actions, rewards, dones, infos)
        obs = new_obs
    return obs


def decode(code: float) -> tuple[int, int, int]:
    """Environment, episode and step, which an observation encodes."""
    number, rest = divmod(round(code), 10000)
    return number, *divmod(rest, 100)


def ending(scripts: Sequence[Sequence[tuple[int, str]]], number: int, episode: int) -> tuple[int, str]:
    return scripts[number][episode % len(scripts[number])]


def episodes_complete(script: Sequence[tuple[int, str]], n_steps: int) -> int:
    count, used = 0, 0
    while used + script[count % len(script)][0] <= n_steps:
        used += script[count % len(script)][0]
        count += 1
    return count


@pytest.mark.parametrize("strategy", GOAL_STRATEGIES)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_samples_are_the_steps_of_the_environments(strategy: str, n_steps: int) -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env, goal_selection_strategy=strategy, n_steps=n_steps, reward_range=(-1, 0))
    fill(buffer, env, 30)
    n_complete = [episodes_complete(script, 30) for script in SCRIPTS]
    sample = buffer.sample(5000)
    seen = set()
    for i in range(5000):
        code, goal = sample.observations["observation"][i].item(), sample.observations["desired_goal"][i].item()
        number, episode, t = decode(code)
        length, how = ending(SCRIPTS, number, episode)
        assert episode < n_complete[number]
        assert t < length
        seen.add((number, episode, t))
        m = min(n_steps, length - t)
        assert sample.observations["achieved_goal"][i].item() == code
        assert sample.next_observations["observation"][i].item() == code + m
        assert sample.next_observations["achieved_goal"][i].item() == code + m
        assert sample.next_observations["desired_goal"][i].item() == goal
        assert sample.dones[i].item() == (how == "terminated" and t + m == length)
        assert sample.discounts is not None
        assert sample.discounts[i].item() == pytest.approx(GAMMA**m)
        virtual = i < 4000
        # Recorded rewards: here each step has its own desired goal. Relabelled rewards: one goal for all steps.
        goals = [goal if virtual else -1 - (code + k + 1) for k in range(m)]
        reward = sum(GAMMA**k * pair_reward(code + k + 1, goals[k]) for k in range(m))
        assert sample.rewards[i].item() == pytest.approx(reward, abs=1e-6)
        if not virtual:
            assert goal == -1 - code
            continue
        goal_number, goal_episode, goal_t = decode(goal)
        if strategy == "random":
            assert goal_episode < n_complete[goal_number]
            assert 1 <= goal_t <= ending(SCRIPTS, goal_number, goal_episode)[0]
        else:
            assert (goal_number, goal_episode) == (number, episode)
            first = {"future": t + 1, "final": length, "episode": 1}[strategy]
            assert first <= goal_t <= length
    every = {(i, e, t) for i in range(2) for e in range(n_complete[i]) for t in range(ending(SCRIPTS, i, e)[0])}
    assert seen == every
    assert buffer.size() == len(every)


def test_actions_belong_to_their_steps() -> None:
    env = counting_envs([[(5, "truncated")]])
    buffer = make_buffer(env)
    fill(buffer, env, 20)
    sample = buffer.sample(500)
    for code, action in zip(sample.observations["observation"], sample.actions, strict=True):
        _, episode, t = decode(code.item())
        assert action.item() == pytest.approx(-1 + (5 * episode + t) / 1000)


@pytest.mark.parametrize("size", [20, 21, 22, 23, 27, 30])
def test_a_full_buffer_removes_whole_episodes_oldest_first(size: int) -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env, size=2 * size)
    obs = None
    for n_steps in range(1, 150):
        obs = fill(buffer, env, 1, obs)
        for number, script in enumerate(SCRIPTS):
            if n_steps < 10:
                continue
            n_complete = episodes_complete(script, n_steps)
            rows = buffer._sampleable_rows()
            mine = rows[rows // size == number]
            kept = Counter(decode(code)[1] for code in buffer._rows["observation"][mine, 0])
            newest = sorted(kept)
            # The latest episodes without gaps, each of them complete, and as many as fit.
            assert newest == list(range(n_complete - len(newest), n_complete))
            assert all(kept[episode] == ending(SCRIPTS, number, episode)[0] for episode in newest)
            running = n_steps - sum(ending(SCRIPTS, number, e)[0] for e in range(n_complete))
            taken = sum(length + 1 for length in kept.values()) + (running + 1 if running else 0)
            assert taken <= size
            if newest and newest[0] > 0:
                assert taken + ending(SCRIPTS, number, newest[0] - 1)[0] + 1 > size - 1
    assert buffer.sample(100).rewards.shape == (100, 1)


def test_all_transitions_are_equally_likely() -> None:
    env = counting_envs([[(1, "truncated"), (6, "truncated")]])
    buffer = make_buffer(env)
    fill(buffer, env, 14)
    n = 28_000
    counts = Counter(buffer.sample(n).observations["observation"].flatten().tolist())
    assert len(counts) == 14
    # Binomial; 6 standard deviations.
    assert all(abs(count - n / 14) < 6 * np.sqrt(n / 14) for count in counts.values())


@pytest.mark.parametrize(("n_sampled_goal", "virtual"), [(0, 0), (1, 50), (4, 80), (9, 90)])
def test_the_share_of_relabelled_goals(n_sampled_goal: int, virtual: int) -> None:
    env = counting_envs([[(5, "truncated")]])
    buffer = make_buffer(env, n_sampled_goal=n_sampled_goal)
    fill(buffer, env, 20)
    goals = buffer.sample(100).observations["desired_goal"]
    assert int((goals > 0).sum()) == virtual  # the original ones are negative


def test_new_episodes_are_returned_once() -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env)
    assert buffer.sample_new_episodes() is None
    obs = fill(buffer, env, 4)
    sample = buffer.sample_new_episodes()
    assert sample is not None
    codes = [0, 1, 2, 100, 10000, 10001, 10002, 10003]
    assert sorted(sample["observation"].flatten().tolist()) == codes
    assert int((sample["desired_goal"] > 0).sum()) == 6  # int(0.8 * 8)
    assert buffer.sample_new_episodes() is None
    fill(buffer, env, 2, obs)
    sample = buffer.sample_new_episodes()
    assert sample is not None
    assert sorted(sample["observation"].flatten().tolist()) == [10100, 10101]


def test_a_new_goal_changes_where_the_episode_ends() -> None:
    """By compute_terminated and by the maximum reward, but never with terminate_on_success=False."""
    env = point_envs(1, terminate=True, monitor=False)
    for option in (None, True, False):
        buffer = make_buffer(env, terminate_on_success=option, reward_range=(-1, 0), goal_selection_strategy="future")
        rng = np.random.default_rng(1)
        obs: Any = env.reset()
        for _ in range(300):
            new_obs: Any
            new_obs, rewards, dones, infos = env.step(rng.uniform(-0.5, 0.5, (1, 2)))
            next_obs = {key: infos[0]["terminal_observation"][key][None] if dones[0] else new_obs[key] for key in new_obs}
            buffer.add(obs, next_obs, np.zeros((1, 2)), rewards, dones, infos)
            obs = new_obs
        sample = buffer.sample(1000)
        arrived = (
            np.linalg.norm(sample.next_observations["achieved_goal"] - sample.observations["desired_goal"], axis=1) <= 0.25
        )
        dones = sample.dones.numpy()[:, 0].astype(bool)
        assert 0.2 < arrived[:800].mean() < 0.9
        assert ((sample.rewards.numpy()[:, 0] == 0) == arrived).all()
        if option is False:
            assert (dones[:800] != arrived[:800]).any()
        else:
            assert (dones == arrived).all()


def test_without_compute_terminated_recorded_terminations_are_kept_with_a_warning() -> None:
    env = counting_envs([[(2, "terminated")]])
    buffer = make_buffer(env, terminate_on_success=None)
    with pytest.warns(UserWarning, match=r"compute_terminated.*terminate_on_success=True"):
        fill(buffer, env, 2)
    fill(buffer, env, 4)
    sample = buffer.sample(50)
    assert ((sample.observations["observation"] % 100 == 1) == (sample.dones == 1)).all()


def test_time_limits_can_count_as_terminations() -> None:
    env = counting_envs([[(2, "truncated")]])
    buffer = make_buffer(env, handle_timeout_termination=False)
    fill(buffer, env, 4)
    sample = buffer.sample(50)
    assert ((sample.observations["observation"] % 100 == 1) == (sample.dones == 1)).all()


def test_unfinished_episodes_can_be_truncated() -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env)
    fill(buffer, env, 2)
    assert buffer.size() == 0
    buffer.truncate_last_trajectory()
    assert buffer.size() == 4
    sample = buffer.sample(200)
    assert set(sample.observations["observation"].flatten().tolist()) == {0, 1, 10000, 10001}
    assert (sample.dones == 0).all()
    buffer.truncate_last_trajectory()
    assert buffer.size() == 4
    fill(buffer, env, 4)  # after a reset
    assert buffer.size() == 4 + 1 + 2  # episode 1 of both environments: lengths 1 and 2; the next ones are unfinished


def test_errors_when_sampling() -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env)
    with pytest.raises(ValueError, match="no episode is complete yet"):
        buffer.sample(4)
    fill(buffer, env, 5)
    with pytest.raises(ValueError, match="VecNormalize"):
        buffer.sample(4, env=object())  # type: ignore[arg-type]  # any object
    buffer.set_env(None)
    with pytest.raises(ValueError, match=r"set_env\(\)"):
        buffer.sample(5)


def test_an_episode_must_fit_into_the_buffer() -> None:
    env = counting_envs([[(9, "truncated")]])
    fill(make_buffer(env, size=10), env, 20)
    with pytest.raises(ValueError, match="raise buffer_size"):
        fill(make_buffer(env, size=9), env, 20)


@pytest.mark.parametrize("reward", [-1.5, 0.5, float("nan"), float("-inf")])
def test_rewards_out_of_range_are_rejected(reward: float) -> None:
    env = counting_envs([[(9, "truncated")]])
    obs: Any = env.reset()
    buffer = make_buffer(env, reward_range=(-1, 0))
    with pytest.raises(ValueError, match="reward_range"):
        buffer.add(obs, obs, np.zeros((1, 1)), np.array([reward]), np.array([False]), [{}])
    if np.isfinite(reward):
        make_buffer(env).add(obs, obs, np.zeros((1, 1)), np.array([reward]), np.array([False]), [{}])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"goal_selection_strategy": "past"}, "future.*final.*episode.*random"),
        ({"n_sampled_goal": -1}, "n_sampled_goal"),
        ({"n_sampled_goal": 1.5}, "n_sampled_goal"),
        ({"copy_info_dict": True}, "copy_info_dict"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage"),
    ],
)
def test_the_constructor_rejects_invalid_options(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_buffer(counting_envs(SCRIPTS), **wrong)


def test_strategies_of_sb3s_enumeration() -> None:
    buffer = make_buffer(counting_envs(SCRIPTS), goal_selection_strategy=GoalSelectionStrategy.FINAL)
    assert buffer.goal_selection_strategy == "final"
    assert isinstance(buffer, HerReplayBuffer)


def test_memory_is_allocated_lazily_and_infos_are_not_stored() -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env, size=10**12)
    assert buffer._rows == {}
    small = make_buffer(env)
    fill(small, env, 9)
    assert not any(array.dtype == object for array in small._rows.values())


def test_a_buffer_continues_after_pickling() -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env, size=60)
    obs = fill(buffer, env, 17)
    copy = pickle.loads(pickle.dumps(buffer))
    assert copy.env is None
    copy.set_env(env)
    for a, b in zip(buffer.sample(50), copy.sample(50), strict=True):
        pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
        assert all((x == y).all() for x, y in pairs)
    fill(copy, env, 40, obs)
    assert copy.size() > 0
    big = make_buffer(env, size=10**6)
    fill(big, env, 17)
    assert len(pickle.dumps(big)) < 20_000


def test_a_buffer_is_loaded_by_another_process(tmp_path: Path) -> None:
    env = counting_envs(SCRIPTS)
    buffer = make_buffer(env)
    fill(buffer, env, 17)
    path = tmp_path / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer))
    code = f"import pickle; print(pickle.loads(open({str(path)!r}, 'rb').read()).size())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert int(done.stdout) == buffer.size()


# ---- relabelling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    # After 2 of 5 steps: the states 3 to 5, the state 5, the states 1 to 5.
    [("future", {1, 2, 3}), ("final", {3}), ("episode", {-1, 0, 1, 2, 3})],
)
def test_goal_offsets_are_uniform(strategy: str, expected: set[int]) -> None:
    n = 30_000
    offsets = goal_offsets(strategy, np.full(n, 2), np.full(n, 3), np.random.default_rng(0))
    counts = Counter(offsets.tolist())
    assert set(counts) == expected
    assert all(abs(count - n / len(expected)) < 6 * np.sqrt(n / len(expected)) for count in counts.values())


def test_segment_returns_by_hand() -> None:
    rewards = np.array([[-1, -1, -1], [-1, 0, -1], [-1, -1, 9], [-1, 9, 9]], dtype=np.float32)
    terminated = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=bool)
    returns, steps, terminal = segment_returns(rewards, terminated, np.array([3, 3, 2, 1]), 0.5)
    assert returns.tolist() == [-1.75, -1, -1.5, -1]
    assert steps.tolist() == [3, 2, 2, 1]
    # The third segment ends before the termination in its last column.
    assert terminal.tolist() == [False, True, False, True]


def test_segment_returns_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    rewards, terminated = rng.normal(size=(200, 4)).astype(np.float32), rng.random((200, 4)) < 0.2
    lengths = rng.integers(1, 5, 200)
    returns, steps, terminal = segment_returns(rewards, terminated, lengths, 0.9)
    for i in range(200):
        total, k, over = 0.0, 0, False
        while k < lengths[i] and not over:
            total += 0.9**k * rewards[i, k]
            over = bool(terminated[i, k])
            k += 1
        assert returns[i] == pytest.approx(total, abs=1e-5)
        assert (steps[i], terminal[i]) == (k, over)


def test_the_environment_of_these_tests_has_distinct_rewards() -> None:
    env = CountingGoalEnv(0, SCRIPTS[0])
    codes = np.arange(11.0)[:, None]
    assert len(set(env.compute_reward(codes, codes * 0, {}))) == 11
