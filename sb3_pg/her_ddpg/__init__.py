"""DDPG with hindsight experience replay."""

from sb3_pg.her_ddpg.buffers import HindsightReplayBuffer
from sb3_pg.her_ddpg.her_ddpg import HERDDPG
from sb3_pg.her_ddpg.policies import MultiInputPolicy

__all__ = ["HERDDPG", "HindsightReplayBuffer", "MultiInputPolicy"]
