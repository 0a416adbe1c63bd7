"""Checks of single options: what passes, and what the message says."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sb3_pg.common.validation import check_fraction, check_integer, check_max_grad_norm, check_return_steps

NO_NUMBERS: list[Any] = [None, "1", "", True, np.True_, [1], 1j, float("nan")]


@pytest.mark.parametrize(
    ("check", "right", "wrong", "message"),
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
def test_what_passes_and_what_does_not(check: Callable[[Any], None], right: list[Any], wrong: list[Any], message: str) -> None:
    for value in right:
        check(value)
    for value in [*wrong, *(value for value in NO_NUMBERS if value not in right)]:
        with pytest.raises(ValueError, match=message):
            check(value)


def test_no_look_ahead_beyond_the_rollout() -> None:
    check_return_steps(5, 5)
    check_return_steps(500, None)  # whole episodes
    with pytest.raises(ValueError, match=r"return_steps=6 .* n_steps=5"):
        check_return_steps(6, 5)
