"""Behaviour specific to SVG0; ``tests/conformance`` tests what all algorithms have in common."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import model_checks
import numpy as np
import pytest
import torch as th
from conformance.test_environments import InBounds
from envs import MatchEnv, QuadraticEnv
from gymnasium import spaces
from model_checks import Captured, differences, logged, policy_for
from smoke_envs import Recorder, ScriptedEnv, scripted_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_pg import SVG0
from sb3_pg.common.distributions import COVARIANCES
from sb3_pg.svg0 import CnnPolicy, MlpPolicy, MultiInputPolicy

Options = dict[str, Any]

REPLAY: Options = {"buffer_size": 90, "learning_starts": 10, "batch_size": 16}
ON_POLICY: Options = {"on_policy": True, "train_freq": 6}
MODES = [REPLAY, ON_POLICY]
VARIANTS: list[Options] = [
    REPLAY,
    ON_POLICY,
    {**REPLAY, "td_lambda": 0.0, "n_critics": 2, "ent_coef": "auto"},
    {**REPLAY, "off_policy_correction": "none", "squash_output": False, "gradient_estimator": "likelihood_ratio"},
    {**ON_POLICY, "squash_output": False, "ent_coef": 0.1, "n_action_samples": 3, "off_policy_correction": "retrace"},
]


def name_of(options: Options) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items() if key not in REPLAY) or "replay"


def match_envs(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(MatchEnv(**{"action": "box", **kwargs}))] * n_envs)


def make(env: gym.Env[Any, Any] | VecEnv | None = None, policy: str = "MlpPolicy", **kwargs: Any) -> SVG0:
    mode = {} if kwargs.get("on_policy") else REPLAY
    network = {"net_arch": [16], **kwargs.pop("policy_kwargs", {})}
    defaults: Options = {"seed": 0, "device": "cpu", "policy_kwargs": network}
    return SVG0(policy, match_envs() if env is None else env, **{**defaults, **mode, **kwargs})


# ----------------------------------------------------------------------------------------------------------- training


def check_training(model: SVG0, n_steps: int = 40) -> None:
    """The checks of all algorithms; in addition, all networks are trained."""
    model_checks.check_training(model, n_steps, ("actor.", "critic.", "critic_target."))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("depends", [True, False])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_every_covariance(covariance: str, depends: bool, options: Options) -> None:
    model = make(covariance=covariance, state_dependent_covariance=depends, **options)
    check_training(model)
    obs, _ = model.policy.obs_to_tensor(np.stack([model.observation_space.sample() for _ in range(20)]))
    with th.no_grad():
        distribution = model.actor.distribution(obs)
        correlated = distribution._correlated
        sigma = np.asarray(distribution.stddev.square() if correlated is None else correlated.covariance_matrix)
    assert (np.ptp(sigma, axis=0).max() > 1e-6) == depends
    if covariance == "isotropic":
        assert np.allclose(sigma[:, 0], sigma[:, 1])
    if covariance == "full":
        assert np.abs(sigma[:, 0, 1]).min() > 0
        assert np.linalg.eigvalsh(sigma).min() > 0


@pytest.mark.parametrize(
    "frequency",
    [
        {"train_freq": 3},
        {"train_freq": (2, "step"), "gradient_steps": -1},
        {"train_freq": (1, "episode"), "gradient_steps": 3},
    ],
    ids=str,
)
def test_every_training_frequency(frequency: Options) -> None:
    check_training(make(match_envs(1), **frequency))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([-0.3, 5.0]), np.array([0.1, 6.0]), dtype=np.float64),
        spaces.Box(np.array([2, -4], dtype=np.float32), np.array([3, 0], dtype=np.float32)),
        spaces.Box(-0.5, 0.25, (2, 3), np.float32),
        spaces.Box(-0.5, 0.25, (1,), np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_actions_of_any_bounds_and_shape(space: spaces.Box, squash: bool, noise: bool) -> None:
    env = DummyVecEnv([lambda: Monitor(InBounds(ScriptedEnv(0, [(5, "terminated")], space)))] * 2)
    size = int(np.prod(space.shape))
    action_noise = NormalActionNoise(np.zeros(space.shape), np.ones(space.shape)) if noise else None
    model = make(env, squash_output=squash, action_noise=action_noise, policy_kwargs={"log_std_init": 1.0})
    check_training(model)
    assert model.replay_buffer is not None
    stored = model.replay_buffer.actions
    assert stored.shape[2] == size
    assert np.abs(stored).max() > 1.5  # samples, neither squashed nor clipped


def test_action_noise() -> None:
    for noise in (NormalActionNoise(np.zeros(2), np.ones(2)), OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))):
        for n_envs in (1, 3):
            check_training(make(match_envs(n_envs), action_noise=noise))


@pytest.mark.parametrize("mode", MODES, ids=name_of)
@pytest.mark.parametrize("observation", ["box", "dict"])
def test_normalised_environments(mode: Options, observation: str) -> None:
    keys = ["vector"] if observation == "dict" else None
    env = VecNormalize(match_envs(observation=observation, truncate=True), norm_obs_keys=keys)
    model = make(env, policy_for(observation), **mode)
    check_training(model)
    assert model.get_vec_normalize_env() is env
    assert model.replay_buffer is not None
    stored = model.replay_buffer.observations
    # Stored observations are not normalised.
    assert set(np.unique(stored["vector"] if isinstance(stored, dict) else stored)) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_initial_standard_deviation(covariance: str) -> None:
    for depends in (True, False):
        kwargs = {"log_std_init": -0.7, "min_std": 0.2}
        model = make(covariance=covariance, state_dependent_covariance=depends, policy_kwargs=kwargs)
        obs, _ = model.policy.obs_to_tensor(np.stack([model.observation_space.sample() for _ in range(5)]))
        with th.no_grad():
            assert np.allclose(model.actor.distribution(obs).stddev, 0.2 + np.exp(-0.7), atol=1e-6)


@pytest.mark.parametrize("squash", [True, False])
def test_standard_deviations_never_fall_below_min_std(squash: bool) -> None:
    model = make(DummyVecEnv([lambda: Monitor(QuadraticEnv())]), squash_output=squash, learning_rate=0.05)
    model.learn(100)
    model.actor.log_std.bias.data.fill_(-1e6)
    obs, _ = model.policy.obs_to_tensor(np.ones((4, 2), dtype=np.float32))
    with th.no_grad():
        assert np.allclose(model.actor.distribution(obs).stddev, 0.1)


# ------------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("squash", [True, False])
def test_predicted_actions_are_in_the_units_of_the_environment(squash: bool) -> None:
    space = spaces.Box(np.array([10.0, -3.0], dtype=np.float32), np.array([14.0, 5.0], dtype=np.float32))
    model = make(DummyVecEnv([lambda: Monitor(ScriptedEnv(0, [(5, "terminated")], space))]), squash_output=squash)
    model.actor.mu.weight.data.zero_()
    for mean in ([0.5, -0.25], [40.0, -40.0]):
        model.actor.mu.bias.data.copy_(th.tensor(mean))
        scaled = np.tanh(mean) if squash else np.clip(mean, -1, 1)
        action, _ = model.predict(np.zeros(3, dtype=np.float32), deterministic=True)
        assert np.allclose(action, [12 + 2 * scaled[0], 1 + 4 * scaled[1]], atol=1e-5)


# ------------------------------------------------------------------------------------------------------- save and load


def test_an_incompatible_replay_buffer_is_rejected(tmp_path: Path) -> None:
    model = make().learn(30)
    model.save_replay_buffer(tmp_path / "three.pkl")
    other = make(match_envs(2))
    before = other.replay_buffer
    with pytest.raises(ValueError, match=r"SequenceReplayBuffer for 3 environments.* for 2"):
        other.load_replay_buffer(tmp_path / "three.pkl")
    assert other.replay_buffer is before
    dictionary = make(match_envs(observation="dict"), "MultiInputPolicy")
    with pytest.raises(ValueError, match="needs a SequenceDictReplayBuffer for 3"):
        dictionary.load_replay_buffer(tmp_path / "three.pkl")


def test_segments_do_not_cross_resets(tmp_path: Path) -> None:
    """Endless episodes, which only calls of ``learn`` cut."""
    model = make(scripted_vec_env([[(10**6, "terminated")]] * 2, action_space=spaces.Box(-1, 1, (2,))), gradient_steps=0)
    model.learn(20).learn(20)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    assert np.flatnonzero(model.replay_buffer.dones[:30, 0]).tolist() == [9, 19]
    assert np.flatnonzero(model.replay_buffer.timeouts[:30, 0]).tolist() == [9, 19]


def test_steps_are_consistent_after_a_callback_stopped() -> None:
    model = make(scripted_vec_env([[(10**6, "terminated")]] * 2, action_space=spaces.Box(-1, 1, (2,))), gradient_steps=0)
    model.learn(1000, callback=Recorder(stop_after=7))
    model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    size = model.replay_buffer.size()
    arrays = (model.replay_buffer.observations, model.replay_buffer.next_observations)
    obs, next_obs = (np.asarray(array)[:size, :, 2] for array in arrays)
    assert np.allclose(next_obs - obs, 0.1, atol=1e-6)
    assert np.flatnonzero(model.replay_buffer.dones[:size, 0]).tolist() == [5]


@pytest.mark.parametrize(
    ("policy_class", "observation"), [(MlpPolicy, "box"), (CnnPolicy, "image"), (MultiInputPolicy, "dict_image")]
)
@pytest.mark.parametrize("options", [{}, {"covariance": "full", "squash_output": False, "n_critics": 2}], ids=str)
def test_policies_can_be_saved_separately(
    policy_class: type[BasePolicy], observation: str, options: Options, tmp_path: Path
) -> None:
    policy = make(match_envs(observation=observation), policy_for(observation), **options).learn(30).policy
    policy.save(str(tmp_path / "policy.zip"))
    loaded = policy_class.load(str(tmp_path / "policy.zip"))
    assert isinstance(loaded, policy_class)
    assert differences(dict(policy.state_dict()), dict(loaded.state_dict())) == []
    obs = policy.observation_space.sample()
    assert np.array_equal(policy.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])


# -------------------------------------------------------------------------------------------------------------- logger


@pytest.mark.parametrize(
    ("options", "additional"),
    [
        ({}, ["importance_ratio"]),
        ({"off_policy_correction": "none"}, []),
        ({"ent_coef": 0.1, "td_lambda": 0.0}, []),
        ({"ent_coef": "auto", "td_lambda": 0.0}, ["ent_coef", "ent_coef_loss"]),
        (ON_POLICY, []),
    ],
    ids=str,
)
def test_logged_names(options: Options, additional: list[str]) -> None:
    dumps = logged(make(**options), 60)
    expected = {"learning_rate", "n_updates", "actor_loss", "critic_loss", "std", *additional}
    assert {key.removeprefix("train/") for key in dumps[-1] if key.startswith("train/")} == expected
    assert {"time/fps", "time/episodes", "time/total_timesteps", "rollout/ep_rew_mean", "rollout/ep_len_mean"} < set(dumps[0])
    assert all(np.isfinite(dumps[-1][f"train/{key}"]) for key in expected)


def test_logged_values_are_means_over_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(gradient_steps=0).learn(30)
    values = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(model, "_update", lambda _: {"critic_loss": th.tensor(next(values))})
    captured = Captured()
    model.set_logger(Logger(folder=None, output_formats=[captured]))
    model.train(3, 16)
    model.logger.dump()
    assert captured.dumps[0]["train/critic_loss"] == 3
    assert captured.dumps[0]["train/n_updates"] == model._n_updates == 3


# ------------------------------------------------------------------------------------------------------ training mode


class Extractor(BaseFeaturesExtractor):
    """
    Batch normalisation and dropout.

    :param observation_space: vector
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=16)
        self.norm = th.nn.BatchNorm1d(observation_space.shape[0])
        self.layers = th.nn.Sequential(th.nn.Linear(observation_space.shape[0], 16), th.nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(self.norm(observations))
        return features


def test_batch_statistics_change_in_updates_only_and_are_copied_to_the_targets() -> None:
    model = make(policy_kwargs={"features_extractor_class": Extractor}, gradient_steps=0).learn(30)
    statistics = {name: value for name, value in model.policy.state_dict().items() if "num_batches" in name}
    assert [int(value) for value in statistics.values()] == [0, 0, 0]
    model.train(2, 16)
    state = model.policy.state_dict()
    name = "features_extractor.norm.running_mean"
    assert state[f"critic.{name}"].abs().min() > 0
    assert th.equal(state[f"critic.{name}"], state[f"critic_target.{name}"])
    assert not model.critic_target.training
    before = copy.deepcopy(model.actor.state_dict())
    model.learn(30)
    assert differences(dict(before), dict(model.actor.state_dict())) == []


# -------------------------------------------------------------------------------------------------------------- errors


class NonFiniteEnv(QuadraticEnv):
    """
    The reward or the observation is not finite after some steps.

    :param reward: reward from then on
    :param obs: number added to the observation from then on
    """

    def __init__(self, reward: float = 0.0, obs: float = 0.0) -> None:
        super().__init__()
        self.reward, self.added, self.left = reward, np.float32(obs), 12

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.left -= 1
        return (
            (obs, reward, terminated, truncated, info)
            if self.left > 0
            else (obs + self.added, self.reward, False, False, info)
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # inf - inf in numpy
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e39])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_non_finite_rewards_stop_training(options: Options, reward: float) -> None:
    """With a ValueError, for which a tuning study prunes the trial."""
    model = make(Monitor(NonFiniteEnv(reward)), **options)
    with pytest.raises(ValueError, match=r"critic_loss is not finite .*rewards"):
        model.learn(200)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_non_finite_observations_stop_training(covariance: str) -> None:
    with pytest.raises(ValueError, match=r"the mean of the policy is not finite"):
        make(Monitor(NonFiniteEnv(obs=float("nan"))), covariance=covariance).learn(100)


def test_a_non_finite_cholesky_factor_is_reported() -> None:
    model = make(covariance="full", learning_starts=0, gradient_steps=0)
    assert model.actor.off_diagonal is not None
    model.actor.off_diagonal.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"covariance \(its Cholesky factor\) of the policy is not finite"):
        model.learn(10)
