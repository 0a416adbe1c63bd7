"""Turn a trial into an entry of a yml file in the zoo's format that trains with the same hyperparameters."""

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

from sb3_pg.zoo.reevaluate.study import TrainingConfig

# Keys whose strings the zoo evaluates as Python expressions.
EVALUATED = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
# Keys of a trial that are not constructor arguments: the zoo builds an object from them.
_OF_THE_ZOO = {"noise_type", "noise_std"}


def base_entry(config: TrainingConfig) -> dict[str, Any]:
    """
    Read the hyperparameters that the trials override, as the zoo does.

    :param config: training configuration of the study
    :return: the entry of the environment, with the overrides of the command line
    :raises ValueError: there is no such algorithm, environment, file or entry
    """
    if config.algo not in ALGOS:
        raise ValueError(f"--algo: the zoo has no {config.algo!r}, but {', '.join(ALGOS)}")
    try:
        for package in config.gym_packages:
            importlib.import_module(package)
        if config.env not in gym.envs.registry:
            raise ValueError(
                f"--env: there is no environment {config.env!r}; --gym-packages imports packages that register some"
            )
        manager: Any = ExperimentManager(argparse.Namespace(), config.algo, config.env, "", config=config.conf)
        with contextlib.redirect_stdout(io.StringIO()):
            entry, _ = manager.read_hyperparameters()
    except (OSError, ImportError) as error:
        raise ValueError(f"{error}: pass -conf or --gym-packages, or change to the folder that the study ran in") from error
    changes: dict[str, Any] = {"env_kwargs": config.env_kwargs} if config.env_kwargs else {}
    if config.n_timesteps > 0:
        changes["n_timesteps"] = config.n_timesteps
    if "n_timesteps" not in (base := {**entry, **config.params, **changes}):
        raise ValueError(f"the hyperparameters of {config.env} do not say how long to train: pass -n")
    return base


def trial_entry(trial: optuna.trial.FrozenTrial, config: TrainingConfig, base: dict[str, Any]) -> dict[str, Any]:
    """
    :param trial: trial of a study
    :param config: training configuration of the study
    :param base: result of :func:`base_entry`
    :return: the base entry, overridden by the sampled values of the trial, as plain yml data
    :raises ValueError: the trial is of another algorithm, or a value cannot be written in yml
    """
    if config.algo not in HYPERPARAMS_CONVERTER:
        raise ValueError(f"--algo: the zoo cannot tune {config.algo}")
    try:
        drawn = HYPERPARAMS_CONVERTER[config.algo](dict(trial.params))
    except KeyError as error:
        raise ValueError(
            f"trial {trial.number} has no {error}: it is not a trial of {config.algo}, pass the right --algo"
        ) from error
    unknown = drawn.keys() - inspect.signature(ALGOS[config.algo]).parameters.keys() - _OF_THE_ZOO
    if unknown:
        raise ValueError(
            f"{config.algo} does not take {', '.join(sorted(unknown))}, which trial {trial.number} has: pass --algo"
        )
    merged = {**base, **drawn}
    text = to_yml(config.env, merged)
    entry: dict[str, Any] = yaml.safe_load(text)[config.env]
    return entry


def to_yml(env: str, entry: dict[str, Any]) -> str:
    """
    :param env: id of the environment
    :param entry: its hyperparameters
    :return: text of a yml file with this entry
    :raises ValueError: a value cannot be written in yml
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
    # The zoo turns a list into a tuple (`train_freq`). Everything else must survive the round trip.
    if written != (list(value) if isinstance(value, tuple) else value):
        raise ValueError(f"{key} cannot be written in a yml file: {value!r}")
    return value


def expression(value: object) -> str:
    """
    :param value: a class of torch or a literal, possibly nested in dicts, lists and tuples
    :return: Python expression that the zoo evaluates to the value
    :raises ValueError: there is no such expression
    """
    text = _expression(value)
    try:
        same = eval(text, dict(vars(rl_zoo3.exp_manager))) == value
    except Exception:  # its repr is not an expression
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
    :param cls: class of torch, or of a name that the evaluating module of the zoo imports
    :return: name of the class in that module
    """
    if getattr(nn, cls.__name__, None) is cls:
        return f"nn.{cls.__name__}"
    if getattr(optim, cls.__name__, None) is cls:
        return f"th.optim.{cls.__name__}"
    return cls.__name__
