"""
The start-up hook: registers our algorithms when the RL Zoo is imported, by whomever and in whatever order.

``setup.py`` installs a copy of this file as the top-level module ``_sb3_pg_startup``, and two start-up files that call
:func:`install`: ``sb3_pg.pth`` (Python 3.14 and older) and ``sb3_pg.start`` (PEP 829). It runs at every interpreter start, so:

- it imports nothing that the interpreter has not loaded by then;
- it lies outside of the package, so that it neither imports it nor misses it when somebody deleted the folder by hand;
- whatever goes wrong later must not reach the user's program: see :meth:`_Finder.give_up`.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # Importing typing would cost more than all the rest. Type checkers know this name.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# The keys of sb3_pg.zoo.patches.PATCHES, written out: importing that module is what we put off.
WATCHED = frozenset({"rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.import_envs", "rl_zoo3.exp_manager"})


def install() -> None:
    """Watch for imports of the zoo. Calling it again changes nothing."""
    if not _switched_off() and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _switched_off() -> bool:
    return os.environ.get("SB3_PG_NO_AUTOREGISTER", "0") not in ("", "0")


class _Finder:
    """Leaves finding to the other finders, but takes note of the few modules in ``WATCHED``."""

    def __init__(self) -> None:
        self._asking: set[tuple[int, str]] = set()  # (thread, module) of what we are asking the others for

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """
        Find a watched module, as the import system asks.

        :param name: Full name of the module.
        :param path: Where its package looks for modules.
        :param target: The module to be reloaded, if any.
        :return: What the other finders return, set to call us after the module has run; ``None`` for every other module.
        """
        if name not in WATCHED or _switched_off():
            return None
        question = (get_ident(), name)
        if question in self._asking:  # A finder like us, asking all the others in its turn.
            return None
        self._asking.add(question)
        try:
            spec = self._ask_others(name, path, target)
        finally:
            self._asking.discard(question)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec, spec.loader)  # type: ignore[assignment] # no abc.Loader: importlib.abc is slow
        return spec

    def _ask_others(self, name: str, path: "Sequence[str] | None", target: "ModuleType | None") -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None) if finder is not self else None
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec is not None else None
            if spec is not None:
                return spec
        return None

    def patch(self, module: "ModuleType") -> None:
        """
        Do what the zoo's module needs, now that it has run.

        :param module: One of ``WATCHED``.
        """
        if self not in sys.meta_path:  # We gave up.
            return
        try:
            from sb3_pg.zoo.patches import patch

            patch(module)
        except Exception as error:  # Whatever it is, the zoo without us is better than no zoo.
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """
        Say once why our algorithms are missing, and leave the zoo alone from now on.

        :param error: What went wrong.
        """
        import warnings

        if self not in sys.meta_path:  # Another thread was here first.
            return
        sys.meta_path.remove(self)
        message = (
            "sb3_pg could not add its algorithms to rl_zoo3, which works without them. "
            f"Reason: {type(error).__name__}: {error}. "
            "`python -c 'import sb3_pg; sb3_pg.register()'` shows where it comes from, "
            "`pip uninstall sb3-pg` or SB3_PG_NO_AUTOREGISTER=1 ends this warning."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # Warnings are errors here (-W error), but importing the zoo must not fail.
            print(message, file=sys.stderr)


class _Loader:
    """
    Stands in for a module's loader until the module is executed, then steps back and calls the finder.

    Whoever asks for anything else (its source, its code, its file name) gets the real loader's answer.

    :param spec: The module's specification.
    :param loader: The real loader.
    """

    def __init__(self, spec: "ModuleSpec", loader: "Any") -> None:
        self._spec = spec
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") or name == "_loader":  # Not ours to answer; copying and pickling ask before __init__ ran.
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """
        Execute the module, then add our part.

        :param module: The module, created and empty.
        """
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _finder.patch(module)


_finder = _Finder()
