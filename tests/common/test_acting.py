"""Acting in numpy gives what the policy gives, and stands aside where it could not."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_pg import VPG, NStepA2C
from sb3_pg.common.acting import NumpyActor, numpy_actor
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
    """A policy whose parameters are no longer those of the initialisation, under which all actions are nearly equal."""
    policy = policy_class(observation_space, action_space, lambda _: 1e-3, **kwargs)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * th.randn(parameter.shape))
    return policy


def actor_of(policy: ActorCriticPolicy) -> NumpyActor:
    actor = numpy_actor(policy)
    assert actor is not None
    return actor


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
def test_outputs_are_those_of_the_policy(action_space: gym.Space[Any], network: dict[str, Any]) -> None:
    policy = make(action_space, **network)
    obs = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    outputs = actor_of(policy).outputs(obs)
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
    assert actor_of(policy).outputs(obs) == pytest.approx(expected_outputs(policy, obs), abs=1e-5)


def test_it_follows_updates_and_loaded_parameters() -> None:
    policy, other = make(), make()
    obs = np.ones((1, 3), dtype=np.float32)
    actor = actor_of(policy)
    before = actor.outputs(obs)
    policy.optimizer.zero_grad()
    policy.evaluate_actions(th.as_tensor(obs), th.zeros(1))[1].sum().backward()
    policy.optimizer.step()
    assert not np.allclose(actor.outputs(obs), before, atol=1e-6)
    policy.load_state_dict(other.state_dict())
    assert np.array_equal(actor.outputs(obs), actor_of(other).outputs(obs))


def test_the_observations_are_left_alone() -> None:
    obs = np.ones((2, 3), dtype=np.float32)
    # Without hidden layer, and with an activation that works in place.
    for arch in ([], [4]):
        actor_of(make(net_arch=arch, activation_fn=nn.ReLU)).sample(obs)
        assert np.array_equal(obs, np.ones((2, 3)))


def test_categorical_frequencies() -> None:
    policy = make()
    obs = np.repeat(np.random.default_rng(1).normal(size=(1, 3)).astype(np.float32), 100_000, axis=0)
    th.manual_seed(0)
    actions = actor_of(policy).sample(obs)
    probabilities = np.exp(expected_outputs(policy, obs[:1])[0])
    frequencies = np.bincount(actions, minlength=4) / len(actions)
    assert np.all(np.abs(frequencies - probabilities) < 5 * np.sqrt(probabilities / len(actions)) + 1e-9)


def test_gaussian_moments() -> None:
    policy = make(CONTINUOUS, log_std_init=-0.5)
    obs = np.repeat(np.random.default_rng(1).normal(size=(1, 3)).astype(np.float32), 100_000, axis=0)
    th.manual_seed(0)
    actions = actor_of(policy).sample(obs)
    std = np.exp(policy.log_std.detach().numpy())
    assert np.all(np.abs(actions.mean(axis=0) - expected_outputs(policy, obs[:1])[0]) < 5 * std / np.sqrt(len(actions)))
    assert actions.std(axis=0) == pytest.approx(std, rel=0.02)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.02


def test_impossible_actions_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of what the generator can return."""
    policy = make(net_arch=[])
    with th.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(th.tensor([-1e4, 0.0, 0.0, -1e4]))
    actor = actor_of(policy)
    for number, action in ((0.0, 1), (1 - 2**-24, 2)):
        monkeypatch.setattr(th, "rand", lambda *shape, number=number: th.full(shape, number))
        assert actor.sample(np.zeros((1, 3), dtype=np.float32)) == [action]


def test_the_seed_of_the_algorithm_decides() -> None:
    obs, actor = np.ones((4, 3), dtype=np.float32), actor_of(make())
    draws = [(th.manual_seed(seed), actor.sample(obs))[1] for seed in (1, 1)]
    assert np.array_equal(*draws)


def test_broken_parameters_are_an_error() -> None:
    policy = make()
    with th.no_grad():
        policy.action_net.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        actor_of(policy).sample(np.ones((1, 3), dtype=np.float32))


class OwnExtractor(FlattenExtractor):
    """Another class is another network."""


class OwnPolicy(ActorCriticPolicy):
    """Its features differ from those that the layers would be given."""

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        return super().extract_features(*args, **kwargs)


def with_hook() -> ActorCriticPolicy:
    policy = make()
    policy.action_net.register_forward_hook(lambda *args: args[-1] * 0)
    return policy


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
        with_hook(),
    ],
    ids=lambda policy: (
        f"{type(policy).__name__}-{type(policy.observation_space).__name__}-{type(policy.action_space).__name__}"
    ),
)
def test_whatever_is_not_standard_acts_for_itself(policy: ActorCriticPolicy) -> None:
    assert numpy_actor(policy) is None


@pytest.mark.parametrize("algorithm", [VPG, NStepA2C])
def test_training_is_the_same_by_either_path(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise of its own for each path; Gaussian noise is drawn alike by both."""
    models = []
    for fast in (True, False):
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr("sb3_pg.common.on_policy.numpy_actor", lambda _: None)
            models.append(algorithm("MlpPolicy", "Pendulum-v1", n_steps=8, seed=0, device="cpu").learn(64))
    for fast_parameter, parameter in zip(*(model.policy.parameters() for model in models), strict=True):
        assert fast_parameter.detach().numpy() == pytest.approx(parameter.detach().numpy(), abs=1e-4)
