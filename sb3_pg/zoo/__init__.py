"""
Integration into the RL Zoo (``rl_zoo3``), which has no plug-in mechanism.

- :mod:`sb3_pg.zoo.patches` lists and applies all patches of the zoo;
- ``sb3_pg.zoo._startup`` applies them when the zoo is imported, so that ``python -m rl_zoo3.train --algo vpg`` works;
- ``python -m sb3_pg.zoo`` runs the zoo's scripts where start-up files are not read;
- :func:`register` applies them from Python.
"""

from sb3_pg.zoo.patches import register

__all__ = ["register"]
