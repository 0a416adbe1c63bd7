"""Training that goes on: from a finished run, from Ctrl-C, and from the last checkpoint before SIGKILL."""

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pg.common.files import atomic_write
from sb3_pg.registry import ALGOS
from sb3_pg.zoo.checkpoints import (
    REPLAY_BUFFER,
    VEC_NORMALIZE,
    ResumableCheckpointCallback,
    companion_file,
    replay_buffer_was_deleted,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("zoo")]

OFF_POLICY = ("svg0", "her_ddpg")
NORMALISED = ("vpg", "nstep_a2c", "svg0")
EVERY = 100
LONG = 10_000_000


def arguments(key: str, env: str, n_timesteps: int, *more: str) -> list[str]:
    """
    :param key: zoo key
    :param env: id of the environment
    :param n_timesteps: number of steps
    :param more: further arguments
    :return: arguments of the zoo's training command
    """
    sizes = ["batch_size:16", "train_freq:10", "gradient_steps:1"] if key in OFF_POLICY else []
    params = ["n_envs:2", *sizes, *(["normalize:True"] if key in NORMALISED else [])]
    command = ["train", "--algo", key, "--env", env, "-n", str(n_timesteps), "--device", "cpu", "--eval-freq", "-1"]
    return [*command, "--save-freq", str(EVERY), "--save-replay-buffer", *more, "-params", *params]


def start(key: str, env: str, folder: Path) -> "subprocess.Popen[str]":
    """
    Start a training run that would take forever.

    :param key: zoo key
    :param env: id of the environment
    :param folder: working directory
    :return: the process
    """
    # pytest changes the path of this process only.
    code = "import sys, runpy, signal; sys.path[:0] = sys.argv.pop(1).split('|'); import conftest"
    # A shell ignores Ctrl-C for background jobs, and child processes inherit that.
    code += "; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; runpy.run_module('sb3_pg.zoo', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, str(Path(__file__).resolve().parents[1]), *arguments(key, env, LONG)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: "subprocess.Popen[str]", folder: Path, number: int) -> None:
    """
    :param process: process of the training run
    :param folder: its working directory
    :param number: number of checkpoints to wait for
    """
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("rl_model_*[0-9]_steps.zip"))) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints(folder: Path) -> list[Path]:
    """
    :param folder: folder that contains the checkpoints, at any depth
    :return: models, the latest one last
    """
    return sorted(folder.rglob("rl_model_*[0-9]_steps.zip"), key=lambda path: int(path.stem.split("_")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("key", ALGOS)
def test_a_killed_training_goes_on_from_its_last_checkpoint(
    key: str, command: Callable[..., str], algorithms: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    env = algorithms[key]["env"]
    process = start(key, env, tmp_path)
    try:
        wait_for_checkpoint(process, tmp_path, 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    latest = checkpoints(tmp_path)[-1]
    steps = int(latest.stem.split("_")[2])
    for path in checkpoints(tmp_path):
        assert load_from_zip_file(path)[0] is not None  # complete
    printed = command(*arguments(key, env, EVERY, "-i", str(latest)))
    assert "Loading pretrained agent" in printed
    again = tmp_path / "logs" / key / f"{env}_2"
    assert (again / f"{env}.zip").is_file()
    if key in NORMALISED:
        assert f"Loading VecNormalize stats of the checkpoint: {companion_file(str(latest), VEC_NORMALIZE)}" in printed
        # Resets are counted as well.
        assert observations_seen(again / env / "vecnormalize.pkl") >= steps + EVERY
    if key in OFF_POLICY:
        assert f"Loading replay buffer of the checkpoint: {companion_file(str(latest), REPLAY_BUFFER)}" in printed
        before, after = ((path.read_bytes()) for path in (beside_buffer(latest), again / "replay_buffer.pkl"))
        assert pickle.loads(after).size() >= pickle.loads(before).size() + EVERY // 2 - 10


def beside_buffer(model: Path) -> Path:
    """
    :param model: a checkpoint
    :return: its replay buffer
    """
    path = companion_file(str(model), REPLAY_BUFFER)
    assert path is not None
    return path


def observations_seen(path: Path) -> float:
    """
    :param path: path of saved statistics
    :return: number of observations in them
    """
    with path.open("rb") as file:
        statistics: VecNormalize = pickle.load(file)
    assert not isinstance(statistics.obs_rms, dict)
    return statistics.obs_rms.count


@pytest.mark.slow
@pytest.mark.parametrize("key", ALGOS)
def test_ctrl_c_saves_everything(key: str, algorithms: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    env = algorithms[key]["env"]
    process = start(key, env, tmp_path)
    try:
        wait_for_checkpoint(process, tmp_path, 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    log = tmp_path / "logs" / key / f"{env}_1"
    assert ALGOS[key].load_class().load(log / f"{env}.zip", device="cpu").num_timesteps >= EVERY
    assert (log / "replay_buffer.pkl").is_file() == (key in OFF_POLICY)
    assert (log / env / "vecnormalize.pkl").is_file() == (key in NORMALISED)


@pytest.mark.parametrize("key", ALGOS)
def test_a_finished_training_goes_on(key: str, command: Callable[..., str], algorithms: dict[str, dict[str, Any]]) -> None:
    env = algorithms[key]["env"]
    command(*arguments(key, env, EVERY))
    folder = Path("logs", key, f"{env}_1")
    printed = command(*arguments(key, env, EVERY, "-i", str(folder / f"{env}.zip")))
    assert ("Loading saved VecNormalize stats" in printed) == (key in NORMALISED)
    assert ("Loading replay buffer" in printed) == (key in OFF_POLICY)


# ---- checkpoints -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_its_parts_and_only_the_latest_buffer(
    make_model: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = make_model()
    if "her_ddpg" not in request.node.callspec.id:
        model.set_env(VecNormalize(model.get_env()))
    stats = tmp_path / "settings" / "vecnormalize.pkl"
    stats.parent.mkdir()
    model.learn(
        200, ResumableCheckpointCallback(CheckpointCallback(100, str(tmp_path), "rl_model"), stats, save_replay_buffer=True)
    )
    models = checkpoints(tmp_path)
    assert len(models) >= 2
    buffered = hasattr(model, "replay_buffer")
    assert [companion_file(str(path), REPLAY_BUFFER) is not None for path in models] == [False] * (len(models) - 1) + [
        buffered
    ]
    assert [replay_buffer_was_deleted(str(path)) for path in models] == [buffered] * (len(models) - 1) + [False]
    normalised = model.get_vec_normalize_env() is not None
    assert {companion_file(str(path), VEC_NORMALIZE) is not None for path in models} == {normalised}
    assert stats.is_file() == normalised
    if normalised:
        latest = companion_file(str(models[-1]), VEC_NORMALIZE)
        assert latest is not None
        assert latest.read_bytes() == stats.read_bytes()


def test_what_is_beside_a_model(tmp_path: Path) -> None:
    for name in ("rl_model_100_steps.zip", "vecnormalize_100_steps.pkl", "CartPole-v1.zip"):
        (tmp_path / name).touch()
    agent = str(tmp_path / "rl_model_100_steps.zip")
    assert companion_file(agent, VEC_NORMALIZE) == tmp_path / "vecnormalize_100_steps.pkl"
    assert companion_file(agent, REPLAY_BUFFER) is None
    assert companion_file(str(tmp_path / "rl_model_200_steps.zip"), VEC_NORMALIZE) is None
    assert companion_file(str(tmp_path / "CartPole-v1.zip"), VEC_NORMALIZE) is None
    assert companion_file("", VEC_NORMALIZE) is None


# ---- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "model.zip", "model.v2"])
def test_saving_names_files_as_sb3_does(name: str, make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name if "." in name else f"{name}.zip"]


def cut_off(path: Path) -> None:
    """
    :param path: path of a file that is written in part only
    """
    with atomic_write(path, "zip") as part:
        Path(str(part)).write_text("aft")
        raise KeyboardInterrupt


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        cut_off(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(str(path), "zip") as part:
        Path(str(part)).write_text("after")
    assert path.read_text() == "after"


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """Signals that a handler of the user's has seen, where Ctrl-C is not ignored as it is for processes in the background."""
    seen: list[int] = []

    def handler(number: int, _: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    yield seen
    assert signal.signal(signal.SIGINT, before) is handler


def test_ctrl_c_waits_until_a_model_is_written(
    interrupts: list[int], make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(zipfile._ZipWriteFile):  # type: ignore[name-defined, misc, unused-ignore]  # not public
        def write(self, data: bytes) -> int:
            # torch.save() calls this from C++, and does not survive an exception.
            os.kill(os.getpid(), signal.SIGINT)
            written: int = super().write(data)
            return written

    monkeypatch.setattr(zipfile, "_ZipWriteFile", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_model().save(tmp_path / "model")
    assert interrupts == [signal.SIGINT]
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert load_from_zip_file(tmp_path / "model")[0] is not None
    with (tmp_path / "open.zip").open("wb") as file, pytest.raises(KeyboardInterrupt):
        make_model().save(file)
    assert load_from_zip_file(tmp_path / "open")[0] is not None


def fail_when_interrupted(path: Path) -> None:
    """
    :param path: path of a file that cannot be written
    """
    with atomic_write(path, "zip"):
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("no space left")


def test_ctrl_c_waits_for_an_error(interrupts: list[int], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        fail_when_interrupted(tmp_path / "model.zip")
    assert interrupts == [signal.SIGINT]
    assert isinstance(caught.value.__context__, OSError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_models_are_saved_where_ctrl_c_raises_nothing(
    handler: signal.Handlers, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, handler)
    make_model().save(tmp_path / "model")
    assert signal.signal(signal.SIGINT, before) is handler
    assert load_from_zip_file(tmp_path / "model")[0] is not None


def test_models_are_saved_by_other_threads(make_model: Callable[..., Any], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(make_model().save, tmp_path / "model").result()
    assert load_from_zip_file(tmp_path / "model")[0] is not None


def test_the_name_of_a_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "model.zip").mkdir()
    with atomic_write(tmp_path / "model", "zip") as part:
        Path(str(part)).write_text("text")
    assert (tmp_path / "model.zip_2").read_text() == "text"


def test_an_open_file_is_written_to(make_model: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with path.open("wb") as file:
        make_model().save(file)
    assert load_from_zip_file(path)[0] is not None


@pytest.mark.parametrize("key", OFF_POLICY)
def test_a_model_is_loaded_without_memory_for_its_experience(
    key: str, algorithms: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    cls = ALGOS[key].load_class()
    small = cls(**{**algorithms[key], "buffer_size": 10**12}, device="cpu")  # more memory than any machine has
    small.save(tmp_path / "model")
    env = small.get_env()
    assert isinstance(env, DummyVecEnv)
    model: Any = cls.load(tmp_path / "model", env=env, device="cpu")
    model.predict(env.reset(), deterministic=True)
    buffer = vars(model.replay_buffer)
    assert model.replay_buffer.buffer_size == 10**12
    assert sum(array.nbytes for array in buffer.values() if isinstance(array, np.ndarray)) < 10_000
