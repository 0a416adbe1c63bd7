"""Stochastic value gradients of order zero."""

from sb3_pg.svg0.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg.svg0.svg0 import SVG0

__all__ = ["SVG0", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
