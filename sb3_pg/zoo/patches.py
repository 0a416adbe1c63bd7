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
from types import ModuleType
from typing import Any

from sb3_pg.registry import ALGOS, Algorithm
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
    Make our yml files the default configuration of our algorithms, let trial 0 count, prune trials that our constructors
    refuse, and fail those of dead workers.

    :param module: ``rl_zoo3.exp_manager``.
    :raises TypeError: The zoo's constructor lacks the arguments that this rests on.
    """
    manager: Any = module.ExperimentManager
    with _lock:
        if not hasattr(manager.__init__, "is_of_sb3_pg"):
            manager.__init__ = _with_our_arguments(manager.__init__)
        if not hasattr(manager.objective, "is_of_sb3_pg"):
            manager.objective = _for_our_trials(manager.objective)


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


def _for_our_trials(original: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    ours = as_worker(_with_pruned_constructors(original))

    @functools.wraps(original)
    def objective(self: Any, trial: Any) -> float:
        return (ours if self.algo in ALGOS else original)(self, trial)

    marked: Any = objective
    marked.is_of_sb3_pg = True
    return objective


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


# Module of the zoo -> what makes our changes to it, in the order in which the zoo imports them.
PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _add_algorithms,
    "rl_zoo3.hyperparams_opt": _add_algorithms,
    "rl_zoo3.import_envs": _import_environments,
    "rl_zoo3.exp_manager": _change_manager,
}
