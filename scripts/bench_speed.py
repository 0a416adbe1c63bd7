"""
How fast training is, in environment steps (or updates) per second, beside Stable-Baselines3 and beside the environment alone.

    python scripts/bench_speed.py                        # all rows
    python scripts/bench_speed.py cartpole-8 cartpole-1 --rounds 9 --json speed.json
    python scripts/bench_speed.py --envs CartPole-v1 Pendulum-v1    # environments alone: SB3's and EnvPool's
    python scripts/bench_speed.py --against dist/sb3_pg-0.1.0-py3-none-any.whl cartpole-8    # an older sb3_pg and this one
    python scripts/bench_speed.py --threads              # does torch.set_num_threads(1) bind all threads?

All loops of a row live in one process and take turns, after a burn-in, so that whatever else the machine does hits them alike.
What counts is the ratio to SB3 (to DummyVecEnv) within a round, and of the ratios the median. ``--against`` and ``--threads``
compare processes, which take turns, too, by the processor time of all their threads.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
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

import sb3_pg

# Other modules of sb3_pg are imported where they are needed: an older sb3_pg has them elsewhere.
from sb3_pg import HERDDPG, SVG0, VPG, NStepA2C

SEED = 0
UPDATE_EXPERIENCE = 10_000
# Environments, and steps of them all, in a round of `--envs`.
N_ENVS = 8
ENVS_STEPS = 8000
# A process of its own reports the median of that many rounds, after one that does not count.
CHILD_ROUNDS = 3
LOOPS = ("SB3", "sb3_pg")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
# Rows of `--threads`: their matrices are large enough for numpy's BLAS to start threads of its own.
LONG = {"n_steps": 512}
THREAD_ROWS = {
    "threads-a2c": Row("NStepA2C vs A2C, n_steps 512, CartPole-v1", "CartPole-v1", 8, 8192, A2C, LONG, NStepA2C, LONG),
    "threads-vpg": Row(
        "VPG vs A2C, n_steps 512, 256 x 256, CartPole-v1",
        "CartPole-v1",
        8,
        8192,
        A2C,
        {**LONG, **SAME_NETWORKS},
        VPG,
        {**ONE_STEP, **LONG, **SAME_NETWORKS},
    ),
}


ALL_ROWS = {**ROWS, **THREAD_ROWS}


@dataclass(frozen=True)
class Figures:
    """
    What was measured of one row.

    :param values: name of each loop -> its steps (or updates) per second, or its seconds, in each round
    """

    values: dict[str, list[float]]

    def median(self, name: str) -> float:
        """
        :param name: loop
        :return: median of its values
        """
        return statistics.median(self.values[name])

    def ratios(self, name: str, base: str = "SB3") -> list[float]:
        """
        :param name: loop
        :param base: another loop
        :return: value of the one relative to the other in each round
        """
        return [one / other for one, other in zip(self.values[name], self.values[base], strict=True)]

    def ratio(self, name: str, base: str = "SB3") -> float:
        """
        :param name: loop
        :param base: another loop
        :return: median over the rounds of the value of the one relative to the other
        """
        return statistics.median(self.ratios(name, base))

    def ratio_cell(self, name: str, base: str = "SB3") -> str:
        """
        :param name: loop
        :param base: another loop
        :return: median, least and greatest ratio, for a table
        """
        ratios = self.ratios(name, base)
        return f"**{self.ratio(name, base):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def step_alone(env: VecEnv, steps: int) -> None:
    """
    Step the environments with random actions, drawn beforehand.

    :param env: environments
    :param steps: steps of all environments together
    """
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(64)]
    for i in range(steps // env.num_envs):
        env.step(actions[i % len(actions)])


def loop_of(row: Row, name: str) -> Callable[[], object]:
    """
    Build a model, and collect its experience if updates are counted.

    :param row: comparison
    :param name: one of ``LOOPS``
    :return: function that takes the row's number of environment steps, or updates
    """
    if row.env.startswith("Fetch"):
        import gymnasium_robotics  # type: ignore[import-not-found, import-untyped, unused-ignore]  # an extra, untyped

        gym.register_envs(gymnasium_robotics)
    algorithm, options = (row.theirs, row.their_options) if name == "SB3" else (row.ours, row.our_options)
    if row.batch_size is not None:
        # Random actions, no update yet.
        options = {**options, "learning_starts": UPDATE_EXPERIENCE + 1}
    env = make_vec_env(row.env, row.n_envs, seed=SEED)
    model: Any = algorithm(row.policy, env, seed=SEED, device="cpu", **options)
    if row.batch_size is None:
        return functools.partial(model.learn, row.steps)
    model.learn(UPDATE_EXPERIENCE)
    return functools.partial(model.train, row.steps, row.batch_size)


def loops_of(row: Row) -> dict[str, Callable[[], object]]:
    """
    :param row: comparison
    :return: name -> function that takes the row's number of environment steps, or updates
    """
    loops = {name: loop_of(row, name) for name in LOOPS}
    if row.batch_size is not None:
        return loops
    alone = make_vec_env(row.env, row.n_envs, seed=SEED)
    alone.action_space.seed(SEED)
    alone.reset()
    return {"environment": lambda: step_alone(alone, row.steps), **loops}


def measure(row: Row, rounds: int, tick: Callable[[], object]) -> Figures:
    """
    Let the loops of a row take turns.

    :param row: comparison
    :param rounds: number of rounds, after one that does not count
    :param tick: called after each round
    :return: what was measured
    """
    th.set_num_threads(row.threads)
    return take_turns(loops_of(row), row.steps, rounds, tick)


def take_turns(loops: Mapping[str, Callable[[], object]], steps: int, rounds: int, tick: Callable[[], object]) -> Figures:
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
    return Figures(speeds)


def measure_environments(env_id: str, rounds: int, tick: Callable[[], object]) -> Figures:
    """
    Let the ways to step environments take turns, all with the statistics of a ``Monitor``.

    :param env_id: of the environment
    :param rounds: number of rounds, after one that does not count
    :param tick: called after each round
    :return: what was measured
    """
    from sb3_pg.envs.envpool import EnvPoolVecEnv

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


def cost_of(row: Row, name: str) -> dict[str, Any]:
    """
    Measure one loop in this process.

    :param row: comparison
    :param name: one of ``LOOPS``
    :return: its processor time (of all threads) and the time that passed, in seconds; and where sb3_pg was imported from
    """
    th.set_num_threads(row.threads)
    run = loop_of(row, name)
    times = []
    for _ in range(1 + CHILD_ROUNDS):
        start = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = map(statistics.median, zip(*times[1:], strict=True))
    return {"cpu": cpu, "wall": wall, "folder": str(folder_of_package())}


def folder_of_package() -> Path:
    """
    :return: folder that contains the imported sb3_pg
    """
    return Path(sb3_pg.__file__).resolve().parent.parent


def cost_in_child(row: str, name: str, steps: int | None, folder: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """
    Measure one loop in a process of its own.

    :param row: name of the comparison
    :param name: one of ``LOOPS``
    :param steps: steps of the loop in one round; ``None``: those of the row
    :param folder: folder that contains the sb3_pg to measure
    :param variables: its environment
    :return: as of :func:`cost_of`
    :raises RuntimeError: another sb3_pg was imported
    """
    command = [sys.executable, __file__, row, "--child", name, *([] if steps is None else ["--steps", str(steps)])]
    child = subprocess.run(
        command, env={**variables, "PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, text=True, check=True
    )
    cost: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    if Path(cost["folder"]) != folder:
        raise RuntimeError(f"sb3_pg was imported from {cost['folder']}, not from {folder}")
    return cost


def compare_with(wheel: Path, row: str, rounds: int, steps: int | None, tick: Callable[[], object]) -> Figures:
    """
    Let processes with an older sb3_pg and processes with this one take turns.

    :param wheel: the older one
    :param row: name of the comparison, of which SB3's half is left out
    :param rounds: number of rounds
    :param steps: as of :func:`cost_in_child`
    :param tick: called after each round
    :return: seconds of processor time of ``"old"`` and ``"new"``, and seconds of ``"old, wall"`` and ``"new, wall"``
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("old", "new", "old, wall", "new, wall")}
    with tempfile.TemporaryDirectory() as target:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", target, str(wheel)], check=True)
        for _ in range(rounds):
            for name, folder in {"old": Path(target).resolve(), "new": folder_of_package()}.items():
                cost = cost_in_child(row, "sb3_pg", steps, folder, os.environ)
                seconds[name].append(cost["cpu"])
                seconds[f"{name}, wall"].append(cost["wall"])
            tick()
    return Figures(seconds)


def compare_threads(row: str, rounds: int, steps: int | None, tick: Callable[[], object]) -> Figures:
    """
    Let processes that call ``torch.set_num_threads`` and processes that also have ``OMP_NUM_THREADS`` take turns.

    :param row: name of the comparison
    :param rounds: number of rounds
    :param steps: as of :func:`cost_in_child`
    :param tick: called after each round
    :return: seconds of processor time, for each of ``LOOPS`` as ``"SB3, torch"`` and ``"SB3, variable"``
    """
    unset = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    variables = {"torch": unset, "variable": {**unset, "OMP_NUM_THREADS": str(ALL_ROWS[row].threads)}}
    seconds: dict[str, list[float]] = {f"{name}, {by}": [] for name in LOOPS for by in variables}
    for _ in range(rounds):
        for name in LOOPS:
            for by, environment in variables.items():
                cost = cost_in_child(row, name, steps, folder_of_package(), environment)
                seconds[f"{name}, {by}"].append(cost["cpu"])
        tick()
    return Figures(seconds)


def markdown(rows: Sequence[Row], speeds: Sequence[Figures]) -> str:
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
        alone = f"{speed.ratio('environment'):.1f}" if "environment" in speed.values else ""
        lines.append(
            f"| {row.title} | {row.n_envs} | {row.threads} | {speed.median('SB3'):,.0f} | {speed.median('sb3_pg'):,.0f} | "
            f"{speed.ratio_cell('sb3_pg')} | {alone} |"
        )
    return "\n".join(lines)


def environments_markdown(env_ids: Sequence[str], speeds: Sequence[Figures]) -> str:
    """
    :param env_ids: environments
    :param speeds: what was measured of each
    :return: table in Markdown
    """
    base, *others = speeds[0].values
    lines = [f"| {N_ENVS} environments | {base}, per second | {' | '.join(others)} |", "|---" * (2 + len(others)) + "|"]
    for env_id, speed in zip(env_ids, speeds, strict=True):
        cells = [speed.ratio_cell(name, base) for name in others]
        lines.append(f"| {env_id} | {speed.median(base):,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against_markdown(rows: Sequence[Row], figures: Sequence[Figures]) -> str:
    """
    :param rows: comparisons
    :param figures: what :func:`compare_with` measured of each
    :return: table in Markdown
    """
    lines = ["| loop | environments | threads | old, CPU s | new, CPU s | new / old | new / old, wall |", "|---" * 7 + "|"]
    for row, one in zip(rows, figures, strict=True):
        lines.append(
            f"| {row.title} | {row.n_envs} | {row.threads} | {one.median('old'):.3f} | {one.median('new'):.3f} | "
            f"{one.ratio_cell('new', 'old')} | {one.ratio('new, wall', 'old, wall'):.2f} |"
        )
    return "\n".join(lines)


def threads_markdown(rows: Sequence[Row], figures: Sequence[Figures]) -> str:
    """
    :param rows: comparisons
    :param figures: what :func:`compare_threads` measured of each
    :return: table in Markdown
    """
    heads = [f"{name}, CPU s by variable | by torch | torch / variable" for name in LOOPS]
    lines = [f"| loop | environments | threads | {' | '.join(heads)} |", "|---" * (3 + 3 * len(LOOPS)) + "|"]
    for row, one in zip(rows, figures, strict=True):
        cells = [
            f"{one.median(f'{name}, variable'):.3f} | {one.median(f'{name}, torch'):.3f} | "
            + one.ratio_cell(f"{name}, torch", f"{name}, variable")
            for name in LOOPS
        ]
        lines.append(f"| {row.title} | {row.n_envs} | {row.threads} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    :param arguments: command line
    :return: what it says; ``names`` are those of the rows, or of the environments
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(ALL_ROWS)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"some of {known}; by default those called threads-... with --threads, else the others",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--envs", nargs="+", metavar="ID", help="in place of rows: environments that EnvPool has, alone")
    modes.add_argument(
        "--against", type=Path, metavar="WHEEL", help="CPU seconds of this sb3_pg relative to those of a wheel's"
    )
    modes.add_argument("--threads", action="store_true", help="CPU seconds without OMP_NUM_THREADS relative to those with it")
    modes.add_argument("--child", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="rounds that count (default: 7; 10 with --against and --threads)")
    parser.add_argument("--steps", type=int, help="steps (or updates) of a loop in one round (default: those of the row)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(arguments)
    if unknown := set(args.rows) - set(ALL_ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))} (there are {known})")
    if args.rounds is None:
        args.rounds = 10 if args.against or args.threads else 7
    if args.rounds < 1 or (args.steps is not None and args.steps < 1):
        parser.error("--rounds and --steps must be at least 1")
    if args.envs and (args.rows or args.steps):
        parser.error("either rows or --envs")
    if args.against and not args.against.is_file():
        parser.error(f"no such file: {args.against}")
    args.names = args.envs or args.rows or list(THREAD_ROWS if args.threads else ROWS)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Measure and print.

    :param arguments: command line, ``sys.argv`` by default
    """
    args = parse(arguments)
    names, rounds, steps = args.names, args.rounds, args.steps
    rows = [] if args.envs else [ALL_ROWS[name] for name in names]
    if steps is not None:
        rows = [replace(row, steps=steps) for row in rows]
    if args.child:
        print(json.dumps(cost_of(rows[0], args.child)))
        return
    in_children = args.against or args.threads
    with tqdm(total=len(names) * (rounds + (not in_children)), unit="round", disable=not sys.stderr.isatty()) as bar:
        if args.envs:
            figures = [measure_environments(env_id, rounds, bar.update) for env_id in names]
            table = environments_markdown(names, figures)
        elif args.against:
            figures = [compare_with(args.against, name, rounds, steps, bar.update) for name in names]
            table = against_markdown(rows, figures)
        elif args.threads:
            figures = [compare_threads(name, rounds, steps, bar.update) for name in names]
            table = threads_markdown(rows, figures)
        else:
            figures = [measure(row, rounds, bar.update) for row in rows]
            table = markdown(rows, figures)
    from sb3_pg.zoo.runs import machine, versions

    circumstances = [machine(), ", ".join(f"{name} {version}" for name, version in versions().items())]
    print(f"{table}\n\n{rounds} rounds, median (least to greatest ratio). " + "; ".join(circumstances))
    if args.json:
        values = {name: one.values for name, one in zip(names, figures, strict=True)}
        unit = "seconds" if in_children else "steps_per_second"
        args.json.write_text(json.dumps({"machine": machine(), "versions": versions(), unit: values}, indent=1))


if __name__ == "__main__":
    main()
