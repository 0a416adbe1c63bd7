"""What the off-policy algorithms share."""

import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn

from sb3_pg.common.base import RepairedAlgorithm
from sb3_pg.common.files import atomic_write
from sb3_pg.fast.fused_mlp import MIN_REDUCED, FusedMLP, reduced_precision, reducible


class OffPolicyBase(RepairedAlgorithm, OffPolicyAlgorithm):
    """SB3's off-policy algorithm, repaired, with updates in reduced precision."""

    bf16 = False

    def save_replay_buffer(self, path: str | Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer. A process that is killed in the middle leaves the file that was there before.

        :param path: file to write; ``.pkl`` is added to a name without suffix
        """
        with atomic_write(path, "pkl") as part:
            super().save_replay_buffer(part)

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
