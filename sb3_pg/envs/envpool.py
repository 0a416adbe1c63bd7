"""
Environments of `EnvPool <https://github.com/sail-sg/envpool>`_, which step in C++, for Stable-Baselines3 and the RL Zoo.
``docs/envpool.md`` tells what differs from Gymnasium's.
"""

import difflib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

# EnvPool keeps seeds and step counts in 32 bits.
_INT32_MAX = 2**31 - 1
# Entries of its configuration that are no arguments of an environment.
_POOL_OPTIONS = {
    "num_envs",
    "batch_size",
    "num_threads",
    "max_num_players",
    "thread_affinity_offset",
    "base_path",
    "seed",
    "env_seed",
    "gym_reset_return_info",
    "reward_threshold",
}
_GOAL_METHODS = ("compute_reward", "compute_terminated", "compute_truncated")


class EnvPoolVecEnv(VecEnv):
    """
    What SB3's ``make_vec_env(env_id, n_envs)`` gives, stepped by EnvPool: the same spaces, time limits and final observations,
    and the ``episode`` statistics of a ``Monitor``. Other entries of ``info`` are there if ``info_keywords`` names them.
    Nothing can be rendered. As usual, what :meth:`seed` says holds from the next :meth:`reset`.

    :param env_id: in EnvPool, and in Gymnasium if that knows it; ``"package:id"`` imports the package as in ``gym.make``
    :param n_envs: number of environments
    :param seed: of the first environment, the others count on; random by default
    :param monitor_dir: folder for ``0.monitor.csv``, ``1.monitor.csv``, ...; none are written by default
    :param env_kwargs: arguments of ``gym.make`` that EnvPool knows, too, ``max_episode_steps`` among them
    :param info_keywords: entries of EnvPool's infos to pass on, and to add to the episode statistics when an episode ends
    :param num_threads: threads that step the environments; more than one is faster only if a step of all takes long
    :raises ImportError: EnvPool or its assets are missing
    :raises ValueError: EnvPool has no such environment, argument or entry, or one with other spaces than Gymnasium's
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        seed: int | None = None,
        monitor_dir: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        info_keywords: Sequence[str] = (),
        num_threads: int = 1,
    ) -> None:
        env_kwargs = dict(env_kwargs or {})
        self._make = _import_envpool().make
        self._name = env_id.rpartition(":")[2]
        spec = _envpool_spec(self._name, env_kwargs, info_keywords)
        env = _gymnasium_env(env_id, env_kwargs)
        observation_space, action_space = _spaces(spec if env is None else env)
        if _layout(observation_space, action_space) != _layout(*_spaces(spec)):
            raise ValueError(f"{self._name} of EnvPool has other spaces than Gymnasium's: {_spaces(spec)}")
        check_for_nested_spaces(observation_space)

        # Counted here: EnvPool calls an environment truncated, not terminated, which ends in the very step of the time limit.
        self._limit = _INT32_MAX - 1
        self._config = {**env_kwargs, "num_envs": n_envs, "num_threads": num_threads}
        if env is not None:
            self._limit = _time_limit(env)
            self._config["max_episode_steps"] = self._limit + 1
        self._attributes = {
            "render_mode": None,
            "observation_space": observation_space,
            "action_space": action_space,
            **_gymnasium_attributes(env),
        }
        super().__init__(n_envs, observation_space, action_space)
        self.seed(seed)

        self._pool: Any = None
        self._actions: np.ndarray = np.empty(0)
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._info_keywords = tuple(info_keywords)
        self._t_start = time.time()
        header: dict[str, float | str] = {"t_start": self._t_start, "env_id": self._name}
        self._writers: list[ResultsWriter] = []
        if monitor_dir is not None:
            paths = [os.path.join(monitor_dir, str(i)) for i in range(n_envs)]
            self._writers = [ResultsWriter(path, header, self._info_keywords) for path in paths]

    def reset(self) -> VecEnvObs:
        """
        Begin new episodes everywhere, with the seeds given since the last call, if any.

        :return: first observations
        """
        seeds = [seed % (_INT32_MAX + 1) for seed in self._seeds if seed is not None]
        if seeds:  # EnvPool takes them at construction only.
            self._pool = self._make(self._name, env_type="gymnasium", seed=seeds, **self._config)
            self._reset_seeds()
            _spaces(self._pool)  # which it keeps, see there
        self._returns[:] = 0
        self._lengths[:] = 0
        obs: VecEnvObs = self._cast(self._pool.reset()[0])
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: one for each environment
        """
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all environments, and begin a new episode where one ended.

        :return: observations, rewards, whether episodes ended, and infos, as ``DummyVecEnv`` returns them
        """
        # EnvPool allocates these arrays anew in each step: they are ours.
        obs, rewards, terminated, truncated, all_infos = self._pool.step(self._actions)
        obs = self._cast(obs)
        self._returns += rewards
        self._lengths += 1
        truncated |= self._lengths >= self._limit
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for key in self._info_keywords:
            for info, value in zip(infos, all_infos[key], strict=True):
                info[key] = value
        dones = terminated | truncated
        if dones.any():
            ended = np.flatnonzero(dones)
            for i in map(int, ended):
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                infos[i]["terminal_observation"] = _row(obs, i)
                infos[i]["episode"] = self._end_episode(i, infos[i])
            # EnvPool itself would begin the episode in the next step, and ignore its action.
            first, _ = self._pool.reset(ended.astype(np.int32))
            _write_rows(obs, ended, self._cast(first))
        return obs, rewards, dones, infos

    def _cast(self, obs: Any) -> Any:
        """
        :param obs: as EnvPool returns it
        :return: the same with the types, and the order of keys, of our space
        """
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: obs[key].astype(part.dtype, copy=False) for key, part in space.spaces.items()}
        return obs.astype(space.dtype, copy=False)

    def _end_episode(self, i: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """
        Count from zero again.

        :param i: number of an environment
        :param info: of its last step
        :return: the statistics of a ``Monitor``, which are also written to the file
        """
        elapsed = round(time.time() - self._t_start, 6)
        episode = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": elapsed}
        episode.update((key, info[key]) for key in self._info_keywords)
        if self._writers:
            self._writers[i].write_row(episode)
        self._returns[i] = 0
        self._lengths[i] = 0
        return episode

    def close(self) -> None:
        """Let go of the environments and close the files."""
        self._pool = None
        for writer in self._writers:
            writer.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        Refuse options of ``reset``.

        :param options: must be empty
        :raises NotImplementedError: there are some
        """
        if options:
            raise NotImplementedError("EnvPool's environments are reset without options.")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Get what is the same for all environments at all times.

        :param attr_name: ``render_mode``, a space, ``spec`` (of Gymnasium), or a method of goal environments
        :param indices: of which environments
        :return: the attribute for each of them
        :raises AttributeError: there is no such attribute
        """
        if attr_name not in self._attributes:
            raise AttributeError(
                f"{self._name} of EnvPool is no Python object with a {attr_name!r}; there are {', '.join(self._attributes)}."
            )
        return [self._attributes[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Refuse to set an attribute.

        :param attr_name: its name
        :param value: its value
        :param indices: of which environments
        :raises NotImplementedError: always
        """
        raise NotImplementedError(f"EnvPool's environments are no Python objects: use env_kwargs to set {attr_name!r}.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method.

        :param method_name: ``compute_reward`` and the like, see :meth:`get_attr`
        :param method_args: its arguments
        :param indices: of which environments
        :param method_kwargs: its keyword arguments
        :return: what it returns for each of them
        :raises AttributeError: there is no such method
        """
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: a wrapper
        :param indices: of which environments
        :return: whether they behave as if wrapped in it, which is so for a ``Monitor``
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def use_envpool(env: VecEnv, num_threads: int = 1) -> VecEnv:
    """
    Put EnvPool in the place of Gymnasium's environments: a ``vec_env_wrapper`` for the yml files of the zoo. Id, arguments,
    time limit, seed, ``monitor.csv`` and ``info_keywords`` stay as they are.

    :param env: as ``make_vec_env`` makes it; it is closed. If it renders or runs in processes (``enjoy --n-envs 2``), it stays
    :param num_threads: see :class:`EnvPoolVecEnv`
    :return: the environments to use
    :raises ImportError: EnvPool or its assets are missing
    :raises ValueError: they have wrappers beside the ``Monitor``, or EnvPool has nothing like them
    """
    if env.render_mode is not None:
        return env
    if type(env) is not DummyVecEnv:
        warnings.warn(f"EnvPool takes the place of a DummyVecEnv only, this {type(env).__name__} stays.", stacklevel=2)
        return env
    spec = env.envs[0].spec
    wrappers = [] if spec is None else [wrapper.entry_point for wrapper in spec.additional_wrappers]
    if spec is None or wrappers != [f"{Monitor.__module__}:{Monitor.__name__}"]:
        raise ValueError(f"EnvPool can replace what gym.make makes, in a Monitor and in no other wrapper, not in {wrappers}.")
    registered = gym.spec(spec.id).kwargs
    env_kwargs = {key: value for key, value in spec.kwargs.items() if key not in registered or registered[key] != value}
    env_kwargs.pop("render_mode", None)
    writer = env.get_attr("results_writer")[0]
    replacement = EnvPoolVecEnv(
        spec.id,
        env.num_envs,
        env._seeds[0],
        monitor_dir=None if writer is None else os.path.dirname(writer.file_handler.name),
        env_kwargs={**env_kwargs, "max_episode_steps": spec.max_episode_steps},
        info_keywords=env.get_attr("info_keywords")[0],
        num_threads=num_threads,
    )
    env.close()
    return replacement


def _import_envpool() -> Any:
    """
    :return: the package, which takes a second to import
    :raises ImportError: it or its assets are missing
    """
    try:
        import envpool  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except (ImportError, FileNotFoundError) as error:  # The latter without its assets, which are packages of their own.
        raise ImportError(f"EnvPool is needed, with its assets: pip install 'sb3-pg[envpool]' ({error})") from error
    return envpool


def _envpool_spec(name: str, env_kwargs: Mapping[str, Any], info_keywords: Sequence[str]) -> Any:
    """
    :param name: of an environment
    :param env_kwargs: its arguments
    :param info_keywords: entries of its infos
    :return: EnvPool's description
    :raises ValueError: EnvPool does not know one of these
    """
    envpool = _import_envpool()
    names = envpool.list_all_envs()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"EnvPool has no environment {name!r}{''.join(f', but {match!r}' for match in close)}.")
    spec = envpool.make_spec(name)
    known = set(spec.config._fields) - _POOL_OPTIONS
    if unknown := env_kwargs.keys() - known:
        raise ValueError(f"{name} of EnvPool takes no env_kwargs {sorted(unknown)}, but {sorted(known)}.")
    known = {key.removeprefix("info:") for key in spec.state_array_spec if key.startswith("info:")}
    if unknown := set(info_keywords) - known:
        raise ValueError(f"The infos of EnvPool's {name} have no {sorted(unknown)}, but {sorted(known)}.")
    return spec


def _gymnasium_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any] | None:
    """
    :param env_id: of an environment
    :param env_kwargs: its arguments
    :return: Gymnasium's, or None if it does not know the id
    """
    try:
        return gym.make(env_id, **env_kwargs)
    except gym.error.UnregisteredEnv:
        return None


def _spaces(env: Any) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    :param env: environment, or EnvPool's description of one
    :return: its observation and action space, without Gymnasium's warning that EnvPool's bounds are no float32
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        return env.observation_space, env.action_space


def _layout(*all_spaces: spaces.Space[Any]) -> list[Any]:
    """
    :param all_spaces: of Gymnasium or EnvPool, which often knows no bounds
    :return: their types, keys, shapes and numbers of choices
    """
    layouts: list[Any] = []
    for space in all_spaces:
        if isinstance(space, spaces.Dict):
            layouts.append({key: _layout(part) for key, part in space.spaces.items()})
        else:
            layouts.append((type(space), space.shape, getattr(space, "n", None)))
    return layouts


def _time_limit(env: gym.Env[Any, Any]) -> int:
    """
    :param env: environment
    :return: after how many steps it is truncated
    """
    limit = None if env.spec is None else env.spec.max_episode_steps
    # -1 is Gymnasium's way to switch a registered limit off.
    return _INT32_MAX - 1 if limit in (None, -1) else int(limit)


def _gymnasium_attributes(env: gym.Env[Any, Any] | None) -> dict[str, Any]:
    """
    :param env: Gymnasium's environment, which is closed unless its methods are needed
    :return: its attributes that are right for EnvPool's environments, too
    """
    if env is None:
        return {}
    # Functions of their arguments alone, by the contract of goal environments: hindsight replay needs them.
    methods = {name: getattr(env.unwrapped, name) for name in _GOAL_METHODS if hasattr(env.unwrapped, name)}
    if not methods:
        env.close()
    return {"spec": env.spec, **methods}


def _row(obs: Any, i: int) -> Any:
    """
    :param obs: observations of all environments
    :param i: number of one
    :return: copy of its observation
    """
    return {key: part[i].copy() for key, part in obs.items()} if isinstance(obs, dict) else obs[i].copy()


def _write_rows(obs: Any, rows: np.ndarray, values: Any) -> None:
    """
    :param obs: observations of all environments, changed in place
    :param rows: numbers of some
    :param values: their new observations
    """
    if isinstance(obs, dict):
        for key, part in obs.items():
            part[rows] = values[key]
    else:
        obs[rows] = values
