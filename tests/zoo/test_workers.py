"""Several processes tune one study: in a journal file, and in a real PostgreSQL."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres_server
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sb3_pg.zoo import workers
from sb3_pg.zoo.workers import HeartbeatMonitor, fail_dead_trials, heartbeat, host_id, process_start_time

STEPS_OF_A_LONG_TRIAL = 10_000_000


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """
    Provide a storage for studies.

    :param request: Kind of storage.
    :param tmp_path: Folder for a journal file.
    :return: Argument of ``--storage``.
    """
    if request.param == "journal":
        yield str(tmp_path / "study.log")
    else:
        with postgres_server.server() as url:
            yield url


def load(storage: str) -> optuna.Study:
    """
    Load the study, or create it.

    :param storage: Argument of ``--storage``.
    :return: The study.
    """
    backend: Any = optuna.storages.JournalStorage(JournalFileBackend(storage)) if storage.endswith(".log") else storage
    return optuna.create_study(storage=backend, study_name="s", direction="maximize", load_if_exists=True)


def worker(storage: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """
    Start a worker process.

    :param storage: Argument of ``--storage``.
    :param folder: Folder for its logs.
    :param arguments: Further arguments.
    :return: The process.
    """
    command = [sys.executable, "-m", "sb3_pg.zoo", "train", "--algo", "vpg", "--env", "CartPole-v1", "-optimize"]
    command += ["--storage", storage, "--study-name", "s", "--no-optim-plots", "--num-threads", "1", "-f", str(folder)]
    command += ["--n-evaluations", "1", "--eval-episodes", "1", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """
    Wait until a condition holds, for a minute at most.

    :param condition: The condition.
    :param what: Description of the condition.
    """
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.slow
def test_three_workers_share_a_study(storage: str, tmp_path: Path) -> None:
    """No trial is lost, and none is run twice."""
    load(storage)  # As in the documentation, the tables are created before the workers start.
    processes = [worker(storage, tmp_path, "-n", "200", "--max-total-trials", "8") for _ in range(3)]
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    trials = load(storage).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    # Each worker may have a running trial when the last one but one starts.
    assert 8 <= len(trials) <= 8 + len(processes) - 1
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({str(trial.params) for trial in trials}) == len(trials)
    assert len({tuple(trial.system_attrs[workers._WORKER][1:]) for trial in trials}) > 1


@pytest.mark.slow
def test_a_killed_worker_does_not_stop_the_others(storage: str, tmp_path: Path) -> None:
    load(storage)
    victim = worker(storage, tmp_path, "-n", str(STEPS_OF_A_LONG_TRIAL), "--n-trials", "1")
    try:
        wait_for(lambda: any(workers._WORKER in trial.system_attrs for trial in load(storage).trials), "a trial has begun")
    finally:
        victim.kill()
        victim.communicate()
    assert [trial.state for trial in load(storage).trials] == [TrialState.RUNNING]
    survivor = worker(storage, tmp_path, "-n", "200", "--max-total-trials", "2")
    output, _ = survivor.communicate(timeout=200)
    assert survivor.returncode == 0, output
    assert "Trial 0 has failed: its worker is dead" in output
    states = [trial.state for trial in load(storage).trials]
    assert states[0] == TrialState.FAIL
    # A failed trial does not count as one of two.
    assert len(states) == 3
    assert set(states[1:]) <= {TrialState.COMPLETE, TrialState.PRUNED}


# ---- who is dead -----------------------------------------------------------------------------------------------------------


def test_a_process_is_alive_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begun = process_start_time(child.pid)
    if begun is None:
        pytest.skip("there is no /proc here")
    child.send_signal(signal.SIGKILL)
    wait_for(lambda: process_start_time(child.pid) is None, "the child is dead")  # a zombie until the parent collects it
    child.communicate()
    assert process_start_time(child.pid) is None
    assert process_start_time(os.getpid()) is not None


def test_a_worker_of_this_machine_is_dead_with_its_process() -> None:
    if host_id() is None:
        pytest.skip("there is no /proc here")
    own = [host_id(), os.getpid(), process_start_time(os.getpid())]
    monitor = HeartbeatMonitor(clock=lambda: 0.0)
    assert not monitor.is_dead("s", 0, {workers._WORKER: own})
    assert monitor.is_dead("s", 0, {workers._WORKER: [host_id(), os.getpid(), "0"]})  # an earlier process with the same ID


def test_a_worker_elsewhere_is_dead_when_it_has_been_silent_for_long() -> None:
    now = 0.0
    monitor = HeartbeatMonitor(clock=lambda: now)
    of = {workers._WORKER: ["elsewhere", 1, "1"]}
    assert not monitor.is_dead("s", 3, of)
    now = workers.PATIENCE
    assert not monitor.is_dead("s", 3, of)
    assert not monitor.is_dead("s", 3, {**of, workers._COUNTER: 1})  # a new heartbeat
    now += workers.PATIENCE + 1
    assert not monitor.is_dead("another study", 3, {**of, workers._COUNTER: 1})
    assert monitor.is_dead("s", 3, {**of, workers._COUNTER: 1})


def test_trials_of_other_programs_are_left_alone() -> None:
    study = optuna.create_study()
    study.ask()
    assert not HeartbeatMonitor(clock=lambda: 1e9).is_dead("s", 0, {})
    assert fail_dead_trials(study) == []
    assert study.trials[0].state == TrialState.RUNNING


def test_a_worker_counts_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    trial = study.ask()

    def count() -> int:
        return int(study.trials[0].system_attrs.get(workers._COUNTER, 0))

    with contextlib.suppress(KeyError), heartbeat(trial, interval=0.01):
        wait_for(lambda: count() > 2, "counts")
        monkeypatch.setattr(trial.storage, "set_trial_system_attr", lambda *_: 1 / 0)  # unreachable
        time.sleep(0.05)
        monkeypatch.undo()
        before = count()
        wait_for(lambda: count() > before, "goes on counting")
        raise KeyError
    after = count()
    time.sleep(0.05)
    assert count() == after
    assert study.trials[0].system_attrs[workers._WORKER] == [host_id(), os.getpid(), process_start_time(os.getpid())]


def test_a_trial_that_somebody_else_failed_first_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.storage.set_trial_system_attr(trial._trial_id, workers._WORKER, [host_id(), os.getpid(), "0"])

    def is_dead(*_: Any) -> bool:
        study.tell(trial.number, state=TrialState.FAIL)
        return True

    monitor = HeartbeatMonitor()
    monkeypatch.setattr(monitor, "is_dead", is_dead)
    assert fail_dead_trials(study, monitor) == []
    assert study.trials[0].state == TrialState.FAIL
