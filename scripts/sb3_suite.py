"""
Stable-Baselines3's own test suite with our classes: the plugin and the comparison of ``scripts/sb3_suite.sh``.

As a pytest plugin (``-p sb3_suite --replace A2C=sb3_pg:NStepA2C --record FILE``) it replaces classes of SB3 before the tests
are imported; the first one is the class under test. The test ids do not change. The record contains the outcome of each test
and whether it built a model of the class. ``python sb3_suite.py REFERENCE OURS NAME`` compares two records.
"""

import json
import pkgutil
import sys
from collections import Counter
from fnmatch import fnmatchcase
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

_FOLDER = {"test_tensorboard.py::test_tensorboard": "the log directory is named after the class"}
_BARS = "a reward threshold for the defaults of SB3's class, after a few hundred steps"
_SEGMENTS = "SVG0 replays segments with behaviour log-probabilities"
_SVG0 = {
    **_FOLDER,
    "replay_buffer_class=HerReplayBuffer cannot store": _SEGMENTS,
    "replay_buffer_class=NStepReplayBuffer cannot store": _SEGMENTS,
    "n_steps=3 is not supported": "td_lambda sets the look-ahead",
    "test_n_step_replay.py::*DID NOT WARN": "n_steps raises an error instead of a warning",
    "batch_size=1 is the number of steps": _SEGMENTS,
    "n_critics is an argument of SVG0": "n_critics is an argument of the algorithm",
    "use_sde=True is not supported": "there is no state-dependent exploration",
    "unexpected keyword argument 'sde_sample_freq'": "there is no state-dependent exploration",
    "optimize_memory_usage=True would lose": "final observations are stored",
    "test_identity.py::test_continuous": "a reward threshold after 400 steps; with the options of SAC it passes",
    "test_features_extractor_target_net": "actor and critics do not share a features extractor",
}
# Pair of our class and SB3's -> pattern that matches a part of "test id: message" -> why the test does not apply.
EXPECTED: dict[str, dict[str, str]] = {
    "NStepA2C-for-A2C": {
        **_FOLDER,
        "test_gae.py::test_infinite_horizon": "the default optimizer is Adam; with use_rms_prop=True it passes",
        "test_identity.py::test_discrete": "the default optimizer is Adam; with use_rms_prop=True it passes",
    },
    "VPG-for-A2C": {
        **_FOLDER,
        "test_custom_rollout_buffer: *cannot store what VPG needs": "rollouts store truncation separately from termination",
        "must not share parameters with the policy": "the critic has its own optimizer",
        "test_gae.py::test_infinite_horizon": _BARS,
        "test_identity.py::test_": _BARS,
    },
    "SVG0-for-SAC": _SVG0,
    "SVG0-for-DDPG": _SVG0,
    "HERDDPG-for-DDPG": {
        "needs a goal environment": "it requires goal environments",
        "copy_info_dict=True is not supported": "rewards depend only on the goals",
        "gamma=None stands for": "it requires goal environments",  # which is checked after the time limit
    },
}

_used = False


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Add the plugin's options.

    :param parser: pytest's parser
    """
    parser.addoption("--replace", required=True, action="append", help="name of SB3's class=module:name of the class to test")
    parser.addoption("--record", required=True, help="output file of the outcomes")
    parser.addoption("--passed-in", help="record of another run: run only tests that passed there with a model of the class")


def pytest_configure(config: pytest.Config) -> None:
    """
    Replace the classes.

    :param config: pytest's configuration
    """
    import stable_baselines3

    pairs = [pair.split("=") for pair in config.getoption("--replace")]
    replacements = {name: pkgutil.resolve_name(path) for name, path in pairs}
    vars(stable_baselines3).update(replacements)
    name, replacement = next(iter(replacements.items()))
    original = replacement.__init__

    @wraps(original)
    def record_use(self: Any, *args: Any, **kwargs: Any) -> None:
        global _used  # noqa: PLW0603  # of the test that is running
        _used = _used or type(self) is replacement
        original(self, *args, **kwargs)

    replacement.__init__ = record_use
    config.pluginmanager.register(_Plugin(name, replacement, config), "sb3_suite_run")


class _Plugin:
    """
    Keeps the test ids, selects tests, and records outcomes.

    :param name: name of the replaced class
    :param replacement: class in its place
    :param config: pytest's configuration
    """

    def __init__(self, name: str, replacement: type, config: pytest.Config) -> None:
        self.name, self.replacement = name, replacement
        self.is_worker = hasattr(config, "workerinput")
        self.record_path = Path(config.getoption("--record"))
        selection = config.getoption("--passed-in")
        self.selected = set(passed(load(Path(selection)))) if selection else None
        self.outcomes: dict[str, dict[str, Any]] = {}

    def pytest_make_parametrize_id(self, val: object) -> str | None:
        """
        :param val: parameter of a test
        :return: its name in the test id; ``None``: the default
        """
        return self.name if val is self.replacement else None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """
        :param items: collected tests; those that are not selected are removed
        """
        items[:] = filter(self._is_wanted, items)

    def _is_wanted(self, item: pytest.Item) -> bool:
        """Whether a test is selected or, without a selection, is not for another algorithm."""
        if self.selected is not None:
            return item.nodeid in self.selected
        from stable_baselines3.common.base_class import BaseAlgorithm

        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        classes = [value for value in values if isinstance(value, type) and issubclass(value, BaseAlgorithm)]
        return not classes or self.replacement in classes

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """
        :param item: test; its report gets a property that says whether it used the class
        :return: result of the hook
        """
        global _used  # noqa: PLW0603  # of the test that is running
        _used = False
        try:
            return (yield)
        finally:
            item.user_properties.append(("used", _used))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """
        :param report: report of one phase of a test, also of tests in worker processes
        """
        if report.when == "call" or report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            message = (crash.message if crash else str(report.longrepr)) if report.failed else ""
            properties = dict(report.user_properties)
            self.outcomes[report.nodeid] = {"outcome": report.outcome, "used": properties.get("used"), "message": message}

    def pytest_sessionfinish(self) -> None:
        """Write the record."""
        if not self.is_worker:
            self.record_path.write_text(json.dumps(self.outcomes, indent=1))


def load(path: Path) -> dict[str, dict[str, Any]]:
    """
    :param path: file of a record
    :return: test id -> outcome, use of the class, message of the failure
    """
    record: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return record


def passed(record: dict[str, dict[str, Any]]) -> list[str]:
    """
    :param record: record of one run
    :return: ids of the tests that passed and built a model of the class
    """
    return [test for test, result in record.items() if result["outcome"] == "passed" and result["used"]]


def main(reference_path: str, ours_path: str, name: str) -> int:
    """
    Compare two runs, and print the tests that only our class fails.

    :param reference_path: record with SB3's class
    :param ours_path: record with our class
    :param name: key of :data:`EXPECTED`
    :return: exit code: 1 if our class fails a test that the table does not list
    """
    reference, ours = passed(load(Path(reference_path))), load(Path(ours_path))
    expected = EXPECTED.get(name, {})
    lost = {
        test: ours.get(test, {"message": "not run"}) for test in reference if ours.get(test, {}).get("outcome") != "passed"
    }
    reasons: Counter[str] = Counter()
    print(f"== {name}: loses {len(lost)} of {len(reference)}")
    for test, result in lost.items():
        message = result["message"].partition("\n")[0]
        reason = next((reason for part, reason in expected.items() if fnmatchcase(f"{test}: {message}", f"*{part}*")), None)
        reasons[reason or ""] += 1
        if reason is None:
            print(f"LOST: {test}\n    {message}")
    print("\n".join(f"{count:3} expected: {reason}" for reason, count in reasons.items() if reason))
    return int(reasons[""] > 0 or not reference)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
