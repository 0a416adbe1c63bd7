"""The training loop of the off-policy algorithms."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch as th
from goal_envs import point_envs
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_pg import HERDDPG, SVG0
from sb3_pg.common.off_policy import OffPolicyBase
from sb3_pg.fast import disabled

LARGE = {"net_arch": [64, 64]}
Make = Callable[..., OffPolicyBase]


def svg0(**kwargs: Any) -> SVG0:
    options: dict[str, Any] = {"learning_starts": 10, "td_lambda": 0.0, "policy_kwargs": dict(LARGE), **kwargs}
    return SVG0("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **options)


def her_ddpg(**kwargs: Any) -> HERDDPG:
    options: dict[str, Any] = {"policy_kwargs": dict(LARGE), "gradient_steps": 2, "batch_size": 32, **kwargs}
    return HERDDPG("MultiInputPolicy", point_envs(2), seed=0, device="cpu", **options)


@pytest.fixture(params=[svg0, her_ddpg], ids=["svg0", "her_ddpg"])
def make(request: pytest.FixtureRequest) -> Make:
    function: Make = request.param
    return function


@pytest.fixture(params=["fast", "reference"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with the fast path, and with the reference."""
    with nullcontext() if request.param == "fast" else disabled():
        yield request.param


def flat(module: nn.Module) -> th.Tensor:
    return th.cat([p.detach().ravel() for p in module.parameters()])


def state_of(module: nn.Module) -> dict[str, th.Tensor]:
    return copy.deepcopy(module.state_dict())


def changed(module: nn.Module, before: dict[str, th.Tensor]) -> list[str]:
    return [name for name, value in module.state_dict().items() if not th.equal(value, before[name])]


# ---- the loop --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
def test_no_update_without_gradient_steps(make: Make) -> None:
    model = make().learn(60)
    before, n_updates = state_of(model.policy), model._n_updates
    for steps in (0, -1):
        model.train(steps, 16)
    assert changed(model.policy, before) == []
    assert model._n_updates == n_updates


@pytest.mark.usefixtures("path")
def test_no_update_without_experience(make: Make) -> None:
    model = make()
    before = state_of(model.policy)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.train(3, 16)
    assert changed(model.policy, before) == []


@pytest.mark.usefixtures("path")
def test_non_finite_losses_leave_the_parameters_unchanged(make: Make) -> None:
    model = make().learn(60)
    with th.no_grad():
        # The square of a value overflows.
        list(model.critic.parameters())[-1].fill_(1e30)
    before = state_of(model.policy)
    with pytest.raises(ValueError, match="loss is not finite"):
        model.train(3, 16)
    assert changed(model.policy, before) == []
    assert all(p.isfinite().all() for p in model.actor.parameters())


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_non_finite_gradients_leave_the_parameters_unchanged(make: Make, part: str) -> None:
    model = make().learn(60)
    network = getattr(model, part)
    next(network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = state_of(network)
    with pytest.raises(ValueError, match=f"gradient of the {part}.loss is not finite"):
        model.train(1, 16)
    assert changed(network, before) == []


@pytest.mark.usefixtures("path")
def test_the_actor_step_leaves_the_critic_unchanged(make: Make) -> None:
    model = make().learn(60)
    model.critic.optimizer = th.optim.SGD(model.critic.parameters(), lr=0.0)
    model.lr_schedule = lambda _: 1e-3
    gradients: list[list[Any]] = []
    step = model.critic.optimizer.step

    def recorded(*args: Any) -> Any:
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.critic.parameters()])
        return step(*args)

    model.critic.optimizer.step = recorded
    model.train(1, 16)
    # The gradients of the critic's own loss remain.
    assert all(th.equal(p.grad, g) for p, g in zip(model.critic.parameters(), gradients[0], strict=True))


def test_parameter_hooks_are_called(make: Make) -> None:
    model = make().learn(60)
    weight, bias = model.actor.mu.parameters() if isinstance(model, SVG0) else list(model.actor.mu.parameters())[-2:]
    seen: list[int] = []
    weight.register_hook(lambda gradient: gradient * 0)
    bias.register_post_accumulate_grad_hook(lambda _: seen.append(1))
    model.actor.optimizer.state.clear()
    before = weight.detach().clone()
    model.train(3, 16)
    assert th.equal(weight, before)
    assert len(seen) == 3


def test_a_frozen_actor_is_supported(make: Make) -> None:
    model = make().learn(60)
    model.actor.requires_grad_(False)
    before, critic = state_of(model.actor), state_of(model.critic)
    model.train(2, 16)
    assert changed(model.actor, before) == []
    assert changed(model.critic, critic)


@pytest.mark.usefixtures("path")
def test_a_replaced_layer_is_trained(make: Make) -> None:
    model = make().learn(60)
    if isinstance(model, SVG0):
        model.actor.mu = layer = nn.Linear(64, 1)
    else:
        model.actor.mu[-2] = layer = nn.Linear(64, model.action_space.shape[0])  # type: ignore[index]  # a box
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-3)
    before = state_of(layer)
    model.train(2, 16)
    assert changed(layer, before) == ["weight", "bias"]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("assign", [False, True])
def test_targets_average_a_replaced_head(make: Make, assign: bool) -> None:
    model: Any = make(tau=0.5).learn(60)
    if assign:
        model.critic.load_state_dict({name: value + 1 for name, value in model.critic.state_dict().items()}, assign=True)
        model.critic.requires_grad_(True)
    else:
        model.critic.q_networks[0][-1] = nn.Linear(64, 1)
    model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=1e-3)
    before = flat(model.critic_target)
    model.train(1, 16)
    assert th.allclose(flat(model.critic_target), 0.5 * (before + flat(model.critic)), atol=1e-6)


def test_the_default_device_has_no_effect(make: Make) -> None:
    twin = make().learn(60)
    model = make()
    th.set_default_device("meta")
    try:
        model.learn(60)
    finally:
        th.set_default_device(None)
    assert th.allclose(flat(model.policy), flat(twin.policy), atol=1e-5)


# ---- learning rates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(None, 1e-4), (3e-3, 3e-3), ("lin_4e-3", 1e-3), ("0.002", 2e-3), (LinearSchedule(8e-3, 0.0, 1.0), 2e-3)],
    ids=str,
)
def test_the_critic_may_have_its_own_learning_rate(make: Make, rate: Any, expected: float, tmp_path: Any) -> None:
    model = make(learning_rate=1e-4, qf_learning_rate=rate).learn(60)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.get_env())
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        each._current_progress_remaining = 0.25
        each.train(1, 16)
        rates = [part.optimizer.param_groups[0]["lr"] for part in (each.actor, each.critic)]
        assert rates == pytest.approx([1e-4, expected])
        assert each.logger.name_to_value["train/learning_rate"] == pytest.approx(1e-4)
        assert each.logger.name_to_value.get("train/qf_learning_rate") == (None if rate is None else pytest.approx(expected))


@pytest.mark.parametrize("rate", [0, -1e-3, "fast", "lin_", True, float("nan")])
def test_invalid_learning_rates_are_rejected(make: Make, rate: Any) -> None:
    with pytest.raises(ValueError, match="qf_learning_rate"):
        make(qf_learning_rate=rate)


# ---- reduced precision -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:bf16=True")
def test_bf16_updates_approximate_those_in_float32(make: Make, path: str) -> None:
    results = []
    for bf16 in (False, True):
        # Collected and trained in float32 first, so that both use the same minibatches.
        model = make().learn(60)
        before = flat(model.policy)
        model.bf16 = bf16
        th.manual_seed(0)
        model.set_random_seed(0)
        model.train(5, 64)
        assert (model._fast_path() is None) == (path == "reference")
        results.append(flat(model.policy) - before)
    exact, reduced = results
    assert 0 < (reduced - exact).norm() < 0.3 * exact.norm()


@pytest.mark.usefixtures("path")
@pytest.mark.filterwarnings("ignore:bf16=True")
def test_parameters_stay_float32_under_bf16(make: Make) -> None:
    model = make(bf16=True).learn(60)
    assert all(p.dtype == th.float32 for p in model.policy.parameters())
    assert all(value.dtype == th.float32 for state in model.actor.optimizer.state.values() for value in state.values())


def test_bf16_warns_where_it_is_slower(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.warns(UserWarning, match="bf16=True: this processor"):
        make(bf16=True)


# ---- subclasses ------------------------------------------------------------------------------------------------------------


class OtherSVG0(SVG0):
    """A user's subclass."""

    calls = 0

    def _actor_loss(self, *args: Any) -> th.Tensor:
        self.calls += 1
        return super()._actor_loss(*args)


class OtherHERDDPG(HERDDPG):
    """A user's subclass."""

    calls = 0

    def _actor_loss(self, *args: Any) -> th.Tensor:
        self.calls += 1
        return super()._actor_loss(*args)


@pytest.mark.parametrize("kind", ["class", "instance"])
def test_an_overridden_step_is_called(make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make().learn(60)
    other = OtherSVG0 if isinstance(model, SVG0) else OtherHERDDPG
    if kind == "class":
        model.__class__ = other
    else:
        model.calls = 0
        loss = model._actor_loss

        def counted(*args: Any) -> th.Tensor:
            model.calls += 1
            result: th.Tensor = loss(*args)
            return result

        monkeypatch.setattr(model, "_actor_loss", counted)
    model.train(4, 16)
    assert model.calls == 4
