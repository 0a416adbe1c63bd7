"""Conflicting options are rejected, by the constructor and by load; every option has an effect."""

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from model_checks import A2C as OURS
from model_checks import Options, ScaledBuffer, assert_matters, assert_names_all, make, match_envs, name_of, reloaded
from smoke_envs import ScriptedEnv
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_pg import NStepA2C
from sb3_pg.common.buffers import PolicyGradientBuffer, PolicyGradientDictBuffer


class Foreign(RolloutBuffer):
    """A buffer that only SB3's A2C can fill."""


FOREIGN: Options = {"rollout_buffer_class": Foreign}

# Invalid options, and what the message must name: the conflicting options and the fix.
WRONG: list[tuple[Options, list[str]]] = [
    # ranges; tests/common/test_validation.py has more values
    *(({name: value}, [name, "[0, 1]"]) for name in ("gamma", "gae_lambda") for value in (-0.1, 1.1, None)),
    *(({name: value}, [name, "integer of at least 1"]) for name in ("n_steps", "return_steps") for value in (0, 2.5, "4")),
    ({"n_steps": None}, ["n_steps", "integer of at least 1"]),
    *(({"max_grad_norm": value}, ["max_grad_norm", "positive", "None"]) for value in (0, "1")),
    # two horizons
    ({"return_steps": 3, "gae_lambda": 0.9}, ["return_steps=3", "gae_lambda=0.9", "gae_lambda=1.0", "return_steps=None"]),
    ({"return_steps": 3, "gae_lambda": 0.0}, ["return_steps=3", "gae_lambda=0.0"]),
    ({"return_steps": 9}, ["return_steps=9", "n_steps=8", "lower it or raise n_steps"]),
    ({"return_steps": 5, "n_steps": 4}, ["return_steps=5", "n_steps=4"]),
    # the critic's learning rate
    *(({"value_learning_rate": value}, ["value_learning_rate", repr(value), "lin_1e-3"]) for value in ("fast", -1e-3, [1])),
    # the optimizer
    *(
        ({"use_rms_prop": value}, ["use_rms_prop", repr(value), "False (Adam)", "True (RMSprop)", '"tf"'])
        for value in ("adam", "TF", None, 2, [True])
    ),
    # storage
    ({**FOREIGN, "return_steps": 2}, ["return_steps=2", "Foreign", "PolicyGradientBuffer", "return_steps=None"]),
    ({**FOREIGN, "value_learning_rate": 1e-3}, ["value_learning_rate=0.001", "Foreign", "PolicyGradientBuffer"]),
    ({**FOREIGN, "max_grad_norm": None}, ["max_grad_norm=None", "Foreign", "1e9"]),
    ({"rollout_buffer_class": PolicyGradientDictBuffer, "gamma": 2}, ["gamma"]),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=name_of)
def test_the_constructor_rejects(wrong: Options, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        make(match_envs(2), **{**OURS, "n_steps": 8, **wrong})
    assert_names_all(raised, words)


@pytest.fixture(scope="module", params=[A2C, NStepA2C], ids=["saved by A2C", "saved by NStepA2C"])
def saved(request: pytest.FixtureRequest) -> bytes:
    file = io.BytesIO()
    request.param("MlpPolicy", match_envs(2), n_steps=8, use_rms_prop=False, device="cpu").save(file)
    return file.getvalue()


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=name_of)
def test_load_rejects(wrong: Options, words: list[str], saved: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        NStepA2C.load(io.BytesIO(saved), env=match_envs(2), **wrong)
    assert_names_all(raised, words)


def test_normalising_needs_two_steps(saved: bytes) -> None:
    """Rejected when training starts; a model may still be loaded for prediction."""
    words = ["normalize_advantage", "two steps", "n_steps"]
    single: Options = {"n_steps": 1, "normalize_advantage": True}
    with pytest.raises(ValueError, match=r".") as raised:
        make(match_envs(1), **OURS, **single)
    assert_names_all(raised, words)
    make(match_envs(2), **OURS, **single).learn(4)
    loaded = NStepA2C.load(io.BytesIO(saved), env=match_envs(1), **single)
    loaded.predict(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r".") as raised:
        loaded.learn(4)
    assert_names_all(raised, words)
    NStepA2C.load(io.BytesIO(saved), env=match_envs(3), **single).learn(6)


@pytest.mark.parametrize(
    ("saved_with", "wrong", "words"),
    [
        (False, {"use_rms_prop": True}, ["use_rms_prop=True", "RMSprop", "Adam", "leave it out", "set_parameters"]),
        (True, {"use_rms_prop": False}, ["use_rms_prop=False", "RMSprop", "Adam"]),
        (True, {"use_rms_prop": "tf"}, ["use_rms_prop='tf'", "RMSpropTFLike", "RMSprop"]),
        (True, {"rms_prop_eps": 1e-3}, ["rms_prop_eps=0.001", "1e-05", "leave it out"]),
        (False, {"value_learning_rate": 1e-3}, ["value_optimizer", "value_learning_rate"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("writer", [A2C, NStepA2C])
def test_load_rejects_overrides_that_change_the_optimizers(
    writer: Any, saved_with: Any, wrong: Options, words: list[str]
) -> None:
    model = writer("MlpPolicy", match_envs(2), use_rms_prop=saved_with, device="cpu").learn(20)
    with pytest.raises(ValueError, match=r".") as raised:
        reloaded(model, NStepA2C, **wrong)
    assert_names_all(raised, words)


@pytest.mark.parametrize("use_rms_prop", [False, True, "tf"])
def test_load_accepts_compatible_overrides(use_rms_prop: Any) -> None:
    """The zoo passes the optimizer again when it continues training."""
    model = make(match_envs(2), **OURS, use_rms_prop=use_rms_prop, value_learning_rate=1e-3).learn(24)
    given: Options = {"learning_rate": 0.2, "value_learning_rate": "lin_0.1", "return_steps": 2, "use_rms_prop": use_rms_prop}
    loaded = reloaded(model, env=match_envs(2), rms_prop_eps=1e-5, **given)
    loaded.learn(24)
    assert loaded.lr_schedule(0.5) == 0.2
    assert loaded.value_optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    assert type(loaded.value_optimizer) is {False: th.optim.Adam, True: th.optim.RMSprop, "tf": RMSpropTFLike}[use_rms_prop]
    custom = make(match_envs(2), **OURS, policy_kwargs={"optimizer_class": th.optim.SGD}, use_rms_prop=True)
    assert type(reloaded(custom, use_rms_prop=True).policy.optimizer) is th.optim.SGD


@pytest.mark.parametrize(
    "accepted",
    [
        {"n_steps": 1},
        {"n_steps": np.int64(4), "gamma": np.float32(0.5), "return_steps": np.int32(4)},
        {"gamma": 0, "gae_lambda": 0},
        {"gamma": 1, "return_steps": 1, "gae_lambda": 1},
        {"max_grad_norm": None, "vf_coef": 0.0},
        {"value_learning_rate": "1e-3"},
        {"rollout_buffer_class": PolicyGradientBuffer, "return_steps": 2},
        {**FOREIGN, "max_grad_norm": 1e9, "gae_lambda": 0.5},
    ],
    ids=name_of,
)
def test_boundary_values_are_accepted(accepted: Options) -> None:
    assert make(match_envs(2), **OURS, **accepted).learn(20).num_timesteps >= 20


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict(a=spaces.Discrete(2))], ids=str)
def test_unsupported_action_spaces(space: spaces.Space[Any]) -> None:
    with pytest.raises(AssertionError, match="only supports"):  # SB3's own
        NStepA2C("MlpPolicy", ScriptedEnv(0, [(3, "terminated")], space))


@pytest.mark.parametrize("observation", ["image", "dict_image"])
def test_a_critic_with_its_own_optimizer_must_not_share_features(observation: str) -> None:
    env, policy = match_envs(2, observation=observation), "CnnPolicy" if observation == "image" else "MultiInputPolicy"
    with pytest.raises(ValueError, match=r"its own optimizer.*share_features_extractor=False.*value_learning_rate=None"):
        make(env, policy, **OURS, value_learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"share_features_extractor=False"):
        reloaded(make(env, policy, **OURS), value_learning_rate=1e-3)
    make(env, policy, **OURS, value_learning_rate=1e-3, policy_kwargs={"share_features_extractor": False}).learn(12)


@pytest.mark.parametrize("chosen", [None, DictRolloutBuffer])
def test_sb3s_dictionary_buffer_is_replaced_by_ours(chosen: Any) -> None:
    model = make(match_envs(2, observation="dict"), "MultiInputPolicy", **OURS, rollout_buffer_class=chosen).learn(12)
    assert type(model.rollout_buffer) is PolicyGradientDictBuffer


# --------------------------------------------------------------------------------------------- every option has an effect

BOX: Options = {"action": "box"}
RMS_PROP: Options = {"use_rms_prop": True}
SEPARATE: Options = {"value_learning_rate": 1e-3}

# For each option pairs of settings, all else being equal, with which the trained parameters must differ.
CHANGES: dict[str, list[tuple[Options, Options]]] = {
    "policy": [({}, {"policy": "MlpPolicy", "policy_kwargs": {"activation_fn": th.nn.ReLU}})],
    "env": [({}, {"env": "terminating"})],
    "learning_rate": [(base, {"learning_rate": rate}) for base in ({}, SEPARATE) for rate in (0.1, lambda p: 1e-3 * p)],
    "n_steps": [({}, {"n_steps": 7})],
    "gamma": [(base, {"gamma": 0.5}) for base in ({}, {"return_steps": 2}, {"gae_lambda": 0.5}, FOREIGN)],
    "gae_lambda": [({}, {"gae_lambda": 0.3}), ({"gae_lambda": 0.0}, {"gae_lambda": 0.5}), (FOREIGN, {"gae_lambda": 0.5})],
    "ent_coef": [({}, {"ent_coef": 0.1}), (SEPARATE, {"ent_coef": 0.1})],
    "vf_coef": [({}, {"vf_coef": 0.1}), ({}, {"vf_coef": 0.0}), ({**SEPARATE, **RMS_PROP}, {"vf_coef": 0.1})],
    "max_grad_norm": [(base, {"max_grad_norm": 1e-3}) for base in (RMS_PROP, {**SEPARATE, **RMS_PROP})]
    + [(RMS_PROP, {"max_grad_norm": None})],
    "rms_prop_eps": [({"use_rms_prop": value}, {"rms_prop_eps": 1e-2}) for value in (True, "tf")],
    "use_rms_prop": [({}, RMS_PROP), (RMS_PROP, {"use_rms_prop": "tf"}), (SEPARATE, RMS_PROP)],
    "use_sde": [(BOX, {"use_sde": True})],
    "sde_sample_freq": [({**BOX, "use_sde": True}, {"sde_sample_freq": 2})],
    "rollout_buffer_class": [({}, {"rollout_buffer_class": ScaledBuffer})],
    "rollout_buffer_kwargs": [({"rollout_buffer_class": ScaledBuffer}, {"rollout_buffer_kwargs": {"scale": 3.0}})],
    "normalize_advantage": [({}, {"normalize_advantage": True}), (FOREIGN, {"normalize_advantage": True})],
    "policy_kwargs": [({}, {"policy_kwargs": {"net_arch": [4]}}), ({}, {"policy_kwargs": {"optimizer_class": th.optim.SGD}})],
    "seed": [({}, {"seed": 1})],
    "return_steps": [({}, {"return_steps": 5}), ({"return_steps": 1}, {"return_steps": 2})],
    "value_learning_rate": [({}, {"value_learning_rate": rate}) for rate in (1e-2, "lin_1e-2", lambda p: 1e-2 * p)],
}  # fmt: skip
# Their effect is tested in tests/conformance.
SHOWN = {"stats_window_size", "tensorboard_log", "verbose", "device", "_init_setup_model"}


def test_every_option_has_its_test() -> None:
    assert set(CHANGES) | SHOWN == set(inspect.signature(NStepA2C.__init__).parameters) - {"self"}


@pytest.mark.parametrize(
    ("base", "change"), [pytest.param(*case, id=f"{name}-{i}") for name in CHANGES for i, case in enumerate(CHANGES[name])]
)
def test_no_option_is_ignored(base: Options, change: Options) -> None:
    assert_matters({**OURS, **base}, change)
