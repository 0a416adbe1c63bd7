"""The fused stack against ``nn.Sequential`` of the same modules."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch as th
from graphs import is_fused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from sb3_pg.fast import fused_mlp
from sb3_pg.fast.fused_mlp import (
    FEW_COLUMNS,
    MIN_ONEDNN,
    MIN_ONEDNN_ROWS,
    MIN_REDUCED,
    FusedLinear,
    FusedMLP,
    Pass,
    reduced_precision,
    reducible,
)
from sb3_pg.fast.optimizers import descend

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


# ---- oneDNN ----------------------------------------------------------------------------------------------------------------


def both_ways(network: FusedMLP, x: th.Tensor, cotangent: th.Tensor) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """Output and gradients, ours and those of ``nn.Sequential``."""
    networks = (network, nn.Sequential(*network))
    ours, theirs = ([each(x).detach(), *gradients(each, x, cotangent)] for each in networks)
    return ours, theirs


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("last", [None, nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("available", [True, False])
def test_large_products_are_the_same(
    activation: type[nn.Module], last: type[nn.Module] | None, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    th.manual_seed(0)
    calls: list[int] = []
    linear = fused_mlp._onednn_linear(th.float32)

    def counted(*args: Any) -> th.Tensor:
        calls.append(1)
        assert linear is not None
        return linear(*args)

    usable = available and linear is not None
    monkeypatch.setattr(fused_mlp, "_onednn_linear", lambda _: counted if usable else None)
    network = stack([MIN_ONEDNN, MIN_ONEDNN + 7, 90, MIN_ONEDNN], activation, last)
    x, cotangent = th.randn(MIN_ONEDNN_ROWS + 3, MIN_ONEDNN, requires_grad=True), th.randn(MIN_ONEDNN_ROWS + 3, MIN_ONEDNN)
    for ours, theirs in zip(*both_ways(network, x, cotangent), strict=True):
        assert th.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    # Forwards twice, and backwards behind all layers but the first.
    assert len(calls) == (8 if usable else 0)


@pytest.mark.filterwarnings("ignore:TF32")  # which torch says of its own default
def test_small_products_and_those_of_users_who_switched_it_off_are_the_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[th.dtype] = []
    monkeypatch.setattr(fused_mlp, "_onednn_linear", asked.append)
    network = stack([MIN_ONEDNN, MIN_ONEDNN], nn.ReLU)
    network(th.randn(MIN_ONEDNN_ROWS - 1, MIN_ONEDNN))
    with th.backends.mkldnn.flags(enabled=False):
        network(th.randn(MIN_ONEDNN_ROWS, MIN_ONEDNN))
    assert asked == []
    network(th.randn(MIN_ONEDNN_ROWS, MIN_ONEDNN))
    assert asked == [th.float32]


@pytest.mark.parametrize("kind", ["missing", "wrong", "other_arguments"])
def test_an_operation_that_changed_is_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any) -> th.Tensor:
        raise RuntimeError("takes 7 arguments")

    def default(*_: Any) -> Any:
        return th.zeros(3, 64)

    class Namespace:
        pass

    namespace: Any = Namespace()
    if kind != "missing":
        namespace._linear_pointwise = Namespace()
        namespace._linear_pointwise.default = default if kind == "wrong" else raising
    monkeypatch.setattr(th.ops, "mkldnn", namespace)
    assert fused_mlp._onednn_linear.__wrapped__(th.float32) is None


def test_a_processor_without_bfloat16_in_onednn_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    real = th.ops.mkldnn._linear_pointwise.default

    def linear(x: th.Tensor, *args: Any) -> Any:
        if x.dtype == th.bfloat16:
            raise RuntimeError("could not create a primitive descriptor")
        return real(x, *args)

    monkeypatch.setattr(th.ops.mkldnn._linear_pointwise, "default", linear)
    fused_mlp._onednn_linear.cache_clear()
    try:
        network = stack([MIN_ONEDNN, MIN_ONEDNN, MIN_ONEDNN], nn.ReLU)
        x = th.randn(MIN_ONEDNN_ROWS, MIN_ONEDNN, requires_grad=True)
        with reduced_precision(network):
            network(x).sum().backward()
        assert fused_mlp._onednn_linear(th.bfloat16) is None
    finally:
        fused_mlp._onednn_linear.cache_clear()


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("n_rows", [10, MIN_ONEDNN_ROWS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(reduced: bool, n_rows: int, bad: float) -> None:
    network = stack([4, 64, 64, 1], nn.ReLU)
    x = th.randn(n_rows, 4)
    x[3, 2] = bad
    with reduced_precision(network) if reduced else nullcontext():
        assert not network(x)[3].isfinite()
    with th.no_grad():
        next(network[2].parameters())[5, 7] = float("nan")
        with reduced_precision(network) if reduced else nullcontext():
            assert not network(th.randn(n_rows, 4)).isfinite().any()


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


# ---- without autograd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("n_rows", [10, MIN_ONEDNN_ROWS])
def test_a_pass_goes_back_as_autograd_does(reduced: bool, n_rows: int) -> None:
    th.manual_seed(0)
    network = stack([5, 128, 128, 2], nn.ReLU, nn.Tanh)
    x, cotangent = th.randn(n_rows, 5, requires_grad=True), th.randn(n_rows, 2)
    with reduced_precision(network) if reduced else nullcontext():
        layers = network.layers()
        of_x, *expected = gradients(network, x, cotangent)
        output = network(x)
    assert layers is not None
    with th.no_grad():
        run = Pass(layers, x)
        assert th.equal(run.output, output)
        assert th.equal(run.input_gradient(cotangent), of_x)
        assert th.allclose(run.input_gradient(cotangent, slice(3, None)), of_x[:, 3:], atol=1e-6)
        assert run.set_gradients(cotangent) is None
        for parameter, gradient in zip(network.parameters(), expected, strict=True):
            assert th.equal(parameter.grad, gradient)  # type: ignore[arg-type]  # it was set


def test_a_pass_may_go_back_from_its_first_rows_alone() -> None:
    th.manual_seed(0)
    network, x, cotangent = stack([5, 8, 8, 2], nn.ReLU, nn.Tanh), th.randn(9, 5, requires_grad=True), th.randn(4, 2)
    of_x, *expected = gradients(network, x, th.cat([cotangent, th.zeros(5, 2)]))
    layers = network.layers()
    assert layers is not None
    with th.no_grad():
        of_inputs = Pass(layers, x).set_gradients(cotangent, slice(None))
    assert of_inputs is not None
    assert th.allclose(of_inputs, of_x[:4], atol=1e-6)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert th.allclose(parameter.grad, gradient, atol=1e-6)  # type: ignore[arg-type]  # it was set


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
