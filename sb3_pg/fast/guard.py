"""
Guard of all fast paths: it checks that a model is, and remains, exactly what its fast path was derived for.

A fast path must equal the reference whatever a user does to a model. It is therefore used only while the model is
unmodified: no hooks, no patched or overridden methods, no frozen, replaced or moved parameters, no autocast.
"""

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_pg.fast import torch_private

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_address = th.Tensor.data_ptr
# Whether a tensor is trained, and its hooks: None, or a dictionary if there ever was one.
_tensor_state = operator.attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")


def _are_same(objects: Sequence[object], others: Sequence[object]) -> bool:
    return len(objects) == len(others) and all(map(operator.is_, objects, others))


class Originals:
    """
    Methods at the time of construction, to detect later patches.

    :param pairs: class and name of a method
    """

    def __init__(self, pairs: Iterable[tuple[type, str]]) -> None:
        self._classes, self._names = map(tuple, zip(*pairs, strict=True))
        self._methods = tuple(map(getattr, self._classes, self._names))

    def unchanged(self) -> bool:
        """:return: whether none of them has been patched since"""
        return all(map(operator.is_, map(getattr, self._classes, self._names), self._methods))


class Fingerprint:
    """The parts, hooks and parameters of a module. Comparing them with the module takes a few microseconds."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())
        self._parameters = list(module.parameters())
        self._hooks = [vars(each)[name] for each in modules for name in _HOOKS]
        contents = [vars(each)[name] for each in modules for name in ("_modules", "_parameters")]
        # Most modules have no children, or no parameters of their own.
        self._empty, self._contents = ([part for part in contents if bool(part) == filled] for filled in (False, True))
        self._attributes = [vars(each) for each in modules]
        self._has_hooks = self._look_for_hooks()
        patched = any(callable(getattr(type(each), name, None)) for each in modules for name in vars(each))
        #: No hooks, no methods patched into an instance, no autocast, no other mode of torch.
        tensor_hooks = any(any(hooks) for _, *hooks in map(_tensor_state, self._parameters))
        self.is_plain = not (patched or tensor_hooks or self._has_hooks)
        self._parts, self._types = list(self._iterate_parts()), list(map(type, modules))
        self._n_attributes = list(map(len, self._attributes))
        self._addresses = list(map(_address, self._parameters))
        # Copies: the dictionaries of hooks are changed in place.
        self._tensor_states = [tuple(map(copy.copy, state)) for state in map(_tensor_state, self._parameters)]
        # Attributes of the module itself, such as the distribution of its actions. The training mode does not matter.
        names = [name for name in vars(module) if name not in vars(nn.Module())]
        self._get_values = operator.itemgetter(*names, "_modules", "_parameters")
        self._values = self._get_values(vars(module))

    def matches(self) -> bool:
        """:return: whether no module or parameter has been replaced, moved, frozen, patched or hooked since"""
        # Loops in C throughout: this runs for every action and every update.
        return (
            self._look_for_hooks() == self._has_hooks
            and not any(self._empty)
            and _are_same(list(self._iterate_parts()), self._parts)
            and all(map(operator.is_, map(type, self._modules), self._types))
            # A method patched into an instance is an additional attribute.
            and list(map(len, self._attributes)) == self._n_attributes
            and list(map(_address, self._parameters)) == self._addresses
            and list(map(_tensor_state, self._parameters)) == self._tensor_states
            and all(map(operator.is_, self._get_values(self._attributes[0]), self._values))
        )

    def _look_for_hooks(self) -> bool:
        return (
            any(self._hooks)
            or torch_private.has_global_module_hooks()
            or torch_private.has_modes()
            or th.is_autocast_enabled("cpu")
            or th.is_autocast_enabled("cuda")
        )

    def _iterate_parts(self) -> Iterator[object]:
        return itertools.chain.from_iterable(map(dict.values, self._contents))


class Selection:
    """
    The fast path of an algorithm in its current state, if it has one.

    :param algorithm: algorithm
    :param path_class: see :class:`sb3_pg.fast.FastPath`
    :param steps: original methods of the algorithm that the fast path replaces
    """

    def __init__(self, algorithm: Any, path_class: Any, steps: dict[str, object]) -> None:
        self._policy, self._steps, self._options = algorithm.policy, steps, path_class.options
        self._class, self._values = type(algorithm), self._values_of(algorithm)
        self._fingerprint = Fingerprint(algorithm.policy)
        self._overridden = self._overrides(algorithm)
        self.path = path_class.build(algorithm) if self._fingerprint.is_plain and not self._overridden else None

    def is_current(self, algorithm: Any) -> bool:
        """Whether the selection is still valid, for the same algorithm."""
        return (
            algorithm.policy is self._policy
            and type(algorithm) is self._class
            and self._values_of(algorithm) == self._values
            and self._overrides(algorithm) == self._overridden
            and (self.path is None or self.path.originals.unchanged())
            and self._fingerprint.matches()
        )

    def _values_of(self, algorithm: Any) -> list[object]:
        return [getattr(algorithm, name) for name in self._options]

    def _overrides(self, algorithm: Any) -> bool:
        """Whether a subclass, or a patch of the instance or of a class, changes a step of the update."""
        own, cls = vars(algorithm), type(algorithm)
        return any(name in own or getattr(cls, name) is not step for name, step in self._steps.items())

    def __reduce__(self) -> tuple[object, ...]:
        # A copy of the algorithm has its own networks: it selects again.
        return type(None), ()
