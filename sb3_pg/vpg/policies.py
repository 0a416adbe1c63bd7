"""Policies of VPG: SB3's actor-critic policies, by default without sharing between actor and critic."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN


class VPGPolicy(ActorCriticPolicy):
    """
    SB3's ``ActorCriticPolicy`` with ``share_features_extractor=False`` by default: the critic of VPG is fitted separately,
    which must not change the features of the policy.

    :param args: positional arguments of ``ActorCriticPolicy``
    :param kwargs: keyword arguments of ``ActorCriticPolicy``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("share_features_extractor", False)
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 omits this argument, and a saved policy would be rebuilt with different networks.
        return {**super()._get_constructor_parameters(), "share_features_extractor": self.share_features_extractor}


class VPGCnnPolicy(VPGPolicy):
    """
    Policy for images.

    :param args: positional arguments of ``ActorCriticPolicy``
    :param kwargs: keyword arguments of ``ActorCriticPolicy``; ``features_extractor_class`` is ``NatureCNN`` by default
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class VPGMultiInputPolicy(VPGPolicy):
    """
    Policy for dictionary observations.

    :param args: positional arguments of ``ActorCriticPolicy``
    :param kwargs: keyword arguments of ``ActorCriticPolicy``; ``features_extractor_class`` is ``CombinedExtractor`` by default
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)


class VPGLinearPolicy(VPGPolicy):
    """
    Softmax-linear policy for discrete actions, linear-Gaussian policy for continuous ones: no hidden layer between features
    and action distribution. The critic, if there is one, keeps its hidden layers.

    :param observation_space: observation space, not a dictionary
    :param args: further positional arguments of ``ActorCriticPolicy``
    :param net_arch: layers of the critic, ``dict(vf=[...])``, two of 64 units by default
    :param kwargs: keyword arguments of ``ActorCriticPolicy``
    :raises ValueError: hidden layers for the policy, or dictionary observations
    """

    def __init__(
        self, observation_space: spaces.Space[Any], *args: Any, net_arch: dict[str, list[int]] | None = None, **kwargs: Any
    ) -> None:
        layers = (
            {"pi": [], "vf": [64, 64]} if net_arch is None else {"pi": [], **net_arch} if isinstance(net_arch, dict) else None
        )
        if layers is None or layers["pi"]:
            raise ValueError(f"LinearPolicy has no hidden layer: net_arch={net_arch} must be None or dict(vf=[...])")
        if isinstance(observation_space, spaces.Dict) and "features_extractor_class" not in kwargs:
            raise ValueError("LinearPolicy does not take dictionary observations: use MultiInputPolicy or FlattenObservation")
        super().__init__(observation_space, *args, net_arch=layers, **kwargs)


MlpPolicy = VPGPolicy
CnnPolicy = VPGCnnPolicy
MultiInputPolicy = VPGMultiInputPolicy
LinearPolicy = VPGLinearPolicy
