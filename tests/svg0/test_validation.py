"""Mutually exclusive options are rejected by the constructor and by ``load``; all other options have an effect."""

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from envs import MatchEnv
from gymnasium import spaces
from smoke_envs import ScriptedEnv
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pg import SVG0
from sb3_pg.common.distributions import COVARIANCES
from sb3_pg.svg0 import validation
from sb3_pg.svg0.buffers import SequenceDictReplayBuffer, SequenceReplayBuffer

Options = dict[str, Any]

NOISE = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
ON_POLICY: Options = {"on_policy": True, "train_freq": 8}
SMALL: Options = {"buffer_size": 200, "learning_starts": 12, "batch_size": 16}


def envs(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(MatchEnv(**{"action": "box", "truncate": True, **kwargs}))] * n_envs)


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> SVG0:
    network = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    return SVG0(policy, envs() if env is None else env, policy_kwargs=network, **{"seed": 0, "device": "cpu", **kwargs})


# Invalid options, and words of the error message: the conflicting options and how to fix them.
WRONG: list[tuple[Options, list[str]]] = [
    # unknown names
    ({"covariance": "block"}, ["covariance", "'block'", *COVARIANCES]),
    ({"gradient_estimator": None}, ["gradient_estimator", "None", *validation.GRADIENT_ESTIMATORS]),
    ({"off_policy_correction": "v-trace"}, ["off_policy_correction", "'v-trace'", *validation.OFF_POLICY_CORRECTIONS]),
    # ranges
    *(
        ({name: value}, [name, "[0, 1]"])
        for name in ("gamma", "td_lambda", "tau")
        for value in (-0.1, 1.1, float("nan"), None, "0.9", True)
    ),
    *(
        ({name: value}, [name, "integer"])
        for name in ("buffer_size", "learning_starts", "batch_size", "segment_length", "n_action_samples", "n_critics")
        for value in (-1, 2.5, 4.0, "4", True, float("nan"), [4])
    ),
    *(({name: None}, [name, "integer of at least 1"]) for name in ("n_action_samples", "n_critics")),
    *(
        ({name: 0}, [name, "at least 1"])
        for name in ("buffer_size", "batch_size", "segment_length", "n_action_samples", "n_critics")
    ),
    *(({"train_freq": value}, ["train_freq", "at least 1", "episode"]) for value in (0, 1.5, (1, "epoch"), (1,), "1", True)),
    ({"train_freq": (1, "episode")}, ["train_freq", "episodes", "2", "steps"]),
    # entropy
    *(({"ent_coef": value}, ["ent_coef", '"auto"', "auto_0.1"]) for value in ("car", "auto_", "auto_0", "auto_x", -1, None)),
    ({"target_entropy": -1.0}, ["target_entropy=-1.0", "ent_coef=0.0", '"auto"', "None"]),
    ({"target_entropy": "auto", "ent_coef": 0.1}, ["target_entropy", "ent_coef=0.1"]),
    ({"target_entropy": "low", "ent_coef": "auto"}, ["target_entropy='low'", "number"]),
    # traces
    ({"td_lambda": 0.0, "off_policy_correction": "retrace"}, ["retrace", "td_lambda=0", "None"]),
    ({"td_lambda": 0, "segment_length": 8}, ["segment_length=8", "td_lambda=0", "None"]),
    ({"segment_length": 1}, ["td_lambda=0.9", "segment_length > 1", "td_lambda=0"]),
    ({"action_noise": NOISE, "off_policy_correction": "retrace"}, ["retrace", "action_noise", "None", "'none'"]),
    ({"batch_size": 100}, ["batch_size=100", "multiple of segment_length=8"]),
    ({"segment_length": 6}, ["batch_size=256", "multiple of segment_length=6"]),
    # on-policy
    *(
        ({**ON_POLICY, name: 10}, [f"{name}=10", "on_policy=True", f"{name}=None", "on_policy=False"])
        for name in ("buffer_size", "learning_starts", "batch_size", "segment_length")
    ),
    ({"on_policy": True, "train_freq": (2, "episode")}, ["on_policy=True", "train_freq", "steps", "episodes"]),
    ({"on_policy": True}, ["td_lambda=0.9", "train_freq > 1", "td_lambda=0"]),
    ({**ON_POLICY, "action_noise": NOISE}, ["on_policy=True", "action_noise=None", "on_policy=False"]),
    # options of SB3 that SVG0 does not support
    ({"use_sde": True}, ["use_sde=True", "independent", "use_sde=False"]),
    ({"n_steps": 3}, ["n_steps=3", "td_lambda", "n_steps=1"]),
    ({"optimize_memory_usage": True}, ["optimize_memory_usage=True", "final observations", "buffer_size"]),
    *(
        ({"replay_buffer_class": each}, [each.__name__, "SequenceReplayBuffer", "None"])
        for each in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer, SequenceDictReplayBuffer)
    ),
    # reduced precision: the networks of these tests are small
    ({"bf16": True}, ["bf16=True", "64 units"]),
    ({"bf16": "yes"}, ["bf16='yes'", "True or False"]),
    # arguments of the algorithm in policy_kwargs
    *(({"policy_kwargs": {name: 1}}, [name, "policy_kwargs"]) for name in validation.NETWORK_OPTIONS),
    ({"policy_kwargs": {"min_std": -0.1}}, ["min_std=-0.1", "negative"]),
]


def id_of(case: tuple[Options, list[str]]) -> str:
    return "-".join(f"{name}={getattr(value, '__name__', value)}" for name, value in case[0].items())[:80]


@pytest.mark.parametrize("case", WRONG, ids=id_of)
def test_the_constructor_rejects_invalid_options(case: tuple[Options, list[str]]) -> None:
    wrong, words = case
    with pytest.raises(ValueError) as error:  # noqa: PT011 # the words are checked below
        make(**wrong)
    assert [word for word in words if word not in str(error.value)] == []


# Each case saves and loads a model: every fifth case suffices, since all checks are in one place.
@pytest.mark.parametrize("case", [case for case in WRONG if "policy_kwargs" not in case[0]][::5], ids=id_of)
def test_load_rejects_invalid_options(case: tuple[Options, list[str]]) -> None:
    """``load`` constructs a model with the default options and overwrites them afterwards."""
    wrong, words = case
    file = io.BytesIO()
    make(buffer_size=20).save(file)
    file.seek(0)
    with pytest.raises(ValueError) as error:  # noqa: PT011 # the words are checked below
        SVG0.load(file, env=envs(), **{"buffer_size": None, **wrong})
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(2), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]), spaces.Box(-np.inf, np.inf, (2,))],
    ids=str,
)
def test_other_action_spaces_are_rejected(space: spaces.Space[Any]) -> None:
    with pytest.raises((ValueError, AssertionError), match=r"(?i)action space"):  # most cases are SB3's assertions
        make(DummyVecEnv([lambda: Monitor(ScriptedEnv(0, [(3, "terminated")], space))]))


def test_dictionary_observations_need_the_dictionary_buffer() -> None:
    with pytest.raises(ValueError, match="SequenceDictReplayBuffer"):
        make(envs(observation="dict"), "MultiInputPolicy", replay_buffer_class=SequenceReplayBuffer)


# ------------------------------------------------------------------------------------------------------ valid options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"buffer_size": 1_000_000, "learning_starts": 100, "batch_size": 256}),
        (
            {"buffer_size": 50, "learning_starts": 0, "batch_size": 8},
            {"buffer_size": 50, "learning_starts": 0, "batch_size": 8},
        ),
        (ON_POLICY, {"buffer_size": 16, "learning_starts": 0, "batch_size": 16}),
        ({"on_policy": True, "train_freq": (5, "step")}, {"buffer_size": 10, "learning_starts": 0, "batch_size": 10}),
    ],
    ids=str,
)
def test_default_values_of_arguments_of_sb3(given: Options, expected: Options) -> None:
    model = make(**given)
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "length", "correction"),
    [
        ({}, 8, "retrace"),
        ({"td_lambda": 0.0}, 1, "none"),
        ({"td_lambda": 0.5, "segment_length": 4}, 4, "retrace"),
        ({"off_policy_correction": "none"}, 8, "none"),
        ({"action_noise": NOISE}, 8, "none"),
        (ON_POLICY, 8, "none"),
        ({**ON_POLICY, "off_policy_correction": "retrace"}, 8, "retrace"),
    ],
    ids=str,
)
def test_default_segment_length_and_correction(given: Options, length: int, correction: str) -> None:
    model = make(**given)
    assert model.resolved_correction == correction
    assert model.on_policy or model.resolved_segment_length == length


@pytest.mark.parametrize("n_envs", [1, 3])
def test_default_values_are_resolved_again_for_a_loaded_model(n_envs: int) -> None:
    for given in (ON_POLICY, {}, SMALL):
        file = io.BytesIO()
        original = make(**given)
        original.save(file)
        file.seek(0)
        loaded = SVG0.load(file, env=envs(n_envs))
        assert loaded.replay_buffer is not None
        rows = 8 if given is ON_POLICY else original.buffer_size // n_envs
        assert loaded.replay_buffer.buffer_size == rows
        assert loaded.learning_starts == original.learning_starts
        loaded.learn(24)
        assert loaded.replay_buffer.rewards.shape == (rows, n_envs)


def test_a_model_with_replay_can_continue_on_policy() -> None:
    file = io.BytesIO()
    make().save(file)
    file.seek(0)
    loaded = SVG0.load(file, env=envs(), **ON_POLICY)
    assert (loaded.buffer_size, loaded.learning_starts) == (16, 0)
    loaded.learn(32)


@pytest.mark.parametrize(("ent_coef", "initial"), [("auto", 1.0), ("auto_0.25", 0.25), ("auto_2", 2.0)])
@pytest.mark.parametrize(("target", "expected"), [(None, -2.0), ("auto", -2.0), (-0.5, -0.5)])
def test_automatic_entropy(ent_coef: str, initial: float, target: Any, expected: float) -> None:
    model = make(ent_coef=ent_coef, target_entropy=target)
    assert model.log_ent_coef is not None
    assert model.log_ent_coef.exp().item() == pytest.approx(initial)
    assert model._target_entropy == expected
    assert model.target_entropy == target


@pytest.mark.parametrize("ent_coef", [0, 0.0, 0.3, "0.3"])
def test_fixed_entropy(ent_coef: Any) -> None:
    model = make(ent_coef=ent_coef)
    assert model.log_ent_coef is None
    assert model._ent_coef_step(None, th.ones(1), {}).item() == pytest.approx(float(ent_coef))
    assert model.uses_entropy == (float(ent_coef) != 0)


def test_the_entropy_coefficient_is_adapted() -> None:
    """It increases while the entropy is below the target, and decreases while it is above."""
    for target, sign in ((50.0, 1), (-50.0, -1)):
        model = make(ent_coef="auto", target_entropy=target, **SMALL).learn(40)
        assert model.log_ent_coef is not None
        assert np.sign(model.log_ent_coef.item()) == sign


EFFECTIVE: list[Options] = [
    {"learning_rate": 1e-2},
    {"qf_learning_rate": "lin_1e-2"},
    {"buffer_size": 20},
    {"learning_starts": 20},
    {"batch_size": 24},
    {"tau": 0.5},
    {"gamma": 0.5},
    {"train_freq": 2},
    {"gradient_steps": 2},
    {"action_noise": NOISE, "off_policy_correction": "none"},
    {"replay_buffer_kwargs": {"handle_timeout_termination": False}},
    {"gradient_estimator": "likelihood_ratio"},
    {"n_action_samples": 2},
    {"covariance": "isotropic"},
    {"covariance": "full"},
    {"state_dependent_covariance": False},
    {"squash_output": False},
    {"td_lambda": 0.0},
    {"td_lambda": 0.5},
    {"segment_length": 4},
    {"off_policy_correction": "none"},
    ON_POLICY,
    {"n_critics": 2},
    {"ent_coef": 0.1},
    {"ent_coef": "auto"},
    {"bf16": True, "policy_kwargs": {"net_arch": [64, 64]}},
    {"policy_kwargs": {"min_std": 0.5}},
    {"policy_kwargs": {"log_std_init": 0.5}},
]


def result_of(changed: Options) -> th.Tensor:
    base = {} if changed.get("on_policy") else SMALL
    model = make(**{**base, **changed}).learn(48)
    return th.cat([p.detach().ravel() for p in model.critic.parameters()])


@pytest.mark.filterwarnings("ignore:bf16=True")
@pytest.mark.parametrize("changed", EFFECTIVE, ids=str)
def test_every_option_has_an_effect(changed: Options) -> None:
    plain = result_of({"policy_kwargs": changed["policy_kwargs"]} if "bf16" in changed else {})
    other = result_of(changed)
    assert other.isfinite().all()
    assert plain.shape != other.shape or not th.equal(plain, other)


def test_every_option_of_svg0_is_tested_for_an_effect() -> None:
    own = set(inspect.signature(SVG0).parameters) - set(inspect.signature(OffPolicyAlgorithm).parameters)
    assert own - {"_init_setup_model", "target_entropy"} <= {name for changed in EFFECTIVE for name in changed}


# --------------------------------------------------------------------------------------------- compatibility with SB3


def test_arguments_of_sb3_keep_their_names_and_order() -> None:
    ours, theirs = (inspect.signature(each.__init__).parameters for each in (SVG0, OffPolicyAlgorithm))
    not_ours = {
        "support_multi_env",  # set by algorithms, not by users
        "monitor_wrapper",
        "sde_support",
        "supported_action_spaces",
        "sde_sample_freq",  # only with use_sde
        "use_sde_at_warmup",
    }
    assert [name for name in ours if name in theirs] == [name for name in theirs if name not in not_ours]
    own = [parameter for name, parameter in ours.items() if name not in theirs and name != "_init_setup_model"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)
    changed = {name for name in set(ours) & set(theirs) if ours[name].default != theirs[name].default}
    # None: depends on other options. SB3's base class leaves the learning rate and the unit of train_freq to its subclasses.
    assert changed == {"learning_rate", "buffer_size", "learning_starts", "batch_size", "train_freq"}
    sac = inspect.signature(SAC).parameters
    resolved = {name: getattr(make(), name) for name in ("buffer_size", "learning_starts", "batch_size")}
    assert resolved == {name: sac[name].default for name in resolved}


def test_no_argument_has_a_name_reserved_by_the_zoo() -> None:
    taken = {"noise_type", "noise_std", "normalize", "clip_range", "callback", "frame_stack", "delta_std"}
    assert not taken & set(inspect.signature(SVG0.__init__).parameters)


def test_every_argument_is_documented() -> None:
    described = [line.split(":")[1].removeprefix("param ") for line in (SVG0.__doc__ or "").splitlines() if ":param " in line]
    assert described == [name for name in inspect.signature(SVG0.__init__).parameters if name != "self"]


def test_learn_has_the_signature_of_sb3() -> None:
    ours, theirs = (inspect.signature(each.learn).parameters for each in (SVG0, OffPolicyAlgorithm))
    assert {name: parameter.default for name, parameter in ours.items() if name != "tb_log_name"} == {
        name: parameter.default for name, parameter in theirs.items() if name != "tb_log_name"
    }
    assert list(ours) == list(theirs)
