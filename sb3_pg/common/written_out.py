"""
Gradients of the losses of actors and critics, written out: the numbers of autograd, without its graph.

They are for networks that are stacks of linear layers; :func:`layers_of` is the one place that decides. For a minibatch of 256
and two layers of 256 units the graph takes a quarter of an update's time.
"""

from collections.abc import Iterable, Sequence

import torch as th
from torch import nn

from sb3_pg.common.fused_mlp import FusedLinear, FusedMLP, Layers, Pass, is_watched


def layers_of(stacks: Iterable[nn.Module], users: Iterable[nn.Module]) -> list[Layers] | None:
    """
    :param stacks: networks
    :param users: modules that call them
    :return: what each network computes; ``None`` if one is no stack of linear layers, is frozen, or somebody watches one of
        all these modules or a parameter
    """
    found: list[Layers] = []
    for stack in stacks:
        layers = stack.layers() if isinstance(stack, (FusedMLP, FusedLinear)) else None
        if layers is None or not all(map(_is_ordinary, layers.parameters)):
            return None
        found.append(layers)
    return None if th.is_autocast_enabled("cpu") or any(map(is_watched, users)) else found


def _is_ordinary(parameter: th.Tensor) -> bool:
    hooks = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    return parameter.requires_grad and parameter.dtype == th.float32 and not hooks


def fit_critics(critics: Sequence[Layers], inputs: th.Tensor, targets: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """
    Set the critics' gradients of :func:`sb3_pg.common.losses.critic_loss`.

    :param critics: C networks
    :param inputs: states and actions, ``[S, D]``
    :param targets: ``[S]``
    :param weights: ``[S]``, weight of each step
    :return: values before the step, ``[C, S]``
    """
    values = []
    for layers in critics:
        run = Pass(layers, inputs)
        error = run.output - targets[:, None]
        run.set_gradients(error.mul_(weights[:, None]))
        values.append(run.output[:, 0])
    return th.stack(values)


def value_gradient(
    critics: Sequence[Layers], inputs: th.Tensor, weights: th.Tensor, n_actions: int
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param critics: C networks, the smallest value counts
    :param inputs: states and actions, ``[S, D]``
    :param weights: ``[S]``, of each value
    :param n_actions: number of columns at the end of the inputs that are actions
    :return: the values ``[S]``, and the gradient of their weighted sum with respect to the actions, ``[S, A]``
    """
    columns = slice(inputs.shape[1] - n_actions, None)
    runs = [Pass(layers, inputs) for layers in critics]
    if len(runs) == 1:
        return runs[0].output[:, 0], runs[0].input_gradient(weights[:, None], columns)
    values = th.cat([run.output for run in runs], dim=1)
    lowest = values.amin(dim=1, keepdim=True)
    # As torch does: those that are equal share the gradient.
    shares = (values == lowest).float()
    shares *= weights[:, None] / shares.sum(dim=1, keepdim=True)
    gradients = [run.input_gradient(shares[:, i : i + 1], columns) for i, run in enumerate(runs)]
    return lowest[:, 0], th.stack(gradients).sum(dim=0)
