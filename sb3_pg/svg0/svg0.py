"""Stochastic value gradients of order zero."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_pg.common.distributions import GaussianActions, inverse_tanh, uniform_samples
from sb3_pg.common.off_policy import OffPolicyBase, Record
from sb3_pg.estimators import returns
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast import Accelerated
from sb3_pg.svg0.buffers import SequenceDictReplayBuffer, SequenceReplayBuffer, SequenceSamples, importance_ratios
from sb3_pg.svg0.fast import FastSVG0
from sb3_pg.svg0.policies import CnnPolicy, GaussianActor, MlpPolicy, MultiInputPolicy, QNetworks, SVG0Policy
from sb3_pg.svg0.validation import (
    NETWORK_OPTIONS,
    initial_ent_coef,
    resolve_correction,
    resolve_options,
    resolve_segment_length,
    resolve_target_entropy,
)

SelfSVG0 = TypeVar("SelfSVG0", bound="SVG0")
Array = npt.NDArray[Any]


def pathwise_loss(q_values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``-sum_s w_s mean_z Q(s, a(s, z))``, whose gradient through the actions is the value gradient of a reparametrised policy
    (Heess et al. 2015, eq. 9 with the critic in place of the return; Silver et al. 2014 where the policy has no noise).

    :param q_values: ``[K, S]``, values of K actions in each state, with gradient through the actions
    :param weights: ``[S]``, weight of each state; ``1 / S`` makes it a mean
    :return: scalar
    """
    return -(q_values.mean(dim=0) * weights).sum()


def likelihood_ratio_loss(log_prob: th.Tensor, q_values: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``-sum_s w_s mean_a log pi(a | s) Q(s, a)``, whose gradient has the same expectation as that of :func:`pathwise_loss`,
    without the derivative of Q (the score function; Degris et al. 2012).

    :param log_prob: ``[K, S]``, log-probability of K constant actions drawn from the policy in each state, with gradient
    :param q_values: ``[K, S]``, values of these actions, treated as constants
    :param weights: ``[S]``, weight of each state
    :return: scalar
    """
    return -((log_prob * q_values.detach()).mean(dim=0) * weights).sum()


def critic_loss(q_values: th.Tensor, targets: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    ``1/2 sum_i sum_s w_s (Q_i(s, a) - target_s)^2``.

    :param q_values: ``[C, S]``, values of each critic, with gradient
    :param targets: ``[S]``, targets, treated as constants
    :param weights: ``[S]``, weight of each step; ``1 / S`` makes it a mean
    :return: scalar
    """
    return 0.5 * ((q_values - targets).square() * weights).sum()


def temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float, weights: th.Tensor) -> th.Tensor:
    """
    ``-log(alpha) (sum_s w_s mean_a log pi(a | s) + target)``: raises the weight of the entropy bonus while the entropy is
    below its target (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", eq. 18).

    :param log_ent_coef: logarithm of alpha, ``[1]``, with gradient
    :param log_prob: ``[K, S]``, log-probability of actions drawn from the policy
    :param target_entropy: target entropy in nats
    :param weights: ``[S]``, weight of each state, summing to 1
    :return: scalar
    """
    return -(log_ent_coef * ((log_prob.detach().mean(dim=0) + target_entropy) * weights).sum()).sum()


class Draws(NamedTuple):
    """
    Fresh actions of the current policy in the states of a minibatch.

    :param policy: distribution of the actions
    :param samples: ``[K, S, A]``, reparametrised
    :param log_prob: ``[K, S]``, log-probability of the actions; ``None`` without an entropy bonus
    """

    policy: GaussianActions
    samples: th.Tensor
    log_prob: th.Tensor | None


class SVG0(Accelerated, OffPolicyBase, fast_path=FastSVG0):
    """
    Stochastic value gradients SVG(0) (Heess et al. 2015, https://arxiv.org/abs/1510.09142): the actions of a Gaussian policy
    are functions of the state and of noise, ``a = mean(s) + L(s) z``, and the policy ascends ``mean_z Q(s, a(s, z))`` through
    the gradient of a critic, which is fitted by TD(lambda) along stored sequences.

    With ``td_lambda=0``, two critics, ``ent_coef="auto"`` and ``policy_kwargs=dict(min_std=0)`` it is SAC; as the noise
    vanishes, its actor update becomes that of DDPG.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class
    :param env: environment or its id
    :param learning_rate: learning rate; a constant or a function of the remaining progress (from 1 to 0)
    :param buffer_size: capacity of the replay buffer in steps; ``None``: one million. Replay only
    :param learning_starts: number of uniformly random steps before learning starts; ``None``: 100. Replay only
    :param batch_size: number of steps in a minibatch, a multiple of ``segment_length``; ``None``: 256. Replay only
    :param tau: soft update coefficient of the target critics (Polyak averaging); with 1 they equal the critics
    :param gamma: discount factor
    :param train_freq: number of steps of each environment between updates, or ``(1, "episode")``; on-policy: rollout length
    :param gradient_steps: number of updates after each such collection; -1: as many as steps were collected
    :param action_noise: noise added to the policy's actions; their density is then unknown, which rules out Retrace
    :param replay_buffer_class: subclass of one of the classes in :mod:`sb3_pg.svg0.buffers`
    :param replay_buffer_kwargs: further keyword arguments of that class
    :param optimize_memory_usage: must be False, see :mod:`sb3_pg.svg0.buffers`
    :param n_steps: must be 1, use ``td_lambda`` instead
    :param policy_kwargs: keyword arguments of the policy, such as ``net_arch``, ``log_std_init`` and ``min_std``
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param tensorboard_log: directory of the TensorBoard logs
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param device: device of the networks
    :param seed: seed of all random generators
    :param use_sde: must be False: segments consist of independent draws
    :param _init_setup_model: whether to build the networks on construction
    :param gradient_estimator: ``"pathwise"``, or ``"likelihood_ratio"`` (score function: higher variance, no derivative of Q)
    :param n_action_samples: number of actions sampled per state in the actor update
    :param covariance: ``"isotropic"``, ``"diagonal"`` or ``"full"``
    :param state_dependent_covariance: whether the covariance depends on the state
    :param squash_output: whether to squash actions by tanh; otherwise they are Gaussian, clipped only for the environment
    :param td_lambda: lambda of the critic's targets; 0: one-step TD
    :param segment_length: number of steps of a replayed segment; ``None``: 8, or 1 if ``td_lambda=0``. Replay only
    :param off_policy_correction: ``"retrace"`` or ``"none"``; ``None``: Retrace with replay, ``td_lambda > 0`` and no noise
    :param on_policy: whether to update policy and critic with each ``train_freq`` steps and then discard these
    :param n_critics: number of critics; the minimum of their values is used
    :param ent_coef: weight of the entropy bonus; ``"auto"`` or ``"auto_0.1"`` to learn it, starting from 1 or 0.1
    :param target_entropy: target of an automatic ``ent_coef``; ``None``: minus the number of action dimensions
    :param qf_learning_rate: learning rate of the critics, a schedule or ``"lin_1e-3"``; ``None``: ``learning_rate``
    :param bf16: whether to update in bfloat16, which halves the time of matrix products on processors that support it
    :raises ValueError: options that are mutually exclusive or out of range; an unsupported action space
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    if_not_finite = "normalise rewards"
    policy: SVG0Policy
    actor: GaussianActor
    critic: QNetworks
    critic_target: QNetworks
    replay_buffer: SequenceReplayBuffer | SequenceDictReplayBuffer | None
    log_ent_coef: th.Tensor | None  # None: the coefficient is fixed
    ent_coef_optimizer: th.optim.Optimizer | None

    def __init__(
        self,
        policy: str | type[SVG0Policy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int | None = None,
        learning_starts: int | None = None,
        batch_size: int | None = None,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        device: th.device | str = "auto",
        seed: int | None = None,
        use_sde: bool = False,
        _init_setup_model: bool = True,
        *,
        gradient_estimator: str = "pathwise",
        n_action_samples: int = 1,
        covariance: str = "diagonal",
        state_dependent_covariance: bool = True,
        squash_output: bool = True,
        td_lambda: float = 0.9,
        segment_length: int | None = None,
        off_policy_correction: str | None = None,
        on_policy: bool = False,
        n_critics: int = 1,
        ent_coef: str | float = 0.0,
        target_entropy: str | float | None = None,
        qf_learning_rate: float | str | Schedule | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,  # type: ignore[arg-type]  # resolved in _setup_model
            learning_starts=learning_starts,  # type: ignore[arg-type]  # resolved in _setup_model
            batch_size=batch_size,  # type: ignore[arg-type]  # resolved in _setup_model
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            use_sde=False,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.use_sde = use_sde  # not above, where SB3's error message would blame the action space
        self.gradient_estimator = gradient_estimator
        self.n_action_samples = n_action_samples
        self.covariance = covariance
        self.state_dependent_covariance = state_dependent_covariance
        self.squash_output = squash_output
        self.td_lambda = td_lambda
        self.segment_length = segment_length
        self.off_policy_correction = off_policy_correction
        self.on_policy = on_policy
        self.n_critics = n_critics
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.qf_learning_rate = qf_learning_rate
        self.bf16 = bf16
        self._automatic: dict[str, int] = {}
        if _init_setup_model:
            self._setup_model()

    # ---- the update --------------------------------------------------------------------------------------------------------

    def _update(self, batch: SequenceSamples) -> Record:
        # With replay, the critics are updated first, as in SAC and DDPG; on-policy, the actor is.
        draws = self._draw(batch)
        record = {"std": draws.policy.stddev.detach().mean()}
        ent_coef = self._ent_coef_step(draws.log_prob, batch.weights, record)
        if self.on_policy:
            self._actor_step(batch, draws, ent_coef, record)
        self._critic_step(batch, self._targets(batch, draws, ent_coef, record), record)
        if not self.on_policy:
            self._actor_step(batch, draws, ent_coef, record)
        self._update_targets()
        return record

    def _draw(self, batch: SequenceSamples) -> Draws:
        policy = self.actor.distribution(batch.observations)
        samples = policy.rsample(self.n_action_samples)  # u = mean(s) + L(s) z
        return Draws(policy, samples, policy.log_prob(samples) if self.uses_entropy else None)

    @th.no_grad()
    def _targets(self, batch: SequenceSamples, draws: Draws, ent_coef: th.Tensor, record: Record) -> th.Tensor:
        """TD(lambda) targets of the critics, ``[S]``."""
        next_policy = self.actor.distribution(batch.next_observations)
        next_samples = next_policy.rsample(1)
        # V' = Q(s', a') with a new sample a' ~ pi
        rows = [self.critic_target.min_q(batch.next_observations, next_policy.actions(next_samples))[0]]
        if self.uses_entropy:
            rows.append(-ent_coef * next_policy.log_prob(next_samples)[0])
        if self.resolved_correction == "retrace":
            rows.append(self.critic_target.min_q(batch.observations, draws.policy.actions(batch.samples)))
            rows.append(draws.policy.sample_log_prob(batch.samples))
        return self._lambda_returns(batch, rows, record)

    def _lambda_returns(self, batch: SequenceSamples, rows: list[th.Tensor], record: Record) -> th.Tensor:
        """``rows``, ``[S]`` each: next values; their entropy bonus, if any; for Retrace, values and densities of samples."""
        arrays = th.stack(rows).cpu().numpy().reshape(-1, *batch.rewards.shape)  # one transfer, [., T, B]
        rewards, ends = batch.rewards, (batch.terminated, batch.truncated)
        if self.uses_entropy:  # as part of the reward: the recursions stay the same, and lambda = 0 gives the target of SAC
            rewards = rewards + np.float32(self.gamma) * arrays[1] * ~batch.terminated
        if self.resolved_correction == "retrace":  # Munos et al. 2016, eq. 3 and 4
            ratios = importance_ratios(arrays[-1], batch.log_probs)
            record["importance_ratio"] = th.as_tensor(ratios.mean(), device=self.device)
            targets = returns.retrace_returns(rewards, arrays[-2], arrays[0], ratios, *ends, self.gamma, self.td_lambda)
        else:
            targets = returns.lambda_returns(rewards, arrays[0], *ends, self.gamma, self.td_lambda)
        return th.as_tensor(targets, device=self.device).flatten()

    def _critic_step(self, batch: SequenceSamples, targets: th.Tensor, record: Record) -> None:
        actions = th.tanh(batch.samples) if self.squash_output else batch.samples
        q_values = th.cat(self.critic(batch.observations, actions), dim=1)  # [S, C]
        loss = critic_loss(q_values.t(), targets, batch.weights)
        self._descend(self.critic.optimizer, loss, "critic_loss")
        record["critic_loss"] = loss.detach()

    def _actor_step(self, batch: SequenceSamples, draws: Draws, ent_coef: th.Tensor, record: Record) -> None:
        loss = self._actor_loss(batch, draws, ent_coef)
        self._descend(self.actor.optimizer, loss, "actor_loss")
        record["actor_loss"] = loss.detach()

    def _actor_loss(self, batch: SequenceSamples, draws: Draws, ent_coef: th.Tensor) -> th.Tensor:
        if self.gradient_estimator == "pathwise":
            q_values = self.critic.min_q(batch.observations, draws.policy.actions(draws.samples))
            loss = pathwise_loss(q_values, batch.weights)
        else:
            constants = draws.samples.detach()
            q_values = self.critic.min_q(batch.observations, draws.policy.actions(constants))
            # The density of the samples: that of the actions differs only by a constant factor.
            loss = likelihood_ratio_loss(draws.policy.sample_log_prob(constants), q_values, batch.weights)
        if draws.log_prob is None:
            return loss
        # Through the samples: at a constant sample the expected gradient of log pi is zero.
        return loss + (ent_coef * draws.log_prob.mean(dim=0) * batch.weights).sum()

    def _ent_coef_step(self, log_prob: th.Tensor | None, weights: th.Tensor, record: Record) -> th.Tensor:
        """Update the coefficient, and return its value before the update."""
        if self.log_ent_coef is None or log_prob is None:
            return th.full((1,), float(self.ent_coef), device=self.device)
        ent_coef = self.log_ent_coef.detach().exp()
        assert self.ent_coef_optimizer is not None
        loss = temperature_loss(self.log_ent_coef, log_prob, self._target_entropy, weights)
        self._descend(self.ent_coef_optimizer, loss, "ent_coef_loss")
        record |= {"ent_coef": ent_coef.squeeze(), "ent_coef_loss": loss.detach()}
        return ent_coef

    def _target_networks(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return [(self.critic, self.critic_target)]

    # ---- experience --------------------------------------------------------------------------------------------------------

    def _sample_batch(self, batch_size: int) -> SequenceSamples:
        assert self.replay_buffer is not None
        if self.on_policy:
            return self.replay_buffer.whole(self._vec_normalize_env)
        length = self.resolved_segment_length
        return self.replay_buffer.sample_segments(batch_size // length, length, self._vec_normalize_env)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # The environments may be reset or replaced before the next step. A cut only shortens the look-ahead.
        assert self.replay_buffer is not None
        self.replay_buffer.cut()
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        assert self.replay_buffer is not None
        if self.on_policy:
            self.replay_buffer.reset()
        return super().collect_rollouts(env, *args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Array, Array]:
        """Actions for the environments, and the Gaussian samples from which they were computed."""
        assert isinstance(self.action_space, spaces.Box)
        if self.num_timesteps < learning_starts:
            samples, log_probs = uniform_samples(n_envs, int(np.prod(self.action_space.shape)), self.squash_output)
        else:
            samples, log_probs = self._policy_samples()
        scaled = np.tanh(samples) if self.squash_output else samples
        if action_noise is not None:
            scaled = scaled + action_noise().reshape(samples.shape).astype(np.float32)
            samples = inverse_tanh(scaled) if self.squash_output else scaled
            log_probs = np.full_like(log_probs, np.nan)
        self._log_probs = log_probs
        actions = self.policy.unscale_action(scaled.reshape(-1, *self.action_space.shape))
        # Clip after scaling, whose rounding errors may exceed the bounds.
        return np.clip(actions, self.action_space.low, self.action_space.high), samples

    def _policy_samples(self) -> tuple[FloatArray, FloatArray]:
        """Samples of the policy, ``[N, A]``, and their log-density, ``[N]``."""
        fast = self._fast_path()
        if fast is not None and (drawn := fast.sample(self._last_obs)) is not None:
            return drawn  # type: ignore[no-any-return]  # a pair
        obs, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]  # after a reset
        return self.actor.sample(obs)

    def _store_transition(self, replay_buffer: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
        super()._store_transition(replay_buffer, *args, **kwargs)
        assert isinstance(replay_buffer, (SequenceReplayBuffer, SequenceDictReplayBuffer))
        replay_buffer.set_log_probs(self._log_probs)

    def learn(
        self: SelfSVG0,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SVG0",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSVG0:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_model(self) -> None:
        self._automatic = resolve_options(self, self._automatic)
        if self.replay_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = SequenceDictReplayBuffer if is_dict else SequenceReplayBuffer
        given = self.policy_kwargs
        self.policy_kwargs = {**given, **{name: getattr(self, name) for name in NETWORK_OPTIONS}}
        super()._setup_model()
        self.policy_kwargs = given
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self._setup_entropy()
        self._check_precision()

    def _setup_entropy(self) -> None:
        initial = initial_ent_coef(self.ent_coef)
        self.log_ent_coef = self.ent_coef_optimizer = None
        if initial is not None:
            self.log_ent_coef = th.full((1,), initial, device=self.device).log().requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        self._target_entropy = resolve_target_entropy(self)

    @property
    def uses_entropy(self) -> bool:
        """Whether there is an entropy bonus."""
        return self.log_ent_coef is not None or float(self.ent_coef) != 0

    @property
    def resolved_segment_length(self) -> int:
        """Number of steps of a replayed segment."""
        return resolve_segment_length(self)

    @property
    def resolved_correction(self) -> str:
        """The off-policy correction in use: ``"none"`` or ``"retrace"``."""
        return resolve_correction(self)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [*super()._optimizers(), *([self.ent_coef_optimizer] if self.ent_coef_optimizer else [])]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic_target", "_log_probs"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.log_ent_coef is None:
            return state_dicts, []
        return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]
