"""``scripts/plot_learning_curve.py``: what it reads from a log folder, and what it says of a wrong one."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import script_modules

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "plot_learning_curve.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("plot_learning_curve")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """
    Write the monitor files of two environments, whose episodes end in turn.

    :param tmp_path: An empty folder.
    :return: A log folder.
    """
    folder = tmp_path / "vpg" / "Env-v0_1"
    folder.mkdir(parents=True)
    for number, episodes in enumerate(["1.5,10,1\n-3,20,4\n", "2,7,2\n8,1,3\n"]):
        header = '#{"t_start": 100.0, "env_id": "Env-v0"}\nr,l,t\n'
        (folder / f"{number}.monitor.csv").write_text(header + episodes)
    return folder


def test_steps_count_all_environments_in_the_order_of_time(script: ModuleType, run: Path) -> None:
    curve = script.read_run(run)
    np.testing.assert_array_equal(curve.steps, [10, 17, 18, 38])
    np.testing.assert_array_equal(curve.rewards, [1.5, 2, 8, -3])
    assert curve.eval_steps.size == 0


def test_evaluations_are_read(script: ModuleType, run: Path) -> None:
    np.savez(run / "evaluations.npz", timesteps=[10, 20], results=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    curve = script.read_run(run)
    np.testing.assert_array_equal(curve.eval_steps, [10, 20])
    np.testing.assert_array_equal(curve.eval_rewards, [[1, 2, 3], [4, 5, 6]])


def test_running_mean(script: ModuleType) -> None:
    values = np.array([2.0, 4.0, 9.0, -1.0])
    np.testing.assert_allclose(script.running_mean(values, 2), [2, 3, 6.5, 4])
    np.testing.assert_allclose(script.running_mean(values, 1), values)
    np.testing.assert_allclose(script.running_mean(values, 9), [2, 3, 5, 3.5])


def test_the_picture_is_written(run: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == f"Learning curve: {run / 'learning_curve.png'}\n"
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_title_names_algorithm_and_environment(script: ModuleType) -> None:
    assert script.title_of(Path("logs/vpg/CartPole-v1_12")) == "VPG on CartPole-v1"
    assert script.title_of(Path("elsewhere")) == "elsewhere"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the log folder of a run"),
        ('#{"t_start": 100.0, "env_id": "Env-v0"}\nr,l,t\n', "no finished training episode"),
    ],
    ids=["empty", "no episode"],
)
def test_a_folder_without_episodes_gets_a_clear_message(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "0.monitor.csv").write_text(content)
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
