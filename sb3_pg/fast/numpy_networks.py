"""
The networks that most people train, in numpy: acting, values and gradients without autograd, modules and distribution objects.

For two hidden layers of 64 units and a few dozen observations PyTorch spends most of its time on bookkeeping; the arithmetic
takes a fifth of it. :func:`numpy_networks` is the one place that decides who gets it; all others go through the policy.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

from sb3_pg.fast.fused_mlp import FusedLinear
from sb3_pg.fast.gradients import (
    PolicyGradient,
    categorical_log_prob,
    categorical_policy_gradient,
    gaussian_log_prob,
    gaussian_policy_gradient,
    value_gradient,
)

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]

# What lies between an observation and a loss. A policy that overrides any of it goes its own way.
_STANDARD_METHODS = (
    "extract_features",
    "forward",
    "get_distribution",
    "_get_action_dist_from_latent",
    "evaluate_actions",
    "predict_values",
)


# Which compute the same.
_LINEAR = (th.nn.Linear, FusedLinear)


class Activation(NamedTuple):
    """
    :param apply: the function, in place
    :param multiply_by_slope: multiplies its second argument, in place, by the derivative where the function has the value of
        the first
    """

    apply: Callable[[Float32Array], object]
    multiply_by_slope: Callable[[Float32Array, Float32Array], object]


def _multiply_by_slope_of_tanh(value: Float32Array, gradient: Float32Array) -> None:
    gradient -= gradient * value * value


_ACTIVATIONS: dict[type[th.nn.Module], Activation] = {
    th.nn.Tanh: Activation(lambda x: np.tanh(x, out=x), _multiply_by_slope_of_tanh),
    th.nn.ReLU: Activation(
        lambda x: np.maximum(x, 0, out=x), lambda value, gradient: np.multiply(gradient, value > 0, out=gradient)
    ),
}


@dataclass(frozen=True)
class _Layer:
    """A linear layer and what follows it. The arrays share the memory of the module's parameters and of their gradients."""

    weight: Float32Array
    bias: Float32Array
    weight_gradient: Float32Array | None
    bias_gradient: Float32Array | None
    activation: Activation | None


class NumpyMLP:
    """
    A stack of linear layers.

    :param layers: first to last
    """

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers = layers

    def forward(self, x: Float32Array) -> list[Float32Array]:
        """
        :param x: ``[S, inputs]``
        :return: ``x``, and the output of each layer
        """
        outputs = [x]
        for layer in self.layers:
            # One observation: for a matrix and a vector the BLAS has a way of its own, twice as fast.
            y = outputs[-1] @ layer.weight.T if len(x) > 1 else (layer.weight @ outputs[-1][0])[None]
            y += layer.bias
            if layer.activation is not None:
                layer.activation.apply(y)
            outputs.append(y)
        return outputs

    def backward(self, outputs: list[Float32Array], gradient: Float32Array) -> None:
        """
        Set the gradients of all layers.

        :param outputs: what :meth:`forward` returned
        :param gradient: derivative with respect to the last output, ``[S, outputs]``
        """
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            if layer.activation is not None:
                layer.activation.multiply_by_slope(outputs[i + 1], gradient)
            assert layer.weight_gradient is not None and layer.bias_gradient is not None
            np.matmul(gradient.T, outputs[i], out=layer.weight_gradient)
            np.sum(gradient, axis=0, out=layer.bias_gradient)
            if i > 0:
                gradient = gradient @ layer.weight


class NumpyNetworks:
    """
    Actor and critic of a policy as functions of arrays. They share the memory of its parameters, so they follow every update
    in place, and that of its gradients.

    :param policy: policy of the standard form
    :param actor: linear layers and activations of the actor
    :param critic: likewise
    """

    def __init__(self, policy: ActorCriticPolicy, actor: list[th.nn.Module], critic: list[th.nn.Module]) -> None:
        actor_parameters = [*([policy.log_std] if _is_gaussian(policy) else []), *_parameters(actor)]
        critic_parameters = _parameters(critic)
        parameters = [*actor_parameters, *critic_parameters]
        self._policy = policy
        self._addresses = [p.data_ptr() for p in parameters]
        # One array for all gradients, the actor's first: a norm is one operation.
        sizes = [p.numel() for p in parameters]
        self.gradient = np.zeros(sum(sizes), dtype=np.float32)
        n_actor = sum(p.numel() for p in actor_parameters)
        self.actor_gradient, self.critic_gradient = self.gradient[:n_actor], self.gradient[n_actor:]
        pieces = np.split(self.gradient, np.cumsum(sizes)[:-1])
        arrays = {id(p): piece.reshape(p.shape) for p, piece in zip(parameters, pieces, strict=True)}
        gradients = [(p, th.from_numpy(arrays[id(p)])) for p in parameters]
        self._of_actor, self._of_critic = gradients[: len(actor_parameters)], gradients[len(actor_parameters) :]
        self.actor, self.critic = (NumpyMLP(_layers(modules, arrays)) for modules in (actor, critic))
        self.log_std: Float32Array | None = None
        if _is_gaussian(policy):
            self.log_std = policy.log_std.detach().numpy()
            self._log_std_gradient = arrays[id(policy.log_std)]

    def belong_to(self, policy: ActorCriticPolicy) -> bool:
        """
        :param policy: policy network
        :return: whether these are its networks, its parameters in the same place and all trainable as they were
        """
        parameters = [parameter for parameter, _ in (*self._of_actor, *self._of_critic)]
        return policy is self._policy and all(
            p.requires_grad and p.data_ptr() == address for p, address in zip(parameters, self._addresses, strict=True)
        )

    def policy_outputs(self, obs: Array) -> Float32Array:
        """
        :param obs: observations, ``[N, ...]``
        :return: means of the Gaussian or logits, ``[N, A]``
        :raises ValueError: they are not finite
        """
        outputs = self.actor.forward(flatten_observations(obs))[-1]
        if not np.isfinite(outputs.sum()):
            raise ValueError("the policy's output is not finite: check the observations, or lower the learning rate")
        return outputs

    def sample(self, obs: Array) -> Array:
        """
        Draw from PyTorch's global generator, which the seed of the algorithm sets.

        :param obs: observations, ``[N, ...]``
        :return: actions, ``[N, A]`` of a Gaussian, ``[N]`` of a categorical
        """
        outputs = self.policy_outputs(obs)
        if self.log_std is not None:
            actions: Float32Array = outputs + np.exp(self.log_std) * th.randn(outputs.shape).numpy()
            return actions
        # Of exponential clocks, each as fast as its action is probable, the first to ring: what torch.multinomial does, so
        # that the actions are those of SB3.
        times = th.empty(outputs.shape).exponential_().numpy()
        choices: npt.NDArray[np.int64] = np.argmax(np.exp(outputs - outputs.max(axis=1, keepdims=True)) / times, axis=1)
        return choices

    def values(self, obs: Array) -> Float32Array:
        """
        :param obs: observations, ``[B, ...]``
        :return: ``[B]``
        """
        return self.critic.forward(flatten_observations(obs))[-1].ravel()

    def log_prob(self, obs: Array, actions: Array) -> Array:
        """
        :param obs: observations, ``[S, ...]``
        :param actions: ``[S, A]`` of a Gaussian, ``[S]`` of a categorical
        :return: ``[S]``
        """
        outputs = self.actor.forward(flatten_observations(obs))[-1]
        if self.log_std is None:
            return categorical_log_prob(outputs, actions)
        return gaussian_log_prob(outputs, self.log_std, actions)

    def differentiate_policy(
        self, obs: Array, actions: Array, weights: Array, scale: float, ent_coef: float
    ) -> PolicyGradient:
        """
        Set the actor's gradient of ``policy_loss + ent_coef * entropy_loss``.

        :param obs: observations, ``[S, ...]``
        :param actions: ``[S, A]`` of a Gaussian, ``[S]`` of a categorical
        :param weights: ``[S]``, what multiplies the score of each step
        :param scale: see :func:`sb3_pg.common.losses.policy_gradient_loss`
        :param ent_coef: weight of the entropy loss
        :return: the losses
        """
        outputs = self.actor.forward(flatten_observations(obs))
        if self.log_std is None:
            result = categorical_policy_gradient(outputs[-1], actions, weights, scale, ent_coef)
        else:
            result = gaussian_policy_gradient(outputs[-1], self.log_std, actions, weights, scale, ent_coef)
            self._log_std_gradient[...] = result.log_std
        self.actor.backward(outputs, result.outputs)
        _set(self._of_actor)
        return result

    def differentiate_value_loss(self, obs: Array, returns: Array, vf_coef: float) -> float:
        """
        Set the critic's gradient of ``vf_coef * value_loss``.

        :param obs: observations, ``[S, ...]``
        :param returns: ``[S]``, targets
        :param vf_coef: weight of the loss
        :return: the loss, not weighted
        """
        outputs = self.critic.forward(flatten_observations(obs))
        loss, of_values = value_gradient(outputs[-1].ravel(), returns)
        self.critic.backward(outputs, (vf_coef * of_values)[:, None])
        _set(self._of_critic)
        return loss


def clip_gradient(gradient: Float32Array, max_norm: float | None) -> float:
    """
    As ``torch.nn.utils.clip_grad_norm_``, in place.

    :param gradient: ``[n_parameters]``
    :param max_norm: maximum norm; ``None``: no clipping
    :return: the norm before
    """
    norm = float(np.sqrt(gradient @ gradient))
    if max_norm is not None and norm > max_norm:
        gradient *= max_norm / (norm + 1e-6)
    return norm


def numpy_networks(policy: ActorCriticPolicy) -> NumpyNetworks | None:
    """
    :param policy: policy network
    :return: its actor and critic in numpy; ``None`` if it is not the standard one: vectors in, linear layers with tanh or
        ReLU, a Gaussian with constant standard deviation or one categorical out, all trainable, on the CPU
    """
    space = policy.observation_space
    standard = (
        policy.device.type == "cpu"
        and all(getattr(type(policy), name) is getattr(ActorCriticPolicy, name) for name in _STANDARD_METHODS)
        and vars(policy).keys().isdisjoint(_STANDARD_METHODS)
        and isinstance(space, spaces.Box)
        and not is_image_space(space)
        and type(policy.pi_features_extractor) is type(policy.vf_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist) in (CategoricalDistribution, DiagGaussianDistribution)
        and all(p.requires_grad and p.dtype == th.float32 for p in policy.parameters())
    )
    if not standard:
        return None
    actor = [*policy.mlp_extractor.policy_net, policy.action_net]
    critic = [*policy.mlp_extractor.value_net, policy.value_net]
    if not (_is_mlp(actor) and _is_mlp(critic)):
        return None
    n_parameters = len(_parameters(actor)) + len(_parameters(critic)) + _is_gaussian(policy)
    watched = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in policy.modules())
    if watched or n_parameters != len(list(policy.parameters())):
        return None
    return NumpyNetworks(policy, actor, critic)


def numpy_mlp(modules: list[th.nn.Module]) -> NumpyMLP | None:
    """
    :param modules: on the CPU, float32
    :return: what they compute, without gradients; ``None`` if they are not linear layers with tanh or ReLU
    """
    return NumpyMLP(_layers(modules, {})) if _is_mlp(modules) else None


def _is_mlp(modules: list[th.nn.Module]) -> bool:
    """Whether these are linear layers with bias, each followed by one activation at most."""
    linear = [type(module) in _LINEAR and module.bias is not None for module in modules]
    known = all(is_linear or type(module) in _ACTIVATIONS for module, is_linear in zip(modules, linear, strict=True))
    return known and linear[0] and all(before or after for before, after in pairwise(linear))


def _layers(modules: Iterable[th.nn.Module], gradients: dict[int, Float32Array]) -> list[_Layer]:
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, th.nn.Linear):
            arrays = (module.weight.detach().numpy(), module.bias.detach().numpy())
            layers.append(_Layer(*arrays, gradients.get(id(module.weight)), gradients.get(id(module.bias)), None))
        else:
            last = layers.pop()
            layers.append(_Layer(last.weight, last.bias, last.weight_gradient, last.bias_gradient, _ACTIVATIONS[type(module)]))
    return layers


def flatten_observations(obs: Array) -> Float32Array:
    """
    :param obs: vectors or arrays of numbers, ``[N, ...]``
    :return: ``[N, F]``, what SB3's ``FlattenExtractor`` makes of them
    """
    return obs.reshape(len(obs), -1).astype(np.float32, copy=False)


def _is_gaussian(policy: ActorCriticPolicy) -> bool:
    return type(policy.action_dist) is DiagGaussianDistribution


def _parameters(modules: list[th.nn.Module]) -> list[th.nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def _set(gradients: list[tuple[th.nn.Parameter, th.Tensor]]) -> None:
    for parameter, gradient in gradients:
        parameter.grad = gradient
