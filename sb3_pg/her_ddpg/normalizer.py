"""Running normalisation of observations and goals, as modules that are saved, moved and copied with the policy."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.type_aliases import TensorDict
from torch import nn


class RunningNormalizer(nn.Module):
    """
    ``clip((clip(x, +-input_clip) - mean) / std, +-clip)`` with the mean and standard deviation of all data seen so far
    (Andrychowicz et al. 2017, appendix A). Before the first update it only clips.

    :param shape: shape of one sample
    :param input_clip: bound of the data, before they enter the statistics or are normalised
    :param clip: bound of the output, in standard deviations
    :param min_std: lower bound of the standard deviation, so that nearly constant inputs are not amplified
    :raises ValueError: ``input_clip``, ``clip`` or ``min_std`` is not positive
    """

    # float64: with counts in the millions, rounding errors of float32 sums would exceed the variance.
    count: th.Tensor
    mean: th.Tensor
    squares: th.Tensor
    # float32, used in forward().
    shift: th.Tensor
    factor: th.Tensor

    def __init__(self, shape: tuple[int, ...], input_clip: float = 200.0, clip: float = 5.0, min_std: float = 0.01) -> None:
        super().__init__()
        for name, value in (("input_clip", input_clip), ("clip", clip), ("min_std", min_std)):
            if not value > 0:
                raise ValueError(f"{name}={value!r} of the normaliser must be positive")
        self.input_clip, self.clip, self.min_std = input_clip, clip, min_std
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(shape, dtype=th.float64))
        self.register_buffer("squares", th.zeros(shape, dtype=th.float64))
        self.register_buffer("shift", th.zeros(shape))
        self.register_buffer("factor", th.ones(shape))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[B, *shape]``
        :return: normalised, ``[B, *shape]``
        """
        return x.clamp(-self.input_clip, self.input_clip).sub_(self.shift).mul_(self.factor).clamp_(-self.clip, self.clip)

    @property
    def std(self) -> th.Tensor:
        """Standard deviation by which inputs are divided, ``shape``; ones before the first update."""
        return 1 / self.factor.double()

    @th.no_grad()
    def update(self, x: th.Tensor) -> None:
        """
        Add data to the statistics, with the result of computing them from all data at once (Chan et al. 1979).

        :param x: ``[B, *shape]``
        :raises ValueError: the data are not finite
        """
        if len(x) == 0:
            return
        if not th.isfinite(x).all():
            raise ValueError("observations or goals are not finite: the environment returned NaN or infinity")
        data = x.clamp(-self.input_clip, self.input_clip).double()
        n, total, mean = len(x), self.count + len(x), data.mean(dim=0)
        difference = mean - self.mean
        self.squares += ((data - mean) ** 2).sum(dim=0) + difference**2 * (self.count * n / total)
        self.mean += difference * (n / total)
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.factor.copy_(1 / (self.squares / total).sqrt().clamp(min=self.min_std))


class GoalNormalizer(nn.Module):
    """
    Normalises the two parts of a goal environment's observation that the networks use. Achieved and desired goals share
    their statistics. Images pass unchanged.

    :param observation_space: space with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param enabled: whether to normalise
    :param kwargs: keyword arguments of :class:`RunningNormalizer`
    """

    def __init__(self, observation_space: spaces.Dict, enabled: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.observation = _normalizer(observation_space["observation"], enabled, kwargs)
        self.goal = _normalizer(observation_space["desired_goal"], enabled, kwargs)

    def forward(self, observations: TensorDict) -> TensorDict:
        """
        :param observations: preprocessed observations, ``[B, ...]`` each
        :return: ``observation`` and ``desired_goal``, normalised
        """
        return {
            "observation": self.observation(observations["observation"]),
            "desired_goal": self.goal(observations["desired_goal"]),
        }

    def update(self, observations: TensorDict) -> None:
        """
        Add data to the statistics.

        :param observations: preprocessed ``observation`` and ``desired_goal``, ``[B, ...]`` each
        :raises ValueError: the data are not finite
        """
        for module, key in ((self.observation, "observation"), (self.goal, "desired_goal")):
            if isinstance(module, RunningNormalizer):
                module.update(observations[key])


def _normalizer(space: spaces.Space[Any], enabled: bool, kwargs: dict[str, Any]) -> nn.Module:
    normalizer = RunningNormalizer(_preprocessed_shape(space), **kwargs)
    return nn.Identity() if not enabled or is_image_space(space) else normalizer


def _preprocessed_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Shape after SB3's ``preprocess_obs``, which one-hot encodes discrete numbers."""
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        assert space.shape is not None
        return space.shape
    return (get_flattened_obs_dim(space),)
