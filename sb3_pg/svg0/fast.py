"""The updates of SVG(0) with their gradients written out, see :mod:`sb3_pg.fast.written_out`."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_pg.common.distributions import GaussianActions
from sb3_pg.fast.fused_mlp import ALL, FusedLinear, Layers, Pass
from sb3_pg.fast.optimizers import set_gradient
from sb3_pg.fast.written_out import layers_of, lowest_value_gradient
from sb3_pg.svg0.policies import LOG_STD_MAX, LOG_STD_MIN, GaussianActor, QNetworks, Scale, SVG0Policy


class Networks(NamedTuple):
    """
    :param actor: the module
    :param hidden: its hidden layers
    :param mean: layer after these
    :param log_std: likewise; ``None`` if the standard deviations do not depend on the state
    :param critics: C networks
    :param target_critics: likewise
    """

    actor: GaussianActor
    hidden: Layers
    mean: Layers
    log_std: Layers | None
    critics: list[Layers]
    target_critics: list[Layers]


def networks_of(policy: SVG0Policy, reduced: bool) -> Networks | None:
    """
    :param policy: of SVG(0), which nobody watches
    :param reduced: whether the products of large layers are in bfloat16
    :return: its networks, for updates with this module; ``None`` where they have to go by autograd: further layers, features
        that are learned, full covariances, frozen parameters, overridden methods
    """
    actor, critic = policy.actor, policy.critic
    heads = [actor.mu, *([] if isinstance(actor.log_std, Scale) else [actor.log_std])]
    standard = (
        type(actor) is GaussianActor
        and type(critic) is type(policy.critic_target) is QNetworks
        and type(actor.features_extractor) is type(critic.features_extractor) is FlattenExtractor
        and actor.off_diagonal is None
        and type(actor.log_std) in (FusedLinear, Scale)
        and all(parameter.requires_grad for parameter in actor.log_std.parameters())
    )
    layers = layers_of([actor.latent_pi, *heads, *critic.q_networks], reduced) if standard else None
    target_critics = layers_of(policy.critic_target.q_networks, reduced, trained=False)
    if layers is None or target_critics is None:
        return None
    hidden, mean, *others = layers
    log_std = others.pop(0) if len(heads) == 2 else None
    return Networks(actor, hidden, mean, log_std, others, target_critics)


class ActorRun:
    """
    A pass of states through the actor, and the way back from samples ``u = mean + std z`` to its parameters.

    :param networks: of the policy
    :param features: of the states, ``[S, F]``
    :param n_samples: number of samples K for each
    :param next_features: of further states, ``[S, F]``, one sample for each, without a way back; ``None``: there are none
    """

    def __init__(
        self, networks: Networks, features: th.Tensor, n_samples: int, next_features: th.Tensor | None = None
    ) -> None:
        self._networks = networks
        n_states, actor = len(features), networks.actor
        # In one pass: half the operations.
        hidden = Pass(networks.hidden, features if next_features is None else th.cat([features, next_features]))
        mean = Pass(networks.mean, hidden.output)
        log_std = None if networks.log_std is None else Pass(networks.log_std, hidden.output)
        raw = actor.log_std(hidden.output) if log_std is None else log_std.output
        clamped = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        above_min = clamped.exp()
        std = above_min + actor.min_std
        #: Distribution of the actions.
        self.policy = GaussianActions(mean.output[:n_states], std[:n_states], None, actor.squash_output)
        self._noise = self.policy.draw_noise(n_samples)
        #: ``[K, S, A]``
        self.samples = self.policy.samples_of(self._noise)
        #: Distribution in the further states, and its samples, ``[1, S, A]``.
        self.following: tuple[GaussianActions, th.Tensor] | None = None
        if next_features is not None:
            following = GaussianActions(mean.output[n_states:], std[n_states:], None, actor.squash_output)
            self.following = (following, following.rsample(1))
        self._hidden, self._mean, self._log_std = hidden, mean, log_std
        # Derivative of the standard deviation; where it was clamped there is none.
        self._slope = (above_min * (clamped == raw))[:n_states]

    def set_gradients(self, of_samples: th.Tensor, of_std: th.Tensor | None) -> None:
        """
        Set the gradients of all parameters of the actor.

        :param of_samples: derivative of a loss with respect to the samples, ``[K, S, A]``
        :param of_std: what it depends on the standard deviations beyond that, ``[S, A]``; ``None``: it does not
        """
        of_spread = of_samples * self._noise
        one = len(of_samples) == 1
        of_mean, of_spread = (x[0] if one else x.sum(dim=0) for x in (of_samples, of_spread))
        if of_std is not None:
            of_spread = of_spread + of_std
        if self._slope.shape[1] < of_spread.shape[1]:
            of_spread = of_spread.sum(dim=1, keepdim=True)
        of_raw = of_spread * self._slope
        of_latent = self._mean.set_gradients(of_mean, ALL)
        assert of_latent is not None
        if self._log_std is None:
            set_gradient(self._networks.actor.log_std.bias, of_raw.sum(dim=0))
        else:
            assert self._networks.log_std is not None
            of_latent.addmm_(of_raw, self._networks.log_std.weights[0])
            self._log_std.set_gradients(of_raw)
        self._hidden.set_gradients(of_latent)


def differentiate_pathwise_loss(
    networks: Networks, run: ActorRun, features: th.Tensor, weights: th.Tensor, ent_coef: th.Tensor | None
) -> th.Tensor:
    """
    Set the actor's gradients of :func:`sb3_pg.common.losses.pathwise_loss`, plus
    ``ent_coef sum_s w_s mean_k log pi(a_k | s)``.

    :param networks: of the policy
    :param run: of the actor, in the same states
    :param features: of the states, ``[S, F]``
    :param weights: ``[S]``
    :param ent_coef: ``None``: no entropy bonus
    :return: the loss, without the bonus
    """
    n_samples, n_states, n_actions = run.samples.shape
    actions = run.policy.actions(run.samples)
    # The loss is the negative of a weighted mean.
    negative = weights[:, None].neg() if n_samples == 1 else (weights / -n_samples).repeat(n_samples)[:, None]
    inputs = with_actions(features, actions)
    loss, of_samples = lowest_value_gradient(networks.critics, inputs, negative, n_actions)
    of_samples = of_samples.view_as(actions)
    if run.policy.squash:
        of_samples = th.ops.aten.tanh_backward(of_samples, actions)
    of_std = None
    if ent_coef is not None:
        # log pi = -z^2 / 2 - log std - log(1 - tanh(u)^2), where z does not depend on the parameters.
        if run.policy.squash:
            of_samples = of_samples - 2 * ent_coef * negative.view(n_samples, n_states, 1) * actions
        of_std = -ent_coef * weights[:, None] / run.policy.stddev
    run.set_gradients(of_samples, of_std)
    return loss


def with_actions(features: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    :param features: ``[S, F]``
    :param actions: ``[K, S, A]``
    :return: inputs of the critics, ``[K * S, F + A]``
    """
    if len(actions) == 1:
        return th.cat([features, actions[0]], dim=1)
    return th.cat([features.expand(len(actions), *features.shape), actions], dim=-1).flatten(0, 1)
