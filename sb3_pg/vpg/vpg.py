"""Vanilla policy gradient with every weight and baseline of the literature."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import explained_variance

from sb3_pg.common import losses
from sb3_pg.common.actor_critic import ActorCriticAlgorithm, Batch, PolicyStep
from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.networks import index_observations
from sb3_pg.estimators import baselines, returns
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast.numpy_networks import clip_gradient
from sb3_pg.vpg.policies import CnnPolicy, LinearPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg.vpg.validation import GAE_LAMBDA, check_environments, check_options, resolve_n_steps, resolve_n_value_updates

SelfVPG = TypeVar("SelfVPG", bound="VPG")


class VPG(ActorCriticAlgorithm):
    """
    Vanilla policy gradient: one gradient step per batch of fresh experience,
    ``theta <- theta + alpha mean[grad log pi(a_t | s_t) (weight_t - baseline_t)]``.

    ===================== =================== =====================================================
    advantage_estimator   baseline            is known as
    ===================== =================== =====================================================
    ``"total_return"``    ``"none"``          REINFORCE (Williams 1992)
    ``"total_return"``    ``"optimal"``       episodic REINFORCE with optimal baseline (Peters & Schaal 2008)
    ``"reward_to_go"``    ``"mean"``          REINFORCE with reward-to-go, leave-one-out baseline (Kool et al. 2019)
    ``"reward_to_go"``    ``"value"``         REINFORCE with baseline, vanilla policy gradient (Sutton et al. 2000)
    ``"n_step"``          ``"value"``         advantage actor-critic with n-step returns
    ``"gae"``             ``"value"``         VPG with generalised advantage estimation (Schulman et al. 2016)
    ===================== =================== =====================================================

    A batch is either a rollout of ``n_steps`` in each environment, which cuts trajectories and bootstraps with the critic, or
    ``n_episodes`` whole episodes. Everything without a critic needs whole episodes.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"LinearPolicy"`` or a class
    :param env: environment, or its id
    :param learning_rate: learning rate of the policy; constant or function of the remaining progress (from 1 to 0)
    :param n_steps: length of a rollout in steps of each environment; 512 unless ``n_episodes`` is given
    :param gamma: discount factor
    :param gae_lambda: lambda of ``"gae"``, 0.95 if not given; only with that estimator
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss in the joint loss, 0.5 if not given; only with ``n_value_updates=0``
    :param max_grad_norm: maximum norm of the gradient in each optimizer step; ``None``: no clipping
    :param use_sde: generalised state-dependent exploration (gSDE) instead of independent noise
    :param sde_sample_freq: sample new gSDE noise every that many steps; -1: only at the beginning of a rollout
    :param rollout_buffer_class: subclass of :class:`sb3_pg.common.buffers.PolicyGradientBuffer`
        (``PolicyGradientDictBuffer`` for dictionary observations)
    :param rollout_buffer_kwargs: further keyword arguments of that class
    :param normalize_advantage: shift and scale the weights of a batch to mean 0 and standard deviation 1. Biased
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param tensorboard_log: folder of the tensorboard logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at once
    :param advantage_estimator: ``"total_return"``, ``"reward_to_go"``, ``"n_step"`` or ``"gae"``
    :param baseline: ``"none"``, ``"mean"`` (over the other episodes of the batch), ``"optimal"`` (variance-minimising constant
        for each parameter, from the other episodes) or ``"value"`` (learned V(s))
    :param n_episodes: number of whole episodes in a batch, a multiple of the number of environments. All environments are
        reset before; each contributes the same number of episodes
    :param return_steps: look-ahead of ``"n_step"``; only with that estimator
    :param discount_gradient: weigh step t by ``gamma^t``, as the gradient of the discounted objective demands
        (Sutton et al. 2000, theorem 1). Off, as usual, it is ignored that discounting makes late states count less
    :param n_value_updates: critic steps per batch, by an optimizer of its own, 10 if not given; 0: one joint loss with the
        policy, as also if only ``vf_coef`` is given
    :param value_learning_rate: learning rate of the critic: constant, schedule or ``"lin_1e-3"``; as ``learning_rate`` if not
        given
    :param value_batch_size: number of steps in a critic step, sampled without replacement; the whole batch if not given
    :param critic_first: fit the critic to the new batch before the advantages are computed, instead of after the policy step.
        Biased: the critic then depends on the actions it is to judge
    :raises ValueError: options that exclude one another or are out of range; an unsupported action space
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
            gae_lambda=gae_lambda,  # type: ignore[arg-type]  # None unless the estimator reads it
            ent_coef=ent_coef,
            vf_coef=vf_coef,  # type: ignore[arg-type]  # likewise
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None is no clipping
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
            self._complete_rollout(buffer)
        self._update_policy(buffer)
        if self.resolved_n_value_updates > 0 and not self.critic_first:
            self._fit_critic(buffer)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def estimate_gradient(self, n_batches: int) -> npt.NDArray[np.float64]:
        """
        Independent estimates of the policy gradient at the current parameters, in ascent direction, each from ``n_episodes``
        fresh episodes, with the weights and the loss that training uses.

        They estimate the gradient of ``E[sum_t gamma^t r_t]`` for ``advantage_estimator="total_return"`` or
        ``discount_gradient=True``, otherwise ``E[sum_t grad log pi(a_t | s_t) sum_{t'>=t} gamma^(t'-t) r_t']``, which for
        ``gamma < 1`` is no objective's gradient. Entropy bonus, value loss and gradient clipping take no part. Parameters,
        optimizers, statistics and ``num_timesteps`` stay as they are; the statistics of a ``VecNormalize`` wrapper are frozen
        meanwhile, and the environments are reset afterwards.

        :param n_batches: number of estimates
        :return: ``[n_batches, n_parameters]``, in the order of ``policy.parameters()``, zero where a parameter does not act on
            the policy
        :raises ValueError: without ``n_episodes``, with ``normalize_advantage``, without environment, or ``n_batches < 1``
        """
        if self.n_episodes is None:
            raise ValueError("estimate_gradient needs whole episodes: pass n_episodes instead of n_steps")
        if self.normalize_advantage:
            raise ValueError("estimate_gradient is not defined with normalize_advantage=True, which rescales the gradient")
        if self.env is None:
            raise ValueError("estimate_gradient needs an environment: call set_env() first")
        if n_batches < 1:
            raise ValueError(f"n_batches must be at least 1, got {n_batches}")
        check_environments(self)
        callback = CallbackList([])
        callback.init_callback(self)
        buffer = self._make_rollout_buffer(None)
        gradients = np.empty((n_batches, sum(p.numel() for p in self.policy.parameters())))
        with self._measurement():
            for row in gradients:
                self.collect_rollouts(self.env, callback, buffer, n_rollout_steps=None)
                self.policy.set_training_mode(False)
                row[:] = self._flat_gradient(buffer)
        return gradients

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is learned."""
        return self.baseline == "value"

    @property
    def resolved_n_value_updates(self) -> int:
        """Number of critic steps per batch; 0 without a critic and with a joint loss."""
        return resolve_n_value_updates(self)

    @property
    def _critic_has_own_optimizer(self) -> bool:
        return self.resolved_n_value_updates > 0 or self.value_learning_rate is not None

    # ---- weights of the score function -------------------------------------------------------------------------------------

    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """The weights before the baseline, ``[T, N]``; also the targets of the critic."""
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
        """What is subtracted from the returns, ``[T, N]``. The optimal baseline is no function of the step and comes later."""
        if self.uses_critic:
            return buffer.values
        result = np.zeros_like(buffer.rewards)
        if self.baseline == "mean":
            assert self.n_episodes is not None
            used_returns, episodes = buffer.select(buffer.returns), buffer.episodes()
            if self.advantage_estimator == "total_return":
                # Each episode counts once, however long it is: take its return from one of its steps.
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
        """``gamma^t`` with ``discount_gradient``, otherwise ones: what multiplies a constant baseline, ``[S]``."""
        if not self.discount_gradient:
            return np.ones(buffer.n_used, dtype=buffer.rewards.dtype)
        discounts: FloatArray = (self.gamma ** buffer.select(buffer.episode_steps)).astype(buffer.rewards.dtype)
        return discounts

    # ---- gradients ---------------------------------------------------------------------------------------------------------

    def _flat_gradient(self, buffer: PolicyGradientBuffer) -> npt.NDArray[np.float64]:
        """The estimate of the policy gradient, ascent direction, ``[n_parameters]``."""
        batch = self._batch(buffer)
        if self.baseline == "optimal":
            gradient = -self._optimal_baseline_gradient(batch, buffer)
        else:
            log_prob, _ = self._evaluate_policy(batch.observations, batch.actions)
            gradient = _flat(losses.policy_gradient_loss(log_prob, batch.weights, batch.scale), self._groups.actor)
        actor = set(map(id, self._groups.actor))
        acts = np.concatenate([np.full(p.numel(), id(p) in actor) for p in self.policy.parameters()])
        result = np.zeros(len(acts))
        result[acts] = -_as_array(gradient)
        return result

    def _optimal_baseline_gradient(self, batch: Batch, buffer: PolicyGradientBuffer) -> th.Tensor:
        """Mean over the episodes of ``x - b g`` (ascent direction), flattened over the actor's parameters."""
        episodes, discounts = buffer.episodes(), buffer.tensor(self._discounts(buffer))
        order = np.argsort(episodes, kind="stable")
        steps_of = np.split(order, np.flatnonzero(np.diff(episodes[order])) + 1)
        pairs = [self._episode_gradients(batch, discounts, th.as_tensor(steps, device=self.device)) for steps in steps_of]
        estimates, scores = (_as_array(th.stack(side)) for side in zip(*pairs, strict=True))
        per_episode = estimates - baselines.optimal_baseline(estimates, scores) * scores
        return th.as_tensor(per_episode.mean(axis=0), dtype=th.float32, device=self.device)

    def _episode_gradients(self, batch: Batch, discounts: th.Tensor, steps: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """One episode's gradient estimate without baseline, and the sum of scores that multiplies a constant baseline."""
        log_prob, _ = self._evaluate_policy(index_observations(batch.observations, steps), batch.actions[steps])
        estimate = _flat((log_prob * batch.weights[steps]).sum(), self._groups.actor)
        return estimate, _flat((log_prob * discounts[steps]).sum(), self._groups.actor)

    # ---- updates -----------------------------------------------------------------------------------------------------------

    def _update_policy(self, buffer: PolicyGradientBuffer) -> None:
        """One gradient step on the policy, and on the critic if they share a loss."""
        batch = self._batch(buffer)
        if self.baseline == "optimal":
            step = self._step_with_optimal_baseline(batch, buffer)
        else:
            joint = self.uses_critic and self.resolved_n_value_updates == 0
            step = self._step_policy(batch, buffer.tensor(buffer.select(buffer.returns)) if joint else None)
        new_log_prob = self._log_prob(batch)
        self.logger.record("train/grad_norm", step.grad_norm)
        self.logger.record("train/weight_std", float(buffer.select(buffer.advantages).std()))
        self.logger.record("train/approx_kl", losses.approximate_kl(step.log_prob, new_log_prob))
        self.logger.record("train/entropy_loss", step.entropy_loss / (batch.scale * len(new_log_prob)))
        self.logger.record("train/policy_loss", step.policy_loss)
        if step.value_loss is not None:
            self.logger.record("train/value_loss", step.value_loss)

    def _step_with_optimal_baseline(self, batch: Batch, buffer: PolicyGradientBuffer) -> PolicyStep:
        self.policy.set_training_mode(True)
        log_prob, entropy = self._evaluate_policy(batch.observations, batch.actions)
        entropy_loss = losses.entropy_loss(entropy, log_prob, batch.scale)
        self.policy.optimizer.zero_grad()
        (self.ent_coef * entropy_loss).backward()  # type: ignore[no-untyped-call]  # torch
        self._add_to_gradients(-self._optimal_baseline_gradient(batch, buffer))
        norm = self._clip(self._groups.actor)
        self._apply([self.policy.optimizer], norm, "policy gradient")
        policy_loss = losses.policy_gradient_loss(log_prob, batch.weights, batch.scale).item()
        return PolicyStep(log_prob.detach().cpu().numpy(), policy_loss, entropy_loss.item(), None, norm)

    def _log_prob(self, batch: Batch) -> FloatArray:
        """Log-probability of the actions under the present policy, ``[S]``."""
        # The optimal baseline goes through the modules, and SB3's policy keeps its latest distribution: one with a graph,
        # which could not be copied, unless it is evaluated once more.
        if self._numpy_networks is not None and self.baseline != "optimal":
            assert isinstance(batch.observations, th.Tensor)
            return self._numpy_networks.log_prob(batch.observations.numpy(), batch.actions.numpy())
        self.policy.set_training_mode(False)  # not to move the statistics of batch normalisation again
        with th.no_grad():
            log_prob: FloatArray = self._evaluate_policy(batch.observations, batch.actions)[0].cpu().numpy()
        return log_prob

    def _fit_critic(self, buffer: PolicyGradientBuffer) -> None:
        """Move the critic towards the returns of the batch by ``n_value_updates`` steps of its own optimizer."""
        assert self.value_optimizer is not None
        observations = buffer.samples().observations
        targets = buffer.tensor(buffer.select(buffer.returns))
        differentiate = (
            self._differentiate_critic_modules if self._numpy_networks is None else self._differentiate_critic_arrays
        )
        value_losses = []
        for rows in _minibatches(len(targets), self.value_batch_size, self.resolved_n_value_updates):
            inputs, outputs = (
                (observations, targets) if rows is None else (index_observations(observations, rows), targets[rows])
            )
            loss, norm = differentiate(inputs, outputs)
            self._apply([self.value_optimizer], norm, "gradient of the value loss")
            value_losses.append(loss)
        self.logger.record("train/value_loss", float(np.mean(value_losses)))

    def _differentiate_critic_modules(self, observations: th.Tensor | TensorDict, targets: th.Tensor) -> tuple[float, float]:
        """
        :return: value loss, and the norm of its gradient before clipping
        """
        assert self.value_optimizer is not None
        self.policy.set_training_mode(True)
        loss = losses.value_loss(self.policy.predict_values(observations).flatten(), targets)
        self.value_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        return loss.item(), self._clip(self._groups.critic)

    def _differentiate_critic_arrays(self, observations: th.Tensor | TensorDict, targets: th.Tensor) -> tuple[float, float]:
        """The same by hand, for standard networks."""
        assert self._numpy_networks is not None and isinstance(observations, th.Tensor)
        loss = self._numpy_networks.differentiate_value_loss(observations.numpy(), targets.numpy(), 1.0)
        return loss, clip_gradient(self._numpy_networks.critic_gradient, self.max_grad_norm)

    def _add_to_gradients(self, flat: th.Tensor) -> None:
        pieces = th.split(flat, [p.numel() for p in self._groups.actor])
        for parameter, piece in zip(self._groups.actor, pieces, strict=True):
            gradient = piece.view_as(parameter)
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    # ---- plumbing ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _measurement(self) -> Iterator[None]:
        """Collect without leaving a trace: counters, statistics and modes are put back, the environments reset."""
        assert self.env is not None
        names = ("num_timesteps", "ep_info_buffer", "ep_success_buffer", "_last_obs", "_last_episode_starts", "_episode_steps")
        before = {name: self.__dict__[name] for name in names if name in self.__dict__}
        policy_training = self.policy.training
        normalize = self.get_vec_normalize_env()
        normalize_training = normalize is not None and normalize.training
        self._start_statistics()
        if normalize is not None:
            normalize.training = False
        try:
            yield
        finally:
            self.__dict__.update(before)
            if self._last_obs is not None:
                self._reset_environments(self.env)
            if normalize is not None:
                normalize.training = normalize_training
            self.policy.set_training_mode(policy_training)


def _flat(output: th.Tensor, parameters: list[th.nn.Parameter]) -> th.Tensor:
    """Gradient of a scalar, flattened over the parameters; zero where it does not depend on one."""
    gradients = th.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
    return th.cat([th.zeros_like(p).ravel() if g is None else g.ravel() for p, g in zip(parameters, gradients, strict=True)])


def _as_array(tensor: th.Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = tensor.detach().cpu().numpy().astype(np.float64)
    return array


def _minibatches(n_samples: int, batch_size: int | None, n_batches: int) -> Iterator[th.Tensor | None]:
    """
    Row indices of each minibatch; every sample is drawn once before any is drawn again. ``None`` stands for all rows.
    """
    if batch_size is None or batch_size >= n_samples:
        for _ in range(n_batches):
            yield None
        return
    queue = th.randperm(n_samples)
    for _ in range(n_batches):
        if len(queue) < batch_size:
            queue = th.cat([queue, th.randperm(n_samples)])
        yield queue[:batch_size]
        queue = queue[batch_size:]
