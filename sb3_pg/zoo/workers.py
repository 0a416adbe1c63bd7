"""
Heartbeats of the workers of a study: trials of dead workers are marked as failed.

In Optuna, the trial of a killed worker stays in the state "running" (Optuna's own heartbeat needs a database, and has to be
set up by hand). Here each worker stores its identity with its trial, and increments a counter every minute. A worker that
starts a trial checks all running trials.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

# Seconds between two heartbeats, and how long the counter must not change until the worker is considered dead. Only the clock
# of the observer is used: clocks of different machines may differ.
INTERVAL = 60.0
PATIENCE = 10 * INTERVAL

_WORKER = "sb3_pg:worker"
_COUNTER = "sb3_pg:count"


def host_id() -> str | None:
    """
    :return: identifier of the machine and PID namespace, shared by all processes that can see one another; ``None``: unknown
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def process_start_time(pid: int) -> str | None:
    """
    :param pid: process ID
    :return: start time of the process, in ticks since boot; ``None`` if there is no such process, or it has ended
    """
    try:
        # The program's name, in parentheses, may contain any character. The next field is the state: Z is a zombie, X dead.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class HeartbeatMonitor:
    """
    Detects dead workers.

    :param clock: function that returns seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: dict[tuple[str, int], tuple[int, float]] = {}

    def is_dead(self, study_name: str, number: int, attributes: dict[str, Any]) -> bool:
        """
        :param study_name: name of the study
        :param number: number of a trial in the state "running"
        :param attributes: system attributes of the trial, with the worker's heartbeat
        :return: whether the worker's process does not exist any more, or has sent no heartbeat for ``PATIENCE`` seconds
        """
        if _WORKER not in attributes:
            return False  # not one of our workers, or it is just starting
        where, pid, start = attributes[_WORKER]
        if where is not None and where == host_id():
            return bool(process_start_time(pid) != start)
        key, count = (study_name, number), attributes.get(_COUNTER, 0)
        last, since = self.seen.get(key, (None, 0.0))
        if last != count:
            self.seen[key] = count, self.clock()
            return False
        return self.clock() - since > PATIENCE


_monitor = HeartbeatMonitor()


def fail_dead_trials(study: "optuna.Study", monitor: HeartbeatMonitor = _monitor) -> list[int]:
    """
    Mark the trials of dead workers as failed.

    :param study: study with any number of workers
    :param monitor: keeps the heartbeats seen so far
    :return: numbers of the failed trials
    """
    import optuna

    failed = []
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if monitor.is_dead(study.study_name, trial.number, trial.system_attrs):
            # Another worker may do the same at the same time.
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                failed.append(trial.number)
    return failed


@contextlib.contextmanager
def heartbeat(trial: "optuna.Trial", interval: float = INTERVAL) -> Iterator[None]:
    """
    Send heartbeats for a trial of this process.

    :param trial: the running trial
    :param interval: seconds between two heartbeats
    """
    storage, number, done = trial.storage, trial._trial_id, threading.Event()
    storage.set_trial_system_attr(number, _WORKER, [host_id(), os.getpid(), process_start_time(os.getpid())])

    def count() -> None:
        beats = 0
        while not done.wait(interval):
            beats += 1
            # The storage may be unreachable for a while; training continues.
            with contextlib.suppress(Exception):
                storage.set_trial_system_attr(number, _COUNTER, beats)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def with_heartbeat(objective: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    """
    :param objective: method of the manager that runs a trial
    :return: the method with heartbeats, which first marks the trials of dead workers as failed
    """

    @functools.wraps(objective)
    def wrapped(self: Any, trial: Any) -> float:
        for number in fail_dead_trials(trial.study):
            print(f"Trial {number} has failed: its worker is dead")
        with heartbeat(trial):
            return objective(self, trial)

    return wrapped
