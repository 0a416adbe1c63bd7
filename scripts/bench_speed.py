"""
How fast training is, in environment steps (or updates) per second, beside Stable-Baselines3 and beside the environment alone.

    python scripts/bench_speed.py                        # all rows
    python scripts/bench_speed.py cartpole-8 cartpole-1 --rounds 9 --json speed.json
    python scripts/bench_speed.py --envs CartPole-v1 Pendulum-v1    # environments alone: SB3's and EnvPool's

All loops of a row live in one process and take turns, after a burn-in, so that whatever else the machine does hits them alike.
What counts is the ratio to SB3 (to DummyVecEnv) within a round, and of the ratios the median.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import A2C, DDPG, HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are no dependency of ours

from sb3_pg import HERDDPG, SVG0, VPG, NStepA2C
from sb3_pg.envs.envpool import EnvPoolVecEnv
from sb3_pg.zoo.runs import machine, versions

SEED = 0
UPDATE_EXPERIENCE = 10_000
# Environments, and steps of them all, in a round of `--envs`.
N_ENVS = 8
ENVS_STEPS = 8000


@dataclass(frozen=True)
class Row:
    """
    One comparison.

    :param title: what the table calls it
    :param env: id of the environment
    :param n_envs: number of environments
    :param steps: environment steps of a loop in one round
    :param theirs: SB3's algorithm
    :param their_options: its arguments beside policy and environment
    :param ours: our algorithm
    :param our_options: its arguments
    :param threads: threads of torch
    :param policy: name of the policy of both
    :param batch_size: with this, updates with minibatches of that size are counted, not steps: experience of
        ``UPDATE_EXPERIENCE`` steps is collected beforehand
    """

    title: str
    env: str
    n_envs: int
    steps: int
    theirs: type[BaseAlgorithm]
    their_options: dict[str, Any]
    ours: type[BaseAlgorithm]
    our_options: dict[str, Any]
    threads: int = 1
    policy: str = "MlpPolicy"
    batch_size: int | None = None


ONE_STEP = {"n_steps": 256, "advantage_estimator": "reward_to_go", "n_value_updates": 1}
SAME_NETWORKS = {"policy_kwargs": {"net_arch": [256, 256]}}
SB3_HER = {"replay_buffer_class": HerReplayBuffer, "policy_kwargs": {"net_arch": [256, 256, 256]}}
HER_FETCH = Row(
    "HERDDPG vs DDPG + HerReplayBuffer, FetchPush-v4, updates of 2048",
    "FetchPush-v4",
    1,
    20,
    DDPG,
    SB3_HER,
    HERDDPG,
    {},
    threads=2,
    policy="MultiInputPolicy",
    batch_size=2048,
)
ROWS = {
    "cartpole-8": Row("NStepA2C vs A2C, CartPole-v1", "CartPole-v1", 8, 8000, A2C, {}, NStepA2C, {}),
    "cartpole-1": Row("NStepA2C vs A2C, CartPole-v1", "CartPole-v1", 1, 2000, A2C, {}, NStepA2C, {}),
    "cheetah-8": Row("NStepA2C vs A2C, HalfCheetah-v5", "HalfCheetah-v5", 8, 4000, A2C, {}, NStepA2C, {}),
    "vpg-cartpole-8": Row(
        "VPG vs A2C, n_steps 256, CartPole-v1", "CartPole-v1", 8, 16384, A2C, {"n_steps": 256}, VPG, ONE_STEP
    ),
    "svg0-pendulum": Row(
        "SVG0 (TD(0)) vs DDPG, Pendulum-v1", "Pendulum-v1", 1, 600, DDPG, SAME_NETWORKS, SVG0, {"td_lambda": 0.0}, threads=2
    ),
    "her-fetch": HER_FETCH,
    "her-fetch-bf16": replace(HER_FETCH, title="the same, ours in bfloat16", our_options={"bf16": True}),
}


@dataclass(frozen=True)
class Speed:
    """
    What was measured of one row.

    :param steps_per_second: name of each loop -> its environment steps (or updates) per second in each round
    """

    steps_per_second: dict[str, list[float]]

    def median(self, name: str) -> float:
        """
        :param name: loop
        :return: median of its steps per second
        """
        return statistics.median(self.steps_per_second[name])

    def ratios(self, name: str, base: str = "SB3") -> list[float]:
        """
        :param name: loop
        :param base: another
        :return: speed of one relative to the other in each round
        """
        pairs = zip(self.steps_per_second[name], self.steps_per_second[base], strict=True)
        return [one / other for one, other in pairs]

    def ratio(self, name: str, base: str = "SB3") -> float:
        """
        :param name: loop
        :param base: another
        :return: median over the rounds of the speed of one relative to the other
        """
        return statistics.median(self.ratios(name, base))


def step_alone(env: VecEnv, steps: int) -> None:
    """
    Step the environments with random actions, drawn beforehand.

    :param env: environments
    :param steps: steps of all environments together
    """
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]
    for i in range(steps // env.num_envs):
        env.step(actions[i % len(actions)])


def loops_of(row: Row) -> dict[str, Callable[[], object]]:
    """
    :param row: comparison
    :return: name -> function that takes the row's number of environment steps
    """

    if row.env.startswith("Fetch"):
        import gymnasium_robotics  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, untyped

        gym.register_envs(gymnasium_robotics)

    def make(algorithm: type[BaseAlgorithm], options: dict[str, Any]) -> Callable[[], object]:
        env = make_vec_env(row.env, row.n_envs, seed=SEED)
        if row.batch_size is None:
            model: Any = algorithm(row.policy, env, seed=SEED, device="cpu", **options)
            return functools.partial(model.learn, row.steps)
        # Random actions, no update yet.
        options = {**options, "learning_starts": UPDATE_EXPERIENCE + 1}
        model = algorithm(row.policy, env, seed=SEED, device="cpu", **options)
        model.learn(UPDATE_EXPERIENCE)
        return functools.partial(model.train, row.steps, row.batch_size)

    loops = {"SB3": make(row.theirs, row.their_options), "sb3_pg": make(row.ours, row.our_options)}
    if row.batch_size is not None:
        return loops
    alone = make_vec_env(row.env, row.n_envs, seed=SEED)
    alone.action_space.seed(SEED)
    alone.reset()
    return {"environment": lambda: step_alone(alone, row.steps), **loops}


def measure(row: Row, rounds: int, tick: Callable[[], object]) -> Speed:
    """
    Let the loops of a row take turns.

    :param row: comparison
    :param rounds: number of rounds, after one that does not count
    :param tick: called after each round
    :return: what was measured
    """
    th.set_num_threads(row.threads)
    return take_turns(loops_of(row), row.steps, rounds, tick)


def take_turns(loops: Mapping[str, Callable[[], object]], steps: int, rounds: int, tick: Callable[[], object]) -> Speed:
    """
    :param loops: name -> function
    :param steps: what each of them counts for
    :param rounds: number of rounds, after one that does not count
    :param tick: called after each round
    :return: what was measured
    """
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(rounds + 1):
        for name, run in loops.items():
            start = time.perf_counter()
            run()
            if i > 0:
                speeds[name].append(steps / (time.perf_counter() - start))
        tick()
    return Speed(speeds)


def measure_environments(env_id: str, rounds: int, tick: Callable[[], object]) -> Speed:
    """
    Let the ways to step environments take turns, all with the statistics of a ``Monitor``.

    :param env_id: of the environment
    :param rounds: number of rounds, after one that does not count
    :param tick: called after each round
    :return: what was measured
    """
    envs: dict[str, VecEnv] = {
        "DummyVecEnv": make_vec_env(env_id, N_ENVS, seed=SEED),
        "SubprocVecEnv": make_vec_env(env_id, N_ENVS, seed=SEED, vec_env_cls=SubprocVecEnv),
        "EnvPoolVecEnv": EnvPoolVecEnv(env_id, N_ENVS, seed=SEED),
    }
    for env in envs.values():
        env.action_space.seed(SEED)
        env.reset()
    loops = {name: functools.partial(step_alone, env, ENVS_STEPS) for name, env in envs.items()}
    speed = take_turns(loops, ENVS_STEPS, rounds, tick)
    for env in envs.values():
        env.close()
    return speed


def markdown(rows: Sequence[Row], speeds: Sequence[Speed]) -> str:
    """
    :param rows: comparisons
    :param speeds: what was measured of each
    :return: table in Markdown
    """
    lines = [
        "| loop | environments | threads | SB3, per second | sb3_pg, per second | sb3_pg / SB3 | environment alone / SB3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, speed in zip(rows, speeds, strict=True):
        ratios = speed.ratios("sb3_pg")
        alone = f"{speed.ratio('environment'):.1f}" if "environment" in speed.steps_per_second else ""
        lines.append(
            f"| {row.title} | {row.n_envs} | {row.threads} | {speed.median('SB3'):,.0f} | {speed.median('sb3_pg'):,.0f} | "
            f"**{speed.ratio('sb3_pg'):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) | {alone} |"
        )
    return "\n".join(lines)


def environments_markdown(env_ids: Sequence[str], speeds: Sequence[Speed]) -> str:
    """
    :param env_ids: environments
    :param speeds: what was measured of each
    :return: table in Markdown
    """
    base, *others = speeds[0].steps_per_second
    lines = [f"| {N_ENVS} environments | {base}, per second | {' | '.join(others)} |", "|---" * (2 + len(others)) + "|"]
    for env_id, speed in zip(env_ids, speeds, strict=True):
        cells = []
        for name in others:
            ratios = speed.ratios(name, base)
            cells.append(f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {env_id} | {speed.median(base):,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Measure and print.

    :param arguments: command line, ``sys.argv`` by default
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(ROWS)}; all if none is named")
    parser.add_argument("--envs", nargs="+", metavar="ID", help="in place of rows: environments that EnvPool has, alone")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are {', '.join(ROWS)})")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.envs and args.rows:
        parser.error("either rows or --envs")
    names = args.envs or args.rows or list(ROWS)
    with tqdm(total=len(names) * (args.rounds + 1), unit="round", disable=not sys.stderr.isatty()) as bar:
        if args.envs:
            speeds = [measure_environments(env_id, args.rounds, bar.update) for env_id in names]
            print(environments_markdown(names, speeds))
        else:
            speeds = [measure(ROWS[name], args.rounds, bar.update) for name in names]
            print(markdown([ROWS[name] for name in names], speeds))
    circumstances = [machine(), ", ".join(f"{name} {version}" for name, version in versions().items())]
    print(f"\n{args.rounds} rounds, median (least to greatest ratio). " + "; ".join(circumstances))
    if args.json:
        figures = {name: speed.steps_per_second for name, speed in zip(names, speeds, strict=True)}
        args.json.write_text(json.dumps({"machine": machine(), "versions": versions(), "steps_per_second": figures}, indent=1))


if __name__ == "__main__":
    main()
