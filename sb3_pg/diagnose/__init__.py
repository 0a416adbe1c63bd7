"""Measure policy-gradient estimators: variance, signal-to-noise ratio, bias and direction of their estimates."""

from sb3_pg.diagnose.estimators import DEFAULT_ESTIMATORS, Estimator
from sb3_pg.diagnose.measurement import measure
from sb3_pg.diagnose.results import Measurement

__all__ = ["DEFAULT_ESTIMATORS", "Estimator", "Measurement", "measure"]
