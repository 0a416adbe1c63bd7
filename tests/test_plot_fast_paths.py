"""``scripts/plot_fast_paths.py``, and what the curves of all such scripts are."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import script_modules
import torch as th
from graphs import is_fused

from sb3_pg import SVG0, NStepA2C
from sb3_pg.fast.numpy_networks import numpy_networks
from sb3_pg.fast.optimizers import _plan_of


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


def test_no_short_cut_is_left_to_a_watched_model(script: ModuleType) -> None:
    actor_critic = NStepA2C("MlpPolicy", "CartPole-v1", device="cpu")
    assert numpy_networks(actor_critic.policy) is not None
    script.watch(actor_critic)
    assert numpy_networks(actor_critic.policy) is None
    off_policy = SVG0("MlpPolicy", "Pendulum-v1", device="cpu", learning_starts=10, seed=0)
    off_policy.learn(30)

    def results() -> list[th.Tensor]:
        policy = off_policy.actor.distribution(th.zeros(2, 3))
        return [policy.mean, policy.stddev, off_policy.critic.q_networks[0](th.zeros(2, 4))]

    assert all(map(is_fused, results()))
    assert None not in off_policy._look_for_short_cuts()
    assert _plan_of(off_policy.critic.optimizer) is not None
    script.watch(off_policy)
    assert _plan_of(off_policy.critic.optimizer) is None
    off_policy.learn(30)
    assert off_policy._look_for_short_cuts() == (None, None)
    assert not any(map(is_fused, results()))


def test_it_trains_draws_and_tabulates(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [
        script.Task("CartPole-v1", NStepA2C, 800, 2, bf16=False),
        script.Task("Pendulum-v1", SVG0, 450, 1, {"learning_starts": 420, "policy_kwargs": {"net_arch": [64, 64]}}),
    ]
    script.main(["--seeds", "1", "--output", str(tmp_path / "curves.png")], tasks)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        ["| NStepA2C, CartPole-v1", "plain"],
        ["| NStepA2C, CartPole-v1", "fast"],
        ["| SVG0, Pendulum-v1", "plain"],
        ["| SVG0, Pendulum-v1", "fast"],
        ["| SVG0, Pendulum-v1", "bfloat16"],
    ]
