"""Vanilla policy gradient with a choice of advantage estimators and baselines."""

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_pg.common import losses
from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.networks import index_observations
from sb3_pg.common.on_policy import Batch, OnPolicyActorCritic
from sb3_pg.estimators import baselines, returns
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast import Accelerated
from sb3_pg.fast.actor_critic import FastActorCritic
from sb3_pg.vpg import gradient_estimates
from sb3_pg.vpg.policies import CnnPolicy, LinearPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg.vpg.validation import GAE_LAMBDA, check_environments, check_options, resolve_n_steps, resolve_n_value_updates

SelfVPG = TypeVar("SelfVPG", bound="VPG")


class VPG(Accelerated, OnPolicyActorCritic, fast_path=FastActorCritic):
    """
    Vanilla policy gradient: one gradient step per batch of fresh experience,
    ``theta <- theta + alpha mean[grad log pi(a_t | s_t) (weight_t - baseline_t)]``.

    ===================== =================== =====================================================
    advantage_estimator   baseline            known as
    ===================== =================== =====================================================
    ``"total_return"``    ``"none"``          REINFORCE (Williams 1992)
    ``"total_return"``    ``"optimal"``       episodic REINFORCE with optimal baseline (Peters & Schaal 2008)
    ``"reward_to_go"``    ``"mean"``          REINFORCE with reward-to-go, leave-one-out baseline (Kool et al. 2019)
    ``"reward_to_go"``    ``"value"``         REINFORCE with baseline, vanilla policy gradient (Sutton et al. 2000)
    ``"n_step"``          ``"value"``         advantage actor-critic with n-step returns
    ``"gae"``             ``"value"``         VPG with generalised advantage estimation (Schulman et al. 2016)
    ===================== =================== =====================================================

    A batch is either a rollout of ``n_steps`` in each environment, which cuts trajectories and bootstraps with the critic, or
    ``n_episodes`` whole episodes. Without a critic, whole episodes are required.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"LinearPolicy"`` or a class
    :param env: environment or its id
    :param learning_rate: learning rate of the policy; constant or function of the remaining progress (from 1 to 0)
    :param n_steps: number of steps of a rollout in each environment; 512 unless ``n_episodes`` is given
    :param gamma: discount factor
    :param gae_lambda: lambda of ``"gae"``, 0.95 if not given; only with that estimator
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss in the joint loss, 0.5 if not given; only with ``n_value_updates=0``
    :param max_grad_norm: maximum norm of the gradient in each optimizer step; ``None``: no clipping
    :param use_sde: generalised state-dependent exploration (gSDE) instead of independent noise
    :param sde_sample_freq: number of steps between samples of gSDE noise; -1: only at the beginning of a rollout
    :param rollout_buffer_class: subclass of :class:`sb3_pg.common.buffers.PolicyGradientBuffer`
        (``PolicyGradientDictBuffer`` for dictionary observations)
    :param rollout_buffer_kwargs: keyword arguments of that class
    :param normalize_advantage: shift and scale the weights of a batch to mean 0 and standard deviation 1. Biased
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param tensorboard_log: folder of the tensorboard logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks on construction
    :param advantage_estimator: ``"total_return"``, ``"reward_to_go"``, ``"n_step"`` or ``"gae"``
    :param baseline: ``"none"``, ``"mean"`` (over the other episodes of the batch), ``"optimal"`` (variance-minimising constant
        for each parameter, from the other episodes) or ``"value"`` (learned V(s))
    :param n_episodes: number of whole episodes in a batch, a multiple of the number of environments. All environments are
        reset before each batch and contribute the same number of episodes
    :param return_steps: look-ahead of ``"n_step"``; only with that estimator
    :param discount_gradient: weight step t by ``gamma^t``, as in the gradient of the discounted objective (Sutton et al.
        2000, theorem 1). Commonly omitted, although discounting makes late states count less
    :param n_value_updates: critic steps per batch with the critic's own optimizer, 10 if not given; 0: joint loss with the
        policy, the default if ``vf_coef`` is given
    :param value_learning_rate: learning rate of the critic: constant, schedule or ``"lin_1e-3"``; ``learning_rate`` if not
        given
    :param value_batch_size: minibatch size of a critic step, sampled without replacement; the whole batch if not given
    :param critic_first: fit the critic to the new batch before the advantages are computed, instead of after the policy step.
        Biased: the critic then depends on the actions that it evaluates
    :raises ValueError: options that conflict or are out of range; an unsupported action space
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "LinearPolicy": LinearPolicy,
    }
    _joint_critic = "n_value_updates=0 and value_learning_rate=None"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float | None = None,
        ent_coef: float = 0.0,
        vf_coef: float | None = None,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        advantage_estimator: str = "gae",
        baseline: str = "value",
        n_episodes: int | None = None,
        return_steps: int | None = None,
        discount_gradient: bool = False,
        n_value_updates: int | None = None,
        value_learning_rate: float | str | Schedule | None = None,
        value_batch_size: int | None = None,
        critic_first: bool = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]  # resolved in _setup_model; None means whole episodes
            gamma=gamma,
            gae_lambda=gae_lambda,  # type: ignore[arg-type]  # None unless the estimator uses it
            ent_coef=ent_coef,
            vf_coef=vf_coef,  # type: ignore[arg-type]  # None unless there is a joint loss
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None: no clipping
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.normalize_advantage = normalize_advantage
        self.advantage_estimator = advantage_estimator
        self.baseline = baseline
        self.n_episodes = n_episodes
        self.return_steps = return_steps
        self.discount_gradient = discount_gradient
        self.n_value_updates = n_value_updates
        self.value_learning_rate = value_learning_rate
        self.value_batch_size = value_batch_size
        self.critic_first = critic_first
        self.value_optimizer = None
        if _init_setup_model:
            self._setup_model()
            check_environments(self)

    def _setup_model(self) -> None:
        check_options(self)
        self.n_steps = resolve_n_steps(self)
        super()._setup_model()

    def _check_environments(self) -> None:
        check_environments(self)

    def learn(
        self: SelfVPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "VPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfVPG:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def train(self) -> None:
        """Update policy and critic with the collected batch."""
        buffer = self.rollout_buffer
        self._update_learning_rates()
        if self.uses_critic:
            variance = explained_variance(buffer.select(buffer.values), buffer.select(buffer.returns))
            self.logger.record("train/explained_variance", variance)
        if self.critic_first:
            self._fit_critic(buffer)
            buffer.has_values = False
            self._compute_advantages(buffer)
        self._fit_policy(buffer)
        if self.resolved_n_value_updates > 0 and not self.critic_first:
            self._fit_critic(buffer)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def _fit_policy(self, buffer: PolicyGradientBuffer) -> None:
        """One gradient step of the policy and, with the joint loss, of the critic."""
        batch = self._batch(buffer)
        if self.baseline == "optimal":
            step = gradient_estimates.set_optimal_baseline_gradient(self, batch, buffer)
            self._apply(self, [self.policy.optimizer], step.grad_norm, "policy gradient")
        else:
            joint = self.uses_critic and self.resolved_n_value_updates == 0
            step = self._update_policy(batch, buffer.tensor(buffer.select(buffer.returns)) if joint else None)
        new_log_prob = self._steps().action_log_prob(batch)
        self.logger.record("train/grad_norm", step.grad_norm)
        self.logger.record("train/weight_std", float(buffer.select(buffer.advantages).std()))
        self.logger.record("train/approx_kl", losses.approximate_kl(step.log_prob, new_log_prob))
        self.logger.record("train/entropy_loss", step.entropy_loss / (batch.scale * len(new_log_prob)))
        self.logger.record("train/policy_loss", step.policy_loss)
        if step.value_loss is not None:
            self.logger.record("train/value_loss", step.value_loss)

    def _fit_critic(self, buffer: PolicyGradientBuffer) -> None:
        """Fit the critic to the returns of the batch with ``n_value_updates`` steps of its own optimizer."""
        observations, targets = buffer.samples().observations, buffer.tensor(buffer.select(buffer.returns))
        minibatches = _minibatches(len(targets), self.value_batch_size, self.resolved_n_value_updates)
        value_losses = [self._update_critic(index_observations(observations, rows), targets[rows]) for rows in minibatches]
        self.logger.record("train/value_loss", float(np.mean(value_losses)))

    def estimate_gradient(self, n_batches: int) -> npt.NDArray[np.float64]:
        """
        Independent estimates of the policy gradient at the current parameters, in ascent direction, each from ``n_episodes``
        fresh episodes, with the weights and the loss that training uses.

        They estimate the gradient of ``E[sum_t gamma^t r_t]`` for ``advantage_estimator="total_return"`` or
        ``discount_gradient=True``, otherwise ``E[sum_t grad log pi(a_t | s_t) sum_{t'>=t} gamma^(t'-t) r_t']``, which for
        ``gamma < 1`` is not the gradient of any objective. Entropy bonus, value loss and gradient clipping are left out.
        Parameters, optimizers, statistics and ``num_timesteps`` do not change; the statistics of a ``VecNormalize`` wrapper
        are frozen during the call, and the environments are reset afterwards.

        :param n_batches: number of estimates
        :return: ``[n_batches, n_parameters]``, in the order of ``policy.parameters()``, zero for parameters that do not affect
            the policy
        :raises ValueError: without ``n_episodes``, with ``normalize_advantage``, without environment, or ``n_batches < 1``
        """
        return gradient_estimates.estimate_gradient(self, n_batches)

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is learned."""
        return self.baseline == "value"

    @property
    def resolved_n_value_updates(self) -> int:
        """Number of critic steps per batch; 0 without a critic or with the joint loss."""
        return resolve_n_value_updates(self)

    @property
    def _critic_has_own_optimizer(self) -> bool:
        return self.resolved_n_value_updates > 0 or self.value_learning_rate is not None

    # ---- weights of the score function -------------------------------------------------------------------------------------

    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        rewards, ends = buffer.rewards, (buffer.terminated, buffer.truncated)
        if self.advantage_estimator == "total_return":
            return returns.total_returns(rewards, *ends, self.gamma)
        if self.advantage_estimator == "reward_to_go":
            return returns.reward_to_go(rewards, *ends, self.gamma, buffer.next_values if self.uses_critic else None)
        if self.advantage_estimator == "n_step":
            assert self.return_steps is not None
            return returns.n_step_returns(rewards, buffer.next_values, *ends, self.gamma, self.return_steps)
        lambda_ = GAE_LAMBDA if self.gae_lambda is None else self.gae_lambda
        return returns.lambda_returns(rewards, buffer.next_values, *ends, self.gamma, lambda_)

    def _baseline_values(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """Baseline subtracted from the returns, ``[T, N]``; the optimal baseline is applied to the gradient instead."""
        if self.uses_critic:
            return buffer.values
        result = np.zeros_like(buffer.rewards)
        if self.baseline == "mean":
            assert self.n_episodes is not None
            used_returns, episodes = buffer.select(buffer.returns), buffer.episodes()
            if self.advantage_estimator == "total_return":
                # Each episode counts once, regardless of its length: take the return of its first step.
                first_steps = np.unique(episodes, return_index=True)[1]
                result[buffer.used] = baselines.leave_one_out_mean_per_episode(used_returns[first_steps])[episodes]
            else:
                result[buffer.used] = baselines.leave_one_out_mean(used_returns, episodes, self.n_episodes)
        return result

    def _batch(self, buffer: PolicyGradientBuffer) -> Batch:
        weights = buffer.select(buffer.advantages)
        if self.normalize_advantage:
            weights = baselines.standardize(weights)
        weights = weights * self._discounts(buffer)
        scale = 1 / (len(weights) if self.n_episodes is None else self.n_episodes)
        return Batch(*buffer.samples(), buffer.tensor(weights), scale)

    def _discounts(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """``gamma^t`` with ``discount_gradient``, otherwise ones, ``[S]``."""
        if not self.discount_gradient:
            return np.ones(buffer.n_used, dtype=buffer.rewards.dtype)
        discounts: FloatArray = (self.gamma ** buffer.select(buffer.episode_steps)).astype(buffer.rewards.dtype)
        return discounts


def _minibatches(n_samples: int, batch_size: int | None, n_batches: int) -> Iterator[th.Tensor | slice]:
    """Row indices of each minibatch; every sample is drawn once before any is drawn again."""
    if batch_size is None or batch_size >= n_samples:
        for _ in range(n_batches):
            yield slice(None)
        return
    queue = th.randperm(n_samples, device="cpu")
    for _ in range(n_batches):
        if len(queue) < batch_size:
            queue = th.cat([queue, th.randperm(n_samples, device="cpu")])
        yield queue[:batch_size]
        queue = queue[batch_size:]
