"""
Acting without autograd, modules and distribution objects, for the networks that most people train.

For eight observations and two hidden layers of 64 units PyTorch spends most of its time on bookkeeping; the arithmetic in
numpy takes a fifth of it. :func:`numpy_actor` is the one place that decides who gets it; the others act through the policy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

Float32Array = npt.NDArray[np.float32]
Activation = Callable[[Float32Array], Float32Array]

# What lies between an observation and the parameters of the distribution. A policy that overrides any of it goes its own way.
_STANDARD_METHODS = ("extract_features", "get_distribution", "_get_action_dist_from_latent")


def _relu(x: Float32Array) -> Float32Array:
    return np.maximum(x, 0, out=x)


def _tanh(x: Float32Array) -> Float32Array:
    return np.tanh(x, out=x)


_ACTIVATIONS: dict[type[th.nn.Module], Activation] = {th.nn.Tanh: _tanh, th.nn.ReLU: _relu}


@dataclass(frozen=True)
class NumpyActor:
    """
    The actor of a policy as a function of arrays. It shares the memory of the policy's parameters, so it follows updates in
    place.

    :param layers: weights ``[out, in]``, biases ``[out]`` and activation of each layer
    :param log_std: ``[A]``, logarithm of a Gaussian's standard deviation; ``None``: the outputs are logits of a categorical
    """

    layers: list[tuple[Float32Array, Float32Array, Activation | None]]
    log_std: Float32Array | None

    def outputs(self, obs: npt.NDArray[Any]) -> Float32Array:
        """
        :param obs: observations, ``[N, ...]``
        :return: means of the Gaussian or logits, ``[N, A]``
        :raises ValueError: they are not finite
        """
        x: Float32Array = obs.reshape(len(obs), -1).astype(np.float32, copy=False)
        for weights, bias, activation in self.layers:
            x = x @ weights.T
            x += bias
            if activation is not None:
                x = activation(x)
        if not np.isfinite(x.sum()):
            raise ValueError("the policy's output is not finite: check the observations, or lower the learning rate")
        return x

    def sample(self, obs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        Draw from PyTorch's global generator, which the seed of the algorithm sets.

        :param obs: observations, ``[N, ...]``
        :return: actions, ``[N, A]`` of a Gaussian, ``[N]`` of a categorical
        """
        outputs = self.outputs(obs)
        if self.log_std is not None:
            actions: Float32Array = outputs + np.exp(self.log_std) * th.randn(outputs.shape).numpy()
            return actions
        # Inverse of the distribution function, in float64: u * total stays below total, so the last action is the largest.
        cumulative = np.cumsum(np.exp(outputs - outputs.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
        below: npt.NDArray[np.bool_] = cumulative <= th.rand(len(outputs), 1).numpy() * cumulative[:, -1:]
        choices: npt.NDArray[np.int64] = below.sum(axis=1)
        return choices


def numpy_actor(policy: ActorCriticPolicy) -> NumpyActor | None:
    """
    :param policy: policy network
    :return: its actor in numpy; ``None`` if it is not the standard one: vectors in, linear layers with tanh or ReLU, a
        Gaussian with constant standard deviation or one categorical out, on the CPU
    """
    space = policy.observation_space
    standard = (
        policy.device.type == "cpu"
        and all(getattr(type(policy), name) is getattr(ActorCriticPolicy, name) for name in _STANDARD_METHODS)
        and isinstance(space, spaces.Box)
        and not is_image_space(space)
        and type(policy.pi_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist) in (CategoricalDistribution, DiagGaussianDistribution)
    )
    if not standard:
        return None
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    layers: list[tuple[Float32Array, Float32Array, Activation | None]] = []
    for module in modules:
        if type(module) is th.nn.Linear and module.bias is not None and module.weight.dtype == th.float32:
            layers.append((module.weight.detach().numpy(), module.bias.detach().numpy(), None))
        elif type(module) in _ACTIVATIONS and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], _ACTIVATIONS[type(module)])
        else:
            return None
        if module._forward_hooks or module._forward_pre_hooks:
            return None
    is_gaussian = type(policy.action_dist) is DiagGaussianDistribution
    return NumpyActor(layers, policy.log_std.detach().numpy() if is_gaussian else None)
