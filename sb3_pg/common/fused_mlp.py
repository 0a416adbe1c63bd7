"""
Stacks of linear layers as one operation of autograd, or without it.

For a minibatch of 256 and layers of 256 units half of an update's time goes into what surrounds the matrix products: graph
nodes, copies for ReLU, gradients that nobody asked for. Here the gradient is written out, and activations work in place.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call

from sb3_pg.common.optimizers import set_gradient

# Products with few columns are several times faster as the transpose of the transposed product.
FEW_COLUMNS = 128
# In reduced precision, layers with fewer inputs or outputs stay as they are: they cost little, the first sees small
# differences of observations, and the last puts out values whose differences are small too.
MIN_REDUCED = 64
# With fewer rows, or fewer inputs or outputs, oneDNN's products are slower than those of the BLAS.
MIN_ONEDNN_ROWS = 256
MIN_ONEDNN = 64

ALL = slice(None)


class _Activation(NamedTuple):
    """
    :param name: oneDNN's, where its result is the same
    :param apply: the function, in place
    :param backward: writes the gradient with respect to its input into the third argument, from that with respect to its
        output, and the output
    """

    name: str
    apply: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor, th.Tensor], object]


def _relu_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    th.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=result)


def _tanh_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    th.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=result)


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _Activation("relu", th.relu_, _relu_backward),
    nn.Tanh: _Activation("", th.tanh_, _tanh_backward),
}


class Layers(NamedTuple):
    """
    What a stack computes.

    :param activations: what follows each linear layer
    :param parameters: their weights and biases in turn
    :param reduced: whether the products of large layers are in bfloat16
    """

    activations: tuple[_Activation | None, ...]
    parameters: list[th.Tensor]
    reduced: bool


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
        layers = self.layers()
        if layers is None or _in_other_precision(x):
            if not frozen:
                return super().forward(x)  # type: ignore[no-any-return,no-untyped-call]  # torch
            plain = nn.Sequential(*self)
            constants = {name: p.detach() for name, p in plain.named_parameters()}
            return functional_call(plain, constants, (x,))  # type: ignore[no-any-return]  # torch says Any
        if frozen:
            layers = layers._replace(parameters=[p.detach() for p in layers.parameters])
        return _apply(x, layers)

    def layers(self) -> Layers | None:
        """
        :return: what it computes; ``None`` if there is more than linear layers with ReLU or tanh, or somebody watches
        """
        return _layers(self)


class FusedLinear(nn.Linear):
    """
    ``nn.Linear``, whose gradients cost less where there are few outputs. It has no second derivative, unless hooks watch it.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``[..., inputs]``
        :return: ``[..., outputs]``
        """
        layers = self.layers()
        return super().forward(x) if layers is None or _in_other_precision(x) else _apply(x, layers)

    def layers(self) -> Layers | None:
        """
        :return: what it computes; ``None`` if somebody watches
        """
        return None if is_watched(self) or self.bias is None else Layers((None,), [self.weight, self.bias], False)


def is_watched(module: nn.Module) -> bool:
    """
    :param module: any
    :return: whether it has hooks
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _in_other_precision(x: th.Tensor) -> bool:
    return x.dtype != th.float32 or th.is_autocast_enabled(x.device.type)


class Pass:
    """
    A pass of a minibatch through a stack, without autograd, and the way back.

    :param layers: of the stack
    :param x: ``[B, inputs]``
    """

    def __init__(self, layers: Layers, x: th.Tensor) -> None:
        self._layers = layers
        self._outputs, self._weights = _run(x, layers)

    @property
    def output(self) -> th.Tensor:
        """``[B, outputs]``, float32."""
        return _cast(self._outputs[-1], th.float32)

    def set_gradients(self, gradient: th.Tensor) -> None:
        """
        Set the gradients of all parameters.

        :param gradient: derivative with respect to the output, ``[B, outputs]``
        """
        parameters = self._layers.parameters
        wanted = [True] * len(parameters)
        gradients, _ = _go_back(self._layers.activations, self._outputs, self._weights, gradient, wanted, None)
        for parameter, value in zip(parameters, gradients, strict=True):
            set_gradient(parameter, value)

    def input_gradient(self, gradient: th.Tensor, columns: slice = ALL) -> th.Tensor:
        """
        :param gradient: derivative with respect to the output, ``[B, outputs]``
        :param columns: inputs that are asked for
        :return: derivative with respect to these
        """
        wanted = [False] * len(self._layers.parameters)
        result = _go_back(self._layers.activations, self._outputs, self._weights, gradient, wanted, columns)[1]
        assert result is not None
        return result


def _apply(x: th.Tensor, layers: Layers) -> th.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if th.is_grad_enabled():
        activations, parameters, reduced = layers
        output: th.Tensor = _Stack.apply(rows, activations, reduced, *parameters)  # type: ignore[no-untyped-call]  # torch
    else:
        output = _cast(_run(rows, layers)[0][-1], th.float32)
    return output.view(*x.shape[:-1], -1)


def _run(x: th.Tensor, layers: Layers) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """
    :return: ``x`` and the output of each layer, in the precision of the layer that follows, and the weights, in that of their
        own layer
    """
    activations, parameters, reduced = layers
    weights = [_cast(weight, _precision(weight, reduced)) for weight in parameters[::2]]
    precisions = [weight.dtype for weight in weights]
    outputs = [_cast(x, precisions[0])]
    for i, (weight, following) in enumerate(zip(weights, [*precisions[1:], precisions[-1]], strict=True)):
        y = _layer(outputs[-1], weight, _cast(parameters[2 * i + 1], weight.dtype), activations[i])
        outputs.append(_cast(y, following))
    return outputs, weights


def _layer(x: th.Tensor, weight: th.Tensor, bias: th.Tensor, activation: _Activation | None) -> th.Tensor:
    product = _large_product(x, weight)
    if product is None:
        y = th.addmm(bias, x, weight.t())
    elif activation is not None and activation.name:
        return product(x, weight, bias, activation.name, [], "")
    else:
        y = product(x, weight, bias, "none", [], "")
    return y if activation is None else activation.apply(y)


class _Stack(th.autograd.Function):
    """Linear layers, each followed by an activation or none, of ``[B, inputs]``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: th.Tensor, activations: tuple[_Activation | None, ...], reduced: bool, *parameters: th.Tensor
    ) -> th.Tensor:
        outputs, weights = _run(x, Layers(activations, list(parameters), reduced))
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
        columns = ALL if ctx.needs_input_grad[0] else None
        gradients, of_x = _go_back(ctx.activations, outputs, weights, gradient, ctx.needs_input_grad[3:], columns)
        return of_x, None, None, *gradients


def _go_back(
    activations: Sequence[_Activation | None],
    outputs: Sequence[th.Tensor],
    weights: Sequence[th.Tensor],
    gradient: th.Tensor,
    wanted: Sequence[bool],
    columns: slice | None,
) -> tuple[list[th.Tensor | None], th.Tensor | None]:
    """
    :param activations: of the stack
    :param outputs: what :func:`_run` returned
    :param weights: likewise
    :param gradient: derivative with respect to the output; its memory is somebody else's
    :param wanted: of which weights and biases the gradients are asked for
    :param columns: likewise of the inputs; ``None``: of none
    :return: the gradients, and that of the inputs
    """
    gradients: list[th.Tensor | None] = [None] * len(wanted)
    for i in range(len(activations) - 1, -1, -1):
        activation = activations[i]
        gradient = _cast(gradient, outputs[i + 1].dtype)
        if activation is not None:
            result = gradient if i < len(activations) - 1 else th.empty_like(gradient)
            activation.backward(gradient, outputs[i + 1], result)
            gradient = result
        gradient = _cast(gradient, weights[i].dtype)
        if wanted[2 * i]:
            gradients[2 * i] = _cast(_product(gradient.t(), outputs[i]), th.float32)
        if wanted[2 * i + 1]:
            # Sums are in float32 inside.
            gradients[2 * i + 1] = _cast(gradient.sum(dim=0), th.float32)
        if i > 0:
            large = _large_product(gradient, weights[i])
            gradient = (
                _product(gradient, weights[i]) if large is None else large(gradient, weights[i].t(), None, "none", [], "")
            )
    if columns is None:
        return gradients, None
    return gradients, _cast(_product(gradient, weights[0][:, columns]), th.float32)


def _precision(weight: th.Tensor, reduced: bool) -> th.dtype:
    """Of the products of a layer, and so of what goes into it."""
    return th.bfloat16 if reduced and min(weight.shape) >= MIN_REDUCED else th.float32


def _cast(x: th.Tensor, dtype: th.dtype) -> th.Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _large_product(x: th.Tensor, weight: th.Tensor) -> Callable[..., th.Tensor] | None:
    """oneDNN's linear layer, where it is the faster one."""
    large = len(x) >= MIN_ONEDNN_ROWS and min(weight.shape) >= MIN_ONEDNN
    return _onednn_linear() if large and x.device.type == "cpu" and th.backends.mkldnn.enabled else None


@functools.cache
def _onednn_linear() -> Callable[..., th.Tensor] | None:
    """
    The linear layer that ``torch.compile`` uses on processors: a tenth faster than the BLAS, and bias and ReLU cost nothing.
    torch may change or drop it, so it is tried first.

    :return: function of input, weight, bias, name of the activation, and two arguments that ReLU does not need; ``None`` if
        there is none, or it computes something else
    """
    x, weight, bias = th.linspace(-1, 1, 3 * 64).view(3, 64), th.linspace(-1, 1, 64 * 64).view(64, 64), th.linspace(-1, 1, 64)
    try:
        linear: Callable[..., th.Tensor] = th.ops.mkldnn._linear_pointwise
        same = th.allclose(linear(x, weight, bias, "relu", [], ""), th.relu(x @ weight.t() + bias), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return linear if same else None


def _product(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    if a.shape[1] == 1:
        return a * b
    return (b.t() @ a.t()).t() if b.shape[1] <= FEW_COLUMNS else a @ b


def _layers(stack: FusedMLP) -> Layers | None:
    activations: list[_Activation | None] = []
    parameters: list[th.Tensor] = []
    after_linear = False
    for module in stack._modules.values():
        assert module is not None
        if is_watched(module):
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
    return Layers(tuple(activations), parameters, stack.reduced) if activations else None


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
