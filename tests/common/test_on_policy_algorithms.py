"""Behaviour shared by VPG and NStepA2C, beyond what ``tests/conformance`` tests for all algorithms."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conformance.test_training import Extractor
from envs import ACTION_SPACES, MatchEnv, QuadraticEnv
from model_checks import (
    A2C,
    Model,
    Options,
    check_training,
    differences,
    logged,
    make,
    match_envs,
    name_of,
    reloaded,
)
from smoke_envs import Recorder, scripted_vec_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from sb3_pg import VPG, NStepA2C
from sb3_pg.common.buffers import PolicyGradientBuffer

EPISODES: Options = {"n_episodes": 6}
# Each collection mode of each algorithm.
MODES: list[Options] = [{"n_steps": 6}, EPISODES, A2C]
TWO_OPTIMIZERS: Options = {**A2C, "value_learning_rate": 1e-2}
CRITICS: dict[str, Options] = {
    "joint": {"n_value_updates": 0},
    "joint, two rates": {"n_value_updates": 0, "value_learning_rate": 1e-2},
    "separate": {"n_value_updates": 2},
    "first": {"n_value_updates": 2, "critic_first": True},
    "minibatches": {"n_value_updates": 3, "value_batch_size": 4},
    "a2c": A2C,
    "a2c, two rates": TWO_OPTIMIZERS,
}
ONE_OPTIMIZER = [CRITICS["joint"], CRITICS["a2c"]]
VARIANTS: list[Options] = [
    {"n_steps": 6},
    {"n_steps": 6, "advantage_estimator": "n_step", "return_steps": 2, "n_value_updates": 0},
    {**EPISODES, "advantage_estimator": "total_return", "baseline": "none"},
    {**EPISODES, "advantage_estimator": "total_return", "baseline": "mean"},
    {**EPISODES, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
    {**EPISODES, "advantage_estimator": "reward_to_go", "discount_gradient": True},
    A2C,
    {**A2C, "return_steps": 2, "value_learning_rate": 1e-2},
    {**A2C, "gae_lambda": 0.9, "normalize_advantage": True, "use_rms_prop": "tf"},
]
LOGGED_NETWORK: Options = {"policy_kwargs": {"log_std_init": -0.5}}
EACH_ALGORITHM = pytest.mark.parametrize("base", [{}, A2C], ids=["VPG", "NStepA2C"])


@pytest.mark.parametrize("options", ONE_OPTIMIZER, ids=name_of)
def test_a_shared_feature_extractor_with_the_joint_loss(options: Options) -> None:
    kwargs = {"share_features_extractor": True}
    model = make(match_envs(observation="image"), "CnnPolicy", policy_kwargs=kwargs, **options)
    check_training(model)
    assert model.policy.pi_features_extractor is model.policy.vf_features_extractor


# -------------------------------------------------------------------------------------------------------- save and load


@EACH_ALGORITHM
def test_a_loaded_model_does_not_count_steps_of_the_saved_rollout(base: Options) -> None:
    model = make(scripted_vec_env([[(50, "terminated")]] * 2), n_steps=7, **base).learn(14)
    loaded = reloaded(model, env=scripted_vec_env([[(50, "terminated")]] * 3))
    loaded.learn(21, reset_num_timesteps=False)
    assert loaded.rollout_buffer.episode_steps[:, 0].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("learning_rate", "value_learning_rate"),
    [
        (1e-3, None),
        (lambda p: 1e-3 * p, lambda p: 1e-2 * p),
        (1e-3, "lin_1e-2"),
        (np.float64, np.float64),
    ],
)
@EACH_ALGORITHM
def test_schedules_survive_saving(learning_rate: Any, value_learning_rate: Any, base: Options) -> None:
    model = make(learning_rate=learning_rate, value_learning_rate=value_learning_rate, **base).learn(36)
    loaded = reloaded(model, env=match_envs())
    for progress in (1.0, 0.3):
        assert loaded.lr_schedule(progress) == model.lr_schedule(progress)
        assert loaded._value_lr_schedule(progress) == model._value_lr_schedule(progress)
    loaded.learn(36)


@pytest.mark.parametrize(
    ("policy", "observation"), [("LinearPolicy", "box"), ("CnnPolicy", "image"), ("MultiInputPolicy", "dict_image")]
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_saved_policy_keeps_its_shared_features(policy: str, observation: str, shared: bool, tmp_path: Path) -> None:
    kwargs = {"share_features_extractor": shared}
    saved = make(match_envs(observation=observation), policy, policy_kwargs=kwargs, **CRITICS["joint"]).policy
    saved.save(str(tmp_path / "policy.zip"))
    loaded = type(saved).load(str(tmp_path / "policy.zip"))
    assert (loaded.pi_features_extractor is loaded.vf_features_extractor) == shared
    assert differences(saved.state_dict(), loaded.state_dict()) == []


# --------------------------------------------------------------------------------------------------------------- logger


JOINT_KEYS = {"learning_rate", "n_updates", "entropy_loss", "policy_loss", "grad_norm", "value_loss", "explained_variance"}
VPG_KEYS = {"weight_std", "approx_kl"}
NO_CRITIC: Options = {**EPISODES, "advantage_estimator": "total_return", "baseline": "mean"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CRITICS["joint"], JOINT_KEYS | VPG_KEYS),
        (CRITICS["joint, two rates"], JOINT_KEYS | VPG_KEYS | {"value_learning_rate"}),
        (NO_CRITIC, (JOINT_KEYS | VPG_KEYS) - {"value_loss", "explained_variance"}),
        (TWO_OPTIMIZERS, JOINT_KEYS | {"value_learning_rate"}),
    ],
    ids=name_of,
)
def test_logged_keys_depend_on_the_critic(options: Options, expected: set[str]) -> None:
    log = logged(make(**options), 60)[-1]
    assert {key.removeprefix("train/") for key in log if key.startswith("train/")} == expected
    assert all(np.isfinite(log[f"train/{key}"]) for key in expected)


@pytest.mark.parametrize("options", [{}, *ONE_OPTIMIZER], ids=name_of)
def test_logged_values_are_correct(options: Options) -> None:
    """Values of one update, recomputed from the rollout and the parameters before it."""
    joint = options in ONE_OPTIMIZER
    model = make(match_envs(action="box"), n_steps=8, ent_coef=0.1, max_grad_norm=None, **{**LOGGED_NETWORK, **options})
    before = copy.deepcopy(model.policy.state_dict())
    recorder = Recorder(at_end=lambda m: copy.deepcopy(m.rollout_buffer))
    log = logged(model, 24, recorder)[-1]
    after = copy.deepcopy(model.policy.state_dict())
    buffer = recorder.rollouts[0].at_end

    def evaluate(state: dict[str, th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        model.policy.load_state_dict(state)
        samples = buffer.samples()
        values, log_prob, entropy = model.policy.evaluate_actions(samples.observations, samples.actions)
        assert entropy is not None
        return values.flatten(), log_prob, entropy

    weights = th.as_tensor(buffer.advantages.ravel())
    values, log_prob, entropy = evaluate(before)
    policy_loss = -(log_prob * weights).mean()
    value_loss = ((values - th.as_tensor(buffer.returns.ravel())) ** 2).mean()
    loss = policy_loss - 0.1 * entropy.mean() + (0.5 * value_loss if joint else 0)
    learned = [p for name, p in model.policy.named_parameters() if joint or "value" not in name]
    gradients = th.autograd.grad(loss, learned)
    assert log["train/policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-5)
    assert log["train/entropy_loss"] == pytest.approx(-entropy.mean().item(), rel=1e-5)
    assert log["train/entropy_loss"] == pytest.approx(-2 * (0.5 + 0.5 * np.log(2 * np.pi) - 0.5), rel=1e-5)
    assert log["train/grad_norm"] == pytest.approx(th.cat([g.ravel() for g in gradients]).norm().item(), rel=1e-4)
    assert not joint or log["train/value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    if isinstance(model, VPG):
        ratio = evaluate(after)[1] - log_prob
        assert log["train/weight_std"] == pytest.approx(buffer.advantages.std(), rel=1e-4)
        assert log["train/approx_kl"] == pytest.approx((ratio.exp() - 1 - ratio).mean().item(), rel=1e-2, abs=1e-7)
        assert log["train/approx_kl"] > 0
    assert log["train/std"] == pytest.approx(after["log_std"].exp().mean().item())
    explained = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    assert log["train/explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert log["train/n_updates"] == 1


@EACH_ALGORITHM
def test_the_gradient_norm_is_logged_before_clipping(base: Options) -> None:
    free, clipped = (logged(make(max_grad_norm=maximum, **base), 18)[-1]["train/grad_norm"] for maximum in (None, 1e-6))
    assert clipped == free > 1e-4


@EACH_ALGORITHM
def test_statistics_of_episodes(base: Options) -> None:
    """All episodes in the first 12 steps of two environments: lengths by script, every other one a success."""
    dumps = logged(make(scripted_vec_env([[(3, "terminated")], [(4, "truncated")]]), n_steps=12, **base), 24)
    assert dumps[0]["rollout/ep_len_mean"] == pytest.approx((4 * 3 + 3 * 4) / 7)
    assert dumps[0]["rollout/success_rate"] == pytest.approx((2 + 2) / 7)
    assert dumps[0]["time/total_timesteps"] == dumps[0]["step"] == 24
    assert dumps[0]["time/iterations"] == 1


# ------------------------------------------------------------------------------------------------------- learning rates


class Rates(BaseCallback):
    """Records the learning rates of the last optimizer steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        return True

    def record(self) -> None:
        assert isinstance(self.model, (VPG, NStepA2C))
        assert self.model.value_optimizer is not None
        optimizers = (self.model.policy.optimizer, self.model.value_optimizer)
        self.seen.append((optimizers[0].param_groups[0]["lr"], optimizers[1].param_groups[0]["lr"]))

    def _on_rollout_start(self) -> None:
        if self.model._n_updates:
            self.record()

    def _on_training_end(self) -> None:
        self.record()


@pytest.mark.parametrize("critic", [CRITICS[name] for name in ("joint", "separate", "first", "a2c")], ids=name_of)
@pytest.mark.parametrize(
    ("learning_rate", "value_learning_rate", "expected"),
    [
        (0.4, 0.1, [(0.4, 0.1)] * 4),
        (0.4, "lin_0.1", [(0.4, 0.075), (0.4, 0.05), (0.4, 0.025), (0.4, 0.0)]),
        (lambda p: 0.4 * p, 0.1, [(0.3, 0.1), (0.2, 0.1), (0.1, 0.1), (0.0, 0.1)]),
        (0.4, lambda p: 0.1 * p**2, [(0.4, 0.05625), (0.4, 0.025), (0.4, 0.00625), (0.4, 0.0)]),
    ],
)
def test_actor_and_critic_learn_at_their_own_rates(
    critic: Options, learning_rate: Any, value_learning_rate: Any, expected: list[tuple[float, float]]
) -> None:
    rates = Rates()
    kwargs = {"optimizer_class": th.optim.SGD}
    model = make(
        n_steps=6, learning_rate=learning_rate, value_learning_rate=value_learning_rate, policy_kwargs=kwargs, **critic
    )
    model.learn(72, callback=rates)
    assert np.allclose(rates.seen, expected)
    # Dumped before each update: the first dump has no learning rates.
    dumped = [(dump["train/learning_rate"], dump["train/value_learning_rate"]) for dump in logged(model, 72)[1:]]
    assert np.allclose(dumped, expected)


# ---------------------------------------------------------------------------------------------------- modes of training


# The optimal baseline takes an additional forward pass per episode.
SINGLE_PASS = [options for options in VARIANTS if options.get("baseline") != "optimal"]


@pytest.mark.parametrize("options", [*SINGLE_PASS, *CRITICS.values()], ids=name_of)
def test_batch_normalisation_is_updated_once_per_optimizer_step(options: Options) -> None:
    """Statistics of the policy with the policy's steps, those of the critic with the critic's."""
    kwargs = {"features_extractor_class": Extractor, "share_features_extractor": False}
    model = make(policy_kwargs=kwargs, **options)
    counts: list[tuple[int, int]] = []

    def count(model: Model) -> None:
        parts = (model.policy.pi_features_extractor, model.policy.vf_features_extractor)
        counts.append(tuple(int(part.state_dict()["norm.num_batches_tracked"]) for part in parts))  # type: ignore[arg-type]  # two

    recorder = Recorder(at_start=count, at_end=count)
    model.learn(1, callback=recorder)
    model.learn(1, callback=recorder, reset_num_timesteps=False)
    critic = 0 if not model.uses_critic else max(1, getattr(model, "resolved_n_value_updates", 1))
    assert counts == [(0, 0), (0, 0), (1, critic), (1, critic)]


# --------------------------------------------------------------------------------------------------------------- errors


class NonFiniteReward(QuadraticEnv):
    """
    The reward is not finite after some steps.

    :param reward: reward from then on
    :param after: number of steps before
    """

    def __init__(self, reward: float, after: int) -> None:
        super().__init__()
        self.reward, self.left = reward, after

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.left -= 1
        return obs, self.reward if self.left < 0 else reward, terminated, truncated, info


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # inf - inf
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e39])
@pytest.mark.parametrize(
    "options",
    [
        {"n_steps": 8},
        {"n_steps": 8, "n_value_updates": 0},
        {"n_steps": 8, "critic_first": True},
        {"n_steps": 8, "normalize_advantage": True},
        {"n_steps": 8, "max_grad_norm": 0.5},
        {**A2C, "n_steps": 8},
        {**TWO_OPTIMIZERS, "n_steps": 8, "max_grad_norm": None},
        *({"n_episodes": 8, "advantage_estimator": "total_return", "baseline": name} for name in ("none", "mean", "optimal")),
    ],
    ids=name_of,
)
def test_non_finite_rewards_stop_training_before_the_parameters_change(options: Options, reward: float) -> None:
    """With a ValueError, which a tuning study handles."""
    model = make(Monitor(NonFiniteReward(reward, after=12)), **options)
    recorder = Recorder(at_end=lambda m: copy.deepcopy(m.policy.state_dict()))
    with pytest.raises(ValueError, match=r"(policy gradient|value loss) is not finite .*rewards"):
        model.learn(100, callback=recorder)
    assert len(recorder.rollouts) == 2
    assert differences(recorder.rollouts[-1].at_end, dict(model.policy.state_dict())) == []


class NonFiniteObservations(MatchEnv):
    """Observations become NaN, as in a diverging simulation."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return (obs * np.nan, *rest)


@pytest.mark.parametrize("action", ACTION_SPACES)
@EACH_ALGORITHM
def test_non_finite_observations_stop_training(action: str, base: Options) -> None:
    with pytest.raises(ValueError, match=r"nan|not finite"):
        make(NonFiniteObservations(action=action), **base).learn(50)


@EACH_ALGORITHM
def test_unsuitable_policies_and_buffers_are_rejected(base: Options) -> None:
    dictionaries = match_envs(2, observation="dict")
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make(dictionaries, **base)
    with pytest.raises(ValueError, match="LstmPolicy"):
        make(policy="LstmPolicy", **base)
    with pytest.raises(ValueError, match=r"PolicyGradientBuffer cannot store .*PolicyGradientDictBuffer"):
        make(dictionaries, "MultiInputPolicy", rollout_buffer_class=PolicyGradientBuffer, **base)
    with pytest.raises(ValueError, match=r"gSDE\) can only be used with continuous actions"):
        make(use_sde=True, **base)
