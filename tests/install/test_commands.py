"""The commands of the RL Zoo, as users type them, in a folder that has nothing to do with the project."""

import shutil
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest
from install.environment import PIP_INSTALL, Environment

pytestmark = pytest.mark.slow
ALGORITHM = ("--algo", "vpg", "--env", "CartPole-v1")
TRAIN = ("train", *ALGORITHM, "-n", "100", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:32")
MODEL = Path("logs", "vpg", "CartPole-v1_1", "CartPole-v1.zip")


def zoo(script: str, *arguments: str) -> tuple[str, ...]:
    """
    Build a command of the original zoo.

    :param script: Name of the script.
    :param arguments: Its arguments.
    :return: Arguments of the interpreter.
    """
    return ("-m", f"rl_zoo3.{script}", *arguments)


def test_the_stock_commands_train_and_enjoy(installed: Environment) -> None:
    done = installed.python(*zoo(*TRAIN))
    path = installed.python("-c", "from sb3_pg.registry import ALGOS; print(ALGOS['vpg'].yml_path())").stdout.strip()
    assert f"Loading hyperparameters from: {path}\n" in done.stdout
    assert (installed.work / MODEL).is_file()
    assert "sb3_pg" not in done.stderr
    assert "Mean reward" in installed.python(*zoo("enjoy", *ALGORITHM, "-f", "logs", "--no-render", "-n", "300")).stdout


def test_environments_in_processes_of_their_own_work(wheel: Environment) -> None:
    wheel.python(*zoo(*TRAIN, "--vec-env", "subproc", "-f", "subproc"))
    assert (wheel.work / "subproc" / Path(*MODEL.parts[1:])).is_file()


def test_the_launcher_serves_a_target_folder(
    create: Callable[[], Environment], archives: dict[str, Path], tmp_path: Path
) -> None:
    environment = create()
    environment.python(*PIP_INSTALL, "--target", tmp_path / "target", archives["wheel"])
    done = environment.python("-m", "sb3_pg.zoo", *TRAIN, PYTHONPATH=str(tmp_path / "target"))
    assert str(tmp_path / "target" / "sb3_pg" / "hyperparams" / "vpg.yml") in done.stdout
    assert (environment.work / MODEL).is_file()
    command = (environment.work / MODEL.with_suffix("") / "command.txt").read_text()
    assert command.split()[1:5] == ["-m", "sb3_pg.zoo", "train", "--algo"]  # the command as typed


def test_the_launcher_serves_a_zip_app(create: Callable[[], Environment], archives: dict[str, Path], tmp_path: Path) -> None:
    environment = create()
    shutil.unpack_archive(archives["wheel"], tmp_path / "app", "zip")
    zipapp.create_archive(tmp_path / "app", environment.work / "zoo.pyz", main="sb3_pg.zoo.__main__:main")
    environment.python("zoo.pyz", *TRAIN)
    assert (environment.work / MODEL).is_file()
    done = environment.python("zoo.pyz", "tarin", check=False)
    assert done.returncode == 2
    assert "did you mean 'train'?" in done.stderr
