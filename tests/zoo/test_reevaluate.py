"""``python -m sb3_pg.zoo reevaluate``: its numbers, its yml entries, what it runs and what it leaves alone."""

import argparse
import fcntl
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from torch import nn, optim
from zoo_processes import StandIn

from sb3_pg.registry import ALGOS
from sb3_pg.zoo import runs
from sb3_pg.zoo.reevaluate import ranking_plot
from sb3_pg.zoo.reevaluate.__main__ import main
from sb3_pg.zoo.reevaluate.entries import base_entry, expression, to_yml, trial_entry
from sb3_pg.zoo.reevaluate.ranking import bootstrap_means, probability_higher, rank
from sb3_pg.zoo.reevaluate.report import table, verdict
from sb3_pg.zoo.reevaluate.study import (
    TrainingConfig,
    best_trials,
    hide_password,
    load_study,
    read_command,
    read_pairs,
    read_training_config,
)

pytestmark = pytest.mark.usefixtures("zoo")
COMMAND = "python -m rl_zoo3.train --algo vpg --env CartPole-v1 -n 3000 -optimize --n-trials 9 --storage s.log --study-name s"
FIRST, SECOND = 1_000_001, 1_000_002


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """
    Work in an empty folder, without the messages of Optuna.

    :param tmp_path: pytest's own.
    :param monkeypatch: pytest's own.
    :return: The folder.
    """
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield tmp_path
    optuna.logging.set_verbosity(optuna.logging.INFO)


def study_of(
    algo: str,
    values: Sequence[float],
    command: str | None = COMMAND,
    direction: Literal["minimize", "maximize"] = "maximize",
    n_envs: int = 8,
) -> optuna.Study:
    """
    Make a study in ``s.log``, as the zoo would, without training anything.

    :param algo: Zoo key.
    :param values: Value of each trial; NaN: the trial is pruned.
    :param command: Command that the zoo stores with the study.
    :param direction: Direction of optimisation.
    :param n_envs: Number of environments.
    :return: The study.
    """
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend("s.log")),
        study_name="s",
        direction=direction,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    if command:
        study.set_user_attr("command", command)
    for value in values:
        trial = study.ask()
        HYPERPARAMS_SAMPLER[algo](trial, 1, n_envs, {"using_her_replay_buffer": False, "her_kwargs": {}})
        if math.isnan(value):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return study


def config_of(algo: str, env: str, **changes: Any) -> TrainingConfig:
    """
    Build a training configuration.

    :param algo: Zoo key.
    :param env: Id of the environment.
    :param changes: Other fields.
    :return: The configuration.
    """
    fields: dict[str, Any] = {"n_timesteps": -1, "conf": None, "params": {}, "env_kwargs": {}}
    return TrainingConfig(algo, env, **{**fields, "eval_episodes": 5, "gym_packages": (), **changes})


# ---- ranking ---------------------------------------------------------------------------------------------------------------


def test_two_seeds_have_three_resampled_means() -> None:
    means = bootstrap_means([0.0, 10.0])
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 5, 10]
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_the_interval_has_the_width_that_theory_gives() -> None:
    rewards = np.random.default_rng(1).normal(size=400)
    low, high = np.percentile(bootstrap_means(list(rewards)), [2.5, 97.5])
    assert high - low == pytest.approx(2 * 1.96 * rewards.std() / 20, rel=0.05)
    assert (high + low) / 2 == pytest.approx(rewards.mean(), abs=0.01)


def test_probabilities_by_hand() -> None:
    # 1 is higher than none of 2, 2, 4; 2 ties with two of them; 3 is higher than two: 0 + 1 + 2 of 9 pairs.
    assert probability_higher(np.array([1.0, 2, 3]), np.array([2.0, 2, 4])) == pytest.approx(3 / 9)
    assert probability_higher(np.array([2.0, 2, 4]), np.array([1.0, 2, 3])) == pytest.approx(6 / 9)
    assert probability_higher(np.ones(5), np.ones(5)) == 0.5


def test_trials_are_ranked_by_the_mean_over_their_seeds() -> None:
    values = {7: 500.0, 3: 400.0, 5: 300.0, 8: 200.0, 9: 100.0}
    rewards = {7: {1: 10.0, 2: 20.0}, 3: {1: 0.0, 2: 10.0, 3: 80.0}, 5: {1: 15.0, 2: 15.0}, 8: {1: 99.0}}
    rows = rank(values, rewards)
    # Trial 8 has one seed and trial 9 none; trials 7 and 5 are equal, so the order of the study decides.
    assert [(row.rank, row.trial, row.value, row.mean) for row in rows] == [(1, 3, 400, 30), (2, 7, 500, 15), (3, 5, 300, 15)]
    assert [(row.median, row.min, row.max) for row in rows] == [(10, 0, 80), (15, 10, 20), (15, 15, 15)]
    assert [(row.low, row.high) for row in rows[1:]] == [(10, 20), (15, 15)]
    assert rows[0].rewards == {1: 0, 2: 10, 3: 80}
    # The means of three draws from 0, 10, 80 are above 15 unless all are of 0 and 10: 19 of 27 times.
    assert rows[2].p_winner_higher == pytest.approx(19 / 27, abs=0.02)
    assert rows[0].p_winner_higher == 0.5


def test_intervals_do_not_depend_on_other_trials() -> None:
    alone = rank({3: 1.0}, {3: {1: 0.0, 2: 3.0, 3: 4.0}})[0]
    with_others = rank({4: 2.0, 3: 1.0}, {3: {1: 0.0, 2: 3.0, 3: 4.0}, 4: {1: 9.0, 2: 8.0, 3: 7.0}})[1]
    assert (alone.low, alone.high) == (with_others.low, with_others.high)
    assert alone.low < alone.mean < alone.high


def test_the_table_and_the_verdict_say_how_sure_it_is() -> None:
    rows = rank({7: 500.0, 3: 400.0}, {7: {1: 10.0, 2: 20.0}, 3: {1: 12.0, 2: 40.0}})
    assert table(rows).splitlines()[0].count("|") == 10
    assert table(rows).splitlines()[2:] == [
        "| 1 | 3 | 400 | 26 | 12 to 40 | 26 | 12 | 40 | 2 |",
        "| 2 | 7 | 500 | 15 | 10 to 20 | 15 | 10 | 20 | 2 |",
    ]
    text = verdict(rows)
    assert text.startswith("Trial 3 is the winner, by the mean over its seeds.\nIts interval overlaps with that of trial 7, ")
    # 12 is higher than 10 alone (1/4 of the means of trial 7), 26 and 40 than all: 1/16 + 3/4.
    assert rows[1].p_winner_higher == pytest.approx(13 / 16, abs=0.02)
    assert f"(ties count half): {rows[1].p_winner_higher:.2f} than trial 7.\n" in text
    assert "The values in the study are on average 429.5 above these means.\n" in text
    apart = rank({7: 5.0, 3: 4.0}, {7: {1: 10.0, 2: 20.0}, 3: {1: 21.0, 2: 22.0}})
    assert "lies above that of trial 7" in verdict(apart)
    assert "on average 13.75 below these means" in verdict(apart)
    assert "runner-up" not in verdict(apart[:1])


def test_the_picture_shows_seeds_interval_and_the_study(folder: Path) -> None:
    rows = rank({7: 500.0, 3: 400.0}, {7: {1: 10.0, 2: 20.0}, 3: {1: 12.0, 2: 40.0}})
    [axes] = ranking_plot.draw(rows, "a title", folder / "ranking.png").axes
    assert (folder / "ranking.png").read_bytes().startswith(b"\x89PNG")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trial 3", "trial 7"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()]
    assert drawn == [[12, 40], [26], [12, 40], [400], [10, 20], [15], [10, 20], [500]]
    assert axes.get_title() == "a title"


# ---- the study -------------------------------------------------------------------------------------------------------------


def numbers_of(trials: Sequence[optuna.trial.FrozenTrial]) -> list[int]:
    """
    Get the numbers of trials.

    :param trials: Trials.
    :return: Their numbers.
    """
    return [trial.number for trial in trials]


def test_the_best_trials_are_completed_ones() -> None:
    study = study_of("vpg", [3.0, math.nan, 9.0, 5.0, -math.inf, 9.0])
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()  # still running
    assert numbers_of(best_trials(study, 3)) == [2, 5, 3]
    assert numbers_of(best_trials(study, 99)) == [2, 5, 3, 0]


def test_the_direction_of_the_study_counts() -> None:
    assert numbers_of(best_trials(study_of("vpg", [3.0, 1.0, 2.0], direction="minimize"), 2)) == [1, 2]


def test_without_completed_trials_there_is_no_best() -> None:
    with pytest.raises(ValueError, match="study 's' has no completed trial, only 2 others"):
        best_trials(study_of("vpg", [math.nan, -math.inf]), 1)
    with pytest.raises(ValueError, match="has 2 objectives, so it has no best trial"):
        best_trials(optuna.create_study(directions=["maximize", "minimize"]), 1)


@pytest.mark.parametrize(
    ("storage", "name", "message"),
    [
        ("s.log", "t", "s.log has no study 't'; it has 's'"),
        ("empty.log", "t", "empty.log has no study 't'; it has none"),
        ("none.log", "s", "there is no file none.log"),
        ("text.log", "s", "text.log is not a journal file"),
        ("numbers.log", "s", "numbers.log is not a journal file"),
        ("s", "s", "'s' is neither a journal file"),
        ("nonsense://user:secret@host/base", "s", r"nonsense://user:\*\*\*@host/base: "),
    ],
)
def test_a_study_that_is_not_there_is_named(storage: str, name: str, message: str, folder: Path) -> None:
    study_of("vpg", [1.0])
    (folder / "empty.log").touch()
    (folder / "text.log").write_text("Using cpu device\nOK\n")
    (folder / "numbers.log").write_text("{}\n{}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_study(storage, name)
    assert "secret" not in str(caught.value)
    assert not (folder / "none.log").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # SQLAlchemy's pool, closed when it is collected
def test_a_study_in_a_database_is_found() -> None:
    optuna.create_study(storage="sqlite:///s.db", study_name="s")
    assert load_study("sqlite:///s.db", "s").study_name == "s"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--storage", "--storage"),
        ("postgresql+psycopg2://me:secret@host:5432/base", "postgresql+psycopg2://me:***@host:5432/base"),
        ("a postgresql://me:secret@host/a b sqlite:///x.db", "a postgresql://me:***@host/a b sqlite:///x.db"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert hide_password(text) == shown


def test_the_command_of_the_study_is_read() -> None:
    # The zoo stores the command without quotes.
    read = read_command(
        "/usr/bin/python -W ignore -m sb3_pg.zoo train -optimize --algo svg0 --env my:Env-v0 --n-time 5000 -P -tb tensorboard "
        "--storage postgresql://u:p@h/b --study-name s --n-trials 3 --n-evaluations 2 -f logs --eval-episodes 30 "
        "-params gamma:0.9 policy_kwargs:dict(net_arch=[64, 32], log_std_init=-2) n_envs:2 -conf my.yml --verbose 0 "
        "--env-kwargs name:'a b' size:3 --gym-packages one two -uuid --seed 3"
    )
    assert vars(read) == {
        "algo": "svg0",
        "env": "my:Env-v0",
        "n_timesteps": 5000,
        "conf_file": "my.yml",
        "hyperparams": ["gamma:0.9", "policy_kwargs:dict(net_arch=[64, 32], log_std_init=-2)", "n_envs:2"],
        "env_kwargs": ["name:'a b'", "size:3"],
        "eval_env_kwargs": None,
        "eval_episodes": 30,
        "gym_packages": ["one", "two"],
    }
    assert read_pairs("-params", read.hyperparams)["policy_kwargs"] == {"net_arch": [64, 32], "log_std_init": -2}


def given(**options: Any) -> argparse.Namespace:
    """
    Build the parsed arguments of ``reevaluate``.

    :param options: Options that are given.
    :return: All options.
    """
    names = ("algo", "env", "n_timesteps", "conf_file", "hyperparams", "env_kwargs", "eval_episodes", "gym_packages")
    return argparse.Namespace(**{**dict.fromkeys(names), **options})


def test_the_task_is_that_of_the_study_unless_we_are_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("vpg", [1.0], f"{COMMAND} -params gamma:0.9 --eval-episodes 3 --eval-env-kwargs a:1")
    expected = config_of("vpg", "CartPole-v1", n_timesteps=3000, params={"gamma": 0.9}, eval_episodes=20)
    assert read_training_config(study, given()) == expected
    assert "the study was started with --eval-env-kwargs" in capsys.readouterr().out
    told = given(algo="ppo", env="Acrobot-v1", n_timesteps=5, conf_file="c.yml", hyperparams=["n_envs:2"], eval_episodes=7)
    expected = config_of("ppo", "Acrobot-v1", n_timesteps=5, conf="c.yml", params={"n_envs": 2}, eval_episodes=7)
    assert read_training_config(study, told) == expected


def test_what_the_study_was_started_without_is_as_the_zoo_has_it() -> None:
    study = study_of("ppo", [1.0], "python -m rl_zoo3.train -optimize --eval-episodes 100")
    assert read_training_config(study, given()) == config_of("ppo", "CartPole-v1", eval_episodes=100)


def test_a_study_that_says_nothing_needs_help() -> None:
    study = study_of("vpg", [1.0], command=None)
    with pytest.raises(ValueError, match=r"study 's' does not contain the command that started it: pass --algo, -n$"):
        read_training_config(study, given(env="CartPole-v1"))
    assert read_training_config(study, given(algo="vpg", env="CartPole-v1", n_timesteps=9)).n_timesteps == 9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("-n many", "the command of the study cannot be read .*-n many"),
        ("-params policy_kwargs:dict(a= -1)", r"-params policy_kwargs:dict\(a=: .*; pass -params"),
    ],
)
def test_a_command_that_cannot_be_read_is_shown(more: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_training_config(study_of("vpg", [1.0], f"{COMMAND} {more}"), given())


# ---- entries ---------------------------------------------------------------------------------------------------------------


def constructor_arguments(algo: str, env: str, **options: Any) -> dict[str, Any]:
    """
    Find the arguments with which the zoo would build a model.

    :param algo: Zoo key.
    :param env: Id of the environment.
    :param options: Further arguments of its manager.
    :return: The arguments of the constructor, and the settings that the manager keeps.
    """
    manager: Any = ExperimentManager(argparse.Namespace(), algo, env, "logs", **options)
    arguments, *others = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    kept = ("n_envs", "n_timesteps", "normalize", "normalize_kwargs", "monitor_kwargs", "env_kwargs", "frame_stack")
    # Schedules do not define equality.
    plain = {key: [type(v), vars(v)] if hasattr(v, "__dict__") and callable(v) else v for key, v in arguments.items()}
    return {**plain, "others": others, **{name: getattr(manager, name) for name in kept}}


# Except for those of Fetch and Panda, all our entries are for environments that Gymnasium registers.
ENTRIES = [
    (key, env)
    for key, row in ALGOS.items()
    for env in yaml.safe_load(row.yml_path().read_text(encoding="utf-8"))
    if env != "default" and not env.startswith(("Fetch", "Panda"))
]
WITHOUT_ENTRIES = [("her_ddpg", "PointGoal-v0"), ("vpg", "Acrobot-v1")]
OF_THE_ZOO = [("ppo", "CartPole-v1"), ("sac", "Hopper-v4")]


@pytest.mark.parametrize(("algo", "env"), [*ENTRIES, *WITHOUT_ENTRIES, *OF_THE_ZOO])
def test_what_is_written_trains_the_same_as_the_trial(algo: str, env: str, folder: Path) -> None:
    study = study_of(algo, [float(number) for number in range(12)])
    config = config_of(algo, env)
    for trial in study.trials:
        if trial.number == 0 and algo not in ALGOS:
            continue  # The zoo ignores trial 0 of its own algorithms.
        text = to_yml(env, trial_entry(trial, config, base_entry(config)))
        (folder / "winner.yml").write_text(text)
        written = constructor_arguments(algo, env, config="winner.yml")
        assert written == constructor_arguments(algo, env, storage="s.log", study_name="s", trial_id=trial.number)
        assert {"n_timesteps", "policy"} <= yaml.safe_load(text)[env].keys()


@pytest.mark.parametrize("algo", ALGOS)
def test_models_are_built_from_what_is_written(algo: str, folder: Path, algorithms: dict[str, dict[str, Any]]) -> None:
    env = algorithms[algo]["env"]
    config = config_of(algo, env, params={"n_envs": 2}, n_timesteps=300)
    [trial] = study_of(algo, [1.0], n_envs=2).trials
    (folder / "winner.yml").write_text(to_yml(env, trial_entry(trial, config, base_entry(config))))
    options: dict[str, Any] = {"config": "winner.yml", "seed": 1, "verbose": 0, "device": "cpu", "eval_freq": -1}
    manager = ExperimentManager(argparse.Namespace(), algo, env, "logs", **options)
    result = manager.setup_experiment()
    assert result is not None
    assert result[0].env is not None
    result[0].env.close()
    assert (type(result[0]), result[0].n_envs, manager.n_timesteps) == (ALGOS[algo].load_class(), 2, 300)


def test_what_the_study_was_started_with_is_part_of_the_entry() -> None:
    """The trial has the last word: it did in the study."""
    [trial] = study_of("vpg", [1.0]).trials
    params = {"gamma": 0.5, "n_envs": 3, "policy_kwargs": {"net_arch": [8]}}
    config = config_of("vpg", "CartPole-v1", params=params, env_kwargs={"sutton_barto_reward": True}, n_timesteps=777)
    entry = trial_entry(trial, config, base_entry(config))
    assert (entry["n_envs"], entry["n_timesteps"], entry["env_kwargs"]) == (3, 777, {"sutton_barto_reward": True})
    assert entry["gamma"] == 1 - trial.params["one_minus_gamma"]
    assert "[8]" not in entry["policy_kwargs"]
    assert entry["vf_coef"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"net_arch": {"pi": [64, 64], "vf": []}}, "dict(net_arch=dict(pi=[64, 64], vf=[]))"),
        (
            {"activation_fn": nn.ReLU, "optimizer_class": optim.Adam},
            "dict(activation_fn=nn.ReLU, optimizer_class=th.optim.Adam)",
        ),
        ({"betas": (0.9, 0.99)}, "dict(betas=(0.9, 0.99, ))"),
        ({"a": -0.1, "b": None, "c": "it's", "d": True, "e": 1e-05}, """dict(a=-0.1, b=None, c="it's", d=True, e=1e-05)"""),
        ({"lambda": 1, 2: "x"}, "{'lambda': 1, 2: 'x'}"),
        ({}, "dict()"),
    ],
)
def test_python_values_become_expressions(value: object, text: str) -> None:
    assert expression(value) == text


class Unknown:
    """A class that the zoo cannot know."""


@pytest.mark.parametrize("value", [Unknown, {"a": Unknown()}, {"a": math.nan}, [len]])
def test_what_the_zoo_could_not_read_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"the zoo cannot read .* from a yml file"):
        expression(value)


def test_other_values_must_be_plain() -> None:
    values = {"b": 1e-05, "c": None, "d": "lin_1e-3", "e": {"x": [1.5]}, "f": "1e-3", "g": True}
    text = to_yml("E", {"train_freq": (4, "episode"), **values})
    assert yaml.safe_load(text)["E"] == {"train_freq": [4, "episode"], **values}
    with pytest.raises(ValueError, match="wrapper cannot be written in a yml file"):
        to_yml("E", {"wrapper": Unknown})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("vgp", "CartPole-v1"), "--algo: the zoo has no 'vgp', but .*vpg"),
        (config_of("vpg", "CardPole-v1"), "--env: there is no environment 'CardPole-v1'"),
        (config_of("vpg", "CartPole-v1", conf="none.yml"), "none.yml.*: pass -conf"),
        (config_of("vpg", "CartPole-v1", gym_packages=("no_such_package",)), "no_such_package.*or --gym-packages"),
        (config_of("vpg", "CartPole-v1", conf="walk.yml"), "Hyperparameters not found for vpg-CartPole-v1"),
        (
            config_of("vpg", "Acrobot-v1", conf="walk.yml"),
            "the hyperparameters of Acrobot-v1 do not say how long to train: pass -n",
        ),
        (config_of("svg0", "CartPole-v1"), "trial 0 has no '.*': it is not a trial of svg0"),
        (config_of("nstep_a2c", "CartPole-v1"), "trial 0 has no '.*': it is not a trial of nstep_a2c"),
        (config_of("crossq", "CartPole-v1"), "the zoo cannot tune crossq"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_runs(config: TrainingConfig, message: str, folder: Path) -> None:
    (folder / "walk.yml").write_text("Acrobot-v1: {policy: MlpPolicy}")
    [trial] = study_of("vpg", [1.0]).trials
    with pytest.raises(ValueError, match=message):
        trial_entry(trial, config, base_entry(config))


def test_a_trial_of_an_algorithm_with_similar_parameters_is_not_taken() -> None:
    [trial] = study_of("ppo", [1.0]).trials
    config = config_of("a2c", "CartPole-v1")
    with pytest.raises(ValueError, match="a2c does not take batch_size, clip_range, n_epochs, which trial 0 has"):
        trial_entry(trial, config, base_entry(config))


# ---- the command -----------------------------------------------------------------------------------------------------------


class Processes(StandIn):
    """Stand-ins whose policies are the worse the later the trial."""

    def rewards(self, command: Sequence[str]) -> list[float]:
        """
        Make up rewards.

        :param command: Arguments of Python.
        :return: 100 for trial 0, 90 for trial 1, ...; the second seed has 5 more.
        """
        run = next(Path(argument) for argument in command if "trial_" in argument)
        trial, seed = (int(run.parts[place].partition("_")[2]) for place in (-4, -3))
        return [100.0 - 10 * trial + 5 * (seed - FIRST)] * 2

    def take_trained(self) -> list[tuple[int, int]]:
        """
        Tell what was trained since the last call.

        :return: Trial and seed of every training run.
        """
        found = [(int(path.parent.name[len("trial_") :]), int(path.name[len("seed_") :])) for path in self.folders]
        self.folders.clear()
        return found


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """
    Replace the processes by a fake.

    :param monkeypatch: pytest's own.
    :return: The fake.
    """
    processes = Processes(runs.start)
    monkeypatch.setattr(runs, "start", processes.start)
    return processes


def call(more: str = "--seeds 2 --top 2") -> int:
    """
    Call the command for the study in ``s.log``.

    :param more: Further arguments.
    :return: Exit status.
    """
    return main(["--storage", "s.log", "--study-name", "s", *more.split()])


def test_the_best_trials_are_trained_ranked_and_written(
    folder: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of("vpg", [1.0, 7.0, math.nan, 9.0])
    assert call() == 0
    assert processes.take_trained() == [(3, FIRST), (3, SECOND), (1, FIRST), (1, SECOND)]
    out = capsys.readouterr().out
    output = folder / "reevaluation" / "s"
    assert "vpg on CartPole-v1, 3,000 steps. Best trials of study 's': 3, 1; 2 fresh seeds each.\n" in out
    rows = ["| 1 | 1 | 7 | 92.5 | 90 to 95 | 92.5 | 90 | 95 | 2 |", "| 2 | 3 | 9 | 72.5 | 70 to 75 | 72.5 | 70 | 75 | 2 |"]
    for text in (out, (output / "results.md").read_text()):
        assert "\n".join(rows) in text
        assert "lies above that of trial 3" in text
    assert "mean reward of the final policy over 20 episodes, acting deterministically" in (output / "results.md").read_text()
    results = json.loads((output / "results.json").read_text())
    assert (results["study"], results["algo"], results["env"]) == ("s", "vpg", "CartPole-v1")
    assert [row["trial"] for row in results["ranking"]] == [1, 3]
    assert results["ranking"][0]["rewards"] == {str(FIRST): 90.0, str(SECOND): 95.0}
    assert (output / "ranking.png").read_bytes().startswith(b"\x89PNG")
    winner = (output / "winner.yml").read_text()
    assert winner.startswith("# Trial 1: mean reward 92.5 on 2 fresh seeds (95% CI 90 to 95), 7 in the study.\nCartPole-v1:\n")
    assert yaml.safe_load(winner) == yaml.safe_load((output / "trial_1" / "hyperparams.yml").read_text())
    config = config_of("vpg", "CartPole-v1", n_timesteps=3000)
    assert yaml.safe_load(winner)["CartPole-v1"] == trial_entry(study.trials[1], config, base_entry(config))


def test_a_run_is_a_command_of_the_launcher(folder: Path, processes: Processes) -> None:
    study_of("vpg", [1.0], f"{COMMAND} --gym-packages json")
    assert call("--seeds 2 --first-seed 5 -o out --device cpu --eval-episodes 9") == 0
    assert processes.take_trained() == [(0, 5), (0, 6)]
    result = json.loads((folder / "out/trial_0/seed_5/result.json").read_text())
    assert result["command"] == (
        "python -m sb3_pg.zoo train --algo vpg --env CartPole-v1 --seed 5 -f out/trial_0/seed_5 --eval-freq -1 "
        "--eval-episodes 1 --num-threads 1 --verbose 0 --device cpu -conf out/trial_0/hyperparams.yml --gym-packages json"
    )
    assert result["made_by"][:5] == ["-m", "sb3_pg.zoo", "reevaluate", "--storage", "s.log"]
    assert result["settings"]["final_episodes"] == 9


def test_only_what_is_unfinished_runs_again(folder: Path, processes: Processes) -> None:
    study = study_of("vpg", [1.0, 7.0, 9.0])

    def trained_by(more: str = "--seeds 2 --top 2") -> list[tuple[int, int]]:
        assert call(f"{more} --jobs 4") == 0
        return processes.take_trained()

    everything = [(2, FIRST), (2, SECOND), (1, FIRST), (1, SECOND)]
    assert trained_by() == everything
    assert trained_by() == []
    # An interrupted run starts from scratch.
    (folder / f"reevaluation/s/trial_1/seed_{SECOND}/result.json").unlink()
    assert trained_by() == [(1, SECOND)]
    # With more seeds, more trials, and more trials in the study, existing results are kept.
    assert trained_by("--seeds 3 --top 2") == [(2, SECOND + 1), (1, SECOND + 1)]
    assert trained_by("--seeds 2 --top 3") == [(0, FIRST), (0, SECOND)]
    trial = study.ask()
    ALGOS["vpg"].load_sampler()(trial, 2, 8, {})
    study.tell(trial, 99.0)
    assert trained_by() == [(3, FIRST), (3, SECOND)]
    # With other training settings, existing results are discarded.
    assert trained_by("--seeds 2 --top 2 -n 4000") == [(3, FIRST), (3, SECOND), (2, FIRST), (2, SECOND)]


def test_failed_runs_are_told_and_tried_again(folder: Path, processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    study_of("vpg", [1.0, 7.0])
    processes.failing_seeds = {str(SECOND)}
    with pytest.raises(SystemExit, match="no trial has 2 finished seeds, so there is nothing to rank"):
        call()
    assert not (folder / "reevaluation/s/winner.yml").exists()
    assert call("--seeds 3 --top 2") == 1
    out, err = capsys.readouterr()
    assert "2 of 6 runs FAILED; run the same command to repeat them" in err
    assert "many lines\nthe reason\n" in err
    assert "| 1 | 0 | 1 | 105 | 100 to 110 | 105 | 100 | 110 | 2 |" in out  # of three seeds the first and the third
    processes.failing_seeds = set()
    processes.take_trained()
    assert call("--seeds 3 --top 2") == 0
    assert processes.take_trained() == [(1, SECOND), (0, SECOND)]


def test_a_trial_with_too_few_seeds_is_left_out(
    folder: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    study_of("vpg", [1.0, 7.0])
    assert call() == 0
    (folder / f"reevaluation/s/trial_0/seed_{FIRST}/result.json").unlink()
    processes.failing_seeds = {str(FIRST)}
    capsys.readouterr()
    assert call() == 1
    out = capsys.readouterr().out
    assert "Left out, with fewer than 2 finished seeds: trial 0.\n" in out
    assert "Trial 1 is the winner" in out


@pytest.mark.parametrize("jobs", [1, 2])
def test_at_most_so_many_run_at_once(jobs: int, processes: Processes) -> None:
    study_of("vpg", [1.0])
    processes.code = "import time; time.sleep(0.3)"
    assert call(f"--seeds 4 --jobs {jobs}") == 0
    assert processes.most_at_once == jobs


def test_an_interrupt_stops_the_processes_and_keeps_what_is_finished(
    folder: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study_of("vpg", [1.0])
    assert call("--seeds 2") == 0
    processes.code = "import time; time.sleep(600)"
    sleep = time.sleep

    def interrupt(_: float) -> None:
        monkeypatch.setattr(time, "sleep", sleep)
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert call("--seeds 4 --jobs 2") == 130
    assert "interrupted; finished runs are kept, run the same command to continue" in capsys.readouterr().err
    assert all(process.poll() is not None for process in processes.processes)
    kept = sorted(path.parent.name for path in folder.rglob("result.json"))
    assert kept == [f"seed_{FIRST}", f"seed_{SECOND}"]


def test_two_at_once_do_not_share_a_folder(folder: Path, processes: Processes) -> None:
    study_of("vpg", [1.0])
    (folder / "out").mkdir()
    with (folder / "out/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # conflicts with an exclusive lock only
        with pytest.raises(SystemExit, match="another process writes to out: wait, or choose another --output"):
            call("-o out")
    assert processes.folders == []


def test_without_matplotlib_all_else_is_written(
    folder: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study_of("vpg", [1.0])
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # marks a module that cannot be imported
    assert call("--seeds 2 -o out") == 0
    assert len(processes.folders) == 2
    out, err = capsys.readouterr()
    assert "pip install 'sb3-pg[plots]'" in err
    assert {path.name for path in (folder / "out").glob("*.*")} == {"winner.yml", "results.md", "results.json", ".lock"}
    assert "ranking.png" not in out


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_password_is_stored(folder: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("vpg", [1.0], COMMAND.replace("s.log", "postgresql://me:secret@host/base"))
    monkeypatch.setattr("sb3_pg.zoo.reevaluate.__main__.load_study", lambda *_: study)
    url = "postgresql://me:secret@host/base"
    assert main(["--storage", url, "--study-name", "s", "--seeds", "2", "-o", "out"]) == 0
    texts = [path.read_text() for path in (folder / "out").rglob("*") if path.suffix in {".md", ".json", ".yml"}]
    assert any("me:***@host" in text for text in texts)
    assert not any("secret" in text for text in texts)
    assert len(processes.folders) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--top 0", "argument --top: '0' is not a positive integer"),
        ("--jobs 0", "argument --jobs: '0' is not a positive integer"),
        ("--seeds 1", "argument --seeds: 1 seed has no spread: at least 2"),
        ("--first-seed -1", "argument --first-seed"),
        ("--eval-episodes 0", "argument --eval-episodes: '0' is not a positive integer"),
    ],
)
def test_wrong_options_are_named(more: str, message: str, processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call(more)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert processes.folders == []


def test_what_is_wrong_with_the_study_is_one_line(processes: Processes) -> None:
    study_of("vpg", [1.0])
    with pytest.raises(
        SystemExit, match=r"^python -m sb3_pg.zoo reevaluate: trial 0 has no '.*': it is not a trial of her_ddpg"
    ):
        call("--algo her_ddpg")
    with pytest.raises(SystemExit, match="has no study 't'; it has 's'"):
        main(["--storage", "s.log", "--study-name", "t"])
    assert processes.folders == []


def test_the_processes_find_a_zip_app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "theirs")
    assert runs.environment()["PYTHONPATH"] == "theirs"
    (folder / "zoo.pyz").touch()
    monkeypatch.setattr(runs, "__file__", str(folder / "zoo.pyz/sb3_pg/zoo/runs.py"))
    assert runs.environment()["PYTHONPATH"] == f"{folder / 'zoo.pyz'}:theirs"
    monkeypatch.delenv("PYTHONPATH")
    assert runs.environment()["PYTHONPATH"] == str(folder / "zoo.pyz")


def test_the_launcher_imports_nothing_of_it() -> None:
    code = "import sys, sb3_pg.zoo.__main__; print(*({'matplotlib', 'optuna', 'tqdm', 'sb3_pg.zoo.runs'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.bench
def test_it_trains_with_the_zoo_and_the_winner_can_be_trained(folder: Path) -> None:
    study_of("vpg", [1.0, 2.0, 3.0], COMMAND.replace("3000", "300"))

    def launch(*arguments: str) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "sb3_pg.zoo", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout

    options = ["--storage", "s.log", "--study-name", "s", "--top", "2", "--seeds", "2", "--jobs", "2", "--eval-episodes", "3"]
    assert " is the winner" in launch("reevaluate", *options, "-o", "out")
    results = json.loads((folder / "out/results.json").read_text())
    assert sorted(row["trial"] for row in results["ranking"]) == [1, 2]
    for row in results["ranking"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert all(8 <= reward <= 500 for reward in row["rewards"].values())  # no episode is shorter or longer
    assert (folder / "out/ranking.png").read_bytes().startswith(b"\x89PNG")
    out = launch("train", "-conf", "out/winner.yml", "--algo", "vpg", "--env", "CartPole-v1", "--eval-freq", "-1")
    assert "Loading hyperparameters from: out/winner.yml" in out
    assert (folder / "logs/vpg/CartPole-v1_1/CartPole-v1.zip").is_file()
