"""Earlier place of :mod:`sb3_pg.estimators.returns`."""

from sb3_pg.estimators.returns import *  # noqa: F403 # an alias
