"""The fast path of HERDDPG: updates with hand-derived gradients, see :mod:`sb3_pg.fast.mlp`."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, TensorDict
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.td3.policies import Actor
from torch import nn

from sb3_pg.fast.guard import Originals
from sb3_pg.fast.mlp import METHODS, MLP, ForwardPass, descend, find_mlps, fit_critics, min_q, min_q_gradient, trains
from sb3_pg.her_ddpg.normalizer import GoalNormalizer, RunningNormalizer
from sb3_pg.her_ddpg.policies import GoalExtractor

_MODULES = (Actor, ContinuousCritic, GoalExtractor, CombinedExtractor, nn.Flatten, GoalNormalizer, RunningNormalizer)
_NETWORKS = ("actor", "critic", "actor_target", "critic_target")


class FastHERDDPG:
    """
    Fast path for networks of linear layers with ReLU or tanh, without trainable features extractors.

    :param algorithm: a HERDDPG of that form
    :param networks: actor and critics
    :param targets: target networks of actor and critics
    """

    replaces: ClassVar[tuple[str, ...]] = (
        *("_update", "_targets", "_critic_step", "_actor_step", "_actor_loss", "_update_targets", "_target_networks"),
        *("_descend", "_reference_update"),
    )
    options: ClassVar[tuple[str, ...]] = ("bf16", *_NETWORKS)
    originals = Originals(
        [
            *METHODS,
            *((cls, "forward") for cls in _MODULES),
            (BaseModel, "extract_features"),
            (ContinuousCritic, "extract_features"),
            (ContinuousCritic, "q1_forward"),
        ]
    )

    def __init__(self, algorithm: Any, networks: list[MLP], targets: list[MLP]) -> None:
        self._module: Actor = algorithm.actor
        (self._actor, *self._critics), (self._target_actor, *self._target_critics) = networks, targets
        pairs = list(algorithm._target_networks())
        self._parameters = [parameter for network, _ in pairs for parameter in network.parameters()]
        self._target_parameters = [parameter for _, target in pairs for parameter in target.parameters()]

    @classmethod
    def build(cls, algorithm: Any) -> "FastHERDDPG | None":
        """
        :param algorithm: HERDDPG
        :return: fast path; ``None`` with other networks, trainable features extractors, or frozen parameters
        """
        policy = algorithm.policy
        actor, critic, actor_target, critic_target = modules = [getattr(algorithm, name) for name in _NETWORKS]
        extractors = [module.features_extractor for module in modules]
        standard = (
            modules == [getattr(policy, name) for name in _NETWORKS]
            and [*map(type, modules)] == [Actor, ContinuousCritic, Actor, ContinuousCritic]
            and all(type(each) is GoalExtractor and each.normalizer is policy.normalizer for each in extractors)
            and all(type(each.inner) is CombinedExtractor and not list(each.parameters()) for each in extractors)
            and all(trains(module.optimizer, module) for module in (actor, critic))
            and cls.originals.unchanged()
        )
        networks = find_mlps([actor.mu, *critic.q_networks], algorithm.bf16) if standard else None
        targets = find_mlps([actor_target.mu, *critic_target.q_networks], algorithm.bf16, trained=False)
        return None if networks is None or targets is None else cls(algorithm, networks, targets)

    @th.no_grad()
    def update(self, algorithm: Any, batch: DictReplayBufferSamples) -> dict[str, th.Tensor]:
        """
        Equivalent to ``HERDDPG._update``.

        :param algorithm: HERDDPG
        :param batch: minibatch
        :return: values to log
        """
        # All networks use the same features.
        features, next_features = map(self._features, (batch.observations, batch.next_observations))
        next_actions = ForwardPass(self._target_actor, next_features).output
        targets = algorithm._td_targets(batch, min_q(self._target_critics, th.cat([next_features, next_actions], dim=1)))
        # fit_critics() has the factor 1/2, the mean squared error does not.
        weights = th.full_like(targets, 2 / len(targets))
        critic_loss, q_values = fit_critics(self._critics, th.cat([features, batch.actions], dim=1), targets, weights)
        descend(algorithm, algorithm.critic.optimizer, critic_loss, "critic loss")
        forward = ForwardPass(self._actor, features)
        actions, inputs = forward.output, th.cat([features, forward.output], dim=1)
        actor_loss, grad_actions = min_q_gradient(self._critics[:1], inputs, weights * -0.5, actions.shape[1])
        actor_loss.add_(actions.square().mean(), alpha=algorithm.action_l2)
        forward.backward(th.add(grad_actions, actions, alpha=2 * algorithm.action_l2 / actions.numel()))
        descend(algorithm, algorithm.actor.optimizer, actor_loss, "actor loss")
        if algorithm.target_update == "step":
            polyak_update(self._parameters, self._target_parameters, algorithm.tau)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss, "q_value": q_values.mean()}

    def _features(self, observations: TensorDict) -> th.Tensor:
        return self._module.extract_features(observations, self._module.features_extractor)
