"""HERDDPG solves tasks with a known solution."""

from typing import Any

import numpy as np
import pytest
from goal_envs import point_envs
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pg import HERDDPG


def success_rate(model: HERDDPG, env: VecEnv, n_episodes: int = 100) -> float:
    """Success rate of the deterministic policy."""
    obs = env.reset()
    results: list[bool] = []
    while len(results) < n_episodes:
        actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]  # a dictionary
        obs, _, dones, infos = env.step(actions)
        results += [info["is_success"] for info, done in zip(infos, dones, strict=True) if done]
    return float(np.mean(results))


def make(env: VecEnv, **kwargs: Any) -> HERDDPG:
    small: dict[str, Any] = {"batch_size": 64, "policy_kwargs": {"net_arch": [64, 64]}, "device": "cpu"}
    return HERDDPG("MultiInputPolicy", env, **{**small, **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize("terminate", [False, True])
def test_a_point_reaches_its_goal(terminate: bool) -> None:
    model = make(point_envs(4, terminate=terminate), seed=1).learn(6000)
    assert success_rate(model, point_envs(4, terminate=terminate)) >= 0.7  # 0.1 without training


@pytest.mark.slow
def test_bit_flipping() -> None:
    def env() -> DummyVecEnv:
        return DummyVecEnv([lambda: Monitor(BitFlippingEnv(n_bits=6, continuous=True))] * 4)

    model = make(env(), seed=1, terminate_on_success=True, gradient_steps=10).learn(4500)
    assert success_rate(model, env()) >= 0.9
