"""
``python -m sb3_pg.diagnose --env CartPole-v1 -o out.png``: measure the estimators of the policy gradient for one policy.

Prints a table, and writes it as a CSV file and a figure.
"""

import argparse
import ast
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sb3_pg.diagnose.estimators import DEFAULT_ESTIMATORS
from sb3_pg.diagnose.measurement import DEFAULT_BUDGET, DEFAULT_CRITIC_STEPS, REFERENCE_FACTOR, measure
from sb3_pg.diagnose.results import Measurement, describe_setup, format_table, sort_by_variance, write_csv

_NO_PLOTS = "matplotlib is not installed, so no figure is drawn: pip install 'sb3-pg[plots]'"
# Exit status that shells report after Ctrl-C.
_INTERRUPTED = 130
# Below this the reference is too noisy for conclusions about directions.
_MIN_ACCURACY = 0.9


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Measure the estimators, print the table and write the files.

    :param arguments: command-line arguments; ``None``: ``sys.argv[1:]``
    :return: exit status: 0, or 130 after Ctrl-C
    """
    parser = _parser()
    args = vars(parser.parse_args(arguments))
    output: Path = args.pop("output")
    has_plots = importlib.util.find_spec("matplotlib") is not None
    measurements: list[Measurement] = []
    status = 0
    try:
        _check_output(output, has_plots)
        with _ProgressBar() as bar:
            measure(**args, progress=bar, on_result=measurements.append)
    except KeyboardInterrupt:
        print(f"stopped, {len(measurements)} estimators are finished", file=sys.stderr)
        status = _INTERRUPTED
    except gym.error.Error as error:
        parser.error(f"environment {args['env']!r}: {error}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if measurements:
        _report(measurements, output, has_plots)
    return status


def _report(measurements: Sequence[Measurement], output: Path, has_plots: bool) -> None:
    print("\n".join(describe_setup(measurements)), format_table(measurements), sep="\n\n")
    accuracy = measurements[0].reference_accuracy
    if not accuracy >= _MIN_ACCURACY:
        print(
            f"the reference gradient is noisy (cosine {accuracy:.2f}): raise --reference-batches or --budget", file=sys.stderr
        )
    table = output.with_suffix(".csv")
    write_csv(sort_by_variance(measurements), table)
    print(f"\nTable: {table}")
    if not has_plots:
        print(_NO_PLOTS, file=sys.stderr)
        return
    from sb3_pg.diagnose.plot import draw

    draw(measurements, output)
    print(f"Figure: {output}")


def _check_output(output: Path, has_plots: bool) -> None:
    """
    Fail before the measurement if its results could not be written.

    :raises ValueError: the folder does not exist, or matplotlib does not know the file type
    """
    if not output.resolve().parent.is_dir():
        raise ValueError(f"-o {output}: there is no folder {output.parent}, create it first")
    if has_plots:
        from sb3_pg.diagnose.plot import file_types

        if output.suffix[1:].lower() not in file_types():
            raise ValueError(f"-o {output}: the name must end in one of {', '.join(file_types())}")


class _ProgressBar:
    """One progress bar for each step of the measurement, on the terminal only."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<25}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what)
        self._progress.update(self._tasks[what], completed=done, total=total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sb3_pg.diagnose",
        description="Measure variance, signal-to-noise ratio, direction and bias of policy-gradient estimators.",
    )
    add = parser.add_argument
    add("--env", required=True, help="id of the environment, such as CartPole-v1 (package:id imports the package first)")
    add("--env-kwargs", nargs="+", type=_keyword, default=[], action=_Keywords, metavar="KEY:VALUE", help="keyword arguments")
    add("--model", type=Path, help="zip file of a saved VPG, A2C, PPO, ... (default: a new policy)")
    add("--vec-normalize", type=Path, metavar="FILE", help="vecnormalize.pkl of a model that was trained with VecNormalize")
    add("--policy", help="class of a new policy, such as LinearPolicy (default: by the observation space)")
    add(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help=f"names weight+baseline; n_step:5 and gae:0.9 take a parameter (default: {' '.join(DEFAULT_ESTIMATORS)})",
    )
    add("--gamma", type=float, help="discount factor (default: the model's, 0.99 for a new policy)")
    add(
        "--discount-gradient",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="weight step t by gamma^t, so that all estimate the gradient of the discounted objective (default: yes)",
    )
    _add_sizes(parser)
    add("--seed", type=int, default=0, help="seed of all random generators (default: 0)")
    add(
        "--n-jobs",
        type=int,
        default=_usable_cpus(),
        help="number of processes, without influence on the results (default: all CPUs)",
    )
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("estimators.png"),
        help="figure; the CSV file is written beside it (default: %(default)s)",
    )
    return parser


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n-episodes", type=int, default=10, help="episodes per estimate (default: 10)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--n-batches", type=int, help="number of estimates per estimator")
    size.add_argument(
        "--budget",
        type=int,
        help=f"environment steps per estimator (default: {DEFAULT_BUDGET}, but between 20 and 200 estimates)",
    )
    add(
        "--reference-batches",
        type=int,
        help=f"estimates for the reference gradient (default: {REFERENCE_FACTOR} times those per estimator)",
    )
    add(
        "--critic-steps",
        type=int,
        help=f"steps to fit the critic on (default: {DEFAULT_CRITIC_STEPS}; 0 if the model has a critic for that gamma)",
    )


def _keyword(text: str) -> tuple[str, Any]:
    """Read ``key:value`` as the zoo does; a value that is not a Python literal is a string."""
    key, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} must have the form key:value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class _Keywords(argparse.Action):
    """Store key-value pairs as a dictionary."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: object) -> None:
        del parser
        setattr(namespace, self.dest, dict(values))


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
