"""Quick copies are copies, and only of what collects."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_pg.fast.envs import quick_copies, quick_deepcopy

ATOMS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.just(np.float32(0.5)))
VALUES = st.recursive(ATOMS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner)))


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.lists(st.dictionaries(st.text(), VALUES)), st.dictionaries(st.text(), VALUES)))
def test_copies_are_those_of_deepcopy(x: Any) -> None:
    assert quick_deepcopy(x) == copy.deepcopy(x) == x


def test_buffers_of_observations_keep_their_order_and_type() -> None:
    """``DummyVecEnv`` has them in an ``OrderedDict``."""
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
    copied = quick_deepcopy([info])[0]
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


class ReusesEverything(gym.Env[Any, Any]):
    """Returns the same array and the same dictionary in every step."""

    observation_space = spaces.Box(-100, 100, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.obs = np.zeros(2)
        self.info: dict[str, Any] = {"history": [], "obs": np.zeros(2)}

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.obs[:] = 0
        return self.obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.obs += 1 + action
        self.info["history"].append(float(self.obs[0]))
        self.info["obs"][:] = self.obs
        return self.obs, float(action), False, bool(self.obs[0] > 5), self.info


def trajectory(env: VecEnv, n_steps: int = 20) -> list[Any]:
    env.reset()
    return [env.step(np.array([i % 2, 1])) for i in range(n_steps)]


def assert_equal(a: Any, b: Any) -> None:
    for (obs, rewards, dones, infos), others in zip(a, b, strict=True):
        assert np.array_equal(obs, others[0])
        assert np.array_equal(rewards, others[1])
        assert np.array_equal(dones, others[2])
        for info, other in zip(infos, others[3], strict=True):
            assert info.keys() == other.keys()
            assert all(np.array_equal(info[key], other[key]) for key in info if key != "episode")


@pytest.mark.parametrize("normalize", [False, True])
def test_an_environment_steps_as_without_them(normalize: bool) -> None:
    """The whole trajectory is compared afterwards, when the environment has overwritten its own arrays many times."""

    def make() -> VecEnv:
        env: VecEnv = DummyVecEnv([lambda: Monitor(ReusesEverything())] * 2)
        return VecNormalize(env) if normalize else env

    expected = trajectory(make())
    env = make()
    with quick_copies(env):
        assert_equal(trajectory(env), expected)
    assert any("terminal_observation" in info for step in expected for info in step[3])


def test_they_end_with_the_block() -> None:
    env = DummyVecEnv([ReusesEverything])
    before = dict(vars(env))
    with quick_copies(VecNormalize(env)):
        assert "step_wait" in vars(env)
    with pytest.raises(KeyError), quick_copies(env):
        raise KeyError
    assert vars(env).keys() == before.keys()


def test_sb3_still_copies_deeply() -> None:
    """Otherwise there is nothing left to do here."""
    for name in ("step_wait", "_obs_from_buf"):
        assert "deepcopy" in getattr(DummyVecEnv, name).__code__.co_names


def test_other_environments_are_left_alone() -> None:
    class Own(DummyVecEnv):
        def step_wait(self) -> Any:
            return "own"

    env = Own([ReusesEverything])
    with quick_copies(env):
        assert env.step_wait() == "own"
    patched: Any = DummyVecEnv([ReusesEverything])
    patched.step_wait = lambda: "patched"  # as a user might
    with quick_copies(patched):
        assert patched.step_wait() == "patched"
    assert patched.step_wait() == "patched"
    processes = SubprocVecEnv([lambda: gym.make("CartPole-v1")])
    before = set(vars(processes))
    with quick_copies(processes):
        assert set(vars(processes)) == before
    processes.close()


def test_training_copies_quickly_and_leaves_nothing_behind(make_model: Callable[..., Any]) -> None:
    model = make_model()
    env = model.get_env()
    during = []

    def look(*_: Any) -> bool:
        during.append("step_wait" in vars(env))
        if len(during) > 20:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(100, look)
    assert all(during)
    assert "step_wait" not in vars(env)
