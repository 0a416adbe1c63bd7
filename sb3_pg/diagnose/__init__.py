"""How good is a gradient estimate? Variance, signal-to-noise ratio, bias and direction of every estimator, measured."""

from sb3_pg.diagnose.estimators import DEFAULT_ESTIMATORS, Estimator
from sb3_pg.diagnose.results import Measurement
from sb3_pg.diagnose.study import measure

__all__ = ["DEFAULT_ESTIMATORS", "Estimator", "Measurement", "measure"]
