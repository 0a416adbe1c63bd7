"""Read a study of the zoo: the command that started it, and its best trials."""

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

from sb3_pg.zoo.runs import positive_int

# User attribute of a study in which the zoo stores its command line, joined by blanks without quotes.
COMMAND = "command"
# Defaults of the zoo's options.
DEFAULTS = {"algo": "ppo", "env": "CartPole-v1", "n_timesteps": -1, "gym_packages": []}
# A study evaluates many trials on few episodes each. Here there are few trials, so more episodes are affordable.
MIN_EPISODES = 20


@dataclass(frozen=True)
class TrainingConfig:
    """
    How the trials of a study were trained.

    :param algo: zoo key of the algorithm
    :param env: id of the environment
    :param n_timesteps: environment steps of a training run; if not positive, those of the yml entry
    :param conf: file or package of hyperparameters; ``None``: the default of the algorithm
    :param params: hyperparameters that override the yml entry
    :param env_kwargs: keyword arguments of the environment
    :param eval_episodes: number of evaluation episodes of a final policy
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
    :param storage: journal file (``*.log``) or URL of a database, as in the zoo's ``--storage``
    :param name: name of the study
    :return: the study
    :raises ValueError: there is no such storage or study, or the database cannot be reached
    """
    backend: Any = storage
    if storage.endswith(".log"):
        if not Path(storage).is_file():  # Optuna would create an empty one.
            raise ValueError(f"--storage: there is no file {storage}")
        backend = _journal(storage)
    elif "://" not in storage:
        raise ValueError(f"--storage: {storage!r} is neither a journal file (*.log) nor the URL of a database")
    try:
        names = optuna.get_all_study_names(backend)
        if name in names:
            return optuna.load_study(study_name=name, storage=backend)
    except Exception as error:  # Each database driver has its own errors, whose messages may contain the password.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"--storage: {hide_password(storage)}: {hide_password(reason)}") from None
    there = f"it has {', '.join(map(repr, sorted(names)))}" if names else "it has none"
    raise ValueError(f"--study-name: {hide_password(storage)} has no study {name!r}; {there}")


def _journal(path: str) -> optuna.storages.JournalStorage:
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(path))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"--storage: {path} is not a journal file of Optuna") from None


def hide_password(text: str) -> str:
    """
    :param text: any text, which may contain URLs
    :return: the text with passwords in URLs replaced by asterisks
    """
    return re.sub(r"://([^:@/\s]*):[^@\s]*@", r"://\1:***@", text)


def best_trials(study: optuna.Study, top: int) -> list[optuna.trial.FrozenTrial]:
    """
    :param study: study with one objective
    :param top: maximum number of trials
    :return: completed trials with the best values, best first
    :raises ValueError: no trial is completed, or the study has several objectives
    """
    if len(study.directions) > 1:
        raise ValueError(f"study {study.study_name!r} has {len(study.directions)} objectives, so it has no best trial")
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    # The zoo gives a trial that was never evaluated the value -inf.
    completed = [trial for trial in trials if math.isfinite(trial.values[0])]
    if not completed:
        raise ValueError(f"study {study.study_name!r} has no completed trial, only {len(study.trials)} others")
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(completed, key=lambda trial: (sign * trial.values[0], trial.number))[:top]


def add_training_options(parser: argparse._ActionsContainer) -> None:
    """
    Add those options of the zoo's training command that decide how a trial is trained.

    :param parser: parser to extend
    """
    pairs: dict[str, Any] = {"nargs": "+", "metavar": "KEY:VALUE"}
    parser.add_argument("--algo", help="key of the algorithm")
    parser.add_argument("--env", help="id of the environment")
    parser.add_argument("-n", "--n-timesteps", type=int, help="environment steps of a training run; -1: as in the yml file")
    parser.add_argument("-conf", "--conf-file", help="yml file or package of hyperparameters that the trial overrides")
    parser.add_argument("-params", "--hyperparams", help="hyperparameters that override the yml file", **pairs)
    parser.add_argument("--env-kwargs", help="keyword arguments of the environment", **pairs)
    parser.add_argument(
        "--eval-episodes", type=positive_int, help=f"evaluation episodes of a final policy (default: at least {MIN_EPISODES})"
    )
    parser.add_argument("--gym-packages", nargs="+", help="packages that register environments")


def read_training_config(study: optuna.Study, given: argparse.Namespace) -> TrainingConfig:
    """
    :param study: study of the zoo, or of another program
    :param given: options that override the command that started the study
    :return: training configuration of its trials
    :raises ValueError: an option is unknown; the message says what to pass
    """
    command = study.user_attrs.get(COMMAND)
    if command is None:
        needed = {"--algo": given.algo, "--env": given.env, "-n": given.n_timesteps}
        missing = [option for option, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f"study {study.study_name!r} does not contain the command that started it: pass {', '.join(missing)}"
            )
    stored = read_command(command or "")
    if stored.eval_env_kwargs:
        print("note: the study was started with --eval-env-kwargs; here policies are evaluated in the training environment")

    def value(name: str) -> Any:
        found = [vars(options)[name] for options in (given, stored)]
        return next((one for one in found if one is not None), DEFAULTS.get(name))

    return TrainingConfig(
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
    :param option: name of the command-line option
    :param pairs: texts ``key:value``; the zoo evaluates the values as Python
    :return: dictionary of the values
    :raises ValueError: the zoo cannot read them
    """
    result = argparse.Namespace(pairs={})
    try:
        read: Any = StoreDict
        read([], "pairs", nargs="+")(argparse.ArgumentParser(), result, pairs or [])
    except Exception as error:  # evaluated code can raise anything
        raise ValueError(f"{option} {' '.join(pairs or [])}: {error}; pass {option}") from error
    return dict(result.pairs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_command(command: str) -> argparse.Namespace:
    """
    :param command: command line as stored by the zoo
    :return: options of :func:`add_training_options` and ``eval_env_kwargs``, ``None`` where the command lacks them
    :raises ValueError: the command cannot be parsed
    """
    parser = _Parser(add_help=False)
    add_training_options(parser)
    parser.add_argument("--eval-env-kwargs", nargs="+")
    try:
        return parser.parse_known_args(_rejoin(command.split()))[0]
    except ValueError as error:
        raise ValueError(f"the command of the study cannot be read ({error}): {hide_password(command)}") from None


def _rejoin(words: Sequence[str]) -> list[str]:
    """
    Rejoin values that contain blanks, such as ``policy_kwargs:dict(net_arch=[64, 64])``.

    :param words: words of a command whose quotes are lost
    :return: its arguments
    """
    arguments: list[str] = []
    for word in words:
        if arguments and re.match(r"\w+:(?!//)", arguments[-1]) and not re.match(r"\w+:|-", word):
            arguments[-1] += f" {word}"
        else:
            arguments.append(word)
    return arguments
