"""The RL Zoo as it was before each test, with our algorithms registered, and its scripts run in this process."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sb3_pg.zoo.__main__ import main


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register our algorithms, and restore the zoo afterwards."""
    import huggingface_sb3  # type: ignore[import-untyped]  # it has no annotations
    import rl_zoo3.exp_manager as exp_manager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    import sb3_pg
    from sb3_pg.zoo.manager import MANAGER_METHODS

    sb3_pg.register()
    tables: list[Any] = [ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER]
    copies = [dict(table) for table in tables]
    places: list[tuple[Any, str]] = [(exp_manager.ExperimentManager, name) for name in ("__init__", *MANAGER_METHODS)]
    places += [(huggingface_sb3, "load_from_hub"), (subprocess, "call")]
    values = [vars(owner)[name] for owner, name in places]
    try:
        yield
    finally:
        for table, copy in zip(tables, copies, strict=True):
            table.clear()
            table.update(copy)
        for (owner, name), value in zip(places, values, strict=True):
            setattr(owner, name, value)


@pytest.fixture
def zoo() -> Iterator[None]:
    """
    Register our algorithms, and restore the zoo afterwards.

    :return: Nothing.
    """
    with registered():
        yield


def run_script(folder: Path, *arguments: str) -> str:
    """
    Run a script of the zoo in this process.

    :param folder: Becomes the working directory.
    :param arguments: Name of the script, and its arguments.
    :return: What it printed.
    """
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, registered(), contextlib.redirect_stdout(output):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["zoo", *arguments])
        main()
    return output.getvalue()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """
    Run scripts of the zoo in an empty folder, which is also the working directory of the test.

    :param tmp_path: The folder.
    :param monkeypatch: pytest's own.
    :return: Function of a script's name and its arguments that returns the output.
    """
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_script(tmp_path, *arguments)
