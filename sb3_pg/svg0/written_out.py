"""The updates of SVG(0) with their gradients written out, see :mod:`sb3_pg.common.written_out`."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pg.common.distributions import GaussianActions
from sb3_pg.common.fused_mlp import Layers, Pass
from sb3_pg.common.optimizers import set_gradient
from sb3_pg.common.written_out import layers_of, value_gradient
from sb3_pg.svg0.policies import LOG_STD_MAX, LOG_STD_MIN, GaussianActor, QNetworks, Scale, SVG0Policy


class Networks(NamedTuple):
    """
    :param actor: the module
    :param latent: its hidden layers
    :param mean: layer after these
    :param log_std: likewise; ``None`` if the standard deviations do not depend on the state
    :param critics: C networks
    :param target_critics: likewise
    """

    actor: GaussianActor
    latent: Layers
    mean: Layers
    log_std: Layers | None
    critics: list[Layers]


def networks_of(policy: SVG0Policy) -> Networks | None:
    """
    :param policy: of SVG(0)
    :return: its networks, for updates with this module; ``None`` where they have to go by autograd: further layers, features
        that are learned, full covariances, frozen parameters, overridden methods, hooks
    """
    actor, critic = policy.actor, policy.critic
    extractors = (actor.features_extractor, critic.features_extractor)
    heads = [actor.mu, *([] if isinstance(actor.log_std, Scale) else [actor.log_std])]
    standard = (
        type(actor) is GaussianActor
        and type(critic) is QNetworks
        and all(type(extractor) is FlattenExtractor for extractor in extractors)
        and actor.off_diagonal is None
        and all(parameter.requires_grad for parameter in actor.log_std.parameters())
    )
    if not standard:
        return None
    users = (policy, actor, critic, *extractors, actor.log_std)
    layers = layers_of([actor.latent_pi, *heads, *critic.q_networks], users)
    if layers is None:
        return None
    latent, mean, *others = layers
    return Networks(actor, latent, mean, others[0] if len(heads) == 2 else None, others[len(heads) - 1 :])


class ActorRun:
    """
    A pass of states through the actor, and the way back from samples ``u = mean + std z`` to its parameters.

    :param networks: of the policy
    :param features: of the states, ``[S, F]``
    :param n_samples: number of samples K for each
    """

    def __init__(self, networks: Networks, features: th.Tensor, n_samples: int) -> None:
        self._networks = networks
        self._latent = Pass(networks.latent, features)
        latent = self._latent.output
        self._mean = Pass(networks.mean, latent)
        self._log_std = None if networks.log_std is None else Pass(networks.log_std, latent)
        self._raw = networks.actor.log_std(latent) if self._log_std is None else self._log_std.output
        self._above_min = self._raw.clamp(LOG_STD_MIN, LOG_STD_MAX).exp_()
        self._std = networks.actor.min_std + self._above_min
        #: Distribution of the actions.
        self.policy = GaussianActions(self._mean.output, self._std, None, networks.actor.squash_output)
        self._noise = self.policy.draw_noise(n_samples)
        #: ``[K, S, A]``
        self.samples = self.policy.samples_of(self._noise)

    def set_gradients(self, of_samples: th.Tensor, of_std: th.Tensor | None) -> None:
        """
        Set the gradients of all parameters of the actor.

        :param of_samples: derivative of a loss with respect to the samples, ``[K, S, A]``
        :param of_std: what it depends on the standard deviations beyond that, ``[S, A]``; ``None``: it does not
        """
        of_mean = of_samples.sum(dim=0)
        of_spread = (of_samples * self._noise).sum(dim=0)
        if of_std is not None:
            of_spread += of_std
        if self._std.shape != of_spread.shape:
            of_spread = of_spread.sum(dim=1, keepdim=True)
        inside = (self._raw >= LOG_STD_MIN) & (self._raw <= LOG_STD_MAX)
        of_raw = of_spread * self._above_min * inside
        self._mean.set_gradients(of_mean)
        of_latent = self._mean.input_gradient(of_mean)
        if self._log_std is None:
            set_gradient(self._networks.actor.log_std.bias, of_raw.sum(dim=0))
        else:
            self._log_std.set_gradients(of_raw)
            of_latent += self._log_std.input_gradient(of_raw)
        self._latent.set_gradients(of_latent)


def differentiate_pathwise_loss(
    networks: Networks, run: ActorRun, features: th.Tensor, weights: th.Tensor, ent_coef: th.Tensor | None
) -> th.Tensor:
    """
    Set the actor's gradients of :func:`sb3_pg.common.losses.pathwise_loss`, plus
    ``ent_coef sum_s w_s mean_k log pi(a_k | s)``.

    :param networks: of the policy
    :param run: of the actor, in the same states
    :param features: what the critic sees of them, ``[S, F]``
    :param weights: ``[S]``
    :param ent_coef: ``None``: no entropy bonus
    :return: the values of the samples, ``[K, S]``
    """
    samples, weight = run.samples, weights / len(run.samples)
    n_samples, n_states, n_actions = samples.shape
    actions = run.policy.actions(samples)
    inputs = th.cat([features.expand(n_samples, -1, -1), actions], dim=-1).flatten(0, 1)
    values, of_actions = value_gradient(networks.critics, inputs, -weight.repeat(n_samples), n_actions)
    of_samples = of_actions.view_as(samples)
    if run.policy.squash:
        of_samples = of_samples * (1 - actions.square())
    of_std = None
    if ent_coef is not None:
        # log pi = -z^2 / 2 - log std - log(1 - tanh(u)^2), where z does not depend on the parameters.
        if run.policy.squash:
            of_samples = of_samples + 2 * ent_coef * weight[:, None] * actions
        of_std = -ent_coef * weights[:, None] / run.policy.stddev
    run.set_gradients(of_samples, of_std)
    return values.view(n_samples, n_states)
