"""
Plot the learning curve of a run of the zoo: rewards of training episodes and evaluations over environment steps.

    python scripts/plot_learning_curve.py logs/vpg/CartPole-v1_1 --output curve.png
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LearningCurve:
    """
    Rewards logged by a run.

    :param steps: ``[E]`` environment steps at the end of each training episode, all environments together.
    :param rewards: ``[E]`` undiscounted return of each training episode.
    :param eval_steps: ``[K]`` environment steps at each evaluation; empty if there was none.
    :param eval_rewards: ``[K, M]`` undiscounted returns of the M episodes of each evaluation.
    """

    steps: FloatArray
    rewards: FloatArray
    eval_steps: FloatArray
    eval_rewards: FloatArray


def read_run(run: Path) -> LearningCurve:
    """
    Read the monitor files and, if it exists, the evaluation log.

    :param run: Log folder of the run.
    :return: The logged rewards.
    :raises ValueError: The folder contains no finished training episode.
    """
    try:
        episodes = load_results(str(run))
    except LoadMonitorResultsError as error:
        raise ValueError(f"{run} is not the log folder of a run: {error}") from error
    if episodes.empty:
        raise ValueError(f"{run} holds no finished training episode")
    eval_steps, eval_rewards = np.empty(0), np.empty((0, 1))
    if (run / "evaluations.npz").is_file():
        with np.load(run / "evaluations.npz") as log:
            eval_steps, eval_rewards = log["timesteps"].astype(float), log["results"].astype(float)
    return LearningCurve(
        steps=episodes["l"].to_numpy(float).cumsum(),
        rewards=episodes["r"].to_numpy(float),
        eval_steps=eval_steps,
        eval_rewards=eval_rewards,
    )


def running_mean(values: FloatArray, window: int) -> FloatArray:
    """
    Compute a running mean over the preceding values.

    :param values: ``[E]``, the values.
    :param window: Number of values to average, fewer near the start.
    :return: ``[E]``, the means.
    """
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: FloatArray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def title_of(run: Path) -> str:
    """
    Derive the title from the folder name ``algorithm/environment_number``.

    :param run: Log folder of the run.
    :return: Title of the figure.
    """
    environment, _, number = run.name.rpartition("_")
    return f"{run.parent.name.upper()} on {environment}" if environment and number.isdigit() else run.name


def draw(curve: LearningCurve, title: str, output: Path, window: int) -> None:
    """
    Draw the figure and save it.

    :param curve: The logged rewards.
    :param title: Title of the figure.
    :param output: File to write; the suffix selects the format.
    :param window: Number of training episodes in the running mean.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(curve.steps, curve.rewards, ".", color="0.6", markersize=3, alpha=0.6, label="training episode", rasterized=True)
    label = f"mean of the last {window}"
    axes.plot(curve.steps, running_mean(curve.rewards, window), color="C0", linewidth=2, label=label)
    if len(curve.eval_steps):
        mean, low, high = (reduce(curve.eval_rewards, axis=1) for reduce in (np.mean, np.min, np.max))
        label = f"evaluation: mean, lowest and highest of {curve.eval_rewards.shape[1]} episodes"
        axes.errorbar(curve.eval_steps, mean, yerr=(mean - low, high - mean), color="C3", marker="o", capsize=3, label=label)
    axes.set_title(title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("reward per episode (undiscounted sum)")
    axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False, fontsize="small", columnspacing=1)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def main() -> None:
    """Plot one run."""
    parser = argparse.ArgumentParser(description="Plot the learning curve of a run of the zoo.")
    parser.add_argument("run", type=Path, help="log folder of the run, for example logs/vpg/CartPole-v1_1")
    parser.add_argument("-o", "--output", type=Path, help="figure to write (default: learning_curve.png in the log folder)")
    parser.add_argument("--window", type=int, default=50, help="training episodes in the running mean (default: 50)")
    args = parser.parse_args()
    if args.window < 1:
        parser.error(f"--window must be at least 1, not {args.window}")
    run = args.run.resolve()
    output = args.output or run / "learning_curve.png"
    try:
        curve = read_run(run)
    except ValueError as error:
        sys.exit(f"plot_learning_curve.py: {error}")
    mpl.use("agg")
    draw(curve, title_of(run), output, args.window)
    print(f"Learning curve: {output}")


if __name__ == "__main__":
    main()
