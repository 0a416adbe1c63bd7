"""
Policy-gradient algorithms for Stable-Baselines3 and its RL Zoo.

Importing this package imports nothing else: public names are imported lazily, on first access (PEP 562).
The start-up hook and ``python -m sb3_pg.zoo --help`` rely on this.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sb3_pg.her_ddpg.her_ddpg import HERDDPG
    from sb3_pg.nstep_a2c.nstep_a2c import NStepA2C
    from sb3_pg.svg0.svg0 import SVG0
    from sb3_pg.vpg.vpg import VPG
    from sb3_pg.zoo import register

    __version__: str

__all__ = ["HERDDPG", "SVG0", "VPG", "NStepA2C", "__version__", "register"]


def __getattr__(name: str) -> object:
    """
    Import a public name on first access.

    :param name: one of ``__all__``
    :return: the object; it is cached in the module, so this function runs once per name
    :raises AttributeError: no such public name
    """
    if name == "__version__":
        import pkgutil

        # Through the loader, not the file system: the package may be in a zip file.
        value: object = (pkgutil.get_data(__name__, "version.txt") or b"").decode().strip()
    elif name == "register":
        from sb3_pg.zoo import register as value
    elif name in __all__:
        from sb3_pg.registry import ALGOS

        value = next(row for row in ALGOS.values() if row.class_name == name).load_class()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """
    List the public names, including those not imported yet.

    :return: sorted names
    """
    return sorted({*globals(), *__all__})
