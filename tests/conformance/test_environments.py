"""Every algorithm trains in environments of every kind: spaces, vectorisation, wrappers, exploration."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conformance.specs import SPECS, Spec, build_env
from gymnasium import spaces
from model_checks import check_training
from smoke_envs import ScriptedEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_pg.registry import ALGOS

BOXES = [
    spaces.Box(np.array([-0.3, 5.0]), np.array([0.1, 6.0]), dtype=np.float64),
    spaces.Box(np.array([2, -4], dtype=np.float32), np.array([3, 0], dtype=np.float32)),
    spaces.Box(-0.5, 0.25, (2, 3), np.float32),
]


def variants_of(*names: str) -> list[Any]:
    """
    :param names: attributes of :class:`Spec` that must be true
    :return: parameters (spec, options) of each algorithm with default options, and of each of its variants
    """
    return [
        pytest.param(spec, options, id=f"{spec.key}-{variant}")
        for spec in SPECS.values()
        for variant, options in {"default": {}, **spec.variants}.items()
        if all(getattr(spec, name) for name in names)
    ]


def test_every_algorithm_of_the_registry_has_a_spec() -> None:
    assert list(SPECS) == list(ALGOS)


@pytest.mark.parametrize(
    ("spec", "observation"),
    [pytest.param(spec, name, id=f"{spec.key}-{name}") for spec in SPECS.values() for name in spec.observations],
)
def test_observation_spaces(spec: Spec, observation: str) -> None:
    env = spec.envs(2, observation=observation, truncate=True)
    check_training(spec.make(env, **spec.observation_options.get(observation, {})), parts=spec.trained)


@pytest.mark.parametrize(
    ("spec", "action"),
    [pytest.param(spec, name, id=f"{spec.key}-{name}") for spec in SPECS.values() for name in spec.actions],
)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_action_spaces(spec: Spec, action: str, n_envs: int) -> None:
    check_training(spec.make(spec.envs(n_envs, action=action)), parts=spec.trained)


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_variants(spec: Spec, options: Any) -> None:
    check_training(spec.make(spec.envs(truncate=True), **options), parts=spec.trained)


class InBounds(gym.Wrapper[Any, Any, Any, Any]):
    """Asserts that actions have the shape of the action space and are within its bounds."""

    def step(self, action: Any) -> Any:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        assert action.shape == space.shape
        assert np.all(action >= space.low)
        assert np.all(action <= space.high)
        return self.env.step(action)


@pytest.mark.parametrize("space", BOXES, ids=str)
@pytest.mark.parametrize(("spec", "options"), variants_of("free"))
def test_actions_stay_within_bounds_of_any_shape(spec: Spec, options: Any, space: spaces.Box) -> None:
    env = DummyVecEnv([lambda: Monitor(InBounds(ScriptedEnv(0, [(5, "terminated")], space)))] * 2)
    check_training(spec.make(env, **options, policy_kwargs={"log_std_init": 1.0}))
    if spec.sde:
        check_training(spec.make(env, **options, use_sde=True, policy_kwargs={"squash_output": True}))


@pytest.mark.parametrize(("spec", "options"), variants_of("sde"))
@pytest.mark.parametrize("frequency", [-1, 2])
def test_state_dependent_exploration(spec: Spec, options: Any, frequency: int) -> None:
    check_training(spec.make(spec.envs(action="box"), use_sde=True, sde_sample_freq=frequency, **options))


def test_state_dependent_exploration_is_supported_or_rejected(spec: Spec) -> None:
    if spec.sde:
        assert spec.make(spec.envs(action="box"), use_sde=True).policy.use_sde
    else:
        with pytest.raises((ValueError, TypeError), match="use_sde"):
            spec.make(use_sde=True)


@pytest.mark.parametrize(("spec", "options"), variants_of("normalizable"))
def test_normalised_environments(spec: Spec, options: Any) -> None:
    env = VecNormalize(spec.envs(truncate=True))
    model = spec.make(env, **options)
    check_training(model)
    assert vars(env.obs_rms)["count"] > 40
    assert model.get_vec_normalize_env() is env


@pytest.mark.parametrize(("spec", "options"), variants_of("stackable"))
def test_stacked_frames(spec: Spec, options: Any) -> None:
    """The final observation of a truncated episode is stacked like the others; images are transposed afterwards."""
    for observation, shape in {"box": (6,), **({} if options else {"image": (2, 36, 36)})}.items():
        env = VecFrameStack(spec.envs(2, observation=observation, truncate=True), n_stack=2)
        model = spec.make(env, **options)
        check_training(model)
        assert model.observation_space.shape == shape


@pytest.mark.slow
def test_subprocesses_do_not_change_the_result(spec: Spec) -> None:
    results = []
    for vec_env in (DummyVecEnv, SubprocVecEnv):
        arguments = (spec.observation, spec.actions[0], True)
        env = vec_env([lambda arguments=arguments: Monitor(build_env(*arguments))] * 2)  # type: ignore[misc]  # default argument
        try:
            results.append(spec.make(env).learn(60).policy.state_dict())
        finally:
            env.close()
    assert all(np.array_equal(value, results[1][name]) for name, value in results[0].items())


def test_environments_by_id_single_or_wrapped(spec: Spec) -> None:
    for env in (spec.small["env"], build_env(spec.observation, spec.actions[0])):
        check_training(spec.algorithm(**{"seed": 0, "device": "cpu", **spec.small, "env": env}), 100)
    wrapped = make_vec_env(lambda: gym.wrappers.RecordEpisodeStatistics(build_env(spec.observation, spec.actions[0])), 2)
    check_training(spec.make(wrapped))


def test_a_model_can_be_evaluated(spec: Spec) -> None:
    returns, lengths = evaluate_policy(spec.make(), spec.envs(1), n_eval_episodes=3, return_episode_rewards=True)
    assert isinstance(lengths, list)
    assert isinstance(returns, list)
    assert len(lengths) == 3
    assert all(length in (4, 8) for length in lengths)
    assert np.isfinite(returns).all()
