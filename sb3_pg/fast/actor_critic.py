"""The fast path of the on-policy algorithms: actor and critic in numpy, with hand-derived gradients."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

from sb3_pg.common.on_policy import Batch, PolicyStep
from sb3_pg.fast import adam
from sb3_pg.fast.gradients import (
    categorical_log_prob,
    categorical_policy_gradient,
    gaussian_log_prob,
    gaussian_policy_gradient,
    value_gradient,
)
from sb3_pg.fast.guard import Originals
from sb3_pg.fast.numpy_mlp import Array, Float32Array, NumpyMLP, clip_gradient, flatten_observations, numpy_mlp

_POLICY_METHODS = (
    *("forward", "get_distribution", "evaluate_actions", "predict_values"),
    *("extract_features", "_get_action_dist_from_latent", "__call__"),
)
_STANDARD = {name: getattr(ActorCriticPolicy, name) for name in _POLICY_METHODS}
# Methods called by these methods.
_PARTS = [
    *((cls, "forward") for cls in (th.nn.Linear, th.nn.Sequential, th.nn.Tanh, th.nn.ReLU, FlattenExtractor)),
    *((MlpExtractor, name) for name in ("forward", "forward_actor", "forward_critic")),
    *(
        (cls, name)
        for cls in (CategoricalDistribution, DiagGaussianDistribution)
        for name in ("proba_distribution", "sample", "log_prob", "entropy", "get_actions")
    ),
]
_ORIGINAL_PARTS = Originals(_PARTS)


class FastActorCritic:
    """
    The steps of :class:`sb3_pg.common.on_policy.ActorCriticSteps` in numpy, with arrays that share the memory of the
    parameters and their gradients. It supports vector observations, linear layers with tanh or ReLU, and a Gaussian with
    state-independent standard deviation or a single categorical distribution, all trainable and on the CPU.

    :param algorithm: algorithm with a policy of that form
    :param actor: linear layers and activations of the actor
    :param critic: linear layers and activations of the critic
    """

    replaces: ClassVar[tuple[str, ...]] = (
        *("sample_actions", "predict_values", "action_log_prob", "policy_gradient", "value_gradient", "optimizer_step"),
        *("_evaluate_actions", "_backpropagate"),
    )
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, algorithm: Any, actor: list[th.nn.Module], critic: list[th.nn.Module]) -> None:
        self._algorithm = algorithm
        policy = algorithm.policy
        #: Methods on which the fast path relies.
        self.originals = Originals([*_PARTS, *((type(policy), name) for name in _POLICY_METHODS)])
        log_std = [policy.log_std] if type(policy.action_dist) is DiagGaussianDistribution else []
        actor_parameters = [*log_std, *(p for module in actor for p in module.parameters())]
        critic_parameters = [p for module in critic for p in module.parameters()]
        parameters = [*actor_parameters, *critic_parameters]
        # One array for all gradients, the actor's first: the norm takes one operation.
        sizes = [p.numel() for p in parameters]
        self._gradient = np.zeros(sum(sizes), dtype=np.float32)
        n_actor = sum(p.numel() for p in actor_parameters)
        self._actor_gradient, self._critic_gradient = self._gradient[:n_actor], self._gradient[n_actor:]
        pieces = np.split(self._gradient, np.cumsum(sizes)[:-1])
        arrays = {id(p): piece.reshape(p.shape) for p, piece in zip(parameters, pieces, strict=True)}
        pairs = [(p, th.from_numpy(arrays[id(p)])) for p in parameters]
        self._actor_pairs, self._critic_pairs = pairs[: len(actor_parameters)], pairs[len(actor_parameters) :]
        self._actor, self._critic = _mlp(actor, arrays), _mlp(critic, arrays)
        self._log_std: Float32Array | None = None
        if log_std:
            self._log_std, self._log_std_gradient = policy.log_std.detach().numpy(), arrays[id(policy.log_std)]

    @classmethod
    def build(cls, algorithm: Any) -> "FastActorCritic | None":
        """See :class:`sb3_pg.fast.FastPath`."""
        policy = algorithm.policy
        if not _is_standard(policy):
            return None
        actor = [*policy.mlp_extractor.policy_net, policy.action_net]
        critic = [*policy.mlp_extractor.value_net, policy.value_net]
        if numpy_mlp(actor) is None or numpy_mlp(critic) is None:
            return None
        parts = {id(p) for module in (*actor, *critic) for p in module.parameters()}
        others = {id(p) for p in policy.parameters()} - parts
        expected = {id(policy.log_std)} if type(policy.action_dist) is DiagGaussianDistribution else set()
        return cls(algorithm, actor, critic) if others == expected else None

    # ---- the steps ---------------------------------------------------------------------------------------------------------

    def sample_actions(self, obs: Array, with_values: bool = True) -> tuple[Array, Float32Array | None]:
        """Sample with PyTorch's global generator, as the reference does. Values are cheaper for a whole rollout at once."""
        features = flatten_observations(np.asarray(obs))
        outputs = self._actor.forward(features)[-1]
        if not np.isfinite(outputs.sum()):
            raise ValueError("the policy's output is not finite: check the observations, or lower the learning rate")
        if self._log_std is not None:
            noise = th.randn(outputs.shape).numpy()
            actions: Array = outputs + np.exp(self._log_std) * noise
        else:
            # The smallest of exponential random numbers, whose rates are the probabilities: torch.multinomial does the same,
            # so that the actions are those of the reference.
            times = th.empty(outputs.shape).exponential_().numpy()
            actions = np.argmax(np.exp(outputs - outputs.max(axis=1, keepdims=True)) / times, axis=1)
        values = self._critic.forward(features)[-1].ravel() if with_values else None
        return actions.reshape(-1, *self._algorithm.action_space.shape), values

    def predict_values(self, observations: th.Tensor) -> Float32Array:
        """V(s), ``[B]``."""
        return self._critic.forward(flatten_observations(observations.numpy()))[-1].ravel()

    def action_log_prob(self, batch: Batch) -> npt.NDArray[Any]:
        """log pi(a_t | s_t), ``[S]``."""
        outputs, actions = self._actor.forward(_features(batch.observations))[-1], batch.actions.numpy()
        if self._log_std is None:
            return categorical_log_prob(outputs, actions)
        return gaussian_log_prob(outputs, self._log_std, actions)

    def policy_gradient(self, batch: Batch, targets: th.Tensor | None = None) -> PolicyStep:
        """Set the gradients of the policy loss and, with targets, of the value loss, clipped together."""
        algorithm, obs = self._algorithm, _features(batch.observations)
        outputs = self._actor.forward(obs)
        arguments = (batch.actions.numpy(), batch.weights.numpy(), batch.scale, algorithm.ent_coef)
        if self._log_std is None:
            policy = categorical_policy_gradient(outputs[-1], *arguments)
        else:
            policy = gaussian_policy_gradient(outputs[-1], self._log_std, *arguments)
            self._log_std_gradient[...] = policy.log_std
        self._actor.backward(outputs, policy.outputs)
        _set_gradients(self._actor_pairs)
        value_loss, gradient = None, self._actor_gradient
        if targets is not None:
            value_loss = self._differentiate_value_loss(obs, targets, algorithm._resolved_vf_coef)
            gradient = self._gradient
        norm = clip_gradient(gradient, algorithm.max_grad_norm)
        return PolicyStep(policy.log_prob, policy.policy_loss, policy.entropy_loss, value_loss, norm)

    def value_gradient(self, observations: th.Tensor, targets: th.Tensor) -> tuple[float, float]:
        """Set the clipped gradients of the critic; return the loss, and the norm before clipping."""
        loss = self._differentiate_value_loss(_features(observations), targets, 1.0)
        return loss, clip_gradient(self._critic_gradient, self._algorithm.max_grad_norm)

    def optimizer_step(self, optimizer: th.optim.Optimizer) -> None:
        """``optimizer.step()`` without its bookkeeping."""
        adam.take_step(optimizer)

    def _differentiate_value_loss(self, obs: Float32Array, targets: th.Tensor, vf_coef: float) -> float:
        outputs = self._critic.forward(obs)
        loss, grad_values = value_gradient(outputs[-1].ravel(), targets.numpy())
        self._critic.backward(outputs, (vf_coef * grad_values)[:, None])
        _set_gradients(self._critic_pairs)
        return loss


def _is_standard(policy: ActorCriticPolicy) -> bool:
    """Whether everything between the observations and the losses is SB3's own, without changes by the user."""
    return (
        isinstance(policy, ActorCriticPolicy)
        and policy.device.type == "cpu"
        and all(getattr(type(policy), name) is method for name, method in _STANDARD.items())
        and _ORIGINAL_PARTS.unchanged()
        and isinstance(policy.observation_space, spaces.Box)
        and not is_image_space(policy.observation_space)
        and type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.mlp_extractor.policy_net) is type(policy.mlp_extractor.value_net) is th.nn.Sequential
        and type(policy.action_dist) in (CategoricalDistribution, DiagGaussianDistribution)
        and all(p.requires_grad and p.dtype == th.float32 for p in policy.parameters())
    )


def _mlp(modules: list[th.nn.Module], arrays: dict[int, Float32Array]) -> NumpyMLP:
    mlp = numpy_mlp(modules, arrays)
    assert mlp is not None
    return mlp


def _features(observations: Any) -> Float32Array:
    return flatten_observations(observations.numpy())


def _set_gradients(pairs: list[tuple[th.nn.Parameter, th.Tensor]]) -> None:
    for parameter, gradient in pairs:
        parameter.grad = gradient
