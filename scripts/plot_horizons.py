"""
Plot the effect of the look-ahead on learning: NStepA2C with k = 1, 5, 20 rewards, and with all to the end of the rollout.

    python scripts/plot_horizons.py --seeds 5 --output docs/images/horizons.png

All other settings are equal in both tasks. It takes about three minutes on one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch as th
from curves import EpisodeRecorder, section_means
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm  # type: ignore[import-untyped]  # no stubs installed

from sb3_pg import NStepA2C

FloatArray = npt.NDArray[np.float64]

TASKS = ("CartPole-v1", "Acrobot-v1")
HORIZONS: dict[str, int | None] = {"k = 1": 1, "k = 5": 5, "k = 20": 20, "k = ∞": None}
SETTINGS: dict[str, Any] = {"n_steps": 128, "gamma": 0.99, "learning_rate": 3e-3, "max_grad_norm": None}
N_ENVS = 8
# Seeds for results, beyond those used to choose the settings.
FIRST_SEED = 101
# Points of a curve, each the mean reward of the training episodes since the previous point.
N_POINTS = 25


def learning_curve(task: str, return_steps: int | None, seed: int, n_timesteps: int) -> FloatArray:
    """
    Train once.

    :param task: id of the environment
    :param return_steps: look-ahead of the return
    :param seed: seed of environments and algorithm
    :param n_timesteps: number of training steps, all environments together
    :return: ``[N_POINTS]``, mean reward of the episodes of each section of training
    """
    env = make_vec_env(task, n_envs=N_ENVS, seed=seed)
    episodes = EpisodeRecorder()
    model = NStepA2C("MlpPolicy", env, return_steps=return_steps, seed=seed, device="cpu", **SETTINGS)
    model.learn(n_timesteps, callback=episodes)
    env.close()
    return section_means(np.array(episodes.steps), np.array(episodes.rewards), n_timesteps, N_POINTS)


def draw(curves: dict[str, dict[str, FloatArray]], n_timesteps: int, output: Path) -> None:
    """
    Plot one panel per task and one curve per horizon: the median over the seeds, shaded from the lowest to the highest.

    :param curves: task -> horizon -> rewards ``[S, N_POINTS]``
    :param n_timesteps: number of training steps
    :param output: file to write; the suffix selects the format
    """
    figure, axes_of_tasks = plt.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.8), layout="constrained")
    steps = np.linspace(0, n_timesteps, N_POINTS + 1)[1:]
    for axes, (task, horizons) in zip(axes_of_tasks, curves.items(), strict=True):
        for number, (label, rewards) in enumerate(horizons.items()):
            axes.plot(steps, np.median(rewards, axis=0), color=f"C{number}", linewidth=2, label=label)
            axes.fill_between(steps, rewards.min(axis=0), rewards.max(axis=0), color=f"C{number}", alpha=0.2, linewidth=0)
        axes.set_title(task)
        axes.set_xlabel("environment steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    n_seeds = len(next(iter(next(iter(curves.values())).values())))
    figure.supylabel(f"reward per episode: median and range of {n_seeds} seeds", fontsize="medium")
    figure.legend(*axes_of_tasks[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def table(curves: dict[str, dict[str, FloatArray]]) -> str:
    """
    Tabulate the last fifth of training.

    :param curves: task -> horizon -> rewards ``[S, N_POINTS]``
    :return: Markdown table of median, lowest and highest over the seeds, for each task and horizon
    """
    lines = ["| task | k | median | lowest | highest |", "|---|---|---|---|---|"]
    for task, horizons in curves.items():
        for label, rewards in horizons.items():
            last = rewards[:, -(N_POINTS // 5) :].mean(axis=1)
            numbers = " | ".join(f"{value:.0f}" for value in (np.median(last), last.min(), last.max()))
            lines.append(f"| {task} | {label.removeprefix('k = ')} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Train, plot and tabulate.

    :param arguments: command-line arguments; ``None``: ``sys.argv[1:]``
    """
    parser = argparse.ArgumentParser(description="Plot learning curves of NStepA2C for several look-aheads of the return.")
    parser.add_argument("--seeds", type=int, default=5, help="number of training runs per curve (default: 5)")
    parser.add_argument(
        "--n-timesteps", type=int, default=100_000, help="environment steps per training run (default: 100000)"
    )
    parser.add_argument("--output", type=Path, default=Path("horizons.png"), help="figure to write (default: horizons.png)")
    args = parser.parse_args(arguments)
    if args.seeds < 1 or args.n_timesteps < 1:
        parser.error("--seeds and --n-timesteps must be at least 1")
    mpl.use("agg")
    th.set_num_threads(1)
    curves: dict[str, dict[str, FloatArray]] = {}
    with tqdm(total=len(TASKS) * len(HORIZONS) * args.seeds, unit="run") as progress:
        for task in TASKS:
            curves[task] = {}
            for label, return_steps in HORIZONS.items():
                rows = []
                for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                    rows.append(learning_curve(task, return_steps, seed, args.n_timesteps))
                    progress.update()
                curves[task][label] = np.stack(rows)
    draw(curves, args.n_timesteps, args.output)
    print(table(curves), f"\n\nLearning curves: {args.output}")


if __name__ == "__main__":
    main()
