"""
What all tests share: the algorithms that tests of common behaviour loop over, and how the test process is set up.

``pytest --installed`` insists on an installed package (``scripts/test.sh`` does); without it a checkout on the path will do.
"""

import importlib.util
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when torch is imported, here and in sub-processes: small tensors are fastest on one thread, and sums have one order.
# The imports below do not import torch.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import gymnasium
import hypothesis
import pytest
from conformance.specs import SPECS, Spec

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# Zoo key -> arguments of a model that is quick to build and to train.
ALGORITHMS: dict[str, dict[str, Any]] = {key: spec.small for key, spec in SPECS.items()}

# A goal environment that is there wherever the tests are; the zoo finds environments in the registry alone.
gymnasium.register("PointGoal-v0", entry_point="goal_envs:PointGoalEnv", max_episode_steps=10)

# The same examples in every run, and none is too slow.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None)
hypothesis.settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Add our option.

    :param parser: pytest's own.
    """
    parser.addoption("--installed", action="store_true", help="fail unless sb3_pg is imported from where pip installed it")


def pytest_configure(config: pytest.Config) -> None:
    """
    Stop at once if the tests would run against the wrong sb3_pg.

    :param config: pytest's own.
    :raises pytest.UsageError: No sb3_pg can be imported, or it is not an installed one although ``--installed`` was given.
    """
    folder = package_folder()
    if folder is None:
        raise pytest.UsageError("sb3_pg cannot be imported: install it (pip install -e '.[tests]')")
    if config.getoption("--installed") and Path(sysconfig.get_path("purelib")) not in folder.parents:
        raise pytest.UsageError(f"--installed: sb3_pg would be imported from {folder}, not from site-packages")


def pytest_report_header() -> str:
    """
    Say what is tested.

    :return: A line for the head of the report.
    """
    return f"sb3_pg: {package_folder()}"


def package_folder() -> Path | None:
    """
    Find the package that ``import sb3_pg`` would get, without importing it.

    :return: Its folder, ``None`` if there is no such package.
    """
    spec = importlib.util.find_spec("sb3_pg")
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


@pytest.fixture(scope="session")
def algorithms() -> dict[str, dict[str, Any]]:
    """
    Hand out the table above.

    :return: Zoo key -> arguments of a small model.
    """
    return ALGORITHMS


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Spec:
    """
    Loop over the algorithms; a test that asks for this runs once for each of them.

    :param request: pytest's own.
    :return: What the algorithm promises.
    """
    return SPECS[request.param]


@pytest.fixture(params=ALGORITHMS)
def make_model(request: pytest.FixtureRequest) -> "Callable[..., BaseAlgorithm]":
    """
    Build small models; a test that asks for this runs once for each algorithm.

    :param request: pytest's own.
    :return: Function that builds a model; its keyword arguments come on top of those in the table.
    """
    from sb3_pg.registry import ALGOS

    def make(**overrides: Any) -> "BaseAlgorithm":
        return ALGOS[request.param].load_class()(**{"seed": 0, "device": "cpu", **ALGORITHMS[request.param], **overrides})

    return make
