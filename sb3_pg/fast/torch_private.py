"""
Every private function of PyTorch that the package uses.

Each is looked up and checked at its first use. If it is missing or behaves differently, a public function replaces it; if
there is none, the caller is informed and falls back to the reference.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch as th

_MODULE_HOOKS = tuple(f"_global_{name}hooks" for name in ("forward_", "forward_pre_", "backward_", "backward_pre_"))
_OPTIMIZER_HOOKS = tuple(f"_global_optimizer_{name}_hooks" for name in ("pre", "post"))
_MODES = ("_len_torch_function_stack", "_len_torch_dispatch_stack")


@functools.cache
def _look_up(module: str, names: tuple[str, ...]) -> list[Any] | None:
    """Attributes of a module; ``None`` if one is missing."""
    # By import, since torch.optim deletes the names of its submodules.
    found = [getattr(importlib.import_module(module), name, None) for name in names]
    return None if any(each is None for each in found) else found


def has_global_module_hooks() -> bool:
    """Whether hooks for all modules are registered; ``True`` if this cannot be determined."""
    registries = _look_up("torch.nn.modules.module", _MODULE_HOOKS)
    return registries is None or any(registries)


def has_global_optimizer_hooks() -> bool:
    """Whether hooks for all optimizers are registered; ``True`` if this cannot be determined."""
    registries = _look_up("torch.optim.optimizer", _OPTIMIZER_HOOKS)
    return registries is None or any(registries)


def has_modes() -> bool:
    """Whether a mode intercepts the functions of torch (a default device is one); ``True`` if this cannot be determined."""
    counters = _look_up("torch._C", _MODES)
    return counters is None or any(counter() for counter in counters)


@functools.cache
def fused_adam() -> Callable[..., Any] | None:
    """
    The kernel behind ``Adam(fused=True)``.

    :return: function of lists of parameters, gradients, first and second moments, maximal second moments and step counters;
        ``None`` if torch has none that computes a step of Adam
    """
    kernel: Callable[..., Any] | None = getattr(th, "_fused_adam_", None)
    lists = [[th.full((3,), value, device="cpu")] for value in (1.0, 0.5, 0.0, 0.0)]
    step = th.tensor(1.0, device="cpu")
    try:
        assert kernel is not None
        with th.no_grad():
            kernel(
                *lists, [], [step], lr=0.1, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False
            )
    except (AssertionError, AttributeError, RuntimeError, TypeError):
        return None
    # The first step of Adam has the length of the learning rate.
    return kernel if th.allclose(lists[0][0], th.full((3,), 0.9, device="cpu"), atol=1e-5) else None


@functools.cache
def activation_backward(name: str) -> Callable[[th.Tensor, th.Tensor, th.Tensor], object]:
    """
    The derivative of an activation, written into existing memory.

    :param name: ``"tanh"`` or ``"relu"``
    :return: function of the gradient with respect to the output, the output, and the tensor to write to
    """
    operation = getattr(th.ops.aten, "tanh_backward" if name == "tanh" else "threshold_backward", None)
    kernel, threshold = getattr(operation, "grad_input", None), () if name == "tanh" else (0,)
    if kernel is not None:
        return lambda gradient, output, result: kernel(gradient, output, *threshold, grad_input=result)
    if name == "tanh":
        return lambda gradient, output, result: th.mul(gradient, 1 - output * output, out=result)
    return lambda gradient, output, result: th.mul(gradient, output > 0, out=result)
