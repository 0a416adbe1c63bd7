"""``scripts/plot_fast_paths.py``, and what the curves of all such scripts are."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import script_modules

from sb3_pg import SVG0, NStepA2C, fast


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("plot_fast_paths")


def test_a_point_is_the_mean_of_the_episodes_that_ended_in_its_section(script: ModuleType) -> None:
    means = script.section_means(np.array([21, 30, 40, 41, 88, 101]), np.array([1.0, 3.0, 5.0, 7.0, 9.0, 100.0]), 100, 5)
    assert np.array_equal(means, [np.nan, 3.0, 7.0, 7.0, 9.0], equal_nan=True)


@pytest.mark.parametrize("kind", ["reference", "fast", "bfloat16"])
def test_only_the_reference_has_no_fast_path(script: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked during training."""
    paths: list[object] = []
    train = SVG0.train

    def observed(self: SVG0, gradient_steps: int, batch_size: int) -> None:
        paths.append(fast.select(self))
        assert self.bf16 == (kind == "bfloat16")
        train(self, gradient_steps, batch_size)

    monkeypatch.setattr(SVG0, "train", observed)
    script.learning_curve(script.Task("Pendulum-v1", SVG0, 210, 1, {"learning_starts": 200}), kind, 0)
    assert len(paths) == 10
    assert [path is None for path in paths] == [kind == "reference"] * 10


def test_it_trains_draws_and_tabulates(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [
        script.Task("CartPole-v1", NStepA2C, 800, 2, bf16=False),
        script.Task("Pendulum-v1", SVG0, 450, 1, {"learning_starts": 420, "policy_kwargs": {"net_arch": [64, 64]}}),
    ]
    script.main(["--seeds", "1", "--output", str(tmp_path / "curves.png")], tasks)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        ["| NStepA2C, CartPole-v1", "reference"],
        ["| NStepA2C, CartPole-v1", "fast"],
        ["| SVG0, Pendulum-v1", "reference"],
        ["| SVG0, Pendulum-v1", "fast"],
        ["| SVG0, Pendulum-v1", "bfloat16"],
    ]
