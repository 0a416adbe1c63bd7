"""One update of VPG against a slow reference, written from the formulas and the steps that a callback recorded."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import references
import torch as th
from gymnasium import spaces
from smoke_envs import Recorder, Rollout, Step, scripted_vec_env
from stable_baselines3 import A2C
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg import VPG
from sb3_pg.vpg.validation import GAE_LAMBDA

RATE, VALUE_RATE, GAMMA = 0.3, 0.05, 0.8


# ---------------------------------------------------------------------------------------------------- the slow reference


@dataclass
class Path:
    """
    Steps of one episode, or of the part of it within a rollout, with their returns and weights.

    :param steps: steps in chronological order
    :param returns: targets of the critic, weights before the baseline is subtracted
    :param weights: returns minus baseline, before normalisation and discounting
    """

    steps: list[Step]
    returns: np.ndarray
    weights: np.ndarray


def tensors(steps: list[Step]) -> tuple[th.Tensor, th.Tensor]:
    obs = th.as_tensor(np.stack([step.obs for step in steps]))
    return obs, th.as_tensor(np.stack([step.action for step in steps]))


def values(policy: ActorCriticPolicy, observations: list[Any]) -> np.ndarray:
    """One forward pass for each observation."""
    with th.no_grad():
        return np.array([[policy.predict_values(th.as_tensor(obs)[None]).item()] for obs in observations])


def cut_into_paths(rollout: Rollout, n_episodes: int | None) -> list[list[Step]]:
    """Episodes of each environment, one after the other; only those of its quota if there is one."""
    paths = []
    for steps in rollout.steps:
        own: list[list[Step]] = [[]]
        for step in steps:
            own[-1].append(step)
            if step.done:
                own.append([])
        paths += [path for path in own if path] if n_episodes is None else own[: n_episodes // len(rollout.steps)]
    return paths


def path_returns(model: VPG, policy: ActorCriticPolicy, steps: list[Step]) -> np.ndarray:
    rewards, terminated, truncated = (
        np.array([[getattr(step, name)] for step in steps]) for name in ("reward", "terminated", "truncated")
    )
    ends = (terminated, truncated)
    if model.advantage_estimator == "total_return":
        return references.total_returns(rewards, *ends, model.gamma)[:, 0]
    if not model.uses_critic:
        return references.reward_to_go(rewards, *ends, model.gamma)[:, 0]
    next_values = values(policy, [step.next_obs for step in steps])
    if model.advantage_estimator == "reward_to_go":
        return references.reward_to_go(rewards, *ends, model.gamma, next_values)[:, 0]
    if model.advantage_estimator == "n_step":
        assert model.return_steps is not None
        return references.n_step_returns(rewards, next_values, *ends, model.gamma, model.return_steps)[:, 0]
    lambda_ = GAE_LAMBDA if model.gae_lambda is None else model.gae_lambda
    return references.lambda_returns(rewards, next_values, *ends, model.gamma, lambda_)[:, 0]


def weigh(model: VPG, policy: ActorCriticPolicy, rollout: Rollout) -> list[Path]:
    paths = [
        Path(steps, returns := path_returns(model, policy, steps), returns.copy())
        for steps in cut_into_paths(rollout, model.n_episodes)
    ]
    for path in paths:
        others = [other for other in paths if other is not path]
        if model.baseline == "value":
            path.weights -= values(policy, [step.obs for step in path.steps])[:, 0]
        elif model.baseline == "mean" and model.advantage_estimator == "total_return":
            path.weights -= np.mean([other.returns[0] for other in others])
        elif model.baseline == "mean":
            path.weights -= np.mean(np.concatenate([other.returns for other in others]))
    if model.normalize_advantage:
        everything = np.concatenate([path.weights for path in paths])
        for path in paths:
            path.weights = (path.weights - everything.mean()) / everything.std(ddof=1)
    return paths


def parameters_of(policy: ActorCriticPolicy, critic: bool) -> list[th.nn.Parameter]:
    return [p for name, p in policy.named_parameters() if ("value" in name) == critic]


def take_step(policy: ActorCriticPolicy, loss: th.Tensor, max_norm: float | None, rates: tuple[float, float]) -> None:
    """Plain gradient descent on actor and critic; a rate of 0 leaves one out."""
    groups = [(parameters_of(policy, critic), rate) for critic, rate in zip((False, True), rates, strict=True) if rate > 0]
    parameters = [p for group, _ in groups for p in group]
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    filled = [th.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    norm = sum(float((g.double() ** 2).sum()) for g in filled) ** 0.5
    factor = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
    rate_of = {id(p): rate for group, rate in groups for p in group}
    with th.no_grad():
        for p, g in zip(parameters, filled, strict=True):
            p.copy_(p - rate_of[id(p)] * factor * g)


def value_loss(policy: ActorCriticPolicy, paths: list[Path]) -> th.Tensor:
    errors = [policy.predict_values(tensors(p.steps)[0])[:, 0] - th.as_tensor(p.returns).float() for p in paths]
    return (th.cat(errors) ** 2).mean()


def policy_loss(model: VPG, policy: ActorCriticPolicy, paths: list[Path]) -> th.Tensor:
    """Loss whose gradient is minus the estimate of the policy gradient, including the entropy bonus."""
    n_steps = sum(len(path.steps) for path in paths)
    scale = 1 / n_steps if model.n_episodes is None else 1 / model.n_episodes
    total = th.zeros(())
    surrogates, score_sums = [], []
    for path in paths:
        _, log_prob, entropy = policy.evaluate_actions(*tensors(path.steps))
        assert entropy is not None
        discounts = th.tensor([model.gamma**step.t if model.discount_gradient else 1.0 for step in path.steps])
        surrogates.append((discounts * th.as_tensor(path.weights).float() * log_prob).sum())
        score_sums.append((discounts * log_prob).sum())
        total = total - scale * model.ent_coef * entropy.sum()
    if model.baseline != "optimal":
        return total - scale * th.stack(surrogates).sum()
    actor = parameters_of(policy, critic=False)
    x, g = (
        th.stack([th.cat([part.ravel() for part in th.autograd.grad(scalar, actor, retain_graph=True)]) for scalar in scalars])
        for scalars in (surrogates, score_sums)
    )
    constants = th.as_tensor(references.optimal_baseline(x.double().numpy(), g.double().numpy()))
    gradient = (x - constants * g).mean(dim=0).float()
    # A linear function with this gradient.
    return total - (gradient * th.cat([p.ravel() for p in actor])).sum()


def slow_update(model: VPG, policy: ActorCriticPolicy, rollout: Rollout) -> None:
    """Update a copy of the policy as VPG should."""
    fits = model.n_value_updates
    if fits is None:
        fits = 10 if model.vf_coef is None else 0
    fits = fits if model.uses_critic else 0
    value_rate = VALUE_RATE if model.value_learning_rate is not None else RATE
    paths = weigh(model, policy, rollout)

    def fit() -> None:
        for _ in range(fits):
            take_step(policy, value_loss(policy, paths), model.max_grad_norm, (0, value_rate))

    if model.critic_first:
        fit()
        paths = weigh(model, policy, rollout)
    loss = policy_loss(model, policy, paths)
    joint = model.uses_critic and not fits
    if joint:
        loss = loss + (0.5 if model.vf_coef is None else model.vf_coef) * value_loss(policy, paths)
    take_step(policy, loss, model.max_grad_norm, (RATE, value_rate if joint else 0))
    if not model.critic_first:
        fit()


# ---------------------------------------------------------------------------------------------------------- comparisons

EPISODES: dict[str, Any] = {"n_episodes": 6}
ROLLOUT: dict[str, Any] = {"n_steps": 7}
CRITIC_FREE: list[dict[str, Any]] = [
    {**EPISODES, "advantage_estimator": estimator, "baseline": baseline, "discount_gradient": discount}
    for estimator in ("total_return", "reward_to_go")
    for baseline in ("none", "mean", "optimal")
    for discount in (False, True)
    if not (estimator == "total_return" and discount)
]
ESTIMATORS: list[dict[str, Any]] = [
    {"advantage_estimator": "reward_to_go"},
    {"advantage_estimator": "n_step", "return_steps": 1},
    {"advantage_estimator": "n_step", "return_steps": 3},
    {"advantage_estimator": "gae"},
    {"advantage_estimator": "gae", "gae_lambda": 0.6, "discount_gradient": True},
    {"advantage_estimator": "gae", "gae_lambda": 0.0},
]
CRITICS: list[dict[str, Any]] = [
    {"n_value_updates": 0},
    {"n_value_updates": 3},
    {"n_value_updates": 3, "critic_first": True},
]
WITH_CRITIC = [
    {**mode, **estimator, **critic} for mode in (EPISODES, ROLLOUT) for estimator in ESTIMATORS for critic in CRITICS
]
FURTHER: list[dict[str, Any]] = [
    {**ROLLOUT},
    {**ROLLOUT, "vf_coef": 0.2},
    {**ROLLOUT, "vf_coef": 0.2, "value_learning_rate": VALUE_RATE},
    {**ROLLOUT, "n_value_updates": 4, "value_learning_rate": VALUE_RATE},
    {**ROLLOUT, "ent_coef": 0.3},
    {**EPISODES, "ent_coef": 0.3, "n_value_updates": 0},
    {**EPISODES, "ent_coef": 0.3, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
    {**ROLLOUT, "normalize_advantage": True},
    {**EPISODES, "normalize_advantage": True, "advantage_estimator": "reward_to_go", "baseline": "mean"},
    {**EPISODES, "normalize_advantage": True, "discount_gradient": True},
    {**EPISODES, "normalize_advantage": True, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
    {**ROLLOUT, "max_grad_norm": 0.05, "n_value_updates": 0},
    {**ROLLOUT, "max_grad_norm": 0.05, "n_value_updates": 0, "value_learning_rate": VALUE_RATE},
    {**ROLLOUT, "max_grad_norm": 0.05, "n_value_updates": 3},
    {**EPISODES, "max_grad_norm": 0.05, "advantage_estimator": "total_return", "baseline": "optimal"},
    {**ROLLOUT, "gamma": 1.0},
    {**EPISODES, "gamma": 0.0, "discount_gradient": True},
]  # fmt: skip


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


def compare(options: dict[str, Any], env: DummyVecEnv, atol: float = 2e-5) -> None:
    """Two updates, the second from the parameters that VPG reached."""
    model = VPG(
        "MlpPolicy",
        env,
        learning_rate=RATE,
        seed=3,
        device="cpu",
        policy_kwargs={"optimizer_class": th.optim.SGD, "net_arch": {"pi": [8], "vf": [8]}, "log_std_init": 0.3},
        **{"gamma": GAMMA, **options},
    )
    with th.no_grad():  # large enough for the critic to matter and for the policy not to be uniform
        for name, parameter in model.policy.named_parameters():
            parameter.add_(0.3 * th.randn(parameter.shape) * ("net" in name))
    recorder = Recorder(at_end=lambda m: copy.deepcopy(m.policy))
    for update in range(2):
        model.learn(1, callback=recorder, reset_num_timesteps=update == 0)
        rollout = recorder.rollouts[update]
        before, slow = copy.deepcopy(rollout.at_end), rollout.at_end
        slow_update(model, slow, rollout)
        for group in (False, True):
            start, expected, got = (
                th.cat([p.detach().ravel() for p in parameters_of(policy, group)]) for policy in (before, slow, model.policy)
            )
            moved = (expected - start).abs().max().item()
            assert (moved > 1e-4) == (not group or model.uses_critic)
            assert th.allclose(got, expected, rtol=0, atol=atol * max(moved, 0.1)), f"update {update}, critic: {group}"


@pytest.mark.parametrize("options", CRITIC_FREE + WITH_CRITIC + FURTHER, ids=name_of)
def test_an_update_matches_the_formulas(options: dict[str, Any]) -> None:
    compare(options, scripted_vec_env())


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([-0.1, 2.0]), np.array([0.1, 5.0]), dtype=np.float64),
        spaces.MultiBinary(2),
        spaces.MultiDiscrete([2, 3]),
    ],
    ids=["Box", "MultiBinary", "MultiDiscrete"],
)
@pytest.mark.parametrize(
    "options", [ROLLOUT, {**EPISODES, "advantage_estimator": "reward_to_go", "baseline": "optimal"}], ids=name_of
)
def test_an_update_with_other_action_spaces(space: spaces.Space[Any], options: dict[str, Any]) -> None:
    """With narrow bounds most actions are clipped, but the update must use the sampled ones."""
    compare(options, scripted_vec_env(action_space=space))


# -------------------------------------------------------------------------------------------------------- equality with A2C


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_the_joint_loss_trains_like_a2c_without_truncation(gae_lambda: float, use_sde: bool) -> None:
    """With these options, SB3's A2C differs only in its treatment of truncation."""
    scripts = [[(length, "terminated") for length in lengths] for lengths in ([3, 5, 2], [4, 1, 6])]
    space = spaces.Box(-0.5, 0.5, (2,)) if use_sde else spaces.Discrete(2)
    shared: dict[str, Any] = {
        "policy": "MlpPolicy",
        "learning_rate": lambda progress: 0.02 * (0.1 + progress),
        "n_steps": 5,
        "gamma": 0.9,
        "gae_lambda": gae_lambda,
        "ent_coef": 0.01,
        "vf_coef": 0.3,
        "max_grad_norm": 0.4,
        "use_sde": use_sde,
        "sde_sample_freq": 2 if use_sde else -1,
        "normalize_advantage": True,
        "seed": 1,
        "device": "cpu",
    }
    ours = VPG(env=scripted_vec_env(scripts, action_space=space), **shared).learn(200)
    theirs = A2C(env=scripted_vec_env(scripts, action_space=space), use_rms_prop=False, **shared).learn(200)
    start = VPG(env=scripted_vec_env(scripts, action_space=space), **shared).get_parameters()["policy"]
    assert ours.num_timesteps == theirs.num_timesteps == 200
    for name, expected in theirs.get_parameters()["policy"].items():
        got = ours.get_parameters()["policy"][name]
        assert (got - start[name]).abs().max() > 1e-2
        assert th.allclose(got, expected, rtol=0, atol=1e-4), name


# ---------------------------------------------------------------------------------------------------------------- critic


class WatchedValues:
    """
    Replaces ``policy.predict_values`` and records the observations to which the critic is fitted.

    :param policy: policy to watch
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.batches: list[list[tuple[float, ...]]] = []
        self._original = policy.predict_values
        policy.predict_values = self  # type: ignore[method-assign, assignment]  # replaced on purpose

    def __call__(self, obs: th.Tensor) -> th.Tensor:
        if th.is_grad_enabled():
            self.batches.append([tuple(row) for row in obs.tolist()])
        return self._original(obs)


@pytest.mark.parametrize(("mode", "n_samples"), [({"n_steps": 9}, 18), ({"n_episodes": 4}, 14)], ids=str)
@pytest.mark.parametrize(("size", "updates"), [(None, 1), (None, 4), (5, 11), (18, 2), (1, 40)])
def test_every_sample_is_drawn_once_before_any_is_drawn_again(
    mode: dict[str, Any], n_samples: int, size: int | None, updates: int
) -> None:
    recorder = Recorder()
    model = VPG("MlpPolicy", scripted_vec_env(), seed=0, value_batch_size=size, n_value_updates=updates, **mode)
    watched = WatchedValues(model.policy)
    model.learn(1, callback=recorder)
    steps = [step for path in cut_into_paths(recorder.rollouts[0], model.n_episodes) for step in path]
    samples = {tuple(step.obs.tolist()) for step in steps}
    assert len(samples) == len(steps) == n_samples
    assert [len(batch) for batch in watched.batches] == [min(size or n_samples, n_samples)] * updates
    drawn = [sample for batch in watched.batches for sample in batch]
    rounds = [drawn[first : first + n_samples] for first in range(0, len(drawn), n_samples)]
    assert all(len(set(once)) == len(once) and set(once) <= samples for once in rounds)
    if size in (1, 5):
        assert rounds[0] != rounds[1]


def test_minibatches_are_shuffled() -> None:
    model = VPG("MlpPolicy", scripted_vec_env(), seed=0, n_steps=50, value_batch_size=100, n_value_updates=1)
    watched = WatchedValues(model.policy)
    shuffled = VPG("MlpPolicy", scripted_vec_env(), seed=0, n_steps=50, value_batch_size=50, n_value_updates=1)
    watched_shuffled = WatchedValues(shuffled.policy)
    model.learn(1)
    shuffled.learn(1)
    assert watched_shuffled.batches[0] != watched.batches[0][:50]
    assert set(watched_shuffled.batches[0]) < set(watched.batches[0])


@pytest.mark.parametrize("mode", [{"n_steps": 9}, {"n_episodes": 4}], ids=name_of)
def test_policy_and_critic_do_not_change_each_other(mode: dict[str, Any]) -> None:
    """With a learning rate of zero, the parameters of one of them stay bitwise identical."""
    still_actor: dict[str, Any] = {"learning_rate": lambda _: 0.0, "value_learning_rate": 0.1}
    still_critic: dict[str, Any] = {"learning_rate": 0.1, "value_learning_rate": lambda _: 0.0}
    for still, rates in ((False, still_actor), (True, still_critic)):
        for updates in (0, 3):
            model = VPG("MlpPolicy", scripted_vec_env(), seed=0, n_value_updates=updates, **rates, **mode)
            before = {group: [p.detach().clone() for p in parameters_of(model.policy, group)] for group in (False, True)}
            model.learn(60)
            for group, old in before.items():
                pairs = zip(old, parameters_of(model.policy, group), strict=True)
                assert all(th.equal(then, now) == (group == still) for then, now in pairs)
