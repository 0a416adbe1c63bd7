"""Networks of SVG(0): a Gaussian actor with a choice of covariances, and critics that evaluate several actions per state."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_pg.common.distributions import COVARIANCES, FloatArray, GaussianActions, n_off_diagonal, n_standard_deviations

# As in SB3's SAC: below, the density overflows; above, a squashed sample is always at one of its bounds.
LOG_STD_MIN = -20
LOG_STD_MAX = 2


class StateIndependentLogStd(nn.Module):
    """
    Entries of the Cholesky factor that do not depend on the state.

    :param n_entries: number of entries
    """

    def __init__(self, n_entries: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(th.zeros(n_entries))

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """
        :param latent: ``[S, F]``, of which only the length is used
        :return: ``[S, n_entries]``
        """
        return self.bias.expand(len(latent), -1)


class GaussianActor(BasePolicy):
    """
    Policy network: ``u = mean(s) + L(s) z``, the action being u or tanh(u), in the action space scaled to [-1, 1].

    The diagonal of L is ``min_std + exp(log_std)``. The lower bound keeps the policy exploring: without an entropy bonus its
    noise would vanish, since the optimal policy is deterministic.

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: hidden layers
    :param features_extractor: network that extracts features
    :param features_dim: number of features
    :param activation_fn: activation function
    :param normalize_images: whether to divide images by 255
    :param covariance: ``"isotropic"``, ``"diagonal"`` or ``"full"``
    :param state_dependent_covariance: whether L depends on the state
    :param squash_output: whether the action is tanh(u)
    :param log_std_init: initial ``log_std``, in every state
    :param min_std: lower bound of the diagonal of L, in the scaled action space
    """

    action_space: spaces.Box
    _low: th.Tensor
    _high: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module],
        normalize_images: bool,
        covariance: str,
        state_dependent_covariance: bool,
        squash_output: bool,
        log_std_init: float,
        min_std: float,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=squash_output,
        )
        self.min_std = min_std
        self._architecture = {
            "net_arch": net_arch,
            "features_dim": features_dim,
            "activation_fn": activation_fn,
            "covariance": covariance,
            "state_dependent_covariance": state_dependent_covariance,
            "log_std_init": log_std_init,
        }
        dim = get_action_dim(action_space)
        latent_dim = net_arch[-1] if net_arch else features_dim
        self.latent_pi = nn.Sequential(*create_mlp(features_dim, -1, net_arch, activation_fn))
        self.mu = nn.Linear(latent_dim, dim)

        def head(n_entries: int, initial: float) -> nn.Linear | StateIndependentLogStd:
            layer = nn.Linear(latent_dim, n_entries) if state_dependent_covariance else StateIndependentLogStd(n_entries)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, initial)
            return layer

        self.log_std = head(n_standard_deviations(covariance, dim), log_std_init)
        self.off_diagonal = head(n_off_diagonal(covariance, dim), 0.0) if n_off_diagonal(covariance, dim) else None
        low, high = (th.as_tensor(bound, dtype=th.float32).flatten() for bound in (action_space.low, action_space.high))
        self.register_buffer("_low", low, persistent=False)
        self.register_buffer("_high", high, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self._architecture,
            "min_std": self.min_std,
            "squash_output": self.squash_output,
            "features_extractor": self.features_extractor,
        }

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations ``[S, ...]``
        :return: ``[S, F]``
        """
        assert self.features_extractor is not None
        return self.extract_features(obs, self.features_extractor)

    def distribution(self, obs: PyTorchObs) -> GaussianActions:
        """
        :param obs: observations ``[S, ...]``
        :return: distribution of actions in each of them, scaled to [-1, 1]
        """
        latent = self.latent_pi(self.features(obs))
        mean, log_std = _at_least_float32(self.mu(latent)), _at_least_float32(self.log_std(latent))
        std = self.min_std + log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
        off_diagonal = None if self.off_diagonal is None else _at_least_float32(self.off_diagonal(latent))
        return GaussianActions(mean, std, off_diagonal, self.squash_output)

    @th.no_grad()
    def sample(self, obs: PyTorchObs) -> tuple[FloatArray, FloatArray]:
        """
        :param obs: observations ``[N, ...]``
        :return: samples, ``[N, A]``, and their log-density, ``[N]``
        :raises ValueError: the samples are not finite
        """
        distribution = self.distribution(obs)
        samples = distribution.rsample(1)
        if not samples.isfinite().all():
            part = "mean" if not distribution.mean.isfinite().all() else "covariance (its Cholesky factor)"
            raise ValueError(f"the {part} of the policy is not finite: lower the learning rate, or normalise rewards")
        return samples[0].cpu().numpy(), distribution.sample_log_prob(samples)[0].cpu().numpy()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param obs: observations ``[S, ...]``
        :param deterministic: whether to use the mean instead of a random sample
        :return: actions for ``predict`` to post-process, ``[S, A]``: scaled to [-1, 1] if squashed, otherwise in the
            environment's units and not yet clipped
        """
        distribution = self.distribution(obs)
        actions = distribution.actions(distribution.mean if deterministic else distribution.rsample(1)[0])
        if self.squash_output:
            return actions
        return self._low + 0.5 * (actions + 1.0) * (self._high - self._low)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)  # type: ignore[no-any-return]  # torch


class QNetworks(ContinuousCritic):
    """SB3's critic, extended to several actions per state, whose features are extracted only once."""

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param obs: observations ``[S, ...]``
        :param actions: one action for each observation, ``[S, A]``, or K actions, ``[K, S, A]``
        :return: values of each of the C critics, ``[S, 1]`` or ``[K, S, 1]``
        """
        features = self.extract_features(obs, self.features_extractor)
        inputs = th.cat([features.expand(*actions.shape[:-1], -1), actions], dim=-1)
        return tuple(q_network(inputs) for q_network in self.q_networks)

    def min_q(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: observations ``[S, ...]``
        :param actions: ``[S, A]``, or K actions for each observation, ``[K, S, A]``
        :return: minimum over the critics, ``[S]`` or ``[K, S]``
        """
        return _at_least_float32(th.cat(self(obs, actions), dim=-1).amin(dim=-1))


class SVG0Policy(BasePolicy):
    """
    Actor, critics and target critics of SVG(0).

    :param observation_space: observation space
    :param action_space: action space
    :param lr_schedule: learning rate of actor and critics
    :param net_arch: hidden layers, ``[256, 256]`` by default; ``dict(pi=..., qf=...)`` for different ones
    :param activation_fn: activation function
    :param covariance: ``"isotropic"`` (one standard deviation), ``"diagonal"`` (one for each dimension) or ``"full"`` (a lower
        triangular factor)
    :param state_dependent_covariance: whether the covariance depends on the state
    :param squash_output: whether to squash actions by tanh; otherwise they are Gaussian, clipped only for the environment
    :param log_std_init: initial logarithm of the standard deviation above ``min_std``
    :param min_std: lower bound of the standard deviations, in the action space scaled to [-1, 1]
    :param features_extractor_class: features extractor
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer
    :param optimizer_kwargs: its keyword arguments, except the learning rate
    :param n_critics: number of critics; the minimum of their values is used
    :param share_features_extractor: must be False
    :raises ValueError: an unknown covariance, a negative bound, no critic, or a shared features extractor
    """

    actor: GaussianActor
    critic: QNetworks
    critic_target: QNetworks

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        covariance: str = "diagonal",
        state_dependent_covariance: bool = True,
        squash_output: bool = True,
        log_std_init: float = -1.0,
        min_std: float = 0.1,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        share_features_extractor: bool = False,
    ) -> None:
        if share_features_extractor:
            raise ValueError("actor and critic of SVG0 have separate optimizers: use share_features_extractor=False")
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance={covariance!r} is unknown: choose one of {', '.join(map(repr, COVARIANCES))}")
        if not min_std >= 0:
            raise ValueError(f"min_std={min_std!r} must not be negative")
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=squash_output,
        )
        self.net_arch = [256, 256] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.actor_kwargs = {
            "covariance": covariance,
            "state_dependent_covariance": state_dependent_covariance,
            "log_std_init": log_std_init,
            "min_std": min_std,
        }
        self.n_critics = n_critics
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        actor_arch, critic_arch = get_actor_critic_arch(self.net_arch)
        network = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "activation_fn": self.activation_fn,
            "normalize_images": self.normalize_images,
        }
        actor = {**network, **self.actor_kwargs, "net_arch": actor_arch, "squash_output": self.squash_output}
        # In SB3's critic, share_features_extractor=True means that the critic does not train the features.
        critic = {**network, "net_arch": critic_arch, "n_critics": self.n_critics, "share_features_extractor": False}
        self.actor = GaussianActor(**self._update_features_extractor(actor))
        self.critic = QNetworks(**self._update_features_extractor(critic))
        self.critic_target = QNetworks(**self._update_features_extractor(critic))
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic_target.set_training_mode(False)
        for part in (self.actor, self.critic):
            part.optimizer = self.optimizer_class(part.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]  # SB3's own call

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.actor_kwargs,
            "lr_schedule": self._dummy_schedule,  # a policy that is loaded alone is not trained
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "squash_output": self.squash_output,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "n_critics": self.n_critics,
        }

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param obs: observations ``[S, ...]``
        :param deterministic: whether to use the mean instead of a random sample
        :return: see :meth:`GaussianActor.forward`
        """
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation, deterministic)  # type: ignore[no-any-return]  # torch

    def set_training_mode(self, mode: bool) -> None:
        """
        Set the mode of batch normalisation and dropout. Target networks stay in evaluation mode.

        :param mode: True for training, False for evaluation
        """
        if self.training == self.actor.training == self.critic.training == mode:
            # Visiting all modules takes as long as computing an action.
            return
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode


class SVG0CnnPolicy(SVG0Policy):
    """
    Policy for images.

    :param args: positional arguments of ``SVG0Policy``
    :param kwargs: its keyword arguments; ``features_extractor_class`` is ``NatureCNN`` by default
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class SVG0MultiInputPolicy(SVG0Policy):
    """
    Policy for dictionary observations.

    :param args: positional arguments of ``SVG0Policy``
    :param kwargs: its keyword arguments; ``features_extractor_class`` is ``CombinedExtractor`` by default
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)


MlpPolicy = SVG0Policy
CnnPolicy = SVG0CnnPolicy
MultiInputPolicy = SVG0MultiInputPolicy

# The name in policies pickled by earlier versions.
Scale = StateIndependentLogStd


def _at_least_float32(x: th.Tensor) -> th.Tensor:
    """Values, densities and noise need more precision than autocast provides."""
    return x.to(th.promote_types(x.dtype, th.float32))
