"""EnvPool's environments are Gymnasium's: compared step by step, and used by SB3 and by the zoo."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from rl_zoo3.train import train
from stable_baselines3 import A2C, DDPG, DQN, PPO, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_pg import HERDDPG, VPG
from sb3_pg.envs.envpool import EnvPoolVecEnv, use_envpool

try:
    import envpool  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401  # an extra

    MISSING = ""
except (ImportError, FileNotFoundError) as error:
    MISSING = str(error)

# Its assets are too large to be installed for all test runs.
needs_envpool = pytest.mark.skipif(MISSING != "", reason=f"EnvPool or its assets are not installed: {MISSING}")

SetState = Callable[[Any, np.ndarray], None]
Policy = Callable[[np.ndarray], np.ndarray]


def set_cartpole(env: Any, obs: np.ndarray) -> None:
    """
    :param env: Gymnasium's environment
    :param obs: observation to set
    """
    env.state = obs.astype(np.float64)
    env.steps_beyond_terminated = None


def set_state(env: Any, obs: np.ndarray) -> None:
    """
    :param env: Gymnasium's environment
    :param obs: observation to set
    """
    env.state = obs.copy()


def set_pendulum(env: Any, obs: np.ndarray) -> None:
    """
    :param env: Gymnasium's environment
    :param obs: observation to set
    """
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], dtype=np.float64)


def set_acrobot(env: Any, obs: np.ndarray) -> None:
    """
    :param env: Gymnasium's environment
    :param obs: observation to set
    """
    env.state = np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]], dtype=np.float64)


def set_mujoco(env: Any, obs: np.ndarray) -> None:
    """
    :param env: Gymnasium's environment, which does not observe where it is, of which the reward does not depend either
    :param obs: observation to set
    """
    nq, nv = env.model.nq, env.model.nv
    hidden = {"HalfCheetah-v5": 1, "Hopper-v5": 1, "Swimmer-v5": 2}.get(env.spec.id, 0)
    qpos = np.concatenate([np.zeros(hidden), obs[: nq - hidden]])
    env.set_state(qpos, obs[nq - hidden : nq - hidden + nv])


def balance(obs: np.ndarray) -> np.ndarray:
    """
    :param obs: of CartPole-v1, [N, 4]
    :return: actions that keep the pole up
    """
    return (obs @ [0.1, 0.3, 3.0, 1.0] > 0).astype(np.int64)


def push(obs: np.ndarray) -> np.ndarray:
    """
    :param obs: of MountainCarContinuous-v0, [N, 2]
    :return: actions that reach the goal
    """
    return np.where(obs[:, 1:] < 0, -1.0, 1.0)


def fall(obs: np.ndarray) -> np.ndarray:
    """
    :param obs: of CartPole-v1, [N, 4]
    :return: actions that let the pole fall in 8 to 10 steps
    """
    return np.ones(len(obs), dtype=np.int64)


def assert_same_steps(env: VecEnv, twin: VecEnv, set_state: SetState, act: Policy | None, n_steps: int, follow: bool) -> int:
    """
    Step EnvPool's environments and Gymnasium's side by side.

    :param env: EnvPool's
    :param twin: Gymnasium's
    :param set_state: moves one of Gymnasium's to where another is
    :param act: policy, random by default
    :param n_steps: number of steps
    :param follow: move Gymnasium's at every step, not only where an episode begins
    :return: how many episodes ended
    """
    assert isinstance(twin, DummyVecEnv)
    env.action_space.seed(0)
    twin.reset()
    obs: Any = env.reset()
    dones = np.ones(env.num_envs, dtype=bool)
    n_episodes = 0
    for _ in range(n_steps):
        for i in range(env.num_envs) if follow else np.flatnonzero(dones):
            set_state(twin.envs[i].unwrapped, obs[i])
        actions = np.stack([env.action_space.sample() for _ in obs]) if act is None else act(obs)
        obs, rewards, dones, infos = env.step(actions)
        expected_obs, expected_rewards, expected_dones, expected_infos = twin.step(actions)
        assert dones.tolist() == expected_dones.tolist()
        assert isinstance(expected_obs, np.ndarray)
        assert (obs.dtype, rewards.dtype, dones.dtype) == (expected_obs.dtype, expected_rewards.dtype, expected_dones.dtype)
        np.testing.assert_allclose(rewards, expected_rewards, rtol=1e-3, atol=1e-3)
        for i, (info, expected) in enumerate(zip(infos, expected_infos, strict=True)):
            assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
            assert ("terminal_observation" in info, "episode" in info) == (dones[i], dones[i])
            if not dones[i]:
                np.testing.assert_allclose(obs[i], expected_obs[i], rtol=1e-3, atol=1e-3)
                continue
            n_episodes += 1
            np.testing.assert_allclose(info["terminal_observation"], expected["terminal_observation"], rtol=1e-3, atol=1e-3)
            assert info["terminal_observation"].dtype == expected["terminal_observation"].dtype
            assert info["episode"].keys() == {"r", "l", "t"}
            assert info["episode"]["l"] == expected["episode"]["l"]
            assert info["episode"]["r"] == pytest.approx(expected["episode"]["r"], rel=1e-3, abs=1e-3)
    return n_episodes


def both(env_id: str, n_envs: int, **env_kwargs: Any) -> tuple[VecEnv, VecEnv]:
    """
    :param env_id: of an environment
    :param n_envs: number of them
    :param env_kwargs: their arguments
    :return: EnvPool's and Gymnasium's
    """
    return EnvPoolVecEnv(env_id, n_envs, seed=1, env_kwargs=env_kwargs), make_vec_env(env_id, n_envs, env_kwargs=env_kwargs)


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "set_state", "act", "n_steps", "n_episodes"),
    [
        ("CartPole-v1", set_cartpole, None, 300, 30),
        ("Pendulum-v1", set_pendulum, None, 410, 6),
        ("MountainCar-v0", set_state, None, 410, 6),
        ("MountainCarContinuous-v0", set_state, push, 600, 6),
    ],
)
def test_whole_episodes_are_gymnasiums(
    env_id: str, set_state: SetState, act: Policy | None, n_steps: int, n_episodes: int
) -> None:
    env, twin = both(env_id, 3)
    assert assert_same_steps(env, twin, set_state, act, n_steps, follow=False) >= n_episodes


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "set_state", "act", "n_steps", "n_episodes"),
    [
        ("CartPole-v1", set_cartpole, balance, 1100, 4),  # chaotic: rounding alone parts long episodes
        ("Acrobot-v1", set_acrobot, None, 510, 2),
        # Of the others, an observation does not determine the state.
        ("HalfCheetah-v5", set_mujoco, None, 1010, 2),
        ("Hopper-v5", set_mujoco, None, 300, 10),
        ("Swimmer-v5", set_mujoco, None, 100, 0),
        ("InvertedPendulum-v5", set_mujoco, None, 100, 10),
    ],
)
def test_single_steps_are_gymnasiums(
    env_id: str, set_state: SetState, act: Policy | None, n_steps: int, n_episodes: int
) -> None:
    if env_id.endswith("-v5"):
        pytest.importorskip("mujoco")
    env, twin = both(env_id, 2)
    assert assert_same_steps(env, twin, set_state, act, n_steps, follow=True) >= n_episodes


@needs_envpool
@pytest.mark.parametrize("limit", [8, 9, 10])
def test_an_episode_that_ends_at_its_time_limit_is_terminated(limit: int) -> None:
    """The pole falls in 8 to 10 steps: before, at and after the limit, in many episodes."""
    env, twin = both("CartPole-v1", 4, max_episode_steps=limit)
    assert assert_same_steps(env, twin, set_cartpole, fall, 100, follow=False) > 40
    env.reset()
    steps = [env.step(np.ones(4))[2:] for _ in range(100)]
    ends = [info for dones, infos in steps for info, done in zip(infos, dones, strict=True) if done]
    terminated_at_limit = [info["episode"]["l"] == limit and not info["TimeLimit.truncated"] for info in ends]
    assert any(terminated_at_limit)


@needs_envpool
def test_a_time_limit_can_be_switched_off() -> None:
    env = EnvPoolVecEnv("Pendulum-v1", 1, seed=0, env_kwargs={"max_episode_steps": -1})
    env.reset()
    assert not any(env.step(np.zeros((1, 1)))[2][0] for _ in range(450))


@needs_envpool
@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"]
)
def test_spaces_and_time_limits_are_gymnasiums(env_id: str) -> None:
    if env_id.endswith("-v5"):
        pytest.importorskip("mujoco")
    env, twin = EnvPoolVecEnv(env_id, 2), gym.make(env_id)
    assert (env.observation_space, env.action_space) == (twin.observation_space, twin.action_space)
    obs: Any = env.reset()
    assert env.observation_space.contains(obs[0])
    assert env.get_attr("spec")[1].max_episode_steps == twin.spec.max_episode_steps  # type: ignore[union-attr]  # registered
    assert env.render_mode is None


@needs_envpool
def test_gymnasium_need_not_know_the_environment() -> None:
    env = EnvPoolVecEnv("Pong-v5", 2, seed=0, info_keywords=["lives"])
    obs: Any = env.reset()
    assert env.observation_space.shape == obs[0].shape == (4, 84, 84)
    assert env.step(np.zeros(2))[3][0].keys() == {"TimeLimit.truncated", "lives"}
    assert not env.has_attr("spec")


def trajectory(env: VecEnv, n_steps: int = 40) -> list[Any]:
    """
    :param env: CartPole-v1
    :param n_steps: number of steps
    :return: all observations, as they are when the last step is over
    """
    steps: list[Any] = [env.reset()]
    steps += [env.step(np.full(env.num_envs, i % 3 == 0))[0] for i in range(n_steps)]
    return [obs.tolist() for obs in steps]


@needs_envpool
def test_seeds() -> None:
    first = trajectory(EnvPoolVecEnv("CartPole-v1", 3, seed=5))
    assert trajectory(EnvPoolVecEnv("CartPole-v1", 3, seed=5, num_threads=3)) == first
    assert trajectory(EnvPoolVecEnv("CartPole-v1", 3, seed=6)) != first
    # Each environment has a seed of its own, which the next one's first has.
    assert trajectory(EnvPoolVecEnv("CartPole-v1", 2, seed=6))[0] == first[0][1:]
    # By default they are random, by numpy's generator as elsewhere in SB3: EnvPool's own default is a constant.
    set_random_seed(0)
    unseeded = [trajectory(EnvPoolVecEnv("CartPole-v1", 3)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    set_random_seed(0)
    assert trajectory(EnvPoolVecEnv("CartPole-v1", 3)) == unseeded[0]


@needs_envpool
def test_a_seed_given_later_holds_from_one_reset_on() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 3, seed=1)
    trajectory(env)
    assert env.seed(5) == [5, 6, 7]
    first = trajectory(env)
    assert first == trajectory(EnvPoolVecEnv("CartPole-v1", 3, seed=5))
    assert trajectory(env) != first  # goes on


@needs_envpool
def test_a_reset_forgets_the_episode() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 1, seed=0)
    for _ in range(2):
        env.reset()
        for _ in range(5):
            env.step(np.ones(1))
    env.reset()
    lengths = [info["episode"]["l"] for _ in range(20) for info in env.step(np.ones(1))[3] if "episode" in info]
    assert 8 <= lengths[0] <= 10


@needs_envpool
def test_infos_are_not_shared() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 3, seed=0)
    env.reset()
    for _ in range(30):
        *_, infos = env.step(np.ones(3))
        assert not any("mark" in info for info in infos)
        infos[0]["mark"] = True
        assert not any("mark" in info for info in infos[1:])


@needs_envpool
def test_monitor_files(tmp_path: Path) -> None:
    env = EnvPoolVecEnv("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path))
    env.reset()
    episodes = [info["episode"] for _ in range(50) for info in env.step(np.ones(2))[3] if "episode" in info]
    env.close()
    assert {path.name for path in tmp_path.iterdir()} == {"0.monitor.csv", "1.monitor.csv"}
    results = load_results(str(tmp_path))
    assert sorted(results["l"]) == sorted(episode["l"] for episode in episodes)
    assert results["r"].sum() == sum(episode["r"] for episode in episodes)
    header = (tmp_path / "0.monitor.csv").read_text().splitlines()[0]
    assert '"env_id": "CartPole-v1"' in header


@needs_envpool
def test_what_python_cannot_reach_is_refused() -> None:
    env = EnvPoolVecEnv("CartPole-v1", 2)
    assert env.get_attr("render_mode", indices=[1]) == [None]
    assert env.get_attr("action_space") == [env.action_space] * 2
    assert not env.has_attr("state")
    with pytest.raises(AttributeError, match="has no attribute 'state'"):
        env.get_attr("state")
    with pytest.raises(AttributeError, match="'set_wrapper_attr'"):
        env.env_method("set_wrapper_attr", "gravity", 1)
    with pytest.raises(NotImplementedError, match="env_kwargs to set 'gravity'"):
        env.set_attr("gravity", 1)
    with pytest.raises(NotImplementedError, match="do not support reset options"):
        env.set_options({"low": 0})
    env.set_options()
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]


@needs_envpool
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "CartPol-v1"}, "no environment 'CartPol-v1', but 'CartPole-v1'"),
        ({"env_id": "PointGoal-v0"}, "no environment 'PointGoal-v0'"),
        ({"env_id": "Blackjack-v1"}, "other spaces than Gymnasium's"),
        ({"env_id": "CartPole-v1", "env_kwargs": {"render_mode": "human"}}, r"not take env_kwargs \['render_mode'\]"),
        ({"env_id": "CartPole-v1", "env_kwargs": {"num_envs": 2}}, r"not take env_kwargs \['num_envs'\]"),
        ({"env_id": "CartPole-v1", "info_keywords": ["is_success"]}, r"have no \['is_success'\]"),
    ],
)
def test_what_envpool_lacks_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvPoolVecEnv(**arguments)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # marks a module that cannot be imported
    with pytest.raises(ImportError, match=r"pip install 'sb3-pg\[envpool\]'"):
        EnvPoolVecEnv("CartPole-v1")


@needs_envpool
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("algorithm", [A2C, PPO, VPG, DQN])
def test_algorithms_learn_with_it(algorithm: type[BaseAlgorithm], n_envs: int) -> None:
    options: dict[str, Any] = {"learning_starts": 50} if algorithm is DQN else {"n_steps": 64}
    env = VecNormalize(EnvPoolVecEnv("CartPole-v1", n_envs))
    model: Any = algorithm("MlpPolicy", env, seed=0, device="cpu", **options)
    model.learn(256)
    assert model.num_timesteps >= 256
    assert 8 < np.mean([episode["l"] for episode in model.ep_info_buffer]) < 200
    # Not even a warning that a Monitor is missing.
    rewards, lengths = evaluate_policy(model, EnvPoolVecEnv("CartPole-v1", n_envs), 5, return_episode_rewards=True)
    assert rewards == lengths


@needs_envpool
def test_the_seed_of_an_algorithm_is_enough() -> None:
    weights = []
    for _ in range(2):
        model = A2C("MlpPolicy", EnvPoolVecEnv("CartPole-v1", 2), seed=3, device="cpu").learn(100)
        weights.append(model.policy.state_dict())
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


@needs_envpool
def test_vec_monitor_sees_that_it_is_monitored() -> None:
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(EnvPoolVecEnv("CartPole-v1"))


class LastStep(BaseCallback):
    """Keeps what the environment returned last, before the algorithm changes it."""

    def _on_step(self) -> bool:
        self.rewards = self.locals["rewards"].copy()
        self.infos = self.locals["infos"]
        return True


@needs_envpool
def test_sb3_bootstraps_at_the_time_limit() -> None:
    """Pendulum-v1 is truncated after 200 steps: the value of the final observation, not of the next one, is added."""
    model = A2C("MlpPolicy", EnvPoolVecEnv("Pendulum-v1", 2), n_steps=200, learning_rate=0.0, seed=0, device="cpu")
    callback = LastStep()
    model.learn(400, callback=callback)
    for i, info in enumerate(callback.infos):
        assert info["TimeLimit.truncated"]
        with th.no_grad():
            value = model.policy.predict_values(model.policy.obs_to_tensor(info["terminal_observation"])[0]).item()
        assert model.rollout_buffer.rewards[-1, i] == pytest.approx(callback.rewards[i] + model.gamma * value, rel=1e-4)


@needs_envpool
def test_goals() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = EnvPoolVecEnv("gymnasium_robotics:FetchReach-v4", 2, seed=0, info_keywords=["is_success"])
    env.reset()
    for t in range(1, 120):
        obs, rewards, dones, infos = env.step(np.stack([env.action_space.sample() for _ in range(2)]))
        assert dones.tolist() == [t % 50 == 0] * 2
        for i, info in enumerate(infos):
            final = info.get("terminal_observation", {key: part[i] for key, part in obs.items()})  # type: ignore[union-attr]  # a Dict
            assert env.observation_space.contains(final)
            goals = final["achieved_goal"], final["desired_goal"]
            assert rewards[i] == env.env_method("compute_reward", *goals, {}, indices=i)[0]
            assert info["is_success"] == (rewards[i] == 0)
            assert not dones[i] or info["episode"]["is_success"] == info["is_success"]
    options: dict[str, Any] = {"learning_starts": 120, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}, "device": "cpu"}
    DDPG("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **options).learn(150)
    HERDDPG("MultiInputPolicy", env, **options).learn(150)


def made(folder: Path | None, env_id: str = "CartPole-v1", **options: Any) -> VecEnv:
    """
    :param folder: for ``monitor.csv``
    :param env_id: of an environment
    :param options: arguments of ``make_vec_env``
    :return: two of them as the zoo makes them, of Gymnasium
    """
    monitor_dir = None if folder is None else str(folder)
    make: Any = gym.spec(env_id).make
    return make_vec_env(make, n_envs=2, seed=5, monitor_dir=monitor_dir, **options)


@needs_envpool
def test_the_wrapper_keeps_what_the_zoo_asked_for(tmp_path: Path) -> None:
    env = use_envpool(made(tmp_path, env_kwargs={"max_episode_steps": 9}))
    assert isinstance(env, EnvPoolVecEnv)
    first = trajectory(env)
    assert first == trajectory(EnvPoolVecEnv("CartPole-v1", 2, seed=5, env_kwargs={"max_episode_steps": 9}))
    env.reset()
    steps = [env.step(np.ones(2)) for _ in range(30)]
    lengths = [info["episode"]["l"] for step in steps for info in step[3] if "episode" in info]
    assert max(lengths) == 9
    env.close()
    assert {path.name for path in tmp_path.iterdir()} == {"0.monitor.csv", "1.monitor.csv"}
    assert sorted(load_results(str(tmp_path))["l"][-len(lengths) :]) == sorted(lengths)


@needs_envpool
def test_the_wrapper_keeps_arguments_of_the_environment() -> None:
    pytest.importorskip("mujoco")
    arguments = {"ctrl_cost_weight": 5.0, "reset_noise_scale": 0.0}
    assert assert_same_steps(*both("HalfCheetah-v5", 2, **arguments), set_mujoco, None, 20, follow=True) == 0
    first: Any = use_envpool(made(None, env_id="HalfCheetah-v5", env_kwargs=arguments)).reset()
    assert not first.any()  # no noise
    with pytest.raises(ValueError, match="does not take env_kwargs"):
        use_envpool(made(None, env_kwargs={"sutton_barto_reward": True}))


def test_environments_with_other_wrappers_are_refused() -> None:
    with pytest.raises(ValueError, match="with no wrapper but Monitor"):
        use_envpool(made(None, wrapper_class=gym.wrappers.ClipReward, wrapper_kwargs={"max_reward": 1.0}))
    with pytest.raises(ValueError, match="with no wrapper but Monitor"):
        use_envpool(DummyVecEnv([lambda: gym.make("CartPole-v1")]))


def test_environments_that_render_or_run_in_processes_stay() -> None:
    env = made(None, env_kwargs={"render_mode": "rgb_array"})
    assert use_envpool(env) is env
    env = made(None, vec_env_cls=SubprocVecEnv)
    with pytest.warns(UserWarning, match="this SubprocVecEnv is used as it is"):
        assert use_envpool(env) is env
    env.close()


@needs_envpool
def test_the_zoo_trains_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    params = ["-params", "vec_env_wrapper:'sb3_pg.envs.envpool.use_envpool'", "n_envs:2", "n_steps:50"]
    flags = ["--eval-freq", "100", "--eval-episodes", "1", "-f", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "300", *flags, *params])
    train()
    assert "Eval num_timesteps=" in capsys.readouterr().out
    assert 0 < load_results(str(tmp_path / "a2c" / "CartPole-v1_1"))["l"].sum() <= 300
