"""Policy-gradient estimates as flat vectors, for measuring estimators and for the optimal baseline."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_pg.common import losses
from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.networks import index_observations, parameter_groups
from sb3_pg.common.on_policy import Batch, PolicyStep
from sb3_pg.estimators import baselines
from sb3_pg.vpg.validation import check_environments

if TYPE_CHECKING:
    from sb3_pg.vpg.vpg import VPG


def estimate_gradient(vpg: "VPG", n_batches: int) -> npt.NDArray[np.float64]:
    """
    See :meth:`sb3_pg.VPG.estimate_gradient`.

    :param vpg: algorithm
    :param n_batches: number of estimates
    :return: ``[n_batches, n_parameters]``, ascent direction
    :raises ValueError: see there
    """
    if vpg.n_episodes is None:
        raise ValueError("estimate_gradient needs whole episodes: pass n_episodes instead of n_steps")
    if vpg.normalize_advantage:
        raise ValueError("estimate_gradient is not defined with normalize_advantage=True, which rescales the gradient")
    if vpg.env is None:
        raise ValueError("estimate_gradient needs an environment: call set_env() first")
    if n_batches < 1:
        raise ValueError(f"n_batches must be at least 1, got {n_batches}")
    check_environments(vpg)
    callback = CallbackList([])
    callback.init_callback(vpg)
    buffer = vpg._make_rollout_buffer(None)
    gradients = np.empty((n_batches, sum(p.numel() for p in vpg.policy.parameters())))
    with _measurement(vpg):
        for row in gradients:
            vpg.collect_rollouts(vpg.env, callback, buffer, n_rollout_steps=None)
            vpg.policy.set_training_mode(False)
            batch = vpg._batch(buffer)
            row[:] = _estimate(vpg, batch, buffer)
            _drop_graph(vpg.policy, batch)
    return gradients


def set_optimal_baseline_gradient(vpg: "VPG", batch: Batch, buffer: PolicyGradientBuffer) -> PolicyStep:
    """
    Set the gradients of the policy loss with the optimal baseline and of the entropy bonus, clipped jointly.

    :param vpg: algorithm
    :param batch: batch of the update, with weights before the baseline is subtracted
    :param buffer: rollout buffer
    :return: statistics for logging
    """
    policy = vpg.policy
    policy.set_training_mode(True)
    log_prob, entropy = vpg._evaluate_actions(batch)
    entropy_loss = losses.entropy_loss(entropy, log_prob, batch.scale)
    actor = parameter_groups(policy).actor
    gradient = vpg.ent_coef * _flat_gradient(entropy_loss, actor) - _optimal_baseline_gradient(vpg, batch, buffer, actor)
    policy.zero_grad()
    for parameter, piece in zip(actor, th.split(gradient, [p.numel() for p in actor]), strict=True):
        parameter.grad = piece.view_as(parameter).clone()
    maximum = float("inf") if vpg.max_grad_norm is None else vpg.max_grad_norm
    norm = th.nn.utils.clip_grad_norm_(actor, maximum).item()
    _drop_graph(policy, batch)
    policy_loss = losses.policy_gradient_loss(log_prob, batch.weights, batch.scale).item()
    return PolicyStep(log_prob.detach().cpu().numpy(), policy_loss, entropy_loss.item(), None, norm)


def _estimate(vpg: "VPG", batch: Batch, buffer: PolicyGradientBuffer) -> npt.NDArray[np.float64]:
    """:return: the estimate of the policy gradient, ascent direction, ``[n_parameters]``"""
    parameters = list(vpg.policy.parameters())
    if vpg.baseline == "optimal":
        return _as_array(_optimal_baseline_gradient(vpg, batch, buffer, parameters))
    log_prob = _log_prob(vpg.policy, batch, slice(None))
    return -_as_array(_flat_gradient(losses.policy_gradient_loss(log_prob, batch.weights, batch.scale), parameters))


def _optimal_baseline_gradient(
    vpg: "VPG", batch: Batch, buffer: PolicyGradientBuffer, parameters: Sequence[th.Tensor]
) -> th.Tensor:
    """
    Mean over the episodes of ``x - b g`` in ascent direction, flattened over the parameters, where x is the episode's estimate
    without baseline and g the sum of scores that multiplies a constant baseline (Peters & Schaal 2008, eq. 14).
    """
    episodes, discounts = buffer.episodes(), buffer.tensor(vpg._discounts(buffer))
    order = np.argsort(episodes, kind="stable")
    estimates, scores = [], []
    for steps in np.split(order, np.flatnonzero(np.diff(episodes[order])) + 1):
        rows = th.as_tensor(steps, device=vpg.device)
        log_prob = _log_prob(vpg.policy, batch, rows)
        estimates.append(_as_array(_flat_gradient((log_prob * batch.weights[rows]).sum(), parameters)))
        scores.append(_as_array(_flat_gradient((log_prob * discounts[rows]).sum(), parameters)))
    x, g = np.stack(estimates), np.stack(scores)
    mean = (x - baselines.optimal_baseline(x, g) * g).mean(axis=0)
    return th.as_tensor(mean, dtype=th.float32, device=vpg.device)


def _log_prob(policy: ActorCriticPolicy, batch: Batch, rows: th.Tensor | slice) -> th.Tensor:
    distribution = policy.get_distribution(index_observations(batch.observations, rows))
    return distribution.log_prob(batch.actions[rows])


@th.no_grad()
def _drop_graph(policy: ActorCriticPolicy, batch: Batch) -> None:
    """Replace the policy's last distribution, which could not be deep-copied with a graph."""
    policy.set_training_mode(False)  # statistics of batch normalisation must not see one observation
    policy.get_distribution(index_observations(batch.observations, slice(1)))


def _flat_gradient(output: th.Tensor, parameters: Sequence[th.Tensor]) -> th.Tensor:
    """Gradient of a scalar, flattened over the parameters; zero for those that are frozen or do not affect it."""
    trained = [p for p in parameters if p.requires_grad]
    computed = iter(
        th.autograd.grad(output, trained, retain_graph=True, allow_unused=True)
        if trained and output.requires_grad
        else [None] * len(trained)
    )
    gradients = [next(computed) if p.requires_grad else None for p in parameters]
    return th.cat([th.zeros_like(p).ravel() if g is None else g.ravel() for p, g in zip(parameters, gradients, strict=True)])


def _as_array(tensor: th.Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = tensor.detach().cpu().numpy().astype(np.float64)
    return array


@contextmanager
def _measurement(vpg: "VPG") -> Iterator[None]:
    """Collect without side effects: counters, statistics and modes are restored, and the environments are reset."""
    assert vpg.env is not None
    names = ("num_timesteps", "ep_info_buffer", "ep_success_buffer", "_last_obs", "_last_episode_starts", "_episode_steps")
    before = {name: vars(vpg)[name] for name in names if name in vars(vpg)}
    policy_training = vpg.policy.training
    normalize = vpg.get_vec_normalize_env()
    normalize_training = normalize is not None and normalize.training
    vpg.ep_info_buffer = deque(maxlen=vpg._stats_window_size)
    vpg.ep_success_buffer = deque(maxlen=vpg._stats_window_size)
    if normalize is not None:
        normalize.training = False
    try:
        yield
    finally:
        vars(vpg).update(before)
        if vpg._last_obs is not None:
            vpg._reset_environments(vpg.env)
        if normalize is not None:
            normalize.training = normalize_training
        vpg.policy.set_training_mode(policy_training)
