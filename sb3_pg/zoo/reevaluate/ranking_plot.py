"""Figure of the ranking: rewards of the fresh seeds, and values in the study."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sb3_pg.zoo.reevaluate.ranking import Row

_BLUE, _ORANGE = "#0072B2", "#D55E00"  # colours of Okabe and Ito, safe for colour-blind readers


def draw(rows: Sequence[Row], title: str, path: Path) -> Figure:
    """
    Draw the figure and save it.

    :param rows: one or more rows, best first
    :param title: title of the figure
    :param path: file to write; the suffix selects the format
    :return: the figure
    """
    figure = Figure(figsize=(8, 0.5 * len(rows) + 2), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        named = y == 0  # one line of each kind in the legend
        interval = "mean over the seeds, 95% CI" if named else None
        axes.plot([row.low, row.high], [y, y], "-", color=_BLUE, linewidth=5, alpha=0.4, solid_capstyle="butt", label=interval)
        axes.plot(row.mean, y, "|", color=_BLUE, markersize=20, markeredgewidth=3)
        rewards = list(row.rewards.values())
        axes.plot(rewards, [y] * len(rewards), ".", color="0.2", markersize=8, label="a fresh seed" if named else None)
        said = "value in the study" if named else None
        axes.plot(row.value, y, "D", color=_ORANGE, fillstyle="none", markersize=8, label=said)
    axes.set_yticks(range(len(rows)), [f"trial {row.trial}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_xlabel("mean reward of the final policy")
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    return figure
