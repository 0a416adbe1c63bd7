"""
Plot the success rates of evaluations of the zoo's runs: one panel per environment, one line per run.

    python scripts/plot_success.py logs/her_ddpg/FetchPush-v4_1 logs/her_ddpg/FetchPush-v4_2 --output success.png
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Curve = tuple[FloatArray, FloatArray]


def read_run(run: Path) -> Curve:
    """
    :param run: log folder of a run
    :return: ``[K]`` environment steps at each evaluation, ``[K]`` success rate of its episodes
    :raises ValueError: the folder contains no evaluations with success rates
    """
    path = run / "evaluations.npz"
    if not path.is_file():
        raise ValueError(f"{run} holds no evaluations.npz: train with --eval-freq")
    with np.load(path) as log:
        if "successes" not in log:
            raise ValueError(f"{path} contains no success rates: the infos of the environment need 'is_success'")
        return log["timesteps"].astype(float), log["successes"].mean(axis=1)


def group(runs: Sequence[Path]) -> dict[str, list[Curve]]:
    """
    :param runs: log folders, named ``environment_number`` by the zoo
    :return: environment -> curves of its runs, in the given order
    :raises ValueError: a log folder cannot be read
    """
    groups: dict[str, list[Curve]] = {}
    for run in runs:
        groups.setdefault(run.name.rpartition("_")[0] or run.name, []).append(read_run(run))
    return groups


def draw(groups: Mapping[str, Sequence[Curve]], output: Path) -> None:
    """
    :param groups: environment -> curves of its runs
    :param output: file to write; the suffix selects the format
    """
    figure, grid = plt.subplots(1, len(groups), figsize=(4 * max(len(groups), 1.6), 3.6), layout="constrained", squeeze=False)
    for axes, (env, curves) in zip(grid.flat, groups.items(), strict=True):
        for steps, rates in curves:
            axes.plot(steps, rates, marker=".", linewidth=1.5)
        axes.set_title(f"{env}, {len(curves)} runs")
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        axes.set_xlim(left=0)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("success rate of the evaluation")
    figure.savefig(output, dpi=150)
    plt.close(figure)


def main() -> None:
    """Plot the runs."""
    parser = argparse.ArgumentParser(description="Plot the success rates of the evaluations of runs of the zoo.")
    parser.add_argument("runs", type=Path, nargs="+", help="log folders, for example logs/her_ddpg/FetchPush-v4_1")
    parser.add_argument("-o", "--output", type=Path, required=True, help="figure to write")
    args = parser.parse_args()
    try:
        groups = group([run.resolve() for run in args.runs])
    except ValueError as error:
        sys.exit(f"plot_success.py: {error}")
    mpl.use("agg")
    draw(groups, args.output)
    print(f"Success rates: {args.output}")


if __name__ == "__main__":
    main()
