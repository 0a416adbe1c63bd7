"""Hand-derived gradients of MLPs against autograd."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_pg.common.off_policy import MIN_REDUCED
from sb3_pg.fast import torch_private
from sb3_pg.fast.mlp import (
    FEW_COLUMNS,
    MLP,
    ForwardPass,
    find_mlps,
    fit_critics,
    min_q,
    min_q_gradient,
    trains,
)
from sb3_pg.svg0.svg0 import critic_loss

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def sequential(sizes: list[int], activation: type[nn.Module], last: type[nn.Module] | None = None) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        modules.append(nn.Linear(sizes[i], sizes[i + 1]))
        after = activation if i + 2 < len(sizes) else last
        if after is not None:
            modules.append(after())
    return nn.Sequential(*modules)


def mlp(network: nn.Module, reduced: bool = False) -> MLP:
    found = find_mlps([network], reduced)
    assert found is not None
    return found[0]


def gradients(network: nn.Module, x: th.Tensor, cotangent: th.Tensor) -> list[th.Tensor]:
    """Gradients with respect to the inputs and all parameters, by autograd."""
    leaf = x.clone().requires_grad_()
    return list(th.autograd.grad((network(leaf)[: len(cotangent)] * cotangent).sum(), [leaf, *network.parameters()]))


def is_close(ours: th.Tensor, theirs: th.Tensor, tolerance: float = 1e-4) -> bool:
    """Up to a tolerance relative to the largest element."""
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max() + 1e-30)


def check(network: nn.Sequential, x: th.Tensor, cotangent: th.Tensor) -> None:
    """Check that output and gradients equal those of autograd."""
    grad_x, *expected = gradients(network, x, cotangent)
    with th.no_grad():
        forward = ForwardPass(mlp(network), x)
        assert is_close(forward.output, network(x))
        assert is_close(forward.backward(cotangent, slice(None), trains=False), grad_x[: len(cotangent)])
        assert is_close(
            forward.backward(cotangent, slice(x.shape[1] // 2, None), trains=False),
            grad_x[: len(cotangent), x.shape[1] // 2 :],
        )
        assert all(parameter.grad is None for parameter in network.parameters())
        grad_inputs = forward.backward(cotangent.clone(), slice(None))
    assert grad_inputs is not None
    assert is_close(grad_inputs, grad_x[: len(cotangent)])
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert is_close(parameter.grad, gradient)
        parameter.grad = None


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 7, FEW_COLUMNS, FEW_COLUMNS + 5]), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    last=st.sampled_from(["", *sorted(ACTIVATIONS)]),
    n_rows=st.integers(1, 20),
    n_used=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_equal_those_of_autograd(
    sizes: list[int], activation: str, last: str, n_rows: int, n_used: int, seed: int
) -> None:
    th.manual_seed(seed)
    network = sequential(sizes, ACTIVATIONS[activation], ACTIVATIONS.get(last))
    check(network, th.randn(n_rows, sizes[0]), th.randn(min(n_used, n_rows), sizes[-1]))


def test_the_input_is_not_modified() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = th.randn(4, 3)
    before = x.clone()
    with th.no_grad():
        ForwardPass(mlp(network), x).backward(th.ones(4, 3))
    assert th.equal(x, before)


class OtherSequential(nn.Sequential):
    """A user's subclass."""


class OtherLinear(nn.Linear):
    """A user's subclass."""


def shared() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "make",
    [
        nn.Sequential,
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4)).double(),
        lambda: nn.Sequential(nn.Linear(3, 4)).requires_grad_(False),
        lambda: nn.Linear(3, 4).double(),
        lambda: nn.Linear(3, 4, bias=False),
        lambda: OtherSequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
        lambda: nn.Sequential(OtherLinear(3, 4)),
        shared,
    ],
    ids=[
        *("empty", "elu", "no_bias", "layer_norm", "first_relu", "two_activations", "double", "frozen", "double_layer"),
        *("layer_without_bias", "subclass", "layer_subclass", "shared"),
    ],
)
def test_unsupported_networks_are_not_found(make: Any) -> None:
    assert find_mlps([nn.Linear(2, 2), make()]) is None


def test_targets_may_be_frozen_and_single_layers_are_never_reduced() -> None:
    assert find_mlps([nn.Sequential(nn.Linear(3, 4)).requires_grad_(False)], trained=False) is not None
    found = find_mlps([nn.Sequential(nn.Linear(99, 99)), nn.Linear(99, 99)], reduced=True)
    assert found is not None
    assert [each.reduced for each in found] == [True, False]


def test_an_optimizer_trains_a_network_if_it_has_exactly_its_parameters() -> None:
    network = sequential([3, 4, 2], nn.ReLU)
    parameters = list(network.parameters())
    assert trains(th.optim.SGD(parameters), network)
    assert trains(th.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}]), network)
    assert not trains(th.optim.SGD(parameters[1:]), network)
    assert not trains(th.optim.SGD([*parameters, nn.Parameter(th.ones(1))]), network)


@pytest.fixture(autouse=True)
def clear_caches() -> Iterator[None]:
    """Look up torch's private functions again in each test, and afterwards."""
    torch_private.activation_backward.cache_clear()
    yield
    torch_private.activation_backward.cache_clear()


class Namespace:
    """Empty namespace in place of torch's operations."""


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_gradients_are_the_same_without_private_functions(
    activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.ops, "aten", Namespace())
    th.manual_seed(0)
    network = sequential([3, 8, 8, 2], activation, activation)
    check(network, th.randn(20, 3), th.randn(20, 2))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_propagate(reduced: bool, bad: float) -> None:
    network = sequential([4, 64, 64, 1], nn.ReLU)
    x = th.randn(10, 4)
    x[3, 2] = bad
    with th.no_grad():
        assert not ForwardPass(mlp(network, reduced), x).output[3].isfinite()
        next(network[2].parameters())[5, 7] = float("nan")
        assert not ForwardPass(mlp(network, reduced), th.randn(10, 4)).output.isfinite().any()


# ---- reduced precision -----------------------------------------------------------------------------------------------------


def rounded(x: th.Tensor) -> th.Tensor:
    return x.bfloat16().float()


def test_reduced_precision_rounds_only_large_products() -> None:
    """The first layer has few inputs and the last one few outputs: both stay in float32."""
    th.manual_seed(0)
    network = sequential([MIN_REDUCED - 1, MIN_REDUCED, MIN_REDUCED, MIN_REDUCED - 1], nn.ReLU)
    x = th.randn(32, MIN_REDUCED - 1)
    first, second, third = (m for m in network if isinstance(m, nn.Linear))
    with th.no_grad():
        hidden = th.relu(first(x))
        hidden = rounded(th.relu(rounded(hidden) @ rounded(second.weight).t() + rounded(second.bias)))
        output = ForwardPass(mlp(network, reduced=True), x).output
        assert output.dtype == th.float32
        # The product itself rounds once more, in another order.
        assert th.allclose(output, third(hidden), atol=0.02)
        assert not th.allclose(output, network(x), atol=1e-6)


def test_gradients_in_reduced_precision_approximate_the_exact_ones() -> None:
    th.manual_seed(0)
    network = sequential([5, 256, 256, 2], nn.Tanh, nn.Tanh)
    x, cotangent = th.randn(512, 5), th.randn(512, 2)
    exact = gradients(network, x, cotangent)
    with th.no_grad():
        grad_x = ForwardPass(mlp(network, reduced=True), x).backward(cotangent.clone(), slice(None))
    for ours, wanted in zip([grad_x, *(p.grad for p in network.parameters())], exact, strict=True):
        assert ours is not None
        assert ours.dtype == th.float32
        assert 0 < (ours - wanted).norm() < 0.02 * wanted.norm()


# ---- losses ----------------------------------------------------------------------------------------------------------------


def critics(n_critics: int, n_inputs: int, seed: int, last: list[nn.Module] | None = None) -> nn.ModuleList:
    th.manual_seed(seed)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(n_inputs, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 1), *(last or []))
        for _ in range(n_critics)
    )


def mlps(networks: nn.ModuleList) -> list[MLP]:
    found = find_mlps(networks)
    assert found is not None
    return found


def values_of(networks: nn.ModuleList, inputs: th.Tensor) -> th.Tensor:
    return th.cat([network(inputs) for network in networks], dim=1)


@settings(max_examples=40, deadline=None)
@given(n_critics=st.integers(1, 3), n_rows=st.integers(1, 20), bounded=st.booleans(), seed=st.integers(0, 2**31))
def test_gradients_of_the_critic_loss_equal_those_of_autograd(n_critics: int, n_rows: int, bounded: bool, seed: int) -> None:
    networks = critics(n_critics, 6, seed, [nn.Tanh()] if bounded else None)
    inputs, targets, weights = th.randn(n_rows, 6), th.randn(n_rows), th.rand(n_rows)
    expected_values = values_of(networks, inputs)
    loss = critic_loss(expected_values.t(), targets, weights)
    expected = th.autograd.grad(loss, list(networks.parameters()))
    with th.no_grad():
        found, values = fit_critics(mlps(networks), inputs, targets[:, None], weights[:, None])
    assert is_close(found, loss)
    assert is_close(values, expected_values[:, :1])
    for parameter, gradient in zip(networks.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert is_close(parameter.grad, gradient)


@settings(max_examples=40, deadline=None)
@given(n_critics=st.integers(1, 3), n_actions=st.integers(1, 4), n_rows=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_the_gradient_of_min_q_equals_that_of_autograd(n_critics: int, n_actions: int, n_rows: int, seed: int) -> None:
    networks = critics(n_critics, 3 + n_actions, seed)
    inputs, weights = th.randn(n_rows, 3 + n_actions), th.rand(n_rows, 1)
    leaf = inputs.clone().requires_grad_()
    minimum = values_of(networks, leaf).amin(dim=1, keepdim=True)
    (expected,) = th.autograd.grad((minimum * weights).sum(), [leaf])
    minimum = minimum.detach()
    with th.no_grad():
        total, gradient = min_q_gradient(mlps(networks), inputs, weights, n_actions)
        assert is_close(min_q(mlps(networks), inputs), minimum)
    assert abs(float(total - (minimum * weights).sum())) <= 1e-4 * float((minimum * weights).abs().sum())
    assert is_close(gradient, expected[:, 3:])
    assert all(parameter.grad is None for parameter in networks.parameters())


def test_equal_critics_share_the_gradient() -> None:
    networks = critics(1, 5, 0)
    networks.append(copy.deepcopy(networks[0]))
    with th.no_grad():
        inputs, weights = th.randn(7, 5), th.ones(7, 1)
        _, together = min_q_gradient(mlps(networks), inputs, weights, 2)
        _, alone = min_q_gradient(mlps(networks)[:1], inputs, weights, 2)
    assert is_close(together, alone)
