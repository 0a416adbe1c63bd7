"""The fast path against the reference: complete updates, and sampling of actions in numpy."""

import copy
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import MatchEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import SVG0
from sb3_pg.fast import disabled
from sb3_pg.svg0 import MlpPolicy
from sb3_pg.svg0.policies import GaussianActor

Options = dict[str, Any]


def make(env_kwargs: Options | None = None, policy: Any = "MlpPolicy", **kwargs: Any) -> SVG0:
    """A model with experience but without updates, whose initial parameters are perturbed."""
    mode = {"train_freq": 30} if kwargs.get("on_policy") else {"learning_starts": 30}
    env = DummyVecEnv([lambda: Monitor(MatchEnv(action="box", **(env_kwargs or {})))] * 2)
    network = {"net_arch": [16, 16], **kwargs.pop("policy_kwargs", {})}
    options = {"learning_rate": 1e-2, "seed": 0, "device": "cpu", "gradient_steps": 0, **mode, **kwargs}
    model = SVG0(policy, env, policy_kwargs=network, **options).learn(60)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    return model


def trained(model: SVG0, reference: bool, batch_size: int) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """Parameters and logged values after updates by the reference or the fast path. The model itself is restored."""
    state, logged = copy.deepcopy(model.policy.state_dict()), model.logger.name_to_value
    optimizers = [copy.deepcopy(part.optimizer.state_dict()) for part in (model.actor, model.critic)]
    model._setup_entropy()
    logged.clear()
    np.random.seed(3)  # noqa: NPY002 # the generator that SB3 seeds
    th.manual_seed(3)
    with disabled() if reference else nullcontext():
        assert (model._fast_path() is None) == reference
        model.train(4, batch_size)
    result = copy.deepcopy(model.policy.state_dict()), dict(logged)
    model.policy.load_state_dict(state)
    for part, optimizer in zip((model.actor, model.critic), optimizers, strict=True):
        part.optimizer.load_state_dict(optimizer)
    return result


def check_updates(model: SVG0, batch_size: int = 32) -> None:
    before = copy.deepcopy(model.policy.state_dict())
    (ours, our_log), (theirs, their_log) = (trained(model, reference, batch_size) for reference in (False, True))
    for name, value in theirs.items():
        # Adam amplifies rounding errors where gradients are nearly zero.
        assert (ours[name] - value).norm() <= 1e-3 * max((value - before[name]).norm(), 1e-3 * value.norm()), name
    moved = [name for name in theirs if not th.equal(theirs[name], before[name])]
    assert any("actor" in name for name in moved)
    assert any("critic" in name for name in moved)
    names = {name for name in their_log if name.startswith("train/") and name != "train/n_updates"}
    assert {"train/std", "train/critic_loss", "train/actor_loss"} <= names <= our_log.keys()
    for name in names:
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal"])
@pytest.mark.parametrize("depends", [True, False])
@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("ent_coef", [0.0, 0.2, "auto"])
def test_updates_equal_the_reference(covariance: str, depends: bool, squash: bool, ent_coef: Any) -> None:
    for n_samples, n_critics, on_policy in itertools.product((1, 3), (1, 2), (False, True)):
        check_updates(
            make(
                covariance=covariance,
                state_dependent_covariance=depends,
                squash_output=squash,
                ent_coef=ent_coef,
                n_action_samples=n_samples,
                n_critics=n_critics,
                on_policy=on_policy,
            )
        )


@pytest.mark.parametrize("options", [{"td_lambda": 0.0}, {"td_lambda": 0.5, "off_policy_correction": "none"}], ids=str)
@pytest.mark.parametrize("observation", ["box", "discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("on_policy", [False, True])
def test_updates_equal_the_reference_for_vector_observations(options: Options, observation: str, on_policy: bool) -> None:
    check_updates(make({"observation": observation}, on_policy=on_policy, **options))


@pytest.mark.parametrize("name", ["tanh", "one_layer", "clamped", "sgd", "no_bound", "wide"])
def test_updates_equal_the_reference_for_all_networks(name: str) -> None:
    variants: dict[str, Options] = {
        "tanh": {"activation_fn": th.nn.Tanh},
        "one_layer": {"net_arch": [16]},
        # Above LOG_STD_MAX: the gradient is zero.
        "clamped": {"log_std_init": 2.05},
        "sgd": {"optimizer_class": th.optim.SGD},
        "no_bound": {"min_std": 0.0},
        # Larger matrix products.
        "wide": {"net_arch": [64, 96]},
    }
    check_updates(make(policy_kwargs=variants[name], td_lambda=0.0), batch_size=1024 if name == "wide" else 32)


class OtherActor(GaussianActor):
    """A user's subclass."""


class OtherExtractor(FlattenExtractor):
    """A user's subclass."""


def frozen(model: SVG0) -> None:
    model.actor.mu.bias.requires_grad_(False)


def other_actor(model: SVG0) -> None:
    model.policy.actor.__class__ = OtherActor


EXCEPTIONS: dict[str, tuple[Options, Callable[[SVG0], object]]] = {
    "full": ({"covariance": "full"}, lambda _: None),
    "likelihood_ratio": ({"gradient_estimator": "likelihood_ratio"}, lambda _: None),
    "elu": ({"policy_kwargs": {"activation_fn": th.nn.ELU}}, lambda _: None),
    "linear": ({"policy_kwargs": {"net_arch": []}}, lambda _: None),
    "extractor": ({"policy_kwargs": {"features_extractor_class": OtherExtractor}}, lambda _: None),
    "hook": ({}, lambda model: model.critic.q_networks[0].register_forward_hook(lambda *_: None)),
    "hook_of_the_target": ({}, lambda model: model.critic_target.register_forward_hook(lambda *_: None)),
    "frozen": ({}, frozen),
    "subclass": ({}, other_actor),
    "method": ({}, lambda model: setattr(model.actor, "distribution", model.actor.distribution)),
}


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_other_models_use_the_reference(name: str) -> None:
    options, change = EXCEPTIONS[name]
    model = make(**options)
    change(model)
    assert model._fast_path() is None
    before = copy.deepcopy(model.actor.state_dict())
    model.train(2, 16)
    assert any(not th.equal(value, before[key]) for key, value in model.actor.state_dict().items())


def test_a_hook_takes_effect_from_the_next_update() -> None:
    model = make()
    seen: list[int] = []
    model.train(1, 16)
    hook = model.critic.q_networks[0].register_forward_hook(lambda *_: seen.append(1))
    model.train(1, 16)
    assert seen
    hook.remove()
    seen.clear()
    model.train(1, 16)
    assert not seen
    assert model._fast_path() is not None


def test_a_loaded_model_updates_its_own_networks(tmp_path: Any) -> None:
    model = make()
    model.train(1, 16)
    model.save(tmp_path / "model")
    other = SVG0.load(tmp_path / "model", env=model.get_env())
    other.replay_buffer = model.replay_buffer
    other.set_logger(model.logger)
    state = copy.deepcopy(model.policy.state_dict())
    before = copy.deepcopy(other.policy.state_dict())
    other.train(2, 16)
    assert all(th.equal(value, state[name]) for name, value in model.policy.state_dict().items())
    assert any(not th.equal(value, before[name]) for name, value in other.policy.state_dict().items())


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal"])
@pytest.mark.parametrize("depends", [True, False])
def test_samples_in_numpy_equal_those_of_the_modules(covariance: str, depends: bool) -> None:
    model = make(covariance=covariance, state_dependent_covariance=depends, policy_kwargs={"log_std_init": 1.99})
    obs = np.stack([model.observation_space.sample() for _ in range(50)])
    model._last_obs = obs
    assert model._fast_path() is not None
    th.manual_seed(5)
    samples, log_probs = model._policy_samples()
    th.manual_seed(5)
    with th.no_grad():
        distribution = model.actor.distribution(th.as_tensor(obs))
        expected = distribution.rsample(1)
    assert np.allclose(samples, expected[0], atol=1e-4)
    assert np.allclose(log_probs, distribution.sample_log_prob(expected)[0], atol=1e-4)
    assert samples.dtype == log_probs.dtype == np.float32


def test_samples_in_numpy_use_the_updated_parameters() -> None:
    model = make()
    fast = model._fast_path()
    model.train(3, 16)
    assert model._fast_path() is fast is not None
    obs = np.stack([model.observation_space.sample() for _ in range(5)])
    model._last_obs = obs
    th.manual_seed(5)
    samples, _ = model._policy_samples()
    th.manual_seed(5)
    with th.no_grad():
        assert np.allclose(samples, model.actor.distribution(th.as_tensor(obs)).rsample(1)[0], atol=1e-5)


def test_min_std_may_change_during_training() -> None:
    model = make(policy_kwargs={"log_std_init": -20.0})
    model._last_obs = np.stack([model.observation_space.sample() for _ in range(500)])
    for min_std in (0.1, 2.0):
        model.actor.min_std = min_std
        means = model.actor.distribution(th.as_tensor(model._last_obs)).mean.detach().numpy()
        samples, _ = model._policy_samples()
        assert (samples - means).std() == pytest.approx(min_std, rel=0.2)


class Replacing(BaseCallback):
    """Replaces the data of the actor's bias before each rollout, and restores them afterwards."""

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, SVG0)
        self.original = self.model.actor.mu.bias.data
        self.model.actor.mu.bias.data = th.full_like(self.original, 50.0)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, SVG0)
        self.model.actor.mu.bias.data = self.original


def test_changes_by_a_callback_before_a_rollout_take_effect() -> None:
    model = make(gradient_steps=1, squash_output=False)
    model.learn(40, callback=Replacing(), reset_num_timesteps=False)
    assert model.replay_buffer is not None
    latest = model.replay_buffer.actions[model.replay_buffer.pos - 10 : model.replay_buffer.pos]
    assert latest.min() > 30


def test_a_non_finite_critic_is_rejected() -> None:
    model = make(policy_kwargs={"net_arch": [64, 64]}, td_lambda=0.0)
    with th.no_grad():
        list(model.critic.parameters())[2][3, 4] = float("nan")
    with pytest.raises(ValueError, match="critic_loss is not finite"):
        model.train(1, 32)


def test_standard_deviations_stay_float32_with_any_min_std() -> None:
    model = make()
    model.actor.min_std = np.float64(0.1)  # as a user's schedule may return
    model._last_obs = np.stack([model.observation_space.sample() for _ in range(5)])
    assert model._policy_samples()[0].dtype == np.float32


class OtherMLP(th.nn.Sequential):
    """A user's subclass."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x) + 70  # type: ignore[no-any-return,no-untyped-call]  # torch


class OtherPolicy(MlpPolicy):
    """A user's subclass."""

    def obs_to_tensor(self, observation: Any) -> Any:
        return super().obs_to_tensor(observation + 70)


def other_network(model: SVG0) -> None:
    model.actor.latent_pi = OtherMLP(*model.actor.latent_pi)


def other_log_std(model: SVG0) -> None:
    model.actor.log_std = th.nn.Sequential(model.actor.log_std, th.nn.Tanh())  # type: ignore[assignment]  # of another type


@pytest.mark.parametrize("change", [other_network, other_log_std])
def test_replaced_parts_of_the_actor_are_used(change: Callable[[SVG0], object]) -> None:
    model = make()
    change(model)
    assert model._fast_path() is None
    model._last_obs = np.stack([model.observation_space.sample() for _ in range(300)])
    with th.no_grad():
        mean = model.actor.distribution(th.as_tensor(model._last_obs)).mean
    # The mean of 300 draws with standard deviations of at most e^2.
    assert np.abs((model._policy_samples()[0] - mean.numpy()).mean(axis=0)).max() < 3


def test_a_policy_that_overrides_obs_to_tensor_is_used() -> None:
    model = make(policy=OtherPolicy)
    fast = model._fast_path()
    assert fast is not None
    assert fast.sample(np.zeros((2, 3), dtype=np.float32)) is None


def test_dictionary_observations_use_the_reference() -> None:
    assert make({"observation": "dict"}, policy="MultiInputPolicy")._fast_path() is None


def test_a_non_finite_actor_is_rejected() -> None:
    model = make()
    with th.no_grad():
        model.actor.mu.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the mean of the policy is not finite"):
        model._policy_samples()
