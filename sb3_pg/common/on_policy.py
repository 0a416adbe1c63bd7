"""Training loop of the on-policy algorithms: collect a rollout, compute advantages, take gradient steps."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import Schedule, TensorDict
from stable_baselines3.common.utils import obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.common import losses
from sb3_pg.common.base import PolicyGradientAlgorithm
from sb3_pg.common.buffers import Array, Observations, PolicyGradientBuffer, rollout_buffer_class
from sb3_pg.common.networks import index_observations, separate_optimizers
from sb3_pg.common.validation import parse_schedule
from sb3_pg.estimators.returns import BoolArray, FloatArray

# Values are computed in batches of at most this size: the activations of an image network must fit into memory.
VALUE_BATCH_SIZE = 4096
# Initial capacity of the buffer with whole episodes, whose length is not known beforehand.
INITIAL_EPISODE_CAPACITY = 128


class Batch(NamedTuple):
    """
    Batch of a policy update, flattened to ``[S, ...]``.

    :param observations: observations of the policy
    :param actions: sampled actions, before clipping
    :param weights: weight of the score of each step
    :param scale: 1 / (number of episodes), or 1 / S for rollouts of fixed length
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    weights: th.Tensor
    scale: float


class PolicyStep(NamedTuple):
    """
    Statistics of a gradient step, for logging.

    :param log_prob: ``[S]``, log-probability of the actions before the step
    :param policy_loss: see :func:`sb3_pg.common.losses.policy_gradient_loss`
    :param entropy_loss: see :func:`sb3_pg.common.losses.entropy_loss`
    :param value_loss: mean squared error of the critic, ``None`` if it was not updated
    :param grad_norm: norm of the gradient before clipping
    """

    log_prob: FloatArray
    policy_loss: float
    entropy_loss: float
    value_loss: float | None
    grad_norm: float


class ActorCriticSteps(PolicyGradientAlgorithm, OnPolicyAlgorithm):
    """The steps of an update in plain PyTorch. A fast path implements the same methods."""

    _last_obs: Any  # SB3 declares None or what reset() returns
    normalize_advantage: bool
    # None: the critic is part of the policy's optimizer, or there is none.
    value_optimizer: th.optim.Optimizer | None

    def sample_actions(
        self,
        obs: Observations,
        with_values: bool = True,  # noqa: ARG002 # here they come with the actions
    ) -> tuple[Array, FloatArray | None]:
        """
        Sample actions.

        :param obs: observations, ``[N, ...]``
        :param with_values: whether the values are needed now; a fast path computes them later otherwise
        :return: sampled actions ``[N, *action_space.shape]``, and V(s) ``[N]`` or ``None``
        """
        with th.no_grad():
            actions, values, _ = self.policy(obs_as_tensor(obs, self.device))
        assert self.action_space.shape is not None
        return actions.cpu().numpy().reshape(-1, *self.action_space.shape), values.cpu().numpy().ravel()

    def predict_values(self, observations: th.Tensor | TensorDict) -> FloatArray:
        """
        :param observations: observations, ``[B, ...]``
        :return: V(s), ``[B]``
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        size = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        parts = (slice(i, i + VALUE_BATCH_SIZE) for i in range(0, size, VALUE_BATCH_SIZE))
        with th.no_grad():
            values = th.cat([self.policy.predict_values(index_observations(observations, part)) for part in parts])
        result: FloatArray = values.flatten().cpu().numpy()
        return result

    def action_log_prob(self, batch: Batch) -> FloatArray:
        """
        :param batch: observations and actions
        :return: log pi(a_t | s_t) under the current policy, ``[S]``
        """
        self.policy.set_training_mode(False)  # do not update the statistics of batch normalisation again
        with th.no_grad():
            log_prob: FloatArray = self._evaluate_actions(batch)[0].cpu().numpy()
        return log_prob

    def policy_gradient(self, batch: Batch, targets: th.Tensor | None = None) -> PolicyStep:
        """
        Set the gradients of ``-scale sum_t log pi(a_t | s_t) w_t`` (Williams 1992) minus the entropy bonus; with targets, of
        the joint loss of actor and critic (Mnih et al. 2016, algorithm S3). They are clipped jointly.

        :param batch: batch of the update
        :param targets: ``[S]``, targets of the critic; ``None``: the critic is not updated
        :return: statistics for logging
        """
        self.policy.set_training_mode(True)
        value_loss = None
        if targets is None:
            log_prob, entropy = self._evaluate_actions(batch)
        else:
            values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
            value_loss = losses.value_loss(values.flatten(), targets)
        policy_loss = losses.policy_gradient_loss(log_prob, batch.weights, batch.scale)
        entropy_loss = losses.entropy_loss(entropy, log_prob, batch.scale)
        loss = policy_loss + self.ent_coef * entropy_loss
        if value_loss is not None:
            loss = loss + self._resolved_vf_coef * value_loss
        norm = self._backpropagate(loss)
        value_item = None if value_loss is None else value_loss.item()
        return PolicyStep(log_prob.detach().cpu().numpy(), policy_loss.item(), entropy_loss.item(), value_item, norm)

    def value_gradient(self, observations: th.Tensor | TensorDict, targets: th.Tensor) -> tuple[float, float]:
        """
        Set the gradients of the critic's mean squared error.

        :param observations: observations, ``[S, ...]``
        :param targets: targets of the critic, ``[S]``
        :return: the loss, and the norm of its gradient before clipping
        """
        self.policy.set_training_mode(True)
        loss = losses.value_loss(self.policy.predict_values(observations).flatten(), targets)
        return loss.item(), self._backpropagate(loss)

    def optimizer_step(self, optimizer: th.optim.Optimizer) -> None:
        """
        :param optimizer: applies the gradients to its parameters
        """
        optimizer.step()

    def _evaluate_actions(self, batch: Batch) -> tuple[th.Tensor, th.Tensor | None]:
        """Log-probability and entropy, ``[S]`` each, without the critic; the entropy is ``None`` if it has no closed form."""
        distribution = self.policy.get_distribution(batch.observations)
        return distribution.log_prob(batch.actions), distribution.entropy()

    def _backpropagate(self, loss: th.Tensor) -> float:
        """
        Set the gradients of the loss, clipped to ``max_grad_norm``.

        :return: their norm before clipping
        """
        self.policy.zero_grad()
        for optimizer in self._optimizers(joint=True):
            optimizer.zero_grad()
        if loss.requires_grad:  # False if all its parameters are frozen
            loss.backward()  # type: ignore[no-untyped-call]  # torch
        maximum = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return th.nn.utils.clip_grad_norm_(self.policy.parameters(), maximum).item()

    def _optimizers(self, joint: bool) -> list[th.optim.Optimizer]:
        """Optimizers of the policy loss; with ``joint``, of the joint loss of policy and critic."""
        return [self.policy.optimizer, *([self.value_optimizer] if joint and self.value_optimizer else [])]

    @property
    def _resolved_vf_coef(self) -> float:
        return 0.5 if self.vf_coef is None else self.vf_coef


class OnPolicyActorCritic(ActorCriticSteps):
    """
    Collects rollouts, computes the advantage of each step and takes gradient steps. The critic may have its own optimizer.

    Subclasses define the estimator (:meth:`_returns`, :meth:`_baseline_values`) and the update (``train``). Collection
    differs from SB3's ``OnPolicyAlgorithm`` in three ways:

    - rewards are stored unmodified, and truncation separately from termination. SB3 adds ``gamma V(final observation)`` to
      the reward of a truncated step, which is wrong for estimators that bootstrap differently;
    - it can collect whole episodes (``n_episodes``): the same number from each environment, after resetting all of them.
      Keeping the episodes that finish first would be biased towards short ones;
    - after a callback has stopped training in mid-rollout, the next ``learn()`` resets the environments.
    """

    # Options that select a joint optimizer, for the error message.
    _joint_critic: ClassVar[str] = "value_learning_rate=None"
    rollout_buffer: PolicyGradientBuffer
    n_steps: int | None  # type: ignore[assignment]  # SB3 declares int; None with whole episodes
    n_episodes: int | None
    value_learning_rate: float | str | Schedule | None
    _episode_steps: npt.NDArray[np.int64]

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is learned."""
        return True

    @property
    def _critic_has_own_optimizer(self) -> bool:
        return self.value_learning_rate is not None

    # ---- collecting --------------------------------------------------------------------------------------------------------

    def collect_rollouts(  # type: ignore[override]  # the length may depend on the episodes
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: PolicyGradientBuffer,
        n_rollout_steps: int | None,
    ) -> bool:
        """
        Fill the buffer with ``n_rollout_steps`` steps of each environment, or with ``n_episodes`` whole episodes.

        :param env: training environments
        :param callback: called after each vectorised step
        :param rollout_buffer: filled with the rollout
        :param n_rollout_steps: steps per environment; ``None``: whole episodes
        :return: False if a callback stopped the training run
        """
        rollout_buffer.reset()
        episodes_left, steps_before = self._start_rollout(env)
        used = np.ones(env.num_envs, dtype=np.bool_)
        n_steps, steps = 0, self._steps()
        has_callback = not (isinstance(callback, ConvertCallback) and callback.callback is None)
        callback.on_rollout_start()

        while used.any() if n_rollout_steps is None else n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            if has_callback:  # it may have changed the networks
                steps = self._steps()
            actions, values = steps.sample_actions(self._last_obs, has_callback)
            clipped_actions = self._environment_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            n_steps += 1
            callback.update_locals(locals())
            if not callback.on_step():
                self._forget_observation()
                return False

            self._store_step(rollout_buffer, actions, values, rewards, dones, infos, used)
            if n_rollout_steps is None:
                episodes_left -= dones
                used = episodes_left > 0
            self._last_obs, self._last_episode_starts = new_obs, dones

        rollout_buffer.finish(steps_before)
        self._compute_advantages(rollout_buffer, None if has_callback else steps)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _start_rollout(self, env: VecEnv) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """
        :return: ``[N]`` each: number of episodes to collect from each environment (zeros for a rollout of fixed length), and
            number of steps that its current episode has taken so far
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        quota = np.zeros(env.num_envs, dtype=np.int64)
        if self.n_episodes is not None:
            self._reset_environments(env)
            quota += self.n_episodes // env.num_envs
        steps = getattr(self, "_episode_steps", None)
        if steps is None or len(steps) != env.num_envs:
            # The environments have been replaced.
            steps = np.zeros(env.num_envs, dtype=np.int64)
        assert self._last_episode_starts is not None
        return quota, np.where(self._last_episode_starts, 0, steps)

    def _reset_environments(self, env: VecEnv) -> None:
        self._last_obs = env.reset()
        self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)

    def _environment_actions(self, actions: Array) -> Array:
        """Actions within the bounds of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        # A Gaussian is unbounded. The unclipped sample is stored: clipping is part of the environment.
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _store_step(
        self,
        rollout_buffer: PolicyGradientBuffer,
        actions: Array,
        values: FloatArray | None,
        rewards: Array,
        dones: BoolArray,
        infos: list[dict[str, Any]],
        used: BoolArray,
    ) -> None:
        if self.n_episodes is None:
            self._update_info_buffer(infos, dones)
        else:
            self._update_info_buffer([info for info, use in zip(infos, used, strict=True) if use], dones[used])
        terminated = truncated = dones
        if dones.any():
            truncated = np.zeros_like(dones)
            for i in np.flatnonzero(dones):
                # SB3's vectorised environments set the flag only if the episode did not terminate in the same step. Without a
                # final observation there is nothing to bootstrap with.
                final: Any = infos[i].get("terminal_observation")
                truncated[i] = infos[i].get("TimeLimit.truncated", False) and final is not None
                if truncated[i] and used[i]:
                    rollout_buffer.add_final_observation(int(i), final)
            terminated = dones & ~truncated
        assert self._last_episode_starts is not None
        rollout_buffer.add(self._last_obs, actions, rewards, self._last_episode_starts, terminated, truncated, used, values)

    # ---- advantages --------------------------------------------------------------------------------------------------------

    def _compute_advantages(self, buffer: PolicyGradientBuffer, steps: Any = None) -> None:
        """Compute values, returns and advantages of a complete rollout, ``[T, N]`` each."""
        self._episode_steps = buffer.episode_steps[-1] + 1
        if self.uses_critic:
            self._compute_values(buffer, steps or self._steps())
        buffer.returns = self._returns(buffer)
        buffer.advantages = buffer.returns - self._baseline_values(buffer)

    def _compute_values(self, buffer: PolicyGradientBuffer, steps: Any) -> None:
        """
        Set ``values[t] = V(s_t)`` unless computed while acting, and ``next_values[t] = V(s_{t+1})``, where ``s_{t+1}`` is the
        final observation if the episode was truncated at ``t``.
        """
        if not buffer.has_values:
            flat = buffer.observations_of(lambda array: array.reshape(-1, *array.shape[2:]))
            buffer.values = steps.predict_values(flat).reshape(buffer.rewards.shape)
        buffer.next_values = np.empty_like(buffer.values)
        buffer.next_values[:-1] = buffer.values[1:]
        buffer.next_values[-1] = steps.predict_values(obs_as_tensor(self._last_obs, self.device))
        if buffer.final_indices:
            rows, columns = zip(*buffer.final_indices, strict=True)
            buffer.next_values[rows, columns] = steps.predict_values(buffer.final_observations_tensor())

    @abstractmethod
    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """Weights before the baseline is subtracted, ``[T, N]``; also the targets of the critic."""

    def _baseline_values(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """Baseline subtracted from the returns, ``[T, N]``."""
        return buffer.values

    # ---- updates -----------------------------------------------------------------------------------------------------------

    def _steps(self) -> Any:
        """The object that implements the steps of an update: the fast path, or the algorithm itself."""
        return self._fast_path() or self

    def _update_policy(self, batch: Batch, targets: th.Tensor | None = None) -> PolicyStep:
        """One gradient step of the policy and, with targets, of the critic, see :meth:`policy_gradient`."""
        steps = self._steps()
        step: PolicyStep = steps.policy_gradient(batch, targets)
        self._apply(steps, self._optimizers(joint=targets is not None), step.grad_norm, "policy gradient")
        return step

    def _update_critic(self, observations: th.Tensor | TensorDict, targets: th.Tensor) -> float:
        """One step of the critic's own optimizer; returns the loss before the step."""
        assert self.value_optimizer is not None
        steps = self._steps()
        loss, norm = steps.value_gradient(observations, targets)
        self._apply(steps, [self.value_optimizer], norm, "gradient of the value loss")
        return float(loss)

    def _apply(self, steps: Any, optimizers: list[th.optim.Optimizer], norm: float, what: str) -> None:
        """Apply the gradients if their norm is finite."""
        if not np.isfinite(norm):
            # ValueError, so that a tuning study prunes the trial; before the step, so that the parameters stay finite.
            raise ValueError(
                f"the {what} is not finite ({norm}): lower the learning rate, clip with max_grad_norm, or normalise rewards"
            )
        for optimizer in optimizers:
            steps.optimizer_step(optimizer)

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.policy.optimizer)
        if self.value_optimizer is not None:
            rate = self._value_lr_schedule(self._current_progress_remaining)
            self.logger.record("train/value_learning_rate", rate)
            update_learning_rate(self.value_optimizer, rate)

    # ---- set-up and saving -------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        rate = self.value_learning_rate
        self._value_lr_schedule = self.lr_schedule if rate is None else parse_schedule("value_learning_rate", rate)
        self.set_random_seed(self.seed)
        self.rollout_buffer = self._make_rollout_buffer(self.n_steps)
        self.policy = self.policy_class(  # type: ignore[assignment]  # SB3 types policy_class as BasePolicy
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        self.value_optimizer = self._separate_critic() if self._critic_has_own_optimizer else None
        self._maybe_recommend_cpu(mlp_class_name=self.policy_aliases["MlpPolicy"].__name__)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # A loaded model may have a different number of environments than the constructed one.
        self._check_environments()
        return super()._setup_learn(*args, **kwargs)

    @abstractmethod
    def _check_environments(self) -> None:
        """Check the options that depend on the number of environments."""

    def _separate_critic(self) -> th.optim.Optimizer:
        """Create separate optimizers for actor and critic."""
        return separate_optimizers(self.policy, self.lr_schedule(1), self._value_lr_schedule(1), self._joint_critic)

    def _make_rollout_buffer(self, n_steps: int | None) -> PolicyGradientBuffer:
        """
        :param n_steps: length of the rollouts, ``None`` if it is not known beforehand
        :return: empty buffer
        :raises ValueError: ``rollout_buffer_class`` cannot store what the estimators need
        """
        return self._choose_buffer_class()(
            INITIAL_EPISODE_CAPACITY if n_steps is None else n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def _choose_buffer_class(self) -> type[PolicyGradientBuffer]:
        return rollout_buffer_class(self.rollout_buffer_class, self.observation_space, type(self).__name__)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        As in SB3.

        :param load_path_or_dict: path of a saved model, or dictionary returned by ``get_parameters``
        :param exact_match: whether the parameters must be complete
        :param device: device of the loaded tensors
        :raises ValueError: with ``exact_match``, if the critic has its own optimizer in only one of the two models
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
        saved_separately = "value_optimizer" in load_path_or_dict
        if exact_match and saved_separately != (self.value_optimizer is not None):
            raise ValueError(
                f"the parameters were saved {'with' if saved_separately else 'without'} value_optimizer, the critic's own "
                "optimizer, unlike this model: keep the options of the critic, such as value_learning_rate"
            )
        super().set_parameters(load_path_or_dict, exact_match, device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, *(["value_optimizer"] if self.value_optimizer is not None else [])], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "value_optimizer"]
