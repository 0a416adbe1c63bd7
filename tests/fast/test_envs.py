"""Quick copies equal deep copies, and are used only during training."""

import copy
import functools
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it has no type hints
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_pg.fast.envs import QuickDummyVecEnv, quick_copies, quick_deepcopy

ATOMS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just(np.float32(0.5)))
VALUES = st.recursive(ATOMS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner)))


@settings(max_examples=50, deadline=None)
@given(st.one_of(VALUES, st.dictionaries(st.text(), VALUES)))
def test_copies_equal_those_of_deepcopy(x: Any) -> None:
    assert quick_deepcopy(x) == copy.deepcopy(x) == x


def test_observation_buffers_keep_their_order_and_type() -> None:
    """``DummyVecEnv`` stores them in an ``OrderedDict``."""
    arrays = OrderedDict([("b", np.zeros(2)), ("a", np.ones(3)), (None, np.arange(2))])
    copied = quick_deepcopy(arrays)
    assert type(copied) is OrderedDict
    assert list(copied) == list(arrays)
    for key, array in arrays.items():
        assert np.array_equal(copied[key], array)
        assert not np.shares_memory(copied[key], array)


def test_nothing_mutable_is_shared() -> None:
    info: dict[str, Any] = {
        "array": np.arange(6.0).reshape(2, 3).T,
        "objects": np.array([[1], None], dtype=object),
        "nested": {"list": [1, {"a": np.zeros(2)}]},
        "object": spaces.Discrete(3),
        "number": 1.5,
        "record": np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])[0],
        "episode": {"r": 1.0, "l": 3},
    }
    info["cycle"] = info
    copied = quick_deepcopy(info)
    copied["episode"]["r"] = 2.0
    assert info["episode"]["r"] == 1.0
    assert np.array_equal(copied["array"], info["array"])
    assert copied["array"].strides == info["array"].strides
    copied["array"][:] = -1
    copied["objects"][0].append(2)
    copied["record"]["a"] = 2
    copied["nested"]["list"][1]["a"][:] = -1
    copied["new"] = 1
    assert info["array"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert info["objects"][0] == [1]
    assert info["record"]["a"] == 1
    assert info["nested"]["list"][1]["a"].tolist() == [0, 0]
    assert "new" not in info
    assert copied["object"] == info["object"]
    assert copied["object"] is not info["object"]
    assert copied["cycle"] is not info


class ReusesObjects(gym.Env[Any, Any]):
    """Returns the same observation and info objects in every step, some of them nested."""

    observation_space: spaces.Space[Any] = spaces.Box(-10, 100, (2,), np.float64)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": []}  # noqa: RUF012  # the default cannot be pickled

    def __init__(self) -> None:
        self.obs = np.zeros(2)
        self.info: dict[str, Any] = {"history": [], "obs": np.zeros(2)}

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.obs[:] = 0
        return self.observe(), {"history": [*self.info["history"]]}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.obs += 1 + action
        self.info["history"].append(float(self.obs[0]))
        self.info["obs"][:] = self.obs
        # Both at once, only truncated, only terminated.
        terminated, truncated = bool(self.obs[0] > 6), bool(self.obs[0] in (6, 7))
        return self.observe(), float(action), terminated, truncated, self.info

    def observe(self) -> Any:
        return self.obs


class Keys(ReusesObjects):
    """Dictionary observations."""

    observation_space = spaces.Dict({"a": ReusesObjects.observation_space, "b": spaces.Box(-10, 100, (1,), np.float32)})

    def observe(self) -> Any:
        return {"a": self.obs, "b": self.obs[:1].astype(np.float32)}


class Pair(ReusesObjects):
    """Tuple observations."""

    observation_space = spaces.Tuple((ReusesObjects.observation_space, spaces.Discrete(100)))

    def observe(self) -> Any:
        return self.obs, int(self.obs[0])


def trajectory(env: VecEnv, n_steps: int = 30) -> list[Any]:
    """
    :param env: two environments
    :param n_steps: number of steps
    :return: outputs of each step, with the infos of the latest resets
    """
    env.reset()
    return [(*env.step(np.array([i % 2, i % 3 % 2])), list(env.reset_infos)) for i in range(n_steps)]


def assert_equal(a: Any, b: Any) -> None:
    """
    :param a: nested dictionaries, lists, tuples, arrays and numbers
    :param b: the same, with the same types
    """
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("env_class", [ReusesObjects, Keys, Pair])
def test_trajectories_are_the_same_with_quick_copies(env_class: type[gym.Env[Any, Any]]) -> None:
    """Trajectories are compared at the end, after the environment has overwritten its own arrays many times."""

    def make() -> VecEnv:
        return DummyVecEnv([lambda: Monitor(env_class())] * 2)

    def without_times(steps: list[Any]) -> list[Any]:
        for step in steps:
            for info in step[3]:
                info.get("episode", {}).pop("t", None)
        return steps

    expected = without_times(trajectory(make()))
    env = make()
    with quick_copies(env):
        assert_equal(without_times(trajectory(env)), expected)
    infos = [info for step in expected for info in step[3]]
    ends = [info["TimeLimit.truncated"] for info in infos if "terminal_observation" in info]
    assert {True, False} == set(ends)


def test_quick_copies_are_used_only_within_the_block() -> None:
    env = DummyVecEnv([ReusesObjects])
    with quick_copies(VecNormalize(env)):
        assert type(env) is QuickDummyVecEnv
        assert isinstance(env, DummyVecEnv)
    assert type(env) is DummyVecEnv
    with pytest.raises(KeyError), quick_copies(env):
        raise KeyError
    assert type(env) is DummyVecEnv


def test_nested_blocks_end_with_the_outer_one() -> None:
    env = DummyVecEnv([ReusesObjects])
    with quick_copies(env):
        with quick_copies(VecNormalize(env)):
            pass
        assert type(env) is QuickDummyVecEnv
    assert type(env) is DummyVecEnv


def test_a_class_assigned_within_the_block_is_kept() -> None:
    env = DummyVecEnv([ReusesObjects])
    with quick_copies(env):
        env.__class__ = Own
    assert type(env) is Own


def test_the_environment_of_a_wrapper_may_be_replaced_within_the_block() -> None:
    env, other = DummyVecEnv([ReusesObjects]), DummyVecEnv([ReusesObjects])
    wrapper = VecNormalize(env)
    with quick_copies(wrapper):
        env.close()
        wrapper.venv = other
    assert type(env) is type(other) is DummyVecEnv


def test_sb3_still_uses_deepcopy() -> None:
    """Otherwise quick copies are obsolete."""
    for name in ("step_wait", "_obs_from_buf"):
        assert "deepcopy" in getattr(DummyVecEnv, name).__code__.co_names


class Own(DummyVecEnv):
    """A subclass."""

    def step_wait(self) -> Any:
        return "own"


def test_other_environments_are_unchanged() -> None:
    env = Own([ReusesObjects])
    with quick_copies(env):
        assert type(env) is Own
        assert env.step_wait() == "own"
    processes = SubprocVecEnv([lambda: gym.make("CartPole-v1")])
    with quick_copies(processes):
        assert type(processes) is SubprocVecEnv
    processes.close()


@pytest.mark.parametrize("name", ["step_wait", "_obs_from_buf"])
def test_a_method_patched_on_an_instance_is_called(name: str) -> None:
    """The patches are applied before the block and within it, and call the original method."""
    env: Any = DummyVecEnv([ReusesObjects])
    env.reset()
    calls = []

    def patch(label: str) -> None:
        original = getattr(env, name)

        def patched() -> Any:
            calls.append(label)
            return original()

        setattr(env, name, patched)

    patch("before")
    with quick_copies(env):
        env.step([0])
        assert calls == ["before"]
        patch("within")
        env.step([0])
        assert calls == ["before", "within", "before"]
    env.step([0])
    assert calls == ["before", "within", "before", "within", "before"]


@pytest.mark.parametrize("name", ["step_wait", "_obs_from_buf"])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_patched_class_behaves_as_in_sb3(name: str, within: bool, wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(DummyVecEnv, name)
    calls = []

    def patched(self: DummyVecEnv) -> Any:
        calls.append(self)
        return original(self)

    def patch() -> None:
        monkeypatch.setattr(DummyVecEnv, name, functools.wraps(original)(patched) if wrapped else patched)

    env = DummyVecEnv([ReusesObjects])
    env.reset()
    if not within:
        patch()
    with quick_copies(env):
        if within:
            env.step(np.array([0]))
            assert calls == []
            patch()
        env.step(np.array([0]))
        assert calls == [env]
        monkeypatch.undo()
        env.step(np.array([0]))
        assert calls == [env]


def test_a_class_patched_before_the_import_is_unchanged() -> None:
    code = """
import functools
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

original, calls = DummyVecEnv.step_wait, []

@functools.wraps(original)
def patched(self):
    calls.append(type(self))
    return original(self)

DummyVecEnv.step_wait = patched
from sb3_pg.fast.envs import quick_copies

env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
env.reset()
with quick_copies(env):
    env.step(np.array([0]))
assert calls == [DummyVecEnv], calls
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "copied",
    [
        *(functools.partial(lambda env, protocol: pickle.loads(pickle.dumps(env, protocol)), protocol=i) for i in range(6)),
        lambda env: pickle.loads(cloudpickle.dumps(env)),
        copy.deepcopy,
        copy.copy,
    ],
    ids=[*(f"pickle {i}" for i in range(6)), "cloudpickle", "deepcopy", "copy"],
)
def test_a_copy_made_within_the_block_is_a_plain_environment(copied: Callable[[Any], Any]) -> None:
    env: Any = DummyVecEnv([ReusesObjects] * 2)
    expected = trajectory(DummyVecEnv([ReusesObjects] * 2))
    with quick_copies(env):
        env.reset()
        env.attribute = 3
        other = copied(env)
        assert type(env) is QuickDummyVecEnv
    assert type(other) is DummyVecEnv
    assert vars(other)["attribute"] == 3
    assert_equal(trajectory(other), expected)


def test_training_uses_quick_copies_and_restores_the_class(make_model: Callable[..., Any]) -> None:
    model = make_model()
    env = model.get_env()
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    during = []

    def look(*_: Any) -> bool:
        during.append(type(env) is QuickDummyVecEnv)
        if len(during) > 20:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(100, look)
    assert all(during)
    assert type(env) is DummyVecEnv
