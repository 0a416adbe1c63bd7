"""Trials of SVG0 are valid with any entry of the yml file."""

from typing import Any

import numpy as np
import optuna
import pytest
from envs import MatchEnv
from stable_baselines3.common.noise import NormalActionNoise

from sb3_pg import SVG0
from sb3_pg.svg0.tuning import convert_svg0_params, sample_svg0_params


@pytest.mark.parametrize(
    "entry",
    [
        {"on_policy": True, "train_freq": 64},
        {"on_policy": True, "train_freq": 1, "td_lambda": 0.0},
        {"td_lambda": 0.0, "batch_size": 100},
        {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))},
        {"ent_coef": "auto", "target_entropy": -1.0, "n_critics": 2},
        {"train_freq": (1, "episode"), "gradient_steps": -1},
    ],
    ids=str,
)
def test_a_trial_resets_conflicting_options(entry: dict[str, Any]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(8):
        sampled = sample_svg0_params(study.ask(), 2, 1, {})
        model = SVG0("MlpPolicy", MatchEnv(action="box"), **{**entry, **sampled})
        assert not model.on_policy
        assert model.td_lambda > 0


def test_every_sampled_parameter_is_used() -> None:
    """A sampled parameter without effect on the arguments would be noise in the study."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(2)]
    for trial in trials:
        sample_svg0_params(trial, 2, 1, {})
    one, other = (trial.params for trial in trials)
    for name in one:
        if one[name] != other[name]:
            assert convert_svg0_params({**one, name: other[name]}) != convert_svg0_params(one), name
