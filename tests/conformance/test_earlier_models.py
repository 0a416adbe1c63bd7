"""Models and replay buffers saved before modules were moved, and earlier import paths."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conformance.specs import SPECS

DATA = Path(__file__).parent / "data"
# Actions of each model when it was saved, for observations filled with 0.1, and its number of training steps.
ACTIONS: dict[str, Any] = {
    "vpg": 0,
    "nstep_a2c": 0,
    "svg0": [-0.3152327537536621],
    "her_ddpg": [0.8374319076538086, -0.2550148367881775],
}
N_STEPS = {"vpg": 64, "nstep_a2c": 60, "svg0": 60, "her_ddpg": 60}


@pytest.mark.parametrize("key", ACTIONS)
def test_models_predict_as_before_and_continue_training(key: str) -> None:
    spec = SPECS[key]
    model = spec.algorithm.load(DATA / key, device="cpu")
    assert model.num_timesteps == N_STEPS[key]
    spaces = getattr(model.observation_space, "spaces", None)
    shapes = {name: np.full(part.shape, 0.1, np.float32) for name, part in spaces.items()} if spaces else None
    obs = np.full(model.observation_space.shape, 0.1, np.float32) if shapes is None else shapes
    assert np.allclose(model.predict(obs, deterministic=True)[0], ACTIONS[key], rtol=1e-5, atol=1e-6)

    model = spec.algorithm.load(DATA / key, env=gym.make(spec.small["env"]), device="cpu")
    before, updates = {name: value.clone() for name, value in model.policy.state_dict().items()}, model._n_updates
    if (DATA / f"{key}_replay.pkl").exists():
        model.load_replay_buffer(DATA / f"{key}_replay.pkl")
        assert model.replay_buffer.size() > 0
    model.learn(64, reset_num_timesteps=False)
    assert model._n_updates > updates
    assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize(
    ("old", "new"), [("sb3_pg.common.returns", "sb3_pg.estimators.returns"), ("sb3_pg.envpool", "sb3_pg.envs.envpool")]
)
def test_old_import_paths_refer_to_the_new_modules(old: str, new: str) -> None:
    earlier, present = map(importlib.import_module, (old, new))
    own = {name: value for name, value in vars(present).items() if getattr(value, "__module__", "") == new and name[0] != "_"}
    assert len(own) > 1
    assert {name: getattr(earlier, name, None) for name in own} == own
