"""
Forward and backward passes of MLPs in numpy.

For two hidden layers of 64 units and a few dozen observations, PyTorch spends most of its time on bookkeeping; the arithmetic
takes a fifth of it.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


class _Activation(NamedTuple):
    """A function, and the product of its derivative, as a function of its value, with a gradient. Both work in place."""

    apply: Callable[[Float32Array], object]
    backward: Callable[[Float32Array, Float32Array], object]


_ACTIVATIONS = {
    th.nn.Tanh: _Activation(lambda x: np.tanh(x, out=x), lambda y, gradient: np.multiply(gradient, 1 - y * y, out=gradient)),
    th.nn.ReLU: _Activation(lambda x: np.maximum(x, 0, out=x), lambda y, gradient: np.multiply(gradient, y > 0, out=gradient)),
}


class _Layer(NamedTuple):
    """A linear layer and its activation. The arrays share the memory of the module's parameters and of their gradients."""

    weight: Float32Array
    bias: Float32Array
    grad_weight: Float32Array | None
    grad_bias: Float32Array | None
    activation: _Activation | None


class NumpyMLP:
    """Linear layers with activations, created by :func:`numpy_mlp`."""

    def __init__(self, layers: list[_Layer]) -> None:
        self._layers = layers

    def forward(self, x: Float32Array) -> list[Float32Array]:
        """Return ``x``, ``[S, inputs]``, and the output of each layer."""
        outputs = [x]
        for layer in self._layers:
            # For one observation, a matrix-vector product is twice as fast.
            y = outputs[-1] @ layer.weight.T if len(x) != 1 else (layer.weight @ outputs[-1][0])[None]
            y += layer.bias
            if layer.activation is not None:
                layer.activation.apply(y)
            outputs.append(y)
        return outputs

    def backward(self, outputs: list[Float32Array], gradient: Float32Array) -> None:
        """Set the gradients of all layers, given the derivative with respect to the last output, which is overwritten."""
        for i in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[i]
            if layer.activation is not None:
                layer.activation.backward(outputs[i + 1], gradient)
            np.matmul(gradient.T, outputs[i], out=layer.grad_weight)
            np.sum(gradient, axis=0, out=layer.grad_bias)
            if i > 0:
                gradient = gradient @ layer.weight


def numpy_mlp(modules: Iterable[th.nn.Module], gradients: dict[int, Float32Array] | None = None) -> NumpyMLP | None:
    """
    :param modules: layers, first to last; float32, on the CPU
    :param gradients: ``id`` of a parameter -> array to which its gradient is written; ``None``: forward passes only
    :return: MLP; ``None`` if they are not linear layers with bias, each followed by tanh, ReLU or nothing
    """
    modules, grad_of = list(modules), (gradients or {}).get
    linear = [type(module) is th.nn.Linear and module.bias is not None for module in modules]
    known = all(is_linear or type(module) in _ACTIVATIONS for module, is_linear in zip(modules, linear, strict=True))
    if not (modules and known and linear[0] and all(before or after for before, after in pairwise(linear))):
        return None
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, th.nn.Linear):
            arrays = (module.weight.detach().numpy(), module.bias.detach().numpy())
            layers.append(_Layer(*arrays, grad_of(id(module.weight)), grad_of(id(module.bias)), None))
        else:
            layers.append(layers.pop()._replace(activation=_ACTIVATIONS[type(module)]))
    return NumpyMLP(layers)


def flatten_observations(obs: Array) -> Float32Array:
    """Observations ``[N, ...]`` as SB3's ``FlattenExtractor`` returns them, ``[N, F]``."""
    return obs.reshape(len(obs), -1).astype(np.float32, copy=False)


def clip_gradient(gradient: Float32Array, max_norm: float | None) -> float:
    """``torch.nn.utils.clip_grad_norm_`` for one array; returns the norm before clipping."""
    norm = float(np.sqrt(gradient @ gradient))
    if max_norm is not None and norm > max_norm:
        gradient *= max_norm / (norm + 1e-6)
    return norm
