"""What a study of the zoo says: what it was started with, and which trials were best."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import optuna
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.utils import StoreDict

from sb3_pg.zoo.runs import positive

# Where the zoo leaves its own command line with a study; the pieces are joined by blanks, without quotes.
COMMAND = "command"
# What the zoo takes if the command does not say it.
DEFAULTS = {"algo": "ppo", "env": "CartPole-v1", "n_timesteps": -1, "gym_packages": []}
# A study has good reason to evaluate each trial only briefly; here there are few.
MIN_EPISODES = 20


@dataclass(frozen=True)
class Task:
    """
    What the trials of a study were trained on, and how.

    :param algo: zoo key
    :param env: id of the environment
    :param n_timesteps: environment steps of a training; not positive: those of the entry in the yml file
    :param conf: file or package of hyperparameters; ``None``: the default of the algorithm
    :param params: hyperparameters in place of those there
    :param env_kwargs: arguments of the environment
    :param eval_episodes: episodes of the evaluation of a final policy
    :param gym_packages: packages that register environments
    """

    algo: str
    env: str
    n_timesteps: int
    conf: str | None
    params: dict[str, Any]
    env_kwargs: dict[str, Any]
    eval_episodes: int
    gym_packages: tuple[str, ...]


def load_study(storage: str, name: str) -> optuna.Study:
    """
    :param storage: journal file (``*.log``) or URL of a database, as the zoo takes it
    :param name: of the study
    :return: the study
    :raises ValueError: there is no such storage or study, or the database cannot be reached
    """
    backend: Any = storage
    if storage.endswith(".log"):
        if not Path(storage).is_file():  # Optuna would make an empty one.
            raise ValueError(f"--storage: there is no file {storage}")
        backend = _journal(storage)
    elif "://" not in storage:
        raise ValueError(f"--storage: {storage!r} is neither a journal file (*.log) nor the URL of a database")
    try:
        names = optuna.get_all_study_names(backend)
        if name in names:
            return optuna.load_study(study_name=name, storage=backend)
    except Exception as error:  # The drivers of the databases have each their own; what they say may hold the password.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--storage: {hide_password(storage)}: {hide_password(reason)}") from None
    there = f"it has {', '.join(map(repr, sorted(names)))}" if names else "it has none"
    raise ValueError(f"--study-name: {hide_password(storage)} has no study {name!r}; {there}")


def _journal(path: str) -> optuna.storages.JournalStorage:
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(path))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"--storage: {path} is no journal file of Optuna") from None


def hide_password(text: str) -> str:
    """
    :param text: with or without URLs in it
    :return: the same, fit to be shown and stored
    """
    return re.sub(r"://([^:@/\s]*):[^@\s]*@", r"://\1:***@", text)


def best_trials(study: optuna.Study, top: int) -> list[optuna.trial.FrozenTrial]:
    """
    :param study: with one objective
    :param top: how many
    :return: completed trials with the best values, best first; fewer if there are no more
    :raises ValueError: no trial is completed, or the study has several objectives
    """
    if len(study.directions) > 1:
        raise ValueError(f"study {study.study_name!r} has {len(study.directions)} objectives, which have no best trial")
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    # The zoo gives a trial that was never evaluated the value -inf.
    completed = [trial for trial in trials if math.isfinite(trial.values[0])]
    if not completed:
        raise ValueError(f"study {study.study_name!r} has no completed trial, only {len(study.trials)} others")
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(completed, key=lambda trial: (sign * trial.values[0], trial.number))[:top]


def add_task_options(parser: argparse._ActionsContainer) -> None:
    """
    :param parser: gets those options of the zoo's training command that decide what a trial trains
    """
    pairs: dict[str, Any] = {"nargs": "+", "metavar": "KEY:VALUE"}
    parser.add_argument("--algo", help="key of the algorithm")
    parser.add_argument("--env", help="id of the environment")
    parser.add_argument("-n", "--n-timesteps", type=int, help="environment steps of a training; -1: as in the yml file")
    parser.add_argument("-conf", "--conf-file", help="yml file or package of hyperparameters below those of the trial")
    parser.add_argument("-params", "--hyperparams", help="hyperparameters in place of those there", **pairs)
    parser.add_argument("--env-kwargs", help="arguments of the environment", **pairs)
    parser.add_argument("--eval-episodes", type=positive, help=f"of a final policy (default: {MIN_EPISODES}, or more)")
    parser.add_argument("--gym-packages", nargs="+", help="packages that register environments")


def read_task(study: optuna.Study, given: argparse.Namespace) -> Task:
    """
    :param study: as the zoo made it, or somebody else
    :param given: options in place of those that the study was started with
    :return: what its trials were trained on
    :raises ValueError: it is not known, and how to say it
    """
    command = study.user_attrs.get(COMMAND)
    if command is None:
        needed = {"--algo": given.algo, "--env": given.env, "-n": given.n_timesteps}
        missing = [option for option, value in needed.items() if value is None]
        if missing:
            raise ValueError(f"study {study.study_name!r} does not say how it was started: pass {', '.join(missing)}")
    stored = read_command(command or "")
    if stored.eval_env_kwargs:
        print("note: the study was started with --eval-env-kwargs; here policies are evaluated where they were trained")

    def value(name: str) -> Any:
        found = [vars(options)[name] for options in (given, stored)]
        return next((one for one in found if one is not None), DEFAULTS.get(name))

    return Task(
        algo=value("algo"),
        env=value("env"),
        n_timesteps=value("n_timesteps"),
        conf=value("conf_file"),
        params=read_pairs("-params", value("hyperparams")),
        env_kwargs=read_pairs("--env-kwargs", value("env_kwargs")),
        eval_episodes=given.eval_episodes or max(MIN_EPISODES, stored.eval_episodes or 0),
        gym_packages=tuple(value("gym_packages")),
    )


def read_pairs(option: str, pairs: list[str] | None) -> dict[str, Any]:
    """
    :param option: what they were given to
    :param pairs: of the form ``key:value``; the zoo evaluates what stands behind the colon
    :return: the values by their keys
    :raises ValueError: the zoo could not read them
    """
    result = argparse.Namespace(pairs={})
    try:
        read: Any = StoreDict
        read([], "pairs", nargs="+")(argparse.ArgumentParser(), result, pairs or [])
    except Exception as error:  # Python code: anything can happen.
        raise ValueError(f"{option} {' '.join(pairs or [])}: {error}; pass {option}") from error
    return dict(result.pairs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_command(command: str) -> argparse.Namespace:
    """
    :param command: as the zoo stores it
    :return: the options of :func:`add_task_options`, ``None`` where the command has not got them, and ``eval_env_kwargs``
    :raises ValueError: it cannot be read
    """
    parser = _Parser(add_help=False)
    add_task_options(parser)
    parser.add_argument("--eval-env-kwargs", nargs="+")
    try:
        return parser.parse_known_args(_rejoin(command.split()))[0]
    except ValueError as error:
        raise ValueError(f"the command of the study cannot be read ({error}): {hide_password(command)}") from None


def _rejoin(words: Sequence[str]) -> list[str]:
    """
    Put values with blanks in them together again, such as ``policy_kwargs:dict(net_arch=[64, 64])``.

    :param words: of a command whose quotes are lost
    :return: its arguments
    """
    arguments: list[str] = []
    for word in words:
        if arguments and re.match(r"\w+:(?!//)", arguments[-1]) and not re.match(r"\w+:|-", word):
            arguments[-1] += f" {word}"
        else:
            arguments.append(word)
    return arguments
