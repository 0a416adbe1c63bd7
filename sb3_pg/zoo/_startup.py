"""
The start-up hook: registers our algorithms when the RL Zoo is imported, no matter by whom and in which order.

``setup.py`` installs a copy of this file as the top-level module ``_sb3_pg_startup``, and two start-up files that call
:func:`install`: ``sb3_pg.pth`` (Python 3.14 and older) and ``sb3_pg.start`` (PEP 829). It runs at every interpreter start, so:

- it imports nothing that the interpreter has not loaded already;
- it is a module outside the package. It does not import the package, and works without the package folder;
- no error may reach the user's program: see :meth:`_Finder.give_up`.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # Importing typing would cost more than all the rest. Type checkers treat this name as True.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# The keys of sb3_pg.zoo.patches.PATCHES, repeated here because that module must not be imported yet.
WATCHED = frozenset({"rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.import_envs", "rl_zoo3.exp_manager"})


def install() -> None:
    """Watch for imports of the zoo. Calling it again changes nothing."""
    if not _switched_off() and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _switched_off() -> bool:
    return os.environ.get("SB3_PG_NO_AUTOREGISTER", "0") not in ("", "0")


class _Finder:
    """Delegates to the other finders, and wraps the loaders of the modules in ``WATCHED``."""

    def __init__(self) -> None:
        self._asking: set[tuple[int, str]] = set()  # (thread, module) of the searches in progress

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """
        Find a watched module (the method that the import system calls).

        :param name: Full name of the module.
        :param path: Search path of its package.
        :param target: The module to be reloaded, if any.
        :return: The specification from the other finders, with a loader that calls :meth:`patch` after the module has been
            executed; ``None`` for every other module.
        """
        if name not in WATCHED or _switched_off():
            return None
        question = (get_ident(), name)
        if question in self._asking:  # Called by another finder that delegates as we do.
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
        Patch a module of the zoo after its execution.

        :param module: One of ``WATCHED``.
        """
        if self not in sys.meta_path:  # :meth:`give_up` was called.
            return
        try:
            from sb3_pg.zoo.patches import patch

            patch(module)
        except Exception as error:  # The zoo must work in any case.
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """
        Warn once that our algorithms are missing, and uninstall the hook.

        :param error: The reason.
        """
        import warnings

        if self not in sys.meta_path:  # Another thread has done it.
            return
        sys.meta_path.remove(self)
        message = (
            "sb3_pg could not add its algorithms to rl_zoo3, which works without them. "
            f"Reason: {type(error).__name__}: {error}. "
            "`python -c 'import sb3_pg; sb3_pg.register()'` shows the traceback, "
            "`pip uninstall sb3-pg` or SB3_PG_NO_AUTOREGISTER=1 silences this warning."
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # Warnings are errors here (-W error), but importing the zoo must not fail.
            print(message, file=sys.stderr)


class _Loader:
    """
    Replaces a module's loader until the module is executed, then restores the original loader and calls the finder.

    All other attributes (source, code, file name) are those of the original loader.

    :param spec: The module's specification.
    :param loader: The original loader.
    """

    def __init__(self, spec: "ModuleSpec", loader: "Any") -> None:
        self._spec = spec
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") or name == "_loader":  # Copying and pickling look these up before __init__ has run.
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """
        Execute the module, then patch it.

        :param module: The module, created and empty.
        """
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _finder.patch(module)


_finder = _Finder()
