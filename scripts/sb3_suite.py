"""
What our classes lose of Stable-Baselines3's own test suite: the plugin and the comparison of ``scripts/sb3_suite.sh``.

As a pytest plugin (``-p sb3_suite --replace A2C=sb3_pg:NStepA2C --record FILE``) it puts a class in the place of one of SB3's
before the tests are imported; the ids of the tests stay. The record holds each test's outcome and whether it built a model of
the class. ``python sb3_suite.py REFERENCE OURS NAME`` compares two records.
"""

import json
import pkgutil
import sys
from fnmatch import fnmatchcase
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

# Name of a run (our class, for SB3's) -> pattern of test ids -> why the test does not apply to us.
EXPECTED: dict[str, dict[str, str]] = {}

_used = False


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Add the plugin's options.

    :param parser: pytest's own
    """
    parser.addoption("--replace", required=True, help="name of SB3's class = module:name of the class to test")
    parser.addoption("--record", required=True, help="file to write outcomes to")
    parser.addoption("--passed-in", help="record of another run: only tests that passed there, with a model of the class")


def pytest_configure(config: pytest.Config) -> None:
    """
    Replace the class.

    :param config: pytest's own
    """
    import stable_baselines3

    name, _, path = config.getoption("--replace").partition("=")
    replacement = pkgutil.resolve_name(path)
    original = replacement.__init__

    @wraps(original)
    def note_use(self: Any, *args: Any, **kwargs: Any) -> None:
        global _used  # noqa: PLW0603  # the one test that is running
        _used = _used or type(self) is replacement
        original(self, *args, **kwargs)

    replacement.__init__ = note_use
    setattr(stable_baselines3, name, replacement)
    config.pluginmanager.register(_Plugin(name, replacement, config), "sb3_suite_run")


class _Plugin:
    """
    Keeps the ids, selects, records.

    :param name: of the class that is replaced
    :param replacement: takes its place
    :param config: pytest's own
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
        :return: its name in the id of the test, ``None``: as usual
        """
        return self.name if val is self.replacement else None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """
        :param items: the tests; those that are not selected are removed
        """
        items[:] = [item for item in items if (self._is_about_it(item) if self.selected is None else item.nodeid in self.selected)]

    def _is_about_it(self, item: pytest.Item) -> bool:
        """Whether a test is not made for another algorithm."""
        from stable_baselines3.common.base_class import BaseAlgorithm

        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        classes = [value for value in values if isinstance(value, type) and issubclass(value, BaseAlgorithm)]
        return not classes or self.replacement in classes

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """
        :param item: the test; whether it used the class becomes a property of its report
        :return: of the hook
        """
        global _used  # noqa: PLW0603  # the one test that is running
        _used = False
        try:
            return (yield)
        finally:
            item.user_properties.append(("used", _used))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """
        :param report: of one phase of a test; also called for those of other processes
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
    :param path: a record
    :return: test id -> outcome, use of the class, message of the failure
    """
    record: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return record


def passed(record: dict[str, dict[str, Any]]) -> list[str]:
    """
    :param record: of one run
    :return: ids of the tests that passed and built a model of the class
    """
    return [test for test, result in record.items() if result["outcome"] == "passed" and result["used"]]


def main(reference_path: str, ours_path: str, name: str) -> int:
    """
    Compare two runs and print what is lost.

    :param reference_path: record with SB3's class
    :param ours_path: record with ours
    :param name: key of :data:`EXPECTED`
    :return: exit code: 1 if a test is lost that the table does not list, or the table lists what is not lost
    """
    reference, ours = passed(load(Path(reference_path))), load(Path(ours_path))
    expected = EXPECTED.get(name, {})
    lost = {test: ours.get(test, {"message": "not run"}) for test in reference if ours.get(test, {}).get("outcome") != "passed"}
    unused = set(expected)
    unexpected = 0
    print(f"== {name}: loses {len(lost)} of {len(reference)}")
    for test, result in lost.items():
        reasons = {pattern: reason for pattern, reason in expected.items() if fnmatchcase(test, f"*::{pattern}")}
        unused -= set(reasons)
        unexpected += not reasons
        message = result["message"].splitlines()[0] if result["message"] else ""
        print(f"{'expected' if reasons else 'LOST'}: {test}\n    {next(iter(reasons.values()), message)}")
    for pattern in sorted(unused):
        print(f"not lost any more: {pattern}")
    return int(unexpected > 0 or bool(unused) or not reference)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
