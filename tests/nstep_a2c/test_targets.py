"""Targets of the critic and advantages for each horizon, computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch as th
from model_checks import Options
from smoke_envs import Recorder, scripted_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import NStepA2C

GAMMA = 0.5
# V of an observation (environment, episode, step): 8 (environment + 1) + 2 episode + step. See `policy_of_known_values`.
SCRIPTS: Any = [[(2, "terminated"), (10, "terminated")], [(3, "truncated"), (10, "terminated")]]
# Rewards of four steps of each environment. The first episode of environment 0 terminates with its second step; that of
# environment 1 is truncated with its third, in a state of value 19; the rollout cuts both after the fourth.
REWARDS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
VALUES = np.array([[8.0, 16.0], [9.0, 17.0], [10.0, 18.0], [11.0, 18.0]])
# After the cut: environment 0 in episode 1, step 2, worth 12; environment 1 in episode 1, step 1, worth 19.

TARGETS: list[tuple[str, Options, list[list[float]]]] = [
    (
        "to the end of the rollout",
        {},
        [
            [1 + 3 / 2, 2 + 4 / 2 + 6 / 4 + 19 / 8],  # terminated: no bootstrap; truncated: bootstrap from the final state
            [3, 4 + 6 / 2 + 19 / 4],
            [5 + 7 / 2 + 12 / 4, 6 + 19 / 2],  # cut by the rollout
            [7 + 12 / 2, 8 + 19 / 2],
        ],
    ),
    (
        "one reward",
        {"return_steps": 1},
        [[1 + 9 / 2, 2 + 17 / 2], [3, 4 + 18 / 2], [5 + 11 / 2, 6 + 19 / 2], [7 + 12 / 2, 8 + 19 / 2]],
    ),
    (
        "two rewards",
        {"return_steps": 2},
        [
            [1 + 3 / 2, 2 + 4 / 2 + 18 / 4],
            [3, 4 + 6 / 2 + 19 / 4],
            [5 + 7 / 2 + 12 / 4, 6 + 19 / 2],  # truncated: one reward is left
            [7 + 12 / 2, 8 + 19 / 2],  # cut: one reward is left
        ],
    ),
    (
        "a mixture: each look-ahead has half the weight of the previous one, the last one the rest",
        {"gae_lambda": 0.5},
        [
            [
                (1 + 9 / 2) / 2 + (1 + 3 / 2) / 2,
                (2 + 17 / 2) / 2 + (2 + 4 / 2 + 18 / 4) / 4 + (2 + 4 / 2 + 6 / 4 + 19 / 8) / 4,
            ],
            [3, (4 + 18 / 2) / 2 + (4 + 6 / 2 + 19 / 4) / 2],
            [(5 + 11 / 2) / 2 + (5 + 7 / 2 + 12 / 4) / 2, 6 + 19 / 2],
            [7 + 12 / 2, 8 + 19 / 2],
        ],
    ),
]


def policy_of_known_values(model: NStepA2C) -> None:
    """Make the critic linear in the observation, which is (environment, episode, step) / 10."""
    weight, bias = (p.data for p in model.policy.value_net.parameters())
    weight[:] = th.tensor([[80.0, 20.0, 10.0]])
    bias[:] = 8.0


def scripted_rewards(env: DummyVecEnv) -> None:
    """Let the environments pay ``REWARDS``, step by step."""
    for number, monitor in enumerate(env.envs):
        column = iter(REWARDS[:, number])
        step = monitor.unwrapped.step

        def pay(action: Any, step: Any = step, column: Any = column) -> Any:
            obs, _, terminated, truncated, info = step(action)
            return obs, next(column), terminated, truncated, info

        monitor.unwrapped.step = pay  # type: ignore[method-assign]  # rewards set by hand


def collected(**options: Any) -> NStepA2C:
    """Model for collecting these four steps, with a learning rate of zero."""
    env = scripted_vec_env(SCRIPTS)
    scripted_rewards(env)
    network = {"net_arch": {"pi": [], "vf": []}, "optimizer_class": th.optim.SGD}
    model = NStepA2C(
        "MlpPolicy", env, n_steps=4, gamma=GAMMA, learning_rate=lambda _: 0.0, seed=0, policy_kwargs=network, **options
    )
    policy_of_known_values(model)
    return model


@pytest.mark.parametrize(("options", "targets"), [pytest.param(*case[1:], id=case[0]) for case in TARGETS])
def test_targets(options: Options, targets: list[list[float]]) -> None:
    buffer = collected(**options).learn(8).rollout_buffer
    assert np.allclose(buffer.rewards, REWARDS)
    assert np.allclose(buffer.values, VALUES)
    assert buffer.terminated.tolist() == [[False, False], [True, False], [False, False], [False, False]]
    assert buffer.truncated.tolist() == [[False, False], [False, False], [False, True], [False, False]]
    assert np.allclose(buffer.returns, targets)
    assert np.allclose(buffer.advantages, np.array(targets) - VALUES)


@pytest.mark.parametrize("n_envs", [1, 7])
def test_truncated_environments_are_evaluated_in_one_batch(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward pass for the end of the rollout, one for all final observations."""
    cuts: Any = [[(2, "truncated"), (3, "truncated"), (1, "truncated")]] * n_envs
    # A hook disables the fast path.
    model = NStepA2C("MlpPolicy", scripted_vec_env(cuts), n_steps=6, learning_rate=lambda _: 0.0, seed=0)
    model.policy.value_net.register_forward_hook(lambda *_: None)
    sizes: list[int] = []
    original = model.policy.predict_values

    def counting(obs: th.Tensor) -> th.Tensor:
        sizes.append(len(obs))
        return original(obs)

    monkeypatch.setattr(model.policy, "predict_values", counting)
    recorder = Recorder()
    model.learn(6 * n_envs, callback=recorder)
    assert sum(step.truncated for steps in recorder.rollouts[0].steps for step in steps) == 3 * n_envs
    assert sizes == [n_envs, 3 * n_envs]
