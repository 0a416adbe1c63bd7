"""The reference and the fast path compute what the code computed before it was rewritten."""

from contextlib import nullcontext

import numpy as np
import pytest
from conformance.recorded import CONFIGURATIONS, FILE, parameters_after_updates

from sb3_pg import fast
from sb3_pg.registry import ALGOS

# Relative to the root mean square of the parameters. Sums in another order differ by 1e-7 of their size; fifty updates with
# Adam, whose step is the sign of the gradient where it has just begun, magnify that.
TOLERANCE = {True: 2e-4, False: 2e-3}


@pytest.mark.parametrize("path", [nullcontext, fast.disabled], ids=["fast", "reference"])
@pytest.mark.parametrize(("key", "name"), [(key, name) for key, table in CONFIGURATIONS.items() for name in table])
def test_parameters_after_fifty_updates(key: str, name: str, path: type[nullcontext[None]]) -> None:
    with path():
        parameters = parameters_after_updates(ALGOS[key].load_class(), CONFIGURATIONS[key][name])
    with np.load(FILE) as recorded:
        expected = recorded[f"{key}/{name}"]
    assert parameters.shape == expected.shape
    size = np.sqrt(np.mean(np.square(expected)))
    assert np.abs(parameters - expected).max() <= TOLERANCE[key in ("vpg", "nstep_a2c")] * size
