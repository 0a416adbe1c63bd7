"""What a measurement says, as a row of a table and of a CSV file."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sb3_pg.diagnose.moments import Interval


@dataclass(frozen=True)
class Measurement:
    """
    What was measured of one estimator, and under which circumstances.

    :param env: environment
    :param policy: policy
    :param estimator: weight of the score function, VPG's ``advantage_estimator`` (``n_step:5``, ``gae:0.97``)
    :param baseline: VPG's ``baseline``
    :param variance: ``tr Cov`` of an estimate, with its 95% bootstrap interval, like all that follow
    :param snr: signal-to-noise ratio ``|E x|^2 / tr Cov x``, estimated without bias (so it may come out negative)
    :param cosine: mean cosine between an estimate and the reference gradient
    :param bias: distance of the mean estimate from the reference gradient, in units of the gradient's length
    :param gamma: discount factor
    :param discount_gradient: whether step t is weighed by ``gamma^t``
    :param n_episodes: episodes in an estimate
    :param n_batches: number of estimates
    :param steps: environment steps in an estimate, on average
    :param critic_steps: environment steps that the critic was fitted on for this measurement; 0 without critic
    :param critic_explained_variance: share of the variance of the reward-to-go of other episodes that the critic explains,
        1 at best; ``None`` without critic
    :param reference_batches: batches of the reference
    :param reference_accuracy: estimated cosine between the reference and the gradient it stands for
    :param seed: seed
    """

    env: str
    policy: str
    estimator: str
    baseline: str
    variance: Interval
    snr: Interval
    cosine: Interval
    bias: Interval
    gamma: float
    discount_gradient: bool
    n_episodes: int
    n_batches: int
    steps: float
    critic_steps: int
    critic_explained_variance: float | None
    reference_batches: int
    reference_accuracy: float
    seed: int

    @property
    def explained(self) -> str:
        """What the critic explains, in per cent; a dash without critic."""
        share = self.critic_explained_variance
        # Adding 0 makes a zero of minus zero.
        return "-" if share is None else f"{round(share, 2) + 0.0:.0%}"

    def flat(self) -> Iterator[tuple[str, object]]:
        """Column name and value, an interval as three columns."""
        for field in fields(self):
            value = getattr(self, field.name)
            yield field.name, value[0] if isinstance(value, Interval) else value
            if isinstance(value, Interval):
                yield from ((f"{field.name}_low", value.low), (f"{field.name}_high", value.high))


def by_variance(measurements: Sequence[Measurement]) -> list[Measurement]:
    """
    :param measurements: any number
    :return: the same, those with the highest variance first
    """
    return sorted(measurements, key=lambda m: m.variance.value, reverse=True)


def write_csv(measurements: Sequence[Measurement], path: Path) -> None:
    """
    Write one line for each estimator, in the order given, under a line of column names.

    :param measurements: one or more
    :param path: file to write
    """
    rows = [dict(measurement.flat()) for measurement in measurements]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def circumstances(measurements: Sequence[Measurement]) -> list[str]:
    """
    Say under which circumstances was measured.

    :param measurements: one or more of the same call
    :return: what applies to all, the critic if there is one, the reference
    """
    one = measurements[0]
    discounts = f"gamma = {one.gamma:g}"
    if one.gamma < 1:
        discounts += ", with gamma^t before step t" if one.discount_gradient else ", without gamma^t before step t"
    lines = [
        f"{one.env}, {one.policy}, {discounts}",
        f"{one.n_batches} estimates by each estimator, all from the same episodes: "
        f"{one.n_episodes} to an estimate, {one.steps:.0f} steps on average",
    ]
    critics = [m for m in measurements if m.critic_explained_variance is not None]
    if critics:
        source = f"fitted on {critics[0].critic_steps} other steps" if critics[0].critic_steps else "as it is in the file"
        if not critics[0].critic_steps and one.policy.startswith("new "):
            source = "untrained"
        lines.append(f"critic: {source}, explains {critics[0].explained} of the variance of the reward-to-go")
    lines.append(
        f"reference gradient: {one.reference_batches} estimates from other episodes, "
        f"cosine to the gradient itself about {one.reference_accuracy:.3f}"
    )
    return lines


def format_table(measurements: Sequence[Measurement]) -> str:
    """
    :param measurements: one or more
    :return: aligned table, the highest variance first
    """
    lowest = min(m.variance.value for m in measurements)
    header = ("estimator", "baseline", "variance", "95% interval", "x lowest", "SNR", "cosine", "95% interval", "bias")
    rows = [header, *(_cells(measurement, lowest) for measurement in by_variance(measurements))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    # Words to the left, numbers to the right.
    lines = [
        "  ".join(
            f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _cells(m: Measurement, lowest: float) -> tuple[str, ...]:
    return (
        m.estimator,
        m.baseline,
        f"{m.variance.value:.4g}",
        f"{m.variance.low:.4g} to {m.variance.high:.4g}",
        f"{m.variance.value / lowest:.1f}" if lowest > 0 else "-",
        f"{m.snr.value:.3f}",
        f"{m.cosine.value:.2f}",
        f"{m.cosine.low:.2f} to {m.cosine.high:.2f}",
        _format_bias(m.bias),
    )


def _format_bias(bias: Interval) -> str:
    """Relative bias, or what it stays below if it cannot be told from zero."""
    if not math.isfinite(bias.high):
        return "?"
    return f"< {bias.high:.0%}" if bias.low == 0 else f"{bias.value:.0%} ({bias.low:.0%} to {bias.high:.0%})"
