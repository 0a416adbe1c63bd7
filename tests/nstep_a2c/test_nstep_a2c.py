"""
Behaviour specific to NStepA2C: one joint step with two learning rates, and buffers of other classes.

The rest is in ``tests/conformance`` and ``tests/common/test_on_policy_algorithms.py``.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from model_checks import A2C as OURS
from model_checks import Options, check_training, make, match_envs, name_of, policy_for, reloaded
from smoke_envs import Recorder, scripted_vec_env
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import VecNormalize

RATE, VALUE_RATE, ENT_COEF, VF_COEF = 3.0, 0.2, 0.1, 0.7


@pytest.mark.parametrize("horizon", [{}, {"return_steps": 2}, {"gae_lambda": 0.5}], ids=name_of)
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("normalize", [False, True])
def test_one_step_of_two_optimizers(horizon: Options, max_norm: float | None, normalize: bool) -> None:
    """SGD on the joint loss: each network with its own learning rate, gradients clipped jointly."""
    network = {"optimizer_class": th.optim.SGD, "net_arch": {"pi": [8], "vf": [8]}}
    options: Options = {"learning_rate": RATE, "value_learning_rate": VALUE_RATE, "ent_coef": ENT_COEF, "vf_coef": VF_COEF}
    options |= {"max_grad_norm": max_norm, "normalize_advantage": normalize, "policy_kwargs": network, **horizon}
    model = make(scripted_vec_env(), **OURS, **options)
    recorder = Recorder(at_end=lambda m: copy.deepcopy((m.policy, m.rollout_buffer)))
    model.learn(12, callback=recorder)
    slow, buffer = recorder.rollouts[0].at_end

    steps = [step for row in zip(*recorder.rollouts[0].steps, strict=True) for step in row]
    obs, actions = (th.as_tensor(np.stack([getattr(step, name) for step in steps])) for name in ("obs", "action"))
    targets, advantages = (array.ravel().astype(np.float64) for array in (buffer.returns, buffer.advantages))
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    values, log_prob, entropy = slow.evaluate_actions(obs, actions)
    loss = -(log_prob * th.as_tensor(advantages)).mean() - ENT_COEF * entropy.mean()
    (loss + VF_COEF * ((values.flatten() - th.as_tensor(targets)) ** 2).mean()).backward()
    norm = float(th.cat([p.grad.ravel() for p in slow.parameters()]).norm())
    factor = 1.0 if max_norm is None else max_norm / norm
    assert max_norm is None or norm > max_norm
    for name, parameter in slow.named_parameters():
        step = (VALUE_RATE if "value" in name else RATE) * factor * parameter.grad
        assert step.abs().max() > 2e-5
        assert th.allclose(
            model.policy.get_parameter(name), parameter - step, rtol=0, atol=1e-6 + 1e-5 * float(step.abs().max())
        ), name


class Foreign(RolloutBuffer):
    """A buffer that only SB3's A2C can fill."""


class ForeignDict(DictRolloutBuffer):
    """A buffer for dictionaries that only SB3's A2C can fill."""


@pytest.mark.parametrize("observation", ["box", "dict", "image"])
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_buffers_of_other_classes(observation: str, action: str) -> None:
    env = match_envs(observation=observation, action=action, truncate=True)
    chosen = ForeignDict if observation == "dict" else Foreign
    options: dict[str, Any] = {**OURS, "rollout_buffer_class": chosen, "ent_coef": 0.01, "normalize_advantage": True}
    model = make(VecNormalize(env, norm_obs=observation == "box"), policy_for(observation), **options)
    check_training(model)
    assert type(model.rollout_buffer) is chosen
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 3 * 8
    loaded = reloaded(model, env=match_envs(2, observation=observation, action=action))
    assert type(loaded.rollout_buffer) is chosen
    assert loaded.rollout_buffer.n_envs == 2
    check_training(loaded)
