"""Steps of Adam without bookkeeping against those of torch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_pg.fast import adam as fast_adam
from sb3_pg.fast import torch_private
from sb3_pg.fast.adam import take_step

Make = Callable[[list[Any]], th.optim.Optimizer]


def network(seed: int = 0) -> nn.Sequential:
    th.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def differentiate(module: nn.Module, seed: int) -> None:
    module.zero_grad()
    module(th.randn(7, 3, generator=th.Generator().manual_seed(seed))).square().sum().backward()


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Up to rounding, which differs between the fused kernel and torch's loop."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all((p - q).norm() <= 1e-5 * q.norm() for p, q in pairs)


def adam(**kwargs: Any) -> Make:
    return lambda parameters: th.optim.Adam(parameters, **{"lr": 0.01, "fused": True, **kwargs})


MAKES: dict[str, Make] = {
    "adam": adam(),
    "options": adam(betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1),
    "amsgrad": adam(amsgrad=True),
    "maximize": adam(maximize=True),
    "default": adam(fused=None),
    "not_fused": adam(fused=False),
    "foreach": adam(fused=None, foreach=True),
    "loop": adam(fused=None, foreach=False),
    "integer": adam(lr=1),
    "tensors": adam(fused=None, lr=th.tensor(0.01)),
    "adamw": lambda parameters: th.optim.AdamW(parameters, lr=0.01, fused=True),
    "sgd": lambda parameters: th.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "groups": lambda parameters: th.optim.Adam(
        [dict.fromkeys(["params"], part) for part in (parameters[:1], parameters[1:])], fused=True
    ),
}
FAST = {"adam", "options", "default"}


def twins(make: Make) -> list[tuple[nn.Sequential, th.optim.Optimizer, Callable[[], object]]]:
    """The same network and optimizer twice: stepped by ``take_step``, and by torch."""
    ours, theirs = network(), network()
    first, second = make(list(ours.parameters())), make(list(theirs.parameters()))
    return [(ours, first, lambda: take_step(first)), (theirs, second, second.step)]


def run(pair: Any, seeds: range) -> None:
    for module, _, step in pair:
        for seed in seeds:
            differentiate(module, seed)
            step()


@pytest.mark.parametrize("name", MAKES)
def test_steps_equal_those_of_torch(name: str) -> None:
    pair = twins(MAKES[name])
    run(pair, range(6))
    assert equal(pair[0][0], pair[1][0])
    assert pair[0][1].state_dict().keys() == pair[1][1].state_dict().keys()


@pytest.mark.parametrize("name", MAKES)
def test_the_kernel_is_called_only_for_a_plain_adam(name: str) -> None:
    ((ours, optimizer, step), _) = twins(MAKES[name])
    for seed in range(3):
        differentiate(ours, seed)
        plan = fast_adam._plan_of(optimizer)
        # torch takes the first step, which creates the averages.
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
    """Replace the first parameter by another one of the same shape."""
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
def test_changes_to_the_optimizer_take_effect(name: str) -> None:
    pair = twins(adam())
    run(pair, range(3))
    for module, optimizer, _ in pair:
        CHANGES[name](module, optimizer)
    run(pair, range(3, 6))
    assert equal(pair[0][0], pair[1][0])
    ours, theirs = ([state["step"].item() for state in optimizer.state.values()] for _, optimizer, _ in pair)
    assert ours == theirs


def test_an_empty_state_is_initialised() -> None:
    pair = twins(adam())
    for module, optimizer, _ in pair:
        assert all(optimizer.state[parameter] == {} for parameter in module.parameters())
    run(pair, range(3))
    assert equal(pair[0][0], pair[1][0])


def test_parameters_without_gradient_are_not_updated() -> None:
    pair = twins(adam())
    run(pair, range(2))
    for module, _, step in pair:
        differentiate(module, 5)
        module[0].weight.grad = None
        step()
    assert equal(pair[0][0], pair[1][0])


def test_hooks_and_schedulers_run() -> None:
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
        scheduler.step()  # warns, which is an error here, if the optimizer has not taken a step
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_hooks_of_all_optimizers_run() -> None:
    ((ours, _, step), _) = twins(adam(fused=None))
    seen: list[str] = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("hook"))
    try:
        for seed in range(3):
            differentiate(ours, seed)
            step()
    finally:
        handle.remove()
    assert seen == ["hook"] * 3


def test_a_patched_step_of_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    ((ours, _, step), _) = twins(adam(fused=None))
    differentiate(ours, 0)
    step()
    calls: list[th.optim.Adam] = []

    def patched(self: th.optim.Adam) -> None:
        calls.append(self)

    monkeypatch.setattr(th.optim.Adam, "step", patched)
    step()
    assert len(calls) == 1


def zeros(*args: Any, **_: Any) -> None:
    args[0][0].zero_()


def no_such_argument(*_: Any, **__: Any) -> None:
    raise TypeError("unexpected keyword argument")


@pytest.mark.parametrize("kernel", [None, zeros, no_such_argument], ids=["missing", "wrong", "changed"])
def test_without_the_kernel_torch_takes_the_step(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Created before the kernel is replaced, which torch's own fused optimizer would call.
    pair = twins(adam(fused=None))
    if kernel is None:
        monkeypatch.delattr(th, "_fused_adam_")
    else:
        monkeypatch.setattr(th, "_fused_adam_", kernel)
    torch_private.fused_adam.cache_clear()
    try:
        assert torch_private.fused_adam() is None
        run(pair, range(4))
        assert all(th.equal(p, q) for p, q in zip(pair[0][0].parameters(), pair[1][0].parameters(), strict=True))
    finally:
        torch_private.fused_adam.cache_clear()
