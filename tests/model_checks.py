"""Small models of the on-policy algorithms, and what many tests of any algorithm do."""

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

# Options of a model; those of NStepA2C say so.
A2C: Options = {"algorithm": NStepA2C}


def policy_for(observation: str) -> str:
    """
    Choose a policy.

    :param observation: key of ``OBSERVATION_SPACES``
    :return: its name
    """
    return {"image": "CnnPolicy", "dict": "MultiInputPolicy", "dict_image": "MultiInputPolicy"}.get(observation, "MlpPolicy")


def match_envs(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    """
    Vectorise monitored :class:`MatchEnv`.

    :param n_envs: number of copies
    :param kwargs: arguments of each
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
    :param algorithm: its class
    :param kwargs: further arguments
    :return: the model; as ``Any``, since the tests ask for what only one of the classes has
    """
    mode = {} if "n_episodes" in kwargs else {"n_steps": 6}
    return algorithm(policy, match_envs() if env is None else env, **{"seed": 0, "device": "cpu", **mode, **kwargs})


def name_of(options: Any) -> str:
    """
    Name a test.

    :param options: of :func:`make`, or another of its parameters
    :return: all options in a word; nothing for another parameter
    """
    if not isinstance(options, dict):
        return ""
    values = {key: getattr(value, "__name__", value) for key, value in options.items()}
    return "-".join(f"{key}={value}" for key, value in values.items()) or "defaults"


def state_of(model: BaseAlgorithm) -> State:
    """
    Copy a model's parameters.

    :param model: any
    :return: copies of all parameters and of the state of all optimizers
    """
    return copy.deepcopy(model.get_parameters())


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """
    Compare nested structures of tensors.

    :param left: one
    :param right: the other
    :param path: where they stand in a larger structure
    :return: where they differ
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
    Save and load a model, in memory.

    :param model: any
    :param as_: class that loads it, its own by default
    :param kwargs: further arguments of ``load``
    :return: what was loaded
    """
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return (as_ or type(model)).load(file, **kwargs)


def check_training(model: BaseAlgorithm, n_steps: int = 40, parts: tuple[str, ...] = ("",)) -> None:
    """
    It trains, counts honestly, stays finite, and predicts actions of the space for one and for many observations.

    :param model: any
    :param n_steps: number of steps to train
    :param parts: beginnings of names of parameters; of each some must change
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
    """Keeps what is logged: one dictionary for each dump."""

    def __init__(self) -> None:
        self.dumps: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Keep a dump.

        :param key_values: what is logged
        :param key_excluded: formats that are not to show it
        :param step: number of steps so far
        """
        assert key_values.keys() == key_excluded.keys()
        self.dumps.append({**key_values, "step": step})

    def close(self) -> None:
        """Nothing is open."""


def logged(model: BaseAlgorithm, n_steps: int, callback: Any = None) -> list[dict[str, Any]]:
    """
    Train and listen.

    :param model: any
    :param n_steps: number of steps to train
    :param callback: of the training
    :return: what each iteration logged, and last what the last update did
    """
    captured = Captured()
    model.set_logger(Logger(folder=None, output_formats=[captured]))
    model.learn(n_steps, callback=callback, log_interval=1)
    model.logger.dump(model.num_timesteps)
    return captured.dumps


def assert_names_all(raised: pytest.ExceptionInfo[ValueError], words: list[str]) -> None:
    """
    Check the message of a rejected option.

    :param raised: what was raised
    :param words: all that a single line must name
    """
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


class ScaledBuffer(PolicyGradientBuffer):
    """
    A buffer of one's own.

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
    Check that an option is not ignored.

    :param base: options of :func:`make`
    :param change: further ones, after which the trained parameters must differ
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
