"""Vanilla policy gradient."""

from sb3_pg.vpg.policies import CnnPolicy, LinearPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg.vpg.vpg import VPG

__all__ = ["VPG", "CnnPolicy", "LinearPolicy", "MlpPolicy", "MultiInputPolicy"]
