"""What register() does to the RL Zoo, and what it leaves alone."""

import argparse
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import farama_notifications  # type: ignore[import-untyped] # it has no annotations
import optuna
import pytest
import rl_zoo3.exp_manager
import rl_zoo3.hyperparams_opt
import rl_zoo3.import_envs
import rl_zoo3.utils
import yaml
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import A2C

import sb3_pg
from sb3_pg.registry import ALGOS
from sb3_pg.zoo import manager, patches

pytestmark = pytest.mark.usefixtures("zoo")
TABLES: dict[str, dict[str, Any]] = {
    "ALGOS": rl_zoo3.utils.ALGOS,
    "HYPERPARAMS_SAMPLER": rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER,
    "HYPERPARAMS_CONVERTER": rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER,
}


def remove_ours() -> None:
    """Make the zoo forget our algorithms; its constructor stays patched."""
    for table in TABLES.values():
        for key in ALGOS:
            table.pop(key, None)


def manager_of(algo: str, tmp_path: Path, *args: Any, **kwargs: Any) -> ExperimentManager:
    """
    Build the manager as ``rl_zoo3.train`` does.

    :param algo: Zoo key.
    :param tmp_path: Log folder.
    :param args: Further positional arguments.
    :param kwargs: Further keyword arguments.
    :return: The manager.
    """
    return ExperimentManager(argparse.Namespace(), algo, "CartPole-v1", str(tmp_path), *args, **kwargs)


def test_both_tables_list_every_patch() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"
    names = {name.removeprefix("rl_zoo3.") for name in patches.PATCHES}
    assert set(re.findall(r"^``(\w+)``", patches.__doc__ or "", re.MULTILINE)) == names
    _, _, section = page.read_text(encoding="utf-8").partition("## Patches of the zoo")
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == names


def test_our_entries_are_added_in_place_and_no_other_is_touched() -> None:
    remove_ours()
    stock = {name: dict(table) for name, table in TABLES.items()}
    assert "a2c" in stock["ALGOS"]
    sb3_pg.register()
    assert TABLES["ALGOS"] == stock["ALGOS"] | {key: row.load_class() for key, row in ALGOS.items()}
    assert TABLES["HYPERPARAMS_SAMPLER"] == stock["HYPERPARAMS_SAMPLER"] | {k: r.load_sampler() for k, r in ALGOS.items()}
    assert TABLES["HYPERPARAMS_CONVERTER"] == stock["HYPERPARAMS_CONVERTER"] | {
        k: r.load_converter() for k, r in ALGOS.items()
    }
    for name, table in TABLES.items():
        assert vars(rl_zoo3.exp_manager)[name] is table
    assert rl_zoo3.ALGOS is TABLES["ALGOS"]


def test_registering_again_changes_nothing() -> None:
    before = {name: dict(table) for name, table in TABLES.items()}
    constructor = ExperimentManager.__init__
    sb3_pg.register()
    assert before == TABLES
    assert ExperimentManager.__init__ is constructor


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("key", ALGOS)
def test_a_foreign_entry_is_refused_and_nothing_changes(name: str, key: str) -> None:
    remove_ours()
    TABLES[name][key] = A2C
    before = {table_name: dict(table) for table_name, table in TABLES.items()}
    with pytest.raises(ValueError, match=rf"{name}\['{key}'\] is stable_baselines3\.a2c\.a2c\.A2C already.*Remove the other"):
        sb3_pg.register()
    assert before == TABLES


def test_our_class_from_before_a_reload_is_ours() -> None:
    ours = ALGOS["vpg"].load_class()
    stale = type(ours.__name__, (A2C,), {"__module__": ours.__module__, "__qualname__": ours.__qualname__})
    TABLES["ALGOS"]["vpg"] = stale
    sb3_pg.register()
    assert TABLES["ALGOS"]["vpg"] is ours


@pytest.mark.parametrize("key", ALGOS)
@pytest.mark.parametrize("no_config", [{}, {"config": None}, {"config": ""}])
def test_our_yml_is_the_default(key: str, no_config: dict[str, Any], tmp_path: Path) -> None:
    assert manager_of(key, tmp_path, **no_config).config == str(ALGOS[key].yml_path())


@pytest.mark.parametrize("key", ALGOS)
def test_a_config_of_the_users_wins(key: str, tmp_path: Path) -> None:
    assert manager_of(key, tmp_path, config="mine.yml").config == "mine.yml"
    parameters = inspect.signature(ExperimentManager).parameters
    between = list(parameters)[4 : list(parameters).index("config")]  # after args, algo, env_id, log_folder
    defaults = [parameters[name].default for name in between]
    assert manager_of(key, tmp_path, *defaults, "mine.yml").config == "mine.yml"


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_other_algorithms_keep_the_zoos_yml(algo: str, tmp_path: Path) -> None:
    assert Path(manager_of(algo, tmp_path).config) == Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml"
    assert manager_of(algo, tmp_path, config="mine.yml").config == "mine.yml"


def test_the_constructor_looks_like_the_zoos_and_is_wrapped_once() -> None:
    constructor: Any = ExperimentManager.__init__
    original = constructor.__wrapped__
    assert not hasattr(original, "__wrapped__")
    assert inspect.signature(constructor) == inspect.signature(original)
    assert (constructor.__name__, constructor.__doc__) == (original.__name__, original.__doc__)


def test_wrong_arguments_get_the_zoos_own_message() -> None:
    constructor: Any = ExperimentManager
    with pytest.raises(TypeError, match="missing 4 required positional arguments: 'args', 'algo', 'env_id', and 'log_folder'"):
        constructor()
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        constructor(None, "vpg", "CartPole-v1", "logs", colour="red")


def test_a_subclass_with_its_own_constructor_gets_our_yml(tmp_path: Path) -> None:
    class Manager(ExperimentManager):
        def __init__(self, algo: str) -> None:
            super().__init__(argparse.Namespace(), algo, "CartPole-v1", str(tmp_path))

    assert Manager("vpg").config == str(ALGOS["vpg"].yml_path())


def test_a_zoo_without_the_arguments_we_need_is_refused() -> None:
    with pytest.raises(TypeError, match="does not take `algo`, `config` and `trial_id`"):
        manager._with_our_arguments(lambda algo: None)  # noqa: ARG005 # only its signature counts


# ---- trials ----------------------------------------------------------------------------------------------------------------


def study_in(tmp_path: Path) -> dict[str, str]:
    """A study of VPG with two different trials in a journal file, as arguments of ``rl_zoo3.train``."""
    storage = str(tmp_path / "study.log")
    backend = JournalFileBackend(storage)
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="s", direction="maximize")
    for _ in range(2):
        trial = study.ask()
        ALGOS["vpg"].load_sampler()(trial, 2, 1, {})
        study.tell(trial, float(trial.number))
    return {"storage": storage, "study_name": "s"}


@pytest.mark.parametrize("number", [0, 1])
def test_every_trial_of_a_study_can_be_trained_again(number: int, tmp_path: Path) -> None:
    of_study = study_in(tmp_path)
    hyperparams, _ = manager_of("vpg", tmp_path, **of_study, trial_id=number).read_hyperparameters()
    backend = JournalFileBackend(of_study["storage"])
    trial = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="s").trials[number]
    assert hyperparams.items() >= ALGOS["vpg"].load_converter()(trial.params).items()


def source_of(name: str) -> str:
    """
    :param name: module of the zoo, which may be a script
    :return: source of the module
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def method_source(name: str) -> str:
    """
    :param name: method of the zoo's manager
    :return: source of the method without our patches
    """
    return inspect.getsource(inspect.unwrap(vars(ExperimentManager)[name]))


# Patch -> code that the zoo must contain, and must not contain, for the patch to be needed.
NEEDED: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "our algorithms in its tables": ([], [("rl_zoo3.utils", "entry_points"), ("rl_zoo3.hyperparams_opt", "entry_points")]),
    "gymnasium_robotics": ([], [("rl_zoo3.import_envs", "gymnasium_robotics")]),
    "our yml files": ([("__init__", 'default_path / f"hyperparams/')], []),
    "trial 0": ([("read_hyperparameters", "and self.trial_id:")], []),
    "trials of dead workers": ([], [("rl_zoo3.exp_manager", "heartbeat"), ("rl_zoo3.exp_manager", "fail_stale")]),
    "whole checkpoints": ([("create_callbacks", "CheckpointCallback(")], [("create_callbacks", "save_vecnormalize")]),
    "going on from checkpoints": ([], [("_maybe_normalize", "rl_model"), ("_load_pretrained_agent", "rl_model")]),
    "the hub's error": ([("rl_zoo3.load_from_hub", "except HTTPError:")], []),
    "generate_metadata": ([("rl_zoo3.push_to_hub", "_generate_replay, generate_metadata")], []),
    "benchmark": ([("rl_zoo3.benchmark", '["python", "enjoy.py"')], []),
    "record_training": ([("rl_zoo3.record_training", '["python", "-m"')], []),
}


@pytest.mark.parametrize("change", NEEDED)
def test_each_change_is_still_needed(change: str) -> None:
    """A failure says that the zoo has changed, so that a patch can be removed."""

    def text(name: str) -> str:
        return source_of(name) if "." in name else method_source(name)

    wanted, unwanted = NEEDED[change]
    assert [part for name, part in wanted if part not in text(name)] == []
    assert [part for name, part in unwanted if part in text(name)] == []


def test_the_zoo_still_builds_models_outside_of_its_try() -> None:
    """Otherwise the zoo itself would prune errors of constructors."""
    source = method_source("objective")
    assert source.index("model = ALGOS[self.algo](") < source.index("try:")


def test_the_hub_still_differs_from_what_the_zoo_expects() -> None:
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    assert not issubclass(EntryNotFoundError, HTTPError)
    assert "def generate_metadata" not in source_of("huggingface_sb3.push_to_hub")


def optimize(algo: str, tmp_path: Path, n_trials: int = 3, **hyperparams: Any) -> optuna.Study:
    """Tune for a few steps, with some hyperparameters of the user's own."""
    manager = manager_of(
        algo,
        tmp_path,
        n_timesteps=64,
        n_trials=n_trials,
        n_evaluations=1,
        n_eval_envs=1,
        optimize_hyperparameters=True,
        hyperparams=hyperparams,
        storage=str(tmp_path / "study.log"),
        study_name="s",
        no_optim_plots=True,
        seed=0,
        device="cpu",
        verbose=0,
    )
    manager.setup_experiment()
    try:
        manager.hyperparameters_optimization()
    except ValueError as error:
        if "No trials are completed" not in str(error):  # the zoo's message for a study without result
            raise
    backend = JournalFileBackend(str(tmp_path / "study.log"))
    return optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="s")


@pytest.mark.filterwarnings("ignore")  # the zoo's and Optuna's own
def test_a_trial_that_our_constructor_refuses_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = optimize("vpg", tmp_path, policy="LinearPolicy")
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED] * 3
    assert "Trial 2 is pruned: " in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_other_errors_end_the_study_as_ever(tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("of the sampler")

    TABLES["HYPERPARAMS_SAMPLER"]["vpg"] = broken
    with pytest.raises(ValueError, match="of the sampler"):
        optimize("vpg", tmp_path)


@pytest.mark.parametrize("key", ALGOS)
def test_an_environment_without_an_entry_gets_the_default(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    default = yaml.safe_load(ALGOS[key].yml_path().read_text(encoding="utf-8"))["default"]
    manager = ExperimentManager(argparse.Namespace(), key, "Blackjack-v1", str(tmp_path))
    hyperparams, _ = manager.read_hyperparameters()
    assert hyperparams == default
    assert "Using 'default' hyperparameters" in capsys.readouterr().out


@pytest.fixture
def fake_robotics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Replace ``gymnasium_robotics`` by an empty module, whether it is installed or not.

    :param tmp_path: Folder for the module.
    :param monkeypatch: pytest's own.
    :return: File of the module, empty.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gymnasium_robotics", raising=False)
    module = tmp_path / "gymnasium_robotics.py"
    module.touch()
    importlib.invalidate_caches()
    return module


def test_gymnasium_robotics_is_imported_without_its_notice(
    fake_robotics: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notices = farama_notifications.notifications
    monkeypatch.setitem(notices, "gymnasium_robotics", {"1.0": "a notice"})
    fake_robotics.write_text("import farama_notifications as f\nprint(f.notifications.get('gymnasium_robotics', 'quiet'))")
    patches.patch(rl_zoo3.import_envs)
    assert sys.modules["gymnasium_robotics"].__file__ == str(fake_robotics)
    assert capsys.readouterr().out == "quiet\n"
    assert notices["gymnasium_robotics"] == {"1.0": "a notice"}


def test_a_broken_gymnasium_robotics_is_one_warning(fake_robotics: Path) -> None:
    fake_robotics.write_text("raise OSError('no display')")
    with pytest.warns(RuntimeWarning, match="gymnasium_robotics is installed but cannot be imported.*OSError: no display"):
        patches.patch(rl_zoo3.import_envs)


def test_without_gymnasium_robotics_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)  # marks a module that cannot be imported
    patches.patch(rl_zoo3.import_envs)
    assert sys.modules["gymnasium_robotics"] is None
