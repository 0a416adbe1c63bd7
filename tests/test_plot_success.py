"""``scripts/plot_success.py`` draws what the evaluations say."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import script_modules
from matplotlib import pyplot as plt


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("plot_success")


def make_run(folder: Path, **arrays: object) -> Path:
    """
    :param folder: of the run
    :param arrays: of its evaluations
    :return: the folder
    """
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", **arrays)  # type: ignore[arg-type]  # lists will do
    return folder


def test_runs_are_grouped_by_environment(script: ModuleType, tmp_path: Path) -> None:
    first = make_run(tmp_path / "Push-v4_1", timesteps=[10, 20], successes=[[0, 1], [1, 1]])
    second = make_run(tmp_path / "Push-v4_2", timesteps=[10], successes=[[0, 0]])
    other = make_run(tmp_path / "Reach-v4_1", timesteps=[5], successes=[[1, 1]])
    groups = script.group([first, other, second])
    assert {env: [(steps.tolist(), rates.tolist()) for steps, rates in curves] for env, curves in groups.items()} == {
        "Push-v4": [([10, 20], [0.5, 1]), ([10], [0])],
        "Reach-v4": [([5], [1])],
    }


def test_a_picture_is_drawn(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "Push-v4_1", timesteps=[10, 20], successes=[[0, 1], [1, 1]])
    monkeypatch.setattr(sys, "argv", ["plot_success.py", str(run), "-o", str(tmp_path / "success.png")])
    script.main()
    assert plt.imread(tmp_path / "success.png").std() > 0


def test_what_is_missing_is_said(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no evaluations\.npz: train with --eval-freq"):
        script.read_run(tmp_path)
    run = make_run(tmp_path / "CartPole-v1_1", timesteps=[10], results=[[1.0]])
    with pytest.raises(ValueError, match="contains no success rates"):
        script.read_run(run)
