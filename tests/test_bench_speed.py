"""``scripts/bench_speed.py`` measures what it says: equal numbers of steps, taking turns, ratios within a round."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import script_modules


@pytest.fixture(scope="module")
def bench_speed() -> ModuleType:
    """
    Import the script.

    :return: The module.
    """
    return script_modules.load("bench_speed")


def test_ratios_are_taken_within_a_round(bench_speed: ModuleType) -> None:
    """Both loops are slowed down alike in the second round, and the third is an outlier."""
    speed = bench_speed.Figures({"SB3": [10.0, 5.0, 10.0], "sb3_pg": [30.0, 15.0, 90.0]})
    assert speed.ratio("sb3_pg") == 3
    assert speed.ratio("SB3", base="sb3_pg") == 1 / 3
    assert speed.median("SB3") == 10


def test_every_loop_takes_the_steps_of_the_row(bench_speed: ModuleType) -> None:
    row = dataclasses.replace(bench_speed.ROWS["cartpole-8"], steps=80)
    taken: dict[str, int] = {}
    for name, run in bench_speed.loops_of(row).items():
        result: Any = run()
        taken[name] = 80 if result is None else result.num_timesteps
    assert taken == {"environment": 80, "SB3": 80, "sb3_pg": 80}


def test_updates_are_counted_where_the_row_says_so(bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_speed, "UPDATE_EXPERIENCE", 300)
    row = dataclasses.replace(bench_speed.ROWS["svg0-pendulum"], steps=3, batch_size=64)
    loops = bench_speed.loops_of(row)
    assert set(loops) == {"SB3", "sb3_pg"}
    for run in loops.values():
        assert isinstance(run, functools.partial)
        model = run.func.__self__  # type: ignore[attr-defined]  # a method of the model
        assert (model.num_timesteps, model._n_updates) == (300, 0)
        run()
        assert model._n_updates == 3


def test_the_first_round_does_not_count_and_all_take_turns(bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    loops = {name: functools.partial(order.append, name) for name in ("environment", "SB3", "sb3_pg")}
    monkeypatch.setattr(bench_speed, "loops_of", lambda _: loops)
    speed = bench_speed.measure(bench_speed.ROWS["cartpole-1"], 2, lambda: None)
    assert order == ["environment", "SB3", "sb3_pg"] * 3
    assert {name: len(rounds) for name, rounds in speed.values.items()} == dict.fromkeys(loops, 2)


@pytest.mark.slow
def test_a_whole_run(
    bench_speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_speed, "ROWS", {"cartpole-8": bench_speed.ROWS["cartpole-8"]})
    bench_speed.main(["--rounds", "1", "--steps", "64", "--json", str(tmp_path / "speed.json")])
    assert "| NStepA2C vs A2C, CartPole-v1 | 8 | 1 |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "speed.json").read_text())["steps_per_second"]["cartpole-8"]
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in figures.values())


def test_the_table_of_environments_has_ratios_to_the_first(bench_speed: ModuleType) -> None:
    speed = bench_speed.Figures(
        {"DummyVecEnv": [1000.0, 500.0], "SubprocVecEnv": [500.0, 250.0], "EnvPoolVecEnv": [4000.0, 1000.0]}
    )
    assert bench_speed.environments_markdown(["CartPole-v1"], [speed]).splitlines() == [
        "| 8 environments | DummyVecEnv, per second | SubprocVecEnv | EnvPoolVecEnv |",
        "|---|---|---|---|",
        "| CartPole-v1 | 750 | **0.50** (0.50 to 0.50) | **3.00** (2.00 to 4.00) |",
    ]


def test_all_ways_to_step_environments_take_turns(bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # EnvPool is not needed to see that.
    monkeypatch.setattr("sb3_pg.envs.envpool.EnvPoolVecEnv", bench_speed.make_vec_env)
    monkeypatch.setattr(bench_speed, "SubprocVecEnv", bench_speed.make_vec_env.__globals__["DummyVecEnv"])
    monkeypatch.setattr(bench_speed, "ENVS_STEPS", 16)
    speed = bench_speed.measure_environments("CartPole-v1", 2, lambda: None)
    assert [len(rounds) for rounds in speed.values.values()] == [2, 2, 2]


@pytest.fixture
def fake_children(bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """
    Replace the processes: each reports one second more than the one before.

    :return: their arguments, in order: loop, folder of sb3_pg, ``OMP_NUM_THREADS``
    """
    calls: list[tuple[Any, ...]] = []

    def cost(_row: str, name: str, _steps: int | None, folder: Path, variables: dict[str, str]) -> dict[str, float]:
        calls.append((name, folder, variables.get("OMP_NUM_THREADS")))
        return {"cpu": float(len(calls)), "wall": 10.0 * len(calls)}

    monkeypatch.setattr(bench_speed, "cost_in_child", cost)
    return calls


def test_processes_with_the_old_and_the_new_package_take_turns(
    bench_speed: ModuleType, fake_children: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(bench_speed.subprocess, "run", lambda command, **_: installed.append(command))
    figures = bench_speed.compare_with(Path("old.whl"), "cartpole-8", 2, None, lambda: None)
    assert figures.values == {"old": [1, 3], "new": [2, 4], "old, wall": [10, 30], "new, wall": [20, 40]}
    target = Path(installed[0][installed[0].index("--target") + 1]).resolve()
    assert [call[:2] for call in fake_children] == [("sb3_pg", target), ("sb3_pg", bench_speed.folder_of_package())] * 2
    assert bench_speed.against_markdown([bench_speed.ROWS["cartpole-8"]], [figures]).splitlines()[2] == (
        "| NStepA2C vs A2C, CartPole-v1 | 8 | 1 | 2.000 | 3.000 | **1.67** (1.33 to 2.00) | 1.67 |"
    )


def test_processes_with_and_without_the_variable_take_turns(
    bench_speed: ModuleType, fake_children: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    figures = bench_speed.compare_threads("threads-a2c", 1, None, lambda: None)
    assert figures.values == {"SB3, torch": [1], "SB3, variable": [2], "sb3_pg, torch": [3], "sb3_pg, variable": [4]}
    assert [(call[0], call[2]) for call in fake_children] == [("SB3", None), ("SB3", "1"), ("sb3_pg", None), ("sb3_pg", "1")]
    assert bench_speed.threads_markdown([bench_speed.ALL_ROWS["threads-a2c"]], [figures]).splitlines()[2] == (
        "| NStepA2C vs A2C, n_steps 512, CartPole-v1 | 8 | 1 | "
        "2.000 | 1.000 | **0.50** (0.50 to 0.50) | 4.000 | 3.000 | **0.75** (0.75 to 0.75) |"
    )


def test_a_process_measures_one_loop_after_a_round_that_does_not_count(
    bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    clock = iter([0, 100, 200, 201, 300, 303, 400, 402])  # beginning and end of each round
    monkeypatch.setattr(bench_speed, "loop_of", lambda *_: functools.partial(rounds.append, 1))
    monkeypatch.setattr(bench_speed.time, "process_time", lambda: next(clock))
    cost = bench_speed.cost_of(bench_speed.ROWS["cartpole-1"], "sb3_pg")
    assert len(rounds) == 4
    assert cost["cpu"] == 2
    assert Path(cost["folder"], "sb3_pg", "registry.py").is_file()


@pytest.mark.slow
def test_a_process_imports_the_package_that_is_to_be_measured(bench_speed: ModuleType, tmp_path: Path) -> None:
    """A copy of the package, where pip would install an older one."""
    shutil.copytree(bench_speed.folder_of_package() / "sb3_pg", tmp_path / "sb3_pg")
    cost = bench_speed.cost_in_child("cartpole-8", "sb3_pg", 80, tmp_path.resolve(), os.environ)
    assert Path(cost["folder"]) == tmp_path.resolve()
    assert cost["cpu"] > 0
    assert cost["wall"] > 0


def test_a_process_that_imports_another_package_is_refused(
    bench_speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = f"Some library greets.\n{json.dumps({'cpu': 1, 'wall': 1, 'folder': str(tmp_path)})}\n"
    monkeypatch.setattr(bench_speed.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=stdout))
    assert bench_speed.cost_in_child("cartpole-8", "SB3", 80, tmp_path, {})["cpu"] == 1
    with pytest.raises(RuntimeError, match="was imported from"):
        bench_speed.cost_in_child("cartpole-8", "SB3", 80, tmp_path / "other", {})


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--rounds", "0"],
        ["--steps", "0"],
        ["cartpole-8", "--envs", "CartPole-v1"],
        ["--against", "missing.whl"],
        ["--threads", "--envs", "CartPole-v1"],
    ],
)
def test_wrong_arguments_are_refused(bench_speed: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench_speed.main(arguments)
