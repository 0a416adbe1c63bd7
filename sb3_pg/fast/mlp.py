"""
MLPs with hand-derived gradients, and the losses of actors and critics that consist of them.

For a minibatch of 256 and two layers of 256 units, half of an update's time is overhead around the matrix products: graph
nodes, copies for ReLU, gradients that no optimizer uses. Here there is no graph, and activations work in place.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_pg.common.off_policy import MIN_REDUCED
from sb3_pg.fast import torch_private
from sb3_pg.fast.adam import take_step

# Products with few columns are several times faster as the transpose of the transposed product.
FEW_COLUMNS = 128

ALL = slice(None)
#: Methods of which an MLP consists: class and name.
METHODS = [(module, "forward") for module in (nn.Sequential, nn.Linear, nn.ReLU, nn.Tanh)]


class _Activation(NamedTuple):
    """
    :param apply: applies the function in place
    :param backward: takes the gradient with respect to the output, and the output; writes the gradient with respect to the
        input into the third argument
    """

    apply: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor, th.Tensor], object]


def _activation(module: nn.Module) -> _Activation | None:
    """``None`` if it is neither ReLU nor tanh."""
    if type(module) is nn.ReLU:
        return _Activation(th.relu_, torch_private.activation_backward("relu"))
    return _Activation(th.tanh_, torch_private.activation_backward("tanh")) if type(module) is nn.Tanh else None


class MLP:
    """
    Linear layers, each followed by ReLU, tanh or nothing. The parameters are shared with the modules.

    :param layers: linear layers
    :param activations: activation after each layer; ``None``: none
    :param reduced: whether large layers compute in bfloat16. Small ones cost little: usually the first and the last layer,
        which have to resolve small differences of observations and values
    """

    def __init__(self, layers: Sequence[nn.Linear], activations: Sequence[_Activation | None], reduced: bool) -> None:
        self.weights: list[th.Tensor] = [layer.weight for layer in layers]
        self.biases: list[th.Tensor] = [layer.bias for layer in layers]
        self.activations = activations
        self.dtypes = [th.bfloat16 if reduced and min(w.shape) >= MIN_REDUCED else th.float32 for w in self.weights]
        self.reduced = th.bfloat16 in self.dtypes


def find_mlps(networks: Iterable[nn.Module], reduced: bool = False, trained: bool = True) -> list[MLP] | None:
    """
    :param networks: ``nn.Sequential`` or ``nn.Linear``, without hooks
    :param reduced: whether large layers of an ``nn.Sequential`` compute in bfloat16
    :param trained: whether gradients are needed
    :return: MLP of each network; ``None`` if one does not consist of linear layers with bias, each followed by at most one
        ReLU or tanh, is not float32, is frozen although gradients are needed, or shares layers
    """
    found = [_find_mlp(network, reduced) for network in networks]
    mlps = [mlp for mlp in found if mlp is not None]
    parameters = [parameter for mlp in mlps for parameter in (*mlp.weights, *mlp.biases)]
    usable = (
        len(mlps) == len(found)
        # A shared layer would need the sum of its gradients.
        and len(set(parameters)) == len(parameters)
        and all(p.dtype is th.float32 and p.requires_grad >= trained for p in parameters)
    )
    return mlps if usable else None


def _find_mlp(network: nn.Module, reduced: bool) -> MLP | None:
    # Subclasses may compute something else.
    if type(network) not in (nn.Sequential, nn.Linear):
        return None
    layers: list[nn.Linear] = []
    activations: list[_Activation | None] = []
    for module in network if isinstance(network, nn.Sequential) else [network]:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append(module)
            activations.append(None)
        elif layers and activations[-1] is None and (activation := _activation(module)) is not None:
            activations[-1] = activation
        else:
            return None
    return MLP(layers, activations, reduced and isinstance(network, nn.Sequential)) if layers else None


class ForwardPass:
    """Forward pass of a float32 minibatch ``[B, inputs]``, and its backward pass. Autograd must be off."""

    def __init__(self, mlp: MLP, x: th.Tensor) -> None:
        self._mlp = mlp
        # Without helper functions: after the products have flushed the caches, each call costs microseconds.
        weights, biases, reduced = mlp.weights, mlp.biases, mlp.reduced
        if reduced:
            weights = list(map(_cast, weights, mlp.dtypes))
            biases = list(map(_cast, biases, mlp.dtypes))
        outputs = [x]
        for weight, bias, activation in zip(weights, biases, mlp.activations, strict=True):
            if reduced:
                outputs[-1] = x = _cast(x, weight.dtype)
            x = F.linear(x, weight, bias)
            if activation is not None:
                activation.apply(x)
            outputs.append(x)
        # Each in the precision of the next layer.
        self._outputs, self._weights = outputs, weights
        #: ``[B, outputs]``, float32
        self.output = x if not reduced else _cast(x, th.float32)

    def backward(self, gradient: th.Tensor, columns: slice | None = None, trains: bool = True) -> Any:
        """
        Set the gradients of all parameters.

        :param gradient: derivative with respect to the outputs of the first R rows, ``[R, outputs]``; other rows are ignored.
            With ``trains``, its memory is reused
        :param columns: inputs whose derivative is returned; ``None``: none of them
        :param trains: whether to set the gradients of the parameters
        :return: derivative with respect to these columns, ``[R, columns]``, or ``None``
        """
        mlp, outputs, weights = self._mlp, self._outputs, self._weights
        n_rows, n_layers, reduced = gradient.shape[0], len(weights), mlp.reduced
        if n_rows < outputs[0].shape[0]:
            outputs = [output[:n_rows] for output in outputs]
        for i in range(n_layers - 1, -1, -1):
            activation, weight, x = mlp.activations[i], weights[i], outputs[i]
            if reduced:
                gradient = _cast(gradient, outputs[i + 1].dtype)
            if activation is not None:
                result = gradient if trains or i < n_layers - 1 else th.empty_like(gradient)
                activation.backward(gradient, outputs[i + 1], result)
                gradient = result
            if reduced:
                gradient = _cast(gradient, weight.dtype)
            if trains:
                grad_weight = (x.t() @ gradient).t() if x.shape[1] <= FEW_COLUMNS else gradient.t() @ x
                set_gradient(mlp.weights[i], _cast(grad_weight, th.float32))
                # Sums accumulate in float32.
                mlp.biases[i].grad = _cast(gradient.sum(0), th.float32)
            if i == 0:
                break
            gradient = _product(gradient, weight)
        if columns is None:
            return None
        first = weights[0] if columns is ALL else weights[0][:, columns]
        return _cast(_product(gradient, first), th.float32)


def _cast(x: th.Tensor, dtype: th.dtype) -> th.Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def _product(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    if a.shape[1] == 1:
        return a * b
    return (b.t() @ a.t()).t() if b.shape[1] <= FEW_COLUMNS else a @ b


def set_gradient(parameter: th.Tensor, gradient: th.Tensor) -> None:
    """Set ``parameter.grad`` in the memory layout of the parameter: fused optimizers traverse both in parallel."""
    if gradient.stride() != parameter.stride():
        gradient = th.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient


def fit_critics(critics: Sequence[MLP], inputs: th.Tensor, targets: th.Tensor, weights: th.Tensor) -> tuple[Any, th.Tensor]:
    """
    Set the critics' gradients of ``1/2 sum_i sum_s w_s (Q_i(s, a) - target_s)^2``.

    :param critics: C networks
    :param inputs: states and actions, ``[S, D]``
    :param targets: ``[S, 1]``
    :param weights: ``[S, 1]``, weight of each step
    :return: the loss, and the first critic's values ``[S, 1]``
    """
    losses, values = [], []
    for critic in critics:
        forward = ForwardPass(critic, inputs)
        error = forward.output - targets
        gradient = error * weights
        losses.append(th.dot(gradient[:, 0], error[:, 0]).mul_(0.5))
        # Last, since it reuses the memory of the gradient.
        forward.backward(gradient)
        values.append(forward.output)
    return losses[0] if len(losses) == 1 else th.stack(losses).sum(), values[0]


def min_q(critics: Sequence[MLP], inputs: th.Tensor) -> th.Tensor:
    """Minimum over the critics, ``[S, 1]``, for states and actions ``[S, D]``."""
    values = [ForwardPass(critic, inputs).output for critic in critics]
    return values[0] if len(values) == 1 else th.cat(values, dim=1).amin(dim=1, keepdim=True)


def min_q_gradient(
    critics: Sequence[MLP], inputs: th.Tensor, weights: th.Tensor, n_actions: int
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param critics: C networks
    :param inputs: states and actions, ``[S, D]``
    :param weights: ``[S, 1]``, weight of each value
    :param n_actions: number of action columns A, the last ones of the inputs
    :return: weighted sum of the minimum over the critics, and its gradient with respect to the actions, ``[S, A]``
    """
    columns = slice(inputs.shape[1] - n_actions, None)
    passes = [ForwardPass(critic, inputs) for critic in critics]
    if len(passes) == 1:  # the usual case, without six operations on small tensors
        return th.dot(passes[0].output[:, 0], weights[:, 0]), passes[0].backward(weights, columns, trains=False)
    values = th.cat([each.output for each in passes], dim=1)
    lowest = values.amin(dim=1, keepdim=True)
    # As in torch, critics of equal value share the gradient.
    shares = (values == lowest).float()
    shares *= weights / shares.sum(dim=1, keepdim=True)
    gradients = [each.backward(shares[:, i : i + 1], columns, trains=False) for i, each in enumerate(passes)]
    return th.dot(lowest[:, 0], weights[:, 0]), th.stack(gradients).sum(dim=0)


def trains(optimizer: th.optim.Optimizer, network: nn.Module) -> bool:
    """Whether the optimizer has exactly the parameters of the network."""
    return {p for group in optimizer.param_groups for p in group["params"]} == set(network.parameters())


def descend(algorithm: Any, optimizer: th.optim.Optimizer, loss: th.Tensor, name: str) -> None:
    """``OffPolicyBase._descend`` for a loss whose gradients are set."""
    algorithm._check_finite(name, loss)
    algorithm._check_gradients(name, (p for group in optimizer.param_groups for p in group["params"]))
    take_step(optimizer)
