"""Patches of the zoo's ``ExperimentManager``, listed in :mod:`sb3_pg.zoo.patches`. They apply to our algorithms only."""

import functools
import inspect
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sb3_pg.registry import ALGOS
from sb3_pg.zoo.workers import with_heartbeat

# Held while methods are replaced, never during an import: that could deadlock with the import system's own locks.
_lock = threading.Lock()


class _TrialNumber(int):
    """The number of a trial, true even if it is 0: the zoo tests ``if trial_id``."""

    def __bool__(self) -> bool:
        return True


def patch_manager(module: ModuleType) -> None:
    """
    Make our yml files the default configuration of our algorithms, accept trial 0, and patch ``MANAGER_METHODS``.

    :param module: ``rl_zoo3.exp_manager``.
    :raises TypeError: The zoo's constructor lacks an argument that the patch relies on.
    """
    manager: Any = module.ExperimentManager
    with _lock:
        if not hasattr(manager.__init__, "patched_by_sb3_pg"):
            manager.__init__ = _with_our_arguments(manager.__init__)
        for name, change in MANAGER_METHODS.items():
            method = getattr(manager, name)
            if not hasattr(method, "patched_by_sb3_pg"):
                setattr(manager, name, _for_our_algorithms(method, change(method)))


def _with_our_arguments(original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)
    if not {"algo", "config", "trial_id"} <= signature.parameters.keys():
        raise TypeError(f"{original.__qualname__} of this version of rl_zoo3 does not take `algo`, `config` and `trial_id`")

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # The zoo's constructor raises its own error.
            return original(*args, **kwargs)
        algorithm = ALGOS.get(bound.arguments["algo"])
        if algorithm is not None and not bound.arguments.get("config"):
            bound.arguments["config"] = str(algorithm.yml_path())
        if algorithm is not None and bound.arguments.get("trial_id") is not None:
            bound.arguments["trial_id"] = _TrialNumber(bound.arguments["trial_id"])
        return original(*bound.args, **bound.kwargs)

    marked: Any = init
    marked.patched_by_sb3_pg = True
    return init


def _for_our_algorithms(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param original: method of the manager
    :param ours: replacement for our algorithms
    :return: method that dispatches on the algorithm
    """

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (ours if self.algo in ALGOS else original)(self, *args, **kwargs)

    marked: Any = method
    marked.patched_by_sb3_pg = True
    return method


def _with_resumable_checkpoints(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def create_callbacks(self: Any) -> None:
        from stable_baselines3.common.callbacks import CheckpointCallback

        from sb3_pg.zoo.checkpoints import ResumableCheckpointCallback

        original(self)
        stats_path = Path(self.params_path) / "vecnormalize.pkl"
        self.callbacks = [
            ResumableCheckpointCallback(callback, stats_path, self.save_replay_buffer)
            if type(callback) is CheckpointCallback
            else callback
            for callback in self.callbacks
        ]

    return create_callbacks


def _with_statistics_of_checkpoint(original: Callable[[Any, Any, bool], Any]) -> Callable[[Any, Any, bool], Any]:
    def _maybe_normalize(self: Any, env: Any, eval_env: bool) -> Any:
        from stable_baselines3.common.vec_env import VecNormalize

        from sb3_pg.zoo.checkpoints import VEC_NORMALIZE, companion_file

        path = companion_file(self.trained_agent, VEC_NORMALIZE)
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
        from sb3_pg.zoo.checkpoints import REPLAY_BUFFER, companion_file, replay_buffer_was_deleted

        model = original(self, hyperparams, env)
        path = companion_file(self.trained_agent, REPLAY_BUFFER)
        if path is not None:
            print(f"Loading replay buffer of the checkpoint: {path}")
            model.load_replay_buffer(path, truncate_last_traj=self.truncate_last_trajectory)
        elif replay_buffer_was_deleted(self.trained_agent):
            print("The replay buffer of this checkpoint has been deleted: only that of the latest checkpoint is kept")
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
    :param error: A caught exception.
    :param cls: A class.
    :return: Whether the exception was raised in the constructor of the class.
    """
    return any(frame.f_code is cls.__init__.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


# Method of the manager -> function that turns it into ours.
MANAGER_METHODS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "objective": lambda original: with_heartbeat(_with_pruned_constructors(original)),
    "create_callbacks": _with_resumable_checkpoints,
    "_maybe_normalize": _with_statistics_of_checkpoint,
    "_load_pretrained_agent": _with_buffer_of_checkpoint,
}
