"""``scripts/benchmark.py``: what it runs, what it leaves alone, and the numbers that it reports."""

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import script_modules
from zoo_processes import REWARDS, StandIn

from sb3_pg.zoo import runs

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "benchmark.py"
CONF = "default: {n_timesteps: 1000}\nCartPole-v1: {n_timesteps: 2000}\n"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("benchmark")


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """
    Replace the processes by a fake.

    :param monkeypatch: pytest's own.
    :return: The fake.
    """
    zoo = StandIn(runs.start)
    monkeypatch.setattr(runs, "start", zoo.start)
    return zoo


@pytest.fixture
def call(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """
    Call the script.

    :param benchmark: The script.
    :param monkeypatch: pytest's own.
    :return: Function of the command line that returns the exit status, or the message of the exit.
    """

    def call(line: str) -> object:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *line.split()])
        monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)  # the test process keeps its own
        with pytest.raises(SystemExit) as caught:
            benchmark.main()
        return caught.value.code

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Work in an empty folder with a file of hyperparameters.

    :param tmp_path: pytest's own.
    :param monkeypatch: pytest's own.
    :return: The folder.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.yml").write_text(CONF)
    return tmp_path


def write_result(
    folder: Path, seed: int, mean: float, curve: tuple[Sequence[float], Sequence[float]], **settings: Any
) -> None:
    """
    Write a result by hand.

    :param folder: Output, label and environment.
    :param seed: Seed of the run.
    :param mean: Reward of its final policy.
    :param curve: Steps and rewards of its evaluations.
    :param settings: Of the run, further ones.
    """
    result = {
        "settings": {"env": folder.name, "seed": seed, "final_episodes": 20, **settings},
        "made_by": ["run", "--algo", "vpg"],
        "versions": {"python": "3.11", "torch": "2.8"},
        "machine": "abacus, 10 cores",
        "steps": 1000 + seed,
        "wall_seconds": 10.0 * seed,
        "mean": mean,
        "curve": {"steps": list(curve[0]), "mean": list(curve[1])},
    }
    (folder / f"seed_{seed}").mkdir(parents=True)
    (folder / f"seed_{seed}" / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("texts", "seeds", "shown"),
    [(["7"], [7], "7"), (["101-103"], [101, 102, 103], "101-103"), (["9", "1-2", "2-3"], [1, 2, 3, 9], "1-3 9")],
)
def test_seeds_are_read_and_shown(benchmark: ModuleType, texts: list[str], seeds: list[int], shown: str) -> None:
    assert benchmark.parse_seeds(texts) == seeds
    assert benchmark.show_seeds(reversed(seeds)) == shown


@pytest.mark.parametrize("text", ["", "-3", "a", "3-1", "1-2-3", "1.5"])
def test_wrong_seeds_are_named(benchmark: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is neither a number nor a range"):
        benchmark.parse_seeds([text])


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([1, 5, 5, 5], 20),
        ([5, 5, 4, 5], 40),  # a relapse: what came before does not count
        ([5, 5, 5, 5], 10),
        ([5, 5, 5, 4], float("inf")),
        ([], float("inf")),
    ],
)
def test_solved_means_for_good(benchmark: ModuleType, means: list[float], expected: float) -> None:
    assert benchmark.steps_to_solve({"steps": [10, 20, 30, 40][: len(means)], "mean": means}, threshold=5) == expected


def test_the_table_holds_the_numbers_of_the_results(
    folder: Path, call: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, mean, curve in ((1, 10.0, (1, 9, 9)), (2, 30.0, (9, 9, 9)), (5, 20.5, (9, 1, 1))):
        write_result(folder / "out/mine/Walk-v1", seed, mean, ((100, 200, 300), curve))
    write_result(folder / "other/theirs/Walk-v1", 1, -12345.6, ((100,), (1,)))
    assert call("table out other --threshold 9 -o table.md") == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]
    assert rows[0][:8] == ["label", "environment", "steps", "seeds", "median", "min", "max", "all"]
    assert rows[0][8:] == ["wall time", "steps to 9: median", "slowest"]
    assert rows[2:] == [
        ["mine", "Walk-v1", "1,002", "1-2 5", "20.5", "10", "30", "10, 30, 20.5", "20 s", "200", "not reached"],
        ["theirs", "Walk-v1", "1,001", "1", "-12346", "-12346", "-12346", "-12346", "10 s", "not reached", "not reached"],
    ]
    assert "python scripts/benchmark.py run --algo vpg\n" in printed
    assert "- abacus, 10 cores\n- python 3.11, torch 2.8\n" in printed
    assert (folder / "table.md").read_text() == printed[:-1]


def test_results_of_different_settings_are_not_mixed(folder: Path, benchmark: ModuleType) -> None:
    for seed, gamma in ((1, 0.9), (2, 0.9), (3, 1.0)):
        write_result(folder / "out/mine/Walk-v1", seed, float(seed), ((), ()), gamma=gamma)
    rows = benchmark.tabulate(benchmark.read_results([folder]), None)
    assert [(row["label"], row["seeds"]) for row in rows] == [("mine (settings 1)", [1, 2]), ("mine (settings 2)", [3])]


def test_without_results_there_is_no_table(folder: Path, call: Callable[[str], object]) -> None:
    assert call(f"table {folder.name}") == f"benchmark.py: no result.json of a finished run in {folder.name}"


@pytest.mark.usefixtures("zoo")
def test_a_run_holds_everything_about_itself(folder: Path, call: Callable[[str], object]) -> None:
    line = "run --algo a2c --env CartPole-v1 --seeds 3 -o out --label mine --conf conf.yml -n 2000 --eval-freq 1000"
    line += " --params gamma:0.9 n_steps:8"
    assert call(line) == 0
    result = json.loads((folder / "out/mine/CartPole-v1/seed_3/result.json").read_text())
    assert result["command"] == (
        "python -m rl_zoo3.train --algo a2c --env CartPole-v1 --seed 3 -f out/mine/CartPole-v1/seed_3 --eval-freq 1000 "
        "--eval-episodes 5 --num-threads 1 --verbose 0 --device cpu -conf conf.yml "
        "-params gamma:0.9 n_steps:8 -n 2000"
    )
    assert result["made_by"] == line.split()
    assert (result["steps"], result["rewards"], result["mean"]) == (2048, REWARDS, 3.0)
    assert result["std"] == pytest.approx((14 / 3) ** 0.5)  # deviations -2, -1 and 3
    assert result["curve"] == {"steps": [1000, 2000], "mean": [1.0, 4.0]}
    assert {"python", "sb3_pg", "torch", "stable-baselines3", "gymnasium"} <= result["versions"].keys()
    [row] = json.loads((folder / "out/results.json").read_text())
    assert (row["label"], row["env"], row["seeds"], row["median"]) == ("mine", "CartPole-v1", [3], 3.0)
    assert line in (folder / "out/results.md").read_text()


def test_only_what_is_unfinished_runs_again(folder: Path, call: Callable[[str], object], zoo: StandIn) -> None:
    line = "run --algo a2c --env CartPole-v1 Acrobot-v1 --seeds 1-2 -o out --conf conf.yml"
    everything = ["CartPole-v1 1", "CartPole-v1 2", "Acrobot-v1 1", "Acrobot-v1 2"]

    def trained_by(line: str) -> list[str]:
        zoo.trained.clear()
        assert call(line) == 0
        return zoo.trained

    assert trained_by(line) == everything
    assert trained_by(line) == []
    # An interrupted run starts from scratch in an empty folder.
    cut_off = folder / "out/a2c/CartPole-v1/seed_2"
    (cut_off / "result.json").unlink()
    (cut_off / "left_over").touch()
    assert trained_by(line) == ["CartPole-v1 2"]
    assert not (cut_off / "left_over").exists()
    # Other hyperparameters: those of one environment concern no other.
    (folder / "conf.yml").write_text(CONF.replace("2000", "3000"))
    assert trained_by(line) == everything[:2]
    assert trained_by(f"{line} --final-episodes 7") == everything
    assert trained_by(f"{line} --final-episodes 7 --params gamma:0.9") == everything
    assert trained_by(f"{line} --final-episodes 7") == everything
    # How many at a time, and what counts as solved, changes no result.
    assert trained_by(f"{line} --final-episodes 7 --jobs 2 --threshold 3") == []


@pytest.mark.usefixtures("folder")
def test_a_failed_run_is_reported_and_the_others_go_on(
    call: Callable[[str], object], zoo: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "run --algo a2c --env CartPole-v1 --seeds 1-3 -o out --conf conf.yml"
    zoo.failing_seeds = {"2"}
    assert call(line) == 1
    out, err = capsys.readouterr()
    assert "out/a2c/CartPole-v1/seed_2: exit status 3, the end of train.log:\n" in err
    assert "many lines\nthe reason\n" in err
    assert err.count("many lines") == 14
    assert "1 of 3 runs FAILED" in out
    assert "| 1 3 |" in out
    zoo.failing_seeds, zoo.trained = set(), []
    assert call(line) == 0
    assert zoo.trained == ["CartPole-v1 2"]


@pytest.mark.usefixtures("folder")
def test_a_training_without_a_model_has_failed(
    call: Callable[[str], object], zoo: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "_write_model", lambda *_: None)
    assert "no result.json" in str(call("run --algo a2c --env CartPole-v1 --seeds 1 -o out --conf conf.yml"))
    assert "seed_1: training has saved no model" in capsys.readouterr().err


def test_a_folder_of_somebody_elses_is_left_alone(
    folder: Path, call: Callable[[str], object], zoo: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = folder / "out/a2c/CartPole-v1/seed_1/precious"
    precious.parent.mkdir(parents=True)
    precious.touch()
    assert call("run --algo a2c --env CartPole-v1 --seeds 1-2 -o out --conf conf.yml") == 1
    assert "seed_1 is not empty and was not written by this script" in capsys.readouterr().err
    assert precious.exists()
    assert zoo.trained == ["CartPole-v1 2"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("jobs", [1, 2])
def test_at_most_so_many_run_at_once(jobs: int, call: Callable[[str], object], zoo: StandIn) -> None:
    zoo.code = "import time; time.sleep(0.3)"
    assert call(f"run --algo a2c --env CartPole-v1 --seeds 1-4 -o out --conf conf.yml --jobs {jobs}") == 0
    assert zoo.most_at_once == jobs


def test_an_interrupt_stops_the_processes_and_keeps_what_is_finished(
    folder: Path, call: Callable[[str], object], zoo: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "run --algo a2c --env CartPole-v1 --seeds 1-4 -o out --conf conf.yml --jobs 2"
    assert call(line.replace("1-4", "1")) == 0
    zoo.code = "import time; time.sleep(600)"

    def interrupt(_: float) -> None:
        monkeypatch.setattr(time, "sleep", sleep)
        raise KeyboardInterrupt

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", interrupt)
    assert call(line) == "benchmark.py: interrupted; finished runs are kept"
    assert len(zoo.processes) == 2 + 2
    assert all(process.poll() is not None for process in zoo.processes)
    assert [path.parent.name for path in folder.rglob("result.json")] == ["seed_1"]


def test_two_at_once_do_not_share_a_label(folder: Path, call: Callable[[str], object], zoo: StandIn) -> None:
    (folder / "out").mkdir()
    line = "run --algo a2c --env CartPole-v1 --seeds 1 -o out --conf conf.yml"
    with (folder / "out/.a2c.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # conflicts with an exclusive lock only
        assert "another benchmark writes to out" in str(call(line))
        assert zoo.trained == []
        assert call(f"{line} --label other") == 0
    assert call(line) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--algo a2c --env Walk-v1 --conf none.yml", "none.yml does not exist"),
        ("--algo nonsense --env CartPole-v1", "no hyperparameters for --algo nonsense"),
        ("--algo a2c --env CartPole-v1 --label a/b", "'a/b' is not a valid folder name"),
        ("--algo a2c --env Walk-v1 --conf conf.yml", "conf.yml has no entry for Walk-v1"),
    ],
)
def test_wrong_options_are_named_before_anything_runs(
    options: str, message: str, folder: Path, call: Callable[[str], object], zoo: StandIn
) -> None:
    (folder / "conf.yml").write_text("CartPole-v1: {n_timesteps: 2000}")
    assert message in str(call(f"run {options} --seeds 1 -o out"))
    assert zoo.trained == []


def test_the_shipped_hyperparameters_are_the_default(benchmark: ModuleType) -> None:
    assert benchmark.read_hyperparams("vpg", "CartPole-v1", None).keys() == {"CartPole-v1"}
    assert benchmark.read_hyperparams("vpg", "Unheard-v1", None).keys() == {"default"}
    assert benchmark.read_hyperparams("a2c", "CartPole-v1", None)["CartPole-v1"]["n_envs"] == 8


def test_curves_meet_where_all_seeds_were_evaluated(benchmark: ModuleType) -> None:
    curves = [([10, 20, 30], [1, 2, 3]), ([10, 30, 40], [5, 6, 7])]
    steps, rewards = benchmark.median_curve([{"curve": dict(zip(("steps", "mean"), curve, strict=True))} for curve in curves])
    assert steps.tolist() == [10, 30]
    assert rewards.tolist() == [[1, 3], [5, 6]]
    with pytest.raises(ValueError, match="no evaluation at the same step"):
        benchmark.median_curve([{"curve": {"steps": [10], "mean": [1]}}, {"curve": {"steps": [20], "mean": [1]}}])


def test_the_picture_shows_median_and_range(
    folder: Path, benchmark: ModuleType, call: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, first in ((1, 10.0), (2, 40.0), (3, 20.0)):
        write_result(folder / "out/mine/Walk-v1", seed, 0.0, ((100, 200), (first, 50.0)))
        write_result(folder / "out/mine/Run-v1", seed, 0.0, ((100, 200), (first, 50.0)))
    write_result(folder / "out/theirs/Walk-v1", 1, 0.0, ((100, 200), (7.0, 7.0)))
    figures: list[Any] = []
    monkeypatch.setattr(benchmark.plt, "close", figures.append)
    assert call("plot out -o curves.png --log-x --threshold 45") == 0
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    run, walk = figures[0].axes
    assert (run.get_title(), walk.get_title(), walk.get_xscale()) == ("Run-v1", "Walk-v1", "log")
    [mine, theirs] = [line for line in walk.get_lines() if line.get_label() in {"mine", "theirs"}]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["mine", "theirs"]
    assert figures[0].get_supylabel() == "reward: median and range of 1 or 3 seeds"
    assert mine.get_ydata().tolist() == [20, 50]
    assert theirs.get_ydata().tolist() == [7, 7]
    band = walk.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (10, 50)
    monkeypatch.undo()
    benchmark.plt.close(figures[0])


@pytest.mark.slow
def test_it_trains_and_evaluates_with_the_zoo(folder: Path) -> None:
    (folder / "conf.yml").write_text("CartPole-v1: {n_timesteps: 500, n_envs: 2, policy: MlpPolicy, normalize: true}")
    line = "run --algo a2c --env CartPole-v1 --seeds 1 -o out --conf conf.yml --eval-freq 200 --final-episodes 3"
    began = time.monotonic()
    subprocess.run([sys.executable, str(SCRIPT), *line.split()], check=True, capture_output=True, text=True, cwd=folder)
    result = json.loads((folder / "out/a2c/CartPole-v1/seed_1/result.json").read_text())
    assert result["steps"] == 500
    assert result["curve"]["steps"] == [200, 400]
    assert len(result["rewards"]) == 3
    assert all(reward >= 8 for reward in result["rewards"])  # as they are, not normalised: no episode is shorter
    assert 0 < result["wall_seconds"] < time.monotonic() - began
