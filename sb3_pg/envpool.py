"""Former location of :mod:`sb3_pg.envs.envpool`."""

from sb3_pg.envs.envpool import *  # noqa: F403 # an alias
