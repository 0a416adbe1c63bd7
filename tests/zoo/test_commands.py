"""Each command of the zoo with each of our algorithms: the table in docs/zoo.md."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe  # type: ignore[import-untyped]  # it has no annotations
from matplotlib import pyplot as plt
from stable_baselines3.common.base_class import BaseAlgorithm
from zoo.conftest import run_script

from sb3_pg.registry import ALGOS
from sb3_pg.zoo import children

# Warnings of the zoo and of the plotting libraries are not tested here.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("zoo")]

# Two episodes of Pendulum-v1.
STEPS, EVERY = 400, 200
# Some algorithms are normalised and some are not, to test with and without statistics.
NORMALISED = ("nstep_a2c", "svg0")
SMALL = {
    "svg0": ["batch_size:16", "gradient_steps:1", "train_freq:16", "learning_starts:50"],
    "her_ddpg": ["batch_size:16", "gradient_steps:2", "policy_kwargs:dict(net_arch=[16])"],
}
OUR_KEYS = {
    "vpg": {"train/policy_loss", "train/value_loss", "train/weight_std"},
    "nstep_a2c": {"train/policy_loss", "train/value_loss", "train/entropy_loss"},
    "svg0": {"train/actor_loss", "train/critic_loss"},
    "her_ddpg": {"train/actor_loss", "train/critic_loss", "train/q_value"},
}
TESTS = Path(__file__).resolve().parents[1]


class Trained:
    """
    Output of a training run, and methods to run scripts on it.

    :param key: zoo key
    :param env: id of the environment
    :param folder: working directory
    """

    def __init__(self, key: str, env: str, folder: Path) -> None:
        self.key, self.env, self.folder = key, env, folder
        self.log = folder / "logs" / key / f"{env}_1"

    def run(self, script: str, *arguments: str) -> str:
        """
        :param script: name of a script that takes algorithm and environment
        :param arguments: further arguments
        :return: output of the script
        """
        return run_script(self.folder, script, "--algo", self.key, "--env", self.env, "-f", "logs", *arguments)

    def copy(self, folder: Path) -> "Trained":
        """
        :param folder: empty folder
        :return: a copy in that folder
        """
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Trained(self.key, self.env, folder)


def train_arguments(key: str) -> list[str]:
    """
    :param key: zoo key
    :return: arguments of a short training run
    """
    params = ["n_envs:2", *SMALL.get(key, []), *(["normalize:True"] if key in NORMALISED else [])]
    return ["-n", str(STEPS), "--device", "cpu", "--seed", "1", "-params", *params]


@pytest.fixture(scope="module", params=ALGOS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, algorithms: dict[str, dict[str, Any]]
) -> Trained:
    """
    Train once for all tests.

    :param request: pytest's own.
    :param tmp_path_factory: pytest's own.
    :param algorithms: Small models.
    :return: A finished training run with evaluations, checkpoints and TensorBoard logs.
    """
    made = Trained(request.param, algorithms[request.param]["env"], tmp_path_factory.mktemp(request.param))
    every = str(EVERY)
    options = ["--eval-freq", every, "--eval-episodes", "2", "--save-freq", every, "--save-replay-buffer", "-tb", "tb"]
    options += ["--log-interval", "1"]
    made.run("train", *train_arguments(made.key), *options)
    return made


@pytest.fixture
def trained(finished: Trained, tmp_path: Path) -> Trained:
    """
    Provide a copy that a test may change.

    :param finished: The training run.
    :param tmp_path: Parent folder of the copy.
    :return: The copy.
    """
    return finished.copy(tmp_path / "copy")


def load(made: Trained, path: Path, **kwargs: Any) -> BaseAlgorithm:
    """
    :param made: the training run
    :param path: path of the model
    :param kwargs: further arguments of ``load``
    :return: the model
    """
    return ALGOS[made.key].load_class().load(path, device="cpu", **kwargs)


def is_video(path: Path) -> bool:
    """
    :param path: a file
    :return: whether it is a video with several frames
    """
    frames, _ = count_frames_and_secs(str(path))
    return bool(frames > 1)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Provide our test environment and ffmpeg to child processes.

    :param tmp_path: Folder for the files.
    :param monkeypatch: pytest's own.
    """
    folder = tmp_path / "outside"
    folder.mkdir()
    # Python imports this module at start-up.
    register = "gymnasium.register('PointGoal-v0', entry_point='goal_envs:PointGoalEnv', max_episode_steps=10)"
    (folder / "sitecustomize.py").write_text(f"import gymnasium\n{register}\n")
    (folder / "ffmpeg").symlink_to(get_ffmpeg_exe())
    found = [str(folder), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))


def child(command: list[str], folder: Path) -> str:
    """
    :param command: command line
    :param folder: working directory
    :return: output of the process
    """
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


# ---- train -----------------------------------------------------------------------------------------------------------------


def test_training_leaves_what_the_zoo_promises(trained: Trained) -> None:
    files = {path.name for path in trained.log.iterdir()}
    assert {f"{trained.env}.zip", "best_model.zip", "evaluations.npz", "0.monitor.csv", "1.monitor.csv"} <= files
    assert {f"rl_model_{n}_steps.zip" for n in (EVERY, 2 * EVERY)} <= files
    assert load(trained, trained.log / f"{trained.env}.zip").num_timesteps >= STEPS
    assert not list(trained.folder.rglob("*.part"))


def test_tensorboard_has_our_keys(trained: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        EventAccumulator,
    )

    (events,) = trained.folder.glob(f"tb/{trained.env}/*/events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    scalars = set(accumulator.Tags()["scalars"])
    assert scalars >= {"eval/mean_reward", "rollout/ep_rew_mean", *OUR_KEYS[trained.key]}


@pytest.mark.bench
@pytest.mark.usefixtures("outside")
def test_tracking_has_our_keys(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases in its offline mode, in a process of its own: it changes TensorBoard's classes."""
    command = [sys.executable, "-m", "sb3_pg.zoo", "train", "--algo", trained.key, "--env", trained.env, "--track"]
    command += ["-f", "tracked", "--eval-freq", "-1", "--log-interval", "1", *train_arguments(trained.key)]
    monkeypatch.setenv("WANDB_MODE", "offline")
    child(command, trained.folder)
    (record,) = trained.folder.glob("wandb/offline-run-*/run-*.wandb")
    found = {text.decode() for text in re.findall(rb"(?:train|rollout)/\w+", record.read_bytes())}
    assert found >= {"rollout/ep_rew_mean", *OUR_KEYS[trained.key]}


@pytest.mark.parametrize("option", ["--progress", "--uuid", "--num-threads", "--vec-env"])
def test_options_of_training(option: str, trained: Trained) -> None:
    value = {"--num-threads": ["1"], "--vec-env": ["subproc"]}.get(option, [])
    printed = trained.run("train", "--eval-freq", "-1", *train_arguments(trained.key), option, *value)
    (folder,) = (path for path in trained.log.parent.iterdir() if path.name.startswith(f"{trained.env}_2"))
    assert (folder / f"{trained.env}.zip").is_file()
    assert bool(re.search(r"_2_[0-9a-f]{8}-", folder.name)) == (option == "--uuid")
    if option == "--progress":
        assert "100%" in printed


# ---- enjoy and the videos --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [[], ["--load-best"], ["--load-checkpoint", str(EVERY)], ["--load-last-checkpoint"]])
def test_enjoy(which: list[str], trained: Trained) -> None:
    printed = trained.run("enjoy", "--no-render", "-n", "400", "--device", "cpu", *which)
    assert "Mean reward" in printed
    name = {"--load-best": "best_model", "--load-checkpoint": f"rl_model_{EVERY}_steps"}.get((which or [""])[0])
    assert name is None or f"{name}.zip" in printed


@pytest.mark.slow
def test_record_video(trained: Trained) -> None:
    trained.run("record_video", "-n", "30", "-o", str(trained.folder / "videos"))
    (video,) = (trained.folder / "videos").glob("final-model*.mp4")
    assert is_video(video)


@pytest.mark.slow
@pytest.mark.usefixtures("outside")
def test_record_training(trained: Trained) -> None:
    # Each model is a process of its own: one checkpoint will do.
    for name in ("best_model.zip", f"{trained.env}.zip", f"rl_model_{EVERY}_steps.zip"):
        (trained.log / name).unlink()
    trained.run("record_training", "-n", "10", "--deterministic")
    assert is_video(trained.log / "videos" / "training.mp4")


# ---- plots and tables ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def screen() -> Iterator[None]:
    """Use a backend without display; figures are closed after the test."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


def curves() -> list[Any]:
    """
    :return: the lines of all figures
    """
    return [line for number in plt.get_fignums() for axes in plt.figure(number).axes for line in axes.lines]


def test_plot_train(trained: Trained) -> None:
    run_script(trained.folder, "plot_train", "-a", trained.key, "-e", trained.env, "-f", "logs", "-w", "2")
    (line,) = curves()
    assert len(line.get_xdata()) > 0
    assert np.isfinite(line.get_ydata()).all()


def test_all_plots_and_plot_from_file(trained: Trained) -> None:
    # plot_from_file needs at least two runs.
    shutil.copytree(trained.log, trained.log.with_name(f"{trained.env}_2"))
    arguments = ["-a", trained.key, "-e", trained.env, "-f", "logs", "--no-million", "--no-display", "-o", "plots"]
    printed = run_script(trained.folder, "all_plots", *arguments)
    assert trained.env in printed
    (line,) = curves()
    assert list(line.get_xdata()) == [EVERY, 2 * EVERY]
    with (trained.folder / "plots.pkl").open("rb") as file:
        assert pickle.load(file)[trained.env][f"{trained.key.upper()}-logs"]["timesteps"].tolist() == [EVERY, 2 * EVERY]
    plt.close("all")
    run_script(trained.folder, "plot_from_file", "-i", "plots.pkl", "-o", "figure.png", "--format", "png", "--no-million")
    assert plt.imread(trained.folder / "figure.png").std() > 0


@pytest.mark.slow
@pytest.mark.usefixtures("outside")
def test_benchmark(trained: Trained) -> None:
    options = ["--log-dir", "logs", "--benchmark-dir", "bench", "--no-hub", "-n", "400", "--num-threads", "1"]
    printed = run_script(trained.folder, "benchmark", *options)
    assert "Mean reward" in printed
    (row,) = re.findall(rf"^\|\s*{trained.key}\s*\|.*$", (trained.folder / "benchmark.md").read_text(), re.MULTILINE)
    assert trained.env in row


def test_children_of_other_algorithms_are_left_alone() -> None:
    commands: list[Any] = [
        "python enjoy.py --algo vpg",
        ["python", "enjoy.py", "--algo", "ppo"],
        ["python", "-m", "rl_zoo3.record_video", "--algo", "ppo"],
        ["python", "-m", "http.server", "--algo", "vpg"],
        ["python", "other.py", "--algo", "vpg"],
        ["ls", "--algo", "vpg"],
        ["python", "enjoy.py", "--algo"],
        ["python", "-m"],
        ["python"],
    ]
    assert [children.redirect_command(command) for command in commands] == commands
    launcher = [sys.executable, "-m", "sb3_pg.zoo"]
    rest = ["--env", "E", "--algo", "vpg"]
    assert children.redirect_command(["python", "enjoy.py", *rest]) == [*launcher, "enjoy", *rest]
    assert children.redirect_command(["python", "-m", "rl_zoo3.record_video", *rest]) == [*launcher, "record_video", *rest]


# ---- the hub ---------------------------------------------------------------------------------------------------------------


class LocalHub:
    """
    Fake of the hub's client, with folders as repositories.

    :param root: parent folder of the repositories
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, **_: Any) -> str:
        """
        :param repo_id: name of the repository
        :return: URL of the repository
        """
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"hub/{repo_id}"

    def snapshot_download(self, repo_id: str, local_dir: Path) -> None:
        """
        :param repo_id: name of the repository
        :param local_dir: target folder
        """
        shutil.copytree(self.root / repo_id, local_dir, dirs_exist_ok=True)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        """
        :param repo_id: name of the repository
        :param folder_path: folder with the new files
        :param commit_message: commit message
        """
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        """
        :param repo_id: name of the repository
        :param filename: name of a file
        :return: path of the file
        """
        from huggingface_hub.errors import EntryNotFoundError

        path = self.root / repo_id / filename
        if not path.is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """
    Replace the hub's client by the fake.

    :param tmp_path: Folder for its files.
    :param monkeypatch: pytest's own.
    :return: The fake.
    """
    import huggingface_hub

    local = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: local)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", local.download)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    return local


@pytest.mark.slow
@pytest.mark.usefixtures("outside")
def test_a_model_goes_to_the_hub_and_comes_back(trained: Trained, hub: LocalHub) -> None:
    trained.run("push_to_hub", "-orga", "us", "-n", "20")
    repository = hub.root / "us" / f"{trained.key}-{trained.env}"
    files = {path.name for path in repository.iterdir()}
    assert {f"{trained.key}-{trained.env}.zip", "README.md", "results.json", "config.yml", "args.yml"} <= files
    assert is_video(repository / "replay.mp4")
    assert ("vec_normalize.pkl" in files) == (trained.key in NORMALISED)
    assert f"--algo {trained.key}" in (repository / "README.md").read_text()
    shutil.rmtree(trained.folder / "logs")
    trained.run("load_from_hub", "-orga", "us")
    assert "Mean reward" in trained.run("enjoy", "--no-render", "-n", "400", "--device", "cpu")
    again = load(trained, trained.log / f"{trained.env}.zip")
    observation = gymnasium.make(trained.env).observation_space.sample()
    before = load(trained, repository / f"{trained.key}-{trained.env}.zip")
    actions = [model.predict(observation, deterministic=True)[0] for model in (again, before)]
    assert np.array_equal(actions[0], actions[1])


def test_other_errors_of_the_hub_stay_as_they_are(hub: LocalHub) -> None:
    import huggingface_sb3  # type: ignore[import-untyped]  # it has no annotations
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    hub.create_repo("us/vpg-CartPole-v1")
    hub.create_repo("sb3/ppo-CartPole-v1")
    with pytest.raises(HTTPError, match=r"404: x\.pkl"):
        huggingface_sb3.load_from_hub("us/vpg-CartPole-v1", "x.pkl")
    with pytest.raises(EntryNotFoundError):
        huggingface_sb3.load_from_hub("sb3/ppo-CartPole-v1", "x.pkl")
