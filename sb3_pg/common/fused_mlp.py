"""
Stacks of linear layers as one operation of autograd.

For a minibatch of 256 and layers of 256 units half of an update's time goes into what surrounds the matrix products: graph
nodes, copies for ReLU, gradients that nobody asked for. Here the gradient is written out, and activations work in place.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn
from torch.autograd.function import FunctionCtx

# Products with few columns are several times faster as the transpose of the transposed product.
FEW_COLUMNS = 128


class _Activation(NamedTuple):
    """
    :param apply: the function, in place
    :param backward: gradient with respect to its input, from that with respect to its output, and the output
    """

    apply: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor], th.Tensor]


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _Activation(th.relu_, lambda gradient, output: th.ops.aten.threshold_backward(gradient, output, 0)),
    nn.Tanh: _Activation(th.tanh_, th.ops.aten.tanh_backward),
}


class FusedMLP(nn.Sequential):
    """
    ``nn.Sequential`` that computes the same, with the same gradients and parameter names, faster if it is made of linear
    layers with bias, ReLU and tanh. In all other cases, and if somebody watches its modules by hooks, it goes the plain way.

    It has no second derivative: asking for it is an error.

    :param modules: layers, first to last
    """

    def forward(self, x: th.Tensor, frozen: bool = False) -> th.Tensor:
        """
        :param x: ``[..., inputs]``
        :param frozen: the parameters are constants, the gradient goes to ``x`` alone
        :return: ``[..., outputs]``
        """
        # Looked at each time, which is cheap: hooks and parametrisations may come and go.
        activations = _activations(list(self))
        if activations is None or x.dtype != th.float32 or th.is_autocast_enabled(x.device.type):
            return super().forward(x)  # type: ignore[no-any-return,no-untyped-call]  # torch
        parameters: Iterable[th.Tensor] = self.parameters()
        if frozen:
            parameters = [p.detach() for p in parameters]
        output: th.Tensor = _Stack.apply(x.reshape(-1, x.shape[-1]), activations, *parameters)  # type: ignore[no-untyped-call]  # torch
        return output.view(*x.shape[:-1], -1)


class _Stack(th.autograd.Function):
    """Linear layers, each followed by an activation or none, of ``[B, inputs]``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: th.Tensor, activations: tuple[_Activation | None, ...], *parameters: th.Tensor
    ) -> th.Tensor:
        outputs = [x]
        for activation, weight, bias in zip(activations, parameters[::2], parameters[1::2], strict=True):
            y = th.addmm(bias, outputs[-1], weight.t())
            outputs.append(y if activation is None else activation.apply(y))
        ctx.activations = activations  # type: ignore[attr-defined]  # torch
        ctx.save_for_backward(*outputs, *parameters[::2])
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        if th.is_grad_enabled():
            # Intermediate outputs are constants here: a second derivative would silently lack a part.
            raise RuntimeError("create_graph=True: a FusedMLP has no second derivative, nn.Sequential(*stack) has")
        n_layers = len(ctx.activations)
        outputs, weights = ctx.saved_tensors[: n_layers + 1], ctx.saved_tensors[n_layers + 1 :]
        wanted, of_x = ctx.needs_input_grad[2:], ctx.needs_input_grad[0]
        gradients: list[th.Tensor | None] = [None] * len(wanted)
        for i in range(n_layers - 1, -1, -1):
            activation = ctx.activations[i]
            if activation is not None:
                gradient = activation.backward(gradient, outputs[i + 1])
            if wanted[2 * i]:
                gradients[2 * i] = _product(gradient.t(), outputs[i])
            if wanted[2 * i + 1]:
                gradients[2 * i + 1] = gradient.sum(dim=0)
            if i == 0 and not of_x:
                return None, None, *gradients
            gradient = _product(gradient, weights[i])
        return gradient, None, *gradients


def _product(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    return (b.t() @ a.t()).t() if b.shape[1] <= FEW_COLUMNS else a @ b


def _activations(modules: list[nn.Module]) -> tuple[_Activation | None, ...] | None:
    """What follows each linear layer; ``None`` if there are other modules, or somebody watches."""
    linear = [type(module) is nn.Linear and module.bias is not None for module in modules]
    known = all(is_linear or type(module) in _ACTIVATIONS for module, is_linear in zip(modules, linear, strict=True))
    if not (known and linear and linear[0] and all(before or after for before, after in pairwise(linear))):
        return None
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules):
        return None
    following = [*modules[1:], None]
    return tuple(
        _ACTIVATIONS.get(type(after))  # type: ignore[arg-type]  # None is no key
        for after, is_linear in zip(following, linear, strict=True)
        if is_linear
    )


def fuse_critics(critic: ContinuousCritic) -> None:
    """
    Replace the networks of SB3's critic by faster ones, with the same parameters under the same names.

    :param critic: changed in place
    """
    for i, network in enumerate(critic.q_networks):
        assert isinstance(network, nn.Sequential)
        fused = FusedMLP(*network)
        critic.add_module(f"qf{i}", fused)
        critic.q_networks[i] = fused
