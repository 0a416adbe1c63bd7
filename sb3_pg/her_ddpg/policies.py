"""SB3's actor and critic behind an extractor that normalises observation and desired goal."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.type_aliases import Schedule, TensorDict
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_pg.her_ddpg.normalizer import GoalNormalizer

NET_ARCH = [256, 256, 256]


class GoalExtractor(BaseFeaturesExtractor):
    """
    Normalises observation and desired goal, then extracts features. The achieved goal is dropped.

    :param observation_space: observation space of the goal environment
    :param normalizer: normaliser, shared by all networks of a policy
    :param inner: extractor for ``observation`` and ``desired_goal``
    """

    def __init__(self, observation_space: spaces.Dict, normalizer: GoalNormalizer, inner: BaseFeaturesExtractor) -> None:
        super().__init__(observation_space, inner.features_dim)
        self.normalizer, self.inner = normalizer, inner

    def forward(self, observations: TensorDict) -> th.Tensor:
        """
        :param observations: preprocessed observations, ``[B, ...]`` each
        :return: features, ``[B, features_dim]``
        """
        features: th.Tensor = self.inner(self.normalizer(observations))
        return features


class MultiInputPolicy(TD3Policy):
    """
    Policy of :class:`sb3_pg.HERDDPG`. All arguments but the last two are those of SB3's policy for DDPG.

    :param observation_space: space with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param action_space: bounded box
    :param lr_schedule: learning rate of both networks
    :param net_arch: hidden layers, three of 256 units by default
    :param activation_fn: activation function
    :param features_extractor_class: extractor for a dictionary of ``observation`` and ``desired_goal``; by default it
        concatenates them, after a convolutional network for images
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: class of the two optimizers
    :param optimizer_kwargs: keyword arguments of the optimizers, except the learning rate
    :param n_critics: number of critics; the targets use the minimum of their values
    :param share_features_extractor: whether the critic uses the actor's features extractor
    :param normalize_inputs: whether to normalise observation and goal by running statistics
    :param normalizer_kwargs: ``input_clip``, ``clip`` and ``min_std`` of :class:`sb3_pg.her_ddpg.normalizer.RunningNormalizer`
    """

    normalizer: GoalNormalizer

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        normalize_inputs: bool = True,
        normalizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.normalize_inputs = normalize_inputs
        self.normalizer_kwargs = {} if normalizer_kwargs is None else normalizer_kwargs
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            list(NET_ARCH) if net_arch is None else net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            n_critics,
            share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        self.normalizer = GoalNormalizer(self.observation_space, self.normalize_inputs, **self.normalizer_kwargs)
        super()._build(lr_schedule)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        :return: a new extractor, with the shared normaliser
        """
        assert isinstance(self.observation_space, spaces.Dict)
        seen = spaces.Dict({key: self.observation_space[key] for key in ("observation", "desired_goal")})
        inner = self.features_extractor_class(seen, **self.features_extractor_kwargs)
        return GoalExtractor(self.observation_space, self.normalizer, inner)

    def update_normalizer(self, observations: TensorDict) -> None:
        """
        Add data to the running statistics.

        :param observations: ``observation`` and ``desired_goal``, ``[B, ...]`` each
        :raises ValueError: the data are not finite
        """
        assert isinstance(self.observation_space, spaces.Dict)
        self.normalizer.update(
            {
                key: preprocess_obs(value, self.observation_space[key], self.normalize_images)  # type: ignore[misc]  # no dict
                for key, value in observations.items()
            }
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {**data, "normalize_inputs": self.normalize_inputs, "normalizer_kwargs": self.normalizer_kwargs}
