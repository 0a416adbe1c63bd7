"""Stepping SB3's ``DummyVecEnv`` without its slow copies."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, dummy_vec_env
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

# Immutable types. Of numpy's scalars all but those that contain other objects.
_ATOMIC = frozenset([float, int, bool, str, type(None), *np.sctypeDict.values()]) - {np.void, np.object_}

_STEP_WAIT, _OBS_FROM_BUF = DummyVecEnv.step_wait, DummyVecEnv._obs_from_buf
# Whether these are SB3's: the class may have been patched before this module was imported.
_UNPATCHED = all(getattr(method, "__globals__", None) is vars(dummy_vec_env) for method in (_STEP_WAIT, _OBS_FROM_BUF))


def quick_deepcopy(x: Any) -> Any:
    """
    ``copy.deepcopy`` for what ``DummyVecEnv`` copies in each step: info dictionaries, and a dictionary of observation arrays.
    The original takes half as long as the physics of HalfCheetah-v5. It remains in use for values other than numbers, strings,
    arrays and flat dictionaries.
    """
    if type(x) is not dict and type(x) is not OrderedDict:
        return copy.deepcopy(x)
    if _ATOMIC.issuperset(map(type, x.values())):
        return x.copy()
    return type(x)((key, _copy_value(value)) for key, value in x.items())


def _copy_value(x: Any) -> Any:
    if type(x) in _ATOMIC:
        return x
    if type(x) is np.ndarray and not x.dtype.hasobject:
        return x.copy(order="K")
    # Such as a Monitor's statistics. Nested dictionaries may contain themselves.
    if type(x) is dict and _ATOMIC.issuperset(map(type, x.values())):
        return x.copy()
    return copy.deepcopy(x)


class QuickDummyVecEnv(DummyVecEnv):
    """A ``DummyVecEnv`` with quick copies. It is pickled and copied as a plain ``DummyVecEnv``."""

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        if DummyVecEnv.step_wait is not _STEP_WAIT:  # the class is patched
            return super().step_wait()
        for i in range(self.num_envs):
            obs, self.buf_rews[i], terminated, truncated, info = self.envs[i].step(self.actions[i])
            self.buf_infos[i] = info
            self.buf_dones[i] = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if self.buf_dones[i]:
                info["terminal_observation"] = obs
                obs, self.reset_infos[i] = self.envs[i].reset()
            self._save_obs(i, obs)
        infos = [quick_deepcopy(info) for info in self.buf_infos]
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), infos

    def _obs_from_buf(self) -> VecEnvObs:
        if DummyVecEnv._obs_from_buf is not _OBS_FROM_BUF:
            return super()._obs_from_buf()
        return dict_to_obs(self.observation_space, quick_deepcopy(self.buf_obs))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # Not with the function of the original: pickle requires the object's own class in its arguments.
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return object.__new__, (DummyVecEnv,), *reduced[2:]


@contextmanager
def quick_copies(env: VecEnv) -> Iterator[None]:
    """
    Make a ``DummyVecEnv`` a :class:`QuickDummyVecEnv` within the block. Subclasses and other environments stay unchanged.

    :param env: environment with any wrappers around it
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if type(env) is not DummyVecEnv or not _UNPATCHED:
        yield
        return
    env.__class__ = QuickDummyVecEnv
    try:
        yield
    finally:
        if type(env) is QuickDummyVecEnv:
            env.__class__ = DummyVecEnv  # type: ignore[assignment]  # mypy considers the class final
