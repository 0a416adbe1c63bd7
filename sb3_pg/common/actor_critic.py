"""What VPG and NStepA2C do alike after a rollout: targets of the critic, gradient steps, the critic's optimizer, saving."""

from functools import cached_property
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import Schedule, TensorDict
from stable_baselines3.common.utils import update_learning_rate

from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.common.on_policy import RolloutCollector, as_schedule
from sb3_pg.common.policies import ParameterGroups, parameter_groups
from sb3_pg.common.returns import FloatArray


class ActorCriticAlgorithm(RolloutCollector):
    """
    Rollouts, an advantage for each step, and an actor whose critic may have an optimizer of its own.

    A subclass says what is estimated (:meth:`_returns`, :meth:`_baseline_values`) and how the networks are updated
    (``train``).
    """

    # The options with which actor and critic have one optimizer, for the message.
    _joint_critic: ClassVar[str] = "value_learning_rate=None"
    n_steps: int | None  # type: ignore[assignment]  # None with whole episodes
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
        self._maybe_recommend_cpu(mlp_class_name=self.policy_aliases["MlpPolicy"].__name__)

    # ---- advantages --------------------------------------------------------------------------------------------------------

    def _complete_rollout(self, rollout_buffer: PolicyGradientBuffer) -> None:
        if self.uses_critic:
            self._compute_values(rollout_buffer)
        rollout_buffer.returns = self._returns(rollout_buffer)
        rollout_buffer.advantages = rollout_buffer.returns - self._baseline_values(rollout_buffer)

    def _returns(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """The weights before the baseline, ``[T, N]``; also the targets of the critic."""
        raise NotImplementedError

    def _baseline_values(self, buffer: PolicyGradientBuffer) -> FloatArray:
        """What is subtracted from the returns, ``[T, N]``."""
        return buffer.values

    # ---- updates -----------------------------------------------------------------------------------------------------------

    def _zero_gradients(self) -> None:
        self.policy.optimizer.zero_grad()
        if self.value_optimizer is not None:
            self.value_optimizer.zero_grad()

    def _step(self, optimizers: list[th.optim.Optimizer], parameters: list[th.nn.Parameter], what: str) -> float:
        """Clip and apply the gradients; their norm before clipping."""
        maximum = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        norm = th.nn.utils.clip_grad_norm_(parameters, maximum).item()
        if not np.isfinite(norm):
            # ValueError, so that a tuning study prunes the trial; before the step, so that the parameters stay usable.
            raise ValueError(
                f"the {what} is not finite ({norm}): lower the learning rate, clip with max_grad_norm, or normalise rewards"
            )
        for optimizer in optimizers:
            optimizer.step()
        return norm

    def _step_jointly(self, loss: th.Tensor) -> float:
        """One gradient step on a loss that actor and critic share, clipped together; the norm before clipping."""
        self._zero_gradients()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        optimizers = [self.policy.optimizer, *([] if self.value_optimizer is None else [self.value_optimizer])]
        return self._step(optimizers, list(self.policy.parameters()), "policy gradient")

    def _separate_critic(self) -> th.optim.Optimizer:
        """Give actor and critic an optimizer each."""
        if self._groups.shared:
            raise ValueError(
                "a critic with an optimizer of its own must not share parameters with the policy: pass "
                f"policy_kwargs=dict(share_features_extractor=False), or {self._joint_critic} for a common optimizer"
            )
        make = self.policy.optimizer_class
        kwargs = self.policy.optimizer_kwargs
        self.policy.optimizer = make(self._groups.actor, lr=self.lr_schedule(1), **kwargs)  # type: ignore[call-arg]  # SB3's own call
        return make(self._groups.critic, lr=self._value_lr_schedule(1), **kwargs)  # type: ignore[call-arg]  # likewise

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

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, *(["value_optimizer"] if self.value_optimizer is not None else [])], variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_groups", "_numpy_actor", "value_optimizer"]
