"""Single updates against SB3's SAC and DDPG, slow references, and closed forms."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import references
import torch as th
from gymnasium import spaces
from smoke_envs import ScriptedEnv
from stable_baselines3 import DDPG, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import SVG0
from sb3_pg.common.distributions import COVARIANCES, GaussianActions
from sb3_pg.svg0.buffers import SequenceSamples

Options = dict[str, Any]

ACTION_SPACE = spaces.Box(np.array([-2.0, 1.0], dtype=np.float32), np.array([4.0, 1.5], dtype=np.float32))
SCRIPTS = [[(3, "truncated"), (9, "terminated"), (40, "truncated")], [(5, "terminated"), (60, "truncated")]]
SMALL: Options = {"net_arch": [16, 16]}


def envs() -> DummyVecEnv:
    def make_one(i: int) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: Monitor(ScriptedEnv(i, SCRIPTS[i], ACTION_SPACE))

    return DummyVecEnv([make_one(i) for i in range(2)])


def make(env: Any = None, policy_kwargs: Options | None = None, **kwargs: Any) -> SVG0:
    defaults: Options = {"seed": 0, "device": "cpu", "learning_starts": None if kwargs.get("on_policy") else 10}
    return SVG0(
        "MlpPolicy", envs() if env is None else env, policy_kwargs={**SMALL, **(policy_kwargs or {})}, **{**defaults, **kwargs}
    )


def collected(n_steps: int = 80, **kwargs: Any) -> SVG0:
    """A model with experience from uniform actions and from its policy, but without updates."""
    return make(**kwargs, gradient_steps=0).learn(n_steps)


def batch_of(model: SVG0, n_segments: int = 6, length: int = 5) -> SequenceSamples:
    assert model.replay_buffer is not None
    return model.replay_buffer.sample_segments(n_segments, length)


def parameters_of(module: th.nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def flat(module: th.nn.Module) -> th.Tensor:
    return th.cat([p.detach().ravel() for p in module.parameters()])


# ------------------------------------------------------------------------------------------------------- SAC and DDPG


def sac_batch(batch: SequenceSamples) -> ReplayBufferSamples:
    """Single steps, as SB3's replay buffer would have returned them."""
    assert isinstance(batch.observations, th.Tensor)
    assert isinstance(batch.next_observations, th.Tensor)
    terminated, rewards = (
        th.as_tensor(array.astype(np.float32)).reshape(-1, 1) for array in (batch.terminated, batch.rewards)
    )
    return ReplayBufferSamples(batch.observations, th.tanh(batch.samples), batch.next_observations, terminated, rewards)


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.1", 0.2])
def test_one_configuration_is_sac(ent_coef: str | float, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Two critics, tanh, entropy bonus, lambda = 0, one draw: with the same initial parameters, minibatch and noise, three
    updates give the same parameters as three updates of SB3's SAC.
    """
    automatic = isinstance(ent_coef, str)
    ours = collected(
        n_critics=2, td_lambda=0.0, ent_coef=ent_coef, learning_rate=1e-2, tau=0.1, policy_kwargs={"min_std": 0.0}
    )
    theirs = SAC(
        "MlpPolicy", envs(), ent_coef=ent_coef, learning_rate=1e-2, tau=0.1, policy_kwargs=dict(SMALL), device="cpu", seed=1
    )
    theirs.learn(1)  # creates the logger
    with th.no_grad():
        # As after training, the mean and the standard deviation depend on the state.
        for parameter in ours.actor.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    theirs.policy.load_state_dict(ours.policy.state_dict())
    batch = batch_of(ours, n_segments=32, length=1)
    assert theirs.replay_buffer is not None
    monkeypatch.setattr(ours, "_sample_batch", lambda *_: batch)
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: sac_batch(batch))
    before = parameters_of(ours.policy)
    for model in (ours, theirs):
        th.manual_seed(4)
        model.train(gradient_steps=3, batch_size=32)
    expected = theirs.policy.state_dict()
    for name, value in ours.policy.state_dict().items():
        # Adam moves each by 0.01 per step; SAC adds 1e-6 to the derivative of tanh, which is negligible.
        assert th.allclose(value, expected[name], atol=2e-5), name
        assert (value - before[name]).abs().max() > 1e-4
    if automatic:
        assert ours.log_ent_coef is not None
        assert theirs.log_ent_coef is not None
        assert th.allclose(ours.log_ent_coef, theirs.log_ent_coef, atol=1e-6)
        assert ours._target_entropy == theirs.target_entropy


def test_the_default_is_not_sac() -> None:
    model = make()
    assert model.n_critics == len(model.critic.q_networks) == 1
    assert model.ent_coef == 0
    assert model.td_lambda > 0
    assert model.resolved_segment_length > 1


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("n_action_samples", [1, 3])
def test_without_noise_the_actor_update_is_that_of_ddpg(
    covariance: str, n_action_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plain gradient descent, so that the step is the gradient; the critics are not updated."""
    sgd: Options = {"optimizer_class": th.optim.SGD}
    ours = collected(
        covariance=covariance,
        n_action_samples=n_action_samples,
        td_lambda=0.0,
        learning_rate=1.0,
        policy_kwargs={**sgd, "min_std": 0.0, "log_std_init": -20.0},
    )
    theirs = DDPG("MlpPolicy", envs(), learning_rate=1.0, policy_kwargs={**SMALL, **sgd}, device="cpu")
    theirs.learn(1)
    theirs.critic.load_state_dict(ours.critic.state_dict())
    pairs = list(itertools.chain(ours.actor.latent_pi.parameters(), ours.actor.mu.parameters()))
    actor = [p for p in theirs.actor.parameters() if p.requires_grad]
    with th.no_grad():
        for own, other in zip(pairs, actor, strict=True):
            other.copy_(own)
    batch = batch_of(ours, n_segments=32, length=1)
    assert theirs.replay_buffer is not None
    monkeypatch.setattr(ours, "_sample_batch", lambda *_: batch)
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: sac_batch(batch))
    before = [p.detach().clone() for p in pairs]
    for model in (ours, theirs):
        monkeypatch.setattr(model.critic.optimizer, "step", lambda: None)
        model.train(gradient_steps=1, batch_size=32)
    for own, other, old in zip(pairs, actor, before, strict=True):
        assert th.allclose(own, other, atol=1e-6)
        assert not th.equal(own, old)


# ------------------------------------------------------------------------------------------------------------- targets


def targets_of(model: SVG0, batch: SequenceSamples, ent_coef: float = 0.0) -> np.ndarray:
    draws = model._draw(batch)
    th.manual_seed(9)
    return model._targets(batch, draws, th.tensor([ent_coef]), {}).numpy().reshape(batch.rewards.shape)


def next_values_of(model: SVG0, batch: SequenceSamples) -> tuple[np.ndarray, np.ndarray]:
    """``Q(s', a')`` with the same new actions as :func:`targets_of`, and ``log pi(a' | s')``, by SB3's own functions."""
    th.manual_seed(9)
    with th.no_grad():
        next_policy = model.actor.distribution(batch.next_observations)
        samples = next_policy.rsample(1)[0]
        values = th.cat(model.critic_target(batch.next_observations, next_policy.actions(samples)), dim=1).min(dim=1)[0]
        log_prob = next_policy.log_prob(samples)
    return tuple(part.numpy().reshape(batch.rewards.shape) for part in (values, log_prob))  # type: ignore[return-value]  # two


@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize("squash", [True, False])
def test_lambda_zero_is_one_step_td(n_critics: int, squash: bool) -> None:
    model = collected(td_lambda=0.0, gamma=0.9, n_critics=n_critics, squash_output=squash)
    batch = batch_of(model, 40, 1)
    values, _ = next_values_of(model, batch)
    assert batch.terminated.any()
    assert np.allclose(targets_of(model, batch), batch.rewards + 0.9 * ~batch.terminated * values, atol=1e-5)


def test_lambda_one_is_monte_carlo() -> None:
    """In segments that reach a termination, the targets are discounted rewards without values of the critic."""
    model = collected(160, td_lambda=1.0, gamma=0.9, off_policy_correction="none")
    batch = batch_of(model, 1000, 5)
    targets, used = targets_of(model, batch), batch.weights.numpy().reshape(5, -1) > 0
    checked = 0
    for t, i in np.argwhere(used):
        last = int(t)
        while not (batch.terminated[last, i] or batch.truncated[last, i]):
            last += 1
        if batch.terminated[last, i]:
            discounted = sum(0.9 ** (u - t) * float(batch.rewards[u, i]) for u in range(t, last + 1))
            assert targets[t, i] == pytest.approx(discounted, abs=1e-4)
            checked += 1
    assert checked > 50


def test_td_lambda_equals_the_slow_reference() -> None:
    model = collected(td_lambda=0.7, gamma=0.9, off_policy_correction="none")
    batch = batch_of(model, 60, 6)
    values, _ = next_values_of(model, batch)
    expected = references.lambda_returns(batch.rewards, values, batch.terminated, batch.truncated, 0.9, 0.7)
    assert np.allclose(targets_of(model, batch), expected, atol=1e-4)


def density(model: SVG0, batch: SequenceSamples) -> np.ndarray:
    """Log-density of the stored samples under the current policy, from the numpy formula of a diagonal Gaussian."""
    with th.no_grad():
        policy = model.actor.distribution(batch.observations)
        mean, std, samples = (part.double().numpy() for part in (policy.mean, policy.stddev, batch.samples))
    log_prob = -0.5 * ((samples - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return np.asarray(log_prob.sum(axis=1).reshape(batch.rewards.shape))


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("n_critics", [1, 2])
def test_retrace_equals_the_slow_reference(squash: bool, n_critics: int) -> None:
    model = collected(td_lambda=0.9, gamma=0.9, squash_output=squash, n_critics=n_critics)
    with th.no_grad():
        model.actor.mu.bias.add_(0.3)  # no longer the behaviour policy
    batch = batch_of(model, 60, 6)
    values, _ = next_values_of(model, batch)
    actions = th.tanh(batch.samples) if squash else batch.samples
    with th.no_grad():
        q_values = th.cat(model.critic_target(batch.observations, actions), dim=1).min(dim=1)[0].numpy()
    ratios = np.exp(density(model, batch) - batch.log_probs)
    assert (ratios < 0.9).any()
    assert (ratios > 1.1).any()
    ends = (batch.terminated, batch.truncated)
    expected = references.retrace_returns(
        batch.rewards, q_values.reshape(batch.rewards.shape), values, ratios, *ends, 0.9, 0.9
    )
    uncorrected = references.lambda_returns(batch.rewards, values, *ends, 0.9, 0.9)
    assert model.resolved_correction == "retrace"
    assert np.allclose(targets_of(model, batch), expected, atol=1e-3)
    assert not np.allclose(expected, uncorrected, atol=1e-1)


def test_retrace_is_td_lambda_on_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored actions are those of the policy, and V' is the value of the next stored action."""
    models = [collected(td_lambda=0.8, off_policy_correction=name) for name in ("retrace", "none")]
    model = models[0]
    batch = batch_of(model, 50, 6)
    batch = batch._replace(log_probs=density(model, batch).astype(np.float32))
    rows = batch.samples.reshape(6, 50, 2)
    next_samples = th.cat([rows[1:], rows[-1:]]).reshape(1, -1, 2)
    monkeypatch.setattr(GaussianActions, "rsample", lambda *_: next_samples)
    models[1].policy.load_state_dict(model.policy.state_dict())
    corrected, plain = (targets_of(each, batch) for each in models)
    # The last step of a segment has no stored next action: there, V' uses another one, the same in both.
    used = batch.weights.numpy().reshape(6, -1) > 0
    assert np.allclose(corrected[used], plain[used], atol=1e-4)


@pytest.mark.parametrize("correction", ["none", "retrace"])
def test_the_entropy_of_the_next_state_counts_as_reward(correction: str) -> None:
    model = collected(td_lambda=0.8, gamma=0.9, ent_coef=0.5, off_policy_correction=correction)
    batch = batch_of(model, 60, 6)
    _, log_prob = next_values_of(model, batch)
    bonus = (-0.9 * 0.5 * log_prob * ~batch.terminated).astype(np.float32)
    with_bonus = targets_of(model, batch, 0.5)
    model.ent_coef = 0.0
    expected = targets_of(model, batch._replace(rewards=batch.rewards + bonus))
    assert np.allclose(with_bonus, expected, atol=1e-4)
    assert not np.allclose(with_bonus, targets_of(model, batch), atol=0.1)


def test_uniform_actions_are_stored_with_their_density() -> None:
    """Density of artanh(a) for a uniform a: (1 - a^2) / 2 in each dimension; without tanh 1/2."""
    for squash in (True, False):
        model = make(squash_output=squash, learning_starts=200, gradient_steps=0).learn(100)
        assert model.replay_buffer is not None
        batch = model.replay_buffer.whole()
        samples = batch.samples.double().numpy().reshape(50, 2, 2)
        expected = np.log((1 - np.tanh(samples) ** 2) / 2) if squash else np.full_like(samples, -np.log(2))
        assert np.allclose(batch.log_probs, expected.sum(axis=2), atol=1e-4)
        scaled = np.tanh(samples) if squash else samples
        assert np.all(np.abs(scaled) <= 1)
        assert 0.4 < np.mean(np.abs(scaled)) < 0.6


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_policys_samples_are_stored_with_their_density(squash: bool, covariance: str) -> None:
    model = collected(squash_output=squash, covariance=covariance, learning_starts=0, policy_kwargs={"log_std_init": 0.5})
    assert model.replay_buffer is not None
    batch = model.replay_buffer.whole()
    with th.no_grad():
        log_prob = model.actor.distribution(batch.observations).sample_log_prob(batch.samples)
    assert np.allclose(batch.log_probs.ravel(), log_prob, atol=1e-4)
    assert batch.samples.abs().max() > 1.5  # neither clipped nor squashed


def test_action_noise_makes_the_density_unknown() -> None:
    noise = NormalActionNoise(np.zeros(2), 0.5 * np.ones(2))
    for squash in (True, False):
        model = collected(action_noise=noise, squash_output=squash)
        assert model.resolved_correction == "none"
        assert model.replay_buffer is not None
        assert np.isnan(model.replay_buffer.log_probs[:40]).all()
        assert np.isfinite(model.replay_buffer.actions).all()
        model.train(2, 16)
        model.action_noise = None
        with pytest.raises(ValueError, match=r"behaviour log-probabilities .* unknown .*off_policy_correction='none'"):
            model.train(1, 16)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("estimator", ["pathwise", "likelihood_ratio"])
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
def test_the_actor_step_leaves_the_critic_unchanged(estimator: str, ent_coef: float) -> None:
    model = collected(gradient_estimator=estimator, ent_coef=ent_coef)
    batch = batch_of(model)
    before, old = flat(model.critic), flat(model.actor)
    for parameter in model.policy.parameters():
        parameter.grad = None
    model._actor_step(batch, model._draw(batch), th.tensor([ent_coef]), {})
    assert all(p.grad is None for p in model.critic.parameters())
    assert th.equal(flat(model.critic), before)
    assert not th.equal(flat(model.actor), old)


def test_the_critic_step_leaves_the_actor_and_the_targets_unchanged() -> None:
    model = collected()
    batch = batch_of(model)
    before, old = (flat(model.actor), flat(model.critic_target)), flat(model.critic)
    model._critic_step(batch, th.zeros(batch.rewards.size), {})
    assert all(p.grad is None for p in model.actor.parameters())
    assert th.equal(flat(model.actor), before[0])
    assert th.equal(flat(model.critic_target), before[1])
    assert not th.equal(flat(model.critic), old)


def sgd_model(**kwargs: Any) -> SVG0:
    """Gradient descent with learning rate 1, so that the step is the gradient, and a state-independent covariance."""
    network = {"optimizer_class": th.optim.SGD, "min_std": 0.0, "log_std_init": -0.5}
    return collected(learning_rate=1.0, state_dependent_covariance=False, policy_kwargs=network, **kwargs)


def step_of(parameter: th.Tensor, act: Callable[[], None]) -> th.Tensor:
    before = parameter.detach().clone()
    act()
    return parameter.detach() - before


@pytest.mark.parametrize("estimator", ["pathwise", "likelihood_ratio"])
@pytest.mark.parametrize(("covariance", "expected"), [("isotropic", [2.0]), ("diagonal", [1.0, 1.0]), ("full", [1.0, 1.0])])
def test_the_entropy_gradient_flows_through_the_samples(estimator: str, covariance: str, expected: list[float]) -> None:
    """
    With a critic that is zero everywhere, the entropy of the Gaussian remains, ``sum_i log L_ii`` plus a constant: its
    gradient is exact for every draw. With detached samples it would be noise around zero.
    """
    model = sgd_model(gradient_estimator=estimator, covariance=covariance, ent_coef=0.25, squash_output=False)
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.zero_()
    batch = batch_of(model)
    bias: Any = model.actor.log_std.bias
    step = step_of(bias, lambda: model._actor_step(batch, model._draw(batch), th.tensor([0.25]), {}))
    assert np.allclose(step, 0.25 * np.array(expected), atol=1e-5)


class Quadratic(th.nn.Module):
    """In place of the critics: ``Q(s, a) = 3 - 2 |a - target|^2``."""

    def min_q(self, _: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return 3 - 2 * (actions - th.tensor([0.4, -0.2])).square().sum(dim=-1)


@pytest.mark.parametrize("estimator", ["pathwise", "likelihood_ratio"])
def test_the_actor_ascends_the_expectation_over_its_noise(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``d/dm E Q = -4 (m - target)`` and ``d/d(log s_i) E Q = -4 s_i^2``, from many draws in a few states."""
    n_draws = 20_000
    model = sgd_model(gradient_estimator=estimator, squash_output=False, n_action_samples=n_draws)
    monkeypatch.setattr(model, "critic", Quadratic())
    batch = batch_of(model, 3, 2)
    weights = batch.weights.numpy()
    with th.no_grad():
        mean = model.actor.distribution(batch.observations).mean.numpy()
    expected = {
        "mu": (weights[:, None] * -4 * (mean - [0.4, -0.2])).sum(axis=0),
        "log_std": np.full(2, -4 * np.exp(-0.5) ** 2),
    }
    parts: Any = {"mu": model.actor.mu.bias, "log_std": model.actor.log_std.bias}
    before = {name: part.detach().clone() for name, part in parts.items()}
    th.manual_seed(0)
    model._actor_step(batch, model._draw(batch), th.zeros(1), {})
    for name, part in parts.items():
        # The likelihood-ratio estimate of one draw has a standard deviation of about 20 here.
        assert np.allclose((part.detach() - before[name]).numpy(), expected[name], atol=6 * 20 / np.sqrt(n_draws))
        assert np.abs(expected[name]).max() > 1


def test_action_samples_are_averaged() -> None:
    """The step with three draws is the mean of the steps with each of them."""
    model = sgd_model(n_action_samples=3)
    batch = batch_of(model)
    state = parameters_of(model.actor)
    th.manual_seed(2)
    noise = th.randn(3, len(batch.samples), 2)
    steps = []
    for chosen in (noise, *noise[:, None]):
        model.actor.load_state_dict(state)
        draws = model._draw(batch)
        samples = draws.policy.mean + draws.policy.stddev * chosen
        model._actor_step(batch, draws._replace(samples=samples), th.zeros(1), {})
        steps.append(flat(model.actor))
    assert th.allclose(steps[0], sum(steps[1:], th.zeros(())) / 3, atol=1e-6)
    assert not th.allclose(steps[0], steps[1], atol=1e-5)


def test_min_q_is_the_minimum_over_the_critics() -> None:
    model = collected(n_critics=3)
    batch = batch_of(model)
    actions = th.rand(4, len(batch.samples), 2)
    with th.no_grad():
        lowest = model.critic.min_q(batch.observations, actions)
        one_by_one = [th.cat(model.critic(batch.observations, drawn), dim=1).min(dim=1)[0] for drawn in actions]
    assert th.allclose(lowest, th.stack(one_by_one), atol=1e-6)


def test_masked_steps_have_no_effect() -> None:
    models = [collected(), collected()]
    batch = batch_of(models[0], 30, 6)
    unused = batch.weights == 0
    assert unused.any()
    targets = th.arange(len(unused), dtype=th.float32)
    for model, noise in zip(models, (0.0, 1000.0), strict=True):
        model._critic_step(batch, targets + noise * unused, {})
    assert th.equal(flat(models[0].critic), flat(models[1].critic))


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_target_critics_are_averaged(tau: float) -> None:
    model = collected(tau=tau)
    before = flat(model.critic_target)
    model._update(batch_of(model))
    expected = (1 - tau) * before + tau * flat(model.critic)
    assert th.allclose(flat(model.critic_target), expected, atol=1e-7)
    assert not th.equal(flat(model.critic_target), before)


# ------------------------------------------------------------------------------------------------------------ on-policy


def test_on_policy_updates_use_only_the_latest_rollout() -> None:
    """The policy is updated first, with the previous critic; then the critic is, with all steps."""
    model = make(on_policy=True, train_freq=7, td_lambda=0.8, gamma=0.9)
    seen: list[tuple[SequenceSamples, dict[str, th.Tensor], dict[str, th.Tensor]]] = []
    update = model._update

    def recorded(batch: SequenceSamples) -> dict[str, th.Tensor]:
        before = parameters_of(model.policy)
        th.manual_seed(len(seen))
        record = update(batch)
        seen.append((batch, before, parameters_of(model.policy)))
        return record

    model._update = recorded  # type: ignore[method-assign]  # to record the updates
    model.learn(42)
    assert len(seen) == 3
    assert model.replay_buffer is not None
    assert model.replay_buffer.buffer_size == 7
    for batch, _, _ in seen:
        assert batch.rewards.shape == (7, 2)
        assert np.allclose(batch.weights, 1 / 14)
        assert np.all(batch.truncated[-1] | batch.terminated[-1])
    distinct = np.unique(np.concatenate([np.asarray(batch.observations) for batch, _, _ in seen]), axis=0)
    assert len(distinct) == 42
    # The actor's step starts from the previous parameters and uses the previous critic.
    batch, before, after = seen[1]
    twin = make(on_policy=True, train_freq=7, td_lambda=0.8, gamma=0.9, gradient_steps=0).learn(14)
    twin.policy.load_state_dict(before)
    twin.actor.optimizer.load_state_dict(copy.deepcopy(twin_state(seen, 1)))
    th.manual_seed(1)
    twin._actor_step(batch, twin._draw(batch), th.zeros(1), {})
    assert all(th.allclose(value, after[f"actor.{name}"], atol=1e-6) for name, value in twin.actor.state_dict().items())


def twin_state(seen: list[Any], index: int) -> dict[str, Any]:
    """State of the actor's Adam before update ``index``, obtained by repeating the previous updates."""
    twin = make(on_policy=True, train_freq=7, td_lambda=0.8, gamma=0.9, gradient_steps=0).learn(14)
    for i, (batch, before, _) in enumerate(seen[:index]):
        twin.policy.load_state_dict(before)
        th.manual_seed(i)
        twin._update(batch)
    return twin.actor.optimizer.state_dict()


def test_the_critic_is_updated_first_with_replay() -> None:
    """The actor's gradient is that of the updated critic."""
    model = collected(learning_rate=1e-2)
    batch = batch_of(model)
    twin = collected(learning_rate=1e-2)
    twin.policy.load_state_dict(model.policy.state_dict())
    th.manual_seed(0)
    model._update(batch)
    th.manual_seed(0)
    draws = twin._draw(batch)
    twin._critic_step(batch, twin._targets(batch, draws, th.zeros(1), {}), {})
    twin._actor_step(batch, draws, th.zeros(1), {})
    assert th.equal(flat(model.actor), flat(twin.actor))
    assert th.equal(flat(model.critic), flat(twin.critic))


def test_importance_ratios_are_one_on_policy() -> None:
    """Without updates since the rollout all ratios are 1, so that only lambda limits the traces of Retrace."""
    model = make(on_policy=True, train_freq=7, off_policy_correction="retrace", gradient_steps=0).learn(14)
    assert model.replay_buffer is not None
    record: dict[str, th.Tensor] = {}
    batch = model.replay_buffer.whole()
    model._targets(batch, model._draw(batch), th.zeros(1), record)
    assert record["importance_ratio"].item() == pytest.approx(1, abs=1e-4)
