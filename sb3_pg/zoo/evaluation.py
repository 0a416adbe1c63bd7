"""
Evaluate the final model of a run of the zoo: deterministic actions, whole episodes, unnormalised rewards.

    python -m sb3_pg.zoo.evaluation logs/vpg/CartPole-v1_1 --episodes 20
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pg.zoo.patches import register


def read_arguments(run: Path) -> tuple[Path, dict[str, Any]]:
    """
    Read the command-line arguments of a run.

    :param run: Log folder of the run.
    :return: The folder with its settings, and its arguments.
    :raises ValueError: The folder was not written by the zoo.
    """
    found = sorted(run.glob("*/args.yml"))
    if len(found) != 1:
        raise ValueError(f"{run} is not the log folder of a run: expected one */args.yml in it, found {len(found)}")
    # The zoo stores Python objects in this file and reads them the same way. Like models, it must come from a trusted source.
    arguments: dict[str, Any] = dict(yaml.load(found[0].read_text(), Loader=yaml.UnsafeLoader))
    return found[0].parent, arguments


def evaluate(run: Path, episodes: int, seed: int) -> list[float]:
    """
    Run episodes with the final model of a run, in the environment it was trained in, wrappers and normalisation included.

    :param run: Log folder of the run.
    :param episodes: Number of episodes.
    :param seed: Seed of the environment.
    :return: Undiscounted return of each episode.
    :raises ValueError: The folder holds no finished run.
    """
    settings, arguments = read_arguments(run)
    model_path = run / f"{settings.name}.zip"
    if not model_path.is_file():
        raise ValueError(f"{run} holds no {model_path.name}: the training did not finish")
    for package in arguments["gym_packages"]:
        importlib.import_module(package)  # registers environments
    hyperparams, stats_path = get_saved_hyperparams(str(settings), test_mode=True)
    env_kwargs = hyperparams.pop("env_kwargs", {}) | (arguments["env_kwargs"] or {})
    env = create_test_env(
        str(arguments["env"]),
        stats_path=stats_path,
        seed=seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
    )
    model = ALGOS[arguments["algo"]].load(model_path, device="cpu")
    rewards, _ = evaluate_policy(model, env, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True)
    env.close()
    assert isinstance(rewards, list)
    return rewards


def main() -> None:
    """Print the mean and the standard deviation over the episodes."""
    parser = argparse.ArgumentParser(description="Evaluate the final model of a run of the zoo.")
    parser.add_argument("run", type=Path, help="log folder of the run, for example logs/vpg/CartPole-v1_1")
    parser.add_argument("--episodes", type=int, default=20, help="number of episodes (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=1_000_000, help="seed of the environment (default: one that no training run uses)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the rewards of the episodes to this file, as a list"
    )
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1, not {args.episodes}")
    register()
    try:
        rewards = evaluate(args.run, args.episodes, args.seed)
    except ValueError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    if args.json:
        args.json.write_text(json.dumps([float(reward) for reward in rewards]))
    print(
        f"Evaluation ({len(rewards)} episodes): mean reward {np.mean(rewards):.2f}, standard deviation {np.std(rewards):.2f}"
    )


if __name__ == "__main__":
    main()
