"""
``python -m sb3_pg.zoo reevaluate --storage study.log --study-name s``: find out which of the best trials of a study is best.

Retrains them on fresh seeds, evaluates the final policies, ranks the trials, and writes the winner as a yml entry.
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

from sb3_pg.zoo.reevaluate.entries import base_entry, to_yml, trial_entry
from sb3_pg.zoo.reevaluate.ranking import MIN_SEEDS, Row, rank
from sb3_pg.zoo.reevaluate.report import method, table, verdict
from sb3_pg.zoo.reevaluate.study import (
    TrainingConfig,
    add_training_options,
    best_trials,
    hide_password,
    load_study,
    read_training_config,
)
from sb3_pg.zoo.runs import Run, exclusive_lock, format_reward, machine, positive_int, run_all, versions

_PROG = "python -m sb3_pg.zoo reevaluate"
_NO_PLOTS = "matplotlib is not installed, so no figure is drawn: pip install 'sb3-pg[plots]'"
# Beyond the seeds that users typically choose; the zoo's own random seeds are spread over 32 bits.
FIRST_SEED = 1_000_001
# Exit status that shells report after Ctrl-C.
_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Candidate:
    """
    A trial to be retrained.

    :param trial: the stored trial
    :param entry: its complete hyperparameters
    :param runs: one training run for each seed
    """

    trial: optuna.trial.FrozenTrial
    entry: dict[str, Any]
    runs: list[Run]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Train the trials, rank them and write the results.

    :param arguments: command-line arguments; ``None``: ``sys.argv[1:]``
    :return: exit status: 0, 1 if a run failed, 130 after Ctrl-C
    :raises SystemExit: with an error message
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser().parse_args(arguments)
    try:
        return _reevaluate(args, ["-m", "sb3_pg.zoo", "reevaluate", *map(hide_password, arguments)])
    except ValueError as error:
        sys.exit(f"{_PROG}: {error}")
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted; finished runs are kept, run the same command to continue", file=sys.stderr)
        return _INTERRUPTED


def _reevaluate(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    study = load_study(args.storage, args.study_name)
    config = read_training_config(study, args)
    output: Path = args.output or Path("reevaluation") / re.sub(r"[^\w.-]", "-", args.study_name)
    candidates = plan(best_trials(study, args.top), config, args, output)
    runs = [run for candidate in candidates for run in candidate.runs]
    print(
        f"{config.algo} on {config.env}, {candidates[0].entry['n_timesteps']:,.0f} steps. "
        f"Best trials of study {args.study_name!r}: {', '.join(str(candidate.trial.number) for candidate in candidates)}; "
        f"{args.seeds} fresh seeds each.",
        flush=True,
    )
    output.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(output / ".lock", f"another process writes to {output}: wait, or choose another --output"):
        for candidate in candidates:
            path = hyperparams_path(output, candidate.trial)
            path.parent.mkdir(exist_ok=True)
            path.write_text(to_yml(config.env, candidate.entry), encoding="utf-8")
        failed = run_all(runs, args.jobs, arguments)
        _report(candidates, output, args, arguments)
    if failed:
        print(f"{failed} of {len(runs)} runs FAILED; run the same command to repeat them", file=sys.stderr)
    return 1 if failed else 0


def plan(
    trials: Sequence[optuna.trial.FrozenTrial], config: TrainingConfig, args: argparse.Namespace, output: Path
) -> list[Candidate]:
    """
    :param trials: trials to retrain
    :param config: training configuration of the study
    :param args: command-line arguments
    :param output: output folder
    :return: a candidate for each trial, with a run for each seed
    :raises ValueError: a trial cannot be retrained
    """
    base = base_entry(config)
    candidates = []
    for trial in trials:
        entry = trial_entry(trial, config, base)
        options = ["--device", args.device, "-conf", str(hyperparams_path(output, trial))]
        options += ["--gym-packages", *config.gym_packages] if config.gym_packages else []
        settings = {"algo": config.algo, "env": config.env, "device": args.device, "hyperparams": {config.env: entry}}
        # No evaluation during training; the entry contains the number of steps.
        settings |= {"n_timesteps": None, "eval_freq": -1, "eval_episodes": 1, "final_episodes": config.eval_episodes}
        runs = [
            Run(
                folder=hyperparams_path(output, trial).with_name(f"seed_{seed}"),
                settings={**settings, "seed": seed},
                options=tuple(options),
                # Works even where start-up files are not read.
                script=("-m", "sb3_pg.zoo", "train"),
            )
            for seed in range(args.first_seed, args.first_seed + args.seeds)
        ]
        candidates.append(Candidate(trial, entry, runs))
    return candidates


def hyperparams_path(output: Path, trial: optuna.trial.FrozenTrial) -> Path:
    """
    :param output: output folder
    :param trial: a trial that is retrained
    :return: path of the yml file for its runs
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
    figures = _draw(rows, title, output / "ranking.png")
    print(", ".join(str(output / name) for name in ["winner.yml", "results.md", "results.json", *figures]))


def _draw(rows: Sequence[Row], title: str, path: Path) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        print(_NO_PLOTS, file=sys.stderr)
        return []
    from sb3_pg.zoo.reevaluate.ranking_plot import draw

    draw(rows, title, path)
    return [path.name]


def _rewards(candidate: Candidate) -> dict[int, float]:
    finished = [run for run in candidate.runs if run.is_finished()]
    results = [json.loads((run.folder / "result.json").read_text()) for run in finished]
    return {result["settings"]["seed"]: result["mean"] for result in results}


def _winner_yml(row: Row, winner: Candidate) -> str:
    interval = f"95% CI {format_reward(row.low)} to {format_reward(row.high)}"
    return (
        f"# Trial {row.trial}: mean reward {format_reward(row.mean)} on {len(row.rewards)} fresh seeds ({interval}), "
        f"{format_reward(row.value)} in the study.\n{to_yml(winner.runs[0].settings['env'], winner.entry)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Retrain the best trials of a study on fresh seeds, rank them, and write the winner as a yml entry. "
        "Finished runs are not repeated: the same command continues where it stopped.",
    )
    add = parser.add_argument
    add("--storage", required=True, help="journal file (*.log) or URL of the database with the study")
    add("--study-name", required=True, help="name of the study")
    add("--top", type=positive_int, default=5, help="number of trials to retrain, best values first (default: 5)")
    add("--seeds", type=_seeds, default=5, help="training runs for each trial, at least 2 (default: 5)")
    add("--first-seed", type=positive_int, default=FIRST_SEED, help=f"first of the consecutive seeds (default: {FIRST_SEED})")
    add("--jobs", type=positive_int, default=1, help="number of runs in parallel, one thread each (default: 1)")
    add("-o", "--output", type=Path, help="output folder (default: reevaluation/NAME_OF_THE_STUDY)")
    add("--device", default="cpu", help="device of the networks (default: cpu)")
    group = parser.add_argument_group("override the command that started the study")
    add_training_options(group)
    return parser


def _seeds(text: str) -> int:
    number = positive_int(text)
    if number < MIN_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} seed has no spread: at least {MIN_SEEDS}")
    return number


if __name__ == "__main__":
    # Clean up after `kill` as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
