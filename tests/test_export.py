"""The code of ``docs/export.md``: exported policies must return the actions of ``predict``."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_pg.registry import ALGOS

_PAGE = Path(__file__).parents[1] / "docs" / "export.md"
_WRAPPERS = {"vpg": "ActorCriticExport", "nstep_a2c": "ActorCriticExport", "svg0": "SVG0Export", "her_ddpg": "HERDDPGExport"}


class RandomEnv(gym.Env[Any, Any]):
    """
    Random observations and no reward.

    :param action_space: action space
    """

    observation_space = spaces.Box(-1, 1, (3,))

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        del action
        return self.observation_space.sample(), 0.0, False, False, {}


ACTION_SPACES = [
    spaces.Box(np.array([[-2.0], [0.1]], np.float32), np.array([[-1.0], [3.0]], np.float32)),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
]
# Algorithm, action space (None: the environment of other tests of the algorithm), further arguments.
CASES: list[Any] = [(key, None, {}) for key in ALGOS]
CASES += [("vpg", space, {}) for space in ACTION_SPACES]
CASES += [("vpg", ACTION_SPACES[0], {"use_sde": True, "policy_kwargs": {"squash_output": True}})]
CASES += [("svg0", ACTION_SPACES[0], {"covariance": "full"}), ("svg0", ACTION_SPACES[0], {"squash_output": False})]


@pytest.fixture
def page() -> Iterator[dict[str, Any]]:
    """
    :return: names defined on the page; warnings of torch's exporters are ignored during the test
    """
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec("\n".join(block for block in blocks if "sb3_pg" not in block), names)
    with warnings.catch_warnings():
        # TorchScript is deprecated, traced shapes become constants, and torch's exporter calls deprecated functions.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*might cause the trace to be incorrect")
        yield names


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], type(case[1]).__name__, *case[2]]).replace("-NoneType", ""))
def model(request: pytest.FixtureRequest, algorithms: dict[str, dict[str, Any]]) -> Any:
    """
    :return: a model with random parameters, and with data in its normaliser, if any
    """
    key, space, options = request.param
    arguments = {**algorithms[key], "seed": 1, "device": "cpu", **options}
    if space is not None:
        arguments["env"] = RandomEnv(space)
    model: Any = ALGOS[key].load_class()(**arguments)
    for parameter in model.policy.parameters():
        th.nn.init.normal_(parameter, std=0.5)  # so that actions differ between observations, and reach their bounds
    if key == "her_ddpg":
        model.learn(20)
        assert model.policy.normalizer.goal.count > 0
    model.wrapper = _WRAPPERS[key]
    return model


def _batch(space: spaces.Space[Any], size: int) -> Any:
    samples = [space.sample() for _ in range(size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]).astype(np.float32) for key in samples[0]}
    return np.stack(samples).astype(np.float32)


def test_torchscript_returns_the_actions_of_predict(page: dict[str, Any], model: Any, tmp_path: Path) -> None:
    module = page[model.wrapper](model)
    page["export_torchscript"](module, page["example_of"](model), str(tmp_path / "policy.pt"))

    loaded = th.jit.load(tmp_path / "policy.pt")  # type: ignore[no-untyped-call]
    obs = _batch(model.observation_space, 7)
    tensors = {key: th.as_tensor(value) for key, value in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
    with th.no_grad():
        actions = loaded(tensors).numpy()

    np.testing.assert_allclose(actions, model.predict(obs, deterministic=True)[0], rtol=1e-5, atol=1e-5)


def test_onnx_returns_the_actions_of_predict(page: dict[str, Any], model: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = page[model.wrapper](model)
    page["export_onnx"](module, page["example_of"](model), str(tmp_path / "policy.onnx"))

    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    for size in (1, 7):
        obs = _batch(model.observation_space, size)
        inputs = obs if isinstance(obs, dict) else {"observation": obs}
        feed = {key.name: inputs[key.name] for key in session.get_inputs()}
        (actions,) = session.run(["action"], feed)
        np.testing.assert_allclose(actions, model.predict(obs, deterministic=True)[0], rtol=1e-5, atol=1e-5)


def test_examples_on_the_page_run(page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    examples = [block.replace("1_000", "100") for block in blocks if "sb3_pg" in block]
    assert len(examples) == 2
    for example in examples:
        exec(example, page)
        assert page["actions"].shape[0] == 2
