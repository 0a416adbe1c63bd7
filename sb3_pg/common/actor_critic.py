"""What VPG and NStepA2C do alike after a rollout: targets of the critic, gradient steps, the critic's optimizer, saving."""

from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import Schedule, TensorDict
from stable_baselines3.common.utils import update_learning_rate

from sb3_pg.common import losses
from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.networks import ParameterGroups, parameter_groups
from sb3_pg.common.on_policy import RolloutCollector, as_schedule
from sb3_pg.estimators.returns import FloatArray
from sb3_pg.fast.numpy_networks import clip_gradient
from sb3_pg.fast.optimizers import take_step


class Batch(NamedTuple):
    """
    What the policy step uses of a rollout, flattened to ``[S, ...]``.

    :param observations: what the policy saw
    :param actions: what it sampled
    :param weights: what multiplies the score of each step
    :param scale: 1 / (number of episodes), or 1 / S for rollouts of fixed length
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    weights: th.Tensor
    scale: float


class PolicyStep(NamedTuple):
    """
    What there is to log of a gradient step.

    :param log_prob: ``[S]``, log-probability of the actions before it
    :param policy_loss: see :func:`sb3_pg.common.losses.policy_gradient_loss`
    :param entropy_loss: see :func:`sb3_pg.common.losses.entropy_loss`
    :param value_loss: mean squared error of the critic, ``None`` if it took no part
    :param grad_norm: norm of the gradient before clipping
    """

    log_prob: FloatArray
    policy_loss: float
    entropy_loss: float
    value_loss: float | None
    grad_norm: float


class ActorCriticAlgorithm(RolloutCollector):
    """
    Rollouts, an advantage for each step, and an actor whose critic may have an optimizer of its own.

    A subclass says what is estimated (:meth:`_returns`, :meth:`_baseline_values`) and how the networks are updated
    (``train``).
    """

    # The options with which actor and critic have one optimizer, for the message.
    _joint_critic: ClassVar[str] = "value_learning_rate=None"
    n_steps: int | None  # type: ignore[assignment]  # SB3 says int; with whole episodes there is no such number
    normalize_advantage: bool
    value_learning_rate: float | str | Schedule | None
    # None: the critic is part of the policy's optimizer, or there is none.
    value_optimizer: th.optim.Optimizer | None

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is learned."""
        return True

    @cached_property
    def _groups(self) -> ParameterGroups:
        """Which parameters act on what; found out only when it matters."""
        return parameter_groups(self.policy)

    @property
    def _critic_has_own_optimizer(self) -> bool:
        return self.value_learning_rate is not None

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        rate = self.value_learning_rate
        self._value_lr_schedule = self.lr_schedule if rate is None else as_schedule("value_learning_rate", rate)
        self.set_random_seed(self.seed)
        self.rollout_buffer = self._make_rollout_buffer(self.n_steps)
        self.policy = self.policy_class(  # type: ignore[assignment]  # SB3 types policy_class as BasePolicy
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        self.__dict__.pop("_groups", None)
        self.value_optimizer = self._separate_critic() if self._critic_has_own_optimizer else None
        self._fuse_optimizers()
        self._maybe_recommend_cpu(mlp_class_name=self.policy_aliases["MlpPolicy"].__name__)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        # A loaded model may have another number of environments than the one that was constructed.
        self._check_environments()
        return super()._setup_learn(*args, **kwargs)

    @abstractmethod
    def _check_environments(self) -> None:
        """Check the options that depend on the number of environments."""

    # ---- advantages --------------------------------------------------------------------------------------------------------

    def _complete_rollout(self, rollout_buffer: PolicyGradientBuffer) -> None:
        if self.uses_critic:
            self._compute_values(rollout_buffer)
        rollout_buffer.returns = self._returns(rollout_buffer)
        rollout_buffer.advantages = rollout_buffer.returns - self._baseline_values(rollout_buffer)

    @abstractmethod
    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """The weights before the baseline, ``[T, N]``; also the targets of the critic."""

    def _baseline_values(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """What is subtracted from the returns, ``[T, N]``."""
        return buffer.values

    # ---- updates -----------------------------------------------------------------------------------------------------------

    def _step_policy(self, batch: Batch, targets: th.Tensor | None = None) -> PolicyStep:
        """
        One gradient step on the policy loss, or on the loss that actor and critic share, clipped together.

        :param batch: what the policy learns from
        :param targets: ``[S]``, what the critic learns; ``None``: the critic is left alone
        :return: what there is to log
        """
        joint = targets is not None
        optimizers = [self.policy.optimizer, *([self.value_optimizer] if joint and self.value_optimizer else [])]
        differentiate = self._differentiate_modules if self._numpy_networks is None else self._differentiate_arrays
        step = differentiate(batch, targets)
        self._apply(optimizers, step.grad_norm, "policy gradient")
        return step

    def _differentiate_arrays(self, batch: Batch, targets: th.Tensor | None) -> PolicyStep:
        """The gradient by hand, for standard networks."""
        networks = self._numpy_networks
        assert networks is not None and isinstance(batch.observations, th.Tensor)
        obs, value_loss, gradient = batch.observations.numpy(), None, networks.actor_gradient
        policy = networks.differentiate_policy(obs, batch.actions.numpy(), batch.weights.numpy(), batch.scale, self.ent_coef)
        if targets is not None:
            value_loss = networks.differentiate_value_loss(obs, targets.numpy(), self._resolved_vf_coef)
            gradient = networks.gradient
        norm = clip_gradient(gradient, self.max_grad_norm)
        return PolicyStep(policy.log_prob, policy.policy_loss, policy.entropy_loss, value_loss, norm)

    def _differentiate_modules(self, batch: Batch, targets: th.Tensor | None) -> PolicyStep:
        """The gradient by autograd, for any network."""
        self.policy.set_training_mode(True)
        value_loss = None
        if targets is None:
            log_prob, entropy = self._evaluate_policy(batch.observations, batch.actions)
        else:
            values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
            value_loss = losses.value_loss(values.flatten(), targets)
        policy_loss = losses.policy_gradient_loss(log_prob, batch.weights, batch.scale)
        entropy_loss = losses.entropy_loss(entropy, log_prob, batch.scale)
        loss = policy_loss + self.ent_coef * entropy_loss
        if value_loss is not None:
            loss = loss + self._resolved_vf_coef * value_loss
        self.policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        norm = self._clip(list(self.policy.parameters()))
        value_item = None if value_loss is None else value_loss.item()
        return PolicyStep(log_prob.detach().cpu().numpy(), policy_loss.item(), entropy_loss.item(), value_item, norm)

    def _evaluate_policy(self, observations: th.Tensor | TensorDict, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :return: log-probability and entropy, ``[S]`` each; the entropy is ``None`` where it has no closed form
        """
        distribution = self.policy.get_distribution(observations)
        return distribution.log_prob(actions), distribution.entropy()

    @property
    def _resolved_vf_coef(self) -> float:
        return 0.5 if self.vf_coef is None else self.vf_coef

    def _clip(self, parameters: list[th.nn.Parameter]) -> float:
        """Clip the gradients; their norm before."""
        maximum = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return th.nn.utils.clip_grad_norm_(parameters, maximum).item()

    def _apply(self, optimizers: list[th.optim.Optimizer], norm: float, what: str) -> None:
        """Apply the gradients, if their norm is finite."""
        if not np.isfinite(norm):
            # ValueError, so that a tuning study prunes the trial; before the step, so that the parameters stay usable.
            raise ValueError(
                f"the {what} is not finite ({norm}): lower the learning rate, clip with max_grad_norm, or normalise rewards"
            )
        for optimizer in optimizers:
            take_step(optimizer)

    def _separate_critic(self) -> th.optim.Optimizer:
        """Give actor and critic an optimizer each."""
        if self._groups.shared:
            raise ValueError(
                "a critic with an optimizer of its own must not share parameters with the policy: pass "
                f"policy_kwargs=dict(share_features_extractor=False), or {self._joint_critic} for a common optimizer"
            )
        # Any, as in SB3's own call: torch's base class of optimizers declares no lr.
        make: Any = self.policy.optimizer_class
        kwargs = self.policy.optimizer_kwargs
        self.policy.optimizer = make(self._groups.actor, lr=self.lr_schedule(1), **kwargs)
        value_optimizer: th.optim.Optimizer = make(self._groups.critic, lr=self._value_lr_schedule(1), **kwargs)
        return value_optimizer

    def _fuse_optimizers(self) -> None:
        """One pass over all parameters instead of a dozen small operations for each; the arithmetic is the same."""
        for optimizer in (self.policy.optimizer, self.value_optimizer):
            if not isinstance(optimizer, th.optim.Adam) or self.device.type != "cpu":
                continue
            for group in optimizer.param_groups:
                # Whoever has asked for one of these keeps it.
                if not any(group[name] for name in ("foreach", "capturable", "differentiable")) and group["fused"] is None:
                    group["fused"] = True

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.policy.optimizer)
        if self.value_optimizer is not None:
            rate = self._value_lr_schedule(self._current_progress_remaining)
            self.logger.record("train/value_learning_rate", rate)
            update_learning_rate(self.value_optimizer, rate)

    # ---- saving ------------------------------------------------------------------------------------------------------------

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a file or a nested dictionary, as in SB3.

        :param load_path_or_dict: file of a saved model, or what ``get_parameters`` returns
        :param exact_match: whether the parameters must be complete
        :param device: device of the loaded tensors
        :raises ValueError: the parameters are not those of this model
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
        saved_separately = "value_optimizer" in load_path_or_dict
        if exact_match and saved_separately != (self.value_optimizer is not None):
            raise ValueError(
                f"the parameters were saved {'with' if saved_separately else 'without'} the critic's own optimizer "
                "(value_optimizer), and this model is the other way round: keep the options of the critic, such as "
                "value_learning_rate, as they were"
            )
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._fuse_optimizers()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, *(["value_optimizer"] if self.value_optimizer is not None else [])], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_groups", "_numpy_networks", "value_optimizer"]
