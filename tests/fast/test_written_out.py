"""Gradients that are written out against autograd's, and noticing when a network has changed."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_pg.common import losses
from sb3_pg.fast.fused_mlp import FusedLinear, FusedMLP, Layers
from sb3_pg.fast.written_out import Remembered, Snapshot, fit_critics, layers_of, lowest_value_gradient, lowest_values

Change = Callable[[Any], object]


def critics(
    n_critics: int, n_inputs: int, seed: int, activation: type[nn.Module] = nn.ReLU, last: list[nn.Module] | None = None
) -> nn.ModuleList:
    th.manual_seed(seed)
    return nn.ModuleList(
        FusedMLP(nn.Linear(n_inputs, 9), activation(), nn.Linear(9, 5), activation(), nn.Linear(5, 1), *(last or []))
        for _ in range(n_critics)
    )


def layers(networks: nn.ModuleList) -> list[Layers]:
    found = layers_of(networks)
    assert found is not None
    return found


def values_of(networks: nn.ModuleList, inputs: th.Tensor) -> th.Tensor:
    return th.cat([nn.Sequential(*network)(inputs) for network in networks], dim=1)  # type: ignore[misc]  # of modules


@settings(max_examples=40, deadline=None)
@given(
    n_critics=st.integers(1, 3),
    n_rows=st.integers(1, 20),
    activation=st.sampled_from([nn.ReLU, nn.Tanh]),
    bounded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_critics_gradients_are_those_of_the_loss(
    n_critics: int, n_rows: int, activation: type[nn.Module], bounded: bool, seed: int
) -> None:
    networks = critics(n_critics, 6, seed, activation, [nn.Tanh()] if bounded else None)
    inputs, targets, weights = th.randn(n_rows, 6), th.randn(n_rows), th.rand(n_rows)
    expected_values = values_of(networks, inputs)
    loss = losses.critic_loss(expected_values.t(), targets, weights)
    expected = th.autograd.grad(loss, list(networks.parameters()))
    with th.no_grad():
        found, values = fit_critics(layers(networks), inputs, targets[:, None], weights[:, None])
    assert th.allclose(found, loss, rtol=1e-4, atol=1e-6)
    assert th.allclose(values, expected_values[:, :1], atol=1e-5)
    for parameter, gradient in zip(networks.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert th.allclose(parameter.grad, gradient, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(n_critics=st.integers(1, 3), n_actions=st.integers(1, 4), n_rows=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_the_gradient_of_the_lowest_value_is_autograds(n_critics: int, n_actions: int, n_rows: int, seed: int) -> None:
    networks = critics(n_critics, 3 + n_actions, seed)
    inputs, weights = th.randn(n_rows, 3 + n_actions), th.randn(n_rows, 1)
    leaf = inputs.clone().requires_grad_()
    lowest = values_of(networks, leaf).amin(dim=1, keepdim=True)
    (expected,) = th.autograd.grad((lowest * weights).sum(), [leaf])
    with th.no_grad():
        total, gradient = lowest_value_gradient(layers(networks), inputs, weights, n_actions)
        assert th.allclose(lowest_values(layers(networks), inputs), lowest, atol=1e-5)
    assert th.allclose(total, (lowest * weights).sum(), rtol=1e-4, atol=1e-5)
    assert gradient.shape == (n_rows, n_actions)
    assert th.allclose(gradient, expected[:, 3:], atol=1e-5)
    assert all(parameter.grad is None for parameter in networks.parameters())


def test_equal_critics_share_the_gradient() -> None:
    networks = critics(1, 5, 0)
    networks.append(copy.deepcopy(networks[0]))
    with th.no_grad():
        inputs, weights = th.randn(7, 5), th.ones(7, 1)
        _, together = lowest_value_gradient(layers(networks), inputs, weights, 2)
        _, alone = lowest_value_gradient(layers(networks)[:1], inputs, weights, 2)
    assert th.allclose(together, alone, atol=1e-6)


class OtherMLP(FusedMLP):
    """Of a user."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        lambda: FusedMLP(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 1)),
        FusedMLP,
        lambda: FusedMLP(nn.Linear(3, 4)).double(),
        lambda: FusedMLP(nn.Linear(3, 4)).requires_grad_(False),
        lambda: FusedLinear(3, 4).double(),
        lambda: OtherMLP(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
    ],
    ids=["sequential", "elu", "empty", "double", "frozen", "double_layer", "subclass"],
)
def test_other_networks_have_no_layers(make: Any) -> None:
    assert layers_of([FusedLinear(2, 2), make()]) is None


def test_single_layers_are_never_reduced() -> None:
    found = layers_of([FusedMLP(nn.Linear(99, 99)), FusedLinear(99, 99)], reduced=True)
    assert found is not None
    assert [each.reduced for each in found] == [True, False]


def test_targets_may_be_frozen() -> None:
    assert layers_of([FusedMLP(nn.Linear(3, 4)).requires_grad_(False)], trained=False) is not None


# ---- changes ---------------------------------------------------------------------------------------------------------------


def freeze(network: Any) -> None:
    network[0].bias.requires_grad_(False)


def replace_layer(network: Any) -> None:
    network[2] = nn.Linear(4, 2)


def replace_parameter(network: Any) -> None:
    network[0].weight = nn.Parameter(th.zeros(4, 3))


def replace_method(network: Any) -> None:
    network[0].forward = lambda x: x


class OtherLinear(nn.Linear):
    """Of a user."""


def replace_class(network: Any) -> None:
    network[0].__class__ = OtherLinear


CHANGES: dict[str, Change] = {
    "forward_hook": lambda network: network[1].register_forward_hook(lambda *_: None),
    "forward_pre_hook": lambda network: network.register_forward_pre_hook(lambda *_: None),
    "backward_hook": lambda network: network[0].register_full_backward_hook(lambda *_: None),
    "hook_of_a_parameter": lambda network: network[0].weight.register_hook(lambda gradient: gradient),
    "hook_after_accumulation": lambda network: network[0].weight.register_post_accumulate_grad_hook(lambda _: None),
    "frozen": freeze,
    "layer": replace_layer,
    "parameter": replace_parameter,
    "method": replace_method,
    "class": replace_class,
    "precision": lambda network: network.double(),
    "more": lambda network: network.append(nn.Tanh()),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changes_are_noticed(name: str) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    outer = nn.ModuleDict({"inner": network})
    snapshot = Snapshot(outer)
    with th.no_grad():
        next(network.parameters()).add_(1)
    outer.train(False)
    assert snapshot.holds()
    CHANGES[name](network)
    assert not snapshot.holds()
    assert Snapshot(outer).watched == ("hook" in name or name == "method")


def test_autocast_counts_as_being_watched() -> None:
    network = nn.Linear(3, 4)
    snapshot = Snapshot(network)
    with th.autocast("cpu", dtype=th.bfloat16):
        assert not snapshot.holds()
        assert Snapshot(network).watched
    assert snapshot.holds()


def test_a_result_is_remembered_until_something_changes() -> None:
    calls: list[tuple[nn.Module, int]] = []

    def function(module: nn.Module, number: int) -> int:
        calls.append((module, number))
        return len(calls)

    remembered, network = Remembered(function), nn.Linear(3, 4)
    assert [remembered(network, 7), remembered(network, 7)] == [1, 1]
    assert [remembered(network, 8), remembered(nn.Linear(3, 4), 8), remembered(network, 8)] == [2, 3, 4]
    hook = network.register_forward_hook(lambda *_: None)
    assert remembered(network, 8) is None
    watched = remembered._snapshot
    assert watched is not None
    assert watched.watched
    assert remembered(network, 8) is None
    assert remembered._snapshot is watched
    assert len(calls) == 4
    hook.remove()
    assert remembered(network, 8) == 5


def itself(module: nn.Module) -> tuple[nn.Module, Callable[[], int]]:
    """Something that cannot be pickled beside it."""
    return module, lambda: 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copy_looks_at_its_own_module(duplicate: Callable[[Any], Any]) -> None:
    pair: dict[str, Any] = {"module": nn.Linear(3, 4), "remembered": Remembered(itself)}
    assert pair["remembered"](pair["module"])[0] is pair["module"]
    other = duplicate(pair)
    assert other["remembered"](other["module"])[0] is other["module"] is not pair["module"]


def test_global_hooks_are_hooks() -> None:
    network = nn.Linear(3, 4)
    snapshot = Snapshot(network)
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not snapshot.holds()
    hook.remove()
    assert snapshot.holds()
