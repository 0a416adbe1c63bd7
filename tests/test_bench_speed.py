"""``scripts/bench_speed.py`` measures what it says: equal numbers of steps, taking turns, ratios within a round."""

import dataclasses
import functools
import json
from pathlib import Path
from types import ModuleType
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
    speed = bench_speed.Speed({"SB3": [10.0, 5.0, 10.0], "sb3_pg": [30.0, 15.0, 90.0]})
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
    assert {name: len(rounds) for name, rounds in speed.steps_per_second.items()} == dict.fromkeys(loops, 2)


@pytest.mark.slow
def test_a_whole_run(
    bench_speed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: dataclasses.replace(row, steps=row.n_envs * 8) for name, row in bench_speed.ROWS.items()}
    monkeypatch.setattr(bench_speed, "ROWS", {"cartpole-8": rows["cartpole-8"]})
    bench_speed.main(["--rounds", "1", "--json", str(tmp_path / "speed.json")])
    assert "| NStepA2C vs A2C, CartPole-v1 | 8 | 1 |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "speed.json").read_text())["steps_per_second"]["cartpole-8"]
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in figures.values())


def test_the_table_of_environments_has_ratios_to_the_first(bench_speed: ModuleType) -> None:
    speed = bench_speed.Speed(
        {"DummyVecEnv": [1000.0, 500.0], "SubprocVecEnv": [500.0, 250.0], "EnvPoolVecEnv": [4000.0, 1000.0]}
    )
    assert bench_speed.environments_markdown(["CartPole-v1"], [speed]).splitlines() == [
        "| 8 environments | DummyVecEnv, per second | SubprocVecEnv | EnvPoolVecEnv |",
        "|---|---|---|---|",
        "| CartPole-v1 | 750 | **0.50** (0.50 to 0.50) | **3.00** (2.00 to 4.00) |",
    ]


def test_all_ways_to_step_environments_take_turns(bench_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # EnvPool is not needed to see that.
    monkeypatch.setattr(bench_speed, "EnvPoolVecEnv", bench_speed.make_vec_env)
    monkeypatch.setattr(bench_speed, "SubprocVecEnv", bench_speed.make_vec_env.__globals__["DummyVecEnv"])
    monkeypatch.setattr(bench_speed, "ENVS_STEPS", 16)
    speed = bench_speed.measure_environments("CartPole-v1", 2, lambda: None)
    assert [len(rounds) for rounds in speed.steps_per_second.values()] == [2, 2, 2]


@pytest.mark.parametrize("arguments", [["nonsense"], ["--rounds", "0"], ["cartpole-8", "--envs", "CartPole-v1"]])
def test_wrong_arguments_are_refused(bench_speed: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench_speed.main(arguments)
