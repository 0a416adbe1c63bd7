"""
Ablation of HERDDPG: one part is switched off at a time; SB3's DDPG with its HerReplayBuffer for comparison.

    python scripts/her_ablation.py run -o results/her_ablation --seeds 5
    python scripts/her_ablation.py run -o results/her_strategies --task bits --seeds 5
    python scripts/her_ablation.py table results/her_ablation
    python scripts/her_ablation.py plot results/her_ablation -o docs/images/her_ablation.png

``--task reach`` is FetchReach-v4. ``--task bits`` flips bits with continuous actions (SB3's BitFlippingEnv) and compares the
goal selection strategies. Finished runs are not repeated.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when torch is imported: small networks are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pg import HERDDPG

# Seeds of the evaluation, beyond those of any training run.
EVALUATION_SEED = 1_000_000
N_EVAL_ENVS = 5
BITS = 10

REACH: dict[str, dict[str, Any]] = {
    "all parts": {},
    "no normaliser": {"normalize_inputs": False},
    "no target clipping": {"reward_range": None},
    "no action penalty": {"action_l2": 0.0},
    "no random actions": {"random_eps": 0.0},
    "targets at every step, tau 0.05": {"target_update": "step"},
    "targets at every step, tau 0.005": {"target_update": "step", "tau": 0.005},
    "no hindsight": {"replay_buffer_kwargs": {"n_sampled_goal": 0}},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    name: {"replay_buffer_kwargs": {"goal_selection_strategy": name}} for name in ("future", "final", "episode", "random")
} | {"none": {"replay_buffer_kwargs": {"n_sampled_goal": 0}}}


def make_env(task: str, n_envs: int, seed: int) -> VecEnv:
    """
    :param task: ``"reach"`` or ``"bits"``
    :param n_envs: number of environments
    :param seed: seed of the first environment
    :return: the environments
    """

    def make() -> gym.Env[Any, Any]:
        if task == "bits":
            return Monitor(BitFlippingEnv(n_bits=BITS, continuous=True))
        import gymnasium_robotics  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, untyped

        gym.register_envs(gymnasium_robotics)
        return Monitor(gym.make("FetchReach-v4"))

    env = DummyVecEnv([make] * n_envs)
    env.seed(seed)
    return env


def make_sb3(env: VecEnv, seed: int) -> BaseAlgorithm:
    """
    :param env: training environments
    :param seed: seed of the algorithm
    :return: SB3's DDPG with hindsight, configured as in its documentation
    """
    return DDPG(
        "MultiInputPolicy",
        env,
        learning_starts=200,
        gamma=0.98,
        action_noise=NormalActionNoise(np.zeros(env.action_space.shape), np.full(env.action_space.shape, 0.2)),  # type: ignore[arg-type]  # a Box
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        policy_kwargs={"net_arch": [256, 256, 256]},
        seed=seed,
        device="cpu",
    )


def variants(task: str) -> dict[str, Callable[[VecEnv, int], BaseAlgorithm]]:
    """
    :param task: ``"reach"`` or ``"bits"``
    :return: name -> function of environments and seed that creates the model
    """
    # Episodes are short: ten of them are as many steps per cycle as with FetchReach.
    bits = {"terminate_on_success": True, "train_freq": (10, "episode")}
    base: dict[str, Any] = {"device": "cpu"} | (bits if task == "bits" else {})

    def ours(options: dict[str, Any]) -> Callable[[VecEnv, int], BaseAlgorithm]:
        return lambda env, seed: HERDDPG("MultiInputPolicy", env, seed=seed, **{**base, **options})

    table = {name: ours(options) for name, options in (STRATEGIES if task == "bits" else REACH).items()}
    return table | {"SB3: DDPG + HerReplayBuffer": make_sb3}


def success_rate(model: BaseAlgorithm, env: VecEnv, n_episodes: int) -> float:
    """
    :param model: model, which acts deterministically
    :param env: evaluation environments
    :param n_episodes: minimum number of episodes
    :return: share of episodes whose last step is a success
    """
    obs = env.reset()
    results: list[float] = []
    while len(results) < n_episodes:
        actions, _ = model.predict(obs, deterministic=True)  # type: ignore[arg-type]  # a dictionary
        obs, _, dones, infos = env.step(actions)
        results += [float(info["is_success"]) for info, done in zip(infos, dones, strict=True) if done]
    return float(np.mean(results))


class Curve(BaseCallback):
    """
    Evaluate at regular intervals.

    :param env: evaluation environments
    :param every: number of steps between two evaluations
    """

    def __init__(self, env: VecEnv, every: int) -> None:
        super().__init__()
        self.env, self.every = env, every
        self.steps: list[int] = []
        self.rates: list[float] = []

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.every * (len(self.steps) + 1):
            self.steps.append(self.num_timesteps)
            self.rates.append(success_rate(self.model, self.env, 20))
        return True


def run_one(task: str, name: str, seed: int, n_timesteps: int) -> dict[str, Any]:
    """
    :param task: ``"reach"`` or ``"bits"``
    :param name: name of the variant
    :param seed: seed of the training run
    :param n_timesteps: number of training steps
    :return: the result
    """
    env, eval_env = make_env(task, 1, seed), make_env(task, N_EVAL_ENVS, EVALUATION_SEED + seed)
    model, curve = variants(task)[name](env, seed), Curve(eval_env, n_timesteps // 10)
    began = time.monotonic()
    model.learn(n_timesteps, curve)
    seconds = time.monotonic() - began
    final = success_rate(model, eval_env, 50)
    env.close()
    eval_env.close()
    settings = {"task": task, "variant": name, "seed": seed, "n_timesteps": n_timesteps}
    return {**settings, "success": final, "steps": curve.steps, "curve": curve.rates, "seconds": round(seconds, 1)}


def run(args: argparse.Namespace) -> None:
    """
    :param args: arguments of the command ``run``
    """
    args.output.mkdir(parents=True, exist_ok=True)
    n_timesteps = args.n_timesteps or {"reach": 5000, "bits": 4000}[args.task]
    chosen = args.variants or list(variants(args.task))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in chosen:
            path = args.output / f"{args.task}-{name.replace(' ', '_').replace(':', '')}-{n_timesteps}-{seed}.json"
            if not path.exists():
                result = run_one(args.task, name, seed, n_timesteps) | {
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores"
                }
                # Renamed into place: the result is either complete or missing.
                part = path.with_suffix(".part")
                part.write_text(json.dumps(result))
                part.replace(path)
                print(f"{name}, seed {seed}: {result['success']:.2f} in {result['seconds']} s", flush=True)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """
    :param folder: output folder of ``run``
    :return: variant -> results sorted by seed, in the order of the tables above
    :raises ValueError: there are no results
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise ValueError(f"no results in {folder}")
    names = dict.fromkeys([*variants(results[0]["task"]), *(result["variant"] for result in results)])
    groups = {name: sorted((r for r in results if r["variant"] == name), key=lambda r: int(r["seed"])) for name in names}
    return {name: group for name, group in groups.items() if group}


def table(args: argparse.Namespace) -> None:
    """
    :param args: arguments of the command ``table``
    """
    print("| variant | median | lowest | highest | seeds |\n|---|---|---|---|---|")
    for name, group in read(args.results).items():
        rates = [result["success"] for result in group]
        print(f"| {name} | {np.median(rates):.2f} | {min(rates):.2f} | {max(rates):.2f} | {len(rates)} |")


def plot(args: argparse.Namespace) -> None:
    """
    :param args: arguments of the command ``plot``
    """
    mpl.use("Agg")
    groups = read(args.results)
    n_columns = 3
    n_rows = -(-len(groups) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(10, 2.4 * n_rows), sharex=True, sharey=True, squeeze=False)
    reference = next(iter(groups.values()))
    for axis, (name, group) in zip(axes.flat, groups.items(), strict=False):
        for results, colour in ((reference, "0.8"), (group, "C0")):
            for result in results:
                axis.plot(result["steps"], result["curve"], color=colour, lw=1)
            steps = results[0]["steps"]
            axis.plot(steps, np.median([result["curve"] for result in results], axis=0), color=colour, lw=2.5)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(-0.03, 1.03)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    figure.supxlabel("environment steps")
    figure.supylabel("success rate")
    figure.tight_layout()
    figure.savefig(args.output, dpi=120)


def main() -> None:
    """Parse the command line, and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="train and evaluate")
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--task", choices=["reach", "bits"], default="reach")
    command.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    command.add_argument("--first-seed", type=int, default=101)
    command.add_argument("-n", "--n-timesteps", type=int)
    command.add_argument("--variants", nargs="*", help="names of the variants (default: all)")
    command.set_defaults(function=run)
    command = commands.add_parser("table", help="print a table of final success rates")
    command.add_argument("results", type=Path)
    command.set_defaults(function=table)
    command = commands.add_parser("plot", help="plot the success rates during training, with those of all parts in grey")
    command.add_argument("results", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.set_defaults(function=plot)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
