"""Stochastic value gradients of order zero."""

import io
import math
import pathlib
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TensorDict
from stable_baselines3.common.utils import get_parameters_by_name
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.common import losses
from sb3_pg.common.distributions import GaussianActions, log_tanh_derivative
from sb3_pg.common.off_policy import OffPolicyBase
from sb3_pg.estimators import returns
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast.optimizers import descend, take_step
from sb3_pg.fast.written_out import Remembered, fit_critics, lowest_values
from sb3_pg.svg0 import fast as written_out
from sb3_pg.svg0.buffers import SequenceDictReplayBuffer, SequenceReplayBuffer, SequenceSamples
from sb3_pg.svg0.numpy_actor import NumpyActor, numpy_actor
from sb3_pg.svg0.policies import CnnPolicy, GaussianActor, MlpPolicy, MultiInputPolicy, QNetworks, SVG0Policy
from sb3_pg.svg0.validation import (
    NETWORK_OPTIONS,
    automatic_values,
    check_options,
    initial_ent_coef,
    resolve_correction,
    resolve_segment_length,
)

SelfSVG0 = TypeVar("SelfSVG0", bound="SVG0")
Array = npt.NDArray[Any]

# tanh of anything larger is 1 in float32.
LARGEST_TANH = 1 - 2**-24


class _Draws(NamedTuple):
    """
    Fresh actions of the current policy in the states of a minibatch.

    :param policy: distribution of the actions
    :param samples: ``[K, S, A]``, reparametrised
    :param log_prob: ``[K, S]`` of the actions; ``None`` where nobody asks for the entropy
    :param run: how they came about, where gradients are written out
    """

    policy: GaussianActions
    samples: th.Tensor
    log_prob: th.Tensor | None
    run: written_out.ActorRun | None = None


class SVG0(OffPolicyBase):
    """
    Stochastic value gradients SVG(0) (Heess et al. 2015, https://arxiv.org/abs/1510.09142): the actions of a Gaussian policy
    are written as functions of the state and of noise, ``a = mean(s) + L(s) z``, and the policy ascends
    ``mean_z Q(s, a(s, z))``, with the gradient of a critic that is fitted by TD(lambda) along stored sequences.

    With ``td_lambda=0``, two critics, ``ent_coef="auto"`` and ``policy_kwargs=dict(min_std=0)`` it is SAC; as the noise goes
    to zero, its actor update becomes that of DDPG.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class
    :param env: environment, or its id
    :param learning_rate: learning rate of all networks; constant or function of the remaining progress (from 1 to 0)
    :param buffer_size: number of steps that the replay buffer holds, one million if not given; only with replay
    :param learning_starts: number of steps with uniformly random actions before learning starts, 100 if not given; only with
        replay
    :param batch_size: number of steps in a minibatch, 256 if not given, a multiple of ``segment_length``; only with replay
    :param tau: how far the target critics move towards the critics after each update; 1: there are none in effect
    :param gamma: discount factor
    :param train_freq: update after that many steps of each environment, or ``(1, "episode")``; the length of a rollout with
        ``on_policy=True``
    :param gradient_steps: number of updates then; -1: as many as steps were taken
    :param action_noise: noise on top of the policy's own; it makes the density of the actions unknown, so not with Retrace
    :param replay_buffer_class: subclass of :class:`sb3_pg.svg0.buffers.SequenceReplayBuffer` (``SequenceDictReplayBuffer`` for
        dictionary observations)
    :param replay_buffer_kwargs: further keyword arguments of that class
    :param optimize_memory_usage: must be False, see there
    :param n_steps: must be 1, use ``td_lambda`` instead
    :param policy_kwargs: keyword arguments of the policy, such as ``net_arch``, ``log_std_init`` and ``min_std``, the lower
        bound of the standard deviations
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param tensorboard_log: folder of the tensorboard logs
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param device: device of the networks
    :param seed: seed of all random generators
    :param use_sde: must be False: segments are made of independent draws
    :param _init_setup_model: whether to build the networks at once
    :param gradient_estimator: ``"pathwise"``, or ``"likelihood_ratio"`` (the score function), which estimates the same without
        the derivative of Q, with more variance
    :param n_action_samples: number of draws of the noise per state in the actor step
    :param covariance: ``"isotropic"``, ``"diagonal"`` or ``"full"``
    :param state_dependent_covariance: whether the covariance depends on the state
    :param squash_output: tanh; otherwise a plain Gaussian, clipped at the bounds by the environment alone
    :param td_lambda: lambda of the critic's targets; 0: one-step TD
    :param segment_length: number of steps of the segments along which they are computed, 8 if not given (1 if
        ``td_lambda=0``); only with replay
    :param off_policy_correction: ``"retrace"`` or ``"none"``; by default Retrace where there are traces to correct: with
        replay, ``td_lambda > 0`` and no ``action_noise``
    :param on_policy: collect ``train_freq`` steps, update policy and critic with all of them, forget them
    :param n_critics: number of critics; the smallest value counts
    :param ent_coef: weight of the entropy bonus; ``"auto"`` or ``"auto_0.1"`` to adapt it, from 1 or 0.1 on
    :param target_entropy: entropy that an automatic ``ent_coef`` aims at; minus the number of action dimensions if not given
    :param bf16: matrix products of the updates in bfloat16: half the time on processors that have instructions for it, and a
        little less exact
    :raises ValueError: options that exclude one another or are out of range; an unsupported action space
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: SVG0Policy
    actor: GaussianActor
    critic: QNetworks
    critic_target: QNetworks
    replay_buffer: SequenceReplayBuffer | SequenceDictReplayBuffer | None
    # None: the coefficient is fixed.
    log_ent_coef: th.Tensor | None
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
        bf16: bool = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,  # type: ignore[arg-type]  # resolved in _setup_model
            learning_starts=learning_starts,  # type: ignore[arg-type]  # likewise
            batch_size=batch_size,  # type: ignore[arg-type]  # likewise
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
        self.use_sde = use_sde  # not above, where SB3 has a message of its own that blames the action space
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
        self.bf16 = bf16
        self._automatic: dict[str, int] = {}
        if _init_setup_model:
            self._setup_model()

    # ---- construction ------------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        # What was resolved for a saved model may have to be resolved anew, for another number of environments.
        for name, value in self._automatic.items():
            if getattr(self, name) == value:
                setattr(self, name, None)
        check_options(self)
        self._automatic = {name: value for name, value in automatic_values(self).items() if getattr(self, name) is None}
        self.__dict__.update(self._automatic)
        if self.replay_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = SequenceDictReplayBuffer if is_dict else SequenceReplayBuffer
        given = self.policy_kwargs
        self.policy_kwargs = {**given, **{name: getattr(self, name) for name in NETWORK_OPTIONS}}
        super()._setup_model()
        self.policy_kwargs = given
        self._create_aliases()
        self._setup_entropy()
        self._check_precision()

    def _create_aliases(self) -> None:
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self._short_cuts = Remembered(_short_cuts_of)
        # Gradients are asked for by name: the actor step must not reach the critic's weights.
        self._actor_parameters, self._critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())
        networks = (self.critic_target, self.critic)
        self._averaged: list[list[th.Tensor]] = [list(network.parameters()) for network in networks]
        self._copied: list[list[th.Tensor]] = [list(get_parameters_by_name(network, ["running_"])) for network in networks]

    def _setup_entropy(self) -> None:
        initial = initial_ent_coef(self.ent_coef)
        if initial is None:
            self.log_ent_coef = self.ent_coef_optimizer = None
            self._fixed_ent_coef = th.tensor([float(self.ent_coef)], device=self.device)
        else:
            self.log_ent_coef = th.full((1,), initial, device=self.device).log().requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        assert self.action_space.shape is not None
        automatic = self.target_entropy in (None, "auto")
        self._target_entropy = -float(np.prod(self.action_space.shape)) if automatic else float(self.target_entropy)  # type: ignore[arg-type]  # a number

    @property
    def uses_entropy(self) -> bool:
        """Whether there is an entropy bonus."""
        return self.log_ent_coef is not None or float(self.ent_coef) != 0

    @property
    def resolved_segment_length(self) -> int:
        """Number of steps of a segment of replayed experience."""
        return resolve_segment_length(self)

    @property
    def resolved_correction(self) -> str:
        """The off-policy correction in use: ``"none"`` or ``"retrace"``."""
        return resolve_correction(self)

    # ---- experience --------------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # The environments may be reset or replaced before the next step; a cut costs nothing but the look-ahead.
        assert self.replay_buffer is not None
        self.replay_buffer.cut()
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        As in SB3; on-policy, earlier experience is forgotten first.

        :param env: training environments
        :param args: as in SB3
        :param kwargs: likewise
        :return: number of steps and episodes, and whether to go on
        """
        assert self.replay_buffer is not None
        if self.on_policy:
            self.replay_buffer.reset()
        rollout = super().collect_rollouts(env, *args, **kwargs)
        if not rollout.continue_training:
            self._forget_observation()
        return rollout

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Array, Array]:
        """
        :return: actions for the environments, and the samples of the Gaussian that they stand for
        """
        if self.num_timesteps < learning_starts:
            samples, log_probs = self._uniform_samples(n_envs)
        else:
            samples, log_probs = self._policy_samples()
        scaled = np.tanh(samples) if self.squash_output else samples
        if action_noise is not None:
            scaled = scaled + action_noise().reshape(samples.shape).astype(np.float32)
            samples = _inverse_tanh(scaled) if self.squash_output else scaled
            log_probs = np.full_like(log_probs, np.nan)
        self._log_probs = log_probs
        assert isinstance(self.action_space, spaces.Box)
        actions = self.policy.unscale_action(scaled.reshape(-1, *self.action_space.shape))
        # Afterwards, since scaling rounds: the environment gets nothing beyond its bounds.
        return np.clip(actions, self.action_space.low, self.action_space.high), samples

    def _uniform_samples(self, n_envs: int) -> tuple[FloatArray, FloatArray]:
        """Actions that are uniform within the bounds, as samples ``[N, A]``, and the log-density of these ``[N]``."""
        assert self.action_space.shape is not None
        shape = (n_envs, int(np.prod(self.action_space.shape)))
        scaled = np.random.uniform(-1, 1, size=shape).astype(np.float32)  # noqa: NPY002 # the generator that SB3 seeds
        log_probs = np.full(n_envs, -scaled.shape[1] * np.log(2), dtype=np.float32)
        if not self.squash_output:
            return scaled, log_probs
        samples = _inverse_tanh(scaled)
        return samples, log_probs + log_tanh_derivative(th.as_tensor(samples)).sum(dim=1).numpy()

    def _policy_samples(self) -> tuple[FloatArray, FloatArray]:
        """Samples of the policy ``[N, A]``, and their log-density ``[N]``."""
        assert self._last_obs is not None
        _, actor = self._look_for_short_cuts()
        if actor is not None:
            assert isinstance(self._last_obs, np.ndarray)
            samples, log_probs = actor.sample(self._last_obs)
            if np.isfinite(samples).all():
                return samples, log_probs
            # Otherwise what follows says what is wrong.
        with th.no_grad():
            obs, _ = self.policy.obs_to_tensor(self._last_obs)
            distribution = self.actor.distribution(obs)
            drawn = distribution.rsample(1)
            samples = drawn[0].cpu().numpy()
            if not np.isfinite(samples).all():
                part = "mean" if not distribution.mean.isfinite().all() else "covariance (its Cholesky factor)"
                raise ValueError(f"the {part} of the policy is not finite: lower the learning rate, or normalise rewards")
            return samples, distribution.sample_log_prob(drawn)[0].cpu().numpy()

    def _store_transition(self, replay_buffer: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
        super()._store_transition(replay_buffer, *args, **kwargs)
        assert isinstance(replay_buffer, (SequenceReplayBuffer, SequenceDictReplayBuffer))
        replay_buffer.set_log_probs(self._log_probs)

    # ---- updates -----------------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Update critics and actor.

        :param gradient_steps: number of updates
        :param batch_size: number of steps in a minibatch of replayed experience
        :raises ValueError: a loss is not finite
        """
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        self._update_learning_rate(optimizers + ([self.ent_coef_optimizer] if self.ent_coef_optimizer else []))
        networks = self._written_out()
        if networks is None:
            # Linear layers and activations know no modes.
            self.policy.set_training_mode(True)
        with self._precision(), th.set_grad_enabled(networks is None):
            records = [self._update(self._next_batch(batch_size), networks) for _ in range(gradient_steps)]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        values = th.stack([value for record in records for value in record.values()]).view(len(records), -1)
        means = (values[0] if len(records) == 1 else values.mean(dim=0)).tolist()
        for name, value in zip(records[0], means, strict=True):
            if not math.isfinite(value):
                # ValueError, so that a tuning study prunes the trial.
                raise ValueError(f"the {name} is not finite ({value}): lower the learning rate, or normalise rewards")
            self.logger.record(f"train/{name}", value)

    def _next_batch(self, batch_size: int) -> SequenceSamples:
        assert self.replay_buffer is not None
        if self.on_policy:
            return self.replay_buffer.whole(self._vec_normalize_env)
        length = self.resolved_segment_length
        return self.replay_buffer.sample_segments(batch_size // length, length, self._vec_normalize_env)

    def _look_for_short_cuts(self) -> tuple[written_out.Networks | None, NumpyActor | None]:
        return self._short_cuts(self.policy, self.bf16) or (None, None)

    def _written_out(self) -> written_out.Networks | None:
        """The networks, where the gradients of the updates are written out; ``None``: autograd computes them."""
        return self._look_for_short_cuts()[0] if self.gradient_estimator == "pathwise" else None

    def _update(self, batch: SequenceSamples, networks: written_out.Networks | None = None) -> dict[str, th.Tensor]:
        """
        One step of each optimizer. Replay fits the critics first, as SAC and DDPG do; on-policy the policy goes first.

        :param networks: with them, and autograd switched off, the gradients are written out; ``None``: autograd computes them
        :return: what to log, detached
        """
        if networks is not None:
            # All see the same features: computed once.
            observations, next_observations = map(self._features, (batch.observations, batch.next_observations))
            batch = batch._replace(observations=observations, next_observations=next_observations)
        draws = self._draw(batch, networks)
        record = {"std": draws.policy.stddev.mean()}
        ent_coef = self._update_ent_coef(draws.log_prob, batch.weights, record)
        if self.on_policy:
            self._update_actor(batch, draws, ent_coef, record, networks)
        self._update_critic(batch, self._targets(batch, draws, ent_coef, record, networks), record, networks)
        if not self.on_policy:
            self._update_actor(batch, draws, ent_coef, record, networks)
        self._update_targets()
        return record if networks is not None else {name: value.detach() for name, value in record.items()}

    def _features(self, observations: th.Tensor | TensorDict) -> th.Tensor:
        assert isinstance(observations, th.Tensor)
        # Vectors are their own features; numbers of categories would become one-hot vectors.
        is_vector = isinstance(self.observation_space, spaces.Box) and observations.dim() == 2
        return observations if is_vector and observations.dtype is th.float32 else self.actor.features(observations)

    def _draw(self, batch: SequenceSamples, networks: written_out.Networks | None = None) -> _Draws:
        if networks is None:
            policy = self.actor.distribution(batch.observations)
            samples = policy.rsample(self.n_action_samples)
            return _Draws(policy, samples, policy.log_prob(samples) if self.uses_entropy else None)
        assert isinstance(batch.observations, th.Tensor) and isinstance(batch.next_observations, th.Tensor)
        # The targets come after the policy's step there.
        following = None if self.on_policy else batch.next_observations
        run = written_out.ActorRun(networks, batch.observations, self.n_action_samples, following)
        log_prob = run.policy.log_prob(run.samples) if self.uses_entropy else None
        return _Draws(run.policy, run.samples, log_prob, run)

    def _update_ent_coef(self, log_prob: th.Tensor | None, weights: th.Tensor, record: dict[str, th.Tensor]) -> th.Tensor:
        """
        :return: the coefficient as it was before the step
        """
        if self.log_ent_coef is None or log_prob is None:
            return self._fixed_ent_coef
        ent_coef = self.log_ent_coef.detach().exp()
        assert self.ent_coef_optimizer is not None
        with th.enable_grad():
            loss = losses.temperature_loss(self.log_ent_coef, log_prob, self._target_entropy, weights)
            descend(self.ent_coef_optimizer, loss, [self.log_ent_coef])
        record |= {"ent_coef": ent_coef.squeeze(), "ent_coef_loss": loss}
        return ent_coef

    @th.no_grad()
    def _targets(
        self,
        batch: SequenceSamples,
        draws: _Draws,
        ent_coef: th.Tensor,
        record: dict[str, th.Tensor],
        networks: written_out.Networks | None = None,
    ) -> th.Tensor:
        """
        TD(lambda) targets ``[S]`` of the critics.

        An entropy bonus for the next state, estimated by its fresh action, counts as part of the reward: then the same
        recursions serve, and with lambda = 0 the target is that of SAC.
        """
        following, samples = self._following(batch, draws, networks)
        next_values = self._target_values(batch.next_observations, following.actions(samples), networks)
        bonus = -ent_coef * following.log_prob(samples)[0] if self.uses_entropy else None
        corrected = self.resolved_correction == "retrace"
        if len(batch.rewards) == 1 and not corrected:
            future = next_values if bonus is None else next_values + bonus
            arrays = (batch.rewards[0], np.float32(self.gamma) * ~batch.terminated[0])
            rewards, discounts = (th.from_numpy(array).to(self.device) for array in arrays)
            return losses.td_target(rewards, discounts, future)
        return self._targets_of_segments(batch, draws.policy, next_values, bonus, corrected, record, networks)

    def _following(
        self, batch: SequenceSamples, draws: _Draws, networks: written_out.Networks | None
    ) -> tuple[GaussianActions, th.Tensor]:
        """The policy in the next states, and a sample for each, ``[1, S, A]``."""
        if networks is None:
            policy = self.actor.distribution(batch.next_observations)
            return policy, policy.rsample(1)
        if draws.run is not None and draws.run.following is not None:
            return draws.run.following
        assert isinstance(batch.next_observations, th.Tensor)
        run = written_out.ActorRun(networks, batch.next_observations, 1)
        return run.policy, run.samples

    def _targets_of_segments(
        self,
        batch: SequenceSamples,
        policy: GaussianActions,
        next_values: th.Tensor,
        bonus: th.Tensor | None,
        corrected: bool,
        record: dict[str, th.Tensor],
        networks: written_out.Networks | None,
    ) -> th.Tensor:
        """
        :param next_values: ``[S]``
        :param bonus: entropy bonus of the next states ``[S]``, or ``None``
        :param corrected: by Retrace
        """
        rows = [next_values]
        if bonus is not None:
            rows.append(bonus)
        if corrected:
            rows.append(self._target_values(batch.observations, policy.actions(batch.samples[None]), networks))
            rows.append(policy.sample_log_prob(batch.samples))
        arrays = th.stack(rows).cpu().numpy().reshape(-1, *batch.rewards.shape)  # one transfer
        rewards, ends = batch.rewards, (batch.terminated, batch.truncated)
        if bonus is not None:
            rewards = rewards + np.float32(self.gamma) * arrays[1] * ~batch.terminated
        if corrected:
            ratios = _importance_ratios(arrays[-1], batch.log_probs)
            record["importance_ratio"] = th.as_tensor(np.minimum(ratios, 1).mean(), device=self.device)
            targets = returns.retrace_returns(rewards, arrays[-2], arrays[0], ratios, *ends, self.gamma, self.td_lambda)
        else:
            targets = returns.lambda_returns(rewards, arrays[0], *ends, self.gamma, self.td_lambda)
        return th.as_tensor(targets, device=self.device).flatten()

    def _target_values(
        self, observations: th.Tensor | TensorDict, actions: th.Tensor, networks: written_out.Networks | None
    ) -> th.Tensor:
        """
        :param actions: ``[1, S, A]``
        :return: the smallest value of the target critics, ``[S]``
        """
        if networks is None:
            return self._lowest(self.critic_target, observations, actions)[0]
        assert isinstance(observations, th.Tensor)
        return lowest_values(networks.target_critics, written_out.with_actions(observations, actions))[:, 0]

    def _update_critic(
        self,
        batch: SequenceSamples,
        targets: th.Tensor,
        record: dict[str, th.Tensor],
        networks: written_out.Networks | None = None,
    ) -> None:
        actions = th.tanh(batch.samples) if self.squash_output else batch.samples
        if networks is None:
            q_values = self.critic.values(batch.observations, actions[None])[:, 0]
            loss = losses.critic_loss(q_values, targets, batch.weights)
            descend(self.critic.optimizer, loss, self._critic_parameters)
        else:
            assert isinstance(batch.observations, th.Tensor)
            inputs = th.cat([batch.observations, actions], dim=1)
            loss, _ = fit_critics(networks.critics, inputs, targets[:, None], batch.weights[:, None])
            take_step(self.critic.optimizer)
        record["critic_loss"] = loss

    def _update_actor(
        self,
        batch: SequenceSamples,
        draws: _Draws,
        ent_coef: th.Tensor,
        record: dict[str, th.Tensor],
        networks: written_out.Networks | None = None,
    ) -> None:
        if networks is None:
            loss = self._actor_loss(batch, draws, ent_coef)
            descend(self.actor.optimizer, loss, self._actor_parameters)
        else:
            assert isinstance(batch.observations, th.Tensor) and draws.run is not None
            bonus = ent_coef if self.uses_entropy else None
            loss = written_out.differentiate_pathwise_loss(networks, draws.run, batch.observations, batch.weights, bonus)
            loss = self._with_entropy(loss, batch, draws, ent_coef)
            take_step(self.actor.optimizer)
        record["actor_loss"] = loss

    def _actor_loss(self, batch: SequenceSamples, draws: _Draws, ent_coef: th.Tensor) -> th.Tensor:
        if self.gradient_estimator == "pathwise":
            actions = draws.policy.actions(draws.samples)
            q_values = self._lowest(self.critic, batch.observations, actions, frozen=True)
            loss = losses.pathwise_loss(q_values, batch.weights)
        else:
            constants = draws.samples.detach()
            q_values = self._lowest(self.critic, batch.observations, draws.policy.actions(constants), frozen=True)
            # The density of the samples: the one of the actions differs from it by a constant.
            loss = losses.likelihood_ratio_loss(draws.policy.sample_log_prob(constants), q_values, batch.weights)
        return self._with_entropy(loss, batch, draws, ent_coef)

    @staticmethod
    def _with_entropy(loss: th.Tensor, batch: SequenceSamples, draws: _Draws, ent_coef: th.Tensor) -> th.Tensor:
        if draws.log_prob is None:
            return loss
        # Through the samples: at a constant sample the expected gradient of log pi is zero.
        return loss + (ent_coef * draws.log_prob.mean(dim=0) * batch.weights).sum()

    @th.no_grad()
    def _update_targets(self) -> None:
        targets, sources = self._averaged
        th._foreach_lerp_(targets, sources, self.tau)
        if self._copied[0]:
            # Statistics of batch normalisation.
            th._foreach_copy_(self._copied[0], self._copied[1])

    @staticmethod
    def _lowest(
        critic: QNetworks, observations: th.Tensor | TensorDict, actions: th.Tensor, frozen: bool = False
    ) -> th.Tensor:
        """
        :param actions: ``[K, S, A]``
        :param frozen: the gradient goes to the actions alone
        :return: the smallest value of all critics, ``[K, S]``
        """
        values = critic.values(observations, actions, frozen)
        return values[0] if len(values) == 1 else values.amin(dim=0)

    # ---- plumbing ----------------------------------------------------------------------------------------------------------

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

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer that was saved with ``save_replay_buffer``.

        :param path: the file
        :param truncate_last_traj: only SB3's ``HerReplayBuffer`` looks at it; here the last trajectory is always cut
        :raises ValueError: the file holds a buffer of another kind, or for another number of environments
        """
        before = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        loaded = self.replay_buffer
        assert before is not None and loaded is not None
        if not isinstance(loaded, type(before)) or loaded.n_envs != self.n_envs:
            self.replay_buffer = before
            raise ValueError(
                f"{path} holds a {type(loaded).__name__} for {loaded.n_envs} environments, and this model needs a "
                f"{type(before).__name__} for {self.n_envs}: load it into a model with as many environments"
            )

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "critic", "critic_target", "_actor_parameters", "_critic_parameters", "_averaged", "_copied"]
        derived = ["_short_cuts", "_fixed_ent_coef", "_log_probs"]
        return [*super()._excluded_save_params(), *networks, *derived]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.log_ent_coef is None:
            return state_dicts, []
        return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]


def _short_cuts_of(policy: SVG0Policy, reduced: bool) -> tuple[written_out.Networks | None, NumpyActor | None]:
    """For updates and for acting, where the policy is of the form that they are for."""
    return written_out.networks_of(policy, reduced), numpy_actor(policy)


def _importance_ratios(log_prob: FloatArray, behaviour_log_prob: FloatArray) -> FloatArray:
    """
    ``pi(u | s) / mu(u | s)``, 1 where it is larger: Retrace looks no further.

    :raises ValueError: a behaviour density is unknown
    """
    if np.isnan(behaviour_log_prob).any():
        raise ValueError(
            "the behaviour log-probabilities of the replay buffer are unknown (it was filled with action_noise, or by hand): "
            "use off_policy_correction='none'"
        )
    ratios: FloatArray = np.exp(np.minimum(log_prob - behaviour_log_prob, 0))
    return ratios


def _inverse_tanh(actions: FloatArray) -> FloatArray:
    """Samples whose tanh is as near to the actions as float32 allows."""
    samples: FloatArray = np.arctanh(np.clip(actions, -LARGEST_TANH, LARGEST_TANH).astype(np.float32))
    return samples
