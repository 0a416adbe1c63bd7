"""
Trainings with the zoo's own command, several at a time, each with an evaluation of its final policy at the end.

A run that is finished is not repeated; one that was cut off, failed or had other settings starts anew.
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
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are no dependency of ours

Process = subprocess.Popen[bytes]

PACKAGES = ("torch", "stable-baselines3", "rl_zoo3", "gymnasium", "mujoco", "numpy")
# The networks are small: one thread each is fastest, and the sums have one order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Seeds of the evaluation after training lie beyond those of any training.
EVALUATION_SEED = 1_000_000
LOG_TAIL = 15


@dataclass(frozen=True)
class Run:
    """
    One training.

    :param folder: everything it writes goes there, and nothing else may be there
    :param settings: whatever its result depends on, as JSON
    :param options: further options of the zoo's command: where it finds the settings, on what device it runs
    :param script: how Python is told to run this command
    """

    folder: Path
    settings: dict[str, Any]
    options: tuple[str, ...] = ()
    script: tuple[str, ...] = ("-m", "rl_zoo3.train")

    def train_command(self) -> list[str]:
        """
        :return: the zoo's command, without the interpreter
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
        :return: whether the result is there, with the same settings
        """
        path = self.folder / "result.json"
        return path.is_file() and json.loads(path.read_text())["settings"] == self.settings


@contextlib.contextmanager
def alone(lock: Path, otherwise: str) -> Iterator[None]:
    """
    Keep other processes from writing to the same place.

    :param lock: file that only one of them can hold
    :param otherwise: what to say if another one does
    :raises ValueError: another one does
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        yield


def run_all(runs: Sequence[Run], jobs: int, made_by: Sequence[str]) -> int:
    """
    Carry out runs, several at a time, with a progress bar. Whatever ends this ends the processes.

    :param runs: those that are finished are skipped
    :param jobs: how many at a time
    :param made_by: the command that asked for them, for the record
    :return: how many failed; the ends of their logs were shown
    """
    waiting = deque(run for run in runs if not run.is_finished())
    running: dict[Path, tuple[Iterator[Process], Process | None]] = {}
    failed = 0
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running[run.folder] = carry_out(run, made_by), None
                for folder, (stages, process) in list(running.items()):
                    if process and process.poll() is None:
                        continue
                    try:
                        following = next_stage(folder, stages, process)
                    except ValueError as error:
                        failed += 1
                        bar.write(f"FAILED: {error}", file=sys.stderr)
                        following = None
                    del running[folder]
                    if following:
                        running[folder] = stages, following
                    else:
                        bar.update()
                    bar.set_postfix_str(", ".join("/".join(path.parts[-3:]) for path in running))
                if sys.stderr.isatty():
                    bar.refresh()  # The clock goes on in a terminal; a file gets a line for every change.
                time.sleep(0.1)
        finally:
            stop([process for _, process in running.values() if process])
    return failed


def next_stage(folder: Path, stages: Iterator[Process], ended: Process | None) -> Process | None:
    """
    :param folder: of the run
    :param stages: its processes
    :param ended: the last one, ``None`` before the first
    :return: the next one, ``None`` if there is none
    :raises ValueError: the last one failed; with the end of its log
    """
    if ended and ended.returncode:
        log = max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise ValueError(f"{folder}: exit status {ended.returncode}, the end of {log.name}:\n{tail}")
    return next(stages, None)


def carry_out(run: Run, made_by: Sequence[str]) -> Iterator[Process]:
    """
    Train and evaluate.

    :param run: what
    :param made_by: the command that asked for it, for the record
    :return: the processes one after the other; go on only when one has ended well
    :raises ValueError: the folder belongs to something else, or the training left no model
    """
    clear(run)
    began = time.monotonic()
    yield start(run.train_command(), run.folder / "train.log")
    wall_seconds = time.monotonic() - began
    models = list(run.folder.glob(f"{run.settings['algo']}/*/*.zip"))
    model = next((path for path in models if path.stem == path.parent.name.rpartition("_")[0]), None)
    if model is None:
        raise ValueError(f"{run.folder}: the training ended without a model, see train.log")
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
    # Renamed into place, so that there is a whole result or none.
    part = run.folder / "result.json.part"
    part.write_text(json.dumps(result, indent=2))
    part.replace(run.folder / "result.json")


def clear(run: Run) -> None:
    """
    Make the folder of a run, empty but for its settings.

    :param run: what is left of it is deleted
    :raises ValueError: the folder holds something that no run wrote
    """
    marker = run.folder / "settings.json"
    if run.folder.exists() and any(run.folder.iterdir()) and not marker.is_file():
        raise ValueError(f"{run.folder} is not empty and was not written by this script: choose another --output")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    marker.write_text(json.dumps(run.settings, indent=2))


def start(command: Sequence[str], log: Path) -> Process:
    """
    :param command: arguments of this Python
    :param log: gets the output
    :return: the process
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            # On Ctrl-C the zoo would save a half-trained model and look finished: the signal must not reach it.
            start_new_session=True,
        )


def environment() -> dict[str, str]:
    """
    :return: that of the processes: ours, on one thread
    """
    found = os.environ | ENVIRONMENT
    archive = Path(__file__).parents[2]
    if archive.is_file():  # A zip app: nobody else would know where we are.
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(archive), found.get("PYTHONPATH")]))
    return found


def stop(processes: Sequence[Process]) -> None:
    """
    :param processes: ended with their children, by force after five seconds
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        # All get the signal before any is waited for: a second Ctrl-C ends the waiting.
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
            time.sleep(0.05)


def summarize(rewards: Sequence[float]) -> dict[str, Any]:
    """
    :param rewards: undiscounted sum of rewards of each episode
    :return: mean and standard deviation, and the episodes themselves
    """
    return {"mean": float(np.mean(rewards)), "std": float(np.std(rewards)), "rewards": list(rewards)}


def read_curve(path: Path) -> dict[str, list[float]]:
    """
    :param path: the zoo's log of the evaluations during training
    :return: steps taken and mean reward at each; empty if there were none
    """
    if not path.is_file():
        return {"steps": [], "mean": []}
    with np.load(path) as log:
        return {"steps": log["timesteps"].tolist(), "mean": log["results"].mean(axis=1).tolist()}


def versions() -> dict[str, str]:
    """
    :return: of Python and the packages that matter
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


def show(value: float) -> str:
    """
    :param value: a reward
    :return: four digits, or all before the point
    """
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def positive(text: str) -> int:
    """
    :param text: of an option
    :return: its number
    :raises argparse.ArgumentTypeError: it is no positive integer
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)
