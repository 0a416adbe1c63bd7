"""
Stacks of linear layers as one operation of autograd.

For a minibatch of 256 and layers of 256 units half of an update's time goes into what surrounds the matrix products: graph
nodes, copies for ReLU, gradients that nobody asked for. Here the gradient is written out, and activations work in place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call

# Products with few columns are several times faster as the transpose of the transposed product.
FEW_COLUMNS = 128
# In reduced precision, layers with fewer inputs or outputs stay as they are: they cost little, the first sees small
# differences of observations, and the last puts out values whose differences are small too.
MIN_REDUCED = 64


class _Activation(NamedTuple):
    """
    :param apply: the function, in place
    :param backward: writes the gradient with respect to its input into the third argument, from that with respect to its
        output, and the output
    """

    apply: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor, th.Tensor], object]


def _relu_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    th.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=result)


def _tanh_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    th.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=result)


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _Activation(th.relu_, _relu_backward),
    nn.Tanh: _Activation(th.tanh_, _tanh_backward),
}


class FusedMLP(nn.Sequential):
    """
    ``nn.Sequential`` that computes the same, with the same gradients and parameter names, faster if it is made of linear
    layers with bias, ReLU and tanh. In all other cases, and if somebody watches its modules by hooks, it goes the plain way.

    It has no second derivative: asking for it is an error.

    :param modules: layers, first to last
    """

    # Whether the products of large layers are in bfloat16, see reduced_precision().
    reduced = False

    def forward(self, x: th.Tensor, frozen: bool = False) -> th.Tensor:
        """
        :param x: ``[..., inputs]``
        :param frozen: the parameters are constants, the gradient goes to ``x`` alone
        :return: ``[..., outputs]``
        """
        # Looked at each time, which is cheap: hooks and parametrisations may come and go.
        layers = _layers(self)
        if layers is None or _in_other_precision(x):
            if not frozen:
                return super().forward(x)  # type: ignore[no-any-return,no-untyped-call]  # torch
            plain = nn.Sequential(*self)
            constants = {name: p.detach() for name, p in plain.named_parameters()}
            return functional_call(plain, constants, (x,))  # type: ignore[no-any-return]  # torch says Any
        activations, parameters = layers
        if frozen:
            parameters = [p.detach() for p in parameters]
        return _apply(x, activations, self.reduced, parameters)


class FusedLinear(nn.Linear):
    """
    ``nn.Linear``, whose gradients cost less where there are few outputs. It has no second derivative, unless hooks watch it.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[..., inputs]``
        :return: ``[..., outputs]``
        """
        if _is_watched(self) or _in_other_precision(x):
            return super().forward(x)
        return _apply(x, (None,), False, (self.weight, self.bias))


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _in_other_precision(x: th.Tensor) -> bool:
    return x.dtype != th.float32 or th.is_autocast_enabled(x.device.type)


def _apply(
    x: th.Tensor, activations: tuple[_Activation | None, ...], reduced: bool, parameters: Sequence[th.Tensor]
) -> th.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if th.is_grad_enabled():
        output: th.Tensor = _Stack.apply(rows, activations, reduced, *parameters)  # type: ignore[no-untyped-call]  # torch
    else:
        output = _cast(_run(rows, activations, reduced, parameters)[0][-1], th.float32)
    return output.view(*x.shape[:-1], -1)


def _run(
    x: th.Tensor, activations: Sequence[_Activation | None], reduced: bool, parameters: Sequence[th.Tensor]
) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """
    :return: ``x`` and the output of each layer, in the precision of the layer that follows, and the weights, in that of their
        own layer
    """
    weights = [_cast(weight, _precision(weight, reduced)) for weight in parameters[::2]]
    precisions = [weight.dtype for weight in weights]
    outputs = [_cast(x, precisions[0])]
    for i, (weight, following) in enumerate(zip(weights, [*precisions[1:], precisions[-1]], strict=True)):
        y = th.addmm(_cast(parameters[2 * i + 1], weight.dtype), outputs[-1], weight.t())
        activation = activations[i]
        outputs.append(_cast(y if activation is None else activation.apply(y), following))
    return outputs, weights


class _Stack(th.autograd.Function):
    """Linear layers, each followed by an activation or none, of ``[B, inputs]``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: th.Tensor, activations: tuple[_Activation | None, ...], reduced: bool, *parameters: th.Tensor
    ) -> th.Tensor:
        outputs, weights = _run(x, activations, reduced, parameters)
        ctx.activations = activations  # type: ignore[attr-defined]  # torch
        ctx.save_for_backward(*outputs, *weights)
        return _cast(outputs[-1], th.float32)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        if th.is_grad_enabled():
            # Intermediate outputs are constants here: a second derivative would silently lack a part.
            raise RuntimeError("create_graph=True: a FusedMLP has no second derivative, nn.Sequential(*stack) has")
        n_layers = len(ctx.activations)
        outputs, weights = ctx.saved_tensors[: n_layers + 1], ctx.saved_tensors[n_layers + 1 :]
        of_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        gradients: list[th.Tensor | None] = [None] * len(wanted)
        for i in range(n_layers - 1, -1, -1):
            activation = ctx.activations[i]
            gradient = _cast(gradient, outputs[i + 1].dtype)
            if activation is not None:
                # The gradient that came in belongs to autograd, all others are our own.
                result = gradient if i < n_layers - 1 else th.empty_like(gradient)
                activation.backward(gradient, outputs[i + 1], result)
                gradient = result
            gradient = _cast(gradient, weights[i].dtype)
            if wanted[2 * i]:
                gradients[2 * i] = _cast(_product(gradient.t(), outputs[i]), th.float32)
            if wanted[2 * i + 1]:
                # Sums are in float32 inside.
                gradients[2 * i + 1] = _cast(gradient.sum(dim=0), th.float32)
            if i == 0 and not of_x:
                return None, None, None, *gradients
            gradient = _product(gradient, weights[i])
        return _cast(gradient, th.float32), None, None, *gradients


def _precision(weight: th.Tensor, reduced: bool) -> th.dtype:
    """Of the products of a layer, and so of what goes into it."""
    return th.bfloat16 if reduced and min(weight.shape) >= MIN_REDUCED else th.float32


def _cast(x: th.Tensor, dtype: th.dtype) -> th.Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _product(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    if a.shape[1] == 1:
        return a * b
    return (b.t() @ a.t()).t() if b.shape[1] <= FEW_COLUMNS else a @ b


def _layers(stack: FusedMLP) -> tuple[tuple[_Activation | None, ...], list[th.Tensor]] | None:
    """What follows each linear layer, and their weights and biases; ``None`` if there is more, or somebody watches."""
    activations: list[_Activation | None] = []
    parameters: list[th.Tensor] = []
    after_linear = False
    for module in stack._modules.values():
        assert module is not None
        if _is_watched(module):
            return None
        if type(module) is nn.Linear and module.bias is not None:
            activations.append(None)
            parameters += (module.weight, module.bias)
            after_linear = True
        elif after_linear and type(module) in _ACTIVATIONS:
            activations[-1] = _ACTIVATIONS[type(module)]
            after_linear = False
        else:
            return None
    return (tuple(activations), parameters) if activations else None


def reducible(module: nn.Module) -> bool:
    """
    :param module: with stacks in it
    :return: whether :func:`reduced_precision` would change anything
    """
    return any(
        _layers(stack) is not None and any(min(p.shape) >= MIN_REDUCED for p in stack.parameters() if p.dim() == 2)
        for stack in _stacks(module)
    )


@contextmanager
def reduced_precision(module: nn.Module) -> Iterator[None]:
    """
    Let the products of all large layers be in bfloat16, 8 bits of precision in place of 24: on processors that have such
    instructions they take half the time. Parameters, their gradients, and what the stacks put out stay float32.

    :param module: with stacks in it
    """
    stacks = _stacks(module)
    for stack in stacks:
        stack.reduced = True
    try:
        yield
    finally:
        for stack in stacks:
            stack.reduced = False


def _stacks(module: nn.Module) -> list[FusedMLP]:
    return [stack for stack in module.modules() if isinstance(stack, FusedMLP)]
