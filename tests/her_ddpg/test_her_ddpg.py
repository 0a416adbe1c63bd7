"""Behaviour and errors specific to HERDDPG; ``tests/conformance`` tests what all algorithms have in common."""

import inspect
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from goal_envs import InfoReward, PointGoalEnv, counting_envs, goal_space, point_envs
from gymnasium import spaces
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_pg import HERDDPG
from sb3_pg.her_ddpg import HindsightReplayBuffer, validation

SMALL: dict[str, Any] = {
    "seed": 0,
    "device": "cpu",
    "batch_size": 16,
    "gradient_steps": 2,
    "policy_kwargs": {"net_arch": [8]},
}


def make(env: Any = None, **kwargs: Any) -> HERDDPG:
    return HERDDPG("MultiInputPolicy", point_envs() if env is None else env, **{**SMALL, **kwargs})


def buffer_of(model: HERDDPG) -> HindsightReplayBuffer:
    assert model.replay_buffer is not None
    return model.replay_buffer


def saved(model: HERDDPG) -> io.BytesIO:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


def parameters(model: HERDDPG) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


# ---- signature -------------------------------------------------------------------------------------------------------------


def test_changed_defaults_are_those_of_the_paper() -> None:
    theirs, ours = (inspect.signature(class_.__init__).parameters for class_ in (DDPG, HERDDPG))
    changed = {name: ours[name].default for name in theirs if ours[name].default != theirs[name].default}
    assert changed == {"learning_starts": 0, "tau": 0.05, "gamma": None, "train_freq": (2, "episode"), "gradient_steps": 40}
    model = HERDDPG("MultiInputPolicy", point_envs(1, horizon=50), device="cpu")
    assert model.gamma == 0.98
    assert model.target_bounds == pytest.approx((-50, 0))
    assert model.policy.net_arch == [256, 256, 256]
    assert buffer_of(model).her_ratio == 0.8
    assert [len(list(network.parameters())) for network in (model.actor, model.critic)] == [8, 8]


@pytest.mark.parametrize("class_", [HERDDPG, HindsightReplayBuffer])
def test_every_argument_is_documented(class_: type) -> None:
    described = re.findall(r":param (\w+):", class_.__doc__ or "")
    assert described == list(inspect.signature(class_.__init__).parameters)[1:]  # type: ignore[misc]  # of the class


# ---- invalid options and environments --------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    *(
        ({name: value}, [name, "[0, 1]"])
        for name in ("tau", "random_eps", "gamma")
        for value in (-0.1, 1.1, "x", float("nan"))
    ),
    *(
        ({name: value}, [name, "at least 0"])
        for name in ("action_l2", "action_noise_std")
        for value in (-1, float("inf"), "x")
    ),
    *(
        ({name: value}, [name, "integer"])
        for name in ("buffer_size", "batch_size", "n_steps", "learning_starts", "gradient_steps")
        for value in (-2, 1.5, "4", True, None)
    ),
    *(({"train_freq": value}, ["train_freq", "episode"]) for value in (0, -1, (0, "episode"), 1.5, (1, 2, 3))),
    ({"train_freq": (1, "week")}, ["train_freq", "week"]),
    ({"target_update": "often"}, ["target_update", "'cycle'", "'step'"]),
    ({"terminate_on_success": "yes"}, ["terminate_on_success"]),
    ({"terminate_on_success": True, "reward_range": None}, ["terminate_on_success", "reward_range"]),
    *(({"reward_range": value}, ["reward_range", "(minimum, maximum)"]) for value in ((0, -1), (0,), -1, (0, "1"), (0, 0))),
    ({"gamma": 1}, ["gamma=1", "reward_range=None"]),
    ({"reward_range": (0, 1)}, ["reward_range", "-1.0"]),
    ({"action_noise": NormalActionNoise(np.zeros(2), np.ones(2)), "action_noise_std": 0.1}, ["action_noise", "None"]),
    ({"replay_buffer_class": HerReplayBuffer}, ["HerReplayBuffer", "HindsightReplayBuffer", "None"]),
    *(({"replay_buffer_kwargs": {name: 1}}, [name, "own argument"]) for name in validation.BUFFER_ARGUMENTS),
    ({"replay_buffer_kwargs": {"goal_selection_strategy": "past"}}, ["goal_selection_strategy", "'random'"]),
    ({"optimize_memory_usage": True}, ["optimize_memory_usage"]),
    ({"bf16": True}, ["bf16=True", "64 units"]),
    ({"bf16": "yes"}, ["bf16='yes'", "True or False"]),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_the_constructor_rejects_invalid_options(wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        make(**wrong)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_load_rejects_invalid_options(wrong: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        HERDDPG.load(saved(make()), env=point_envs(), device="cpu", **wrong)
    assert [word for word in words if word not in str(error.value)] == []


def test_policy_kwargs_are_not_modified() -> None:
    given = {"net_arch": [8]}
    make(policy_kwargs=given)
    assert given == {"net_arch": [8]}


def test_normalize_inputs_is_rejected_in_policy_kwargs() -> None:
    with pytest.raises(ValueError, match="normalize_inputs"):
        make(policy_kwargs={"normalize_inputs": False})


def test_lists_from_yml_files_are_accepted() -> None:
    model = make(train_freq=[3, "episode"], reward_range=[-1, 0])
    assert model.train_freq.frequency == 3  # type: ignore[union-attr]  # converted
    assert model.reward_range == (-1, 0)


def test_other_environments_and_policies_are_rejected() -> None:
    with pytest.raises(ValueError, match="goal environment"):
        HERDDPG("MlpPolicy", "Pendulum-v1", gamma=0.9)
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        HERDDPG("MlpPolicy", point_envs())


class Variant(PointGoalEnv):
    """Base class of faulty goal environments."""


class ScalarReward(Variant):
    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
        return 0.0 if np.linalg.norm(achieved_goal - desired_goal) < 0.25 else -1.0


class BranchingReward(Variant):
    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
        if abs(achieved_goal[..., 0] - desired_goal[..., 0]) < 0.25:
            return 0.0
        return -1.0


class OptionalInfoReward(Variant):
    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        penalty = 0 if not isinstance(info, dict) else info.get("penalty", 0)
        return super().compute_reward(achieved_goal, desired_goal, info) - penalty


class ScalarTermination(Variant):
    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
        return bool(np.linalg.norm(achieved_goal - desired_goal) < 0.25)


class Unready(Variant):
    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
        raise RuntimeError("the simulator is not ready")


class NoReward(Variant):
    compute_reward = property()  # reading it raises an AttributeError


class AdditionalKey(Variant):
    def __init__(self) -> None:
        super().__init__()
        assert isinstance(self.observation_space, spaces.Dict)
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "camera": spaces.Box(-1, 1, (1,))})


@pytest.mark.parametrize(
    ("env_class", "words"),
    [
        (ScalarReward, ["compute_reward", "not vectorised", "axis=-1"]),
        (BranchingReward, ["compute_reward", "not vectorised", "np.where"]),
        (InfoReward, ["compute_reward", "`info`", "goals"]),
        (OptionalInfoReward, ["compute_reward", "`info`", "goals"]),
        (ScalarTermination, ["compute_terminated", "not vectorised"]),
        (Unready, ["compute_reward", "RuntimeError", "the simulator is not ready"]),
        (NoReward, ["compute_reward"]),
        (AdditionalKey, ["camera", "desired_goal"]),
    ],
)
def test_environments_without_relabelling_are_rejected(env_class: type[PointGoalEnv], words: list[str]) -> None:
    def build() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(env_class(), 10)

    good = point_envs(1)
    for attempt in (lambda: make(build()), lambda: make(good).set_env(build())):
        with pytest.raises((ValueError, AssertionError), match=r".") as error:
            attempt()
        assert isinstance(error.value, ValueError) or "camera" in words
        assert isinstance(error.value, AssertionError) or [word for word in words if word not in str(error.value)] == []


def test_an_error_in_a_subprocess_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    # Processes of a fork server would inherit the server's output, which capfd does not capture.
    env = SubprocVecEnv([lambda: gym.wrappers.TimeLimit(InfoReward(), 10)], start_method="spawn")
    with pytest.raises(ValueError, match="compute_reward failed in the subprocess of an environment"):
        make(env)
    assert "InfoAccessError" in capfd.readouterr().err


def test_a_constant_termination_need_not_be_vectorised() -> None:
    class Never(PointGoalEnv):
        def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002 # the interface
            return False

    for env, own in ((Never(), {}), (ScalarTermination(), {"terminate_on_success": False})):
        model = make(gym.wrappers.TimeLimit(env, 10), **own).learn(20)
        assert model._n_updates > 0


@pytest.mark.parametrize("kwargs", [{}, {"norm_obs": False}, {"norm_reward": False}])
def test_vec_normalize_is_rejected(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="VecNormalize and HERDDPG are mutually exclusive"):
        make(VecNormalize(point_envs(), **kwargs))


def test_vec_normalize_without_effect_is_accepted() -> None:
    model = make(VecNormalize(point_envs(), norm_obs=False, norm_reward=False)).learn(20)
    assert model._n_updates > 0


def test_stacked_frames_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"achieved_goal.*frame stacking"):
        make(VecFrameStack(point_envs(), 2))


def test_the_default_gamma_needs_a_time_limit() -> None:
    env = Monitor(PointGoalEnv())
    with pytest.raises(ValueError, match=r"gamma=None.*TimeLimit"):
        make(env)
    assert make(env, gamma=0.9).gamma == 0.9
    assert make(point_envs(1, horizon=20)).gamma == pytest.approx(0.95)
    assert HERDDPG("MultiInputPolicy", "PointGoal-v0", device="cpu").gamma == pytest.approx(0.9)
    assert make(BitFlippingEnv(n_bits=4, continuous=True, max_steps=8), terminate_on_success=True).gamma == pytest.approx(
        7 / 8
    )


# ---- collecting ------------------------------------------------------------------------------------------------------------


class Watch(BaseCallback):
    """Counts the steps of each cycle, and calls a function with the local variables at each step."""

    def __init__(self, look: Callable[[dict[str, Any]], None] = lambda _: None, stop_after: int | None = None) -> None:
        super().__init__()
        self.look, self.stop_after = look, stop_after
        self.cycles: list[int] = []

    def _on_rollout_start(self) -> None:
        self.cycles.append(0)

    def _on_step(self) -> bool:
        self.cycles[-1] += 1
        self.look(self.locals)
        return self.stop_after is None or self.n_calls < self.stop_after


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "cycles"),
    [(1, (2, "episode"), [20, 20, 20]), (3, (2, "episode"), [20, 20]), (3, 7, [7] * 6), (2, (1, "episode"), [10] * 5)],
)
def test_length_of_a_cycle(n_envs: int, train_freq: Any, cycles: list[int]) -> None:
    watch = Watch()
    make(point_envs(n_envs), train_freq=train_freq).learn(sum(cycles) * n_envs, watch)
    assert watch.cycles == cycles


def test_episodes_of_different_lengths() -> None:
    """A cycle of one episode per environment lasts until two episodes have ended, in any of the environments."""
    watch = Watch()
    env = counting_envs([[(3, "truncated")], [(7, "truncated")]])
    model = make(env, train_freq=(1, "episode"), gamma=0.9).learn(2 * 14, watch)
    assert watch.cycles == [6, 3, 5]  # finished at 3, 6; 7, 9; 12, 14
    assert buffer_of(model).size() == 12 + 14
    assert model._episode_num == 6


@pytest.mark.parametrize("train_freq", [1, 4, (1, "episode")])
def test_training_waits_for_an_episode(train_freq: Any) -> None:
    updates = []
    model = make(point_envs(2, horizon=10), train_freq=train_freq)
    model.learn(40, Watch(lambda _: updates.append(model._n_updates)))
    assert updates[:10] == [0] * 10
    assert model._n_updates > 0
    assert make(train_freq=1).learn(4)._n_updates == 0


def test_as_many_gradient_steps_as_collected_steps() -> None:
    assert make(gradient_steps=-1).learn(40)._n_updates == 40
    assert make(gradient_steps=0).learn(40)._n_updates == 0


def actions_taken(model: HERDDPG, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled actions in the buffer, and scaled actions of the policy, ``[S, N, A]`` each."""
    taken, own = [], []

    def look(local: dict[str, Any]) -> None:
        taken.append(local["buffer_actions"])
        own.append(model.policy.scale_action(model.predict(model._last_obs, deterministic=True)[0]))  # type: ignore[arg-type]
        # The environments get the same actions, scaled to their bounds.
        assert np.allclose(model.policy.scale_action(local["actions"]), local["buffer_actions"], atol=1e-6)

    model.learn(n_steps, Watch(look))
    return np.array(taken), np.array(own)


def test_gaussian_noise_is_relative_to_the_range_of_actions() -> None:
    for scale in (0.5, 50.0):
        model = make(point_envs(2, scale=scale), random_eps=0.0, action_noise_std=0.1, gradient_steps=0)
        taken, own = actions_taken(model, 1000)
        noise = taken - own
        inside = np.abs(own) < 0.4
        assert inside.sum() > 500
        assert noise[inside].std() == pytest.approx(0.1, rel=0.15)


def test_random_actions_are_uniform_in_all_dimensions() -> None:
    model = make(random_eps=0.25, action_noise_std=0.0, gradient_steps=0)
    taken, own = actions_taken(model, 2000)
    different = np.abs(taken - own) > 1e-5
    assert (different.any(axis=2) == different.all(axis=2)).all()
    random = different.all(axis=2)
    assert random.mean() == pytest.approx(0.25, abs=6 * np.sqrt(0.25 * 0.75 / 2000))
    assert (random[:, 0] != random[:, 1]).any()  # independent between environments
    assert taken[random].mean() == pytest.approx(0, abs=6 * 0.58 / np.sqrt(random.sum()))
    assert taken[random].std() == pytest.approx(np.sqrt(1 / 3), rel=0.15)


def test_without_noise_actions_are_those_of_the_policy() -> None:
    taken, own = actions_taken(make(random_eps=0, action_noise_std=0), 100)
    assert np.allclose(taken, own, atol=1e-6)


def test_initial_actions_are_random() -> None:
    taken, own = actions_taken(make(random_eps=0, action_noise_std=0, learning_starts=100), 200)
    assert (np.abs(taken - own)[:50] > 1e-5).all()
    assert np.allclose(taken[50:], own[50:], atol=1e-6)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("noise", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_action_noise_of_sb3(noise: Any, n_envs: int) -> None:
    make(point_envs(n_envs), action_noise=noise(np.zeros(2), np.full(2, 0.1))).learn(60)
    without_noise = make(point_envs(n_envs), action_noise=NormalActionNoise(np.zeros(2), np.zeros(2)), random_eps=0)
    taken, own = actions_taken(without_noise, 40)
    assert np.allclose(taken, own, atol=1e-6)


def discrete_env(kind: str) -> gym.Env[Any, Any]:
    return BitFlippingEnv(
        n_bits=4, continuous=True, max_steps=6, discrete_obs_space=kind == "discrete", image_obs_space=kind == "image"
    )


# ---- saving and loading ----------------------------------------------------------------------------------------------------


def test_a_model_loads_and_predicts_without_environment() -> None:
    model = make().learn(100)
    loaded = HERDDPG.load(saved(model), device="cpu")
    assert loaded.env is None
    assert same(parameters(model), parameters(loaded))
    assert buffer_of(loaded)._rows == {}
    obs = point_envs(3).reset()
    assert np.array_equal(model.predict(obs)[0], loaded.predict(obs)[0])  # type: ignore[arg-type]
    single = {key: value[0] for key, value in obs.items()}  # type: ignore[union-attr]  # a dictionary
    assert np.allclose(loaded.predict(single)[0], loaded.predict(obs)[0][0], atol=1e-6)  # type: ignore[arg-type]
    HERDDPG.load(saved(model), device="cpu", buffer_size=1)  # as the zoo does for off-policy algorithms


def test_a_loaded_model_keeps_its_options() -> None:
    model = make(gamma=None, random_eps=0.1, reward_range=(-2, 0), target_update="step", action_l2=0.5, n_steps=2)
    loaded = HERDDPG.load(saved(model), device="cpu")
    for name in ("gamma", "random_eps", "reward_range", "target_update", "action_l2", "n_steps", "train_freq"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.gamma == 0.9
    assert buffer_of(loaded).n_steps == 2


def test_the_statistics_are_part_of_the_policy(tmp_path: Path) -> None:
    model = make().learn(100)
    normalizer: Any = model.policy.normalizer
    assert normalizer.goal.count == 120
    model.policy.save(str(tmp_path / "policy"))
    policy: Any = type(model.policy).load(str(tmp_path / "policy"), device="cpu")
    assert policy.normalizer.goal.count == 120
    obs = point_envs(3).reset()
    action = model.predict(obs)[0]  # type: ignore[arg-type]
    assert np.array_equal(action, policy.predict(obs)[0])
    normalizer.observation.shift += 1
    assert not np.array_equal(action, model.predict(obs)[0])  # type: ignore[arg-type]
    # The networks do not use the achieved goal.
    elsewhere: Any = dict(obs)  # type: ignore[arg-type]  # a dictionary
    elsewhere["achieved_goal"] = elsewhere["achieved_goal"] + 1
    assert np.array_equal(model.predict(obs)[0], model.predict(elsewhere)[0])  # type: ignore[arg-type]  # a dictionary


def test_experience_is_saved_and_loaded_by_another_process(tmp_path: Path) -> None:
    model = make().learn(100)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    code = f"""
from goal_envs import point_envs
from sb3_pg import HERDDPG
model = HERDDPG.load(r"{tmp_path / "model"}", device="cpu")
model.load_replay_buffer(r"{tmp_path / "buffer"}")
print(model.replay_buffer.size())
model.set_env(point_envs(2))
before = model._n_updates
model.learn(10, reset_num_timesteps=False)
print(model._n_updates > before, model.replay_buffer.size())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.split() == [str(buffer_of(model).size()), "True", str(buffer_of(model).size() + 40)]


def test_an_incompatible_replay_buffer_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "buffer.pkl"
    make().learn(40).save_replay_buffer(path)
    with pytest.raises(ValueError, match="2 environments"):
        make(point_envs(3)).load_replay_buffer(path)
    bits = make(discrete_env("bits"), terminate_on_success=True)
    with pytest.raises(ValueError, match="MultiBinary"):
        bits.load_replay_buffer(path)
    other = tmp_path / "other.pkl"
    DDPG("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").save_replay_buffer(other)
    with pytest.raises(ValueError, match="needs a HindsightReplayBuffer"):
        make().load_replay_buffer(other)


def test_a_loaded_buffer_has_the_options_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "buffer.pkl"
    make().learn(40).save_replay_buffer(path)
    model = make(n_steps=3, replay_buffer_kwargs={"goal_selection_strategy": "final", "n_sampled_goal": 1})
    model.load_replay_buffer(path)
    buffer = buffer_of(model)
    assert (buffer.n_steps, buffer.goal_selection_strategy, buffer.her_ratio) == (3, "final", 0.5)
    assert buffer.env is model.env
    model.learn(40)


@pytest.mark.parametrize("truncate", [True, False])
def test_unfinished_episodes_of_a_loaded_buffer(truncate: bool, tmp_path: Path) -> None:
    path = tmp_path / "buffer.pkl"
    make(train_freq=7).learn(2 * 7).save_replay_buffer(path)
    model = make()
    model.load_replay_buffer(path, truncate_last_traj=truncate)
    assert buffer_of(model).size() == (14 if truncate else 0)
    model.learn(40)  # resets the environments, which ends the old episodes in any case
    assert buffer_of(model).size() == 14 + 40


def test_a_reset_ends_unfinished_episodes() -> None:
    model = make(train_freq=7)
    model.learn(2 * 7)
    model.learn(2 * 14)
    sample = buffer_of(model).sample(2000)
    # No transition connects two episodes: a single step moves by at most 0.6.
    moved = (sample.next_observations["achieved_goal"] - sample.observations["achieved_goal"]).abs()
    assert moved.max() <= 0.6 + 1e-5
    assert buffer_of(model).size() == 14 + 20
    model.learn(2 * 7, reset_num_timesteps=False)
    assert buffer_of(model).size() == 14 + 40


def test_training_continues_after_a_callback_stopped() -> None:
    model = make()
    model.learn(1000, Watch(stop_after=13))
    assert model.num_timesteps == 26
    model.learn(40, reset_num_timesteps=False)
    moved = buffer_of(model).sample(2000)
    difference = (moved.next_observations["achieved_goal"] - moved.observations["achieved_goal"]).abs()
    assert difference.max() <= 0.6 + 1e-5


# ---- logs and callbacks ----------------------------------------------------------------------------------------------------


class Memory(KVWriter):
    """Stores logged values."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:  # noqa: ARG002 # the interface
        self.records.append(dict(key_values))

    def close(self) -> None:
        """Nothing to do."""


def test_success_rates_and_losses_are_logged(tmp_path: Path) -> None:
    memory = Memory()
    model = make()
    model.set_logger(Logger(None, [memory]))
    eval_env = point_envs(1)
    model.learn(200, EvalCallback(eval_env, eval_freq=25, n_eval_episodes=3, verbose=0, log_path=str(tmp_path)))
    logged = {key for record in memory.records for key in record}
    assert {
        "rollout/success_rate",
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "eval/success_rate",
        "time/fps",
        "time/episodes",
        "time/total_timesteps",
        "train/actor_loss",
        "train/critic_loss",
        "train/q_value",
        "train/learning_rate",
        "train/n_updates",
    } <= logged


def test_successes_are_written_by_the_monitor(tmp_path: Path) -> None:
    env = Monitor(gym.wrappers.TimeLimit(PointGoalEnv(), 10), str(tmp_path / "0"), info_keywords=("is_success",))
    make(env).learn(40)
    env.close()
    assert (tmp_path / "0.monitor.csv").read_text().splitlines()[1] == "r,l,t,is_success"


def test_the_buffer_class_can_be_a_subclass() -> None:
    class Own(HindsightReplayBuffer):
        """Without changes."""

    model = make(replay_buffer_class=Own).learn(40)
    assert isinstance(model.replay_buffer, Own)


def test_spaces_of_goals_must_agree() -> None:
    env = PointGoalEnv()
    env.observation_space = goal_space(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
    env.observation_space.spaces["desired_goal"] = spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match="same shape"):
        make(env, gamma=0.9)
