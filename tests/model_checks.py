"""Small models of the on-policy algorithms, and checks shared by the tests of all algorithms."""

import copy
import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import MatchEnv
from gymnasium import spaces
from smoke_envs import Recorder, scripted_vec_env
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pg import VPG, NStepA2C
from sb3_pg.common.buffers import PolicyGradientBuffer

Model = VPG | NStepA2C
Options = dict[str, Any]
State = dict[str, Any]

# Options of make() that select NStepA2C.
A2C: Options = {"algorithm": NStepA2C}


def policy_for(observation: str) -> str:
    """
    Select the policy for an observation space.

    :param observation: key of ``OBSERVATION_SPACES``
    :return: name of the policy
    """
    return {"image": "CnnPolicy", "dict": "MultiInputPolicy", "dict_image": "MultiInputPolicy"}.get(observation, "MlpPolicy")


def match_envs(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    """
    Vectorise monitored :class:`MatchEnv`.

    :param n_envs: number of copies
    :param kwargs: arguments of :class:`MatchEnv`
    :return: the environments
    """
    return DummyVecEnv([lambda: Monitor(MatchEnv(**kwargs))] * n_envs)


def make(
    env: gym.Env[Any, Any] | VecEnv | str | None = None, policy: str = "MlpPolicy", algorithm: type[Model] = VPG, **kwargs: Any
) -> Any:
    """
    Build a model that collects rollouts of six steps.

    :param env: environments or their id; :func:`match_envs` by default
    :param policy: name of the policy
    :param algorithm: class of the model
    :param kwargs: further arguments
    :return: the model; ``Any``, since the tests use attributes that only one of the classes has
    """
    mode = {} if "n_episodes" in kwargs else {"n_steps": 6}
    return algorithm(policy, match_envs() if env is None else env, **{"seed": 0, "device": "cpu", **mode, **kwargs})


def name_of(options: Any) -> str:
    """
    Format a test id.

    :param options: options of :func:`make`, or another parameter of the test
    :return: all options in one word; empty for other parameters
    """
    if not isinstance(options, dict):
        return ""
    values = {key: getattr(value, "__name__", value) for key, value in options.items()}
    return "-".join(f"{key}={value}" for key, value in values.items()) or "defaults"


def state_of(model: BaseAlgorithm) -> State:
    """
    Copy the parameters of a model.

    :param model: any model
    :return: copies of all parameters and optimizer states
    """
    return copy.deepcopy(model.get_parameters())


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """
    Compare nested structures of tensors.

    :param left: first structure
    :param right: second structure
    :param path: their path in a larger structure
    :return: paths at which they differ
    """
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [found for key in left for found in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{path}/{i}")]
    equal = th.equal(left, right) if isinstance(left, th.Tensor) and isinstance(right, th.Tensor) else left == right
    return [] if equal else [path]


def reloaded(model: BaseAlgorithm, as_: Any = None, **kwargs: Any) -> Any:
    """
    Save and load a model in memory.

    :param model: any model
    :param as_: class to load it with, that of the model by default
    :param kwargs: further arguments of ``load``
    :return: loaded model
    """
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return (as_ or type(model)).load(file, **kwargs)


def check_training(model: BaseAlgorithm, n_steps: int = 40, parts: tuple[str, ...] = ("",)) -> None:
    """
    Check that a model trains, counts its steps, stays finite, and predicts valid actions for one or more observations.

    :param model: any model
    :param n_steps: number of training steps
    :param parts: prefixes of parameter names; some parameters of each must change
    """
    before = state_of(model)["policy"]
    recorder = Recorder()
    model.learn(n_steps, callback=recorder)
    assert model.env is not None
    assert model.num_timesteps == recorder.n_calls * model.n_envs >= n_steps
    after = model.get_parameters()["policy"]
    for part in parts:
        assert any(name.startswith(f"/{part}") for name in differences(before, after)), part
    assert all(value.isfinite().all() for value in after.values())
    obs = model.env.reset()
    for deterministic in (True, False):
        actions, state = model.predict(obs, deterministic=deterministic)  # type: ignore[arg-type]  # not a tuple here
        assert state is None
        assert len(actions) == model.n_envs
        first = {key: part[0] for key, part in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[0]
        single, _ = model.predict(first, deterministic=deterministic)
        for action in (*actions, single):
            assert model.action_space.contains(np.asarray(action, dtype=model.action_space.dtype))
        assert not deterministic or np.allclose(single, actions[0], atol=1e-5)


class Captured(KVWriter):
    """Keeps the logged values: one dictionary per dump."""

    def __init__(self) -> None:
        self.dumps: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Keep a dump.

        :param key_values: logged values
        :param key_excluded: excluded output formats of each value
        :param step: number of steps so far
        """
        assert key_values.keys() == key_excluded.keys()
        self.dumps.append({**key_values, "step": step})

    def close(self) -> None:
        """Nothing is open."""


def logged(model: BaseAlgorithm, n_steps: int, callback: Any = None) -> list[dict[str, Any]]:
    """
    Train a model and capture its log.

    :param model: any model
    :param n_steps: number of training steps
    :param callback: callback of the training run
    :return: logged values of each iteration, and finally those of the last update
    """
    captured = Captured()
    model.set_logger(Logger(folder=None, output_formats=[captured]))
    model.learn(n_steps, callback=callback, log_interval=1)
    model.logger.dump(model.num_timesteps)
    return captured.dumps


def assert_names_all(raised: pytest.ExceptionInfo[ValueError], words: list[str]) -> None:
    """
    Check the message of a rejected option.

    :param raised: the raised exception
    :param words: strings that the message, a single line, must contain
    """
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


class ScaledBuffer(PolicyGradientBuffer):
    """
    A custom buffer that scales rewards.

    :param args: as in the base class
    :param scale: factor of all rewards
    :param kwargs: as in the base class
    """

    def __init__(self, *args: Any, scale: float = 2.0, **kwargs: Any) -> None:
        self.scale = scale
        super().__init__(*args, **kwargs)

    def add(self, obs: Any, actions: Any, rewards: Any, *flags: Any) -> None:
        """
        Append one vectorised step.

        :param obs: as in the base class
        :param actions: as in the base class
        :param rewards: as in the base class
        :param flags: as in the base class
        """
        super().add(obs, actions, self.scale * rewards, *flags)


def assert_matters(base: Options, change: Options) -> None:
    """
    Check that an option has an effect.

    :param base: options of :func:`make`
    :param change: further options, with which the trained parameters must differ
    """
    before, again, after = _trained(**base), _trained(**base), _trained(**{**base, **change})
    assert th.equal(before, again)
    assert before.shape != after.shape or (before - after).abs().max() > 1e-6


def _trained(**kwargs: Any) -> th.Tensor:
    """All parameters after some updates on truncated episodes of different lengths, with the same random numbers."""
    action = spaces.Box(-1, 1, (2,)) if kwargs.pop("action", None) == "box" else None
    scripts: Any = [[(3, "truncated"), (5, "truncated")], [(2, "terminated"), (6, "truncated")]]
    if kwargs.pop("env", None) == "terminating":
        scripts = [[(length, "terminated") for length, _ in script] for script in scripts]
    model = make(scripted_vec_env(scripts, action_space=action), **kwargs).learn(60)
    return th.cat([p.detach().ravel() for p in model.policy.parameters()])
