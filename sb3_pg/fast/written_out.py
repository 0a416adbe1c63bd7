"""
Gradients of the losses of actors and critics, written out: the numbers of autograd, without its graph.

They are for networks that are stacks of linear layers; :func:`layers_of` is the one place that decides. For a minibatch of 256
and two layers of 256 units the graph takes a quarter of an update's time.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch as th
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from sb3_pg.fast.fused_mlp import FusedLinear, FusedMLP, Layers, Pass

T = TypeVar("T")
_STACKS = (FusedMLP, FusedLinear)
_address = th.Tensor.data_ptr
_is_trained = operator.attrgetter("requires_grad")
_backward_hooks = operator.attrgetter("_backward_hooks")
_accumulation_hooks = operator.attrgetter("_post_accumulate_grad_hooks")


class Snapshot:
    """
    What a module was made of. To ask whether it still is takes a few microseconds, to look at everything anew a hundred.

    :param module: with all that it contains
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())
        self._parameters = list(module.parameters())
        self._hooks = [hooks for each in modules for hooks in _hooks_of(each)]
        contents = [vars(each)[name] for each in modules for name in ("_modules", "_parameters")]
        # Most modules have no parts, or no parameters of their own.
        self._empty, self._contents = ([part for part in contents if bool(part) == filled] for filled in (False, True))
        self._attributes = [vars(each) for each in modules]
        self._has_hooks = self._look_for_hooks()
        patched = any(callable(getattr(type(each), name, None)) for each in modules for name in vars(each))
        #: Whether somebody had put hooks on a module or a parameter, or a method into a module, or autocast was on.
        self.watched = patched or self._has_hooks
        self._parts, self._types = list(self._iterate_parts()), list(map(type, modules))
        self._n_parts, self._n_attributes = list(map(len, self._contents)), list(map(len, self._attributes))
        self._addresses, self._trained = list(map(_address, self._parameters)), list(map(_is_trained, self._parameters))

    def holds(self) -> bool:
        """
        :return: whether no module or parameter has been replaced, moved, frozen or watched since
        """
        # Loops in C throughout: this runs for every action and every update.
        return (
            self._look_for_hooks() == self._has_hooks
            and not any(self._empty)
            and list(map(len, self._contents)) == self._n_parts
            and all(map(operator.is_, self._iterate_parts(), self._parts))
            and all(map(operator.is_, map(type, self._modules), self._types))
            # A method that is put into a module is one attribute more.
            and list(map(len, self._attributes)) == self._n_attributes
            and list(map(_address, self._parameters)) == self._addresses
            and list(map(_is_trained, self._parameters)) == self._trained
        )

    def _look_for_hooks(self) -> bool:
        return (
            any(self._hooks)
            or any(map(_backward_hooks, self._parameters))
            or any(map(_accumulation_hooks, self._parameters))
            or _has_any_global_hook()  # type: ignore[no-untyped-call]  # torch
            or th.is_autocast_enabled("cpu")
            or th.is_autocast_enabled("cuda")
        )

    def _iterate_parts(self) -> Iterator[object]:
        return itertools.chain.from_iterable(map(dict.values, self._contents))


class Remembered(Generic[T]):
    """
    A function of a module whose result is kept until the module changes, see :class:`Snapshot`.

    :param function: of the module and of further arguments; its result must hold for a module that nobody watches
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._key: tuple[object, ...] = ()
        self._snapshot: Snapshot | None = None
        self._result: T | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # Copies and files begin anew, with their own modules.
        return type(self), (self._function,)

    def __call__(self, module: nn.Module, *arguments: object) -> T | None:
        """
        :param module: any
        :param arguments: of the function
        :return: its result; ``None`` if somebody watches the module
        """
        if self._snapshot is None or self._key != (id(module), *arguments) or not self._snapshot.holds():
            self._key, self._snapshot = (id(module), *arguments), Snapshot(module)
            self._result = None if self._snapshot.watched else self._function(module, *arguments)
        return self._result


def _hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def layers_of(stacks: Iterable[nn.Module], reduced: bool = False, trained: bool = True) -> list[Layers] | None:
    """
    :param stacks: networks
    :param reduced: whether the products of large layers of an MLP are in bfloat16
    :param trained: whether their gradients will be asked for
    :return: what each network computes; ``None`` if one is no stack of linear layers, is frozen though it should be trained,
        or somebody watches it
    """
    found: list[Layers] = []
    for stack in stacks:
        # Subclasses may compute something else.
        layers = stack.layers() if isinstance(stack, (FusedMLP, FusedLinear)) and type(stack) in _STACKS else None
        if layers is None or not all(p.dtype is th.float32 and p.requires_grad >= trained for p in layers.parameters):
            return None
        layers.reduced = reduced and isinstance(stack, FusedMLP)
        found.append(layers)
    return found


def fit_critics(
    critics: Sequence[Layers], inputs: th.Tensor, targets: th.Tensor, weights: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """
    Set the critics' gradients of :func:`sb3_pg.common.losses.critic_loss`.

    :param critics: C networks
    :param inputs: states and actions, ``[S, D]``
    :param targets: ``[S, 1]``
    :param weights: ``[S, 1]``, weight of each step
    :return: the loss, and the first critic's values ``[S, 1]``
    """
    losses, values = [], []
    for layers in critics:
        run = Pass(layers, inputs)
        error = run.output - targets
        gradient = error * weights
        losses.append(th.dot(gradient[:, 0], error[:, 0]).mul_(0.5))
        # Afterwards, since it uses the memory of the gradient.
        run.set_gradients(gradient)
        values.append(run.output)
    return losses[0] if len(losses) == 1 else th.stack(losses).sum(), values[0]


def lowest_values(critics: Sequence[Layers], inputs: th.Tensor) -> th.Tensor:
    """
    :param critics: C networks
    :param inputs: states and actions, ``[S, D]``
    :return: the smallest value of all, ``[S, 1]``
    """
    values = [Pass(layers, inputs).output for layers in critics]
    return values[0] if len(values) == 1 else th.cat(values, dim=1).amin(dim=1, keepdim=True)


def lowest_value_gradient(
    critics: Sequence[Layers], inputs: th.Tensor, weights: th.Tensor, n_actions: int
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param critics: C networks, the smallest value counts
    :param inputs: states and actions, ``[S, D]``
    :param weights: ``[S, 1]``, of each value
    :param n_actions: number of columns at the end of the inputs that are actions
    :return: the weighted sum, and its gradient with respect to the actions, ``[S, A]``
    """
    columns = slice(inputs.shape[1] - n_actions, None)
    runs = [Pass(layers, inputs) for layers in critics]
    if len(runs) == 1:
        return th.dot(runs[0].output[:, 0], weights[:, 0]), runs[0].input_gradient(weights, columns)
    values = th.cat([run.output for run in runs], dim=1)
    lowest = values.amin(dim=1, keepdim=True)
    # As torch does: those that are equal share the gradient.
    shares = (values == lowest).float()
    shares *= weights / shares.sum(dim=1, keepdim=True)
    gradients = [run.input_gradient(shares[:, i : i + 1], columns) for i, run in enumerate(runs)]
    return th.dot(lowest[:, 0], weights[:, 0]), th.stack(gradients).sum(dim=0)
