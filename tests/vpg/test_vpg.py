"""Behaviour specific to VPG; the rest is in ``tests/conformance`` and ``tests/common/test_on_policy_algorithms.py``."""

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import ACTION_SPACES
from model_checks import Options, check_training, logged, make, match_envs, name_of, reloaded
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg import VPG

ROLLOUT: Options = {"n_steps": 6}
EPISODES: Options = {"n_episodes": 6}
CRITICS: list[Options] = [
    {"n_value_updates": 0},
    {"n_value_updates": 2},
    {"n_value_updates": 2, "critic_first": True},
    {"n_value_updates": 3, "value_batch_size": 4},
]


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize(
    "options",
    [
        ROLLOUT,
        {**EPISODES, "advantage_estimator": "total_return", "baseline": "mean"},
        {**EPISODES, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
    ],
    ids=name_of,
)
def test_a_linear_policy_for_every_action_space(action: str, options: Options) -> None:
    check_training(make(match_envs(action=action), "LinearPolicy", **options))


@pytest.mark.parametrize("observation", ["discrete", "multi_discrete", "multi_binary", "image"])
def test_a_linear_policy_takes_every_array(observation: str) -> None:
    check_training(make(match_envs(observation=observation), "LinearPolicy"))


@pytest.mark.parametrize("mode", [ROLLOUT, EPISODES], ids=name_of)
@pytest.mark.parametrize("critic", CRITICS, ids=name_of)
@pytest.mark.parametrize(
    "estimator",
    [
        {"advantage_estimator": "reward_to_go"},
        {"advantage_estimator": "n_step", "return_steps": 2},
        {"advantage_estimator": "gae"},
    ],
    ids=name_of,
)
def test_every_estimator_with_every_kind_of_critic(mode: Options, critic: Options, estimator: Options) -> None:
    check_training(make(**mode, **critic, **estimator))


def test_estimating_gradients_does_not_change_normalisation_statistics() -> None:
    env = VecNormalize(match_envs())
    model = make(env, n_episodes=6).learn(50)
    before = copy.deepcopy((env.obs_rms, env.ret_rms))
    assert np.abs(model.estimate_gradient(2)).max() > 0
    for old, new in zip(before, (env.obs_rms, env.ret_rms), strict=True):
        assert vars(old).keys() == vars(new).keys()
        assert all(np.array_equal(value, vars(new)[name]) for name, value in vars(old).items())
    assert env.training


def test_arguments_of_sb3_keep_their_names_and_order() -> None:
    ours, theirs = (inspect.signature(algorithm.__init__).parameters for algorithm in (VPG, A2C))
    rms_prop = {"rms_prop_eps", "use_rms_prop"}  # can be given in policy_kwargs
    assert [name for name in ours if name in theirs] == [name for name in theirs if name not in rms_prop]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for name, parameter in ours.items() if name not in theirs)
    changed = {name for name in set(ours) & set(theirs) if ours[name].default != theirs[name].default}
    # None: the default depends on other options.
    assert changed <= {"learning_rate", "n_steps", "gae_lambda", "vf_coef", "max_grad_norm"}
    assert all(ours[name].default is None for name in changed - {"learning_rate"})


def test_the_number_of_episodes_must_be_a_multiple_of_the_number_of_environments() -> None:
    model = make(n_episodes=6).learn(60)
    for n_envs in (1, 2, 6):
        loaded = reloaded(model, env=match_envs(n_envs)).learn(60, reset_num_timesteps=False)
        assert loaded.rollout_buffer.rewards.shape[1] == n_envs
    with pytest.raises(ValueError, match=r"n_episodes=6 .*environments \(4\)"):
        reloaded(model, env=match_envs(4)).learn(60)


def test_the_logged_value_loss_is_the_mean_over_the_critic_steps() -> None:
    """A critic that does not move has the same loss in all steps, one that learns a smaller mean."""
    options: dict[str, Any] = {"n_value_updates": 8, "policy_kwargs": {"optimizer_class": th.optim.SGD}}
    losses = [logged(make(value_learning_rate=rate, **options), 18)[-1]["train/value_loss"] for rate in (1e-9, 1e-2)]
    buffer = (model := make(value_learning_rate=1e-9, **options)).learn(18).rollout_buffer
    assert model._n_updates == 1
    assert losses[0] == pytest.approx(np.mean((buffer.returns - buffer.values) ** 2), rel=1e-4)
    assert losses[1] < losses[0]
