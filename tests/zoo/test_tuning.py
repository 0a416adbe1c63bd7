"""Samplers and converters of every algorithm, as the RL Zoo calls them."""

import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env

from sb3_pg.registry import ALGOS, Algorithm

EACH_ALGORITHM = pytest.mark.parametrize("algorithm", ALGOS.values(), ids=list(ALGOS))


@pytest.fixture
def study() -> Iterator[optuna.Study]:
    """
    Create a study with the zoo's sampler, without output.

    :return: The study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate is experimental
        sampler = optuna.samplers.TPESampler(n_startup_trials=20, multivariate=True, seed=0)
    yield optuna.create_study(sampler=sampler, direction="maximize")
    optuna.logging.set_verbosity(optuna.logging.INFO)


@EACH_ALGORITHM
@pytest.mark.parametrize("n_envs", [1, 3, 8])
def test_what_a_trial_stores_rebuilds_what_was_sampled(algorithm: Algorithm, n_envs: int, study: optuna.Study) -> None:
    sampled: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        sampled.append(algorithm.load_sampler()(trial, 2, n_envs, {"using_her_replay_buffer": False, "her_kwargs": {}}))
        return float(trial.number % 7)

    study.optimize(objective, n_trials=40)
    rebuilt = [algorithm.load_converter()(trial.params) for trial in study.trials]
    assert rebuilt == sampled
    assert any(first != second for first, second in itertools.pairwise(sampled))


@EACH_ALGORITHM
def test_converting_leaves_the_stored_parameters_alone(algorithm: Algorithm, study: optuna.Study) -> None:
    trial = study.ask()
    algorithm.load_sampler()(trial, 2, 1, {})
    stored = trial.params
    algorithm.load_converter()(stored)
    assert stored == trial.params


def assert_a_trial_fits(algorithm: Algorithm, entry: dict[str, Any], env: str, study: optuna.Study) -> None:
    """
    Merge trials into an entry of a yml file, as the zoo does, and build the models.

    :param algorithm: Row of the registry.
    :param entry: Arguments of the algorithm.
    :param env: An environment that the algorithm can handle.
    :param study: Study that samples the trials.
    """
    vec_env = make_vec_env(env, n_envs=2)
    for _ in range(8):
        trial = study.ask()
        sampled = algorithm.load_sampler()(trial, 1, vec_env.num_envs, {"using_her_replay_buffer": False, "her_kwargs": {}})
        algorithm.load_class()(env=vec_env, **{**entry, **sampled})


@EACH_ALGORITHM
def test_a_trial_fits_every_entry_of_the_yml(
    algorithm: Algorithm, algorithms: dict[str, dict[str, Any]], study: optuna.Study
) -> None:
    entries = yaml.safe_load(algorithm.yml_path().read_text(encoding="utf-8"))
    arguments = inspect.signature(algorithm.load_class()).parameters
    for entry in entries.values():
        # The entries are for other environments, some of them with gSDE, which needs continuous actions.
        own = {name: value for name, value in entry.items() if name in arguments and name != "use_sde"}
        assert_a_trial_fits(algorithm, own, algorithms[algorithm.key]["env"], study)


@pytest.mark.parametrize(
    "entry",
    [
        {"n_episodes": 8, "advantage_estimator": "total_return", "baseline": "optimal"},
        {"n_episodes": 8, "advantage_estimator": "reward_to_go", "baseline": "mean", "discount_gradient": True},
        {"n_steps": 64, "advantage_estimator": "n_step", "return_steps": 5, "value_batch_size": 100_000},
        {"n_steps": 64, "advantage_estimator": "gae", "gae_lambda": 0.9, "vf_coef": 0.5, "n_value_updates": 0},
    ],
)
def test_a_trial_of_vpg_resets_what_would_contradict_it(entry: dict[str, Any], study: optuna.Study) -> None:
    assert_a_trial_fits(ALGOS["vpg"], {"policy": "MlpPolicy", **entry}, "CartPole-v1", study)


@pytest.mark.parametrize("n_envs", [1, 2, 3, 8, 64, 1000])
def test_a_rollout_of_vpg_is_neither_tiny_nor_endless(n_envs: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lengths = {ALGOS["vpg"].load_sampler()(study.ask(), 1, n_envs, {})["n_steps"] for _ in range(100)}
    assert min(lengths) >= 8
    assert min(lengths) * n_envs >= 128
    assert max(lengths) == 8 or max(lengths) * n_envs <= 4096
