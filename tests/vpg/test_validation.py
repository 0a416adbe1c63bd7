"""Conflicting options are rejected, by the constructor and by load; every option has an effect."""

import inspect
import io
import re
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from model_checks import Options, ScaledBuffer, assert_matters, assert_names_all, match_envs, name_of
from smoke_envs import ScriptedEnv
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_pg import VPG
from sb3_pg.common.buffers import PolicyGradientBuffer
from sb3_pg.vpg import LinearPolicy
from sb3_pg.vpg import validation as options

EPISODES: Options = {"n_episodes": 4}
TOTAL: Options = {**EPISODES, "advantage_estimator": "total_return", "baseline": "none"}
TO_GO: Options = {**EPISODES, "advantage_estimator": "reward_to_go", "baseline": "mean"}


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> VPG:
    return VPG(policy, match_envs(2) if env is None else env, **{"seed": 0, "device": "cpu", **kwargs})


# Invalid options, and what the message must name: the conflicting options and the fix.
WRONG: list[tuple[Options, list[str]]] = [
    # unknown names
    ({"advantage_estimator": "td"}, ["advantage_estimator", "'td'", *options.ADVANTAGE_ESTIMATORS]),
    ({"baseline": "critic"}, ["baseline", "'critic'", *options.BASELINES]),
    ({"advantage_estimator": None}, ["advantage_estimator", "None", *options.ADVANTAGE_ESTIMATORS]),
    # ranges; tests/common/test_validation.py has more values
    *(({name: value}, [name, "[0, 1]"]) for name in ("gamma", "gae_lambda") for value in (-0.1, 1.1, "0.9")),
    ({"gamma": None}, ["gamma", "[0, 1]"]),
    *(
        ({name: value}, [name, "integer"])
        for name in ("n_steps", "n_episodes", "n_value_updates", "value_batch_size")
        for value in (-1, 2.5, "4")
    ),
    *(({name: 0}, [name, "at least 1"]) for name in ("n_steps", "n_episodes", "value_batch_size")),
    *(
        ({"advantage_estimator": "n_step", "return_steps": value}, ["return_steps", "integer of at least 1"])
        for value in (0, 1.5)
    ),
    *(({"max_grad_norm": value}, ["max_grad_norm", "positive", "None"]) for value in (0, "1")),
    # collection
    ({**EPISODES, "n_steps": 8}, ["n_steps=8", "n_episodes=4", "None"]),
    # total_return
    ({**TOTAL, "baseline": "value"}, ["total_return", "value", "baseline=", "reward_to_go"]),
    ({**TOTAL, "discount_gradient": True}, ["total_return", "discount_gradient"]),
    # estimators that bootstrap, without critic
    *(
        ({**EPISODES, "advantage_estimator": "gae", "baseline": name}, ["'gae'", repr(name), "baseline='value'"])
        for name in ("none", "mean", "optimal")
    ),
    *(
        (
            {**EPISODES, "advantage_estimator": "n_step", "return_steps": 2, "baseline": name},
            ["'n_step'", repr(name), "baseline='value'"],
        )
        for name in ("none", "mean", "optimal")
    ),
    # no critic, no whole episodes
    *(
        ({"advantage_estimator": estimator, "baseline": name}, [f"baseline={name!r}", "n_steps", "n_episodes", "value"])
        for estimator in ("total_return", "reward_to_go")
        for name in ("none", "mean", "optimal")
    ),
    *(
        ({**TO_GO, "n_episodes": 1, "baseline": name}, [f"baseline={name!r}", "n_episodes", "at least 2"])
        for name in ("mean", "optimal")
    ),
    # return_steps and gae_lambda belong to one estimator each
    ({"advantage_estimator": "n_step"}, ["n_step", "return_steps", "required"]),
    *(
        ({**base, "return_steps": 3}, ["return_steps=3", repr(base.get("advantage_estimator", "gae")), "'n_step'", "None"])
        for base in ({}, {"advantage_estimator": "reward_to_go"}, TOTAL)
    ),
    *(
        ({**base, "gae_lambda": 0.9}, ["gae_lambda=0.9", repr(base["advantage_estimator"]), "'gae'", "None"])
        for base in (TOTAL, {"advantage_estimator": "reward_to_go"}, {"advantage_estimator": "n_step", "return_steps": 2})
    ),
    # options of a critic, without critic
    *(
        ({**TO_GO, name: value}, [f"{name}={value}", "baseline='value'", f"{name}=None"])
        for name, value in (
            ("vf_coef", 0.5),
            ("n_value_updates", 3),
            ("n_value_updates", 0),
            ("value_learning_rate", 1e-3),
            ("value_batch_size", 2),
        )
    ),
    ({**TO_GO, "critic_first": True}, ["critic_first", "baseline='value'", "n_value_updates"]),
    # options of a separately fitted critic with the joint loss, and vice versa
    ({"vf_coef": 0.5, "n_value_updates": 3}, ["vf_coef=0.5", "n_value_updates=3", "n_value_updates=0", "vf_coef=None"]),
    ({"n_value_updates": 0, "value_batch_size": 4}, ["value_batch_size=4", "n_value_updates > 0"]),
    ({"vf_coef": 0.5, "value_batch_size": 4}, ["value_batch_size=4", "n_value_updates > 0"]),
    ({"n_value_updates": 0, "critic_first": True}, ["critic_first=True", "n_value_updates > 0"]),
    ({"vf_coef": 0.5, "critic_first": True}, ["critic_first=True", "n_value_updates > 0"]),
    # the critic's learning rate
    *(({"value_learning_rate": value}, ["value_learning_rate", repr(value), "lin_1e-3"]) for value in ("fast", -1e-3, [1])),
    # storage
    ({"rollout_buffer_class": RolloutBuffer}, ["rollout_buffer_class=RolloutBuffer", "PolicyGradientBuffer", "None"]),
    ({"rollout_buffer_class": DictRolloutBuffer}, ["rollout_buffer_class=DictRolloutBuffer", "PolicyGradientBuffer", "None"]),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=name_of)
def test_the_constructor_rejects(wrong: Options, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        make(**wrong)
    assert_names_all(raised, words)


@pytest.fixture(scope="module")
def saved() -> bytes:
    file = io.BytesIO()
    make(n_steps=8).save(file)
    return file.getvalue()


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=name_of)
def test_load_rejects(wrong: Options, words: list[str], saved: bytes) -> None:
    """Overrides, as the zoo passes them: the saved model has n_steps, which must be reset for whole episodes."""
    overrides = {"n_steps": None, **wrong} if "n_episodes" in wrong else wrong
    with pytest.raises(ValueError, match=r".") as raised:
        VPG.load(io.BytesIO(saved), env=match_envs(2), **overrides)
    assert_names_all(raised, words)


@pytest.mark.parametrize(
    ("wrong", "n_envs", "words"),
    [
        ({"n_episodes": 4}, 3, ["n_episodes=4", "multiple", "environments (3)"]),
        ({"n_episodes": 1}, 2, ["n_episodes=1", "multiple", "environments (2)"]),
        ({"n_steps": 1, "normalize_advantage": True}, 1, ["normalize_advantage", "raise n_steps"]),
        ({"n_steps": 4, "value_batch_size": 9}, 2, ["value_batch_size=9", "n_steps * n_envs = 8", "raise n_steps"]),
    ],
    ids=str,
)
def test_options_must_fit_the_number_of_environments(wrong: Options, n_envs: int, words: list[str], saved: bytes) -> None:
    """Rejected when training starts; a model may still be loaded for prediction."""
    with pytest.raises(ValueError, match=r".") as raised:
        make(match_envs(n_envs), **wrong)
    assert_names_all(raised, words)
    loaded = VPG.load(io.BytesIO(saved), env=match_envs(n_envs), **{"n_steps": None, **wrong})
    before = {name: value.clone() for name, value in loaded.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r".") as raised:
        loaded.learn(100)
    assert_names_all(raised, words)
    assert all(th.equal(value, before[name]) for name, value in loaded.policy.state_dict().items())


@pytest.mark.parametrize(
    "accepted",
    [
        {"n_steps": 2},
        {"n_steps": np.int64(4), "gamma": np.float32(0.5), "n_value_updates": np.int32(2)},
        {"n_steps": 4, "value_batch_size": 8},
        {"n_steps": 4, "gamma": 0, "gae_lambda": 0},
        {"n_steps": 4, "gamma": 1, "gae_lambda": 1},
        {"n_episodes": 2, "value_batch_size": 1000},
        {"n_steps": 4, "vf_coef": 0.0},
        {"n_steps": 4, "value_learning_rate": "1e-3", "n_value_updates": 0, "vf_coef": 0.3},
        {"n_steps": 4, "rollout_buffer_class": PolicyGradientBuffer},
        {**TOTAL, "n_episodes": 2},
    ],
    ids=name_of,
)
def test_boundary_values_are_accepted(accepted: Options) -> None:
    model = make(**accepted).learn(20)
    assert model.num_timesteps >= 20


def test_one_episode_is_enough_without_a_baseline() -> None:
    assert make(match_envs(1), **{**TOTAL, "n_episodes": 1}).learn(8)._n_updates > 0


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict(a=spaces.Discrete(2))], ids=str)
def test_unsupported_action_spaces(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"VPG supports the action spaces Box, Discrete, MultiDiscrete, MultiBinary, not"):
        VPG("MlpPolicy", ScriptedEnv(0, [(3, "terminated")], space))


@pytest.mark.parametrize("wrong", [{}, {"n_value_updates": 2}, {"n_value_updates": 0, "value_learning_rate": 1e-3}], ids=str)
@pytest.mark.parametrize("observation", ["image", "dict_image"])
def test_shared_features_need_the_joint_loss(wrong: Options, observation: str) -> None:
    env, policy = match_envs(2, observation=observation), "CnnPolicy" if observation == "image" else "MultiInputPolicy"
    shared: Options = {"policy_kwargs": {"share_features_extractor": True}}
    with pytest.raises(
        ValueError,
        match=r"its own optimizer.*share_features_extractor=False.*n_value_updates=0 and value_learning_rate=None",
    ):
        make(env, policy, n_steps=8, **wrong, **shared)
    file = io.BytesIO()
    make(env, policy, n_steps=8, n_value_updates=0, **shared).save(file)
    file.seek(0)
    with pytest.raises(ValueError, match="share_features_extractor=False"):
        VPG.load(file, **{"n_value_updates": 2, **wrong})


@pytest.mark.parametrize("policy", ["CnnPolicy", "LinearPolicy", LinearPolicy])
def test_dictionaries_need_their_policy(policy: Any) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        VPG(policy, match_envs(2, observation="dict"), n_steps=8)


@pytest.mark.parametrize("net_arch", [[64], [], {"pi": [8]}, {"pi": [8], "vf": [8]}])
def test_a_linear_policy_has_no_hidden_layer(net_arch: Any) -> None:
    with pytest.raises(ValueError, match=r"no hidden layer: net_arch=.* must be None or dict\(vf="):
        make(policy="LinearPolicy", policy_kwargs={"net_arch": net_arch})


@pytest.mark.parametrize(
    ("kept", "override"),
    [
        ({}, {"n_value_updates": 0}),
        ({"n_value_updates": 0}, {"n_value_updates": 3}),
        ({"n_value_updates": 0}, {"value_learning_rate": 1e-3}),
        ({}, {"n_steps": None, **TO_GO}),
    ],
    ids=str,
)
def test_load_rejects_overrides_that_change_the_optimizers(kept: Options, override: Options) -> None:
    """One optimizer with the joint loss, two otherwise: their states cannot be converted."""
    file = io.BytesIO()
    make(n_steps=8, **kept).learn(16).save(file)
    file.seek(0)
    with pytest.raises(ValueError, match=r"n_value_updates|value_learning_rate") as raised:
        VPG.load(file, **override)
    assert "optimizer" in str(raised.value)


def test_load_accepts_compatible_overrides() -> None:
    file = io.BytesIO()
    make(n_steps=8, n_value_updates=3).learn(16).save(file)
    file.seek(0)
    loaded = VPG.load(
        file, env=match_envs(2), n_value_updates=5, gae_lambda=0.5, value_learning_rate="lin_0.1", learning_rate=0.2
    )
    loaded.learn(64)
    assert loaded.lr_schedule(0.5) == 0.2
    assert loaded.value_optimizer is not None
    assert loaded.value_optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_documented_defaults_are_correct() -> None:
    text = " ".join((VPG.__doc__ or "").split())
    for name, value in (
        ("n_steps", options.N_STEPS),
        ("gae_lambda", options.GAE_LAMBDA),
        ("n_value_updates", options.N_VALUE_UPDATES),
    ):
        described = re.search(rf":param {name}: (.*?) :param", text)
        assert described is not None
        assert re.search(rf"\b{re.escape(str(value))} (if not given|unless)", described[1])
    model = make()
    assert model.n_steps == options.N_STEPS
    assert model.resolved_n_value_updates == options.N_VALUE_UPDATES


# --------------------------------------------------------------------------------------------- every option has an effect


JOINT: Options = {"n_value_updates": 0}
BOX: Options = {"use_sde": True}

# For each option pairs of settings, all else being equal, with which the trained parameters must differ.
CHANGES: dict[str, list[tuple[Options, Options]]] = {
    "policy": [({}, {"policy": "LinearPolicy"})],
    "env": [({}, {"env": "terminating"})],
    "learning_rate": [({}, {"learning_rate": 0.1}), ({}, {"learning_rate": lambda p: 1e-3 * p})],
    "n_steps": [({}, {"n_steps": 7})],
    "gamma": [({}, {"gamma": 0.5}), (TOTAL, {"gamma": 0.5}), (TO_GO, {"gamma": 0.5}), (JOINT, {"gamma": 0.5})],
    "gae_lambda": [({}, {"gae_lambda": 0.3}), ({"gae_lambda": 0.0}, {"gae_lambda": 1.0}), ({}, {"gae_lambda": 0.0})],
    "ent_coef": [({}, {"ent_coef": 0.1}), (TO_GO, {"ent_coef": 0.1}), ({**TO_GO, "baseline": "optimal"}, {"ent_coef": 0.1})],
    "vf_coef": [(JOINT, {"vf_coef": 0.1}), (JOINT, {"vf_coef": 0.0})],
    "max_grad_norm": [({}, {"max_grad_norm": 1e-3}), (JOINT, {"max_grad_norm": 1e-3}), (TOTAL, {"max_grad_norm": 1e-3})],
    "use_sde": [({"action": "box"}, {"action": "box", "use_sde": True})],
    "sde_sample_freq": [({"action": "box", **BOX}, {"action": "box", "sde_sample_freq": 2})],
    "rollout_buffer_class": [({}, {"rollout_buffer_class": ScaledBuffer})],
    "rollout_buffer_kwargs": [({"rollout_buffer_class": ScaledBuffer}, {"rollout_buffer_kwargs": {"scale": 3.0}})],
    "normalize_advantage": [({}, {"normalize_advantage": True}), (TOTAL, {"normalize_advantage": True})],
    "policy_kwargs": [({}, {"policy_kwargs": {"net_arch": [4]}}), ({}, {"policy_kwargs": {"optimizer_class": th.optim.SGD}})],
    "seed": [({}, {"seed": 1})],
    "advantage_estimator": [({}, {"advantage_estimator": "reward_to_go"}), (TO_GO, {"advantage_estimator": "total_return"})],
    "baseline": [
        *((TO_GO, {"baseline": name}) for name in ("none", "optimal", "value")),
        ({**TO_GO, "baseline": "none"}, {"baseline": "optimal"}),
        (TOTAL, {"baseline": "mean"}),
        (TOTAL, {"baseline": "optimal"}),
    ],
    "n_episodes": [(EPISODES, {"n_episodes": 2}), (TO_GO, {"n_episodes": 8})],
    "return_steps": [({"advantage_estimator": "n_step", "return_steps": 1}, {"return_steps": 2})],
    "discount_gradient": [(base, {"discount_gradient": True}) for base in ({}, JOINT, EPISODES, TO_GO)],
    "n_value_updates": [({}, {"n_value_updates": 3}), ({"n_value_updates": 1}, JOINT), ({}, JOINT)],
    "value_learning_rate": [(base, {"value_learning_rate": rate}) for base in ({}, JOINT) for rate in (1e-2, "lin_1e-2")],
    "value_batch_size": [({}, {"value_batch_size": 3}), (EPISODES, {"value_batch_size": 3})],
    "critic_first": [({}, {"critic_first": True}), (EPISODES, {"critic_first": True})],
}  # fmt: skip
# Their effect is tested in tests/conformance.
SHOWN = {"stats_window_size", "tensorboard_log", "verbose", "device", "_init_setup_model"}


def test_every_option_has_its_test() -> None:
    assert set(CHANGES) | SHOWN == set(inspect.signature(VPG.__init__).parameters) - {"self"}


@pytest.mark.parametrize(
    ("base", "change"), [pytest.param(*case, id=f"{name}-{i}") for name in CHANGES for i, case in enumerate(CHANGES[name])]
)
def test_no_option_is_ignored(base: Options, change: Options) -> None:
    assert_matters(base, change)
