"""The RL Zoo as it was before each test, with our algorithms registered."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def zoo() -> Iterator[None]:
    """
    Register, and put the zoo's tables and constructor back afterwards.

    :return: Nothing.
    """
    import rl_zoo3.exp_manager as exp_manager
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    import sb3_pg

    sb3_pg.register()
    tables: list[Any] = [ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER]
    copies = [dict(table) for table in tables]
    methods = {name: vars(exp_manager.ExperimentManager)[name] for name in ("__init__", "objective")}
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)
    for name, method in methods.items():
        setattr(exp_manager.ExperimentManager, name, method)
