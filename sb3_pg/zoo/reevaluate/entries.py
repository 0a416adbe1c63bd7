"""From a trial to an entry of a yml file in the zoo's format that trains the same."""

import argparse
import contextlib
import importlib
import inspect
import io
import keyword
from typing import Any

import gymnasium as gym
import optuna
import rl_zoo3.exp_manager
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from rl_zoo3.utils import ALGOS
from torch import nn, optim

from sb3_pg.zoo.reevaluate.study import Task

# The zoo evaluates strings under these keys as Python.
EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
# Keys that a trial may have and no constructor: the zoo makes an object of them.
_OF_THE_ZOO = {"noise_type", "noise_std"}


def base_entry(task: Task) -> dict[str, Any]:
    """
    Read the hyperparameters below those of the trials, as the zoo does.

    :param task: says where they are
    :return: the entry of the environment, with what the command line put in the place of its values
    :raises ValueError: there is no such algorithm, environment, file or entry
    """
    if task.algo not in ALGOS:
        raise ValueError(f"--algo: the zoo has no {task.algo!r}, but {', '.join(ALGOS)}")
    try:
        for package in task.gym_packages:
            importlib.import_module(package)
        if task.env not in gym.envs.registry:
            raise ValueError(
                f"--env: there is no environment {task.env!r}; --gym-packages imports packages that register some"
            )
        manager: Any = ExperimentManager(argparse.Namespace(), task.algo, task.env, "", config=task.conf)
        with contextlib.redirect_stdout(io.StringIO()):
            entry, _ = manager.read_hyperparameters()
    except (OSError, ImportError) as error:
        raise ValueError(f"{error}: pass -conf or --gym-packages, or change to the folder that the study ran in") from error
    changes: dict[str, Any] = {"env_kwargs": task.env_kwargs} if task.env_kwargs else {}
    if task.n_timesteps > 0:
        changes["n_timesteps"] = task.n_timesteps
    if "n_timesteps" not in (base := {**entry, **task.params, **changes}):
        raise ValueError(f"the hyperparameters of {task.env} do not say how long to train: pass -n")
    return base


def entry_of(trial: optuna.trial.FrozenTrial, task: Task, base: dict[str, Any]) -> dict[str, Any]:
    """
    :param trial: of a study
    :param task: what it was trained on
    :param base: as of :func:`base_entry`
    :return: the base with what the trial drew in the place of its values, as plain data of yml
    :raises ValueError: the trial is of another algorithm, or something in it cannot be written in yml
    """
    if task.algo not in HYPERPARAMS_CONVERTER:
        raise ValueError(f"--algo: the zoo cannot tune {task.algo}")
    try:
        drawn = HYPERPARAMS_CONVERTER[task.algo](dict(trial.params))
    except KeyError as error:
        raise ValueError(f"trial {trial.number} has no {error}: it is none of {task.algo}, pass the right --algo") from error
    unknown = drawn.keys() - inspect.signature(ALGOS[task.algo]).parameters.keys() - _OF_THE_ZOO
    if unknown:
        raise ValueError(f"{task.algo} takes no {', '.join(sorted(unknown))}, which trial {trial.number} has: pass --algo")
    merged = {**base, **drawn}
    text = to_yml(task.env, merged)
    entry: dict[str, Any] = yaml.safe_load(text)[task.env]
    return entry


def to_yml(env: str, entry: dict[str, Any]) -> str:
    """
    :param env: id of the environment
    :param entry: its hyperparameters
    :return: text of a yml file with this one entry
    :raises ValueError: one of them cannot be written there
    """
    plain = {key: _plain(key, value) for key, value in entry.items()}
    return yaml.safe_dump({env: plain}, sort_keys=False, width=float("inf"))


def _plain(key: str, value: object) -> object:
    if key in EVALUATED and value is not None and not isinstance(value, str):
        value = expression(value)
    try:
        written = yaml.safe_load(yaml.safe_dump(value))
    except yaml.YAMLError:
        written = None
    # The zoo makes a tuple of a list (`train_freq`); nothing else may change on the way.
    if written != (list(value) if isinstance(value, tuple) else value):
        raise ValueError(f"{key} cannot be written in a yml file: {value!r}")
    return value


def expression(value: object) -> str:
    """
    :param value: a class of torch, or anything with a literal, also in dicts, lists and tuples
    :return: Python text that the zoo evaluates to it
    :raises ValueError: there is no such text
    """
    text = _expression(value)
    try:
        same = eval(text, dict(vars(rl_zoo3.exp_manager))) == value
    except Exception:  # Whatever its repr is, it is no expression.
        same = False
    if not same:
        raise ValueError(f"the zoo cannot read {value!r} from a yml file")
    return text


def _expression(value: object) -> str:
    if isinstance(value, dict):
        items = {key: _expression(inner) for key, inner in value.items()}
        if all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in items):
            return f"dict({', '.join(f'{key}={text}' for key, text in items.items())})"
        return f"{{{', '.join(f'{key!r}: {text}' for key, text in items.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_expression, value))}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{_expression(inner)}, ' for inner in value)})"
    if isinstance(value, type):
        return _name(value)
    return repr(value)


def _name(cls: type) -> str:
    """
    :param cls: of torch, or imported by the module of the zoo that evaluates the text
    :return: what it is called there
    """
    if getattr(nn, cls.__name__, None) is cls:
        return f"nn.{cls.__name__}"
    if getattr(optim, cls.__name__, None) is cls:
        return f"th.optim.{cls.__name__}"
    return cls.__name__
