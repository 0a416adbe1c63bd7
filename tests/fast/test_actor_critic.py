"""Actor and critic in numpy equal the policy; unsupported policies have no fast path."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_pg import VPG, NStepA2C, fast
from sb3_pg.common import losses
from sb3_pg.common.on_policy import Batch
from sb3_pg.fast.actor_critic import FastActorCritic
from sb3_pg.fast.numpy_mlp import clip_gradient, flatten_observations
from sb3_pg.vpg.policies import LinearPolicy

VECTOR = spaces.Box(-1, 1, (3,))
DISCRETE = spaces.Discrete(4)
CONTINUOUS = spaces.Box(-1, 1, (2,))


def make(
    action_space: gym.Space[Any] = DISCRETE,
    observation_space: gym.Space[Any] = VECTOR,
    policy_class: type[ActorCriticPolicy] = ActorCriticPolicy,
    **kwargs: Any,
) -> ActorCriticPolicy:
    """A policy with perturbed parameters: with the initial ones all actions are nearly equally likely."""
    policy = policy_class(observation_space, action_space, lambda _: 1e-3, **kwargs)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * th.randn(parameter.shape))
    return policy


def algorithm_with(policy: ActorCriticPolicy, ent_coef: float = 0.0, vf_coef: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        policy=policy, action_space=policy.action_space, ent_coef=ent_coef, _resolved_vf_coef=vf_coef, max_grad_norm=None
    )


def fast_path_of(policy: ActorCriticPolicy, **options: float) -> FastActorCritic:
    path = FastActorCritic.build(algorithm_with(policy, **options))
    assert path is not None
    return path


def outputs_of(path: FastActorCritic, obs: np.ndarray) -> np.ndarray:
    return path._actor.forward(flatten_observations(obs))[-1]


def sample(path: FastActorCritic, obs: np.ndarray) -> np.ndarray:
    return path.sample_actions(obs)[0]


def bias_of(policy: ActorCriticPolicy) -> th.nn.Parameter:
    bias = policy.action_net.bias
    assert isinstance(bias, th.nn.Parameter)
    return bias


def expected_outputs(policy: ActorCriticPolicy, obs: np.ndarray) -> np.ndarray:
    with th.no_grad():
        distribution: Any = policy.get_distribution(policy.obs_to_tensor(obs)[0]).distribution
    return (distribution.mean if isinstance(distribution, th.distributions.Normal) else distribution.logits).numpy()


NETWORKS: list[dict[str, Any]] = [
    {},
    {"net_arch": [16, 8, 4], "activation_fn": nn.ReLU},
    {"net_arch": dict(pi=[5], vf=[])},
    {"net_arch": dict(pi=[], vf=[5])},
    {"share_features_extractor": False},
    {"policy_class": LinearPolicy},
]


@pytest.mark.parametrize("action_space", [DISCRETE, CONTINUOUS], ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_outputs_equal_those_of_the_policy(action_space: gym.Space[Any], network: dict[str, Any]) -> None:
    policy = make(action_space, **network)
    obs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    outputs = outputs_of(fast_path_of(policy), obs)
    if isinstance(action_space, spaces.Discrete):
        # Torch's logits are normalised.
        outputs = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    assert outputs == pytest.approx(expected_outputs(policy, obs), abs=1e-5)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2, 3)), spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-9, 9, (3,), np.int64)], ids=str
)
def test_observations_of_any_shape_and_precision(space: spaces.Box) -> None:
    policy = make(CONTINUOUS, space)
    obs = np.stack([space.sample() for _ in range(5)])
    assert outputs_of(fast_path_of(policy), obs) == pytest.approx(expected_outputs(policy, obs), abs=1e-5)


def test_updated_and_loaded_parameters_are_used() -> None:
    policy, other = make(), make()
    obs = np.ones((1, 3), dtype=np.float32)
    path = fast_path_of(policy)
    before = outputs_of(path, obs)
    policy.optimizer.zero_grad()
    policy.evaluate_actions(th.as_tensor(obs), th.zeros(1))[1].sum().backward()  # type: ignore[no-untyped-call]  # torch
    policy.optimizer.step()
    assert not np.allclose(outputs_of(path, obs), before, atol=1e-6)
    policy.load_state_dict(other.state_dict())
    assert np.array_equal(outputs_of(path, obs), outputs_of(fast_path_of(other), obs))


def test_observations_are_not_modified() -> None:
    obs = np.ones((2, 3), dtype=np.float32)
    # Without hidden layers, and with an in-place activation.
    for arch in ([], [4]):
        sample(fast_path_of(make(net_arch=arch, activation_fn=nn.ReLU)), obs)
        assert np.array_equal(obs, np.ones((2, 3)))


def test_impossible_actions_are_never_sampled() -> None:
    policy = make(net_arch=[])
    with th.no_grad():
        bias_of(policy).copy_(th.tensor([-1e4, 0.0, 0.0, -1e4]))
    actions = sample(fast_path_of(policy), np.zeros((10_000, 3), dtype=np.float32))
    assert set(actions) == {1, 2}


@pytest.mark.parametrize("action_space", [DISCRETE, CONTINUOUS], ids=str)
def test_actions_equal_those_of_the_policy(action_space: gym.Space[Any]) -> None:
    """With the same random numbers."""
    policy = make(action_space)
    obs = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    th.manual_seed(3)
    with th.no_grad():
        expected = policy.get_distribution(th.as_tensor(obs)).get_actions().numpy()
    th.manual_seed(3)
    assert sample(fast_path_of(policy), obs) == pytest.approx(expected, abs=1e-5)


def test_non_finite_parameters_raise() -> None:
    policy = make()
    with th.no_grad():
        bias_of(policy).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        sample(fast_path_of(policy), np.ones((1, 3), dtype=np.float32))


class OwnExtractor(FlattenExtractor):
    """A subclass may compute something else."""


class OwnPolicy(ActorCriticPolicy):
    """Its features may differ."""

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        return super().extract_features(*args, **kwargs)


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


@pytest.mark.parametrize(
    "policy",
    [
        make(CONTINUOUS, use_sde=True),
        make(spaces.MultiDiscrete([2, 3])),
        make(spaces.MultiBinary(2)),
        make(observation_space=spaces.Discrete(3)),
        make(observation_space=IMAGE),
        make(observation_space=spaces.Box(0, 255, (1, 36, 36), np.uint8), policy_class=ActorCriticCnnPolicy),
        make(observation_space=spaces.Dict({"a": VECTOR}), policy_class=MultiInputActorCriticPolicy),
        make(activation_fn=nn.GELU),
        make(features_extractor_class=OwnExtractor),
        make(policy_class=OwnPolicy),
        make().double(),
    ],
    ids=lambda policy: (
        f"{type(policy).__name__}-{type(policy.observation_space).__name__}-{type(policy.action_space).__name__}"
    ),
)
def test_other_policies_have_no_fast_path(policy: ActorCriticPolicy) -> None:
    assert FastActorCritic.build(algorithm_with(policy)) is None


def batch_of(policy: ActorCriticPolicy, size: int = 9, scale: float = 0.3) -> tuple[Batch, th.Tensor]:
    obs = th.randn(size, 3)
    with th.no_grad():
        actions = policy.get_distribution(obs).sample()
    return Batch(obs, actions, th.randn(size), scale), th.randn(size)


def gradients_of(policy: ActorCriticPolicy) -> list[np.ndarray]:
    return [np.zeros(p.shape) if p.grad is None else p.grad.numpy().copy() for p in policy.parameters()]


def assert_close(gradients: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Relative to the largest gradient: rounding errors scale with the terms of a sum, not with the result."""
    size = max(float(np.abs(array).max()) for array in expected)
    for gradient, array in zip(gradients, expected, strict=True):
        assert np.abs(gradient - array).max() <= 1e-4 * size


@pytest.mark.parametrize("action_space", [DISCRETE, CONTINUOUS], ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_and_losses_equal_those_of_autograd(action_space: gym.Space[Any], network: dict[str, Any]) -> None:
    policy = make(action_space, **network)
    batch, targets = batch_of(policy)
    ent_coef, vf_coef = 0.2, 0.7
    values, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions)
    policy_loss = losses.policy_gradient_loss(log_prob, batch.weights, batch.scale)
    entropy_loss = losses.entropy_loss(entropy, log_prob, batch.scale)
    value_loss = losses.value_loss(values.flatten(), targets)
    loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    expected = [g.numpy() for g in th.autograd.grad(loss, list(policy.parameters()))]

    path = fast_path_of(policy, ent_coef=ent_coef, vf_coef=vf_coef)
    step = path.policy_gradient(batch, targets)
    assert step.value_loss == pytest.approx(value_loss.item(), rel=1e-4)
    assert step.policy_loss == pytest.approx(policy_loss.item(), rel=1e-4, abs=1e-4)
    assert step.entropy_loss == pytest.approx(entropy_loss.item(), rel=1e-4)
    assert step.log_prob == pytest.approx(log_prob.detach().numpy(), rel=1e-4, abs=1e-4)
    assert path.action_log_prob(batch) == pytest.approx(log_prob.detach().numpy(), rel=1e-4, abs=1e-4)
    assert step.grad_norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in expected)), rel=1e-4)
    assert_close(gradients_of(policy), expected)


def test_policy_and_critic_have_separate_gradients() -> None:
    """Neither changes the gradients of the other, and the squared norms add up."""
    policy = make(CONTINUOUS)
    path, (batch, targets) = fast_path_of(policy), batch_of(policy)
    actor_norm = path.policy_gradient(batch).grad_norm
    assert policy.value_net.weight.grad is None
    actor_gradients = gradients_of(policy)
    _, critic_norm = path.value_gradient(batch.observations, targets)  # type: ignore[arg-type]  # a tensor
    both = gradients_of(policy)
    assert all(np.array_equal(a, b) for a, b in zip(actor_gradients, both, strict=True) if a.any())
    assert actor_norm**2 + critic_norm**2 == pytest.approx(sum((g**2).sum() for g in both), rel=1e-4)
    assert min(actor_norm, critic_norm) > 0


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 50.0, None])
def test_clipping_equals_that_of_torch(max_norm: float | None) -> None:
    gradient = np.array([3.0, 4.0, 0.0], dtype=np.float32)
    parameters = [th.nn.Parameter(th.zeros(1)) for _ in gradient]
    for parameter, number in zip(parameters, gradient, strict=True):
        parameter.grad = th.tensor([number])
    expected = th.nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
    assert clip_gradient(gradient, max_norm) == pytest.approx(expected.item()) == 5
    assert gradient == pytest.approx([float(p.grad.item()) for p in parameters if p.grad is not None])


UPDATES: list[tuple[Any, dict[str, Any]]] = [
    (NStepA2C, {"n_steps": 8, "ent_coef": 0.01}),
    (NStepA2C, {"n_steps": 8, "value_learning_rate": 1e-3, "normalize_advantage": True}),
    (VPG, {"n_steps": 32, "ent_coef": 0.01, "n_value_updates": 3, "value_batch_size": 10, "max_grad_norm": 0.5}),
    (VPG, {"n_steps": 32, "n_value_updates": 0}),
    (VPG, {"n_episodes": 2, "advantage_estimator": "reward_to_go", "baseline": "mean"}),
]


@pytest.mark.parametrize(("algorithm", "options"), UPDATES, ids=str)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_training_is_the_same_with_and_without_the_fast_path(algorithm: Any, options: dict[str, Any], env: str) -> None:
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **options)
    assert model._fast_path() is not None
    model.learn(100)
    with fast.disabled():
        reference = algorithm("MlpPolicy", env, seed=0, device="cpu", **options).learn(100)
        assert reference._fast_path() is None
    for fast_parameter, parameter in zip(model.policy.parameters(), reference.policy.parameters(), strict=True):
        assert fast_parameter.detach().numpy() == pytest.approx(parameter.detach().numpy(), abs=2e-4)
    logged = [{k: v for k, v in m.logger.name_to_value.items() if k.startswith("train/")} for m in (model, reference)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-2, abs=1e-3)
