"""
NStepA2C solves tasks with a known solution, with every horizon, within seconds and with any seed.

One-step returns propagate values slowly, so that horizon gets more steps.
"""

from statistics import median

import numpy as np
import pytest
import torch as th
from envs import QuadraticEnv, TabularVecEnv, bandit, chain, endless
from model_checks import Options, name_of
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tabular_models import GAMMA, SEEDS, CutsLookLikeEnds, action_probabilities, tabular, values

from sb3_pg import NStepA2C

HORIZONS: list[Options] = [{}, {"return_steps": 1}, {"return_steps": 3}, {"gae_lambda": 0.8}]
VARIANTS: list[Options] = [
    *HORIZONS,
    {"value_learning_rate": "lin_0.2", "return_steps": 2},
    {"use_rms_prop": True},
    {"normalize_advantage": True},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_the_best_of_three_arms_is_found(options: Options, seed: int) -> None:
    env = TabularVecEnv(bandit(0.5, 1.0, 0.0), 16)
    model = tabular(NStepA2C, env, seed, learning_rate=0.1, **options).learn(3200)
    assert action_probabilities(model, 1)[0, 1] > 0.8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_the_far_reward_of_a_chain_is_found(options: Options, seed: int) -> None:
    """
    Leaving pays nothing, moving on from the third state pays 1: a value of 0.81 at the start. The learning rate decays to
    zero: bootstrapped targets move with the critic, and oscillate with Adam at a constant rate.
    """
    env = TabularVecEnv(chain(3, leave_reward=0.0), 16)
    n_steps = 16_000 if options.get("return_steps") == 1 else 8000
    model = tabular(NStepA2C, env, seed, learning_rate=lambda p: 0.05 * p, **options).learn(n_steps)
    assert action_probabilities(model, 3)[:, 1].min() > 0.8
    assert np.allclose(values(model, 3), GAMMA ** np.array([2, 1, 0]), atol=0.2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("critic", [{}, {"value_learning_rate": 1.0}], ids=name_of)
@pytest.mark.parametrize("horizon", HORIZONS, ids=name_of)
def test_a_time_limit_does_not_reduce_the_value_of_an_endless_task(horizon: Options, critic: Options, seed: int) -> None:
    """A reward of 1 at every step is worth 1 / (1 - gamma) = 10, even if a limit of 6 steps cuts the episodes."""
    env = TabularVecEnv(endless(6), 16)
    rate = 0.01 if critic else 1.0  # the critic's step halves the error of a state
    n_steps = 16_000 if horizon.get("return_steps") == 1 else 6000
    options = {"learning_rate": rate, "max_grad_norm": None, **horizon, **critic}
    right, wrong = (
        tabular(NStepA2C, venv, seed, th.optim.SGD, **options).learn(n_steps) for venv in (env, CutsLookLikeEnds(env))
    )
    assert np.allclose(values(right, 2), 10, atol=0.1)
    assert values(wrong, 2).max() < 7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"value_learning_rate": 0.1}, {"return_steps": 1}], ids=name_of)
def test_continuous_actions_reach_their_target(options: Options, seed: int) -> None:
    """The best action is half the observation, and the reward the negative squared error: -0.25 for the initial mean of 0."""
    env = DummyVecEnv([lambda: Monitor(QuadraticEnv(dim=1))] * 8)
    network = {"net_arch": {"pi": [], "vf": []}, "log_std_init": -1.0}
    model = NStepA2C("MlpPolicy", env, learning_rate=0.02, seed=seed, policy_kwargs=network, **options).learn(8000)
    for observation in (-1.0, 1.0):
        action, _ = model.predict(np.array([observation], dtype=np.float32), deterministic=True)
        assert action.item() == pytest.approx(0.5 * observation, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"gae_lambda": 0.95}, {"return_steps": 16}], ids=name_of)
def test_cartpole(options: Options) -> None:
    """A random policy scores about 20, the best one 500."""
    rewards = []
    for seed in range(3):
        env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
        model = NStepA2C("MlpPolicy", env, n_steps=32, learning_rate=3e-3, seed=seed, device="cpu", **options).learn(60_000)
        rewards.append(float(evaluate_policy(model, env, n_eval_episodes=10)[0]))  # type: ignore[arg-type]  # one number
    assert median(rewards) > 150
