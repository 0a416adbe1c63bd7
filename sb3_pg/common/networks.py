"""Parameter groups, optimizers and observations of actor-critic policies of any class."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import TensorDict


@dataclass(frozen=True)
class ParameterGroups:
    """
    Parameters of an actor-critic policy, grouped by what they affect.

    :param actor: parameters on which the action distribution depends, including shared ones
    :param critic: parameters on which only the value depends
    :param shared: parameters on which both depend
    """

    actor: list[th.nn.Parameter]
    critic: list[th.nn.Parameter]
    shared: list[th.nn.Parameter]


@th.enable_grad()  # models may be loaded under torch.no_grad()
def parameter_groups(policy: ActorCriticPolicy) -> ParameterGroups:
    """
    Determine what each parameter affects by differentiating one forward pass. Module names would not do: users write their
    own extractors and networks.

    A parameter that is not used in that pass counts as the actor's.

    :param policy: policy network
    :return: the trainable parameters, each list in the order of ``policy.parameters()``
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    training = policy.training
    policy.set_training_mode(False)
    try:
        observation = _empty_observation(policy.observation_space)
        obs_tensor, _ = policy.obs_to_tensor(observation)
        # The mode of the distribution: sampling would advance the random number generator.
        actions = policy.get_distribution(obs_tensor).get_actions(deterministic=True).detach()
        values, log_prob, entropy = policy.evaluate_actions(obs_tensor, actions)
        outputs = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
        in_policy = _in_graph(outputs, parameters)
        in_value = _in_graph(values.sum(), parameters)
        with th.no_grad():
            # The policy keeps its last distribution, which could not be deep-copied with a graph.
            policy.get_distribution(obs_tensor)
    finally:
        policy.set_training_mode(training)
    flags = list(zip(parameters, in_policy, in_value, strict=True))
    return ParameterGroups(
        actor=[p for p, acts, evaluates in flags if acts or not evaluates],
        critic=[p for p, acts, evaluates in flags if evaluates and not acts],
        shared=[p for p, acts, evaluates in flags if evaluates and acts],
    )


def separate_optimizers(
    policy: ActorCriticPolicy, learning_rate: float, value_learning_rate: float, joint_critic: str
) -> th.optim.Optimizer:
    """
    Replace the optimizer of a policy by one for the actor and another for the critic.

    :param policy: policy network
    :param learning_rate: learning rate of the actor
    :param value_learning_rate: learning rate of the critic
    :param joint_critic: options that select a joint optimizer, for the error message
    :return: optimizer of the critic
    :raises ValueError: actor and critic share parameters
    """
    groups = parameter_groups(policy)
    if groups.shared:
        raise ValueError(
            "a critic with its own optimizer must not share parameters with the policy: pass "
            f"policy_kwargs=dict(share_features_extractor=False), or {joint_critic} for a joint optimizer"
        )
    # Any, as in SB3: torch's Optimizer declares no lr.
    make: Any = policy.optimizer_class
    policy.optimizer = make(groups.actor, lr=learning_rate, **policy.optimizer_kwargs)
    value_optimizer: th.optim.Optimizer = make(groups.critic, lr=value_learning_rate, **policy.optimizer_kwargs)
    return value_optimizer


def index_observations(observations: th.Tensor | TensorDict, rows: th.Tensor | slice) -> th.Tensor | TensorDict:
    """
    :param observations: tensor ``[B, ...]``, or dictionary of such tensors
    :param rows: indices along the first axis
    :return: the selected rows
    """
    if isinstance(observations, dict):
        return {key: tensor[rows] for key, tensor in observations.items()}
    return observations[rows]


def _in_graph(output: th.Tensor, parameters: list[th.nn.Parameter]) -> list[bool]:
    gradients = th.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def _empty_observation(space: gym.Space[object]) -> np.ndarray | dict[str, np.ndarray]:
    observation = create_empty_array(space, n=1, fn=np.zeros)
    assert isinstance(observation, (np.ndarray, dict))
    return observation
