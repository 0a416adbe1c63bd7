"""n-step advantage actor-critic."""

from sb3_pg.nstep_a2c.nstep_a2c import NStepA2C
from sb3_pg.nstep_a2c.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "NStepA2C"]
