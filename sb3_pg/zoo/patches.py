"""
All patches of the RL Zoo. ``docs/zoo.md`` shows the same table.

=====================  ============================================  ================================================
module of ``rl_zoo3``  patch                                         reason, as of rl_zoo3 2.9.2
=====================  ============================================  ================================================
``utils``              our classes are added to ``ALGOS``            ``--algo`` accepts the keys of this dict
``hyperparams_opt``    our functions are added to                    ``-optimize`` and ``--trial-id`` look there
                       ``HYPERPARAMS_SAMPLER`` and
                       ``HYPERPARAMS_CONVERTER``
``import_envs``        ``gymnasium_robotics`` is imported, if it is  the zoo does not: ``--env FetchReach-v4`` would
                       installed, without the notice it prints       not be found
``exp_manager``        ``ExperimentManager.__init__`` takes our yml  the zoo looks for it in its own package
                       file as default ``config`` of our algorithms
``exp_manager``        ... and accepts a ``trial_id`` of 0           ``--trial-id 0`` is ignored
``exp_manager``        ``ExperimentManager.objective`` prunes the    the zoo prunes a trial that fails in ``learn()``; an
                       trial if the constructor of one of our        error in a constructor ends the study
                       algorithms rejects the sampled values
``exp_manager``        ... and marks the trials of dead workers as   a trial whose process was killed counts as running
                       failed (:mod:`sb3_pg.zoo.workers`)            indefinitely
``exp_manager``        checkpoints of our algorithms come with the   ``--save-freq`` saves the model only; the other files are
                       statistics of ``VecNormalize`` and, with      written at the end of training
                       ``--save-replay-buffer``, the replay buffer
                       (:mod:`sb3_pg.zoo.checkpoints`)
``exp_manager``        ... and ``-i`` of such a checkpoint loads     ``-i`` looks for them under the names that are used at
                       them                                          the end of training
``utils``              ``huggingface_sb3.load_from_hub`` raises the  ``load_from_hub`` and ``enjoy`` expect ``HTTPError`` of
                       error that the zoo expects if one of our      ``requests`` for a model without ``VecNormalize``;
                       models lacks a file                           huggingface-hub 1 and later raise another error
``utils``              ``huggingface_sb3.push_to_hub`` gets a        ``push_to_hub`` imports this name, which has a leading
                       ``generate_metadata``, if it has none         underscore in sb3-team-hf-integration up to 3.2
``utils``              ``benchmark`` and ``record_training`` of our  they start ``python enjoy.py``, which exists in the
                       models start scripts that can be found        zoo's repository only, with the first ``python`` on the
                       (:mod:`sb3_pg.zoo.children`)                  path
=====================  ============================================  ================================================

The dicts are updated in place and never replaced: all modules of the zoo share them, also the one whose name is ``__main__``
under ``python -m``.
"""

import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType

from sb3_pg.registry import ALGOS, Algorithm
from sb3_pg.zoo import children, hub
from sb3_pg.zoo.manager import patch_manager

# Held while the zoo is patched, never during an import: that could deadlock with the import system's own locks.
_lock = threading.Lock()

# Module of the zoo -> its tables, and how to load our entry of a table.
_TABLES: dict[str, dict[str, Callable[[Algorithm], object]]] = {
    "rl_zoo3.utils": {"ALGOS": Algorithm.load_class},
    "rl_zoo3.hyperparams_opt": {
        "HYPERPARAMS_SAMPLER": Algorithm.load_sampler,
        "HYPERPARAMS_CONVERTER": Algorithm.load_converter,
    },
}


def register() -> None:
    """
    Register our algorithms with the RL Zoo. Idempotent.

    The start-up hook does the same when the zoo is imported. This function is only needed where start-up files are not read.

    :raises ImportError: ``rl_zoo3``, or a dependency, cannot be imported.
    :raises ValueError: The zoo has another algorithm under one of our keys. Nothing is changed in this case.
    """
    modules = [importlib.import_module(name) for name in PATCHES]
    for module in modules:
        _additions(module)  # raises before anything is changed
    for module in modules:
        patch(module)


def patch(module: ModuleType) -> None:
    """
    Patch one module of the zoo.

    :param module: A module that ``PATCHES`` names, fully imported.
    :raises ValueError: One of our keys is taken. Nothing is changed in this case.
    """
    PATCHES[module.__name__](module)


def _add_algorithms(module: ModuleType) -> None:
    additions = _additions(module)
    with _lock:
        for table, ours in additions:
            table.update(ours)


def _patch_utils(module: ModuleType) -> None:
    """
    Add our algorithms, and patch other packages that the zoo's scripts use. All scripts import this module first.

    :param module: ``rl_zoo3.utils``.
    """
    _add_algorithms(module)
    hub.patch_client()
    if children.main_script() in children.SCRIPTS:
        children.patch_subprocess()


def _additions(module: ModuleType) -> list[tuple[dict[str, object], dict[str, object]]]:
    """
    Load our entries for the tables of a module.

    :param module: A module of the zoo.
    :return: Pairs of a table and our entries.
    :raises ValueError: A table has a foreign entry under one of our keys.
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
    Identify an entry by its qualified name: a reloaded module defines a new class of the same name.

    :param entry: A class or a function.
    :return: Module and qualified name.
    """
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', repr(entry))}"


def _import_environments(_: ModuleType) -> None:
    """Import environment packages that the zoo does not import; its module itself stays unchanged."""
    if importlib.util.find_spec("gymnasium_robotics") is None:
        return
    # Gymnasium reads from here what it prints when a Farama package is imported. The user may not have asked for these
    # environments, so the notice is suppressed.
    notifications = getattr(sys.modules.get("farama_notifications"), "notifications", {})
    notice = notifications.pop("gymnasium_robotics", None)
    try:
        importlib.import_module("gymnasium_robotics")
    except Exception as error:
        warnings.warn(
            f"gymnasium_robotics is installed but cannot be imported: its environments are not available. "
            f"Reason: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
    finally:
        if notice is not None:
            notifications["gymnasium_robotics"] = notice


# Module of the zoo -> function that patches it, in the order in which the zoo imports them.
PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _patch_utils,
    "rl_zoo3.hyperparams_opt": _add_algorithms,
    "rl_zoo3.import_envs": _import_environments,
    "rl_zoo3.exp_manager": patch_manager,
}
