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
from torch.nn import functional as F

from sb3_pg.fast.optimizers import set_gradient

# Products with few columns are several times faster as the transpose of the transposed product.
FEW_COLUMNS = 128
# In reduced precision, layers with fewer inputs or outputs stay as they are: they cost little, the first sees small
# differences of observations, and the last puts out values whose differences are small too.
MIN_REDUCED = 64
# With fewer rows, or fewer inputs or outputs, oneDNN's products are slower than those of the BLAS.
MIN_ONEDNN_ROWS = 1024
MIN_ONEDNN = 64

ALL = slice(None)


class _Activation(NamedTuple):
    """
    :param apply: the function, in place
    :param backward: writes the gradient with respect to its input into the third argument, from that with respect to its
        output, and the output
    """

    apply: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor, th.Tensor], object]


_threshold_backward = th.ops.aten.threshold_backward.grad_input
_tanh_backward_into = th.ops.aten.tanh_backward.grad_input


def _relu_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    _threshold_backward(gradient, output, 0, grad_input=result)


def _tanh_backward(gradient: th.Tensor, output: th.Tensor, result: th.Tensor) -> None:
    _tanh_backward_into(gradient, output, grad_input=result)


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _Activation(th.relu_, _relu_backward),
    nn.Tanh: _Activation(th.tanh_, _tanh_backward),
}


class Layers:
    """
    What a stack computes.

    :param activations: what follows each linear layer
    :param weights: of these
    :param biases: likewise
    :param reduced: whether the products of large layers are in bfloat16
    """

    def __init__(
        self,
        activations: Sequence[_Activation | None],
        weights: Sequence[th.Tensor],
        biases: Sequence[th.Tensor],
        reduced: bool = False,
    ) -> None:
        self.activations, self.weights, self.biases, self.reduced = activations, weights, biases, reduced
        self.large = [min(weight.shape) >= MIN_ONEDNN for weight in weights]

    @property
    def parameters(self) -> list[th.Tensor]:
        """Weight and bias of each layer in turn."""
        return [parameter for pair in zip(self.weights, self.biases, strict=True) for parameter in pair]


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
        return _apply(x, layers, frozen)

    def layers(self) -> Layers | None:
        """
        :return: what it computes; ``None`` if there is more than linear layers with ReLU or tanh, or somebody watches
        """
        activations: list[_Activation | None] = []
        weights: list[th.Tensor] = []
        biases: list[th.Tensor] = []
        after_linear = False
        for module in self._modules.values():
            assert module is not None
            if _is_watched(module):
                return None
            if type(module) is nn.Linear and module.bias is not None:
                activations.append(None)
                weights.append(module.weight)
                biases.append(module.bias)
                after_linear = True
            elif after_linear and type(module) in _ACTIVATIONS:
                activations[-1] = _ACTIVATIONS[type(module)]
                after_linear = False
            else:
                return None
        return Layers(activations, weights, biases, self.reduced) if activations else None


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
        return super().forward(x) if layers is None or _in_other_precision(x) else _apply(x, layers, False)

    def layers(self) -> Layers | None:
        """
        :return: what it computes; ``None`` if somebody watches
        """
        return None if _is_watched(self) or self.bias is None else Layers((None,), [self.weight], [self.bias])


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _in_other_precision(x: th.Tensor) -> bool:
    return x.dtype != th.float32 or th.is_autocast_enabled(x.device.type)


class Pass:
    """
    A pass of a minibatch through a stack, and the way back, for where autograd is switched off.

    :param layers: of the stack
    :param x: ``[B, inputs]``, float32
    """

    def __init__(self, layers: Layers, x: th.Tensor) -> None:
        self._layers = layers
        self._outputs, self._weights = _run(x, layers)
        #: ``[B, outputs]``, float32
        self.output = self._outputs[-1] if not layers.reduced else _cast(self._outputs[-1], th.float32)

    def set_gradients(self, gradient: th.Tensor, columns: slice | None = None) -> th.Tensor | None:
        """
        Set the gradients of all parameters.

        :param gradient: derivative with respect to the outputs of the first R rows, ``[R, outputs]``; the others do not
            count. Its memory is used for other things
        :param columns: inputs whose derivative is asked for as well; ``None``: of none
        :return: derivative with respect to these, ``[R, columns]``, or ``None``
        """
        layers = self._layers
        wanted = [True] * len(self._weights)
        of_weights, of_biases, of_inputs = _go_back(layers, self._outputs, self._weights, gradient, wanted, columns, True)
        for weight, bias, of_weight, of_bias in zip(layers.weights, layers.biases, of_weights, of_biases, strict=True):
            set_gradient(weight, of_weight)
            bias.grad = of_bias
        return of_inputs

    def input_gradient(self, gradient: th.Tensor, columns: slice = ALL) -> th.Tensor:
        """
        :param gradient: derivative with respect to the outputs of the first R rows, ``[R, outputs]``
        :param columns: inputs that are asked for
        :return: derivative with respect to these, ``[R, columns]``
        """
        result = _go_back(self._layers, self._outputs, self._weights, gradient, [False] * len(self._weights), columns)[2]
        assert result is not None
        return result


def _apply(x: th.Tensor, layers: Layers, frozen: bool) -> th.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if th.is_grad_enabled():
        parameters = [p.detach() for p in layers.parameters] if frozen else layers.parameters
        output: th.Tensor = _Stack.apply(rows, layers, *parameters)  # type: ignore[no-untyped-call]  # torch
    else:
        output = _cast(_run(rows, layers)[0][-1], th.float32)
    return output.view(*x.shape[:-1], -1)


class _Stack(th.autograd.Function):
    """Linear layers, each followed by an activation or none, of ``[B, inputs]``. The parameters are those of the layers."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: th.Tensor, layers: Layers, *_parameters: th.Tensor) -> th.Tensor:
        outputs, weights = _run(x, layers)
        ctx.layers = layers  # type: ignore[attr-defined]  # torch
        ctx.save_for_backward(*outputs, *weights)
        return _cast(outputs[-1], th.float32)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        if th.is_grad_enabled():
            # Intermediate outputs are constants here: a second derivative would silently lack a part.
            raise RuntimeError("create_graph=True: a FusedMLP has no second derivative, nn.Sequential(*stack) has")
        n_layers = len(ctx.layers.weights)
        outputs, weights = ctx.saved_tensors[: n_layers + 1], ctx.saved_tensors[n_layers + 1 :]
        of_x, _, *of_parameters = ctx.needs_input_grad
        wanted = [of_parameters[2 * i] or of_parameters[2 * i + 1] for i in range(n_layers)]
        columns = ALL if of_x else None
        of_weights, of_biases, of_inputs = _go_back(ctx.layers, outputs, weights, gradient, wanted, columns)
        pairs = zip(of_weights, of_biases, strict=True)
        return of_inputs, None, *(gradient for pair in pairs for gradient in pair)


def _run(x: th.Tensor, layers: Layers) -> tuple[list[th.Tensor], Sequence[th.Tensor]]:
    """
    :return: ``x`` and the output of each layer, in the precision of the layer that follows, and the weights, in that of their
        own layer
    """
    # All this is written without further functions: once the products have swept the caches, each costs microseconds.
    weights, biases, reduced, onednn = layers.weights, layers.biases, layers.reduced, _onednn_for(x, layers)
    if reduced:
        weights = [_cast(weight, _precision(weight)) for weight in weights]
        biases = [_cast(bias, weight.dtype) for bias, weight in zip(biases, weights, strict=True)]
    outputs = [x]
    for weight, bias, activation, large in zip(weights, biases, layers.activations, layers.large, strict=True):
        if reduced:
            outputs[-1] = x = _cast(x, weight.dtype)
        # Without its ReLU, which makes NaN zero: what is not finite must be seen in the end.
        x = F.linear(x, weight, bias) if onednn is None or not large else onednn(x, weight, bias, "none", [], "")
        if activation is not None:
            activation.apply(x)
        outputs.append(x)
    return outputs, weights


def _go_back(
    layers: Layers,
    outputs: Sequence[th.Tensor],
    weights: Sequence[th.Tensor],
    gradient: th.Tensor,
    wanted: Sequence[bool],
    columns: slice | None,
    overwrite: bool = False,
) -> tuple[list[th.Tensor | None], list[th.Tensor | None], th.Tensor | None]:
    """
    :param layers: of the stack
    :param outputs: what :func:`_run` returned
    :param weights: likewise
    :param gradient: derivative with respect to the outputs of the first rows
    :param wanted: of which layers the gradients are asked for
    :param columns: likewise of the inputs; ``None``: of none
    :param overwrite: whether the memory of ``gradient`` may be used
    :return: gradients of the weights, of the biases, and of the inputs
    """
    n_rows, n_layers, reduced = gradient.shape[0], len(weights), layers.reduced
    if n_rows < outputs[0].shape[0]:
        outputs = [output[:n_rows] for output in outputs]
    of_weights: list[th.Tensor | None] = [None] * n_layers
    of_biases, onednn = of_weights.copy(), _onednn_for(gradient, layers)
    for i in range(n_layers - 1, -1, -1):
        activation, weight, x = layers.activations[i], weights[i], outputs[i]
        if reduced:
            gradient = _cast(gradient, outputs[i + 1].dtype)
        if activation is not None:
            result = gradient if overwrite or i < n_layers - 1 else th.empty_like(gradient)
            activation.backward(gradient, outputs[i + 1], result)
            gradient = result
        if reduced:
            gradient = _cast(gradient, weight.dtype)
        if wanted[i]:
            of_weight = (x.t() @ gradient).t() if x.shape[1] <= FEW_COLUMNS else gradient.t() @ x
            # Sums are in float32 inside.
            of_weights[i], of_biases[i] = _cast(of_weight, th.float32), _cast(gradient.sum(0), th.float32)
        if i == 0:
            break
        if onednn is not None and layers.large[i]:
            gradient = onednn(gradient, weight.t(), None, "none", [], "")
        else:
            gradient = _product(gradient, weight)
    if columns is None:
        return of_weights, of_biases, None
    first = weights[0] if columns is ALL else weights[0][:, columns]
    return of_weights, of_biases, _cast(_product(gradient, first), th.float32)


def _precision(weight: th.Tensor) -> th.dtype:
    """Of the products of a layer, and so of what goes into it, if they may be reduced."""
    return th.bfloat16 if min(weight.shape) >= MIN_REDUCED else th.float32


def _cast(x: th.Tensor, dtype: th.dtype) -> th.Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _onednn_for(x: th.Tensor, layers: Layers) -> Callable[..., th.Tensor] | None:
    """oneDNN's linear layer, where it is the faster one for large layers."""
    suits = x.shape[0] >= MIN_ONEDNN_ROWS and x.device.type == "cpu" and th.backends.mkldnn.enabled
    return _onednn_linear(th.bfloat16 if layers.reduced else th.float32) if suits else None


@functools.cache
def _onednn_linear(dtype: th.dtype) -> Callable[..., th.Tensor] | None:
    """
    The linear layer that ``torch.compile`` uses on processors: a tenth faster than the BLAS, and the bias costs nothing. torch
    may change or drop it, and not every processor has it in every precision, so it is tried first.

    :param dtype: precision
    :return: function of input, weight, bias, name of an activation, and two arguments that none needs; ``None`` if there is
        none, or it computes something else
    """
    x, weight, bias = (th.linspace(-1, 1, n).to(dtype) for n in (3 * 64, 64 * 64, 64))
    x, weight = x.view(3, 64), weight.view(64, 64)
    try:
        linear: Callable[..., th.Tensor] = th.ops.mkldnn._linear_pointwise.default
        same = th.allclose(linear(x, weight, bias, "none", [], ""), F.linear(x, weight, bias), rtol=0.02, atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return linear if same else None


def _product(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    if a.shape[1] == 1:
        return a * b
    return (b.t() @ a.t()).t() if b.shape[1] <= FEW_COLUMNS else a @ b


def reducible(module: nn.Module) -> bool:
    """
    :param module: with stacks in it
    :return: whether :func:`reduced_precision` would change anything
    """
    return any(
        stack.layers() is not None and any(min(p.shape) >= MIN_REDUCED for p in stack.parameters() if p.dim() == 2)
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
