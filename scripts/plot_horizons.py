"""
Draw what the look-ahead of the return does to learning: NStepA2C with k = 1, 5, 20 rewards and all to the end of the rollout.

    python scripts/plot_horizons.py --seeds 5 --output docs/images/horizons.png

Everything but k is the same, in both tasks. It takes about three minutes of one core.
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
from curves import Episodes, section_means
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are no dependency of ours

from sb3_pg import NStepA2C

FloatArray = npt.NDArray[np.float64]

TASKS = ("CartPole-v1", "Acrobot-v1")
HORIZONS: dict[str, int | None] = {"k = 1": 1, "k = 5": 5, "k = 20": 20, "k = ∞": None}
SETTINGS: dict[str, Any] = {"n_steps": 128, "gamma": 0.99, "learning_rate": 3e-3, "max_grad_norm": None}
N_ENVS = 8
# Seeds of results lie beyond those that chose the settings.
FIRST_SEED = 101
# A curve has that many points, each the mean reward of the training episodes that ended since the one before.
N_POINTS = 25


def learning_curve(task: str, return_steps: int | None, seed: int, n_timesteps: int) -> FloatArray:
    """
    Train once.

    :param task: id of the environment
    :param return_steps: the look-ahead
    :param seed: of everything
    :param n_timesteps: length of the training, in steps of all environments together
    :return: ``[N_POINTS]``, mean reward of the episodes of each section of the training
    """
    env = make_vec_env(task, n_envs=N_ENVS, seed=seed)
    episodes = Episodes()
    model = NStepA2C("MlpPolicy", env, return_steps=return_steps, seed=seed, device="cpu", **SETTINGS)
    model.learn(n_timesteps, callback=episodes)
    env.close()
    return section_means(np.array(episodes.steps), np.array(episodes.rewards), n_timesteps, N_POINTS)


def draw(curves: dict[str, dict[str, FloatArray]], n_timesteps: int, output: Path) -> None:
    """
    Draw an axes for each task, a curve for each horizon: median over the seeds, shaded from the lowest to the highest.

    :param curves: ``[S, N_POINTS]`` for each horizon of each task
    :param n_timesteps: as of :func:`learning_curve`
    :param output: picture to write; its ending chooses the format
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
    Tabulate the last fifth of the training.

    :param curves: as of :func:`draw`
    :return: median, lowest and highest over the seeds, for each task and horizon
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
    Train, draw and tabulate.

    :param arguments: of the command line; ``None``: those that the process was started with
    """
    parser = argparse.ArgumentParser(description="Draw learning curves of NStepA2C for several look-aheads of the return.")
    parser.add_argument("--seeds", type=int, default=5, help="number of trainings of each (default: 5)")
    parser.add_argument("--n-timesteps", type=int, default=100_000, help="environment steps of each (default: 100000)")
    parser.add_argument("--output", type=Path, default=Path("horizons.png"), help="picture (default: horizons.png)")
    args = parser.parse_args(arguments)
    if args.seeds < 1 or args.n_timesteps < 1:
        parser.error("--seeds and --n-timesteps must be at least 1")
    mpl.use("agg")
    th.set_num_threads(1)
    curves: dict[str, dict[str, FloatArray]] = {}
    with tqdm(total=len(TASKS) * len(HORIZONS) * args.seeds, unit="training") as progress:
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
