"""
Learning results of the documentation: train over environments and seeds, evaluate the final policies, tabulate and plot.

    python scripts/benchmark.py run --algo vpg --env HalfCheetah-v5 Hopper-v5 --seeds 101-105 --jobs 2 -o results/vpg
    python scripts/benchmark.py table results/vpg results/a2c -o table.md
    python scripts/benchmark.py plot results/vpg results/a2c -o curves.png

Every run calls the RL Zoo's own training command, with its output in ``train.log``. Finished runs are not repeated. A run that
was interrupted, failed or had other settings starts from scratch.
"""

import argparse
import importlib.util
import json
import math
import shlex
import signal
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from sb3_pg.registry import ALGOS
from sb3_pg.zoo.runs import Run, exclusive_lock, format_reward, positive_int, run_all

Result = dict[str, Any]  # content of result.json


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """
    :param texts: numbers and ranges, ends included: ``["1", "101-105"]``
    :return: all seeds, sorted and without duplicates
    :raises ValueError: a text is neither a number nor a range
    """
    seeds: set[int] = set()
    for text in texts:
        first, _, last = text.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
            raise ValueError(f"--seeds: {text!r} is neither a number nor a range such as 101-105")
        seeds.update(range(int(first), int(last or first) + 1))
    return sorted(seeds)


def show_seeds(seeds: Iterable[int]) -> str:
    """
    :param seeds: seeds in any order
    :return: text in the format of ``parse_seeds``, with ranges where possible: ``"1 101-105"``
    """
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def read_hyperparams(algo: str, env: str, conf: Path | None) -> dict[str, Any]:
    """
    Read the entries of a yml file that the zoo may use for an environment.

    :param algo: zoo key of the algorithm
    :param env: id of the environment
    :param conf: yml file; ``None``: the default of the algorithm
    :return: the entry of the environment, otherwise the entries ``atari`` and ``default``
    :raises ValueError: there is no such file or entry
    """
    path = conf
    if path is None and algo in ALGOS:
        path = Path(str(ALGOS[algo].yml_path()))
    elif path is None:
        zoo = importlib.util.find_spec("rl_zoo3")
        path = Path(str(zoo and zoo.origin)).parent / "hyperparams" / f"{algo}.yml"
    if not path.is_file():
        raise ValueError(f"no hyperparameters for --algo {algo}: {path} does not exist")
    entries: dict[str, Any] = yaml.safe_load(path.read_text())
    found = {key: entries[key] for key in ([env] if env in entries else ["atari", "default"]) if key in entries}
    if not found:
        raise ValueError(f"{path.name} has no entry for {env} and no 'default'")
    return found


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: arguments of the command ``run``
    :return: a run for each environment and seed
    :raises ValueError: invalid seeds, or no hyperparameters for an environment
    """
    options = ["--device", args.device] + (["-conf", str(args.conf)] if args.conf else [])
    options += ["-params", *args.params] if args.params else []
    runs = []
    for env in args.env:
        hyperparams = read_hyperparams(args.algo, env, args.conf)
        for seed in parse_seeds(args.seeds):
            settings = {"algo": args.algo, "env": env, "seed": seed, "device": args.device, "hyperparams": hyperparams}
            settings |= {key: getattr(args, key) for key in ("n_timesteps", "eval_freq", "eval_episodes", "final_episodes")}
            settings |= {"params": args.params} if args.params else {}
            folder = args.output / (args.label or args.algo) / env.replace("/", "-").replace(":", "-") / f"seed_{seed}"
            runs.append(Run(folder, settings, tuple(options)))
    return runs


def read_results(folders: Iterable[Path]) -> dict[tuple[str, str], list[Result]]:
    """
    Read all results in and below folders, grouped by settings other than the seed.

    :param folders: output folders of ``run``, or folders inside them
    :return: (label, environment) -> results sorted by seed; if settings differ, the label gets a number
    :raises ValueError: there are no results
    """
    found = [path for folder in folders for path in [*sorted(folder.rglob("seed_*/result.json")), *folder.glob("result.json")]]
    paths = dict.fromkeys(path.resolve() for path in found)  # each once, in the order of the folders
    if not paths:
        raise ValueError("no result.json of a finished run in " + ", ".join(map(str, folders)))
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for path in paths:
        result: Result = json.loads(path.read_text())
        settings = {key: value for key, value in result["settings"].items() if key != "seed"}
        variants = groups.setdefault((path.parents[2].name, settings["env"]), {})
        variants.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    merged = {}
    for (label, env), variants in groups.items():
        for number, results in enumerate(variants.values(), start=1):
            name = label if len(variants) == 1 else f"{label} (settings {number})"
            merged[name, env] = sorted(results, key=lambda result: int(result["settings"]["seed"]))
    return merged


def steps_to_solve(curve: dict[str, list[float]], threshold: float) -> float:
    """
    :param curve: steps and mean rewards of the evaluations
    :param threshold: mean reward that counts as solved
    :return: number of steps of the first evaluation from which on all reach the threshold; infinite if the last one does not
    """
    solved = math.inf
    for steps, mean in zip(reversed(curve["steps"]), reversed(curve["mean"]), strict=True):
        if mean < threshold:
            break
        solved = steps
    return solved


def tabulate(groups: dict[tuple[str, str], list[Result]], threshold: float | None) -> list[dict[str, Any]]:
    """
    :param groups: result of ``read_results``
    :param threshold: mean reward that counts as solved; ``None``: no such column
    :return: a row for each group
    """
    rows = []
    for (label, env), results in groups.items():
        means = [result["mean"] for result in results]
        row = {
            "label": label,
            "env": env,
            "steps": statistics.median(result["steps"] for result in results),
            "seeds": [result["settings"]["seed"] for result in results],
            "median": statistics.median(means),
            "min": min(means),
            "max": max(means),
            "all": means,
            "median_wall_seconds": statistics.median(result["wall_seconds"] for result in results),
        }
        if threshold is not None:
            solved = [steps_to_solve(result["curve"], threshold) for result in results]
            row["steps_to_solve"] = [steps if math.isfinite(steps) else None for steps in solved]
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]], threshold: float | None) -> str:
    """
    :param rows: result of ``tabulate``
    :param threshold: mean reward that counts as solved; ``None``: no such columns
    :return: the table
    """
    head = ["label", "environment", "steps", "seeds", "median", "min", "max", "all", "wall time"]
    head += [] if threshold is None else [f"steps to {format_reward(threshold)}: median", "slowest"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["label"], row["env"], f"{row['steps']:,.0f}", show_seeds(row["seeds"])]
        cells += [format_reward(row[key]) for key in ("median", "min", "max")]
        cells += [", ".join(format_reward(mean) for mean in row["all"]), f"{row['median_wall_seconds']:.0f} s"]
        if threshold is not None:
            solved = [math.inf if steps is None else steps for steps in row["steps_to_solve"]]
            # The upper median: an average with a seed that never reached the threshold would be meaningless.
            typical, slowest = statistics.median_high(solved), max(solved)
            cells += [f"{steps:,.0f}" if math.isfinite(steps) else "not reached" for steps in (typical, slowest)]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def report(folders: Sequence[Path], threshold: float | None) -> tuple[str, list[dict[str, Any]]]:
    """
    :param folders: output folders of ``run``
    :param threshold: mean reward that counts as solved; ``None``: no such columns
    :return: the table with commands, versions and machine, and its rows
    :raises ValueError: there are no results
    """
    groups = read_results(folders)
    rows = tabulate(groups, threshold)
    results = [result for group in groups.values() for result in group]
    commands = sorted({shlex.join(["python", "scripts/benchmark.py", *result["made_by"]]) for result in results})
    packages = sorted({", ".join(f"{name} {version}" for name, version in result["versions"].items()) for result in results})
    machines = sorted({result["machine"] for result in results})
    episodes = sorted({result["settings"]["final_episodes"] for result in results})
    text = markdown(rows, threshold)
    text += "\nReward of the final policy, acting deterministically: mean over "
    text += f"{' or '.join(map(str, episodes))} episodes for each seed; median, lowest, highest over the seeds. "
    text += "Wall time: median over the training runs, including start-up and evaluations.\n\n"
    text += "```bash\n" + "\n".join(commands) + "\n```\n\n"
    text += "".join(f"- {line}\n" for line in machines + packages)
    return text, rows


def median_curve(results: Sequence[Result]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """
    :param results: results of S seeds
    :return: ``[K]`` steps at which all seeds were evaluated, ``[S, K]`` mean rewards at these steps
    :raises ValueError: there is no such step
    """
    curves = [dict(zip(result["curve"]["steps"], result["curve"]["mean"], strict=True)) for result in results]
    steps = sorted(set(curves[0]).intersection(*curves[1:]))
    if not steps:
        raise ValueError("the seeds have no evaluation at the same step: train them with one --eval-freq")
    return np.array(steps, float), np.array([[curve[step] for step in steps] for curve in curves], float)


def draw(groups: dict[tuple[str, str], list[Result]], output: Path, args: argparse.Namespace) -> None:
    """
    Plot the evaluations during training: one panel per environment, one curve per label.

    :param groups: result of ``read_results``
    :param output: file to write; the suffix selects the format
    :param args: arguments of the command ``plot``
    :raises ValueError: the seeds of a group were evaluated at different steps
    """
    envs = sorted({env for _, env in groups})
    colors = {label: f"C{number}" for number, label in enumerate(dict.fromkeys(label for label, _ in groups))}
    columns = 2 if len(envs) == 4 else min(len(envs), 3)
    size = (8, 4.5) if len(envs) == 1 else (4 * columns, 3.2 * math.ceil(len(envs) / columns))
    figure, grid = plt.subplots(math.ceil(len(envs) / columns), columns, figsize=size, layout="constrained", squeeze=False)
    handles: dict[str, Artist] = {}
    low, high = (25, 75) if args.band == "quartiles" else (0, 100)
    for axes, env in zip(grid.flat, envs, strict=False):
        for (label, _), results in ((key, group) for key, group in groups.items() if key[1] == env):
            steps, rewards = median_curve(results)
            [line] = axes.plot(steps, np.median(rewards, axis=0), color=colors[label], linewidth=2, label=label)
            handles.setdefault(label, line)
            axes.fill_between(steps, *np.percentile(rewards, [low, high], axis=0), color=colors[label], alpha=0.2, linewidth=0)
        decorate(axes, env, args)
    for axes in grid.flat[len(envs) :]:
        axes.remove()
    seeds = sorted({len(results) for results in groups.values()})
    figure.supylabel(f"reward: median and {args.band} of {' or '.join(map(str, seeds))} seeds", fontsize="medium")
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def decorate(axes: Axes, env: str, args: argparse.Namespace) -> None:
    """
    Set title, labels and scale of a panel.

    :param axes: the panel
    :param env: id of the environment
    :param args: arguments of the command ``plot``
    """
    axes.set_title(env)
    axes.set_xlabel("environment steps" + (" (logarithmic)" if args.log_x else ""))
    if args.threshold is not None:
        axes.axhline(args.threshold, color="0.4", linestyle="--", linewidth=1)
    if args.log_x:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def command_run(args: argparse.Namespace) -> int:
    """
    :param args: arguments of the command ``run``
    :return: exit status
    :raises ValueError: an error message for the user
    """
    if args.label and Path(args.label).name != args.label:
        raise ValueError(f"--label: {args.label!r} is not a valid folder name")
    runs = plan(args)
    args.output.mkdir(parents=True, exist_ok=True)
    otherwise = f"another benchmark writes to {args.output} under the same label: wait, or choose --label"
    with exclusive_lock(args.output / f".{args.label or args.algo}.lock", otherwise):
        failed = run_all(runs, args.jobs, sys.argv[1:])
    text, rows = report([args.output], args.threshold)
    (args.output / "results.md").write_text(text)
    (args.output / "results.json").write_text(json.dumps(rows, indent=2))
    print(text)
    print(f"{args.output / 'results.md'}" + (f"; {failed} of {len(runs)} runs FAILED" if failed else ""))
    return 1 if failed else 0


def command_table(args: argparse.Namespace) -> int:
    """
    :param args: arguments of the command ``table``
    :return: exit status
    :raises ValueError: an error message for the user
    """
    text, _ = report(args.folders, args.threshold)
    if args.output:
        args.output.write_text(text)
    print(text)
    return 0


def command_plot(args: argparse.Namespace) -> int:
    """
    :param args: arguments of the command ``plot``
    :return: exit status
    :raises ValueError: an error message for the user
    """
    mpl.use("agg")
    draw(read_results(args.folders), args.output, args)
    print(f"Learning curves: {args.output}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """
    :return: parser of the command line
    """
    parser = argparse.ArgumentParser(description="Train over environments and seeds, tabulate and plot the results.")
    commands = parser.add_subparsers(required=True, metavar="run|table|plot")
    run = commands.add_parser("run", help="train, evaluate the final policies, tabulate; finished runs are not repeated")
    run.set_defaults(command=command_run)
    run.add_argument("--algo", required=True, help="zoo key of the algorithm, ours or another one")
    run.add_argument("--env", required=True, nargs="+", help="ids of the environments")
    run.add_argument("--seeds", required=True, nargs="+", help="numbers and ranges, for example 101-105")
    run.add_argument("-o", "--output", required=True, type=Path, help="output folder; several labels may share one")
    run.add_argument("--label", help="name of the variant in the table (default: the algorithm)")
    run.add_argument("--conf", type=Path, help="yml file in the zoo's format (default: that of the algorithm)")
    run.add_argument(
        "--params", nargs="+", metavar="KEY:VALUE", help="values that override the yml file, as the zoo's -params"
    )
    run.add_argument("--jobs", type=positive_int, default=1, help="number of runs in parallel, one thread each (default: 1)")
    run.add_argument("-n", "--n-timesteps", type=positive_int, help="environment steps (default: those of the yml file)")
    run.add_argument("--eval-freq", type=positive_int, default=25_000, help="steps between evaluations (default: 25000)")
    run.add_argument("--eval-episodes", type=positive_int, default=5, help="episodes per evaluation (default: 5)")
    run.add_argument("--final-episodes", type=positive_int, default=20, help="episodes of the final evaluation (default: 20)")
    run.add_argument("--device", default="cpu", help="device of the networks (default: cpu)")
    table = commands.add_parser("table", help="tabulate existing results")
    table.set_defaults(command=command_table)
    table.add_argument("folders", type=Path, nargs="+", help="output folders of run, or folders of a label inside them")
    table.add_argument("-o", "--output", type=Path, help="also write the table to this file")
    plot = commands.add_parser("plot", help="plot learning curves: median and spread over the seeds")
    plot.set_defaults(command=command_plot)
    plot.add_argument("folders", type=Path, nargs="+", help="output folders of run, or folders of a label inside them")
    plot.add_argument("-o", "--output", type=Path, required=True, help="figure to write")
    plot.add_argument("--log-x", action="store_true", help="logarithmic axis of the steps")
    plot.add_argument("--band", choices=("range", "quartiles"), default="range", help="shaded area (default: range)")
    for command in (run, table, plot):
        command.add_argument("--threshold", type=float, help="mean reward that counts as solved")
    return parser


def main() -> None:
    """Run one of the commands."""
    args = make_parser().parse_args()
    # Clean up after `kill` as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(args.command(args))
    except ValueError as error:
        sys.exit(f"benchmark.py: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmark.py: interrupted; finished runs are kept")


if __name__ == "__main__":
    main()
