"""
SVG(0) solves tasks with a known solution, within seconds and with any seed.

The environment variable SEEDS=25 runs each test with 25 seeds.
"""

import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import QuadraticEnv
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import SVG0
from sb3_pg.common.distributions import COVARIANCES

SEEDS = range(int(os.environ.get("SEEDS", "1")))

Options = dict[str, Any]

REPLAY: Options = {"learning_starts": 32, "batch_size": 64, "buffer_size": 4000}
ON_POLICY: Options = {"on_policy": True, "train_freq": 8, "gradient_steps": 16}


class Target(QuadraticEnv):
    """The optimal action is half the observation; the cost is the squared deviation. Actions are within [-1, 1]."""

    def __init__(self) -> None:
        super().__init__(dim=1)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


def make(env: Any, seed: int, **kwargs: Any) -> SVG0:
    network = {"net_arch": [32, 32], **kwargs.pop("policy_kwargs", {})}
    return SVG0("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=network, tau=0.3, **kwargs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        *({**REPLAY, "covariance": covariance} for covariance in COVARIANCES),
        {**REPLAY, "squash_output": False},
        {**REPLAY, "gradient_estimator": "likelihood_ratio", "n_action_samples": 8},
        {**REPLAY, "n_critics": 2, "ent_coef": 0.01, "td_lambda": 0.0},
        # tanh would saturate within one or two rollouts, before the critic is fitted.
        {**ON_POLICY, "squash_output": False},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items() if key not in REPLAY),
)
def test_actions_converge_to_the_optimum(options: Options, seed: int) -> None:
    """The initial policy, near 0 everywhere, is off by 0.5."""
    env = DummyVecEnv([lambda: Monitor(Target())] * 8)
    model = make(env, seed, learning_rate=3e-3, **options).learn(8 * 300)
    for observation in (-1.0, 1.0):
        action, _ = model.predict(np.array([observation], dtype=np.float32), deterministic=True)
        assert action == pytest.approx(0.5 * observation, abs=0.2)


class Endless(gym.Env[np.ndarray, np.ndarray]):
    """Reward 1 in every step, without termination, truncated after 6 steps."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, _: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._t += 1
        return np.zeros(1, dtype=np.float32), 1.0, False, self._t == 6, {}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {**REPLAY, "td_lambda": 0.0},
        {**REPLAY, "off_policy_correction": "none"},
        {**REPLAY, "off_policy_correction": "retrace"},
        ON_POLICY,
    ],
    ids=str,
)
def test_truncation_does_not_lower_values(options: Options, seed: int) -> None:
    """The value is 1 / (1 - gamma) = 5. If truncation were termination, it would be 2.5 to 3, depending on lambda."""
    values = []
    for handled in (True, False):
        env = DummyVecEnv([lambda: Monitor(Endless())] * 8)
        buffer = {"handle_timeout_termination": handled}
        model = make(env, seed, learning_rate=1e-2, gamma=0.8, replay_buffer_kwargs=buffer, **options).learn(8 * 200)
        with th.no_grad():
            values.append(model.critic.min_q(th.zeros(1, 1), th.zeros(1, 1)).item())
    assert values[0] == pytest.approx(5, abs=1)
    assert values[1] < 3.7


@pytest.mark.slow
def test_a_pendulum_swings_up() -> None:
    """The return of a random policy is -1200, that of a trained one about -150."""
    model = SVG0("MlpPolicy", "Pendulum-v1", gamma=0.98, seed=0, device="cpu").learn(6000)
    reward, _ = evaluate_policy(model, Monitor(gym.make("Pendulum-v1")), n_eval_episodes=20)
    assert isinstance(reward, float)
    assert reward > -400
