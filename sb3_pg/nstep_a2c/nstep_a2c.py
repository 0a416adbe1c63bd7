"""Synchronous advantage actor-critic with three horizons of the return."""

from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.a2c.a2c import A2C
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.on_policy import Batch, OnPolicyActorCritic
from sb3_pg.estimators import baselines, returns
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast import Accelerated
from sb3_pg.fast.actor_critic import FastActorCritic
from sb3_pg.nstep_a2c.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg.nstep_a2c.validation import check_environments, check_options, optimizer_kwargs

SelfNStepA2C = TypeVar("SelfNStepA2C", bound="NStepA2C")


class NStepA2C(Accelerated, OnPolicyActorCritic, A2C, fast_path=FastActorCritic):
    """
    n-step advantage actor-critic: ``n_steps`` steps in each environment, then one gradient step on
    ``mean[-log pi(a_t | s_t) (R_t - V(s_t)) + vf_coef (V(s_t) - R_t)^2] - ent_coef mean[H(pi(. | s_t))]``
    (Mnih et al. 2016, https://arxiv.org/abs/1602.01783, algorithm S3, synchronous).

    A superset of SB3's ``A2C``: every argument is accepted with the same meaning. Only the default optimizer differs.

    ``R_t`` bootstraps with the critic after one of these look-aheads:

    - to the end of the rollout (default; as in SB3 with ``gae_lambda=1``);
    - ``return_steps=k``: k rewards (Sutton & Barto 2018, eq. 7.1), fewer only where the episode or the rollout ends;
    - ``gae_lambda < 1``: a geometric mixture of all look-aheads (Schulman et al. 2016, https://arxiv.org/abs/1506.02438).

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class
    :param env: environment or its id
    :param learning_rate: learning rate; constant or function of the remaining progress (from 1 to 0)
    :param n_steps: number of steps of a rollout in each environment
    :param gamma: discount factor
    :param gae_lambda: lambda of the return; 1: sum of rewards up to the end of the rollout
    :param ent_coef: weight of the entropy bonus
    :param vf_coef: weight of the value loss
    :param max_grad_norm: maximum norm of the gradient; ``None``: no clipping
    :param rms_prop_eps: epsilon of RMSprop, only with ``use_rms_prop``
    :param use_rms_prop: ``False``: Adam; ``True``: PyTorch's RMSprop, SB3's default; ``"tf"``: TensorFlow's, for
        which the predecessors of SB3 were tuned: epsilon inside the square root, and a mean square that starts at 1.
        Ignored if ``policy_kwargs`` has an ``optimizer_class``, as in SB3
    :param use_sde: generalised state-dependent exploration (gSDE) instead of independent noise
    :param sde_sample_freq: number of steps between samples of gSDE noise; -1: only at the beginning of a rollout
    :param rollout_buffer_class: class of the rollout buffer. A class not derived from
        :class:`sb3_pg.common.buffers.PolicyGradientBuffer` is filled and used exactly as in SB3's A2C
    :param rollout_buffer_kwargs: keyword arguments of that class
    :param normalize_advantage: shift and scale the advantages of a batch to mean 0 and standard deviation 1
    :param stats_window_size: number of episodes over which logged returns, lengths and success rates are averaged
    :param tensorboard_log: folder of the tensorboard logs
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: seed of all random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks on construction
    :param return_steps: look-ahead k of the n-step return, at most ``n_steps``; requires ``gae_lambda=1``
    :param value_learning_rate: learning rate of the critic, which then has its own optimizer: constant, schedule or
        ``"lin_1e-3"``; if not given, actor and critic share an optimizer
    :raises ValueError: options that conflict or are out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    n_steps: int

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool | str = False,
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
        return_steps: int | None = None,
        value_learning_rate: float | str | Schedule | None = None,
    ) -> None:
        rms_prop_kwargs = optimizer_kwargs(use_rms_prop, rms_prop_eps)
        if "optimizer_class" not in (policy_kwargs or {}):
            policy_kwargs = {**(policy_kwargs or {}), **rms_prop_kwargs}
        # The optimizer, which A2C would choose here, is already in policy_kwargs.
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None: no clipping
            rms_prop_eps=rms_prop_eps,
            use_rms_prop=False,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_episodes = None
        self.return_steps = return_steps
        self.value_learning_rate = value_learning_rate
        self.value_optimizer = None
        if _init_setup_model:
            self._setup_model()
            check_environments(self)

    @property
    def has_foreign_buffer(self) -> bool:
        """Whether ``rollout_buffer_class`` only works with SB3's A2C."""
        chosen = self.rollout_buffer_class
        return chosen not in (None, self._a2c_buffer_class) and not issubclass(chosen, PolicyGradientBuffer)

    @property
    def _a2c_buffer_class(self) -> type[RolloutBuffer]:
        """A2C's default, which its saved files contain; it is replaced by ours."""
        return DictRolloutBuffer if isinstance(self.observation_space, spaces.Dict) else RolloutBuffer

    def _setup_model(self) -> None:
        check_options(self)
        super()._setup_model()

    def _check_environments(self) -> None:
        check_environments(self)

    def learn(
        self: SelfNStepA2C,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "NStepA2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfNStepA2C:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def train(self) -> None:
        """One gradient step of policy and critic on the collected rollout."""
        if self.has_foreign_buffer:
            A2C.train(self)
            return
        buffer = self.rollout_buffer
        self._update_learning_rates()
        advantages = buffer.select(buffer.advantages)
        if self.normalize_advantage:
            advantages = baselines.standardize(advantages)
        batch = Batch(*buffer.samples(), buffer.tensor(advantages), 1 / len(advantages))
        step = self._update_policy(batch, buffer.tensor(buffer.select(buffer.returns)))

        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/explained_variance", explained_variance(buffer.values.ravel(), buffer.returns.ravel()))
        self.logger.record("train/entropy_loss", step.entropy_loss)
        self.logger.record("train/policy_loss", step.policy_loss)
        self.logger.record("train/value_loss", step.value_loss)
        self.logger.record("train/grad_norm", step.grad_norm)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())

    def collect_rollouts(  # type: ignore[override]  # see OnPolicyActorCritic
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """
        Fill the buffer with ``n_rollout_steps`` steps of each environment.

        :param env: training environments
        :param callback: called after each vectorised step
        :param rollout_buffer: filled with the rollout
        :param n_rollout_steps: steps per environment
        :return: False if a callback stopped the training run
        """
        if self.has_foreign_buffer:
            return A2C.collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def _choose_buffer_class(self) -> type[Any]:
        if self.has_foreign_buffer:
            assert self.rollout_buffer_class is not None
            return self.rollout_buffer_class
        if self.rollout_buffer_class is self._a2c_buffer_class:
            self.rollout_buffer_class = None
        return super()._choose_buffer_class()

    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        arrays = (buffer.rewards, buffer.next_values, buffer.terminated, buffer.truncated)
        if self.return_steps is None:
            return returns.lambda_returns(*arrays, self.gamma, self.gae_lambda)
        return returns.n_step_returns(*arrays, self.gamma, self.return_steps)
