"""Changes to SB3's base class that all algorithms share. How files are written is tested with the zoo's checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_learning_without_an_environment_is_rejected(make_model: Callable[..., Any], tmp_path: Path) -> None:
    first = make_model()
    first.save(tmp_path / "model")
    model = type(first).load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match=r"set_env\(\)"):
        model.learn(10)
    model.set_env(first.get_env())
    assert model.learn(10) is model
