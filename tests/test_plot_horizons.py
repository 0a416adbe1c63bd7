"""``scripts/plot_horizons.py``: what a point of a curve is, and that the whole of it runs."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import script_modules


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("plot_horizons")


def test_the_table_shows_the_last_fifth(script: ModuleType) -> None:
    rewards = np.zeros((3, script.N_POINTS))
    rewards[:, -script.N_POINTS // 5 :] = [[10.0], [30.0], [20.0]]
    assert script.table({"Task-v0": {"k = 5": rewards}}).splitlines()[-1] == "| Task-v0 | 5 | 20 | 10 | 30 |"


def test_it_trains_draws_and_tabulates(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--seeds", "1", "--n-timesteps", "1024", "--output", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| CartPole-v1")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "5", "20", "∞"]
