"""Prediction, saving, loading, copying and continued training work as in Stable-Baselines3."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conformance.specs import SPECS, Spec
from conformance.test_environments import variants_of
from gymnasium import spaces
from model_checks import differences, reloaded, state_of

EVERY_OBSERVATION = pytest.mark.parametrize(
    ("spec", "observation"),
    [pytest.param(spec, name, id=f"{spec.key}-{name}") for spec in SPECS.values() for name in spec.observations],
)


def samples_of(space: spaces.Space[Any], n: int) -> Any:
    """
    :param space: observation space
    :param n: number of observations
    :return: random observations, as the vectorised environments return them
    """
    space.seed(0)
    drawn: list[Any] = [space.sample() for _ in range(n)]
    return {key: np.stack([one[key] for one in drawn]) for key in drawn[0]} if isinstance(drawn[0], dict) else np.stack(drawn)


# ------------------------------------------------------------------------------------------------------------------ predict


def test_predict_single_batched_and_with_states(spec: Spec) -> None:
    model = spec.make()
    obs = samples_of(model.observation_space, 5)
    batch, state = model.predict(obs, deterministic=True)
    assert state is None
    assert batch.shape == (5, *model.action_space.shape)
    for i in range(5):
        single = {key: value[i] for key, value in obs.items()} if isinstance(obs, dict) else obs[i]
        action, _ = model.predict(single, deterministic=True)
        assert action.shape == model.action_space.shape
        assert np.allclose(action, batch[i], atol=1e-5)
    # Recurrent policies have states; these policies ignore states and episode starts.
    given = (np.zeros(3),)
    again, state = model.predict(obs, state=given, episode_start=np.ones(5, dtype=bool), deterministic=True)
    assert state is given
    assert np.array_equal(again, batch)
    assert np.array_equal(model.policy.predict(obs, deterministic=True)[0], batch)


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_predict_is_random_unless_deterministic(spec: Spec, options: Any) -> None:
    model = spec.make(spec.envs(action="box"), **options)
    single = samples_of(model.observation_space, 1)
    obs = {key: value.repeat(50, 0) for key, value in single.items()} if isinstance(single, dict) else single.repeat(50, 0)
    deterministic, random = (model.predict(obs, deterministic=flag)[0] for flag in (True, False))
    assert np.allclose(deterministic, deterministic[0], atol=1e-6)
    assert (len(np.unique(random, axis=0)) > 25) == spec.randomizes
    assert all(model.action_space.contains(action) for action in random)


def test_predict_rejects_observations_of_another_shape(spec: Spec) -> None:
    model = spec.make()
    shapes = {key: np.zeros((2, 7), np.float32) for key in getattr(model.observation_space, "spaces", {"": None})}
    with pytest.raises(ValueError, match="observation shape"):
        model.predict(shapes.get("", shapes))


# ------------------------------------------------------------------------------------------------------------ save and load


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_the_state_survives_saving(spec: Spec, options: Any) -> None:
    model = spec.make(learning_rate=lambda progress: 1e-3 * progress, **options).learn(60)
    with th.no_grad():  # loading must work without autograd
        loaded = reloaded(model)
    assert loaded.env is None
    state = loaded.get_parameters()
    assert differences(state_of(model), state) == []
    assert all(state[name]["state"] for name in state if "optimizer" in name)  # moments of Adam
    own = {id(p) for p in loaded.policy.parameters()} | {id(getattr(loaded, "log_ent_coef", None))}
    held = [p for name in state if "optimizer" in name for p in optimizer_of(loaded, name).param_groups[0]["params"]]
    assert {id(p) for p in held} <= own  # no copies
    assert [loaded.lr_schedule(progress) for progress in (1.0, 0.3)] == [1e-3, 3e-4]
    assert (loaded.num_timesteps, loaded._n_updates) == (model.num_timesteps, model._n_updates)


def optimizer_of(model: Any, name: str) -> th.optim.Optimizer:
    """
    :param model: model
    :param name: path of the attribute
    :return: the optimizer
    """
    for part in name.split("."):
        model = getattr(model, part)
    assert isinstance(model, th.optim.Optimizer)
    return model


@EVERY_OBSERVATION
def test_predictions_and_values_survive_saving(spec: Spec, observation: str, tmp_path: Path) -> None:
    env = spec.envs(2, observation=observation)
    model = spec.make(env, **spec.observation_options.get(observation, {})).learn(40)
    obs = samples_of(model.observation_space, 4)
    actions, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy.zip"))
    loaded = spec.algorithm.load(tmp_path / "model", device="cpu")
    policy = type(model.policy).load(str(tmp_path / "policy.zip"), device="cpu")
    assert differences(dict(model.policy.state_dict()), dict(policy.state_dict())) == []
    for one in (loaded, policy, copy.deepcopy(model.policy)):
        assert np.array_equal(one.predict(obs, deterministic=True)[0], actions)


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_training_continues_identically_after_saving(spec: Spec, options: Any, tmp_path: Path) -> None:
    model = spec.make(spec.envs(truncate=True), learning_rate=lambda progress: 1e-2 * progress, **options).learn(60)
    loaded = reloaded(model, env=spec.envs(truncate=True))
    if hasattr(model, "replay_buffer"):
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert loaded.replay_buffer.size() == model.replay_buffer.size() > 0
    model.set_env(spec.envs(truncate=True))
    for one in (model, loaded):
        one.set_random_seed(5)
        one.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps >= 120
    assert model._n_updates == loaded._n_updates > 0
    assert differences(state_of(model), state_of(loaded)) == []


@pytest.mark.parametrize("n_envs", [1, 2, 6])
def test_training_continues_with_another_number_of_environments(spec: Spec, n_envs: int) -> None:
    model = spec.make().learn(40)
    for _ in range(2):
        loaded = reloaded(model, env=spec.envs(n_envs))
        assert loaded.learn(60, reset_num_timesteps=False).num_timesteps >= model.num_timesteps + 60
        assert loaded.n_envs == n_envs
        loaded = reloaded(model)
        loaded.set_env(model.env)
        loaded.learn(40)


def test_a_replay_buffer_of_another_number_of_environments_is_rejected(spec: Spec, tmp_path: Path) -> None:
    model = spec.make().learn(40)
    if not hasattr(model, "replay_buffer"):
        pytest.skip("it has no replay buffer")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    other = spec.make(spec.envs(spec.n_envs + 1))
    before = other.replay_buffer
    with pytest.raises(ValueError, match=rf"{spec.n_envs} environments.* {spec.n_envs + 1}"):
        other.load_replay_buffer(tmp_path / "buffer.pkl")
    assert other.replay_buffer is before


def test_get_and_set_parameters(spec: Spec, tmp_path: Path) -> None:
    source, target = (spec.make(seed=seed).learn(40) for seed in (1, 2))
    assert differences(state_of(source), state_of(target))
    target.set_parameters(state_of(source))
    assert differences(state_of(source), state_of(target)) == []
    file = spec.make(seed=3)
    source.save(tmp_path / "source.zip")
    file.set_parameters(str(tmp_path / "source.zip"))
    assert differences(state_of(source)["policy"], state_of(file)["policy"]) == []
    incomplete = {name: value for name, value in state_of(source).items() if name != list(state_of(source))[-1]}
    with pytest.raises(ValueError, match=list(state_of(source))[-1]):
        target.set_parameters(incomplete)
    target.set_parameters(incomplete, exact_match=False)
    with pytest.raises(ValueError, match="unknown"):
        target.set_parameters({**state_of(source), "unknown": {}}, exact_match=False)
    target.learn(40)


def test_environments_of_other_spaces_are_rejected(spec: Spec) -> None:
    class Other(gym.Wrapper[Any, Any, Any, Any]):
        """Another action space."""

        action_space: Any = spaces.Box(-1, 1, (7,))

    model = spec.make(spec.envs(1))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(Other(spec.envs(1).envs[0]))


def test_model_setup_can_be_deferred(spec: Spec) -> None:
    try:
        model = spec.make(_init_setup_model=False)
    except TypeError:
        pytest.skip("like SB3's class, it has no such argument")
    assert not hasattr(model, "policy")
    model._setup_model()
    model.learn(40)
