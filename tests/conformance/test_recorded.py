"""The reference and the fast path reproduce the recorded updates."""

from contextlib import nullcontext

import numpy as np
import pytest
from conformance.recorded import CONFIGURATIONS, FILE, parameters_after_updates

from sb3_pg import fast
from sb3_pg.registry import ALGOS

# Relative to the root mean square of the parameters; processors differ by up to 1e-5.
TOLERANCE = 2e-4


@pytest.mark.parametrize("path", [nullcontext, fast.disabled], ids=["fast", "reference"])
@pytest.mark.parametrize(
    ("key", "name"),
    [
        pytest.param(key, name, marks=pytest.mark.slow if "n_episodes" in options else ())
        for key, table in CONFIGURATIONS.items()
        for name, options in table.items()
    ],
)
def test_parameters_after_fifty_updates(key: str, name: str, path: type[nullcontext[None]]) -> None:
    with path():
        parameters = parameters_after_updates(ALGOS[key].load_class(), CONFIGURATIONS[key][name])
    with np.load(FILE) as recorded:
        expected = recorded[f"{key}/{name}"]
    assert parameters.shape == expected.shape
    size = np.sqrt(np.mean(np.square(expected)))
    assert np.abs(parameters - expected).max() <= TOLERANCE * size
