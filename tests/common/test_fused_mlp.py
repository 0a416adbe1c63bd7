"""The fused stack against ``nn.Sequential`` of the same modules."""

import copy
from typing import Any

import pytest
import torch as th
from graphs import is_fused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from sb3_pg.common.fused_mlp import FEW_COLUMNS, MIN_REDUCED, FusedLinear, FusedMLP, reduced_precision, reducible
from sb3_pg.common.optimizers import descend

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def stack(sizes: list[int], activation: type[nn.Module], last: type[nn.Module] | None = None) -> FusedMLP:
    modules: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        modules.append(nn.Linear(sizes[i], sizes[i + 1]))
        following = activation if i + 2 < len(sizes) else last
        if following is not None:
            modules.append(following())
    return FusedMLP(*modules)


def gradients(network: nn.Module, x: th.Tensor, cotangent: th.Tensor) -> list[th.Tensor]:
    return list(th.autograd.grad((network(x) * cotangent).sum(), [x, *network.parameters()]))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 7, FEW_COLUMNS, FEW_COLUMNS + 5]), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    last=st.sampled_from(["", *sorted(ACTIVATIONS)]),
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_are_those_of_sequential(
    sizes: list[int], activation: str, last: str, leading: list[int], seed: int
) -> None:
    th.manual_seed(seed)
    network = stack(sizes, ACTIVATIONS[activation], ACTIVATIONS.get(last))
    plain = nn.Sequential(*network)
    x = th.randn(*leading, sizes[0], requires_grad=True)
    output = network(x)
    assert th.allclose(output, plain(x), atol=1e-5)
    assert output.shape == (*leading, sizes[-1])
    cotangent = th.randn(output.shape)
    for ours, theirs in zip(gradients(network, x, cotangent), gradients(plain, x, cotangent), strict=True):
        assert ours.shape == theirs.shape
        assert th.allclose(ours, theirs, atol=1e-4)
    assert is_fused(network(x))


def test_names_of_parameters_are_those_of_sequential() -> None:
    network = stack([3, 4, 2], nn.ReLU)
    assert list(network.state_dict()) == list(nn.Sequential(*network).state_dict())


def test_frozen_sends_the_gradient_to_the_input_alone() -> None:
    network = stack([3, 8, 2], nn.ReLU)
    x = th.randn(5, 3, requires_grad=True)
    network(x, frozen=True).sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert x.grad is not None
    assert th.allclose(x.grad, th.autograd.grad(network(x).sum(), [x])[0])


def test_an_input_without_gradient_gets_none() -> None:
    network = stack([3, 8, 2], nn.ReLU)
    network(th.randn(5, 3)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_memory_of_the_input_is_left_alone() -> None:
    network = FusedMLP(nn.Linear(3, 3), nn.ReLU())
    x = th.randn(4, 3)
    before = x.clone()
    network(x)
    assert th.equal(x, before)


def test_a_change_of_what_the_gradient_needs_is_noticed() -> None:
    network = stack([3, 8, 2], nn.ReLU)
    output = network(th.randn(5, 3))
    with th.no_grad():
        next(network[2].parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_second_derivative_is_an_error() -> None:
    network = stack([3, 8, 1], nn.Tanh)
    x = th.randn(5, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        th.autograd.grad(network(x).sum(), [x], create_graph=True)


def hooked() -> FusedMLP:
    network = stack([3, 4, 2], nn.ReLU)
    network[0].register_forward_hook(lambda _module, _args, output: output * 2)
    return network


def parametrised() -> FusedMLP:
    network = stack([3, 4, 2], nn.ReLU)
    parametrizations.weight_norm(network[0])
    return network


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        parametrised,
        lambda: FusedMLP(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)),
        lambda: FusedMLP(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        lambda: FusedMLP(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: FusedMLP(nn.ReLU(), nn.Linear(3, 2)),
        lambda: FusedMLP(nn.Linear(3, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 2)),
        lambda: FusedMLP(nn.Linear(3, 2)).double(),
    ],
    ids=["hook", "weight_norm", "elu", "no_bias", "layer_norm", "first_relu", "two_activations", "double"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_all_else_goes_the_plain_way(make: Any, frozen: bool) -> None:
    network = make()
    x = th.randn(5, 3, dtype=next(network.parameters()).dtype, requires_grad=True)
    assert not is_fused(network(x))
    output = network(x, frozen)
    assert th.equal(output, nn.Sequential(*network)(x))
    output.sum().backward()
    assert x.grad is not None
    assert all((p.grad is None) == frozen for p in network.parameters())


def test_without_layers_it_is_the_identity() -> None:
    x = th.randn(5, 3)
    assert th.equal(FusedMLP()(x), x)


def test_autocast_goes_the_plain_way() -> None:
    network, x = stack([3, 4, 2], nn.ReLU), th.randn(5, 3)
    with th.autocast("cpu", dtype=th.bfloat16):
        output = network(x)
    assert output.dtype == th.bfloat16
    output.float().sum().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_descend_copes_with_transposed_gradients(fused: bool) -> None:
    """The gradients of layers with few inputs come transposed, which a fused Adam would take for others."""
    network = stack([3, 200, 2], nn.ReLU)
    twin = nn.Sequential(*copy.deepcopy(network))
    ours, theirs = (th.optim.Adam(n.parameters(), lr=0.01, fused=fused) for n in (network, twin))
    for seed in range(5):
        x = th.randn(16, 3, generator=th.Generator().manual_seed(seed))
        descend(ours, network(x).square().sum(), list(network.parameters()))
        theirs.zero_grad()
        twin(x).square().sum().backward()
        theirs.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert th.allclose(p, q, atol=1e-5)


# ---- reduced precision -----------------------------------------------------------------------------------------------------


def rounded(x: th.Tensor) -> th.Tensor:
    return x.bfloat16().float()


def test_reduced_precision_rounds_the_large_products_alone() -> None:
    """The first layer has few inputs and the last few outputs: both stay as they are."""
    th.manual_seed(0)
    network = stack([MIN_REDUCED - 1, MIN_REDUCED, MIN_REDUCED, MIN_REDUCED - 1], nn.ReLU)
    x = th.randn(32, MIN_REDUCED - 1)
    first, second, third = (m for m in network if isinstance(m, nn.Linear))
    with th.no_grad():
        hidden = th.relu(first(x))
        hidden = rounded(th.relu(rounded(hidden) @ rounded(second.weight).t() + rounded(second.bias)))
        with reduced_precision(network):
            output = network(x)
        assert output.dtype == th.float32
        # The product itself rounds once more, and not in the same order.
        assert th.allclose(output, third(hidden), atol=0.02)
        assert not th.allclose(output, network(x), atol=1e-6)


def test_gradients_in_reduced_precision_are_nearly_the_exact_ones() -> None:
    th.manual_seed(0)
    network = stack([5, 256, 256, 2], nn.Tanh, nn.Tanh)
    x = th.randn(512, 5, requires_grad=True)
    cotangent = th.randn(512, 2)
    exact = gradients(network, x, cotangent)
    with reduced_precision(network):
        reduced = gradients(network, x, cotangent)
    for ours, wanted in zip(reduced, exact, strict=True):
        assert ours.dtype == th.float32
        assert 0 < (ours - wanted).norm() < 0.02 * wanted.norm()


def test_reduced_precision_ends_with_its_block_even_by_an_error() -> None:
    network = nn.ModuleDict({"inner": stack([64, 64, 64], nn.ReLU)})
    x = th.randn(4, 64)
    exact = network["inner"](x)
    with pytest.raises(KeyError), reduced_precision(network):
        raise KeyError
    assert th.equal(network["inner"](x), exact)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (stack([5, 256, 256, 1], nn.ReLU), True),
        (stack([5, 256, 1], nn.ReLU), False),
        (FusedMLP(nn.Linear(5, 256), nn.ELU(), nn.Linear(256, 256)), False),
        (nn.Sequential(nn.Linear(256, 256)), False),
    ],
)
def test_reducible_says_whether_it_matters(network: nn.Module, expected: bool) -> None:
    assert reducible(network) is expected


# ---- single layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_outputs", [1, 3, FEW_COLUMNS + 1])
@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (1, 7)])
def test_a_layer_alone_is_that_of_torch(n_outputs: int, shape: tuple[int, ...]) -> None:
    th.manual_seed(0)
    layer = FusedLinear(7, n_outputs)
    plain = nn.Linear(7, n_outputs)
    plain.load_state_dict(layer.state_dict())
    x = th.randn(shape, requires_grad=True)
    assert th.allclose(layer(x), plain(x), atol=1e-6)
    with th.no_grad():
        assert th.allclose(layer(x), plain(x), atol=1e-6)
    cotangent = th.randn(*shape[:-1], n_outputs)
    for ours, theirs in zip(gradients(layer, x, cotangent), gradients(plain, x, cotangent), strict=True):
        assert th.allclose(ours, theirs, atol=1e-5)


def test_a_layer_alone_takes_other_precisions() -> None:
    layer = FusedLinear(3, 2)
    with th.autocast("cpu", dtype=th.bfloat16):
        assert layer(th.randn(4, 3)).dtype == th.bfloat16
    x = th.randn(4, 3, dtype=th.float64)
    assert th.equal(layer.double()(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_watched_layer_goes_the_plain_way() -> None:
    layer, x = FusedLinear(3, 2), th.randn(4, 3)
    assert is_fused(layer(x))
    layer.register_forward_hook(lambda *_: None)
    assert not is_fused(layer(x))
