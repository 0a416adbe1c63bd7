"""Actor and critic that see the normalised observation and desired goal."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule, TensorDict
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from sb3_pg.common.off_policy import fuse_critics
from sb3_pg.fast.fused_mlp import FusedMLP
from sb3_pg.fast.optimizers import with_fused_adam
from sb3_pg.her_ddpg.normalizer import GoalNormalizer

NET_ARCH = [256, 256, 256]


class GoalExtractor(BaseFeaturesExtractor):
    """
    Normalises, then extracts features from observation and desired goal. The achieved goal goes no further.

    :param observation_space: of the goal environment
    :param normalizer: shared by all networks of a policy
    :param inner: extractor for ``observation`` and ``desired_goal``
    """

    def __init__(self, observation_space: spaces.Dict, normalizer: GoalNormalizer, inner: BaseFeaturesExtractor) -> None:
        super().__init__(observation_space, inner.features_dim)
        self.normalizer, self.inner = normalizer, inner

    def forward(self, observations: TensorDict) -> th.Tensor:
        """
        :param observations: preprocessed, ``[B, ...]`` each
        :return: features, ``[B, features_dim]``
        """
        features: th.Tensor = self.inner(self.normalizer(observations))
        return features


class _TakesFeatures(BaseModel):
    """A network that takes features in place of an observation, where they have been computed already."""

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        # Observations of goal environments are dictionaries.
        return obs if isinstance(obs, th.Tensor) else super().extract_features(obs, features_extractor)


class GoalActor(_TakesFeatures, Actor):
    """Deterministic policy of observations or features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.mu, nn.Sequential)
        self.mu = FusedMLP(*self.mu)


class GoalCritic(_TakesFeatures, ContinuousCritic):
    """Q-function of observations or features, and actions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fuse_critics(self)

    def q1_forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        What the actor ascends.

        :param obs: observations or features
        :param actions: ``[B, A]``, scaled to [-1, 1]
        :return: values of the first critic, ``[B, 1]``, with gradient to the actions alone
        """
        with th.no_grad():
            features = self.extract_features(obs, self.features_extractor)
        values: th.Tensor = self.q_networks[0](th.cat([features, actions], dim=1), frozen=True)
        return values


class MultiInputPolicy(TD3Policy):
    """
    Policy of :class:`sb3_pg.HERDDPG`. All arguments but the last two are those of SB3's policy for DDPG.

    :param observation_space: with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param action_space: bounded box
    :param lr_schedule: learning rate of both networks
    :param net_arch: hidden layers, three of 256 units by default
    :param activation_fn: activation function
    :param features_extractor_class: extractor for a dictionary of ``observation`` and ``desired_goal``; by default it
        concatenates them, images through a convolutional network
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: class of the two optimizers
    :param optimizer_kwargs: its keyword arguments besides the learning rate
    :param n_critics: number of critics; the target takes the least of their values
    :param share_features_extractor: share the actor's extractor with the critic
    :param normalize_inputs: normalise observation and goal by running statistics
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
            with_fused_adam(optimizer_class, optimizer_kwargs),
            n_critics,
            share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        self.normalizer = GoalNormalizer(self.observation_space, self.normalize_inputs, **self.normalizer_kwargs)
        super()._build(lr_schedule)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """
        :return: a new extractor behind the one normaliser
        """
        assert isinstance(self.observation_space, spaces.Dict)
        seen = spaces.Dict({key: self.observation_space[key] for key in ("observation", "desired_goal")})
        inner = self.features_extractor_class(seen, **self.features_extractor_kwargs)
        return GoalExtractor(self.observation_space, self.normalizer, inner)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """
        :param features_extractor: ``None``: a new one
        :return: actor
        """
        return GoalActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """
        :param features_extractor: ``None``: a new one
        :return: critic
        """
        return GoalCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def prepare(self, observations: TensorDict) -> th.Tensor | TensorDict:
        """
        Compute once what all networks would compute from an observation before their first layer with parameters.

        :param observations: of a batch, ``[B, ...]`` each
        :return: what to call actor and critic with: features, or the observations if the extractors learn
        """
        extractor = self.actor.features_extractor
        if any(True for _ in extractor.parameters()):
            return observations
        with th.no_grad():
            return self.actor.extract_features(observations, extractor)

    def update_normalizer(self, observations: TensorDict) -> None:
        """
        Let the statistics see more data.

        :param observations: ``observation`` and ``desired_goal``, ``[B, ...]`` each
        :raises ValueError: they are not finite
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
