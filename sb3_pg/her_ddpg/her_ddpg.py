"""DDPG with hindsight experience replay."""

from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    DictReplayBufferSamples,
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.ddpg.ddpg import DDPG
from stable_baselines3.td3.policies import TD3Policy
from torch import nn
from torch.nn import functional as F

from sb3_pg.common.off_policy import OffPolicyBase, Record
from sb3_pg.fast import Accelerated
from sb3_pg.her_ddpg.buffers import Array, HindsightReplayBuffer
from sb3_pg.her_ddpg.fast import FastHERDDPG
from sb3_pg.her_ddpg.policies import MultiInputPolicy
from sb3_pg.her_ddpg.validation import ACTION_NOISE_STD, check_environment, check_options, default_gamma

SelfHERDDPG = TypeVar("SelfHERDDPG", bound="HERDDPG")


def td_target(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_values: th.Tensor,
    bounds: tuple[float, float] | None = None,
) -> th.Tensor:
    """
    ``r + gamma^m V'``, clipped to the known bounds of the values (Andrychowicz et al. 2017, appendix A).

    :param rewards: ``[B, ...]``, sum of m discounted rewards
    :param discounts: the same shape, ``gamma^m``, or 0 where the episode terminated within these steps
    :param next_values: the same shape, value of the target network m steps later
    :param bounds: minimum and maximum value; ``None``: no clipping
    :return: the same shape
    """
    target = th.addcmul(rewards, discounts, next_values.to(rewards.dtype))
    return target if bounds is None else target.clamp(*bounds)


def deterministic_policy_loss(q_values: th.Tensor, actions: th.Tensor, action_l2: float) -> th.Tensor:
    """
    ``-mean Q(s, pi(s)) + action_l2 mean |pi(s)|^2``: the deterministic policy gradient (Silver et al. 2014) with a penalty
    that keeps the actor's tanh from saturating.

    :param q_values: ``[B, 1]``, with gradient through the actions
    :param actions: ``[B, A]``, actions of the policy, scaled to [-1, 1]
    :param action_l2: weight of the penalty, which is also averaged over the action dimensions
    :return: scalar
    """
    return -q_values.mean() + action_l2 * actions.square().mean()


class HERDDPG(Accelerated, OffPolicyBase, DDPG, fast_path=FastHERDDPG):
    """
    DDPG with hindsight experience replay (Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495), with the settings of
    Plappert et al. 2018 (https://arxiv.org/abs/1802.09464) as defaults.

    A cycle consists of ``train_freq`` whole episodes per environment, ``gradient_steps`` minibatches, and one update of the
    target networks. The policy itself normalises observations and goals, so that a saved policy is self-contained.

    :param policy: ``"MultiInputPolicy"`` or a subclass of :class:`sb3_pg.her_ddpg.MultiInputPolicy`
    :param env: goal environment or its id
    :param learning_rate: learning rate; a constant or a function of the remaining progress (from 1 to 0)
    :param buffer_size: capacity of the replay buffer in transitions
    :param learning_starts: number of uniformly random steps before training starts
    :param batch_size: size of a minibatch; the authors use 256 in each of their workers
    :param tau: soft update coefficient of the target networks (Polyak averaging)
    :param gamma: discount factor; ``None``: 1 - 1/T with the environment's time limit T
    :param train_freq: length of a cycle: a number of steps, or ``(k, "episode")``, which lasts until the number of completed
        episodes is k times that of environments; unfinished episodes continue in the next cycle
    :param gradient_steps: number of minibatches in a cycle; -1: as many as steps were collected
    :param action_noise: SB3's noise instead of ``action_noise_std``, added to actions scaled to [-1, 1]
    :param replay_buffer_class: subclass of :class:`sb3_pg.her_ddpg.HindsightReplayBuffer`
    :param replay_buffer_kwargs: keyword arguments of the replay buffer, such as ``n_sampled_goal`` and
        ``goal_selection_strategy`` (``"future"``, ``"final"``, ``"episode"`` or ``"random"``)
    :param optimize_memory_usage: must be False; each observation is stored only once in any case
    :param n_steps: number of steps of the n-step returns, with the same goal in all steps
    :param tensorboard_log: directory of the TensorBoard logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks on construction
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param random_eps: probability of replacing an action by a uniformly random one
    :param action_noise_std: standard deviation of Gaussian noise on scaled actions; 0.2 unless ``action_noise`` is given
    :param action_l2: weight of the mean squared scaled action in the actor's loss
    :param reward_range: minimum and maximum reward of the environment. The critic's targets are clipped to the returns that
        such rewards allow, [-1/(1-gamma), 0] by default; ``None``: no clipping
    :param terminate_on_success: whether an episode terminates exactly at the maximum reward. ``None``: relabelled transitions
        terminate according to the environment's ``compute_terminated``, or as recorded if it has none
    :param normalize_inputs: whether to normalise observations and goals by running statistics
    :param target_update: whether to update the target networks once per ``"cycle"`` or after each gradient ``"step"``
    :param qf_learning_rate: learning rate of the critic: constant, schedule, or ``"lin_1e-3"`` for linear decay to zero;
        ``None``: ``learning_rate``
    :param bf16: whether to update in bfloat16, which halves the time of matrix products on processors that support it, and is
        slightly less precise
    :raises ValueError: options that are mutually exclusive or out of range; an environment that does not support relabelling
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**DDPG.policy_aliases, "MultiInputPolicy": MultiInputPolicy}
    if_not_finite = "pass the environment's reward_range"
    policy: MultiInputPolicy
    replay_buffer: HindsightReplayBuffer | None
    gamma: float | None  # type: ignore[assignment]  # None until the environment's time limit is known

    def __init__(
        self,
        policy: str | type[TD3Policy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 0,
        batch_size: int = 256,
        tau: float = 0.05,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = (2, "episode"),
        gradient_steps: int = 40,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        stats_window_size: int = 100,
        random_eps: float = 0.3,
        action_noise_std: float | None = None,
        action_l2: float = 1.0,
        reward_range: tuple[float, float] | None = (-1.0, 0.0),
        terminate_on_success: bool | None = None,
        normalize_inputs: bool = True,
        target_update: str = "cycle",
        qf_learning_rate: float | str | Schedule | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,  # type: ignore[arg-type]  # resolved in _setup_model
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            tensorboard_log=tensorboard_log,
            policy_kwargs=dict(policy_kwargs or {}),  # a copy, since DDPG modifies it
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self._stats_window_size = stats_window_size
        self.random_eps = random_eps
        self.action_noise_std = action_noise_std
        self.action_l2 = action_l2
        self.reward_range = reward_range
        self.terminate_on_success = terminate_on_success
        self.normalize_inputs = normalize_inputs
        self.target_update = target_update
        self.qf_learning_rate = qf_learning_rate
        self.bf16 = bf16
        self._rng = np.random.default_rng()
        if _init_setup_model:
            self._setup_model()

    # ---- the update --------------------------------------------------------------------------------------------------------

    def _update(self, batch: DictReplayBufferSamples) -> Record:
        record = self._critic_step(batch, self._targets(batch)) | self._actor_step(batch)
        if self.target_update == "step":
            self._update_targets()
        return record

    def _after_updates(self) -> None:
        if self.target_update == "cycle":
            self._update_targets()

    @th.no_grad()
    def _targets(self, batch: DictReplayBufferSamples) -> th.Tensor:
        next_actions = self.actor_target(batch.next_observations)
        next_values = th.cat(self.critic_target(batch.next_observations, next_actions), dim=1)
        return self._td_targets(batch, next_values.amin(dim=1, keepdim=True))

    def _td_targets(self, batch: DictReplayBufferSamples, next_values: th.Tensor) -> th.Tensor:
        discounts = batch.discounts * (1 - batch.dones)  # type: ignore[operator]  # set by our buffer
        return td_target(batch.rewards, discounts, next_values, self.target_bounds)

    @property
    def target_bounds(self) -> tuple[float, float] | None:
        """Minimum and maximum discounted return of rewards in ``reward_range``; ``None``: unknown."""
        if self.reward_range is None:
            return None
        assert self.gamma is not None
        low, high = self.reward_range
        # An episode may terminate after its first step, with a return of one reward.
        return min(low, low / (1 - self.gamma)), max(high, high / (1 - self.gamma))

    def _critic_step(self, batch: DictReplayBufferSamples, targets: th.Tensor) -> Record:
        q_values = self.critic(batch.observations, batch.actions)
        loss = th.stack([F.mse_loss(q, targets) for q in q_values]).sum()
        self._descend(self.critic.optimizer, loss, "critic loss")
        return {"critic_loss": loss.detach(), "q_value": q_values[0].detach().mean()}

    def _actor_step(self, batch: DictReplayBufferSamples) -> Record:
        loss = self._actor_loss(batch)
        self._descend(self.actor.optimizer, loss, "actor loss")
        return {"actor_loss": loss.detach()}

    def _actor_loss(self, batch: DictReplayBufferSamples) -> th.Tensor:
        actions = self.actor(batch.observations)
        q_values = self.critic.q1_forward(batch.observations, actions)
        return deterministic_policy_loss(q_values, actions, self.action_l2)

    def _target_networks(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return [(self.actor, self.actor_target), (self.critic, self.critic_target)]

    def _sample_batch(self, batch_size: int) -> DictReplayBufferSamples:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size)

    # ---- collecting --------------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        last_obs = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not last_obs and self.replay_buffer is not None:
            # The environments were reset, which ended their episodes.
            self.replay_buffer.truncate_last_trajectory()
        return result

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Collect one cycle, as in SB3 except that episodes are counted over all environments."""
        self.policy.set_training_mode(False)
        n_steps, n_episodes = 0, 0
        wanted = train_freq.frequency * (1 if train_freq.unit == TrainFrequencyUnit.STEP else env.num_envs)
        callback.on_rollout_start()
        while (n_steps if train_freq.unit == TrainFrequencyUnit.STEP else n_episodes) < wanted:
            actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            n_steps += 1

            callback.update_locals(locals())
            if not callback.on_step():
                self._forget_observation()
                return RolloutReturn(n_steps * env.num_envs, n_episodes, continue_training=False)

            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)  # type: ignore[arg-type]  # dictionaries
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            n_episodes += int(dones.sum())
            self._end_episodes(dones, action_noise, log_interval)
        new_episodes = self.replay_buffer.sample_new_episodes() if self.replay_buffer is not None else None
        if new_episodes is not None:
            self.policy.update_normalizer(new_episodes)
        callback.on_rollout_end()
        return RolloutReturn(n_steps * env.num_envs, n_episodes, continue_training=True)

    def _end_episodes(self, dones: Array, action_noise: ActionNoise | None, log_interval: int | None) -> None:
        for i in np.flatnonzero(dones):
            self._episode_num += 1
            if action_noise is not None:
                action_noise.reset(**({"indices": [i]} if len(dones) > 1 else {}))
            if log_interval is not None and self._episode_num % log_interval == 0:
                self.dump_logs()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Array, Array]:
        """Exploratory actions for the environments, and the same actions scaled to [-1, 1] for the buffer."""
        shape = (n_envs, *self.action_space.shape)  # type: ignore[misc]  # a Box
        random = self._rng.uniform(-1, 1, shape).astype(np.float32)
        if self.num_timesteps < learning_starts:
            return self.policy.unscale_action(random), random
        assert self._last_obs is not None
        with th.no_grad():
            obs, _ = self.policy.obs_to_tensor(self._last_obs)
            scaled = self.policy._predict(obs).cpu().numpy().reshape(shape)
        if action_noise is not None:
            scaled = scaled + action_noise()
        else:
            std = ACTION_NOISE_STD if self.action_noise_std is None else self.action_noise_std
            scaled = scaled + std * self._rng.standard_normal(shape, dtype=np.float32)
        scaled = np.clip(scaled, -1, 1).astype(np.float32)
        whole_actions = (self._rng.random(n_envs) < self.random_eps).reshape(n_envs, *[1] * (len(shape) - 1))
        scaled = np.where(whole_actions, random, scaled)
        return self.policy.unscale_action(scaled), scaled

    # ---- plumbing ----------------------------------------------------------------------------------------------------------

    def learn(
        self: SelfHERDDPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "HERDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHERDDPG:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_model(self) -> None:
        # The zoo's yml files contain lists instead of tuples.
        for name in ("train_freq", "reward_range"):
            value = getattr(self, name)
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        if self.gamma is None:
            self.gamma = default_gamma(self.env)
        check_options(self)
        if self.env is not None:
            check_environment(self)
        self._setup_lr_schedule()
        self._convert_train_freq()
        if self.replay_buffer_class is None:
            self.replay_buffer_class = HindsightReplayBuffer
        self.replay_buffer = self._make_replay_buffer()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]  # SB3 types policy_class as BasePolicy
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            normalize_inputs=self.normalize_inputs,
            **self.policy_kwargs,
        ).to(self.device)
        self._create_aliases()
        self._check_precision()

    def _make_replay_buffer(self) -> HindsightReplayBuffer:
        assert self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, HindsightReplayBuffer)
        assert self.gamma is not None
        return self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,  # type: ignore[arg-type]  # checked to be a Dict
            self.action_space,
            env=self.env,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            n_steps=self.n_steps,
            gamma=self.gamma,
            reward_range=self.reward_range,
            terminate_on_success=self.terminate_on_success,
            **self.replay_buffer_kwargs,
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of all random generators; ``None``: only exploration and replay are seeded, from torch's generator
        """
        super().set_random_seed(seed)
        # Without a seed, use torch's generator, which users seed with SB3's set_random_seed().
        entropy = int(th.randint(2**31, (), device="cpu")) if seed is None else seed
        self._rng = np.random.default_rng([entropy, 0])
        if self.replay_buffer is not None:
            self.replay_buffer.rng = np.random.default_rng([entropy, 1])

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        check_environment(self)
        assert self.replay_buffer is not None
        self.replay_buffer.set_env(self.env)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        Load saved experience. The options of the buffer remain those of this model.

        :param path: file written by ``save_replay_buffer``
        :param truncate_last_traj: whether to truncate unfinished episodes at their latest step, as a time limit does
        :raises ValueError: see :class:`sb3_pg.common.off_policy.OffPolicyBase`
        """
        own = self.replay_buffer or self._make_replay_buffer()
        super().load_replay_buffer(path)
        assert self.replay_buffer is not None
        self.replay_buffer.adopt_settings(own)
        if truncate_last_traj:
            self.replay_buffer.truncate_last_trajectory()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rng"]
