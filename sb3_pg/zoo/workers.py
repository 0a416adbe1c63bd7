"""
Tuning by many processes on one study: trials of workers that died are marked failed.

Optuna leaves the trial of a killed worker running for ever (its heartbeat needs a database, set up by hand). Here each worker
leaves with its trial who it is and, every minute, a new count; whoever starts a trial looks at all that are running.
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

# Seconds between two counts, and how long a count must have stood still until its worker counts as dead. Clocks of different
# machines need not agree: only the watcher's own matters.
INTERVAL = 60.0
PATIENCE = 10 * INTERVAL

_WORKER = "sb3_pg:worker"
_COUNT = "sb3_pg:count"


def place() -> str | None:
    """
    :return: what all processes that see one another share; ``None`` if that is not known
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def started(pid: int) -> str | None:
    """
    :param pid: of a process
    :return: when it was started, in ticks since the machine was; ``None`` if there is no such process, or a dead one
    """
    try:
        # The name of the program, in parentheses, may hold anything. Then comes the state: Z is dead, but not collected yet.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Watch:
    """
    Finds workers that died.

    :param clock: seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: dict[tuple[str, int], tuple[int, float]] = {}

    def is_dead(self, study_name: str, number: int, attributes: dict[str, Any]) -> bool:
        """
        :param study_name: name of the study
        :param number: number of a trial that is said to be running
        :param attributes: what its worker left with it
        :return: whether the worker is certainly gone, or has not been heard of for long
        """
        if _WORKER not in attributes:
            return False  # Not one of ours, or it is just starting.
        where, pid, start = attributes[_WORKER]
        if where is not None and where == place():
            return bool(started(pid) != start)
        key, count = (study_name, number), attributes.get(_COUNT, 0)
        last, since = self.seen.get(key, (None, 0.0))
        if last != count:
            self.seen[key] = count, self.clock()
            return False
        return self.clock() - since > PATIENCE


_watch = Watch()


def fail_dead_trials(study: "optuna.Study", watch: Watch = _watch) -> list[int]:
    """
    Mark the trials of dead workers as failed, so that nobody waits for them.

    :param study: with trials of any number of workers
    :param watch: what is known of them
    :return: their numbers
    """
    import optuna

    failed = []
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if watch.is_dead(study.study_name, trial.number, trial.system_attrs):
            # Another worker may have found it at the same time.
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                failed.append(trial.number)
    return failed


@contextlib.contextmanager
def alive(trial: "optuna.Trial", interval: float = INTERVAL) -> Iterator[None]:
    """
    Tell the others that this process works on a trial.

    :param trial: of a study
    :param interval: seconds between two counts
    """
    storage, number, over = trial.storage, trial._trial_id, threading.Event()
    storage.set_trial_system_attr(number, _WORKER, [place(), os.getpid(), started(os.getpid())])

    def count() -> None:
        beats = 0
        while not over.wait(interval):
            beats += 1
            # The storage may be out of reach for a while; the training itself goes on.
            with contextlib.suppress(Exception):
                storage.set_trial_system_attr(number, _COUNT, beats)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def as_worker(objective: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    """
    :param objective: method that carries out a trial
    :return: the same, looking after the trials of other workers and seen by them
    """

    @functools.wraps(objective)
    def wrapped(self: Any, trial: Any) -> float:
        for number in fail_dead_trials(trial.study):
            print(f"Trial {number} has failed: its worker is dead")
        with alive(trial):
            return objective(self, trial)

    return wrapped
