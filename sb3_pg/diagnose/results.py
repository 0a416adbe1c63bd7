"""Results of a measurement, as a table and as a CSV file."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sb3_pg.diagnose.moments import Interval


@dataclass(frozen=True)
class Measurement:
    """
    Properties of one estimator, and the settings of the measurement.

    :param env: name of the environment
    :param policy: name of the policy
    :param estimator: weight of the score function, VPG's ``advantage_estimator`` (``n_step:5``, ``gae:0.97``)
    :param baseline: ``baseline`` of VPG
    :param variance: ``tr Cov`` of an estimate; this and the next three with 95% bootstrap intervals
    :param snr: unbiased estimate of the signal-to-noise ratio ``|E x|^2 / tr Cov x`` (so it may be negative)
    :param cosine: mean cosine between an estimate and the reference gradient
    :param bias: distance between the mean estimate and the reference gradient, relative to the norm of the gradient
    :param gamma: discount factor
    :param discount_gradient: whether step t is weighted by ``gamma^t``
    :param n_episodes: episodes in an estimate
    :param n_batches: number of estimates
    :param steps: mean number of environment steps per estimate
    :param critic_steps: environment steps on which the critic was fitted for this measurement; 0 without critic
    :param critic_explained_variance: explained variance of the critic for the reward-to-go of held-out episodes, at most 1;
        ``None`` without critic
    :param reference_batches: number of estimates of the reference gradient
    :param reference_accuracy: estimated cosine between the reference and the true gradient
    :param seed: seed of the measurement
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
        """Explained variance of the critic in per cent; a dash without critic."""
        share = self.critic_explained_variance
        # Adding 0 turns minus zero into zero.
        return "-" if share is None else f"{round(share, 2) + 0.0:.0%}"

    def flat(self) -> Iterator[tuple[str, object]]:
        """Column names and values; an interval takes three columns."""
        for field in fields(self):
            value = getattr(self, field.name)
            yield field.name, value[0] if isinstance(value, Interval) else value
            if isinstance(value, Interval):
                yield from ((f"{field.name}_low", value.low), (f"{field.name}_high", value.high))


def sort_by_variance(measurements: Sequence[Measurement]) -> list[Measurement]:
    """
    :param measurements: the measurements
    :return: the measurements, highest variance first
    """
    return sorted(measurements, key=lambda m: m.variance.value, reverse=True)


def write_csv(measurements: Sequence[Measurement], path: Path) -> None:
    """
    Write a header and one line for each estimator, in the given order.

    :param measurements: one or more measurements
    :param path: file to write
    """
    rows = [dict(measurement.flat()) for measurement in measurements]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def describe_setup(measurements: Sequence[Measurement]) -> list[str]:
    """
    Describe the settings of the measurement.

    :param measurements: one or more measurements of the same call
    :return: lines on the common settings, the critic if there is one, and the reference gradient
    """
    one = measurements[0]
    discounts = f"gamma = {one.gamma:g}"
    if one.gamma < 1:
        discounts += ", with gamma^t before step t" if one.discount_gradient else ", without gamma^t before step t"
    lines = [
        f"{one.env}, {one.policy}, {discounts}",
        f"{one.n_batches} estimates per estimator, all from the same episodes: "
        f"{one.n_episodes} per estimate, {one.steps:.0f} steps on average",
    ]
    critics = [m for m in measurements if m.critic_explained_variance is not None]
    if critics:
        source = f"fitted on {critics[0].critic_steps} other steps" if critics[0].critic_steps else "as saved"
        if not critics[0].critic_steps and one.policy.startswith("new "):
            source = "untrained"
        lines.append(f"critic: {source}, explains {critics[0].explained} of the variance of the reward-to-go")
    lines.append(
        f"reference gradient: {one.reference_batches} estimates from other episodes, "
        f"cosine with the true gradient about {one.reference_accuracy:.3f}"
    )
    return lines


def format_table(measurements: Sequence[Measurement]) -> str:
    """
    :param measurements: one or more measurements
    :return: aligned table, highest variance first
    """
    lowest = min(m.variance.value for m in measurements)
    header = ("estimator", "baseline", "variance", "95% interval", "x lowest", "SNR", "cosine", "95% interval", "bias")
    rows = [header, *(_cells(measurement, lowest) for measurement in sort_by_variance(measurements))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    # Text is left-aligned, numbers are right-aligned.
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
    """Relative bias, or its upper bound if it does not differ significantly from zero."""
    if not math.isfinite(bias.high):
        return "?"
    return f"< {bias.high:.0%}" if bias.low == 0 else f"{bias.value:.0%} ({bias.low:.0%} to {bias.high:.0%})"
