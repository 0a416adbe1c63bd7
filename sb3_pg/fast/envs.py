"""Stepping SB3's ``DummyVecEnv`` without its slow copies."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

_DICTIONARIES = (dict, OrderedDict)
# Values that cannot change. Of numpy's scalars all but those that contain others.
_ATOMIC = frozenset([float, int, bool, str, type(None), *np.sctypeDict.values()]) - {np.void, np.object_}


def quick_deepcopy(x: Any) -> Any:
    """
    ``copy.deepcopy`` for what ``DummyVecEnv`` copies in each step: a list of info dictionaries, and a dictionary of
    observation arrays. Only what is neither number, string, array nor a flat dictionary goes through the original, which is
    slow: it takes as long as half of the physics of HalfCheetah-v5.

    :param x: anything
    :return: a copy that shares nothing mutable with it
    """
    if type(x) is list:
        return [_copy_dict(item) for item in x]
    return _copy_dict(x)


def _copy_dict(x: Any) -> Any:
    if type(x) not in _DICTIONARIES:
        return copy.deepcopy(x)
    if _is_flat(x):
        return x.copy()
    return type(x)((key, _copy_value(value)) for key, value in x.items())


def _is_flat(x: dict[Any, Any]) -> bool:
    return _ATOMIC.issuperset(map(type, x.values()))


def _copy_value(x: Any) -> Any:
    if type(x) in _ATOMIC:
        return x
    if type(x) is np.ndarray and not x.dtype.hasobject:
        return x.copy(order="K")
    # Such as a Monitor's statistics. Deeper ones may contain themselves.
    if type(x) is dict and _is_flat(x):
        return x.copy()
    return copy.deepcopy(x)


def _with_quick_copies(method: Any) -> Callable[..., Any]:
    """SB3's own code, which finds our function where it looks for ``deepcopy``."""
    return FunctionType(method.__code__, {**method.__globals__, "deepcopy": quick_deepcopy}, method.__name__)


_METHODS = {name: _with_quick_copies(getattr(DummyVecEnv, name)) for name in ("step_wait", "_obs_from_buf")}


@contextmanager
def quick_copies(env: VecEnv) -> Iterator[None]:
    """
    Let a ``DummyVecEnv`` copy quickly for a while. Other environments, and subclasses, are left alone.

    :param env: with any wrappers around it
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    own = vars(env)
    if type(env) is not DummyVecEnv or not own.keys().isdisjoint(_METHODS):
        yield
        return
    own.update({name: functools.partial(method, env) for name, method in _METHODS.items()})
    try:
        yield
    finally:
        for name in _METHODS:
            del own[name]
