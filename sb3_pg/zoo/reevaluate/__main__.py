"""
``python -m sb3_pg.zoo reevaluate --storage study.log --study-name s``: which of the best trials of a study is really best.

Trains them anew on fresh seeds, evaluates the final policies, ranks the trials, and writes the winner as a yml entry.
"""

import argparse
import dataclasses
import importlib.util
import json
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from sb3_pg.zoo.reevaluate.entries import base_entry, entry_of, to_yml
from sb3_pg.zoo.reevaluate.ranking import MIN_SEEDS, Row, rank
from sb3_pg.zoo.reevaluate.report import method, table, verdict
from sb3_pg.zoo.reevaluate.study import Task, add_task_options, best_trials, hide_password, load_study, read_task
from sb3_pg.zoo.runs import Run, alone, machine, positive, run_all, show, versions

_PROG = "python -m sb3_pg.zoo reevaluate"
_NO_PLOTS = "matplotlib is not installed, so there is no picture: pip install 'sb3-pg[plots]'"
# Beyond the seeds that people type; those that the zoo draws itself are spread over all of 32 bits.
FIRST_SEED = 1_000_001
# What a shell reports of a program that ended by Ctrl-C.
_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Candidate:
    """
    A trial that is trained anew.

    :param trial: as stored
    :param entry: its hyperparameters, complete
    :param runs: one for each seed
    """

    trial: optuna.trial.FrozenTrial
    entry: dict[str, Any]
    runs: list[Run]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Train, rank, write.

    :param arguments: of the command line; ``None``: those of the process
    :return: exit status: 0, 1 if a run failed, 130 after Ctrl-C
    :raises SystemExit: with what is to be said to the user
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_args(arguments)
    try:
        return _reevaluate(args, ["-m", "sb3_pg.zoo", "reevaluate", *map(hide_password, arguments)])
    except ValueError as error:
        sys.exit(f"{_PROG}: {error}")
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return _INTERRUPTED


def _reevaluate(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    study = load_study(args.storage, args.study_name)
    task = read_task(study, args)
    output: Path = args.output or Path("reevaluation") / re.sub(r"[^\w.-]", "-", args.study_name)
    candidates = plan(best_trials(study, args.top), task, args, output)
    runs = [run for candidate in candidates for run in candidate.runs]
    print(
        f"{task.algo} on {task.env}, {candidates[0].entry['n_timesteps']:,.0f} steps. "
        f"Best trials of study {args.study_name!r}: {', '.join(str(candidate.trial.number) for candidate in candidates)}; "
        f"{args.seeds} fresh seeds each.",
        flush=True,
    )
    output.mkdir(parents=True, exist_ok=True)
    with alone(output / ".lock", f"another process writes to {output}: wait, or choose another --output"):
        for candidate in candidates:
            path = conf_of(output, candidate.trial)
            path.parent.mkdir(exist_ok=True)
            path.write_text(to_yml(task.env, candidate.entry), encoding="utf-8")
        failed = run_all(runs, args.jobs, arguments)
        _report(candidates, output, args, arguments)
    if failed:
        print(f"{failed} of {len(runs)} runs FAILED; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def plan(trials: Sequence[optuna.trial.FrozenTrial], task: Task, args: argparse.Namespace, output: Path) -> list[Candidate]:
    """
    :param trials: what to train
    :param task: on what
    :param args: of the command line
    :param output: folder for everything
    :return: a candidate for each trial, with a run for each seed
    :raises ValueError: a trial cannot be trained
    """
    base = base_entry(task)
    candidates = []
    for trial in trials:
        entry = entry_of(trial, task, base)
        options = ["--device", args.device, "-conf", str(conf_of(output, trial))]
        options += ["--gym-packages", *task.gym_packages] if task.gym_packages else []
        settings = {"algo": task.algo, "env": task.env, "device": args.device, "hyperparams": {task.env: entry}}
        # Nothing is evaluated on the way, and the entry says how many steps there are.
        settings |= {"n_timesteps": None, "eval_freq": -1, "eval_episodes": 1, "final_episodes": task.eval_episodes}
        runs = [
            Run(
                folder=conf_of(output, trial).with_name(f"seed_{seed}"),
                settings={**settings, "seed": seed},
                options=tuple(options),
                # Found also where start-up files are not read.
                script=("-m", "sb3_pg.zoo", "train"),
            )
            for seed in range(args.first_seed, args.first_seed + args.seeds)
        ]
        candidates.append(Candidate(trial, entry, runs))
    return candidates


def conf_of(output: Path, trial: optuna.trial.FrozenTrial) -> Path:
    """
    :param output: folder for everything
    :param trial: one of those that are trained
    :return: the yml file that its runs read
    """
    return output / f"trial_{trial.number}" / "hyperparams.yml"


def _report(candidates: Sequence[Candidate], output: Path, args: argparse.Namespace, arguments: Sequence[str]) -> None:
    values = {candidate.trial.number: float(candidate.trial.values[0]) for candidate in candidates}
    rows = rank(values, {candidate.trial.number: _rewards(candidate) for candidate in candidates})
    if not rows:
        raise ValueError(f"no trial has {MIN_SEEDS} finished seeds, so there is nothing to rank")
    winner = next(candidate for candidate in candidates if candidate.trial.number == rows[0].trial)
    settings = winner.runs[0].settings
    findings = f"{table(rows)}\n{verdict(rows)}"
    left_out = values.keys() - {row.trial for row in rows}
    if left_out:
        findings += f"Left out, with fewer than {MIN_SEEDS} finished seeds: trial {', '.join(map(str, sorted(left_out)))}.\n"
    title = f"{settings['algo']} on {settings['env']}: best trials of study {args.study_name}, on fresh seeds"
    text = f"# {title}\n\n{findings}\n" + method(settings["final_episodes"], [run.settings["seed"] for run in winner.runs])
    text += f"\n```bash\n{shlex.join(['python', *arguments])}\n```\n\n"
    text += f"- {machine()}\n- {', '.join(f'{name} {version}' for name, version in versions().items())}\n"
    (output / "results.md").write_text(text, encoding="utf-8")
    results = {"study": args.study_name, "algo": settings["algo"], "env": settings["env"]}
    ranking = [dataclasses.asdict(row) for row in rows]
    (output / "results.json").write_text(json.dumps({**results, "ranking": ranking}, indent=2), encoding="utf-8")
    (output / "winner.yml").write_text(_winner_yml(rows[0], winner), encoding="utf-8")
    print(f"\n{findings}")
    picture = _draw(rows, title, output / "ranking.png")
    print(", ".join(str(output / name) for name in ["winner.yml", "results.md", "results.json", *picture]))


def _draw(rows: Sequence[Row], title: str, path: Path) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        print(_NO_PLOTS, file=sys.stderr)
        return []
    from sb3_pg.zoo.reevaluate.plot import draw

    draw(rows, title, path)
    return [path.name]


def _rewards(candidate: Candidate) -> dict[int, float]:
    finished = [run for run in candidate.runs if run.is_finished()]
    results = [json.loads((run.folder / "result.json").read_text()) for run in finished]
    return {result["settings"]["seed"]: result["mean"] for result in results}


def _winner_yml(row: Row, winner: Candidate) -> str:
    interval = f"95% CI {show(row.low)} to {show(row.high)}"
    return (
        f"# Trial {row.trial}: mean reward {show(row.mean)} on {len(row.rewards)} fresh seeds ({interval}), "
        f"{show(row.value)} in the study.\n{to_yml(winner.runs[0].settings['env'], winner.entry)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Train the best trials of a study anew on fresh seeds, rank them, and write the winner as a yml entry. "
        "Finished runs are not repeated: the same command goes on where it stopped.",
    )
    add = parser.add_argument
    add("--storage", required=True, help="journal file (*.log) or URL of the database with the study")
    add("--study-name", required=True, help="name of the study")
    add("--top", type=positive, default=5, help="number of trials, those with the best values (default: 5)")
    add("--seeds", type=_seeds, default=5, help="trainings of each, at least 2 (default: 5)")
    add("--first-seed", type=positive, default=FIRST_SEED, help=f"the others follow (default: {FIRST_SEED})")
    add("--jobs", type=positive, default=1, help="runs at a time, one thread each (default: 1)")
    add("-o", "--output", type=Path, help="folder for everything (default: reevaluation/NAME_OF_THE_STUDY)")
    add("--device", default="cpu", help="of the networks (default: cpu)")
    task = parser.add_argument_group("in place of what the study was started with")
    add_task_options(task)
    return parser


def _seeds(text: str) -> int:
    number = positive(text)
    if number < MIN_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} seed has no spread: at least {MIN_SEEDS}")
    return number


if __name__ == "__main__":
    # `kill` shall clean up like Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
