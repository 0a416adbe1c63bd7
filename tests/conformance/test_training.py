"""Training works as in Stable-Baselines3: seeds, callbacks, logs, learning rates, policy arguments, training mode."""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conformance.specs import Spec
from conformance.test_environments import variants_of
from conformance.test_models import optimizer_of
from gymnasium import spaces
from model_checks import check_training, differences, logged, state_of
from stable_baselines3.common import utils
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule

# Arguments that the RL Zoo consumes or converts before it constructs a model.
RESERVED_BY_THE_ZOO = {"noise_type", "noise_std", "normalize", "clip_range", "callback", "frame_stack", "delta_std"}


# --------------------------------------------------------------------------------------------------------------- signatures


def base_of(spec: Spec) -> Any:
    """
    :param spec: specification of an algorithm
    :return: SB3's class from which the algorithm is derived
    """
    return next(cls for cls in spec.algorithm.__mro__ if cls.__module__.startswith("stable_baselines3"))


def test_arguments_are_documented_and_keep_the_order_of_sb3(spec: Spec) -> None:
    ours, theirs = (
        [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        for cls in (spec.algorithm, base_of(spec))
    )
    assert re.findall(r":param (\w+):", spec.algorithm.__doc__) == ours
    assert not RESERVED_BY_THE_ZOO & set(ours)
    # An algorithm may lack arguments of its base class, or have them as keyword-only arguments.
    parameters = inspect.signature(spec.algorithm.__init__).parameters
    positional = [name for name in ours if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [name for name in positional if name in theirs] == [name for name in theirs if name in positional]


def test_learn_has_the_signature_of_sb3(spec: Spec) -> None:
    ours, theirs = (inspect.signature(cls.learn).parameters for cls in (spec.algorithm, base_of(spec)))
    assert list(ours) == list(theirs)
    assert {name for name in ours if ours[name].default != theirs[name].default} == {"tb_log_name"}
    assert ours["tb_log_name"].default == spec.algorithm.__name__


# -------------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_the_seed_determines_the_result(spec: Spec, options: Any) -> None:
    states = [state_of(spec.make(**options, seed=seed).learn(60)) for seed in (1, 1, 2)]
    assert differences(states[0], states[1]) == []
    assert differences(states[0], states[2])


def test_without_a_seed_the_global_one_determines_the_result(spec: Spec) -> None:
    states = []
    for _ in range(2):
        utils.set_random_seed(5)
        env = spec.envs()
        env.seed(1)
        env.action_space.seed(1)
        states.append(state_of(spec.make(env, seed=None).learn(60)))
    assert differences(states[0], states[1]) == []


# ---------------------------------------------------------------------------------------------------------------- callbacks


class Count(BaseCallback):
    """
    Records the number of steps at each call.

    :param stop_after: number of calls after which training stops
    """

    def __init__(self, stop_after: float = float("inf")) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.events: list[str] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append("training starts")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout starts")

    def _on_step(self) -> bool:
        assert {"rewards", "dones", "infos", "new_obs", "actions"} <= set(self.locals)
        self.seen.append(self.num_timesteps)
        return len(self.seen) < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("rollout ends")

    def _on_training_end(self) -> None:
        self.events.append("training ends")


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")  # which SB3 ignores as well
@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_callbacks_at_every_step(spec: Spec, options: Any, tmp_path: Path) -> None:
    model = spec.make(**options)
    n = model.n_envs
    evaluation = EvalCallback(spec.envs(1), eval_freq=5, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    checkpoints = CheckpointCallback(7, str(tmp_path), name_prefix="model", save_replay_buffer=True)
    steps, every = Count(), Count()
    callbacks = [evaluation, checkpoints, steps, EveryNTimesteps(4 * n, every)]
    model.learn(30 * n, callback=callbacks, progress_bar=True)
    assert steps.seen == list(range(n, model.num_timesteps + 1, n))
    assert every.seen == steps.seen[3::4]
    assert evaluation.evaluations_timesteps == steps.seen[4::5]
    saved = [f"model_{count}_steps.zip" for count in steps.seen[6::7]]
    assert {path.name for path in tmp_path.glob("model_*_steps.zip")} == set(saved)
    assert len(list(tmp_path.glob("*replay_buffer*.pkl"))) == len(saved) * hasattr(model, "replay_buffer")
    assert spec.algorithm.load(tmp_path / saved[-1]).num_timesteps == steps.seen[6::7][-1]
    assert steps.events[0] == "training starts"
    assert steps.events[-1] == "training ends"
    assert steps.events[1:-1] == ["rollout starts", "rollout ends"] * (len(steps.events) // 2 - 1)


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_callbacks_can_stop_training(spec: Spec, options: Any) -> None:
    model = spec.make(**options)
    n = model.n_envs
    model.learn(10_000, callback=Count(stop_after=7))
    assert model.num_timesteps == 7 * n
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps >= 7 * n + 30
    length = 4 if spec.observation == "box" else 8
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 2 * length * n
    threshold = EvalCallback(spec.envs(1), StopTrainingOnRewardThreshold(-100.0), eval_freq=5, verbose=0)
    assert model.learn(10_000, callback=threshold).num_timesteps == 5 * n


# ---------------------------------------------------------------------------------------------------------------------- log


def test_logged_names(spec: Spec) -> None:
    dumps = logged(spec.make(), 60)
    train = {key.removeprefix("train/"): value for key, value in dumps[-1].items() if key.startswith("train/")}
    assert set(train) == spec.logged
    assert np.isfinite(list(train.values())).all()
    iterations = "time/iterations" if spec.on_policy else "time/episodes"
    assert {"time/fps", iterations, "time/total_timesteps", "rollout/ep_rew_mean", "rollout/ep_len_mean"} <= set(dumps[-2])


def test_the_standard_deviation_is_logged_with_boxes(spec: Spec) -> None:
    dumps = logged(spec.make(spec.envs(action="box")), 60)
    assert ("train/std" in dumps[-1]) == spec.randomizes


def test_stats_window_size(spec: Spec) -> None:
    model = spec.make(stats_window_size=2).learn(100)
    assert (model.ep_info_buffer.maxlen, len(model.ep_info_buffer)) == (2, 2)


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbosity(spec: Spec, verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    spec.make(verbose=verbose).learn(60, log_interval=1)
    assert ("total_timesteps" in capsys.readouterr().out) == bool(verbose)


def test_device_and_log_directory(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []

    def configure(*args: Any) -> Logger:
        given.append(args)
        return Logger(None, [])

    monkeypatch.setattr(utils, "configure_logger", configure)
    model = spec.make(tensorboard_log="somewhere")
    model.learn(16)
    model.learn(16, tb_log_name="mine", reset_num_timesteps=False)
    assert given == [(0, "somewhere", type(model).__name__, True), (0, "somewhere", "mine", False)]
    assert {p.device for p in model.policy.parameters()} == {model.device} == {th.device("cpu")}


def test_reset_num_timesteps(spec: Spec) -> None:
    model = spec.make().learn(36)
    steps = model.num_timesteps
    assert model.learn(36, reset_num_timesteps=False).num_timesteps == 2 * steps
    assert model.learn(36).num_timesteps == steps


# ----------------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_schedules_set_the_learning_rates_and_get_progress_in_range(spec: Spec, options: Any) -> None:
    """The last rollout may exceed the requested steps; a linear learning rate must not become negative there."""
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 1e-3 * progress

    model = spec.make(learning_rate=schedule, **options).learn(50)
    assert (max(seen), min(seen)) == (1, 0)
    names = [name for name in model.get_parameters() if "optimizer" in name]
    own = {"value_optimizer"} if "value_learning_rate" in options else set()
    assert {optimizer_of(model, name).param_groups[0]["lr"] for name in names if name not in own} == {0.0}


@pytest.mark.parametrize("rate", [1e-2, lambda _: 1e-2, np.float64(1e-2), utils.LinearSchedule(1e-2, 1e-2, 1.0)], ids=type)
def test_learning_rates_of_every_kind(spec: Spec, rate: float | Schedule) -> None:
    reference, model = (spec.make(learning_rate=value).learn(60) for value in (1e-2, rate))
    assert differences(state_of(reference)["policy"], state_of(model)["policy"]) == []
    assert logged(model, 30)[-1]["train/learning_rate"] == 1e-2


# ----------------------------------------------------------------------------------------------------- policies and optimizers


class Extractor(BaseFeaturesExtractor):
    """
    Batch normalisation and dropout.

    :param observation_space: vectors, or a dictionary whose first array is used
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        self.key = next(iter(observation_space)) if isinstance(observation_space, spaces.Dict) else None
        part = observation_space if not isinstance(observation_space, spaces.Dict) else observation_space[str(self.key)]
        assert part.shape is not None
        self.norm = th.nn.BatchNorm1d(part.shape[0])
        self.layers = th.nn.Sequential(th.nn.Linear(part.shape[0], features_dim), th.nn.Dropout(0.5))

    def forward(self, observations: Any) -> th.Tensor:
        features: th.Tensor = self.layers(self.norm(observations if self.key is None else observations[self.key]))
        return features


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": [6, 5, 4], "activation_fn": th.nn.ELU},
        {"net_arch": {"pi": [8], "vf": [4, 4], "qf": [4, 4]}, "activation_fn": th.nn.ReLU},
        {"activation_fn": th.nn.Tanh},
        {"features_extractor_class": Extractor, "features_extractor_kwargs": {"features_dim": 5}},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9, "nesterov": True}},
        {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
        {"optimizer_class": th.optim.AdamW},
        {"optimizer_kwargs": {"eps": 1e-3, "weight_decay": 0.1}},
        {"optimizer_kwargs": None},
        {"normalize_images": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You shouldn't use batch norm")
def test_arguments_of_the_policy(spec: Spec, policy_kwargs: dict[str, Any]) -> None:
    given = {**policy_kwargs}
    model = spec.make(policy_kwargs=given)
    check_training(model, 60, spec.trained)
    assert given == policy_kwargs
    for name in spec.optimizers:
        optimizer = optimizer_of(model, name)
        assert type(optimizer) is policy_kwargs.get("optimizer_class", type(optimizer))
        expected = policy_kwargs.get("optimizer_kwargs") or {}
        assert {key: optimizer.param_groups[0][key] for key in expected} == expected
    held = [id(p) for name in spec.optimizers for p in optimizer_of(model, name).param_groups[0]["params"]]
    assert sorted(held) == sorted(id(p) for name, p in model.policy.named_parameters() if "_target." not in name)


@pytest.mark.parametrize(("spec", "options"), variants_of())
def test_batch_statistics_change_only_in_updates(spec: Spec, options: Any) -> None:
    """Actions, evaluations and values leave them unchanged, as does ``predict`` after a user has set the training mode."""
    kwargs = {"features_extractor_class": Extractor, **({"share_features_extractor": False} if spec.on_policy else {})}
    model = spec.make(policy_kwargs=kwargs, **options)
    seen: list[dict[str, Any]] = []

    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append(statistics_of(self.model))

        def _on_step(self) -> bool:
            assert not self.model.policy.training
            return True

        def _on_rollout_end(self) -> None:
            assert differences(seen[-1], statistics_of(self.model)) == []

    model.learn(60, callback=Look())
    assert differences(seen[0], statistics_of(model))
    before = statistics_of(model)
    model.policy.set_training_mode(True)
    obs = model.observation_space.sample()
    actions = [model.predict(obs, deterministic=True)[0] for _ in range(5)]
    assert all(np.array_equal(action, actions[0]) for action in actions)
    assert differences(before, statistics_of(model)) == []


def statistics_of(model: Any) -> dict[str, Any]:
    """
    :param model: model with batch normalisation
    :return: running means and variances
    """
    return {name: value.clone() for name, value in model.policy.state_dict().items() if "running" in name}
