"""
`EnvPool <https://github.com/sail-sg/envpool>`_, which steps environments in C++, for Stable-Baselines3 and the RL Zoo.
``docs/envpool.md`` lists the differences from Gymnasium's environments.
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

# EnvPool stores seeds and step counts in 32 bits.
_INT32_MAX = 2**31 - 1
# Entries of EnvPool's configuration that are not arguments of an environment.
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
    Equivalent of SB3's ``make_vec_env(env_id, n_envs)``, stepped by EnvPool: the same spaces, time limits, final observations
    and ``episode`` statistics of a ``Monitor``. ``info`` contains further entries only if ``info_keywords`` names them.
    Rendering is not supported. As usual, :meth:`seed` takes effect at the next :meth:`reset`.

    :param env_id: id of the environment in EnvPool (and in Gymnasium, if it is registered there); ``"package:id"`` imports the
        package as in ``gym.make``
    :param n_envs: number of environments
    :param seed: seed of the first environment, incremented for the others; random by default
    :param monitor_dir: folder for ``0.monitor.csv``, ``1.monitor.csv``, ...; by default no files are written
    :param env_kwargs: arguments of ``gym.make`` that EnvPool also supports, such as ``max_episode_steps``
    :param info_keywords: entries of EnvPool's infos to pass on, and to add to the episode statistics at the end of an episode
    :param num_threads: number of threads that step the environments; several threads pay off only for slow environments
    :raises ImportError: EnvPool or its assets are missing
    :raises ValueError: EnvPool has no such environment, argument or info entry, or its spaces differ from Gymnasium's
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

        # Steps are counted here: EnvPool reports truncation instead of termination if an episode terminates at the time limit.
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
        Reset all environments, with the seeds set since the last call, if any.

        :return: first observations
        """
        seeds = [seed % (_INT32_MAX + 1) for seed in self._seeds if seed is not None]
        if seeds:  # EnvPool accepts seeds at construction only.
            self._pool = self._make(self._name, env_type="gymnasium", seed=seeds, **self._config)
            self._reset_seeds()
            _spaces(self._pool)  # cached by EnvPool, so that its warning does not appear later
        self._returns[:] = 0
        self._lengths[:] = 0
        obs: VecEnvObs = self._cast(self._pool.reset()[0])
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """
        Store the actions for :meth:`step_wait`.

        :param actions: action of each environment
        """
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all environments, and reset those whose episode has ended.

        :return: observations, rewards, dones and infos, as returned by ``DummyVecEnv``
        """
        # EnvPool allocates new arrays in each step, so they may be changed here.
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
            # By itself EnvPool would reset in the next step, and ignore its action.
            first, _ = self._pool.reset(ended.astype(np.int32))
            _write_rows(obs, ended, self._cast(first))
        return obs, rewards, dones, infos

    def _cast(self, obs: Any) -> Any:
        """
        :param obs: observations as returned by EnvPool
        :return: observations with the dtypes and the key order of the observation space
        """
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: obs[key].astype(part.dtype, copy=False) for key, part in space.spaces.items()}
        return obs.astype(space.dtype, copy=False)

    def _end_episode(self, i: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """
        Reset the episode statistics of an environment.

        :param i: index of the environment
        :param info: info of the last step
        :return: the statistics of the episode as in a ``Monitor``, which are also written to the file
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
        """Release the environments and close the files."""
        self._pool = None
        for writer in self._writers:
            writer.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        Reject options of ``reset``.

        :param options: options, which must be empty
        :raises NotImplementedError: the options are not empty
        """
        if options:
            raise NotImplementedError("EnvPool's environments do not support reset options.")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Get an attribute that is constant and equal for all environments.

        :param attr_name: ``render_mode``, a space, ``spec`` (of Gymnasium), or a method of goal environments
        :param indices: indices of the environments
        :return: the attribute for each environment
        :raises AttributeError: there is no such attribute
        """
        if attr_name not in self._attributes:
            raise AttributeError(
                f"{self._name} of EnvPool has no attribute {attr_name!r}, only {', '.join(self._attributes)}."
            )
        return [self._attributes[attr_name] for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Not supported.

        :param attr_name: name of the attribute
        :param value: value of the attribute
        :param indices: indices of the environments
        :raises NotImplementedError: always
        """
        raise NotImplementedError(f"EnvPool's environments are not Python objects: use env_kwargs to set {attr_name!r}.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method.

        :param method_name: name of a method of goal environments, such as ``compute_reward``
        :param method_args: positional arguments
        :param indices: indices of the environments
        :param method_kwargs: keyword arguments
        :return: return value for each environment
        :raises AttributeError: there is no such method
        """
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper
        :param indices: indices of the environments
        :return: True for ``Monitor``, whose statistics are provided, False for all other wrappers
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def use_envpool(env: VecEnv, num_threads: int = 1) -> VecEnv:
    """
    Replace Gymnasium's environments by those of EnvPool: a ``vec_env_wrapper`` for the yml files of the zoo. Id, arguments,
    time limit, seed, ``monitor.csv`` and ``info_keywords`` are preserved.

    :param env: result of ``make_vec_env``, which is closed. Environments that render or run in other processes
        (``enjoy --n-envs 2``) are returned unchanged
    :param num_threads: see :class:`EnvPoolVecEnv`
    :return: the environments to use
    :raises ImportError: EnvPool or its assets are missing
    :raises ValueError: the environments have wrappers other than ``Monitor``, or EnvPool has no equivalent
    """
    if env.render_mode is not None:
        return env
    if type(env) is not DummyVecEnv:
        warnings.warn(f"EnvPool can only replace a DummyVecEnv; this {type(env).__name__} is used as it is.", stacklevel=2)
        return env
    spec = env.envs[0].spec
    wrappers = [] if spec is None else [wrapper.entry_point for wrapper in spec.additional_wrappers]
    if spec is None or wrappers != [f"{Monitor.__module__}:{Monitor.__name__}"]:
        raise ValueError(f"EnvPool can replace environments of gym.make with no wrapper but Monitor; these have {wrappers}.")
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
    :return: the package (importing it takes about a second)
    :raises ImportError: EnvPool or its assets are missing
    """
    try:
        import envpool  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra
    except (ImportError, FileNotFoundError) as error:  # FileNotFoundError: the assets, separate packages, are missing.
        raise ImportError(f"EnvPool is needed, with its assets: pip install 'sb3-pg[envpool]' ({error})") from error
    return envpool


def _envpool_spec(name: str, env_kwargs: Mapping[str, Any], info_keywords: Sequence[str]) -> Any:
    """
    :param name: name of the environment
    :param env_kwargs: arguments of the environment
    :param info_keywords: entries of its infos
    :return: EnvPool's specification
    :raises ValueError: EnvPool has no such environment, argument or info entry
    """
    envpool = _import_envpool()
    names = envpool.list_all_envs()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"EnvPool has no environment {name!r}{''.join(f', but {match!r}' for match in close)}.")
    spec = envpool.make_spec(name)
    known = set(spec.config._fields) - _POOL_OPTIONS
    if unknown := env_kwargs.keys() - known:
        raise ValueError(f"{name} of EnvPool does not take env_kwargs {sorted(unknown)}, only {sorted(known)}.")
    known = {key.removeprefix("info:") for key in spec.state_array_spec if key.startswith("info:")}
    if unknown := set(info_keywords) - known:
        raise ValueError(f"The infos of EnvPool's {name} have no {sorted(unknown)}, only {sorted(known)}.")
    return spec


def _gymnasium_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any] | None:
    """
    :param env_id: id of the environment
    :param env_kwargs: arguments of the environment
    :return: Gymnasium's environment, or None if the id is not registered
    """
    try:
        return gym.make(env_id, **env_kwargs)
    except gym.error.UnregisteredEnv:
        return None


def _spaces(env: Any) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """
    :param env: environment, or EnvPool's specification of one
    :return: observation and action space, without Gymnasium's warning that EnvPool's bounds are not float32
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        return env.observation_space, env.action_space


def _layout(*all_spaces: spaces.Space[Any]) -> list[Any]:
    """
    :param all_spaces: spaces of Gymnasium or EnvPool
    :return: their types, keys, shapes and numbers of choices, without bounds, which EnvPool often does not know
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
    :return: number of steps after which episodes are truncated
    """
    limit = None if env.spec is None else env.spec.max_episode_steps
    # -1 switches a registered limit off.
    return _INT32_MAX - 1 if limit in (None, -1) else int(limit)


def _gymnasium_attributes(env: gym.Env[Any, Any] | None) -> dict[str, Any]:
    """
    :param env: Gymnasium's environment, which is closed unless its methods are needed
    :return: attributes of it that are also valid for EnvPool's environments
    """
    if env is None:
        return {}
    # In goal environments these are functions of their arguments alone. Hindsight replay needs them.
    methods = {name: getattr(env.unwrapped, name) for name in _GOAL_METHODS if hasattr(env.unwrapped, name)}
    if not methods:
        env.close()
    return {"spec": env.spec, **methods}


def _row(obs: Any, i: int) -> Any:
    """
    :param obs: observations of all environments
    :param i: index of an environment
    :return: copy of its observation
    """
    return {key: part[i].copy() for key, part in obs.items()} if isinstance(obs, dict) else obs[i].copy()


def _write_rows(obs: Any, rows: np.ndarray, values: Any) -> None:
    """
    :param obs: observations of all environments, changed in place
    :param rows: indices of environments
    :param values: new observations of these environments
    """
    if isinstance(obs, dict):
        for key, part in obs.items():
            part[rows] = values[key]
    else:
        obs[rows] = values
