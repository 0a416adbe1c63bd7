"""
Every change that we make to the RL Zoo. ``docs/zoo.md`` shows the same table.

=====================  ============================================  ================================================
module of ``rl_zoo3``  change                                        needed because, as of rl_zoo3 2.9.2,
=====================  ============================================  ================================================
``utils``              our classes are added to ``ALGOS``            ``--algo`` accepts the keys of this dict
``hyperparams_opt``    our functions are added to                    ``-optimize`` and ``--trial-id`` look there
                       ``HYPERPARAMS_SAMPLER`` and
                       ``HYPERPARAMS_CONVERTER``
``import_envs``        ``gymnasium_robotics`` is imported, if it is  the zoo does not: ``--env FetchReach-v4`` would
                       installed, without the notice it prints       not be found
``exp_manager``        ``ExperimentManager.__init__`` takes our yml  the zoo looks for it in its own package
                       file as default ``config`` of our algorithms
``exp_manager``        ... and a ``trial_id`` of 0 as one            ``--trial-id 0`` counts as none given
``exp_manager``        ``ExperimentManager.objective`` prunes the    the zoo prunes a trial that fails in ``learn()``; an
                       trial if the constructor of one of our        error in a constructor ends the study
                       algorithms refuses what was drawn
``exp_manager``        ... and marks the trials of dead workers as   a trial whose process was killed counts as running
                       failed (:mod:`sb3_pg.zoo.workers`)            for ever
``exp_manager``        checkpoints of our algorithms come with the   ``--save-freq`` saves models alone, and what training
                       statistics of ``VecNormalize`` and, with      needs beside them is written when it ends
                       ``--save-replay-buffer``, the replay buffer
                       (:mod:`sb3_pg.zoo.checkpoints`)
``exp_manager``        ... and ``-i`` of such a checkpoint loads     ``-i`` looks for them where the end of a training
                       them                                          leaves them
``utils``              ``huggingface_sb3.load_from_hub`` raises the  ``load_from_hub`` and ``enjoy`` expect ``HTTPError`` of
                       error that the zoo expects if one of our      ``requests`` for a model without ``VecNormalize``, and
                       models lacks a file                           huggingface-hub 1 and later raise another one
``utils``              ``huggingface_sb3.push_to_hub`` gets a       ``push_to_hub`` imports this name, which releases up to
                       ``generate_metadata``, if it has none         3.2 of sb3-team-hf-integration spell with an underscore
``utils``              ``benchmark`` and ``record_training`` of our  they start ``python enjoy.py``, which lies in the zoo's
                       models start scripts that are found           repository, and whatever ``python`` is first on the
                       (:mod:`sb3_pg.zoo.children`)                  path
=====================  ============================================  ================================================

The dicts are changed in place and never replaced: all modules of the zoo share them, one of which is called ``__main__`` under
``python -m``.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sb3_pg.registry import ALGOS, Algorithm
from sb3_pg.zoo import children
from sb3_pg.zoo.workers import as_worker

# Held while the zoo is changed, never during an import: that could deadlock with the import system's own locks.
_lock = threading.Lock()

# Module of the zoo -> its tables and how to load our entry of a table.
_TABLES: dict[str, dict[str, Callable[[Algorithm], object]]] = {
    "rl_zoo3.utils": {"ALGOS": Algorithm.load_class},
    "rl_zoo3.hyperparams_opt": {
        "HYPERPARAMS_SAMPLER": Algorithm.load_sampler,
        "HYPERPARAMS_CONVERTER": Algorithm.load_converter,
    },
}


def register() -> None:
    """
    Make our algorithms known to the RL Zoo, as if they were its own. Calling it again changes nothing.

    The start-up hook does the same when the zoo is imported, so that this is only needed where start-up files are not read.

    :raises ImportError: ``rl_zoo3``, or something that it or we need, cannot be imported.
    :raises ValueError: The zoo knows another algorithm by one of our keys. Then nothing is changed.
    """
    modules = [importlib.import_module(name) for name in PATCHES]
    for module in modules:
        _additions(module)  # Finds every clash before anything is changed.
    for module in modules:
        patch(module)


def patch(module: ModuleType) -> None:
    """
    Make our changes to one module of the zoo.

    :param module: One of those in ``PATCHES``, fully imported.
    :raises ValueError: One of our keys is taken. Then nothing is changed.
    """
    PATCHES[module.__name__](module)


def _add_algorithms(module: ModuleType) -> None:
    additions = _additions(module)
    with _lock:
        for table, ours in additions:
            table.update(ours)


def _change_utils(module: ModuleType) -> None:
    """
    Add our algorithms, and mend what the scripts of the zoo use that is not the zoo's. All of them import this module first.

    :param module: ``rl_zoo3.utils``.
    """
    _add_algorithms(module)
    hub: Any = importlib.import_module("huggingface_sb3")
    push_to_hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    with _lock:
        if not hasattr(push_to_hub, "generate_metadata") and hasattr(push_to_hub, "_generate_metadata"):
            push_to_hub.generate_metadata = push_to_hub._generate_metadata
        if not hasattr(hub.load_from_hub, "is_of_sb3_pg"):
            hub.load_from_hub = _with_expected_error(hub.load_from_hub)
        if children.main_script() in children.SCRIPTS:
            children.redirect()


def _with_expected_error(original: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(original)
    def load_from_hub(repo_id: str, filename: str) -> str:
        from huggingface_hub.errors import EntryNotFoundError
        from requests.exceptions import HTTPError

        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            name = repo_id.partition("/")[2]
            if isinstance(error, HTTPError) or not any(name.startswith(f"{key}-") for key in ALGOS):
                raise
            raise HTTPError(str(error)) from error

    marked: Any = load_from_hub
    marked.is_of_sb3_pg = True
    return load_from_hub


def _additions(module: ModuleType) -> list[tuple[dict[str, object], dict[str, object]]]:
    """
    Load what we add to the tables of a module.

    :param module: A module of the zoo.
    :return: Pairs of a table and our entries.
    :raises ValueError: A table has an entry under one of our keys which is not ours.
    """
    additions = []
    for name, load in _TABLES.get(module.__name__, {}).items():
        table = getattr(module, name)
        ours = {key: load(algorithm) for key, algorithm in ALGOS.items()}
        for key in table.keys() & ours.keys():
            if _origin(table[key]) != _origin(ours[key]):
                raise ValueError(
                    f"{module.__name__}.{name}[{key!r}] is {_origin(table[key])} already, so that sb3_pg cannot register "
                    f"{_origin(ours[key])}. Remove the other entry, or set SB3_PG_NO_AUTOREGISTER=1 to do without sb3_pg."
                )
        additions.append((table, ours))
    return additions


def _origin(entry: object) -> str:
    """
    Tell an entry by its name: a module that was reloaded defines the same class once more.

    :param entry: A class or a function.
    :return: Where it was defined.
    """
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', repr(entry))}"


def _import_environments(_: ModuleType) -> None:
    """Import the environment packages that the zoo forgets; its own module stays as it is."""
    if importlib.util.find_spec("gymnasium_robotics") is None:
        return
    # Gymnasium keeps here what the Farama packages print at their import. This notice is about environments that nobody may
    # have asked for.
    notifications = getattr(sys.modules.get("farama_notifications"), "notifications", {})
    notice = notifications.pop("gymnasium_robotics", None)
    try:
        importlib.import_module("gymnasium_robotics")
    except Exception as error:
        warnings.warn(
            f"gymnasium_robotics is installed but cannot be imported, its environments are not available. "
            f"Reason: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        if notice is not None:
            notifications["gymnasium_robotics"] = notice


class _TrialNumber(int):
    """The number of a trial, which is one even if it is 0."""

    def __bool__(self) -> bool:
        return True


def _change_manager(module: ModuleType) -> None:
    """
    Make our yml files the default configuration of our algorithms, let trial 0 count, and change ``MANAGER_METHODS``.

    :param module: ``rl_zoo3.exp_manager``.
    :raises TypeError: The zoo's constructor lacks the arguments that this rests on.
    """
    manager: Any = module.ExperimentManager
    with _lock:
        if not hasattr(manager.__init__, "is_of_sb3_pg"):
            manager.__init__ = _with_our_arguments(manager.__init__)
        for name, change in MANAGER_METHODS.items():
            method = getattr(manager, name)
            if not hasattr(method, "is_of_sb3_pg"):
                setattr(manager, name, _for_our_algorithms(method, change(method)))


def _with_our_arguments(original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)
    if not {"algo", "config", "trial_id"} <= signature.parameters.keys():
        raise TypeError(f"{original.__qualname__} of this version of rl_zoo3 does not take `algo`, `config` and `trial_id`")

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # The zoo's own constructor shall say what is wrong with its arguments.
            return original(*args, **kwargs)
        algorithm = ALGOS.get(bound.arguments["algo"])
        if algorithm is not None and not bound.arguments.get("config"):
            bound.arguments["config"] = str(algorithm.yml_path())
        if algorithm is not None and bound.arguments.get("trial_id") is not None:
            bound.arguments["trial_id"] = _TrialNumber(bound.arguments["trial_id"])
        return original(*bound.args, **bound.kwargs)

    marked: Any = init
    marked.is_of_sb3_pg = True
    return init


def _for_our_algorithms(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param original: method of the manager
    :param ours: what takes its place for our algorithms
    :return: the method
    """

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (ours if self.algo in ALGOS else original)(self, *args, **kwargs)

    marked: Any = method
    marked.is_of_sb3_pg = True
    return method


def _with_whole_checkpoints(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def create_callbacks(self: Any) -> None:
        from stable_baselines3.common.callbacks import CheckpointCallback

        from sb3_pg.zoo.checkpoints import Checkpoints

        original(self)
        stats_path = Path(self.params_path) / "vecnormalize.pkl"
        self.callbacks = [
            Checkpoints(callback, stats_path, self.save_replay_buffer) if type(callback) is CheckpointCallback else callback
            for callback in self.callbacks
        ]

    return create_callbacks


def _with_statistics_of_checkpoint(original: Callable[[Any, Any, bool], Any]) -> Callable[[Any, Any, bool], Any]:
    def _maybe_normalize(self: Any, env: Any, eval_env: bool) -> Any:
        from stable_baselines3.common.vec_env import VecNormalize

        from sb3_pg.zoo.checkpoints import VEC_NORMALIZE, beside

        path = beside(self.trained_agent, VEC_NORMALIZE)
        if path is None:
            return original(self, env, eval_env)
        print(f"Loading VecNormalize stats of the checkpoint: {path}")
        normalized = VecNormalize.load(str(path), env)
        if eval_env:
            normalized.training = normalized.norm_reward = False
        return normalized

    return _maybe_normalize


def _with_buffer_of_checkpoint(original: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    def _load_pretrained_agent(self: Any, hyperparams: Any, env: Any) -> Any:
        from sb3_pg.zoo.checkpoints import REPLAY_BUFFER, beside

        model = original(self, hyperparams, env)
        path = beside(self.trained_agent, REPLAY_BUFFER)
        if path is not None:
            print(f"Loading replay buffer of the checkpoint: {path}")
            model.load_replay_buffer(path, truncate_last_traj=self.truncate_last_trajectory)
        return model

    return _load_pretrained_agent


def _with_pruned_constructors(original: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    @functools.wraps(original)
    def objective(self: Any, trial: Any) -> float:
        try:
            return original(self, trial)
        except ValueError as error:
            if not _passes_through(error, ALGOS[self.algo].load_class()):
                raise
            import optuna

            print(f"Trial {trial.number} is pruned: {error}")
            raise optuna.TrialPruned(str(error)) from error

    return objective


def _passes_through(error: BaseException, cls: Any) -> bool:
    """
    :param error: As caught.
    :param cls: A class.
    :return: Whether it comes from the constructor.
    """
    return any(frame.f_code is cls.__init__.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


# Method of the manager -> what makes ours of it.
MANAGER_METHODS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "objective": lambda original: as_worker(_with_pruned_constructors(original)),
    "create_callbacks": _with_whole_checkpoints,
    "_maybe_normalize": _with_statistics_of_checkpoint,
    "_load_pretrained_agent": _with_buffer_of_checkpoint,
}

# Module of the zoo -> what makes our changes to it, in the order in which the zoo imports them.
PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _change_utils,
    "rl_zoo3.hyperparams_opt": _add_algorithms,
    "rl_zoo3.import_envs": _import_environments,
    "rl_zoo3.exp_manager": _change_manager,
}
