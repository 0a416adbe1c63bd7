"""What the off-policy algorithms share."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pg.common.fused_mlp import MIN_REDUCED, reduced_precision, reducible


class OffPolicyBase(OffPolicyAlgorithm):
    """SB3's off-policy algorithm, with two repairs of its collection, and updates in reduced precision."""

    bf16 = False

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the steps asked for, and a linear learning rate would turn negative there.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _forget_observation(self) -> None:
        """After a callback's stop: the environments have taken a step that is not stored, the next ``learn()`` resets them."""
        self._last_obs = None

    def _check_precision(self) -> None:
        """
        :raises ValueError: ``bf16`` is no truth value, or would change nothing
        """
        if not isinstance(self.bf16, bool):
            raise ValueError(f"bf16={self.bf16!r} must be True or False")
        if not self.bf16:
            return
        if not reducible(self.policy):
            raise ValueError(
                "bf16=True changes nothing for this policy: it takes linear layers of at least "
                f"{MIN_REDUCED} units with ReLU or tanh between them"
            )
        if self.device.type == "cpu" and not any(th.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")):
            warnings.warn("bf16=True: this processor has no instructions for bfloat16, it will be slower", stacklevel=2)

    def _precision(self) -> AbstractContextManager[None]:
        """What updates run in."""
        return reduced_precision(self.policy) if self.bf16 else nullcontext()


def with_fused_adam(optimizer_class: type[th.optim.Optimizer], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """
    :param optimizer_class: of a policy
    :param kwargs: its arguments
    :return: the same, with the same arithmetic in one pass over all parameters where the user chose no implementation of Adam
    """
    chosen = {} if kwargs is None else dict(kwargs)
    if optimizer_class is th.optim.Adam and not {"fused", "foreach", "capturable", "differentiable"} & chosen.keys():
        chosen["fused"] = True
    return chosen


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor, parameters: Sequence[th.Tensor]) -> None:
    """
    One step of an optimizer.

    :param optimizer: of these parameters
    :param loss: scalar
    :param parameters: no gradient is computed for anything else, nor for those that are frozen
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter, gradient in zip(trained, th.autograd.grad(loss, trained, allow_unused=True), strict=True):
        # Fused optimizers walk through memory: both must be laid out alike.
        alike = gradient is None or gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else th.empty_like(parameter).copy_(gradient)
    optimizer.step()
