"""
VPG solves tasks with a known solution, within seconds and with any seed.

Networks are tables, and learning rates are safe rather than fast.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import QuadraticEnv, TabularVecEnv, bandit, chain, endless
from model_checks import Options
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tabular_models import GAMMA, SEEDS, CutsLookLikeEnds, action_probabilities, tabular, values

from sb3_pg import VPG

EPISODES: Options = {"n_episodes": 16}
ROLLOUT: Options = {"n_steps": 5}
JOINT: Options = {"n_value_updates": 0, "value_learning_rate": "lin_0.2"}
SEPARATE: Options = {"n_value_updates": 4, "value_learning_rate": "lin_0.05"}

CRITIC_FREE: list[Options] = [
    {**EPISODES, "advantage_estimator": estimator, "baseline": baseline}
    for estimator in ("total_return", "reward_to_go")
    for baseline in ("none", "mean", "optimal")
]
LOOK_AHEAD: list[Options] = [
    {"advantage_estimator": "reward_to_go"},
    {"advantage_estimator": "n_step", "return_steps": 2},
    {"advantage_estimator": "gae"},
]
WITH_CRITIC: list[Options] = [{**mode, **critic} for mode in (EPISODES, ROLLOUT) for critic in (JOINT, SEPARATE)]
# Each estimator, each mode and each critic, but not all combinations.
MIXED: list[Options] = [
    *({**options, **LOOK_AHEAD[i % 3]} for i, options in enumerate(WITH_CRITIC)),
    {**EPISODES, **SEPARATE, "critic_first": True},
    {**EPISODES, **SEPARATE, "discount_gradient": True},
]


def name_of(options: Options) -> str:
    return "-".join(str(value) for key, value in options.items() if key != "value_learning_rate")


def make(env: VecEnv, seed: int, optimizer_class: type[th.optim.Optimizer] = th.optim.Adam, **kwargs: Any) -> VPG:
    model: VPG = tabular(VPG, env, seed, optimizer_class, **kwargs)
    return model


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CRITIC_FREE + WITH_CRITIC, ids=name_of)
def test_the_best_of_three_arms_is_found(options: Options, seed: int) -> None:
    model = make(TabularVecEnv(bandit(0.5, 1.0, 0.0), 16), seed, learning_rate=0.1, **options).learn(1600)
    assert action_probabilities(model, 1)[0, 1] > 0.8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", CRITIC_FREE + MIXED, ids=name_of)
def test_the_far_reward_of_a_chain_is_found(options: Options, seed: int) -> None:
    """
    Leaving pays nothing, moving on from the third state pays 1: a value of 0.81 at the start. (If leaving paid, batches in
    which no episode reaches the end would, for a few seeds in a hundred, teach the policy to leave.)
    """
    model = make(TabularVecEnv(chain(3, leave_reward=0.0), 16), seed, learning_rate=0.05, **options).learn(4000)
    assert action_probabilities(model, 3)[:, 1].min() > 0.8
    if model.uses_critic:
        assert np.allclose(values(model, 3), GAMMA ** np.array([2, 1, 0]), atol=0.2)


# SGD, to get from 0 to 10 without overshooting; each rate halves the error of a state with each step.
ENDLESS = [{**options, "value_learning_rate": 0.5 if options["n_value_updates"] else 1.0} for options in MIXED]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", ENDLESS, ids=name_of)
def test_a_time_limit_does_not_reduce_the_value_of_an_endless_task(options: Options, seed: int) -> None:
    """
    A reward of 1 at every step is worth 1 / (1 - gamma) = 10, even if a limit of 6 steps cuts the episodes. If the cut were a
    termination, the mean over the steps of an episode would be 2.9, or more with bootstrapping, but not 10.
    """
    env = TabularVecEnv(endless(6), 16)
    right, wrong = (
        make(venv, seed, th.optim.SGD, learning_rate=0.01, **options).learn(4000) for venv in (env, CutsLookLikeEnds(env))
    )
    assert np.allclose(values(right, 2), 10, atol=0.1)
    assert values(wrong, 2).max() < 7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {"n_episodes": 32, "advantage_estimator": "total_return", "baseline": "none"},
        {"n_episodes": 32, "advantage_estimator": "reward_to_go", "baseline": "mean"},
        {"n_steps": 4, "n_value_updates": 5, "value_learning_rate": 0.03},
        {"n_steps": 4, "n_value_updates": 0, "value_learning_rate": 0.1},
    ],
    ids=name_of,
)
def test_continuous_actions_reach_their_target(options: Options, seed: int) -> None:
    """The best action is half the observation, and the reward the negative squared error: -0.25 for the initial mean of 0."""
    env = DummyVecEnv([lambda: Monitor(QuadraticEnv(dim=1))] * 8)
    model = VPG("LinearPolicy", env, learning_rate=0.02, seed=seed, policy_kwargs={"log_std_init": -1.0}, **options).learn(
        4000
    )
    for observation in (-1.0, 1.0):
        action, _ = model.predict(np.array([observation], dtype=np.float32), deterministic=True)
        assert action.item() == pytest.approx(0.5 * observation, abs=0.15)
