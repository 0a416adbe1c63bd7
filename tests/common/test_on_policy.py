"""Collection of rollouts: stored data, counters and callbacks, compared with the steps of the environments."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import OBSERVATION_SPACES, MatchEnv
from gymnasium import spaces
from smoke_envs import SCRIPTS, Recorder, Rollout, Script, ScriptedEnv, scripted_reward, scripted_vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_pg import VPG
from sb3_pg.common import on_policy
from sb3_pg.common.buffers import PolicyGradientBuffer


def snapshot(buffer: PolicyGradientBuffer) -> dict[str, Any]:
    """Copies of the contents of a complete rollout."""
    names = ("observations", "actions", "rewards", "episode_starts", "terminated", "truncated", "used", "episode_steps")
    return {
        **{name: copy.deepcopy(getattr(buffer, name)) for name in names},
        **{name: np.array(getattr(buffer, name)) for name in ("values", "next_values") if hasattr(buffer, name)},
    }


def collect(env: VecEnv, n_rollouts: int = 3, policy: str = "MlpPolicy", **kwargs: Any) -> tuple[VPG, list[Rollout]]:
    """Collect rollouts with a policy that is not uniform and does not learn; ``at_end`` holds the contents of the buffer."""
    model = VPG(policy, env, learning_rate=lambda _: 0.0, seed=0, device="cpu", **kwargs)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn(parameter.shape))
    recorder = Recorder(at_end=lambda m: snapshot(m.rollout_buffer))
    for i in range(n_rollouts):
        model.learn(1, callback=recorder, reset_num_timesteps=i == 0)
    return model, recorder.rollouts


def column(rollout: Rollout, name: str) -> np.ndarray:
    """One attribute of all steps, ``[T, N, ...]``."""
    return np.stack([np.stack([getattr(step, name) for step in steps]) for steps in rollout.steps], axis=1)


def value_of(policy: ActorCriticPolicy, obs: Any) -> float:
    with th.no_grad():
        return float(policy.predict_values(policy.obs_to_tensor(obs)[0]).item())


MODES: list[dict[str, Any]] = [{"n_steps": 7}, {"n_episodes": 4}]


# -------------------------------------------------------------------------------------------------------- stored data


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_buffer_stores_every_step(mode: dict[str, Any]) -> None:
    _, rollouts = collect(scripted_vec_env(), **mode)
    for rollout in rollouts:
        stored = rollout.at_end
        assert np.array_equal(stored["observations"], column(rollout, "obs"))
        assert np.array_equal(stored["actions"][..., 0], column(rollout, "action"))
        for name in ("terminated", "truncated"):
            assert np.array_equal(stored[name], column(rollout, name))
        assert np.array_equal(stored["episode_starts"], column(rollout, "t") == 0)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_rewards_are_stored_unmodified(mode: dict[str, Any]) -> None:
    """Recomputed from the observations, which encode environment, episode and step; some steps are truncated."""
    _, rollouts = collect(scripted_vec_env(), **mode)
    assert any(rollout.at_end["truncated"].any() for rollout in rollouts)
    for rollout in rollouts:
        stored = rollout.at_end
        for t, i in np.ndindex(stored["rewards"].shape):
            number, episode, step = np.rint(stored["observations"][t, i] * 10).astype(int)
            expected = scripted_reward(number, episode, step, stored["actions"][t, i, 0])
            assert stored["rewards"][t, i] == pytest.approx(expected, abs=1e-6)


def test_termination_takes_precedence_over_a_time_limit_at_the_same_step() -> None:
    _, rollouts = collect(scripted_vec_env([[(2, "both")], [(2, "truncated")], [(2, "terminated")]]), 1, n_steps=6)
    stored = rollouts[0].at_end
    last = np.array([False, True] * 3)
    assert np.array_equal(stored["terminated"], np.stack([last, ~last & last, last], axis=1))
    assert np.array_equal(stored["truncated"], np.stack([~last & last, last, ~last & last], axis=1))


BOUNDS = spaces.Box(np.array([-0.2, 3.0], dtype=np.float32), np.array([0.1, 4.0], dtype=np.float32))


def sampled_and_received(**kwargs: Any) -> tuple[Any, list[np.ndarray]]:
    """Actions of 40 steps, as stored in the buffer and as received by the environment."""
    received: list[np.ndarray] = []

    class Listening(ScriptedEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            received.append(np.array(action))
            return super().step(action)

    _, rollouts = collect(DummyVecEnv([lambda: Monitor(Listening(0, SCRIPTS[0], BOUNDS))]), 1, n_steps=40, **kwargs)
    return rollouts[0].at_end["actions"][:, 0], received


def test_actions_are_stored_as_sampled_and_executed_as_clipped() -> None:
    sampled, received = sampled_and_received()
    assert np.array_equal(np.clip(sampled, BOUNDS.low, BOUNDS.high), received)
    assert (sampled < BOUNDS.low).any(axis=0).all()
    assert (sampled > BOUNDS.high).any(axis=0)[0]


def test_squashed_actions_are_stored_as_sampled_and_executed_scaled_to_the_bounds() -> None:
    sampled, received = sampled_and_received(use_sde=True, policy_kwargs={"squash_output": True})
    assert np.abs(sampled).max() < 1
    assert np.allclose(BOUNDS.low + (sampled + 1) / 2 * (BOUNDS.high - BOUNDS.low), received, atol=1e-6)


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_observations_of_every_kind_are_stored_and_evaluated(observation: str, mode: dict[str, Any]) -> None:
    env = DummyVecEnv([lambda: Monitor(MatchEnv(observation, length=3, truncate=True)) for _ in range(2)])
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy", "dict_image": "MultiInputPolicy"}.get(observation, "MlpPolicy")
    model, rollouts = collect(env, 1, policy, **mode)
    stored, steps = rollouts[0].at_end, rollouts[0].steps
    for t, i in np.ndindex(stored["rewards"].shape):
        step, kept = steps[i][t], stored["observations"]
        if isinstance(step.obs, dict):
            assert all(np.array_equal(kept[key][t, i].ravel(), np.ravel(part)) for key, part in step.obs.items())
            assert all(kept[key].dtype == OBSERVATION_SPACES[observation][key].dtype for key in kept)  # type: ignore[index]  # Dict
        else:
            assert np.array_equal(kept[t, i].ravel(), np.ravel(step.obs))
            assert kept.dtype == OBSERVATION_SPACES[observation].dtype
        assert stored["values"][t, i] == pytest.approx(value_of(model.policy, step.obs), abs=1e-4)
        assert stored["next_values"][t, i] == pytest.approx(value_of(model.policy, step.next_obs), abs=1e-4)


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("chunk", [4096, 5, 1])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_values_do_not_depend_on_the_batch(mode: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next value is that of the final observation after a truncation, otherwise that of the next observation."""
    monkeypatch.setattr(on_policy, "VALUE_BATCH_SIZE", chunk)
    model, rollouts = collect(scripted_vec_env(), **mode)
    seen = {"truncated": 0, "next": 0, "end": 0}
    for rollout in rollouts:
        stored = rollout.at_end
        for t, i in zip(*np.nonzero(stored["used"]), strict=True):
            step = rollout.steps[i][t]
            assert stored["values"][t, i] == pytest.approx(value_of(model.policy, step.obs), abs=1e-5)
            if step.terminated:
                continue
            assert stored["next_values"][t, i] == pytest.approx(value_of(model.policy, step.next_obs), abs=1e-5)
            seen["truncated" if step.truncated else "end" if t == len(stored["used"]) - 1 else "next"] += 1
    assert seen["truncated"] > 2
    assert seen["next"] > 10
    assert (seen["end"] > 0) == ("n_steps" in mode)  # whole episodes are not cut


def test_final_observations_are_normalised() -> None:
    env = VecNormalize(scripted_vec_env([[(3, "truncated")], [(2, "truncated")]]), norm_reward=False)
    VPG("MlpPolicy", env, seed=0, n_steps=50).learn(1)
    env.training = False  # keep the statistics of the fifty steps
    model, rollouts = collect(env, 1, n_steps=6)
    cuts = [(t, i) for i, length in ((0, 3), (1, 2)) for t in range(length - 1, 6, length)]
    for t, i in cuts:
        first = rollouts[0].steps[i][t + 1 - (3, 2)[i]].obs
        raw = env.unnormalize_obs(first) + np.array([0, 0, (0.3, 0.2)[i]])  # the last step of the episode
        normalised = np.asarray(env.normalize_obs(raw), dtype=np.float32)
        assert np.abs(normalised - raw).max() > 0.5
        assert rollouts[0].at_end["next_values"][t, i] == pytest.approx(value_of(model.policy, normalised), abs=1e-4)


# --------------------------------------------------------------------------------------------------- steps of episodes


def test_episode_steps_are_counted_across_rollouts() -> None:
    scripts: list[Script] = [[(25, "terminated")], [(4, "truncated"), (9, "terminated")], [(10, "both")]]
    _, rollouts = collect(scripted_vec_env(scripts), 8, n_steps=7)
    counted = np.concatenate([rollout.at_end["episode_steps"] for rollout in rollouts])
    assert np.array_equal(counted, np.concatenate([column(rollout, "t") for rollout in rollouts]))
    assert counted.max() == 24


def test_episode_steps_restart_after_a_reset() -> None:
    """After learn() with a reset, with new environments, and after a callback stopped within an episode."""
    scripts: list[Script] = [[(100, "terminated")], [(100, "terminated")]]
    model, _ = collect(scripted_vec_env(scripts), 1, n_steps=7)

    def next_steps(**kwargs: Any) -> list[int]:
        model.learn(1, **kwargs)
        steps: list[int] = model.rollout_buffer.episode_steps[:, 0].tolist()
        return steps

    assert next_steps(reset_num_timesteps=False) == list(range(7, 14))
    assert next_steps(reset_num_timesteps=True) == list(range(7))
    model.set_env(scripted_vec_env(scripts))
    assert next_steps(reset_num_timesteps=False) == list(range(7))
    model.learn(1000, callback=lambda *_: False, reset_num_timesteps=False)
    assert next_steps(reset_num_timesteps=False) == list(range(7))


def test_episode_steps_survive_saving_if_the_environments_are_not_reset(tmp_path: Any) -> None:
    env = scripted_vec_env([[(100, "terminated")], [(100, "terminated")]])
    model, _ = collect(env, 1, n_steps=7)
    model.save(tmp_path / "model")
    loaded = VPG.load(tmp_path / "model", env=env, force_reset=False)
    loaded.learn(1, reset_num_timesteps=False)
    assert loaded.rollout_buffer.episode_steps[:, 1].tolist() == list(range(7, 14))


# --------------------------------------------------------------------------------------------------------- whole episodes


@pytest.mark.parametrize("quota", [1, 2, 3])
def test_each_environment_contributes_exactly_its_quota(quota: int) -> None:
    model, rollouts = collect(scripted_vec_env(), 4, n_episodes=2 * quota)
    vectorised = 0
    for rollout in rollouts:
        used, stored = rollout.at_end["used"], rollout.at_end
        assert column(rollout, "t")[0].tolist() == [0, 0]  # a reset before
        for i, steps in enumerate(rollout.steps):
            ends = np.flatnonzero([step.done for step in steps])
            assert used[:, i].tolist() == [t <= ends[quota - 1] for t in range(len(steps))]
        # The rollout ends when the slowest environment has completed its quota.
        assert used[-1].any()
        assert (stored["terminated"] | stored["truncated"])[used].sum() == 2 * quota
        vectorised += len(used)
    assert model.num_timesteps == 2 * vectorised
    assert not all(rollout.at_end["used"].all() for rollout in rollouts)


def test_only_used_episodes_enter_the_statistics() -> None:
    scripts: list[Script] = [[(1, "terminated")], [(10, "terminated")]]
    model, rollouts = collect(scripted_vec_env(scripts), 1, n_episodes=4)
    assert model.ep_info_buffer is not None
    assert sorted(info["l"] for info in model.ep_info_buffer) == [1, 1, 10, 10]
    assert model.ep_success_buffer is not None
    assert len(model.ep_success_buffer) == 4
    assert len(rollouts[0].steps[0]) == 20


def test_fixed_rollouts_use_every_step_and_continue_the_last_one() -> None:
    model, rollouts = collect(scripted_vec_env(), 3, n_steps=5)
    assert all(rollout.at_end["used"].all() for rollout in rollouts)
    assert model.num_timesteps == 3 * 5 * 2
    for earlier, later in itertools.pairwise(rollouts):
        for i in range(2):
            last, first = earlier.steps[i][-1], later.steps[i][0]
            assert last.done or np.array_equal(last.next_obs, first.obs)


# ------------------------------------------------------------------------------------------------------------ callbacks


class Watching(BaseCallback):
    """
    Check the local variables at each call.

    :param stop_after: number of calls after which training is stopped
    """

    def __init__(self, stop_after: int) -> None:
        super().__init__()
        self.stop_after = stop_after

    def _on_step(self) -> bool:
        assert self.num_timesteps == self.model.num_timesteps == self.n_calls * self.training_env.num_envs
        for name in ("rewards", "dones", "infos", "new_obs", "actions", "clipped_actions"):
            assert len(self.locals[name]) == self.training_env.num_envs
        assert self.locals["rollout_buffer"] is self.model.rollout_buffer  # type: ignore[attr-defined]  # an on-policy model
        assert self.locals["env"] is self.training_env
        return self.n_calls != self.stop_after

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        assert buffer.returns.shape == buffer.advantages.shape == buffer.rewards.shape


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("stop_after", [1, 6, 20])
def test_a_callback_stops_training_at_once_and_training_can_continue(mode: dict[str, Any], stop_after: int) -> None:
    model = VPG("MlpPolicy", scripted_vec_env(), seed=0, **mode)
    model.learn(1000, callback=Watching(stop_after))
    assert model.num_timesteps == 2 * stop_after
    updates = model._n_updates
    recorder = Recorder(at_end=lambda m: snapshot(m.rollout_buffer))
    model.learn(30, callback=recorder, reset_num_timesteps=False)
    assert model.num_timesteps >= 2 * stop_after + 30
    assert model._n_updates == updates + len(recorder.rollouts)
    assert column(recorder.rollouts[0], "t")[0].tolist() == [0, 0]
    for rollout in recorder.rollouts:
        assert np.array_equal(rollout.at_end["observations"], column(rollout, "obs"))
        assert np.array_equal(rollout.at_end["episode_steps"], column(rollout, "t"))


# ----------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("frequency", "expected"), [(-1, 1), (3, 3), (7, 1), (1, 7)])
def test_exploration_noise_is_resampled_at_the_given_frequency(frequency: int, expected: int) -> None:
    """The number of different noise matrices within each rollout of seven steps."""
    seen: list[list[bytes]] = []

    class Noise(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append([])

        def _on_step(self) -> bool:
            noise: th.Tensor = self.model.policy.action_dist.exploration_mat  # type: ignore[union-attr, assignment]  # gSDE
            seen[-1].append(noise.detach().numpy().tobytes())
            return True

    env = scripted_vec_env(action_space=spaces.Box(-1, 1, (2,)))
    VPG("MlpPolicy", env, n_steps=7, use_sde=True, sde_sample_freq=frequency, seed=0).learn(28, callback=Noise())
    assert [len(set(rollout)) for rollout in seen] == [expected, expected]
    assert not set(seen[0]) & set(seen[1])
