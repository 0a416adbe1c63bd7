"""``scripts/plot_svg0_variance.py``: the variances that it plots, and the figure."""

from pathlib import Path

import matplotlib as mpl
import pytest
import script_modules


def test_the_pathwise_estimator_ignores_the_offset_and_has_less_variance() -> None:
    script = script_modules.load("plot_svg0_variance")
    variances = {name: [script.variance(name, 4, offset, 0.3, 2000) for offset in (0.0, 10.0)] for name in script.ESTIMATORS}
    # The derivative of Q is -a, so that the variance is that of the actions.
    assert variances["pathwise"] == pytest.approx([4 * 0.3**2] * 2, rel=0.1)
    assert variances["pathwise"][0] < variances["likelihood ratio"][0] < variances["likelihood ratio"][1]


def test_the_figure_is_written(tmp_path: Path) -> None:
    mpl.use("agg")
    script_modules.load("plot_svg0_variance").plot(tmp_path / "variance.png", 0.3, 100)
    assert (tmp_path / "variance.png").stat().st_size > 0
