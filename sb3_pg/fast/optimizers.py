"""Steps of optimizers without their bookkeeping."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th

# Whatever makes a step of Adam more than its formula.
_unusual = operator.itemgetter("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


class _Plan(NamedTuple):
    """
    The tensors of an optimizer, looked up once.

    :param parameters: all of them
    :param contents: of the optimizer's state, in its order; other tensors after ``load_state_dict()``
    :param averages: of the gradients
    :param squares: averages of their squares
    :param counts: how many steps each parameter has taken, ``[P]``
    :param steps: its elements, which the states hold: counting up P tensors takes as long as the arithmetic
    """

    parameters: list[th.Tensor]
    contents: list[th.Tensor]
    averages: list[th.Tensor]
    squares: list[th.Tensor]
    counts: th.Tensor
    steps: list[th.Tensor]


def take_step(optimizer: th.optim.Optimizer) -> None:
    """
    ``optimizer.step()``, without what torch does around the arithmetic (as long as the arithmetic itself, for small networks)
    if it is a fused Adam with one group of parameters on a CPU, that nobody watches.

    :param optimizer: any
    """
    plan = _plan_of(optimizer)
    gradients = [] if plan is None else [parameter.grad for parameter in plan.parameters if parameter.grad is not None]
    if plan is None or len(gradients) < len(plan.parameters):
        optimizer.step()
        return
    group = optimizer.param_groups[0]
    with th.no_grad():
        plan.counts.add_(1)
        th._fused_adam_(
            plan.parameters,
            gradients,
            plan.averages,
            plan.squares,
            [],
            plan.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )


def _plan_of(optimizer: th.optim.Optimizer) -> _Plan | None:
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    # A learning rate scheduler puts a step of its own into the instance.
    watched = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer)
    if watched or not group["fused"] or any(_unusual(group)) or not isinstance(group["lr"], float):
        return None
    plan: _Plan | None = vars(optimizer).get("_sb3_pg_plan")
    # Tensors are compared in their order: to look them up, hashing each parameter, takes long.
    if plan is None or not (_are(group["params"], plan.parameters) and _are(_contents_of(optimizer), plan.contents)):
        plan = _make_plan(optimizer)
        vars(optimizer)["_sb3_pg_plan"] = plan
    return plan


def _contents_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return list(itertools.chain.from_iterable(map(dict.values, optimizer.state.values())))


def _are(objects: Sequence[object], others: Sequence[object]) -> bool:
    return len(objects) == len(others) and all(map(operator.is_, objects, others))


def _make_plan(optimizer: th.optim.Optimizer) -> _Plan | None:
    """The tensors; ``None`` before the first step, or if not all are float32 on the CPU, or states are not in the order."""
    parameters, states = list(optimizer.param_groups[0]["params"]), list(optimizer.state.values())
    known = _are(list(optimizer.state), parameters) and all(states)
    if not known or any(p.device.type != "cpu" or p.dtype != th.float32 for p in parameters):
        return None
    averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    counts = th.stack(steps)
    steps = list(counts)
    for state, step in zip(states, steps, strict=True):
        state["step"] = step
    return _Plan(parameters, _contents_of(optimizer), averages, squares, counts, steps)


def with_fused_adam(optimizer_class: type[th.optim.Optimizer], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """
    :param optimizer_class: of a policy
    :param kwargs: its arguments
    :return: the same, with the same arithmetic in one pass over all parameters where the user chose no implementation of Adam
    """
    chosen = {} if kwargs is None else dict(kwargs)
    if optimizer_class is th.optim.Adam and not {"fused", "foreach", "capturable", "differentiable"} & chosen.keys():
        chosen["fused"] = True
    return chosen


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor, parameters: Sequence[th.Tensor]) -> None:
    """
    One step down a loss.

    :param optimizer: of these parameters
    :param loss: scalar
    :param parameters: no gradient is computed for anything else, nor for those that are frozen
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter, gradient in zip(trained, th.autograd.grad(loss, trained, allow_unused=True), strict=True):
        set_gradient(parameter, gradient)
    take_step(optimizer)


def set_gradient(parameter: th.Tensor, gradient: th.Tensor | None) -> None:
    """
    Set ``parameter.grad``, laid out in memory as the parameter is: fused optimizers walk through both.

    :param parameter: of an optimizer
    :param gradient: of the same shape, or ``None``
    """
    if gradient is not None and gradient.stride() != parameter.stride():
        gradient = th.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient
