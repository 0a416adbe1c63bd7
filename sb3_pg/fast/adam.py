"""A step of Adam without torch's bookkeeping, which takes as long as the arithmetic of small networks."""

import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch as th

from sb3_pg.fast import torch_private

# Options that change the formula.
_variants = operator.itemgetter("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
# The implementations that compute the same as the kernel: torch's default, and the kernel itself.
_IMPLEMENTATIONS = ((None, None), (None, True), (False, True))
_gradient = operator.attrgetter("grad")

# torch wraps the method of the class when it creates the first optimizer.
th.optim.Adam([th.zeros(1, device="cpu")])
_step = th.optim.Adam.step


class _Plan(NamedTuple):
    """The tensors of an optimizer, looked up once."""

    parameters: list[th.Tensor]
    contents: list[th.Tensor]  # of the state, in its order: load_state_dict() replaces these tensors
    averages: list[th.Tensor]  # of the gradients
    squares: list[th.Tensor]  # averages of their squares
    counts: th.Tensor  # [P], number of steps of each parameter
    steps: list[th.Tensor]  # its elements, shared with the states: incrementing P tensors takes as long as the arithmetic


def take_step(optimizer: th.optim.Optimizer) -> None:
    """
    ``optimizer.step()``, in one call of torch's fused kernel if the optimizer is a plain Adam: one group of float32 parameters
    on the CPU, default options, no hooks. The gradients must be laid out in memory as the parameters are.

    :param optimizer: any optimizer
    """
    kernel, plan = torch_private.fused_adam(), _plan_of(optimizer)
    gradients = [] if plan is None else list(map(_gradient, plan.parameters))
    if kernel is None or plan is None or any(gradient is None for gradient in gradients):
        optimizer.step()
        return
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
    state: tuple[list[th.Tensor], ...] = (plan.averages, plan.squares, [], plan.steps)
    with th.no_grad():
        plan.counts.add_(1)
        kernel(plan.parameters, gradients, *state, beta1=beta1, beta2=beta2, **options)


def _plan_of(optimizer: th.optim.Optimizer) -> _Plan | None:
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or th.optim.Adam.step is not _step:
        return None
    group, own = optimizer.param_groups[0], vars(optimizer)
    is_plain = (
        not (own.get("_optimizer_step_pre_hooks", True) or own.get("_optimizer_step_post_hooks", True))
        and not torch_private.has_global_optimizer_hooks()
        # A learning rate scheduler patches the instance.
        and "step" not in own
        and (group["foreach"], group["fused"]) in _IMPLEMENTATIONS
        and not any(_variants(group))
        and type(group["lr"]) is float
        and not any(map(th.is_tensor, group["betas"]))
    )
    if not is_plain:
        return None
    plan: _Plan | None = own.get("_sb3_pg_plan")
    # Tensors are compared in their order: looking them up, which hashes each parameter, takes longer.
    if plan is None or not (_are_same(group["params"], plan.parameters) and _are_same(_contents_of(optimizer), plan.contents)):
        own["_sb3_pg_plan"] = plan = _make_plan(optimizer)
    return plan


def _contents_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return list(itertools.chain.from_iterable(map(dict.values, optimizer.state.values())))


def _are_same(objects: Sequence[object], others: Sequence[object]) -> bool:
    return len(objects) == len(others) and all(map(operator.is_, objects, others))


def _make_plan(optimizer: th.optim.Optimizer) -> _Plan | None:
    """``None`` before the first step, if not all tensors are float32 on the CPU, or if the states are in another order."""
    parameters, states = list(optimizer.param_groups[0]["params"]), list(optimizer.state.values())
    known = _are_same(list(optimizer.state), parameters) and all(states)
    if not known or any(p.device.type != "cpu" or p.dtype != th.float32 for p in parameters):
        return None
    averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    counts = th.stack(steps)
    steps = list(counts)
    for state, step in zip(states, steps, strict=True):
        state["step"] = step
    return _Plan(parameters, _contents_of(optimizer), averages, squares, counts, steps)
