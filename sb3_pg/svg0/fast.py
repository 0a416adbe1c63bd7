"""The fast path of SVG(0): updates with hand-derived gradients, see :mod:`sb3_pg.fast.mlp`, and actions in numpy."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_pg.common.distributions import LOG_SQRT_2_PI, FloatArray, GaussianActions
from sb3_pg.fast.guard import Originals
from sb3_pg.fast.mlp import (
    ALL,
    METHODS,
    MLP,
    ForwardPass,
    descend,
    find_mlps,
    fit_critics,
    min_q,
    min_q_gradient,
    set_gradient,
    trains,
)
from sb3_pg.fast.numpy_mlp import flatten_observations, numpy_mlp
from sb3_pg.svg0.buffers import SequenceSamples
from sb3_pg.svg0.policies import LOG_STD_MAX, LOG_STD_MIN, GaussianActor, QNetworks, StateIndependentLogStd

_METHODS: dict[type, tuple[str, ...]] = {
    GaussianActor: ("distribution", "features", "sample", "extract_features"),
    QNetworks: ("forward", "min_q", "extract_features"),
    FlattenExtractor: ("forward",),
    StateIndependentLogStd: ("forward",),
    GaussianActions: ("rsample", "actions", "log_prob", "sample_log_prob"),
}


class ActorPass:
    """
    Forward pass of the actor from states to samples ``u = mean + std z``, and its backward pass.

    :param path: fast path, with the networks
    :param features: features of the states, ``[S, F]``
    :param n_samples: number of samples K per state
    :param next_features: features of the next states, ``[S, F]``, with one constant sample each; ``None``: no next states
    """

    def __init__(self, path: "FastSVG0", features: th.Tensor, n_samples: int, next_features: th.Tensor | None = None) -> None:
        self.features, n_states, actor = features, len(features), path.actor
        # One pass for both: half the operations.
        hidden = ForwardPass(path.hidden, features if next_features is None else th.cat([features, next_features]))
        mean = ForwardPass(path.mean, hidden.output)
        log_std = None if path.log_std is None else ForwardPass(path.log_std, hidden.output)
        raw = actor.log_std(hidden.output) if log_std is None else log_std.output
        clamped = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        above_min = clamped.exp()
        std = above_min + actor.min_std
        self.policy = GaussianActions(mean.output[:n_states], std[:n_states], None, actor.squash_output)
        self._noise = self.policy.draw_noise(n_samples)
        self.samples = self.policy.samples_from(self._noise)  # [K, S, A]
        self.next: tuple[GaussianActions, th.Tensor] | None = None
        if next_features is not None:
            next_policy = GaussianActions(mean.output[n_states:], std[n_states:], None, actor.squash_output)
            self.next = next_policy, next_policy.rsample(1)
        self._path, self._hidden, self._mean, self._log_std = path, hidden, mean, log_std
        # Derivative of the standard deviation: zero where it was clamped.
        self._slope = (above_min * (clamped == raw))[:n_states]

    def backward(self, grad_samples: th.Tensor, grad_std: th.Tensor | None) -> None:
        """
        Set the gradients of all parameters.

        :param grad_samples: derivative of a loss with respect to the samples, ``[K, S, A]``
        :param grad_std: derivative with respect to the standard deviations at constant samples, ``[S, A]``; ``None``: zero
        """
        grad_mean, grad_spread = grad_samples.sum(dim=0), (grad_samples * self._noise).sum(dim=0)
        if grad_std is not None:
            grad_spread = grad_spread + grad_std
        if self._slope.shape[1] < grad_spread.shape[1]:
            grad_spread = grad_spread.sum(dim=1, keepdim=True)
        grad_raw = grad_spread * self._slope
        grad_latent = self._mean.backward(grad_mean, ALL)
        if self._log_std is None:
            set_gradient(self._path.actor.log_std.bias, grad_raw.sum(dim=0))
        else:
            assert self._path.log_std is not None
            grad_latent.addmm_(grad_raw, self._path.log_std.weights[0])
            self._log_std.backward(grad_raw)
        self._hidden.backward(grad_latent)


class FastSVG0:
    """
    Fast path for vector observations, uncorrelated Gaussians, and networks of linear layers with ReLU or tanh.

    :param algorithm: an SVG0 of that form
    :param networks: hidden layers, layer of the mean, layer of ``log_std`` if it depends on the state, critics
    :param target_critics: target network of each critic
    """

    replaces: ClassVar[tuple[str, ...]] = (
        *("_update", "_draw", "_targets", "_critic_step", "_actor_step", "_actor_loss", "_update_targets", "_target_networks"),
        *("_descend", "_reference_update", "_policy_samples"),
    )
    options: ClassVar[tuple[str, ...]] = ("bf16", "gradient_estimator", "actor", "critic", "critic_target")
    originals = Originals([*METHODS, *((cls, name) for cls, names in _METHODS.items() for name in names)])

    def __init__(self, algorithm: Any, networks: list[MLP], target_critics: list[MLP]) -> None:
        policy = algorithm.policy
        self.actor: GaussianActor = policy.actor
        self.hidden, self.mean, *others = networks
        self.log_std = None if isinstance(self.actor.log_std, StateIndependentLogStd) else others.pop(0)
        self.critics, self.target_critics = others, target_critics
        space = policy.observation_space
        self._critic_parameters, self._target_parameters = (
            list(c.parameters()) for c in (policy.critic, policy.critic_target)
        )
        acts_in_numpy = (
            policy.device.type == "cpu"
            and isinstance(space, spaces.Box)
            and not is_image_space(space)
            and type(policy).obs_to_tensor is BasePolicy.obs_to_tensor
        )
        self._numpy_mean = numpy_mlp([*self.actor.latent_pi, self.actor.mu]) if acts_in_numpy else None
        self._numpy_log_std = [p.detach().numpy() for p in self.actor.log_std.parameters()] if acts_in_numpy else []

    @classmethod
    def build(cls, algorithm: Any) -> "FastSVG0 | None":
        """
        :param algorithm: SVG0
        :return: fast path; ``None`` with other networks or covariances, frozen parameters, or likelihood-ratio gradients
        """
        actor, critic, target = modules = (algorithm.actor, algorithm.critic, algorithm.critic_target)
        policy = algorithm.policy
        standard = (
            algorithm.gradient_estimator == "pathwise"
            and modules == (policy.actor, policy.critic, policy.critic_target)
            and tuple(map(type, modules)) == (GaussianActor, QNetworks, QNetworks)
            and all(type(module.features_extractor) is FlattenExtractor for module in modules)
            and actor.off_diagonal is None
            and type(actor.log_std) in (nn.Linear, StateIndependentLogStd)
            and all(p.requires_grad for p in actor.log_std.parameters())
            and all(trains(module.optimizer, module) for module in (actor, critic))
            and cls.originals.unchanged()
        )
        if not standard:
            return None
        heads = [actor.mu] if isinstance(actor.log_std, StateIndependentLogStd) else [actor.mu, actor.log_std]
        networks = find_mlps([actor.latent_pi, *heads, *critic.q_networks], algorithm.bf16)
        target_critics = find_mlps(target.q_networks, algorithm.bf16, trained=False)
        return None if networks is None or target_critics is None else cls(algorithm, networks, target_critics)

    @th.no_grad()
    def update(self, algorithm: Any, batch: SequenceSamples) -> dict[str, th.Tensor]:
        """
        Equivalent to ``SVG0._update``.

        :param algorithm: SVG0
        :param batch: minibatch
        :return: values to log
        """
        # All networks use the same features.
        features, next_features = map(self.actor.features, (batch.observations, batch.next_observations))
        # On-policy, the targets are computed after the actor's step.
        actor = ActorPass(self, features, algorithm.n_action_samples, None if algorithm.on_policy else next_features)
        record = {"std": actor.policy.stddev.mean()}
        log_prob = actor.policy.log_prob(actor.samples) if algorithm.uses_entropy else None
        with th.enable_grad():
            ent_coef = algorithm._ent_coef_step(log_prob, batch.weights, record)
        if algorithm.on_policy:
            record["actor_loss"] = self._actor_step(algorithm, actor, batch.weights, ent_coef, log_prob)
        targets = self._targets(algorithm, batch, actor, next_features, ent_coef, record)
        actions = th.tanh(batch.samples) if self.actor.squash_output else batch.samples
        inputs = th.cat([features, actions], dim=1)
        record["critic_loss"], _ = fit_critics(self.critics, inputs, targets[:, None], batch.weights[:, None])
        descend(algorithm, algorithm.critic.optimizer, record["critic_loss"], "critic_loss")
        if not algorithm.on_policy:
            record["actor_loss"] = self._actor_step(algorithm, actor, batch.weights, ent_coef, log_prob)
        polyak_update(self._critic_parameters, self._target_parameters, algorithm.tau)
        return record

    def _targets(
        self,
        algorithm: Any,
        batch: SequenceSamples,
        actor: ActorPass,
        next_features: th.Tensor,
        ent_coef: th.Tensor,
        record: Any,
    ) -> th.Tensor:
        next_pass = ActorPass(self, next_features, 1) if actor.next is None else None
        next_policy, next_samples = actor.next or (next_pass.policy, next_pass.samples)  # type: ignore[union-attr]  # one of them
        rows = [min_q(self.target_critics, _inputs(next_features, next_policy.actions(next_samples)))[:, 0]]
        if algorithm.uses_entropy:
            rows.append(-ent_coef * next_policy.log_prob(next_samples)[0])
        if algorithm.resolved_correction == "retrace":
            rows.append(min_q(self.target_critics, _inputs(actor.features, actor.policy.actions(batch.samples[None])))[:, 0])
            rows.append(actor.policy.sample_log_prob(batch.samples))
        targets: th.Tensor = algorithm._lambda_returns(batch, rows, record)
        return targets

    def _actor_step(
        self, algorithm: Any, actor: ActorPass, weights: th.Tensor, ent_coef: th.Tensor, log_prob: th.Tensor | None
    ) -> th.Tensor:
        n_samples, n_states, n_actions = actor.samples.shape
        actions, squash = actor.policy.actions(actor.samples), actor.policy.squash
        # The loss is the negative of a weighted mean.
        negative = weights[:, None].neg() if n_samples == 1 else (weights / -n_samples).repeat(n_samples)[:, None]
        loss, grad_actions = min_q_gradient(self.critics, _inputs(actor.features, actions), negative, n_actions)
        grad_samples, grad_std = grad_actions.view_as(actions), None
        if squash:
            grad_samples = grad_samples * (1 - actions.square())
        if log_prob is not None:
            # log pi = -z^2 / 2 - log std - log(1 - tanh(u)^2), where z does not depend on the parameters.
            loss = loss + (ent_coef * log_prob.mean(dim=0) * weights).sum()
            if squash:
                grad_samples = grad_samples - 2 * ent_coef * negative.view(n_samples, n_states, 1) * actions
            grad_std = -ent_coef * weights[:, None] / actor.policy.stddev
        actor.backward(grad_samples, grad_std)
        descend(algorithm, self.actor.optimizer, loss, "actor_loss")
        return loss

    def sample(self, obs: Any) -> tuple[FloatArray, FloatArray] | None:
        """
        Draw the samples of ``GaussianActor.sample``, also from PyTorch's global generator.

        :param obs: observations, ``[N, ...]``
        :return: samples, ``[N, A]``, and their log-density, ``[N]``; ``None`` if the actor itself must draw them
        """
        if self._numpy_mean is None:
            return None
        outputs = self._numpy_mean.forward(flatten_observations(obs))
        mean, log_std = outputs[-1], self._numpy_log_std[-1]
        if len(self._numpy_log_std) == 2:
            log_std = outputs[-2] @ self._numpy_log_std[0].T + log_std
        std = float(self.actor.min_std) + np.exp(np.minimum(np.maximum(log_std, LOG_STD_MIN), LOG_STD_MAX))
        noise: FloatArray = th.randn(mean.shape, device="cpu").numpy()
        samples = mean + std * noise
        if not np.isfinite(samples).all():
            return None
        return samples, (-0.5 * noise * noise - np.log(std) - np.float32(LOG_SQRT_2_PI)).sum(axis=1)


def _inputs(features: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """Inputs of the critics, ``[K * S, F + A]``, from features ``[S, F]`` and actions ``[K, S, A]``."""
    if len(actions) == 1:
        return th.cat([features, actions[0]], dim=1)
    return th.cat([features.expand(len(actions), *features.shape), actions], dim=-1).flatten(0, 1)
