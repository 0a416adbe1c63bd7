"""Steps without bookkeeping against those of torch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_pg.fast import optimizers
from sb3_pg.fast.optimizers import descend, take_step, with_fused_adam

Make = Callable[[list[Any]], th.optim.Optimizer]


def network(seed: int = 0) -> nn.Sequential:
    th.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def differentiate(module: nn.Module, seed: int) -> None:
    module.zero_grad()
    module(th.randn(7, 3, generator=th.Generator().manual_seed(seed))).square().sum().backward()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(th.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def adam(**kwargs: Any) -> Make:
    return lambda parameters: th.optim.Adam(parameters, **{"lr": 0.01, "fused": True, **kwargs})


MAKES: dict[str, Make] = {
    "adam": adam(),
    "options": adam(betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    "amsgrad": adam(amsgrad=True),
    "maximize": adam(maximize=True),
    "not_fused": adam(fused=None),
    "integer": adam(lr=1),
    "adamw": lambda parameters: th.optim.AdamW(parameters, lr=0.01, fused=True),
    "sgd": lambda parameters: th.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "groups": lambda parameters: th.optim.Adam(
        [dict.fromkeys(["params"], part) for part in (parameters[:1], parameters[1:])], fused=True
    ),
}
FAST = {"adam", "options"}


def twins(make: Make) -> list[tuple[nn.Sequential, th.optim.Optimizer, Callable[[], object]]]:
    """The same network and optimizer twice: stepped by us, and by torch."""
    ours, theirs = network(), network()
    first, second = make(list(ours.parameters())), make(list(theirs.parameters()))
    return [(ours, first, lambda: take_step(first)), (theirs, second, second.step)]


def run(pair: Any, seeds: range) -> None:
    for module, _, step in pair:
        for seed in seeds:
            differentiate(module, seed)
            step()


@pytest.mark.parametrize("name", MAKES)
def test_steps_are_those_of_torch(name: str) -> None:
    pair = twins(MAKES[name])
    run(pair, range(6))
    assert equal(pair[0][0], pair[1][0])
    assert pair[0][1].state_dict().keys() == pair[1][1].state_dict().keys()


@pytest.mark.parametrize("name", MAKES)
def test_the_short_way_is_taken_where_it_is_right(name: str) -> None:
    ((ours, optimizer, step), _) = twins(MAKES[name])
    for seed in range(3):
        differentiate(ours, seed)
        plan = optimizers._plan_of(optimizer)
        # Torch takes the first step, which makes the averages.
        assert (plan is not None) == (name in FAST and seed > 0)
        step()


def test_saved_state_is_complete_and_loaded_state_is_used() -> None:
    pair = twins(adam())
    run(pair, range(4))
    for module, optimizer, _ in pair:
        saved = copy.deepcopy(optimizer.state_dict())
        parameters = copy.deepcopy(module.state_dict())
        differentiate(module, 9)
        optimizer.step()
        optimizer.load_state_dict(saved)
        module.load_state_dict(parameters)
    run(pair, range(4, 8))
    assert equal(pair[0][0], pair[1][0])
    steps = [float(state["step"]) for state in pair[0][1].state_dict()["state"].values()]
    assert steps == [8] * 4


def replace_state(module: nn.Sequential, optimizer: th.optim.Optimizer) -> None:
    third = list(module.parameters())[2]
    optimizer.state[third] = {name: th.zeros_like(value) for name, value in optimizer.state[third].items()}


def replace_average(module: nn.Sequential, optimizer: th.optim.Optimizer) -> None:
    state = optimizer.state[list(module.parameters())[1]]
    state["exp_avg"] = th.ones_like(state["exp_avg"])


def replace_step(module: nn.Sequential, optimizer: th.optim.Optimizer) -> None:
    optimizer.state[list(module.parameters())[1]]["step"] = th.tensor(50.0)


def replace_parameter(module: nn.Sequential, optimizer: th.optim.Optimizer) -> None:
    """Another one of the same shape takes the place of the first."""
    first, second = next(module.parameters()), nn.Parameter(th.ones(5, 3))
    module[0].weight = optimizer.param_groups[0]["params"][0] = second
    optimizer.state[second] = optimizer.state.pop(first)


def reverse_states(_: nn.Sequential, optimizer: th.optim.Optimizer) -> None:
    items = list(optimizer.state.items())
    optimizer.state.clear()
    optimizer.state.update(reversed(items))


CHANGES: dict[str, Callable[[nn.Sequential, th.optim.Optimizer], object]] = {
    "cleared": lambda _, optimizer: optimizer.state.clear(),
    "state": replace_state,
    "average": replace_average,
    "step": replace_step,
    "parameter": replace_parameter,
    "order": reverse_states,
    "learning_rate": lambda _, optimizer: optimizer.param_groups[0].update(lr=0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_from_outside_count(name: str) -> None:
    pair = twins(adam())
    run(pair, range(3))
    for module, optimizer, _ in pair:
        CHANGES[name](module, optimizer)
    run(pair, range(3, 6))
    assert equal(pair[0][0], pair[1][0])
    ours, theirs = ([state["step"].item() for state in optimizer.state.values()] for _, optimizer, _ in pair)
    assert ours == theirs


def test_an_empty_state_is_filled() -> None:
    pair = twins(adam())
    for module, optimizer, _ in pair:
        assert all(optimizer.state[parameter] == {} for parameter in module.parameters())
    run(pair, range(3))
    assert equal(pair[0][0], pair[1][0])


def test_parameters_without_gradient_stay() -> None:
    pair = twins(adam())
    run(pair, range(2))
    for module, _, step in pair:
        differentiate(module, 5)
        module[0].weight.grad = None
        step()
    assert equal(pair[0][0], pair[1][0])


def test_hooks_and_schedulers_are_served() -> None:
    ((ours, optimizer, step), _) = twins(adam())
    seen: list[str] = []
    optimizer.register_step_post_hook(lambda *_: seen.append("hook"))
    for seed in range(3):
        differentiate(ours, seed)
        step()
    assert seen == ["hook"] * 3
    ((ours, optimizer, step), _) = twins(adam())
    scheduler = th.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    for seed in range(3):
        differentiate(ours, seed)
        take_step(optimizer)
        scheduler.step()  # warns, which is an error here, if it saw no step
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_adam_is_fused_unless_the_user_chose() -> None:
    assert with_fused_adam(th.optim.Adam, None) == {"fused": True}
    assert with_fused_adam(th.optim.Adam, {"eps": 1e-5}) == {"eps": 1e-5, "fused": True}
    assert with_fused_adam(th.optim.Adam, {"foreach": True}) == {"foreach": True}
    assert with_fused_adam(th.optim.SGD, None) == {}


@pytest.mark.parametrize("fused", [True, False])
def test_descend_does_what_backward_and_step_do(fused: bool) -> None:
    """Gradients may come in another layout, which a fused Adam would take for others."""

    def loss_of(module: nn.Sequential, seed: int) -> th.Tensor:
        x = th.randn(16, 3, generator=th.Generator().manual_seed(seed))
        # The transpose of a product has the gradient of a transpose.
        weight = next(module.parameters())
        loss: th.Tensor = (weight.t() @ x[:5]).square().sum() + module(x).square().sum()
        return loss

    ours, theirs = network(), network()
    first, second = (th.optim.Adam(n.parameters(), lr=0.01, fused=fused) for n in (ours, theirs))
    for seed in range(5):
        descend(first, loss_of(ours, seed), list(ours.parameters()))
        second.zero_grad()
        loss_of(theirs, seed).backward()  # type: ignore[no-untyped-call]  # torch
        second.step()
    assert all(th.allclose(p, q, atol=1e-5) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_descend_leaves_frozen_and_unused_parameters() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    unused = nn.Parameter(th.ones(2))
    parameters = [*module.parameters(), unused]
    before = [p.detach().clone() for p in parameters]
    optimizer = th.optim.Adam(parameters, lr=0.1, fused=True)
    for _ in range(2):
        descend(optimizer, module(th.randn(5, 3)).sum(), parameters)
    moved = [not th.equal(p, old) for p, old in zip(parameters, before, strict=True)]
    assert moved == [False, True, True, True, False]
