"""``python -m sb3_pg.zoo``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb3_pg.registry import ALGOS
from sb3_pg.zoo.__main__ import find_scripts, main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """
    Call it with a command line.

    :param monkeypatch: pytest's own.
    :param arguments: Arguments after ``sb3_pg.zoo``.
    """
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    main()


def assert_refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """
    Call it with an invalid command line.

    :param monkeypatch: pytest's own.
    :param arguments: Arguments after ``sb3_pg.zoo``.
    """
    with pytest.raises(SystemExit) as exit_info:
        run(monkeypatch, *arguments)
    assert exit_info.value.code == 2


def test_the_zoos_scripts_are_found() -> None:
    scripts = find_scripts()
    assert scripts["train"] == "rl_zoo3.train"
    assert scripts["plot_train"] == "rl_zoo3.plots.plot_train"
    assert {"enjoy", "record_video", "push_to_hub", "benchmark", "all_plots", "plot_from_file"} <= scripts.keys()
    assert not {"utils", "exp_manager", "__init__", "score_normalization"} & scripts.keys()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_scripts(flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, flag)
    out, err = capsys.readouterr()
    assert "usage: python -m sb3_pg.zoo SCRIPT" in out
    assert ", ".join(find_scripts()) in out
    assert err == ""


def test_no_script_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(monkeypatch)
    assert "usage: python -m sb3_pg.zoo SCRIPT" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "hint"), [("trian", "'trian', did you mean 'train'?"), ("--algo", "'--algo'\n")])
def test_an_unknown_script_is_named(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(monkeypatch, name, "--env", "CartPole-v1")
    out, err = capsys.readouterr()
    assert f"error: the zoo has no script {hint}" in err
    assert ", ".join(find_scripts()) in err
    assert out == ""


def test_without_the_zoo_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)  # marks a module that cannot be imported
    assert_refused(monkeypatch, "train")
    assert "rl_zoo3 is not installed" in capsys.readouterr().err


# runpy warns if another test has already imported the module.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("key", [*ALGOS, "a2c"])
def test_the_script_runs_with_our_algorithms(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The zoo accepts the algorithm, and then rejects the environment with its own message.
    with pytest.raises(ValueError, match="CardPole-v1 not found in gym registry, you maybe meant CartPole-v1"):
        run(monkeypatch, "train", "--algo", key, "--env", "CardPole-v1")
    assert sys.modules["__main__"].__name__ == "__main__"


# Warnings of the zoo and of Optuna are not tested here.
end_to_end = pytest.mark.filterwarnings("default")


def train(key: str, env: str, n_timesteps: int = 200) -> tuple[str, ...]:
    """
    Build a short training command.

    :param key: Zoo key.
    :param env: Id of the environment.
    :param n_timesteps: Number of steps.
    :return: Arguments of the launcher.
    """
    return ("train", "--algo", key, "--env", env, "-n", str(n_timesteps), "--device", "cpu", "-params", "n_envs:2")


@end_to_end
@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("key", ALGOS)
def test_train_enjoy_and_train_on(key: str, command: Callable[..., str], algorithms: dict[str, dict[str, Any]]) -> None:
    env = algorithms[key]["env"]
    folder = Path("logs", key, f"{env}_1")
    assert "Eval num_timesteps=100," in command(*train(key, env), "--eval-freq", "100", "--eval-episodes", "1")
    assert (folder / "best_model.zip").is_file()
    arguments = ("--algo", key, "--env", env, "-f", "logs", "--no-render", "-n", "400", "--device", "cpu")
    assert "Mean reward" in command("enjoy", *arguments)
    again = command(*train(key, env), "--eval-freq", "-1", "-i", str(folder / f"{env}.zip"))
    assert "Loading pretrained agent" in again
    assert f"Saving to {Path('logs', key, f'{env}_2')}" in again


@pytest.mark.slow
@end_to_end
@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("key", ALGOS)
def test_a_study_writes_its_report_and_its_trials_can_be_trained(
    key: str, command: Callable[..., str], algorithms: dict[str, dict[str, Any]]
) -> None:
    env = algorithms[key]["env"]
    study = ("--storage", "study.log", "--study-name", "study")
    options = ("-optimize", "--n-trials", "3", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots")
    # A study may sample minibatches of 2048 for HERDDPG, up to 160 of them after each episode.
    training = train(key, env, 60 if key == "her_ddpg" else 200)
    out = command(*training, *study, *options)
    assert "Number of finished trials:  3" in out
    assert "Best trial" in out
    (report,) = Path("logs", key).glob("report_*.csv")
    assert report.read_text().count("COMPLETE") == 3
    out = command(*training, *study, "--trial-id", "1", "--eval-freq", "-1")
    assert "Loading from Optuna study" in out
    assert "Saving to" in out
