"""Checks of single options, shared by the constructors of all algorithms. Each message says what to change."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule


def is_number(value: object) -> TypeGuard[float]:
    """
    :param value: anything
    :return: whether it is a real number; bool and NaN do not count
    """
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def check_fraction(name: str, value: object) -> None:
    """
    :param name: name of the option
    :param value: its value
    :raises ValueError: not a number in [0, 1]
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} must lie in [0, 1]")


def check_integer(name: str, value: object, minimum: int) -> None:
    """
    :param name: name of the option
    :param value: its value
    :param minimum: smallest allowed value
    :raises ValueError: not an integer, or less than the minimum
    """
    if not (is_number(value) and isinstance(value, Integral) and value >= minimum):
        raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}")


def check_non_negative(name: str, value: object) -> None:
    """
    :param name: name of the option
    :param value: its value
    :raises ValueError: not a finite number of at least 0
    """
    if not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name}={value!r} must be a number of at least 0")


def check_choice(name: str, value: object, known: Sequence[object]) -> None:
    """
    :param name: name of the option
    :param value: its value
    :param known: allowed values
    :raises ValueError: not one of them
    """
    if value not in known:
        raise ValueError(
            f"{name}={value!r} is unknown: choose one of {', '.join(repr(each) for each in known if each is not None)}"
        )


def check_max_grad_norm(value: object) -> None:
    """
    :param value: the option ``max_grad_norm``
    :raises ValueError: neither a positive number nor ``None``
    """
    if value is not None and not (is_number(value) and value > 0):
        raise ValueError(f"max_grad_norm={value!r} must be positive, or None for no clipping")


def check_return_steps(return_steps: int, n_steps: int | None) -> None:
    """
    :param return_steps: look-ahead of an n-step return
    :param n_steps: length of a rollout, ``None`` with whole episodes
    :raises ValueError: longer than a rollout
    """
    if n_steps is not None and return_steps > n_steps:
        raise ValueError(
            f"return_steps={return_steps} looks beyond the end of a rollout of n_steps={n_steps}: lower it or raise n_steps"
        )


def parse_schedule(name: str, value: float | str | Schedule) -> Schedule:
    """
    Parse the learning rate of a critic, which the zoo does not convert.

    :param name: name of the argument, for the error message
    :param value: constant, schedule, or the zoo's notation ``"lin_1e-3"`` for linear decay to zero
    :return: function of the remaining progress (1 at the start, 0 at the end)
    :raises ValueError: none of these, or not positive
    """
    if callable(value):
        # Plain floats: a numpy number would end up in the saved optimizer, which torch then refuses to load.
        return FloatSchedule(value)
    kind, separator, number = value.rpartition("_") if isinstance(value, str) else ("", "", value)
    try:
        initial = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        initial = math.nan
    if kind + separator not in ("", "lin_") or not 0 < initial < math.inf:
        raise ValueError(f'{name}={value!r} must be a positive number, a schedule, or "lin_<number>" such as "lin_1e-3"')
    return LinearSchedule(initial, 0.0, 1.0) if kind == "lin" else ConstantSchedule(initial)
