"""The actor of SVG(0) in numpy: for a few observations PyTorch spends most of its time on bookkeeping."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pg.common.distributions import LOG_SQRT_2_PI
from sb3_pg.fast.fused_mlp import FusedLinear, FusedMLP
from sb3_pg.fast.numpy_networks import Array, Float32Array, NumpyMLP, flatten_observations, numpy_mlp
from sb3_pg.svg0.policies import LOG_STD_MAX, LOG_STD_MIN, GaussianActor, Scale, SVG0Policy


class NumpyActor:
    """
    What :class:`sb3_pg.svg0.policies.GaussianActor` draws. It shares the memory of the parameters.

    :param actor: of the standard form
    :param mean: its layers up to the mean
    """

    def __init__(self, actor: GaussianActor, mean: NumpyMLP) -> None:
        self._actor, self._mean = actor, mean
        self._log_std_bias = actor.log_std.bias.detach().numpy()
        weight = None if isinstance(actor.log_std, Scale) else actor.log_std.weight.detach().numpy()
        self._log_std_weight = weight

    def sample(self, obs: Array) -> tuple[Float32Array, Float32Array]:
        """
        Draw from PyTorch's global generator, which the seed of the algorithm sets.

        :param obs: observations, ``[N, ...]``
        :return: samples ``[N, A]``, and their log-density ``[N]``
        """
        outputs = self._mean.forward(flatten_observations(obs))
        mean, log_std = outputs[-1], self._log_std_bias
        if self._log_std_weight is not None:
            log_std = outputs[-2] @ self._log_std_weight.T + log_std
        std = float(self._actor.min_std) + np.exp(np.minimum(np.maximum(log_std, LOG_STD_MIN), LOG_STD_MAX))
        noise: Float32Array = th.randn(mean.shape).numpy()
        samples = mean + std * noise
        log_probs = (-0.5 * noise * noise - np.log(std) - np.float32(LOG_SQRT_2_PI)).sum(axis=1)
        return samples, log_probs


def numpy_actor(policy: SVG0Policy) -> NumpyActor | None:
    """
    :param policy: of SVG(0)
    :return: its actor in numpy; ``None`` if it is not the standard one: vectors in, linear layers with tanh or ReLU, no full
        covariance, on the CPU
    """
    actor, space = policy.actor, policy.observation_space
    standard = (
        policy.device.type == "cpu"
        and type(actor) is GaussianActor
        and type(actor.latent_pi) is FusedMLP
        and type(actor.mu) is FusedLinear
        and type(actor.log_std) in (FusedLinear, Scale)
        and type(policy).obs_to_tensor is BasePolicy.obs_to_tensor
        and isinstance(space, spaces.Box)
        and not is_image_space(space)
        and type(actor.features_extractor) is FlattenExtractor
        and actor.off_diagonal is None
        and all(parameter.dtype == th.float32 for parameter in actor.parameters())
    )
    mean = numpy_mlp([*actor.latent_pi, actor.mu]) if standard else None
    return None if mean is None else NumpyActor(actor, mean)
