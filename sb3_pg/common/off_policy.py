"""What the off-policy algorithms share."""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn

from sb3_pg.common.fused_mlp import MIN_REDUCED, FusedMLP, reduced_precision, reducible


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


def fuse_critics(critic: ContinuousCritic) -> None:
    """
    Replace the networks of SB3's critic by faster ones, with the same parameters under the same names.

    :param critic: changed in place
    """
    for i, network in enumerate(critic.q_networks):
        assert isinstance(network, nn.Sequential)
        fused = FusedMLP(*network)
        critic.add_module(f"qf{i}", fused)
        critic.q_networks[i] = fused
