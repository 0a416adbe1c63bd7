"""Figure of the measurement: variance and direction of every estimator."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterSciNotation

from sb3_pg.diagnose.moments import Interval
from sb3_pg.diagnose.results import Measurement, sort_by_variance

# Colours of Okabe and Ito, safe for colour-blind readers.
_COLOURS = {"none": "#999999", "mean": "#56B4E9", "optimal": "#E69F00", "value": "#009E73"}
_BASELINES = {
    "none": "no baseline",
    "mean": "baseline: mean of the other episodes",
    "optimal": "baseline: optimal constant",
    "value": "baseline: critic V(s)",
}
_WEIGHTS = {"total_return": "total return", "reward_to_go": "reward-to-go", "n_step": "{}-step return", "gae": "GAE({})"}


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """
    Draw the figure and save it.

    :param measurements: one or more measurements of the same call
    :param path: file to write; the suffix selects the format
    """
    rows = sort_by_variance(measurements)
    figure = Figure(figsize=(12, 0.42 * len(rows) + 3), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_variance(left, rows)
    _draw_cosine(right, rows)
    _draw_numbers(right, rows)
    left.set_yticks(range(len(rows)), [_label(row) for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.3)
    one = rows[0]
    figure.suptitle(
        f"How good is an estimate of the policy gradient? {one.env}, {one.policy}\n"
        f"every estimator on the same {one.n_episodes} episodes ({one.steps:.0f} steps) per estimate, "
        f"{one.n_batches} estimates each, $\\gamma$ = {one.gamma:g}",
        fontsize="large",
    )
    _draw_legend(figure, rows)
    figure.savefig(path, dpi=150)


def file_types() -> list[str]:
    """:return: file suffixes that :func:`draw` supports"""
    return sorted(Figure().canvas.get_supported_filetypes())


def _draw_variance(axes: Axes, rows: Sequence[Measurement]) -> None:
    _draw_bars(axes, rows, [row.variance for row in rows])
    positive = [number for row in rows for number in row.variance if number > 0]
    if positive:  # a logarithmic axis needs positive numbers
        axes.set_xscale("log")
        # Space for the shortest bar on the left, and for the text behind the longest bar on the right.
        low, high = min(positive), max(positive)
        span = max(high / low, 10.0)
        axes.set_xlim(low / span**0.2, high * span**0.25)
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(1.5, 0.5)))
    lowest = rows[-1].variance.value
    for y, row in enumerate(rows):
        times = row.variance.value / lowest if lowest > 0 else float("nan")
        text = "lowest" if row is rows[-1] else rf"{times:.{0 if times >= 10 else 1}f} $\times$"
        axes.annotate(text, (max(row.variance), y), (5, 0), textcoords="offset points", va="center")
    axes.set_title("Noise: variance of an estimate, summed over the parameters", fontsize="medium", fontweight="bold")
    axes.set_xlabel("variance, logarithmic (shorter is better)")


def _draw_cosine(axes: Axes, rows: Sequence[Measurement]) -> None:
    _draw_bars(axes, rows, [row.cosine for row in rows])
    axes.set_xlim(min(0.0, *(row.cosine.low * 1.1 for row in rows)), 1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("Direction: cosine with the gradient", fontsize="medium", fontweight="bold")
    axes.set_xlabel("cosine (1: the same direction, 0: orthogonal)")


def _draw_numbers(axes: Axes, rows: Sequence[Measurement]) -> None:
    """Two columns of numbers on the right. A bias that does not differ significantly from zero is shown as a dash."""
    columns = {
        "SNR": [f"{row.snr.value:.2g}" for row in rows],
        "bias": [f"{row.bias.value:.0%}" if row.bias.low > 0 else "-" for row in rows],
    }
    for offset, (header, texts) in zip((45, 90), columns.items(), strict=True):
        for y, text in [(-0.85, header), *enumerate(texts)]:
            axes.annotate(
                text,
                (1, y),
                (offset, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontweight="bold" if text is header else "normal",
                annotation_clip=False,
            )


def _draw_bars(axes: Axes, rows: Sequence[Measurement], numbers: Sequence[Interval]) -> None:
    """Bars with their intervals; bars of estimators that an imperfect critic biases are hatched."""
    for y, (row, number) in enumerate(zip(rows, numbers, strict=True)):
        hatch = "///" if _trusts_critic(row) else None
        axes.barh(y, number.value, height=0.7, color=_COLOURS[row.baseline], hatch=hatch, edgecolor="white", linewidth=0)
        axes.plot([number.low, number.high], [y, y], color="0.2", linewidth=1.5, solid_capstyle="butt")


def _draw_legend(figure: Figure, rows: Sequence[Measurement]) -> None:
    present = {row.baseline for row in rows}
    names = dict(_BASELINES)
    for row in rows:
        if row.critic_explained_variance is not None:
            names["value"] = f"{_BASELINES['value']} (explains {row.explained})"
    handles: list[Artist] = [Patch(color=_COLOURS[key], label=text) for key, text in names.items() if key in present]
    if any(map(_trusts_critic, rows)):
        handles.append(
            Patch(facecolor="0.6", hatch="///", edgecolor="white", linewidth=0, label="biased by the critic's errors")
        )
    handles.append(Line2D([], [], color="0.2", linewidth=1.5, label="95% bootstrap interval"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _trusts_critic(row: Measurement) -> bool:
    """Whether the critic replaces rewards, instead of serving only as a baseline."""
    return row.estimator.startswith("n_step") or (row.estimator.startswith("gae") and row.estimator != "gae:1")


def _label(row: Measurement) -> str:
    name, _, number = row.estimator.partition(":")
    return _WEIGHTS[name].format(number)
