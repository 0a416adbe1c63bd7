"""``scripts/bench_memory.py`` trains what it says and reads the peak of a process."""

from types import ModuleType

import numpy as np
import pytest
import script_modules


@pytest.fixture(scope="module")
def bench_memory() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("bench_memory")


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.filterwarnings("ignore")  # of buffers larger than this machine's memory
def test_every_case_runs(bench_memory: ModuleType, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "CAPACITY", 1000)
    assert bench_memory.train_her(ours, 1000) >= 1000
    pytest.importorskip("mujoco")
    assert bench_memory.train_rollout(ours, 80) == 160


def test_the_peak_stays_when_memory_is_given_back(bench_memory: ModuleType) -> None:
    before = bench_memory.peak()
    array = np.ones(int(before + 200) * 2**20, np.uint8)
    del array
    assert bench_memory.peak() > before + 190


def test_an_unknown_case_is_named(bench_memory: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_memory.main(["everything"])
    assert "no such case: everything (available: her, rollout)" in capsys.readouterr().err
