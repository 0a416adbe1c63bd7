"""Checks of single options: accepted values, rejected values and messages."""

import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sb3_pg.common.validation import check_fraction, check_integer, check_max_grad_norm, check_return_steps, parse_schedule

NOT_NUMBERS: list[Any] = [None, "1", "", True, np.True_, [1], 1j, float("nan")]


@pytest.mark.parametrize(
    ("check", "accepted", "rejected", "message"),
    [
        (
            lambda value: check_fraction("gamma", value),
            [0, 1, 0.0, 1.0, 0.5, Fraction(1, 3), np.float32(0.9), np.int64(1)],
            [-1e-9, 1 + 1e-9, 2, -1, float("inf")],
            r"gamma=.* must lie in \[0, 1\]",
        ),
        (
            lambda value: check_integer("n_steps", value, 2),
            [2, 3, 10**9, np.int32(2), np.uint8(7)],
            [1, 0, -3, 2.0, 2.5, np.float64(4), float("inf"), Fraction(5, 2)],
            r"n_steps=.* must be an integer of at least 2",
        ),
        (
            check_max_grad_norm,
            [None, 1e-9, 1, 0.5, 1e9, float("inf"), np.float32(3)],
            [0, 0.0, -1],
            r"max_grad_norm=.* must be positive, or None",
        ),
    ],
    ids=["fraction", "integer", "max_grad_norm"],
)
def test_ranges(check: Callable[[Any], None], accepted: list[Any], rejected: list[Any], message: str) -> None:
    for value in accepted:
        check(value)
    for value in [*rejected, *(value for value in NOT_NUMBERS if value not in accepted)]:
        with pytest.raises(ValueError, match=message):
            check(value)


def test_a_look_ahead_beyond_the_rollout_is_rejected() -> None:
    check_return_steps(5, 5)
    check_return_steps(500, None)  # whole episodes
    with pytest.raises(ValueError, match=r"return_steps=6 .* n_steps=5"):
        check_return_steps(6, 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e-3, [1e-3, 1e-3, 1e-3]),
        (1, [1.0, 1.0, 1.0]),
        ("1e-3", [1e-3, 1e-3, 1e-3]),
        ("lin_1e-3", [1e-3, 5e-4, 0.0]),
        ("lin_2", [2.0, 1.0, 0.0]),
        (lambda progress: 3 * progress**2, [3.0, 0.75, 0.0]),
    ],
)
def test_schedules_of_the_critic(value: Any, expected: list[float]) -> None:
    schedule = parse_schedule("rate", value)
    assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx(expected)


@pytest.mark.parametrize("value", [1e-3, "1e-3", "lin_1e-3"])
def test_schedules_can_be_pickled(value: Any) -> None:
    schedule = parse_schedule("rate", value)
    assert pickle.loads(pickle.dumps(schedule))(0.5) == schedule(0.5)


def test_schedules_return_plain_floats() -> None:
    """A numpy number would end up in the saved optimizer, which torch then refuses to load."""
    assert type(parse_schedule("rate", np.float64)(0.5)) is float


@pytest.mark.parametrize(
    "value",
    [
        *["", "lin_", "lin", "lin_-1", "lin_nan", "lin_inf", "exp_1e-3", "_1e-3", "1e-3_", "0"],
        *[0, -1e-3, 0.0, float("nan"), float("inf"), [1e-3], {"a": 1}, True],
    ],
    ids=repr,
)
def test_an_invalid_schedule_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match=r"rate=.*lin_1e-3"):
        parse_schedule("rate", value)
