"""What the off-policy algorithms share."""

from collections.abc import Callable

import pytest
import torch as th
from goal_envs import point_envs
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pg import HERDDPG, SVG0

LARGE = {"net_arch": [64, 64]}


def svg0(bf16: bool = False) -> SVG0:
    return SVG0("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", bf16=bf16, policy_kwargs=dict(LARGE), learning_starts=10)


def her_ddpg(bf16: bool = False) -> HERDDPG:
    return HERDDPG("MultiInputPolicy", point_envs(2), seed=0, device="cpu", bf16=bf16, policy_kwargs=dict(LARGE))


def flat(model: OffPolicyAlgorithm) -> th.Tensor:
    return th.cat([p.detach().ravel() for p in model.policy.parameters()])


@pytest.mark.filterwarnings("ignore:bf16=True")
@pytest.mark.parametrize("make", [svg0, her_ddpg])
def test_bf16_updates_are_nearly_those_of_float32(make: Callable[[bool], OffPolicyAlgorithm]) -> None:
    results = []
    for bf16 in (False, True):
        # Trained in float32 at first, so that both see the same minibatches.
        model = make(False).learn(60)
        before = flat(model)
        model.bf16 = bf16  # type: ignore[attr-defined]  # ours
        th.manual_seed(0)
        model.set_random_seed(0)
        model.train(5, 64)
        results.append(flat(model) - before)
    exact, reduced = results
    assert 0 < (reduced - exact).norm() < 0.3 * exact.norm()


@pytest.mark.filterwarnings("ignore:bf16=True")
@pytest.mark.parametrize("make", [svg0, her_ddpg])
def test_bf16_is_for_updates_alone(make: Callable[[bool], OffPolicyAlgorithm]) -> None:
    model = make(True).learn(60)
    assert all(p.dtype == th.float32 for p in model.policy.parameters())
    assert not any(module.reduced for module in model.policy.modules() if hasattr(module, "reduced"))


@pytest.mark.parametrize("make", [svg0, her_ddpg])
def test_bf16_warns_where_it_is_slower(make: Callable[[bool], OffPolicyAlgorithm], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.warns(UserWarning, match="bf16=True: this processor"):
        make(True)
