"""The updates of HERDDPG with their gradients written out, see :mod:`sb3_pg.fast.written_out`."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_pg.fast.fused_mlp import Layers, Pass
from sb3_pg.fast.written_out import layers_of, lowest_value_gradient, lowest_values
from sb3_pg.her_ddpg.policies import GoalActor, GoalCritic, MultiInputPolicy


class Networks(NamedTuple):
    """
    :param actor: from features to actions
    :param critics: from features and actions to values
    :param target_actor: as the actor
    :param target_critics: as the critics
    """

    actor: Layers
    critics: list[Layers]
    target_actor: Layers
    target_critics: list[Layers]


def networks_of(policy: MultiInputPolicy, reduced: bool) -> Networks | None:
    """
    :param policy: of HERDDPG, which nobody watches
    :param reduced: whether the products of large layers are in bfloat16
    :return: its networks, for updates with this module; ``None`` where they have to go by autograd: further layers, features
        that are learned, frozen parameters, overridden methods
    """
    actor, critic = policy.actor, policy.critic
    extractors: tuple[nn.Module, ...] = (actor.features_extractor, critic.features_extractor)
    targets = (policy.actor_target, policy.critic_target)
    standard = (
        type(actor) is type(targets[0]) is GoalActor
        and type(critic) is type(targets[1]) is GoalCritic
        and type(policy).prepare is MultiInputPolicy.prepare
    )
    if not standard or any(True for extractor in extractors for _ in extractor.parameters()):
        return None
    layers = layers_of([actor.mu, *critic.q_networks], reduced)
    of_targets = layers_of([targets[0].mu, *targets[1].q_networks], reduced, trained=False)
    if layers is None or of_targets is None:
        return None
    return Networks(layers[0], layers[1:], of_targets[0], of_targets[1:])


def next_values(networks: Networks, features: th.Tensor) -> th.Tensor:
    """
    :param networks: of the policy
    :param features: of the states that came next, ``[B, F]``
    :return: what the targets make of them, ``[B, 1]``
    """
    actions = Pass(networks.target_actor, features).output
    return lowest_values(networks.target_critics, th.cat([features, actions], dim=1))


def differentiate_policy_loss(networks: Networks, features: th.Tensor, action_l2: float) -> th.Tensor:
    """
    Set the actor's gradients of :func:`sb3_pg.common.losses.deterministic_policy_loss`, of the first critic.

    :param networks: of the policy
    :param features: of the states, ``[B, F]``
    :param action_l2: weight of the penalty
    :return: the loss
    """
    run = Pass(networks.actor, features)
    actions = run.output
    weights = actions.new_full((len(actions), 1), -1 / len(actions))
    loss, of_actions = lowest_value_gradient(
        networks.critics[:1], th.cat([features, actions], dim=1), weights, actions.shape[1]
    )
    run.set_gradients(th.add(of_actions, actions, alpha=2 * action_l2 / actions.numel()))
    return loss.add_(actions.square().mean(), alpha=action_l2)
