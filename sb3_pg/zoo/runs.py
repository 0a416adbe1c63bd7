"""
Training runs with the zoo's own command, several in parallel, each followed by an evaluation of the final policy.

A finished run is not repeated. A run that was interrupted, failed or had other settings starts from scratch.
"""

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]  # no stubs installed

Process = subprocess.Popen[bytes]

PACKAGES = ("torch", "stable-baselines3", "rl_zoo3", "gymnasium", "mujoco", "numpy")
# Small networks are fastest on one thread, and sums have a fixed order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Seeds of the final evaluation, beyond those of any training run.
EVALUATION_SEED = 1_000_000
LOG_TAIL = 15


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param folder: output folder, which must not hold anything else
    :param settings: everything that the result depends on, as JSON
    :param options: further options of the zoo's command, such as the yml file and the device
    :param script: arguments of Python that run the zoo's command
    """

    folder: Path
    settings: dict[str, Any]
    options: tuple[str, ...] = ()
    script: tuple[str, ...] = ("-m", "rl_zoo3.train")

    def train_command(self) -> list[str]:
        """
        :return: the zoo's training command, without the interpreter
        """
        settings = self.settings
        command = [*self.script, "--algo", settings["algo"], "--env", settings["env"], "--seed", str(settings["seed"])]
        command += ["-f", str(self.folder), "--eval-freq", str(settings["eval_freq"])]
        command += ["--eval-episodes", str(settings["eval_episodes"]), "--num-threads", "1", "--verbose", "0", *self.options]
        if settings["n_timesteps"] is not None:
            command += ["-n", str(settings["n_timesteps"])]
        return command

    def is_finished(self) -> bool:
        """
        :return: whether there is a result with the same settings
        """
        path = self.folder / "result.json"
        return path.is_file() and json.loads(path.read_text())["settings"] == self.settings


@contextlib.contextmanager
def exclusive_lock(lock: Path, otherwise: str) -> Iterator[None]:
    """
    Prevent other processes from writing to the same folder.

    :param lock: lock file
    :param otherwise: error message
    :raises ValueError: another process holds the lock
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        yield


def run_all(runs: Sequence[Run], jobs: int, made_by: Sequence[str]) -> int:
    """
    Execute runs in parallel, with a progress bar. The processes are terminated when this function is left.

    :param runs: the runs; finished ones are skipped
    :param jobs: number of runs at a time
    :param made_by: command line that asked for the runs, recorded in the results
    :return: number of failed runs; the last lines of their logs are printed
    """
    waiting = deque(run for run in runs if not run.is_finished())
    running: dict[Path, tuple[Iterator[Process], Process | None]] = {}
    failed = 0
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running[run.folder] = run_stages(run, made_by), None
                for folder, (stages, process) in list(running.items()):
                    if process and process.poll() is None:
                        continue
                    try:
                        next_one = next_process(folder, stages, process)
                    except ValueError as error:
                        failed += 1
                        bar.write(f"FAILED: {error}", file=sys.stderr)
                        next_one = None
                    del running[folder]
                    if next_one:
                        running[folder] = stages, next_one
                    else:
                        bar.update()
                    bar.set_postfix_str(", ".join("/".join(path.parts[-3:]) for path in running))
                if sys.stderr.isatty():
                    bar.refresh()  # updates the clock; a log file gets one line per change instead
                time.sleep(0.1)
        finally:
            stop([process for _, process in running.values() if process])
    return failed


def next_process(folder: Path, stages: Iterator[Process], ended: Process | None) -> Process | None:
    """
    :param folder: folder of the run
    :param stages: the processes of the run
    :param ended: the process that has ended, ``None`` before the first one
    :return: the next process, ``None`` after the last one
    :raises ValueError: the process has failed; the message contains the last lines of its log
    """
    if ended and ended.returncode:
        log = max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise ValueError(f"{folder}: exit status {ended.returncode}, the end of {log.name}:\n{tail}")
    return next(stages, None)


def run_stages(run: Run, made_by: Sequence[str]) -> Iterator[Process]:
    """
    Train and evaluate.

    :param run: the run
    :param made_by: command line that asked for the run, recorded in the result
    :return: the processes of training and evaluation; ask for the next one only after the last one has succeeded
    :raises ValueError: the folder holds other files, or training has saved no model
    """
    clear(run)
    began = time.monotonic()
    yield start(run.train_command(), run.folder / "train.log")
    wall_seconds = time.monotonic() - began
    models = list(run.folder.glob(f"{run.settings['algo']}/*/*.zip"))
    model = next((path for path in models if path.stem == path.parent.name.rpartition("_")[0]), None)
    if model is None:
        raise ValueError(f"{run.folder}: training has saved no model, see train.log")
    evaluation = run.folder / "final_rewards.json"
    command = ["-m", "sb3_pg.zoo.evaluation", str(model.parent), "--json", str(evaluation)]
    command += ["--episodes", str(run.settings["final_episodes"]), "--seed", str(EVALUATION_SEED + run.settings["seed"])]
    yield start(command, run.folder / "evaluate.log")
    result = {
        "settings": run.settings,
        "command": shlex.join(["python", *run.train_command()]),
        "made_by": list(made_by),
        "versions": versions(),
        "machine": machine(),
        "steps": json.loads(zipfile.ZipFile(model).read("data"))["num_timesteps"],
        "wall_seconds": round(wall_seconds, 1),
        **summarize(json.loads(evaluation.read_text())),
        "curve": read_curve(model.parent / "evaluations.npz"),
    }
    # Renamed into place: the result is either complete or missing.
    part = run.folder / "result.json.part"
    part.write_text(json.dumps(result, indent=2))
    part.replace(run.folder / "result.json")


def clear(run: Run) -> None:
    """
    Create the folder of a run with nothing but its settings.

    :param run: the run; output of an earlier attempt is deleted
    :raises ValueError: the folder holds files that were not written by a run
    """
    marker = run.folder / "settings.json"
    if run.folder.exists() and any(run.folder.iterdir()) and not marker.is_file():
        raise ValueError(f"{run.folder} is not empty and was not written by this script: choose another --output")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    marker.write_text(json.dumps(run.settings, indent=2))


def start(command: Sequence[str], log: Path) -> Process:
    """
    :param command: arguments of the Python interpreter
    :param log: file for the output
    :return: the started process
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            # The signal of Ctrl-C must not reach the zoo: it would save a half-trained model as if it were the final one.
            start_new_session=True,
        )


def environment() -> dict[str, str]:
    """
    :return: environment variables of the processes: those of this process, with one thread
    """
    found = os.environ | ENVIRONMENT
    archive = Path(__file__).parents[2]
    if archive.is_file():  # a zip app, which child processes would not find
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(archive), found.get("PYTHONPATH")]))
    return found


def stop(processes: Sequence[Process]) -> None:
    """
    Terminate processes and their children, with SIGKILL after five seconds.

    :param processes: processes, each the leader of its group
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        # All get the signal first: a second Ctrl-C may interrupt the waiting below.
        running = [process for process in processes if process.poll() is None]
        for process in running:
            os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(0.05)


def summarize(rewards: Sequence[float]) -> dict[str, Any]:
    """
    :param rewards: undiscounted return of each episode
    :return: mean, standard deviation, and the returns themselves
    """
    return {"mean": float(np.mean(rewards)), "std": float(np.std(rewards)), "rewards": list(rewards)}


def read_curve(path: Path) -> dict[str, list[float]]:
    """
    :param path: ``evaluations.npz`` of the zoo
    :return: number of steps and mean reward of each evaluation during training; empty if there is none
    """
    if not path.is_file():
        return {"steps": [], "mean": []}
    with np.load(path) as log:
        return {"steps": log["timesteps"].tolist(), "mean": log["results"].mean(axis=1).tolist()}


def versions() -> dict[str, str]:
    """
    :return: versions of Python and of the packages that influence results
    """
    ours = resources.files("sb3_pg").joinpath("version.txt").read_text(encoding="utf-8").strip()
    found = {"python": platform.python_version(), "sb3_pg": ours}
    for package in PACKAGES:
        for distribution in importlib.metadata.distributions(name=package):
            found.setdefault(package, distribution.version)
    return found


def machine() -> str:
    """
    :return: processor and number of cores
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def format_reward(value: float) -> str:
    """
    :param value: a reward
    :return: text with four significant digits, or all digits before the decimal point
    """
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def positive_int(text: str) -> int:
    """
    :param text: value of a command-line option
    :return: the number
    :raises argparse.ArgumentTypeError: the text is not a positive integer
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)
