"""
Stacks of linear layers in numpy, forward and backward.

For two hidden layers of 64 units and a few dozen observations PyTorch spends most of its time on bookkeeping; the arithmetic
takes a fifth of it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


class Activation(NamedTuple):
    """
    :param apply: the function, in place
    :param multiply_by_slope: multiplies its second argument, in place, by the derivative where the function has the value of
        the first
    """

    apply: Callable[[Float32Array], object]
    multiply_by_slope: Callable[[Float32Array, Float32Array], object]


def _multiply_by_slope_of_tanh(value: Float32Array, gradient: Float32Array) -> None:
    gradient -= gradient * value * value


_ACTIVATIONS: dict[type[th.nn.Module], Activation] = {
    th.nn.Tanh: Activation(lambda x: np.tanh(x, out=x), _multiply_by_slope_of_tanh),
    th.nn.ReLU: Activation(
        lambda x: np.maximum(x, 0, out=x), lambda value, gradient: np.multiply(gradient, value > 0, out=gradient)
    ),
}


@dataclass(frozen=True)
class _Layer:
    """A linear layer and its activation. The arrays share the memory of the module's parameters and of their gradients."""

    weight: Float32Array
    bias: Float32Array
    weight_gradient: Float32Array | None
    bias_gradient: Float32Array | None
    activation: Activation | None


class NumpyMLP:
    """
    A stack of linear layers.

    :param layers: first to last
    """

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers = layers

    def forward(self, x: Float32Array) -> list[Float32Array]:
        """
        :param x: ``[S, inputs]``
        :return: ``x``, and the output of each layer
        """
        outputs = [x]
        for layer in self.layers:
            # One observation: the BLAS multiplies a matrix and a vector twice as fast.
            y = outputs[-1] @ layer.weight.T if len(x) != 1 else (layer.weight @ outputs[-1][0])[None]
            y += layer.bias
            if layer.activation is not None:
                layer.activation.apply(y)
            outputs.append(y)
        return outputs

    def backward(self, outputs: list[Float32Array], gradient: Float32Array) -> None:
        """
        Set the gradients of all layers.

        :param outputs: what :meth:`forward` returned
        :param gradient: derivative with respect to the last output, ``[S, outputs]``
        """
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            if layer.activation is not None:
                layer.activation.multiply_by_slope(outputs[i + 1], gradient)
            assert layer.weight_gradient is not None and layer.bias_gradient is not None
            np.matmul(gradient.T, outputs[i], out=layer.weight_gradient)
            np.sum(gradient, axis=0, out=layer.bias_gradient)
            if i > 0:
                gradient = gradient @ layer.weight


def numpy_mlp(modules: Iterable[th.nn.Module], gradients: dict[int, Float32Array] | None = None) -> NumpyMLP | None:
    """
    :param modules: layers, first to last; float32, on the CPU
    :param gradients: ``id`` of a parameter -> array to which its gradient is written; ``None``: for forward passes alone
    :return: what they compute; ``None`` if they are not linear layers with bias, each followed by tanh, ReLU or nothing
    """
    modules = list(modules)
    if not _is_mlp(modules):
        return None
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, th.nn.Linear):
            of = (gradients or {}).get
            arrays = (module.weight.detach().numpy(), module.bias.detach().numpy())
            layers.append(_Layer(*arrays, of(id(module.weight)), of(id(module.bias)), None))
        else:
            last = layers.pop()
            layers.append(_Layer(last.weight, last.bias, last.weight_gradient, last.bias_gradient, _ACTIVATIONS[type(module)]))
    return NumpyMLP(layers)


def _is_mlp(modules: list[th.nn.Module]) -> bool:
    linear = [type(module) is th.nn.Linear and module.bias is not None for module in modules]
    known = all(is_linear or type(module) in _ACTIVATIONS for module, is_linear in zip(modules, linear, strict=True))
    return bool(modules) and known and linear[0] and all(before or after for before, after in pairwise(linear))


def flatten_observations(obs: Array) -> Float32Array:
    """
    :param obs: vectors or arrays of numbers, ``[N, ...]``
    :return: ``[N, F]``, what SB3's ``FlattenExtractor`` makes of them
    """
    return obs.reshape(len(obs), -1).astype(np.float32, copy=False)


def clip_gradient(gradient: Float32Array, max_norm: float | None) -> float:
    """
    As ``torch.nn.utils.clip_grad_norm_``, in place.

    :param gradient: ``[n_parameters]``
    :param max_norm: maximum norm; ``None``: no clipping
    :return: the norm before
    """
    norm = float(np.sqrt(gradient @ gradient))
    if max_norm is not None and norm > max_norm:
        gradient *= max_norm / (norm + 1e-6)
    return norm
