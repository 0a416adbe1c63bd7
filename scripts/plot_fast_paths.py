"""
Draw learning curves of the fast paths beside those of the reference, and of updates in bfloat16.

    python scripts/plot_fast_paths.py --seeds 5 --output docs/images/fast_paths.png

The reference is plain PyTorch, as with SB3_PG_FAST=0. It takes about 20 minutes of one core.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch as th
from curves import EpisodeRecorder, section_means
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are no dependency of ours

from sb3_pg import HERDDPG, SVG0, NStepA2C, fast

FloatArray = npt.NDArray[np.float64]

# Seeds of results lie beyond those that chose the settings.
FIRST_SEED = 101
# A curve has that many points, each the mean reward of the training episodes that ended since the one before.
N_POINTS = 20


@dataclass(frozen=True, eq=False)
class Task:
    """
    What is trained.

    :param env: id of the environment
    :param algorithm: class
    :param n_timesteps: length of a training run, in steps of all environments together
    :param n_envs: number of environments
    :param options: arguments of the algorithm beside policy and environment
    :param bf16: whether the algorithm has updates in bfloat16
    :param policy: name of the policy
    """

    env: str
    algorithm: type[BaseAlgorithm]
    n_timesteps: int
    n_envs: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    bf16: bool = True
    policy: str = "MlpPolicy"

    @property
    def title(self) -> str:
        """Algorithm and environment."""
        return f"{self.algorithm.__name__}, {self.env}"

    @property
    def kinds(self) -> list[str]:
        """Ways to compute the same."""
        return ["reference", "fast", *(["bfloat16"] if self.bf16 else [])]


TASKS = (
    Task("CartPole-v1", NStepA2C, 60_000, 8, {"n_steps": 16, "gae_lambda": 0.95, "learning_rate": 1e-3}, bf16=False),
    Task("Pendulum-v1", SVG0, 8_000, 1, {"learning_starts": 1000, "gamma": 0.98}),
    Task("FetchReach-v4", HERDDPG, 4_000, 1, {"batch_size": 256}, policy="MultiInputPolicy"),
)


def learning_curve(task: Task, kind: str, seed: int) -> FloatArray:
    """
    Train once.

    :param task: what to train
    :param kind: ``"reference"``, ``"fast"`` or ``"bfloat16"``
    :param seed: of everything
    :return: ``[N_POINTS]``, mean reward of the episodes of each section of the training
    """
    env = make_vec_env(task.env, task.n_envs, seed=seed)
    options = {**task.options, "bf16": True} if kind == "bfloat16" else task.options
    model = task.algorithm(task.policy, env, seed=seed, device="cpu", **options)
    episodes = EpisodeRecorder()
    with fast.disabled() if kind == "reference" else nullcontext():
        model.learn(task.n_timesteps, callback=episodes)
    env.close()
    return section_means(np.array(episodes.steps), np.array(episodes.rewards), task.n_timesteps, N_POINTS)


def draw(curves: dict[Task, dict[str, FloatArray]], output: Path) -> None:
    """
    Draw an axes for each task: thin lines for the seeds, a thick one for their median.

    :param curves: ``[S, N_POINTS]`` for each kind of each task
    :param output: picture to write; its ending chooses the format
    """
    figure, axes_of_tasks = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.6), layout="constrained", squeeze=False)
    for axes, (task, kinds) in zip(axes_of_tasks[0], curves.items(), strict=True):
        steps = np.linspace(0, task.n_timesteps, N_POINTS + 1)[1:]
        for number, (kind, rewards) in enumerate(kinds.items()):
            axes.plot(steps, rewards.T, color=f"C{number}", linewidth=0.7, alpha=0.35)
            axes.plot(steps, np.median(rewards, axis=0), color=f"C{number}", linewidth=2, label=kind)
        axes.set_title(task.title)
        axes.set_xlabel("environment steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    axes_of_tasks[0][0].set_ylabel("reward per episode: seeds and their median")
    figure.savefig(output, dpi=150)
    plt.close(figure)


def table(curves: dict[Task, dict[str, FloatArray]]) -> str:
    """
    Tabulate the last fifth of the training.

    :param curves: as of :func:`draw`
    :return: median over the seeds, and all of them, for each task and kind
    """
    lines = ["| training run | path | median | all seeds |", "|---|---|---|---|"]
    for task, kinds in curves.items():
        for kind, rewards in kinds.items():
            last = rewards[:, -(N_POINTS // 5) :].mean(axis=1)
            lines.append(f"| {task.title} | {kind} | {np.median(last):.4g} | {', '.join(f'{value:.4g}' for value in last)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, tasks: Sequence[Task] = TASKS) -> None:
    """
    Train, draw and tabulate.

    :param arguments: of the command line; ``None``: those that the process was started with
    :param tasks: what to train
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of training runs of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("fast_paths.png"), help="picture (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    mpl.use("agg")
    th.set_num_threads(1)
    if any(task.env.startswith("Fetch") for task in tasks):
        import gymnasium_robotics  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, untyped

        gym.register_envs(gymnasium_robotics)
    curves: dict[Task, dict[str, FloatArray]] = {}
    with tqdm(total=sum(len(task.kinds) for task in tasks) * args.seeds, unit="run") as progress:
        for task in tasks:
            curves[task] = {}
            for kind in task.kinds:
                rows = []
                for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
                    rows.append(learning_curve(task, kind, seed))
                    progress.update()
                curves[task][kind] = np.stack(rows)
    draw(curves, args.output)
    print(table(curves), f"\n\nLearning curves: {args.output}")


if __name__ == "__main__":
    main()
