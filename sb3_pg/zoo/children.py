"""Subprocesses of the zoo's scripts: some scripts start others by names that cannot be found everywhere."""

import functools
import subprocess
import sys
from typing import Any

from sb3_pg.registry import ALGOS

SCRIPTS = ("benchmark", "record_training")


def main_script() -> str | None:
    """
    :return: name of the zoo's script that ``python -m`` runs; ``None`` if it runs something else
    """
    arguments = sys.orig_argv
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    return module.removeprefix("rl_zoo3.") if module.startswith("rl_zoo3.") else None


def redirect_command(command: Any) -> Any:
    """
    :param command: argument of ``subprocess.call``
    :return: the command; if it runs a script of the zoo with one of our algorithms, by this interpreter and our launcher
    """
    if not isinstance(command, list):
        return command
    if command[:2] == ["python", "enjoy.py"]:
        script, rest = "enjoy", command[2:]
    elif command[:2] == ["python", "-m"] and "".join(command[2:3]).startswith("rl_zoo3."):
        script, rest = command[2].removeprefix("rl_zoo3."), command[3:]
    else:
        return command
    ours = "--algo" in rest[:-1] and rest[rest.index("--algo") + 1] in ALGOS
    return [sys.executable, "-m", "sb3_pg.zoo", script, *rest] if ours else command


def patch_subprocess() -> None:
    """Redirect the scripts that this process starts with ``subprocess.call``. Idempotent."""
    original = subprocess.call
    if hasattr(original, "patched_by_sb3_pg"):
        return

    @functools.wraps(original)
    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        return original(redirect_command(command), *args, **kwargs)

    marked: Any = call
    marked.patched_by_sb3_pg = True
    subprocess.call = marked
