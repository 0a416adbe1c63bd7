"""The fast path against the reference: complete updates."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch as th
from goal_envs import point_envs
from stable_baselines3.td3.policies import Actor

from sb3_pg import HERDDPG
from sb3_pg.fast import disabled

Options = dict[str, Any]


def make(policy_kwargs: Options | None = None, **kwargs: Any) -> HERDDPG:
    """A model with experience and some updates, so that the parameters are not the initial ones."""
    network = {"net_arch": [16, 16], **(policy_kwargs or {})}
    options: Options = {"batch_size": 16, "gradient_steps": 3, "learning_rate": 1e-2, "seed": 0, "device": "cpu", **kwargs}
    return HERDDPG("MultiInputPolicy", point_envs(2), policy_kwargs=network, **options).learn(80)


@pytest.mark.parametrize(
    ("options", "batch_size"),
    [
        ({}, 32),
        ({"action_l2": 0.0, "reward_range": None}, 32),
        ({"policy_kwargs": {"n_critics": 2}, "target_update": "step"}, 32),
        ({"policy_kwargs": {"activation_fn": th.nn.Tanh, "net_arch": [16]}}, 7),
        ({"policy_kwargs": {"share_features_extractor": True}, "n_steps": 3}, 32),
        ({"normalize_inputs": False}, 32),
    ],
    ids=str,
)
def test_updates_equal_the_reference(options: Options, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**options)
    batches = [model._sample_batch(batch_size) for _ in range(4)]
    state = copy.deepcopy(model.policy.state_dict())
    optimizers = [copy.deepcopy(part.optimizer.state_dict()) for part in (model.actor, model.critic)]
    results = []
    for reference in (False, True):
        model.policy.load_state_dict(state)
        for part, optimizer in zip((model.actor, model.critic), optimizers, strict=True):
            part.optimizer.load_state_dict(copy.deepcopy(optimizer))
        rest = iter(batches)
        monkeypatch.setattr(model, "_sample_batch", lambda _, rest=rest: next(rest))
        model.logger.name_to_value.clear()
        with disabled() if reference else nullcontext():
            assert (model._fast_path() is None) == reference
            model.train(len(batches), batch_size)
        results.append((copy.deepcopy(model.policy.state_dict()), dict(model.logger.name_to_value)))
    (ours, our_log), (theirs, their_log) = results
    for name, value in theirs.items():
        # Adam amplifies rounding errors where gradients are nearly zero.
        assert (ours[name] - value).norm() <= 1e-3 * max((value - state[name]).norm(), 1e-3 * value.norm()), name
        assert "optimizer" in name or "normalizer" in name or not th.equal(value, state[name]), name
    for name in ("train/critic_loss", "train/q_value", "train/actor_loss"):
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-3, abs=1e-5)


class OtherActor(Actor):
    """A user's subclass."""


def other_actor(model: HERDDPG) -> None:
    model.policy.actor.__class__ = OtherActor


EXCEPTIONS: dict[str, tuple[Options, Callable[[HERDDPG], object]]] = {
    "elu": ({"activation_fn": th.nn.ELU}, lambda _: None),
    "hook": ({}, lambda model: model.critic.q_networks[0].register_forward_hook(lambda *_: None)),
    "hook_of_the_target": ({}, lambda model: model.actor_target.mu.register_forward_hook(lambda *_: None)),
    "frozen": ({}, lambda model: model.actor.mu[0].bias.requires_grad_(False)),
    "subclass": ({}, other_actor),
}


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_other_models_use_the_reference(name: str) -> None:
    policy_kwargs, change = EXCEPTIONS[name]
    model = make(policy_kwargs)
    change(model)
    assert model._fast_path() is None
    before = copy.deepcopy(model.actor.state_dict())
    model.train(2, 16)
    assert any(not th.equal(value, before[key]) for key, value in model.actor.state_dict().items())


def test_a_non_finite_critic_is_rejected() -> None:
    model = make({"net_arch": [64, 64]})
    with th.no_grad():
        list(model.critic.parameters())[2][3, 4] = float("nan")
    with pytest.raises(ValueError, match="critic loss is not finite"):
        model.train(1, 16)
