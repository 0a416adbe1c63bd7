"""Training loop of the off-policy algorithms: sample, losses, step, Polyak averaging, logging."""

import io
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import RolloutReturn, Schedule
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update, update_learning_rate
from torch import nn

from sb3_pg.common.base import PolicyGradientAlgorithm
from sb3_pg.common.files import atomic_write
from sb3_pg.common.validation import parse_schedule

# Linear layers with fewer inputs or outputs gain nothing from bfloat16.
MIN_REDUCED = 64

Record = dict[str, th.Tensor]


class OffPolicyBase(PolicyGradientAlgorithm, OffPolicyAlgorithm):
    """
    Actor-critic algorithms that learn from replayed experience, with separate optimizers of actor and critic. A subclass
    supplies the minibatches and the update.
    """

    actor: Any
    critic: Any
    qf_learning_rate: float | str | Schedule | None = None
    qf_lr_schedule: Schedule | None = None
    bf16 = False
    #: Advice in the error about losses that are not finite, besides a lower learning rate.
    if_not_finite: ClassVar[str]

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update critic, actor and target networks. Does nothing while there is no experience.

        :param gradient_steps: number of minibatches
        :param batch_size: number of steps in a minibatch
        :raises ValueError: a loss or its gradient is not finite; that step leaves the parameters unchanged
        """
        if gradient_steps < 1 or not self._can_sample():
            return
        self._update_learning_rate(self._optimizers())
        fast = self._fast_path()
        if fast is None:
            self.policy.set_training_mode(True)
        records = []
        for _ in range(gradient_steps):
            batch = self._sample_batch(batch_size)
            records.append(self._reference_update(batch) if fast is None else fast.update(self, batch))
        self._after_updates()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in records[0]:
            self.logger.record(f"train/{name}", sum(float(record[name]) for record in records) / len(records))

    @abstractmethod
    def _sample_batch(self, batch_size: int) -> Any:
        """
        :param batch_size: number of steps
        :return: minibatch
        """

    @abstractmethod
    def _update(self, batch: Any) -> Record:
        """
        One step of each optimizer.

        :param batch: minibatch
        :return: values to log, detached
        """

    def _after_updates(self) -> None:
        """Called at the end of :meth:`train`, after all minibatches."""

    def _target_networks(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """
        :return: pairs of a network and its target network
        """
        raise NotImplementedError

    def _can_sample(self) -> bool:
        return self.replay_buffer is not None and self.replay_buffer.size() > 0

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _descend(self, optimizer: th.optim.Optimizer, loss: th.Tensor, name: str) -> None:
        """
        Take one step of gradient descent. Only the trainable parameters of the optimizer receive gradients: the actor's loss
        leaves the critic unchanged.

        :param optimizer: optimizer
        :param loss: scalar
        :param name: name of the loss, for the error message
        :raises ValueError: the loss or its gradient is not finite
        """
        self._check_finite(name, loss)
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not trained:
            return
        optimizer.zero_grad()
        loss.backward(inputs=trained)  # type: ignore[no-untyped-call]  # torch
        self._check_gradients(name, trained)
        optimizer.step()

    def _check_finite(self, name: str, loss: th.Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            # ValueError, so that a tuning study prunes the trial.
            raise ValueError(f"the {name} is not finite ({value}): lower the learning rate, or {self.if_not_finite}")

    def _check_gradients(self, name: str, parameters: Iterable[th.Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        # An element that is not finite shows in the sum, which takes a tenth of the time of checking each element.
        if math.isfinite(sum(float(gradient.sum()) for gradient in gradients)):
            return
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise ValueError(f"the gradient of the {name} is not finite: lower the learning rate, or {self.if_not_finite}")

    def _update_targets(self) -> None:
        """``target <- (1 - tau) target + tau network``. Running statistics of batch normalisation are copied, as in SB3."""
        # A dictionary, so that an extractor shared by networks is averaged once.
        pairs: dict[th.Tensor, th.Tensor] = {}
        for network, target in self._target_networks():
            pairs |= zip(target.parameters(), network.parameters(), strict=True)
            polyak_update(get_parameters_by_name(network, ["running_"]), get_parameters_by_name(target, ["running_"]), 1.0)
        polyak_update(pairs.values(), pairs.keys(), self.tau)

    def _reference_update(self, batch: Any) -> Record:
        with ExitStack() as stack:
            if self.bf16:
                # No cache: the optimizers step within the block, and cached copies of the weights would be outdated.
                stack.enter_context(th.autocast(self.device.type, th.bfloat16, cache_enabled=False))
            if th.get_default_device().type != self.device.type:
                # Optimizers create their step counters on the default device.
                stack.enter_context(self.device)
            return self._update(batch)

    # ---- plumbing ----------------------------------------------------------------------------------------------------------

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        As in SB3.

        :param args: positional arguments of SB3's method
        :param kwargs: keyword arguments of SB3's method
        :return: number of steps and episodes, and whether to continue
        """
        rollout = super().collect_rollouts(*args, **kwargs)
        if not rollout.continue_training:
            self._forget_observation()
        return rollout

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        rate = self.qf_learning_rate
        self.qf_lr_schedule = None if rate is None else parse_schedule("qf_learning_rate", rate)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.qf_lr_schedule is not None:
            rate = self.qf_lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.critic.optimizer, rate)
            self.logger.record("train/qf_learning_rate", rate)

    def _check_precision(self) -> None:
        """
        :raises ValueError: ``bf16`` is not a bool, or has no effect
        """
        if not isinstance(self.bf16, bool):
            raise ValueError(f"bf16={self.bf16!r} must be True or False")
        if not self.bf16:
            return
        if not any(isinstance(m, nn.Linear) and min(m.weight.shape) >= MIN_REDUCED for m in self.policy.modules()):
            raise ValueError(
                f"bf16=True has no effect on this policy: no linear layer has at least {MIN_REDUCED} units as input and output"
            )
        if self.device.type == "cpu" and not any(th.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")):
            warnings.warn("bf16=True: this processor has no bfloat16 instructions, updates will be slower", stacklevel=2)

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer atomically: if the process is killed meanwhile, an existing file stays intact.

        :param path: file to write; ``.pkl`` is appended to a name without suffix
        """
        with atomic_write(path, "pkl") as part:
            super().save_replay_buffer(part)

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:  # noqa: ARG002 # SB3's
        """
        Load a replay buffer that was saved with :meth:`save_replay_buffer`.

        :param path: file to read
        :param truncate_last_traj: whether to truncate unfinished episodes at their latest step, as a time limit does
        :raises ValueError: the file contains a buffer of another class, for other spaces or another number of environments
        """
        loaded, kind = load_from_pkl(path, self.verbose), self.replay_buffer_class
        assert kind is not None
        names = ("n_envs", "observation_space", "action_space")
        found, needed = ([getattr(each, name, None) for name in names] for each in (loaded, self))
        if not isinstance(loaded, kind) or found != needed:
            kinds = (
                "{} for {} environments with {} and {}".format(each.__name__, *spaces)
                for each, spaces in ((type(loaded), found), (kind, needed))
            )
            raise ValueError("{} contains a {}, but this model needs a {}".format(path, *kinds))
        loaded.device = self.device
        self.replay_buffer = loaded

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor", "critic", "qf_lr_schedule"]
