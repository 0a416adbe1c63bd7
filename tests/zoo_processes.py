"""What stands in for the processes that train and evaluate."""

import json
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

REWARDS = [1.0, 2.0, 6.0]


class StandIn:
    """
    Fake of the processes, which writes the output of the zoo and the evaluation immediately.

    :param start: Function that starts a process.
    """

    def __init__(self, start: Callable[[Sequence[str], Path], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.code = "print('fine')"  # code that the processes run
        self.failing_seeds: set[str] = set()
        self.trained: list[str] = []  # environment and seed of every training run
        self.folders: list[Path] = []  # output folders of the training runs
        self.processes: list[subprocess.Popen[bytes]] = []
        self.most_at_once = 0

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """
        Replace ``start`` of the runs.

        :param command: Arguments of Python.
        :param log: File for the output.
        :return: A process that runs ``code``.
        """
        code = self.code
        if "--algo" in command:
            algo, env, seed, folder = (command[command.index(option) + 1] for option in ("--algo", "--env", "--seed", "-f"))
            self.trained.append(f"{env} {seed}")
            self.folders.append(Path(folder))
            if seed in self.failing_seeds:
                code = "print('many lines\\n' * 100 + 'the reason'); raise SystemExit(3)"
            else:
                self._write_model(Path(folder) / algo / f"{env}_1", env)
        else:
            Path(command[command.index("--json") + 1]).write_text(json.dumps(self.rewards(command)))
        process = self._start(["-c", code], log)
        self.processes.append(process)
        self.most_at_once = max(self.most_at_once, sum(process.poll() is None for process in self.processes))
        return process

    def rewards(self, command: Sequence[str]) -> list[float]:
        """
        Say what an evaluation finds.

        :param command: Arguments of Python.
        :return: A reward for each episode.
        """
        del command
        return REWARDS

    @staticmethod
    def _write_model(folder: Path, env: str) -> None:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"{env}.zip", "w") as model:
            model.writestr("data", json.dumps({"num_timesteps": 2048}))
        np.savez(folder / "evaluations.npz", timesteps=[1000, 2000], results=[[0.0, 2.0], [3.0, 5.0]])
