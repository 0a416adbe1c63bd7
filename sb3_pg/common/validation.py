"""Checks of single options, for the constructors of all algorithms. Pure Python: every message says what to change."""

from numbers import Integral, Real
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """
    :param value: anything
    :return: whether it is a real number; Python's bool counts as one elsewhere, but no option means it
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def check_fraction(name: str, value: object) -> None:
    """
    :param name: name of the option
    :param value: its value
    :raises ValueError: it is no number in [0, 1]
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} must lie in [0, 1]")


def check_integer(name: str, value: object, minimum: int) -> None:
    """
    :param name: name of the option
    :param value: its value
    :param minimum: least allowed value
    :raises ValueError: it is no integer, or a smaller one
    """
    if not (is_number(value) and isinstance(value, Integral) and value >= minimum):
        raise ValueError(f"{name}={value!r} must be an integer of at least {minimum}")


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
    :raises ValueError: no step of the rollout could look ahead that far
    """
    if n_steps is not None and return_steps > n_steps:
        raise ValueError(
            f"return_steps={return_steps} looks beyond the end of a rollout of n_steps={n_steps}: lower it or raise n_steps"
        )
