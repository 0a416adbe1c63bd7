"""Some scripts of the zoo start others, by names that are not found everywhere."""

import functools
import subprocess
import sys
from typing import Any

from sb3_pg.registry import ALGOS

SCRIPTS = ("benchmark", "record_training")


def main_script() -> str | None:
    """
    :return: name of the script of the zoo that ``python -m`` was asked to run; ``None`` if it was not
    """
    arguments = sys.orig_argv
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    return module.removeprefix("rl_zoo3.") if module.startswith("rl_zoo3.") else None


def redirected(command: Any) -> Any:
    """
    :param command: as ``subprocess.call`` takes it
    :return: the same; for a script of the zoo and one of our algorithms with this interpreter, through our launcher
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


def redirect() -> None:
    """Let the scripts that this process calls be found. Calling it again changes nothing."""
    original = subprocess.call
    if hasattr(original, "is_of_sb3_pg"):
        return

    @functools.wraps(original)
    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        return original(redirected(command), *args, **kwargs)

    marked: Any = call
    marked.is_of_sb3_pg = True
    subprocess.call = marked
