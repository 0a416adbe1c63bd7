"""
Learning results as the documentation quotes them: train over environments and seeds, evaluate the final policies, show both.

    python scripts/benchmark.py run --algo vpg --env HalfCheetah-v5 Hopper-v5 --seeds 101-105 --jobs 2 -o results/vpg
    python scripts/benchmark.py table results/vpg results/a2c -o table.md
    python scripts/benchmark.py plot results/vpg results/a2c -o curves.png

Every run is a call of the RL Zoo's own training command, with its output in ``train.log``. A run that is finished is not
repeated; one that was cut off, failed or had other settings starts anew.
"""

import argparse
import fcntl
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are no dependency of ours

import sb3_pg
from sb3_pg.registry import ALGOS

Result = dict[str, Any]  # what result.json holds
Process = subprocess.Popen[bytes]

PACKAGES = ("torch", "stable-baselines3", "rl_zoo3", "gymnasium", "mujoco", "numpy")
# The networks are small: one thread each is fastest, and the sums have one order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Seeds of the evaluation after training lie beyond those of any training.
EVALUATION_SEED = 1_000_000
LOG_TAIL = 15


@dataclass(frozen=True)
class Run:
    """
    One training.

    :param folder: everything it writes goes there, and nothing else may be there
    :param settings: whatever its result depends on, as JSON
    :param options: further options of the zoo's command: where it finds the settings, on what device it runs
    """

    folder: Path
    settings: dict[str, Any]
    options: tuple[str, ...] = ()

    def train_command(self) -> list[str]:
        """
        :return: the zoo's command, without the interpreter
        """
        settings = self.settings
        command = [
            "-m",
            "rl_zoo3.train",
            "--algo",
            settings["algo"],
            "--env",
            settings["env"],
            "--seed",
            str(settings["seed"]),
        ]
        command += ["-f", str(self.folder), "--eval-freq", str(settings["eval_freq"])]
        command += ["--eval-episodes", str(settings["eval_episodes"]), "--num-threads", "1", "--verbose", "0", *self.options]
        if settings["n_timesteps"] is not None:
            command += ["-n", str(settings["n_timesteps"])]
        return command

    def is_finished(self) -> bool:
        """
        :return: whether the result is there, with the same settings
        """
        path = self.folder / "result.json"
        return path.is_file() and json.loads(path.read_text())["settings"] == self.settings


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """
    :param texts: numbers and ranges, both ends included: ``["1", "101-105"]``
    :return: all of them, once each, in order
    :raises ValueError: neither a number nor a range
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
    :param seeds: in any order
    :return: what ``parse_seeds`` reads, ranges where there are any: ``"1 101-105"``
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
    Read the entries of a yml file that the zoo may take for an environment.

    :param algo: zoo key
    :param env: id of the environment
    :param conf: the file; ``None``: the default of the algorithm
    :return: the environment's own entry, or else those that stand in for it
    :raises ValueError: no such file, or no such entry
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
    :param args: of the command ``run``
    :return: a run for each environment and seed
    :raises ValueError: wrong seeds, or no hyperparameters for an environment
    """
    options = ["--device", args.device] + (["-conf", str(args.conf)] if args.conf else [])
    runs = []
    for env in args.env:
        hyperparams = read_hyperparams(args.algo, env, args.conf)
        for seed in parse_seeds(args.seeds):
            settings = {"algo": args.algo, "env": env, "seed": seed, "device": args.device, "hyperparams": hyperparams}
            settings |= {key: getattr(args, key) for key in ("n_timesteps", "eval_freq", "eval_episodes", "final_episodes")}
            folder = args.output / (args.label or args.algo) / env.replace("/", "-").replace(":", "-") / f"seed_{seed}"
            runs.append(Run(folder, settings, tuple(options)))
    return runs


def clear(run: Run) -> None:
    """
    Make the folder of a run, empty but for its settings.

    :param run: what is left of it is deleted
    :raises ValueError: the folder holds something that no run wrote
    """
    marker = run.folder / "settings.json"
    if run.folder.exists() and any(run.folder.iterdir()) and not marker.is_file():
        raise ValueError(f"{run.folder} is not empty and was not written by this script: choose another --output or --label")
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    marker.write_text(json.dumps(run.settings, indent=2))


def start(command: Sequence[str], log: Path) -> Process:
    """
    :param command: arguments of this Python
    :param log: gets the output
    :return: the process
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            # On Ctrl-C the zoo would save a half-trained model and look finished: the signal must not reach it.
            start_new_session=True,
        )


def stop(processes: Sequence[Process]) -> None:
    """
    :param processes: ended with their children, by force after five seconds
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        # All get the signal before any is waited for: a second Ctrl-C ends the waiting.
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
            time.sleep(0.05)


def carry_out(run: Run, made_by: Sequence[str]) -> Iterator[Process]:
    """
    Train and evaluate.

    :param run: what
    :param made_by: the command that asked for it, for the record
    :return: the processes one after the other; go on only when one has ended well
    :raises ValueError: the folder belongs to something else, or the training left no model
    """
    clear(run)
    began = time.monotonic()
    yield start(run.train_command(), run.folder / "train.log")
    wall_seconds = time.monotonic() - began
    models = list(run.folder.glob(f"{run.settings['algo']}/*/*.zip"))
    model = next((path for path in models if path.stem == path.parent.name.rpartition("_")[0]), None)
    if model is None:
        raise ValueError(f"{run.folder}: the training ended without a model, see train.log")
    evaluation = run.folder / "final_rewards.json"
    command = [str(Path(__file__).with_name("evaluate.py")), str(model.parent), "--json", str(evaluation)]
    command += ["--episodes", str(run.settings["final_episodes"]), "--seed", str(EVALUATION_SEED + run.settings["seed"])]
    yield start(command, run.folder / "evaluate.log")
    result = {
        "settings": run.settings,
        "command": shlex.join(["python", *run.train_command()]),
        "made_by": list(made_by),
        "versions": versions(),
        "machine": machine(),
        "steps": json.loads(zipfile.ZipFile(model).read("data"))["num_timesteps"],
        "wall_seconds": round(wall_seconds, 1),
        **summarize(json.loads(evaluation.read_text())),
        "curve": read_curve(model.parent / "evaluations.npz"),
    }
    # Renamed into place, so that there is a whole result or none.
    part = run.folder / "result.json.part"
    part.write_text(json.dumps(result, indent=2))
    part.replace(run.folder / "result.json")


def summarize(rewards: Sequence[float]) -> dict[str, Any]:
    """
    :param rewards: undiscounted sum of rewards of each episode
    :return: mean and standard deviation, and the episodes themselves
    """
    return {"mean": float(np.mean(rewards)), "std": float(np.std(rewards)), "rewards": list(rewards)}


def read_curve(path: Path) -> dict[str, list[float]]:
    """
    :param path: the zoo's log of the evaluations during training
    :return: steps taken and mean reward at each; empty if there were none
    """
    if not path.is_file():
        return {"steps": [], "mean": []}
    with np.load(path) as log:
        return {"steps": log["timesteps"].tolist(), "mean": log["results"].mean(axis=1).tolist()}


def versions() -> dict[str, str]:
    """
    :return: of Python and the packages that matter
    """
    found = {"python": platform.python_version(), "sb3_pg": sb3_pg.__version__}
    for package in PACKAGES:
        for distribution in importlib.metadata.distributions(name=package):
            found.setdefault(package, distribution.version)
    return found


def machine() -> str:
    """
    :return: processor and number of cores
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def run_all(runs: Sequence[Run], jobs: int, made_by: Sequence[str]) -> int:
    """
    Carry out runs, several at a time, with a progress bar. Whatever ends this ends the processes.

    :param runs: those that are finished are skipped
    :param jobs: how many at a time
    :param made_by: the command that asked for them, for the record
    :return: how many failed; the ends of their logs were shown
    """
    waiting = deque(run for run in runs if not run.is_finished())
    running: dict[Path, tuple[Iterator[Process], Process | None]] = {}
    failed = 0
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), unit="run") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running[run.folder] = carry_out(run, made_by), None
                for folder, (stages, process) in list(running.items()):
                    if process and process.poll() is None:
                        continue
                    try:
                        following = next_stage(folder, stages, process)
                    except ValueError as error:
                        failed += 1
                        bar.write(f"FAILED: {error}", file=sys.stderr)
                        following = None
                    del running[folder]
                    if following:
                        running[folder] = stages, following
                    else:
                        bar.update()
                    bar.set_postfix_str(", ".join("/".join(path.parts[-3:]) for path in running))
                if sys.stderr.isatty():
                    bar.refresh()  # The clock goes on in a terminal; a file gets a line for every change.
                time.sleep(0.1)
        finally:
            stop([process for _, process in running.values() if process])
    return failed


def next_stage(folder: Path, stages: Iterator[Process], ended: Process | None) -> Process | None:
    """
    :param folder: of the run
    :param stages: its processes
    :param ended: the last one, ``None`` before the first
    :return: the next one, ``None`` if there is none
    :raises ValueError: the last one failed; with the end of its log
    """
    if ended and ended.returncode:
        log = max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise ValueError(f"{folder}: exit status {ended.returncode}, the end of {log.name}:\n{tail}")
    return next(stages, None)


def read_results(folders: Iterable[Path]) -> dict[tuple[str, str], list[Result]]:
    """
    Read all results in and below folders, in groups that differ by the seed alone.

    :param folders: outputs of ``run``, or folders in them
    :return: label and environment -> results, by seed. A label gets a number where settings differ
    :raises ValueError: there are none
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
    :param curve: steps and mean reward of the evaluations
    :param threshold: mean reward that counts as solved
    :return: steps at the first evaluation from which on all reach the threshold; infinite if the last one does not
    """
    solved = math.inf
    for steps, mean in zip(reversed(curve["steps"]), reversed(curve["mean"]), strict=True):
        if mean < threshold:
            break
        solved = steps
    return solved


def tabulate(groups: dict[tuple[str, str], list[Result]], threshold: float | None) -> list[dict[str, Any]]:
    """
    :param groups: as of ``read_results``
    :param threshold: mean reward that counts as solved, if that is asked for
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


def show(value: float) -> str:
    """
    :param value: a reward
    :return: four digits, or all before the point
    """
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def markdown(rows: Sequence[dict[str, Any]], threshold: float | None) -> str:
    """
    :param rows: as of ``tabulate``
    :param threshold: as there
    :return: the table
    """
    head = ["label", "environment", "steps", "seeds", "median", "min", "max", "all", "wall time"]
    head += [] if threshold is None else [f"steps to {show(threshold)}: median", "slowest"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["label"], row["env"], f"{row['steps']:,.0f}", show_seeds(row["seeds"])]
        cells += [show(row[key]) for key in ("median", "min", "max")]
        cells += [", ".join(show(mean) for mean in row["all"]), f"{row['median_wall_seconds']:.0f} s"]
        if threshold is not None:
            solved = [math.inf if steps is None else steps for steps in row["steps_to_solve"]]
            # The higher one of an even number: half a seed that never got there means nothing.
            typical, slowest = statistics.median_high(solved), max(solved)
            cells += [f"{steps:,.0f}" if math.isfinite(steps) else "not reached" for steps in (typical, slowest)]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def report(folders: Sequence[Path], threshold: float | None) -> tuple[str, list[dict[str, Any]]]:
    """
    :param folders: outputs of ``run``
    :param threshold: mean reward that counts as solved, if that is asked for
    :return: the table with how it came about, and its rows
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
    text += "Wall time: median of the trainings, with their start and their evaluations.\n\n"
    text += "```bash\n" + "\n".join(commands) + "\n```\n\n"
    text += "".join(f"- {line}\n" for line in machines + packages)
    return text, rows


def median_curve(results: Sequence[Result]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """
    :param results: one for each of S seeds
    :return: ``[K]`` the steps at which all seeds were evaluated, ``[S, K]`` the mean rewards there
    :raises ValueError: there is no such step
    """
    curves = [dict(zip(result["curve"]["steps"], result["curve"]["mean"], strict=True)) for result in results]
    steps = sorted(set(curves[0]).intersection(*curves[1:]))
    if not steps:
        raise ValueError("the seeds have no evaluation at the same step: train them with one --eval-freq")
    return np.array(steps, float), np.array([[curve[step] for step in steps] for curve in curves], float)


def draw(groups: dict[tuple[str, str], list[Result]], output: Path, args: argparse.Namespace) -> None:
    """
    Draw the evaluations during training: an axes for each environment, a curve for each label.

    :param groups: as of ``read_results``
    :param output: picture to write; its ending chooses the format
    :param args: of the command ``plot``
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
    :param axes: gets its labels
    :param env: the environment that it shows
    :param args: of the command ``plot``
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
    :param args: of the command ``run``
    :return: exit status
    :raises ValueError: something to be said to the user
    """
    if args.label and Path(args.label).name != args.label:
        raise ValueError(f"--label: {args.label!r} is no name of a folder")
    runs = plan(args)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / f".{args.label or args.algo}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another benchmark writes to {args.output} under the same label: wait, or choose --label"
            ) from None
        failed = run_all(runs, args.jobs, sys.argv[1:])
    text, rows = report([args.output], args.threshold)
    (args.output / "results.md").write_text(text)
    (args.output / "results.json").write_text(json.dumps(rows, indent=2))
    print(text)
    print(f"{args.output / 'results.md'}" + (f"; {failed} of {len(runs)} runs FAILED" if failed else ""))
    return 1 if failed else 0


def command_table(args: argparse.Namespace) -> int:
    """
    :param args: of the command ``table``
    :return: exit status
    :raises ValueError: something to be said to the user
    """
    text, _ = report(args.folders, args.threshold)
    if args.output:
        args.output.write_text(text)
    print(text)
    return 0


def command_plot(args: argparse.Namespace) -> int:
    """
    :param args: of the command ``plot``
    :return: exit status
    :raises ValueError: something to be said to the user
    """
    mpl.use("agg")
    draw(read_results(args.folders), args.output, args)
    print(f"Learning curves: {args.output}")
    return 0


def positive(text: str) -> int:
    """
    :param text: of an option
    :return: its number
    :raises argparse.ArgumentTypeError: it is no positive integer
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description="Train over environments and seeds, tabulate and draw the results.")
    commands = parser.add_subparsers(required=True, metavar="run|table|plot")
    run = commands.add_parser("run", help="train, evaluate the final policies, tabulate; finished runs are not repeated")
    run.set_defaults(command=command_run)
    run.add_argument("--algo", required=True, help="any that the zoo knows: ours, and its own as a comparison")
    run.add_argument("--env", required=True, nargs="+", help="ids of the environments")
    run.add_argument("--seeds", required=True, nargs="+", help="numbers and ranges, for example 101-105")
    run.add_argument("-o", "--output", required=True, type=Path, help="folder for everything; several labels may share one")
    run.add_argument("--label", help="name of this variant in the table (default: the algorithm)")
    run.add_argument("--conf", type=Path, help="yml file in the zoo's format (default: the one shipped with the algorithm)")
    run.add_argument("--jobs", type=positive, default=1, help="runs at a time, one thread each (default: 1)")
    run.add_argument("-n", "--n-timesteps", type=positive, help="environment steps (default: those of the yml file)")
    run.add_argument("--eval-freq", type=positive, default=25_000, help="steps between evaluations (default: 25000)")
    run.add_argument("--eval-episodes", type=positive, default=5, help="episodes of each (default: 5)")
    run.add_argument("--final-episodes", type=positive, default=20, help="episodes of the last evaluation (default: 20)")
    run.add_argument("--device", default="cpu", help="of the networks (default: cpu)")
    table = commands.add_parser("table", help="tabulate results that are there")
    table.set_defaults(command=command_table)
    table.add_argument("folders", type=Path, nargs="+", help="outputs of run, or folders of a label in them")
    table.add_argument("-o", "--output", type=Path, help="file to write, too")
    plot = commands.add_parser("plot", help="draw learning curves: median and spread of the seeds' evaluations")
    plot.set_defaults(command=command_plot)
    plot.add_argument("folders", type=Path, nargs="+", help="outputs of run, or folders of a label in them")
    plot.add_argument("-o", "--output", type=Path, required=True, help="picture to write")
    plot.add_argument("--log-x", action="store_true", help="logarithmic steps")
    plot.add_argument("--band", choices=("range", "quartiles"), default="range", help="what is shaded (default: range)")
    for command in (run, table, plot):
        command.add_argument("--threshold", type=float, help="reward that counts as solved; when it was reached for good")
    return parser


def main() -> None:
    """Run one of the commands."""
    args = make_parser().parse_args()
    # `kill` shall clean up like Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(args.command(args))
    except ValueError as error:
        sys.exit(f"benchmark.py: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmark.py: interrupted; finished runs are kept")


if __name__ == "__main__":
    main()
