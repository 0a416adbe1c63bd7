"""DDPG with hindsight experience replay, with the details that make it work."""

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    Schedule,
    TensorDict,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.ddpg.ddpg import DDPG
from stable_baselines3.td3.policies import TD3Policy
from torch.nn import functional as F

from sb3_pg.common import losses
from sb3_pg.common.off_policy import OffPolicyBase
from sb3_pg.fast.optimizers import descend, take_step
from sb3_pg.fast.written_out import Remembered, fit_critics
from sb3_pg.her_ddpg import fast as written_out
from sb3_pg.her_ddpg.buffers import Array, HindsightReplayBuffer
from sb3_pg.her_ddpg.policies import MultiInputPolicy
from sb3_pg.her_ddpg.validation import ACTION_NOISE_STD, check_environment, check_options, default_gamma

SelfHERDDPG = TypeVar("SelfHERDDPG", bound="HERDDPG")


class _Batch(NamedTuple):
    """
    A sample of the replay buffer, ready for the networks.

    :param inputs: what actor and critic are called with
    :param next_inputs: the same for what came ``n_steps`` later
    :param actions: ``[B, A]``, scaled to [-1, 1]
    :param rewards: ``[B, 1]``
    :param discounts: ``[B, 1]``, 0 where the episode terminated
    """

    inputs: th.Tensor | TensorDict
    next_inputs: th.Tensor | TensorDict
    actions: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor


class HERDDPG(OffPolicyBase, DDPG):
    """
    DDPG with hindsight experience replay (Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495), with the settings of
    Plappert et al. 2018 (https://arxiv.org/abs/1802.09464) as defaults.

    It works in cycles: ``train_freq`` whole episodes in each environment, then ``gradient_steps`` minibatches, then one
    update of the target networks. Observations and goals are normalised by the policy, so that a saved policy is complete.

    :param policy: ``"MultiInputPolicy"`` or a subclass of :class:`sb3_pg.her_ddpg.MultiInputPolicy`
    :param env: goal environment, or its id
    :param learning_rate: learning rate of actor and critic
    :param buffer_size: number of transitions that are kept
    :param learning_starts: number of steps with uniformly random actions before training starts
    :param batch_size: size of a minibatch; the authors' is 256 for each of their workers
    :param tau: weight of the new parameters in an update of the target networks
    :param gamma: discount factor; ``None``: 1 - 1/T, T the environment's time limit
    :param train_freq: length of a cycle: a number of steps, or ``(k, "episode")``, which lasts until k times the number of
        environments have finished; an episode that is still running goes on in the next cycle
    :param gradient_steps: number of minibatches in a cycle; -1: as many as steps were taken
    :param action_noise: SB3's noise in place of ``action_noise_std``, added to actions scaled to [-1, 1]
    :param replay_buffer_class: subclass of :class:`sb3_pg.her_ddpg.HindsightReplayBuffer`
    :param replay_buffer_kwargs: its arguments, such as ``n_sampled_goal`` and ``goal_selection_strategy`` (``"future"``,
        ``"final"``, ``"episode"`` or ``"random"``)
    :param optimize_memory_usage: must be False; each observation is kept once in any case
    :param n_steps: length of the returns, all with one goal
    :param tensorboard_log: folder of the tensorboard logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at once
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param random_eps: probability that a whole action is uniformly random
    :param action_noise_std: standard deviation of the Gaussian noise on actions scaled to [-1, 1]; 0.2 unless ``action_noise``
        is given
    :param action_l2: weight of the mean square of the scaled action in the actor's loss
    :param reward_range: least and greatest reward of the environment. The critic's targets are clipped to what such rewards
        can sum up to, [-1/(1-gamma), 0] by default; ``None``: no clipping
    :param terminate_on_success: whether the greatest reward, and nothing else, ends an episode. ``None``: the environment's
        ``compute_terminated`` says so for relabelled goals, or what was recorded is kept where it has none
    :param normalize_inputs: normalise observations and goals by running statistics
    :param target_update: update the target networks once per ``"cycle"`` or after each gradient ``"step"``
    :param bf16: matrix products of the updates in bfloat16: half the time on processors that have instructions for it, and a
        little less exact
    :raises ValueError: options that exclude one another or are out of range; an environment that cannot be relabelled
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**DDPG.policy_aliases, "MultiInputPolicy": MultiInputPolicy}
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
            policy_kwargs=dict(policy_kwargs or {}),  # DDPG writes into it
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
        self.bf16 = bf16
        self._rng = np.random.default_rng()
        if _init_setup_model:
            self._setup_model()

    # ---- setting up --------------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        # The zoo's yml files have lists.
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

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self._networks = Remembered(written_out.networks_of)
        self._actor_parameters, self._critic_parameters = list(self.actor.parameters()), list(self.critic.parameters())

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
        :param seed: seed of all random generators; ``None``: only those of exploration and replay are set, from torch's
        """
        super().set_random_seed(seed)
        # Without a seed of our own torch's generator decides, which users seed with SB3's set_random_seed().
        entropy = int(th.randint(2**31, ())) if seed is None else seed
        self._rng = np.random.default_rng([entropy, 0])
        if self.replay_buffer is not None:
            self.replay_buffer.rng = np.random.default_rng([entropy, 1])

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: environments to train on from now on
        :param force_reset: reset them before training
        :raises ValueError: they cannot be relabelled
        """
        super().set_env(env, force_reset)
        check_environment(self)
        assert self.replay_buffer is not None
        self.replay_buffer.set_env(self.env)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        Load the experience that another process saved. Options of the buffer stay those of this model.

        :param path: file, written by ``save_replay_buffer``
        :param truncate_last_traj: let the episodes that were running end where they were, as if cut by a time limit
        :raises ValueError: it is of another kind, or of another number of environments
        """
        loaded, own = load_from_pkl(path, self.verbose), self.replay_buffer
        if not isinstance(loaded, HindsightReplayBuffer):
            raise ValueError(f"{path} holds a {type(loaded).__name__}, not a HindsightReplayBuffer")
        assert own is not None
        if (loaded.n_envs, loaded.observation_space, loaded.action_space) != (
            own.n_envs,
            own.observation_space,
            own.action_space,
        ):
            raise ValueError(
                f"the replay buffer in {path} is of {loaded.n_envs} environments with {loaded.observation_space} and "
                f"{loaded.action_space}, the model of {own.n_envs} with {own.observation_space} and {own.action_space}"
            )
        loaded.adopt_settings(own)
        if truncate_last_traj:
            loaded.truncate_last_trajectory()
        self.replay_buffer = loaded

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rng", "_networks", "_actor_parameters", "_critic_parameters"]

    # ---- collecting --------------------------------------------------------------------------------------------------------

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        last_obs = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not last_obs and self.replay_buffer is not None:
            # The environments were reset: their running episodes are over.
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
        """
        Collect one cycle. Unlike SB3's loop it counts episodes over several environments.

        :param env: training environments
        :param callback: called after each vectorised step
        :param train_freq: length of the cycle, see the class
        :param replay_buffer: gets the transitions
        :param action_noise: SB3's noise, or ``None``
        :param learning_starts: until that many steps actions are uniformly random
        :param log_interval: dump logs every so many episodes; ``None``: never
        :return: numbers of steps and of finished episodes, and whether to go on
        """
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
        self._update_normalizer()
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
        """
        The policy's action plus noise, or with probability ``random_eps`` a uniformly random one, for each environment.

        :return: actions for the environments, and scaled to [-1, 1] for the buffer, ``[N, A]``
        """
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

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: Array,
        new_obs: Array | dict[str, Array],
        reward: Array,
        dones: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        assert isinstance(new_obs, dict)
        next_obs = new_obs
        if dones.any():
            # The environments have been reset: what came next is in the infos.
            next_obs = {key: array.copy() for key, array in new_obs.items()}
            for i in np.flatnonzero(dones):
                for key, array in next_obs.items():
                    array[i] = infos[i]["terminal_observation"][key]
        replay_buffer.add(self._last_obs, next_obs, buffer_action, reward, dones, infos)  # type: ignore[arg-type]  # dictionaries
        self._last_obs = new_obs

    def _update_normalizer(self) -> None:
        assert self.replay_buffer is not None
        sample = self.replay_buffer.sample_new_episodes()
        if sample is not None:
            self.policy.update_normalizer(sample)

    # ---- training ----------------------------------------------------------------------------------------------------------

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

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update critic, actor and target networks. Does nothing until an episode is complete.

        :param gradient_steps: number of minibatches
        :param batch_size: size of each
        :raises ValueError: a loss is not finite
        """
        assert self.replay_buffer is not None
        if not self.replay_buffer.can_sample:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        networks = self._networks(self.policy, self.bf16)
        with self._precision(), th.set_grad_enabled(networks is None):
            records = [self._update(self._sample_batch(batch_size), networks) for _ in range(gradient_steps)]
        if self.target_update == "cycle":
            self._update_targets()
        self._n_updates += gradient_steps
        self._log(th.stack(records))

    def _update(self, batch: _Batch, networks: written_out.Networks | None = None) -> th.Tensor:
        """
        :param networks: with them, and autograd switched off, the gradients are written out; ``None``: autograd computes them
        :return: critic loss, mean value and actor loss, ``[3]``
        """
        record = th.stack([*self._update_critic(batch, networks), self._update_actor(batch, networks)])
        if self.target_update == "step":
            self._update_targets()
        return record

    @property
    def target_bounds(self) -> tuple[float, float] | None:
        """Least and greatest discounted return that rewards in ``reward_range`` can sum up to; ``None``: not known."""
        if self.reward_range is None:
            return None
        assert self.gamma is not None
        low, high = self.reward_range
        # An episode may terminate after its first step: positive rewards need not sum up, nor negative ones.
        return min(low, low / (1 - self.gamma)), max(high, high / (1 - self.gamma))

    def _sample_batch(self, batch_size: int) -> _Batch:
        assert self.replay_buffer is not None
        sample = self.replay_buffer.sample(batch_size)
        assert sample.discounts is not None
        return _Batch(
            self.policy.prepare(sample.observations),
            self.policy.prepare(sample.next_observations),
            sample.actions,
            sample.rewards,
            sample.discounts * (1 - sample.dones),
        )

    def _update_critic(self, batch: _Batch, networks: written_out.Networks | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: loss and mean value
        """
        targets = self._targets_of(batch, networks)
        if networks is None:
            q_values = self.critic(batch.inputs, batch.actions)
            loss, first_values = th.stack([F.mse_loss(q, targets) for q in q_values]).sum(), q_values[0]
            descend(self.critic.optimizer, loss, self._critic_parameters)
        else:
            assert isinstance(batch.inputs, th.Tensor)
            inputs = th.cat([batch.inputs, batch.actions], dim=1)
            # Half of twice the mean.
            loss, first_values = fit_critics(networks.critics, inputs, targets, th.full_like(targets, 2 / len(targets)))
            take_step(self.critic.optimizer)
        return loss.detach(), first_values.detach().mean()

    @th.no_grad()
    def _targets_of(self, batch: _Batch, networks: written_out.Networks | None = None) -> th.Tensor:
        if networks is None:
            next_actions = self.actor_target(batch.next_inputs)
            values = self.critic_target(batch.next_inputs, next_actions)
            next_values = values[0] if len(values) == 1 else th.cat(values, dim=1).amin(dim=1, keepdim=True)
        else:
            assert isinstance(batch.next_inputs, th.Tensor)
            next_values = written_out.next_values(networks, batch.next_inputs)
        return losses.td_target(batch.rewards, batch.discounts, next_values, self.target_bounds)

    def _update_actor(self, batch: _Batch, networks: written_out.Networks | None = None) -> th.Tensor:
        """
        :return: loss
        """
        if networks is None:
            actions = self.actor(batch.inputs)
            q_values = self.critic.q1_forward(batch.inputs, actions)  # type: ignore[arg-type]  # SB3's hint forgets dictionaries
            loss = losses.deterministic_policy_loss(q_values, actions, self.action_l2)
            descend(self.actor.optimizer, loss, self._actor_parameters)
        else:
            assert isinstance(batch.inputs, th.Tensor)
            loss = written_out.differentiate_policy_loss(networks, batch.inputs, self.action_l2)
            take_step(self.actor.optimizer)
        return loss.detach()

    def _update_targets(self) -> None:
        pairs = {id(p): (p, t) for p, t in zip(self._trained(), self._targets(), strict=True)}
        parameters, targets = zip(*pairs.values(), strict=True)
        with th.no_grad():
            th._foreach_lerp_(list(targets), list(parameters), self.tau)
        # Statistics of batch normalisation in an extractor of the user's.
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            polyak_update(get_parameters_by_name(network, ["running_"]), get_parameters_by_name(target, ["running_"]), 1.0)

    def _trained(self) -> Iterable[th.Tensor]:
        # A shared extractor is met twice here, and once in the dictionary above.
        return [*self.actor.parameters(), *self.critic.parameters()]

    def _targets(self) -> Iterable[th.Tensor]:
        return [*self.actor_target.parameters(), *self.critic_target.parameters()]

    def _log(self, records: th.Tensor) -> None:
        """
        :param records: critic loss, mean value and actor loss of each minibatch, ``[G, 3]``
        """
        critic_loss, q_value, actor_loss = records.mean(dim=0).tolist()
        for name, value in (("critic loss", critic_loss), ("actor loss", actor_loss)):
            if not np.isfinite(value):
                # ValueError, so that a tuning study prunes the trial.
                raise ValueError(
                    f"the {name} is not finite ({value}): lower the learning rate, or pass the environment's reward_range"
                )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/actor_loss", actor_loss)
        self.logger.record("train/critic_loss", critic_loss)
        self.logger.record("train/q_value", q_value)
