"""Parameter groups of every kind of policy; determining them has no side effects."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import ACTION_SPACES, OBSERVATION_SPACES
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_pg.common.networks import ParameterGroups, index_observations, parameter_groups
from sb3_pg.vpg import CnnPolicy, LinearPolicy, MlpPolicy, MultiInputPolicy

VECTOR, IMAGE = OBSERVATION_SPACES["box"], spaces.Box(0, 255, (1, 36, 36), np.uint8)
DISCRETE, BOX = ACTION_SPACES["discrete"], ACTION_SPACES["box"]


class SmallExtractor(BaseFeaturesExtractor):
    """
    One linear layer with dropout, batch normalisation, and a layer that is never used.

    :param observation_space: vector
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.used = th.nn.Linear(observation_space.shape[0], 4)
        self.dropout, self.norm = th.nn.Dropout(0.5), th.nn.BatchNorm1d(4)
        self.unused = th.nn.Linear(2, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.norm(self.dropout(self.used(observations)))
        return features


def make(
    policy_class: type[ActorCriticPolicy], space: spaces.Space[Any], action: spaces.Space[Any], **kwargs: Any
) -> ActorCriticPolicy:
    return policy_class(space, action, lambda _: 1e-3, **kwargs)


def names(policy: ActorCriticPolicy, groups: ParameterGroups) -> dict[str, set[str]]:
    """The first two parts of the parameter names, which identify the networks."""
    name_of = {
        id(p): ".".join(name.split(".")[:2]).removesuffix(".weight").removesuffix(".bias")
        for name, p in policy.named_parameters()
    }
    return {group: {name_of[id(p)] for p in getattr(groups, group)} for group in ("actor", "critic", "shared")}


@pytest.mark.parametrize("shared", [True, False])
def test_networks_of_an_mlp(shared: bool) -> None:
    policy = make(ActorCriticPolicy, VECTOR, DISCRETE, share_features_extractor=shared)
    assert names(policy, parameter_groups(policy)) == {
        "actor": {"mlp_extractor.policy_net", "action_net"},
        "critic": {"mlp_extractor.value_net", "value_net"},
        "shared": set(),
    }


@pytest.mark.parametrize("use_sde", [True, False])
def test_the_standard_deviation_belongs_to_the_actor(use_sde: bool) -> None:
    policy = make(MlpPolicy, VECTOR, BOX, use_sde=use_sde)
    groups = names(policy, parameter_groups(policy))
    assert groups["actor"] == {"mlp_extractor.policy_net", "action_net", "log_std"}
    assert groups["critic"] == {"mlp_extractor.value_net", "value_net"}


def test_a_shared_extractor_is_detected_and_belongs_to_the_actor() -> None:
    policy = make(ActorCriticCnnPolicy, IMAGE, DISCRETE)
    groups = parameter_groups(policy)
    assert names(policy, groups)["critic"] == {"value_net"}
    extractor = {id(p) for p in policy.features_extractor.parameters()}
    assert {id(p) for p in groups.shared} == extractor
    assert extractor < {id(p) for p in groups.actor}


@pytest.mark.parametrize(
    ("policy_class", "observation"), [(CnnPolicy, "image"), (MultiInputPolicy, "dict"), (MultiInputPolicy, "dict_image")]
)
def test_our_policies_share_nothing(policy_class: type[ActorCriticPolicy], observation: str) -> None:
    space = {"image": IMAGE, "dict_image": spaces.Dict({"image": IMAGE, "vector": VECTOR})}.get(
        observation, OBSERVATION_SPACES[observation]
    )
    policy = make(policy_class, space, DISCRETE)
    groups = parameter_groups(policy)
    assert groups.shared == []
    assert {id(p) for p in policy.pi_features_extractor.parameters()} < {id(p) for p in groups.actor}
    if observation != "dict":  # whose extractor has no parameters
        assert {id(p) for p in policy.vf_features_extractor.parameters()} & {id(p) for p in groups.critic}


def test_a_linear_policy_has_one_layer_and_a_critic_with_two_more() -> None:
    policy = make(LinearPolicy, VECTOR, DISCRETE)
    groups = parameter_groups(policy)
    assert [tuple(p.shape) for p in groups.actor] == [(2, 3), (2,)]
    assert [tuple(p.shape) for p in groups.critic if p.ndim == 2] == [(64, 3), (64, 64), (1, 64)]


def test_every_trainable_parameter_is_in_one_group_in_the_order_of_the_policy() -> None:
    policy = make(MlpPolicy, VECTOR, BOX, features_extractor_class=SmallExtractor)
    frozen = policy.mlp_extractor.policy_net[0].weight
    frozen.requires_grad_(False)
    groups = parameter_groups(policy)
    order = {id(p): i for i, p in enumerate(policy.parameters())}
    for group in (groups.actor, groups.critic):
        indices = [order[id(p)] for p in group]
        assert indices == sorted(indices)
    actor, critic = ({id(p) for p in group} for group in (groups.actor, groups.critic))
    assert not actor & critic
    assert actor | critic == set(order) - {id(frozen)}


def test_an_unused_parameter_belongs_to_the_actor() -> None:
    policy = make(MlpPolicy, VECTOR, DISCRETE, features_extractor_class=SmallExtractor)
    groups = parameter_groups(policy)
    for extractor in (policy.pi_features_extractor, policy.vf_features_extractor):
        assert isinstance(extractor, SmallExtractor)
        assert {id(p) for p in extractor.unused.parameters()} < {id(p) for p in groups.actor}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_sde", [True, False])
def test_grouping_has_no_side_effects(training: bool, use_sde: bool) -> None:
    policy = make(MlpPolicy, VECTOR, BOX, use_sde=use_sde, features_extractor_class=SmallExtractor)
    policy.set_training_mode(training)
    state, random_state = copy.deepcopy(policy.state_dict()), th.get_rng_state()
    parameter_groups(policy)
    assert policy.training == training
    assert all(th.equal(value, state[name]) for name, value in policy.state_dict().items())
    assert th.equal(th.get_rng_state(), random_state)
    assert all(p.grad is None for p in policy.parameters())


def test_a_policy_can_be_copied_afterwards() -> None:
    policy = make(MlpPolicy, VECTOR, DISCRETE)
    parameter_groups(policy)
    copied = copy.deepcopy(policy)
    assert all(th.equal(value, copied.state_dict()[name]) for name, value in policy.state_dict().items())


def test_rows_of_observations() -> None:
    array = th.arange(12).reshape(4, 3)
    rows = th.tensor([2, 0])
    for picked in (index_observations(array, rows), index_observations({"a": array, "b": -array}, rows)):
        first = picked["a"] if isinstance(picked, dict) else picked
        assert first.tolist() == [[6, 7, 8], [0, 1, 2]]
    both = index_observations({"a": array, "b": -array}, slice(1, 2))
    assert isinstance(both, dict)
    assert {key: tensor.tolist() for key, tensor in both.items()} == {"a": [[3, 4, 5]], "b": [[-3, -4, -5]]}
