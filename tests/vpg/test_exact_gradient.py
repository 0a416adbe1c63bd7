"""
``VPG.estimate_gradient`` against exact answers.

Three kinds of test. Recorded episodes: each estimate is recomputed, without recursion, from the recorded episodes. Means:
z-scores of many estimates against the exact expectation, for every combination that is unbiased, and against wrong
expectations, which must be rejected. Variances: against enumeration.

A correct estimator exceeds the bound of 6 standard errors for about one seed and parameter in 10^7; the numbers of batches
are such that wrong expectations lie 10 or more standard errors away.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import (
    QuadraticEnv,
    TabularMDP,
    TabularVecEnv,
    bandit,
    cancelling_rewards,
    chain,
    endless,
    layered_mdp,
    quota_trap,
    random_mdp,
    steering,
)
from exact import (
    EpisodeTerms,
    Path,
    batch_estimates,
    batch_moments,
    enumerate_episodes,
    episode_terms,
    expected_gradient,
    flat_gradient,
    pack_episodes,
    policy_log_probs,
    policy_values,
    score_table,
    visitation,
    z_scores,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_pg import VPG

BOUND = 6.0
GAMMA = 0.6

# Random length without truncation; with cycles, so of unbounded length; cut by a time limit.
LAYERS, CYCLES, LIMIT = layered_mdp(0, depth=3), random_mdp(2, stop=0.35), random_mdp(3, stop=0.2, horizon=3)

Combination = tuple[str, str, dict[str, Any]]


def label(value: Any) -> str:
    """Test id of a parameter."""
    if not isinstance(value, tuple):
        return str(value)
    estimator, baseline, options = value
    return "-".join([estimator, baseline, *(f"{key}={option}" for key, option in options.items())])


WITHOUT_CRITIC: list[Combination] = [
    ("total_return", "none", {}),
    ("total_return", "mean", {}),
    ("reward_to_go", "none", {"discount_gradient": False}),
    ("reward_to_go", "none", {"discount_gradient": True}),
    ("reward_to_go", "mean", {"discount_gradient": False}),
    ("reward_to_go", "mean", {"discount_gradient": True}),
]
OPTIMAL: list[Combination] = [
    ("total_return", "optimal", {}),
    ("reward_to_go", "optimal", {"discount_gradient": False}),
    ("reward_to_go", "optimal", {"discount_gradient": True}),
]
WITH_CRITIC: list[Combination] = [
    ("reward_to_go", "value", {"discount_gradient": False}),
    ("reward_to_go", "value", {"discount_gradient": True}),
    ("gae", "value", {"gae_lambda": 1.0, "discount_gradient": False}),
    ("gae", "value", {"gae_lambda": 1.0, "discount_gradient": True}),
]
BIASED: list[Combination] = [
    ("gae", "value", {"gae_lambda": 0.0, "discount_gradient": False}),
    ("gae", "value", {"gae_lambda": 0.5, "discount_gradient": True}),
    ("n_step", "value", {"return_steps": 1, "discount_gradient": False}),
    ("n_step", "value", {"return_steps": 2, "discount_gradient": True}),
]


def make_vpg(
    env: VecEnv,
    combination: Combination,
    n_episodes: int,
    policy: str = "LinearPolicy",
    actor: float = 0.5,
    critic: float = 0.5,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> VPG:
    """VPG with small networks and normal random parameters of scale ``actor`` and ``critic``: the critic is wrong."""
    estimator, baseline, options = combination
    net_arch: dict[str, list[int]] = {"vf": []} if policy == "LinearPolicy" else {"pi": [3], "vf": [3]}
    vpg = VPG(
        policy,
        env,
        n_episodes=n_episodes,
        advantage_estimator=estimator,
        baseline=baseline,
        gamma=GAMMA,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": net_arch, **(policy_kwargs or {})},
        **options,
        **kwargs,
    )
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for name, parameter in vpg.policy.named_parameters():
            parameter.copy_((critic if "value" in name else actor) * th.randn(parameter.shape, generator=generator))
    return vpg


def exact_gradient(vpg: VPG, mdp: TabularMDP, **changed: Any) -> np.ndarray:
    """``[P]`` expected estimate of ``vpg``, or its expectation with ``changed`` options."""
    critic = vpg.baseline == "value"
    options: dict[str, Any] = {
        "gamma": vpg.gamma,
        "discount_gradient": vpg.discount_gradient or vpg.advantage_estimator == "total_return",
        "lambda_": vpg.gae_lambda if vpg.advantage_estimator == "gae" else 1.0,
        "return_steps": vpg.return_steps,
        "values": policy_values(vpg.policy, mdp) if critic else None,
    }
    return expected_gradient(mdp, policy_log_probs(vpg.policy, mdp), vpg.policy.parameters(), **{**options, **changed})


def terms_of(vpg: VPG, mdp: TabularMDP, paths: list[Path] | None = None) -> EpisodeTerms:
    """Terms of all episodes of an MDP, or of recorded ones, with the options of ``vpg``."""
    log_probs = policy_log_probs(vpg.policy, mdp)
    episodes = enumerate_episodes(mdp, log_probs.detach().exp().numpy()) if paths is None else pack_episodes(mdp, paths)
    return episode_terms(
        episodes,
        score_table(log_probs, vpg.policy.parameters()),
        vpg.gamma,
        vpg.advantage_estimator,
        vpg.discount_gradient,
        vpg.gae_lambda,
        vpg.return_steps,
        policy_values(vpg.policy, mdp) if vpg.baseline == "value" else None,
    )


def batch_baseline(vpg: VPG) -> str:
    """Name for :func:`exact.batch_estimates`, where a critic's values are part of the terms."""
    return "none" if vpg.baseline == "value" else vpg.baseline


def worst(z: np.ndarray) -> float:
    return float(np.abs(z).max())


def check_mean(estimates: np.ndarray, exact: np.ndarray, *wrong: np.ndarray) -> None:
    """The mean is ``exact``, and the estimates suffice to distinguish it from each of ``wrong``."""
    assert worst(z_scores(estimates, exact)) < BOUND
    for other in wrong:
        assert worst(z_scores(estimates, other)) > BOUND


# ---------------------------------------------------------------------------------------------------- recorded episodes


class Recorder(VecEnvWrapper):
    """Records, for each ``reset``, the finished episodes of each environment since then, in order."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.batches: list[list[list[Path]]] = []

    def reset(self) -> np.ndarray:
        self._obs = np.asarray(self.venv.reset())
        self.batches.append([[] for _ in range(self.num_envs)])
        self._running: list[Path] = [[] for _ in range(self.num_envs)]
        return self._obs

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions.copy()
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        for i, (path, done) in enumerate(zip(self._running, dones, strict=True)):
            after = infos[i]["terminal_observation"] if done else np.asarray(obs)[i]
            path.append((int(self._obs[i]), int(self._actions[i]), float(rewards[i]), int(after)))
            if done:
                self.batches[-1][i].append(path)
                self._running[i] = []
        self._obs = np.asarray(obs)
        return obs, rewards, dones, infos


@pytest.mark.parametrize("mdp", [LAYERS, CYCLES, LIMIT, quota_trap(4)], ids=["layers", "cycles", "limit", "trap"])
@pytest.mark.parametrize("combination", WITHOUT_CRITIC + OPTIMAL + WITH_CRITIC + BIASED, ids=label)
def test_each_estimate_matches_the_recorded_episodes(combination: Combination, mdp: TabularMDP) -> None:
    """Only the quota of each environment counts, with weights, baselines and scale from their definitions."""
    n_envs, quota = 3, 2
    recorder = Recorder(TabularVecEnv(mdp, n_envs, seed=5))
    vpg = make_vpg(recorder, combination, n_envs * quota, policy="MlpPolicy")
    estimates = vpg.estimate_gradient(5)
    n_unused = 0
    for estimate, recorded in zip(estimates, filter(any, recorder.batches), strict=True):
        paths = [path for episodes in recorded for path in episodes[:quota]]
        n_unused += sum(len(episodes) - quota for episodes in recorded)
        expected = batch_estimates(terms_of(vpg, mdp, paths), np.arange(n_envs * quota)[None], batch_baseline(vpg))[0]
        assert np.abs(expected).max() > 1e-3
        assert np.allclose(estimate, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert n_unused > 0 or mdp.horizon is not None  # otherwise the quota was not tested


# ---------------------------------------------------------------------------------------------------------------- means


def other_option(vpg: VPG, mdp: TabularMDP) -> np.ndarray:
    """The expectation with the opposite of the ``discount_gradient`` of ``vpg``."""
    discounted = vpg.discount_gradient or vpg.advantage_estimator == "total_return"
    return exact_gradient(vpg, mdp, discount_gradient=not discounted)


UNBIASED = [
    *[(mdp, combination) for mdp in ("layers", "cycles") for combination in WITHOUT_CRITIC + WITH_CRITIC],
    *[("limit", combination) for combination in WITHOUT_CRITIC],
]


@pytest.mark.parametrize(("name", "combination"), UNBIASED, ids=label)
def test_mean_is_the_exact_gradient(combination: Combination, name: str) -> None:
    mdp, n_envs = {"layers": (LAYERS, 128), "cycles": (CYCLES, 128), "limit": (LIMIT, 32)}[name]
    vpg = make_vpg(TabularVecEnv(mdp, n_envs), combination, 128)
    exact = exact_gradient(vpg, mdp)
    assert np.allclose(exact, exact_gradient(vpg, mdp, values=None), atol=1e-6)  # regardless of the critic
    check_mean(vpg.estimate_gradient(60), exact, 0.5 * exact, other_option(vpg, mdp))


@pytest.mark.parametrize("combination", [OPTIMAL[0], OPTIMAL[2]], ids=label)
def test_mean_is_the_exact_gradient_with_the_optimal_baseline(combination: Combination) -> None:
    vpg = make_vpg(TabularVecEnv(LIMIT, 8), combination, 16)
    exact = exact_gradient(vpg, LIMIT)
    check_mean(vpg.estimate_gradient(160), exact, 0.5 * exact, other_option(vpg, LIMIT))


@pytest.mark.parametrize("combination", WITH_CRITIC + BIASED, ids=label)
def test_a_wrong_critic_causes_the_expected_bias(combination: Combination) -> None:
    """All of them bootstrap: those with lambda < 1 or n steps within the episode, the others at the time limit."""
    mdp = steering(3)
    vpg = make_vpg(TabularVecEnv(mdp, 64), combination, 64)
    with th.no_grad():  # a linear critic: one weight for each state
        vpg.policy.value_net.bias.zero_()
        vpg.policy.value_net.weight.copy_(th.tensor([[0.0, -5.0]]))
    unbiased = exact_gradient(vpg, mdp, values=None, lambda_=1.0, return_steps=None)
    check_mean(vpg.estimate_gradient(60), exact_gradient(vpg, mdp), unbiased, other_option(vpg, mdp))


@pytest.mark.parametrize("combination", [WITHOUT_CRITIC[0], WITHOUT_CRITIC[4], WITH_CRITIC[1]], ids=label)
def test_quota_trap(combination: Combination) -> None:
    """Dividing by the number of steps would divide the limit of large batches by the mean length of an episode."""
    mdp = quota_trap()
    vpg = make_vpg(TabularVecEnv(mdp, 32), combination, 64)
    exact = exact_gradient(vpg, mdp)
    mean_length = visitation(mdp, policy_log_probs(vpg.policy, mdp).detach().exp().numpy()).sum()
    assert mean_length > 3
    check_mean(vpg.estimate_gradient(80), exact, exact / mean_length)


@pytest.mark.parametrize(("estimator", "baseline"), [("total_return", "mean"), ("reward_to_go", "optimal")])
def test_a_baseline_from_a_single_other_episode(estimator: str, baseline: str) -> None:
    """With two episodes, one that is part of its own baseline would halve the gradient."""
    mdp = bandit(1.0, 3.0)
    vpg = make_vpg(TabularVecEnv(mdp, 2), (estimator, baseline, {}), 2, actor=0.2)
    exact = exact_gradient(vpg, mdp)
    check_mean(vpg.estimate_gradient(700), exact, 0.5 * exact)


def test_mean_with_hidden_layers() -> None:
    vpg = make_vpg(TabularVecEnv(LAYERS, 128), WITH_CRITIC[1], 128, policy="MlpPolicy")
    exact = exact_gradient(vpg, LAYERS)
    estimates = vpg.estimate_gradient(60)
    check_mean(estimates, exact, 0.5 * exact, other_option(vpg, LAYERS))
    critic = [np.full(parameter.numel(), "value" in name) for name, parameter in vpg.policy.named_parameters()]
    assert np.all(estimates[:, np.concatenate(critic)] == 0)


def test_mean_with_gaussian_actions() -> None:
    """E[-|a - c s|^2] over a Gaussian is -|m(s) - c s|^2 - |sigma|^2: four states of two signs each, autograd."""
    target = 3.0
    env = DummyVecEnv([lambda: QuadraticEnv(2, target) for _ in range(16)])
    vpg = make_vpg(env, ("reward_to_go", "mean", {}), 32)
    states = th.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    gaussian = vpg.policy.get_distribution(states).distribution
    assert isinstance(gaussian, th.distributions.Normal)
    values = -((gaussian.mean - target * states) ** 2).sum(1) - (gaussian.stddev**2).sum(1)
    exact = flat_gradient(values.mean(), vpg.policy.parameters())
    check_mean(vpg.estimate_gradient(150), exact, 0.5 * exact)


# ------------------------------------------------------------------------------------------------------------ variances

SMALL = layered_mdp(2, depth=2)


@pytest.mark.parametrize(
    ("name", "combination", "n_episodes"),
    [
        *[("layers", combination, 16) for combination in [WITHOUT_CRITIC[0], WITHOUT_CRITIC[3], BIASED[3]]],
        *[("layers", combination, 2) for combination in [WITHOUT_CRITIC[1], WITHOUT_CRITIC[5]]],
        *[("layers", combination, 3) for combination in [WITHOUT_CRITIC[4], OPTIMAL[0], OPTIMAL[2]]],
        *[("cancelling", combination, 16) for combination in [WITHOUT_CRITIC[0], WITHOUT_CRITIC[2]]],
    ],
    ids=label,
)
def test_mean_and_variance_are_those_of_enumeration(name: str, combination: Combination, n_episodes: int) -> None:
    mdp = {"layers": SMALL, "cancelling": cancelling_rewards()}[name]
    n_batches = {2: 1000, 3: 600, 16: 400}[n_episodes]  # the fewer the episodes, the further from normal
    vpg = make_vpg(TabularVecEnv(mdp, n_episodes), combination, n_episodes)
    moments = batch_moments(terms_of(vpg, mdp), n_episodes, batch_baseline(vpg))
    estimates = vpg.estimate_gradient(n_batches)
    assert worst(z_scores(estimates, moments.mean)) < BOUND
    variance, error = estimates.var(axis=0, ddof=1), np.maximum(moments.variance_error(n_batches), 1e-6)
    assert worst((variance - moments.variance) / error) < BOUND
    # The test is sharp: a third or twice the variance is rejected.
    for factor in (1 / 3, 2.0):
        assert worst((variance - factor * moments.variance) / error) > BOUND


@pytest.mark.parametrize("estimator", ["total_return", "reward_to_go"])
def test_optimal_baseline_is_zero_where_scores_cancel(estimator: str) -> None:
    """
    One state, three steps, uniform over three arms: an episode that pulls each arm once has a score sum of 0, up to a
    float32 rounding error. Dividing by it would give estimates of arbitrary size.
    """
    limit = endless(3, n_states=1)
    mdp = TabularMDP(limit.initial, np.ones((1, 3, 1)), np.array([[0.0, 1.0, 5.0]]), limit.terminal, 3)
    vpg = make_vpg(TabularVecEnv(mdp, 2), (estimator, "optimal", {}), 2)
    with th.no_grad():
        for parameter in vpg.policy.parameters():
            parameter.zero_()
    moments = batch_moments(terms_of(vpg, mdp), 2, "optimal")
    estimates = vpg.estimate_gradient(200)
    assert worst(z_scores(estimates, moments.mean)) < BOUND
    varies = moments.variance > 1e-9
    assert np.all(np.abs(estimates.std(axis=0, ddof=1)[varies] / np.sqrt(moments.variance[varies]) - 1) < 0.5)


# ----------------------------------------------------------------------------------------------------- negative controls


def simulated(
    mdp: TabularMDP, estimator: str, baseline: str, n_episodes: int, n_batches: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """``(estimates, exact)`` of independent episodes drawn from the enumeration."""
    vpg = make_vpg(TabularVecEnv(mdp, 2), (estimator, "none", {}), 2, actor=0.2)
    terms = terms_of(vpg, mdp)
    rng = np.random.default_rng(seed)
    batches = rng.choice(len(terms.probability), p=terms.probability, size=(n_batches, n_episodes))
    return batch_estimates(terms, batches, baseline), exact_gradient(vpg, mdp)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mdp", "n_episodes", "n_batches", "right", "wrong"),
    [
        (quota_trap(), 64, 80, "none", "per_step"),
        (LAYERS, 128, 60, "none", "per_step"),
        (bandit(1.0, 3.0), 2, 700, "mean", "mean_with_own"),
    ],
    ids=["steps, trap", "steps, layers", "own episode"],
)
def test_biased_variants_are_detected(
    mdp: TabularMDP, n_episodes: int, n_batches: int, right: str, wrong: str, seed: int
) -> None:
    """The bound and the numbers of batches above, on simulated estimates with a single error."""
    for baseline, passes in ((right, True), (wrong, False)):
        estimates, exact = simulated(mdp, "total_return", baseline, n_episodes, n_batches, seed)
        assert (worst(z_scores(estimates, exact)) < BOUND) == passes


@pytest.mark.parametrize("seed", range(3))
def test_keeping_the_episodes_that_finish_first_is_detected(seed: int) -> None:
    mdp, n_envs, n_episodes, n_batches = quota_trap(), 32, 64, 80
    vpg = make_vpg(TabularVecEnv(mdp, 2), WITHOUT_CRITIC[0], 2)
    terms, exact = terms_of(vpg, mdp), exact_gradient(vpg, mdp)
    rng = np.random.default_rng(seed)
    # [B, N, K]: more episodes than any environment can contribute. Sorted by the step at which they finish.
    drawn = rng.choice(len(terms.probability), p=terms.probability, size=(n_batches, n_envs, n_episodes))
    finish = np.cumsum(terms.lengths[drawn], axis=2).reshape(n_batches, -1)
    first = np.argsort(finish, axis=1, kind="stable")[:, :n_episodes]
    kept_first = np.take_along_axis(drawn.reshape(n_batches, -1), first, axis=1)
    quota = drawn[:, :, : n_episodes // n_envs].reshape(n_batches, -1)
    assert worst(z_scores(batch_estimates(terms, quota), exact)) < BOUND
    assert worst(z_scores(batch_estimates(terms, kept_first), exact)) > BOUND


# ------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("combination", [*WITHOUT_CRITIC[1::3], OPTIMAL[2], WITH_CRITIC[1], BIASED[1]], ids=label)
def test_training_takes_the_estimated_step(combination: Combination) -> None:
    """Plain SGD moves the policy's parameters by learning rate times estimate, if both see the same actions."""
    mdp, rate = chain(4), 0.5  # only the policy is random
    vpg = make_vpg(TabularVecEnv(mdp, 4), combination, 8, policy_kwargs={"optimizer_class": th.optim.SGD}, learning_rate=rate)
    th.manual_seed(3)
    estimate = vpg.estimate_gradient(1)[0]
    before = {name: parameter.detach().clone() for name, parameter in vpg.policy.named_parameters()}
    th.manual_seed(3)
    vpg.learn(1)
    moved = np.concatenate([((p - before[name]) / rate).detach().numpy().ravel() for name, p in vpg.policy.named_parameters()])
    acts = np.concatenate([np.full(p.numel(), "value" not in name) for name, p in vpg.policy.named_parameters()])
    assert np.abs(estimate).max() > 0.01
    assert np.allclose(moved[acts], estimate[acts], atol=1e-5)


@pytest.mark.parametrize("combination", [WITHOUT_CRITIC[1], OPTIMAL[1], WITH_CRITIC[0]], ids=label)
def test_estimating_has_no_side_effects(combination: Combination) -> None:
    vpg = make_vpg(TabularVecEnv(LAYERS, 4, seed=0), combination, 8)
    vpg.learn(100)

    def state() -> list[Any]:
        optimizers = [vpg.policy.optimizer.state_dict(), vpg.value_optimizer and vpg.value_optimizer.state_dict()]
        counters = [vpg.num_timesteps, vpg._n_updates, vpg._episode_num, vpg.policy.training, vpg.lr_schedule(1.0)]
        windows = [list(vpg.ep_info_buffer or []), list(vpg.ep_success_buffer or [])]
        gradients = [None if p.grad is None else p.grad.tolist() for p in vpg.policy.parameters()]
        parameters = {name: tensor.tolist() for name, tensor in vpg.policy.state_dict().items()}
        return [str(optimizers), counters, windows, gradients, parameters]

    before = state()
    assert len(before[2][0]) > 0
    estimates = vpg.estimate_gradient(3)
    assert estimates.shape == (3, sum(parameter.numel() for parameter in vpg.policy.parameters()))
    assert estimates.dtype == np.float64
    assert state() == before
    steps = vpg.num_timesteps
    vpg.learn(50, reset_num_timesteps=False)  # and training continues with whole episodes
    assert vpg.num_timesteps >= steps + 50


def test_estimates_are_independent() -> None:
    vpg = make_vpg(TabularVecEnv(LAYERS, 4, seed=0), WITHOUT_CRITIC[0], 8)
    first, second = vpg.estimate_gradient(1), vpg.estimate_gradient(2)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(second[0], second[1])


def test_invalid_estimates_are_rejected() -> None:
    env = TabularVecEnv(LAYERS, 2)
    with pytest.raises(ValueError, match="normalize_advantage"):
        make_vpg(env, WITH_CRITIC[0], 2, normalize_advantage=True).estimate_gradient(1)
    with pytest.raises(ValueError, match="n_episodes"):
        VPG("MlpPolicy", env, n_steps=8, device="cpu").estimate_gradient(1)
    with pytest.raises(ValueError, match="n_batches"):
        make_vpg(env, WITH_CRITIC[0], 2).estimate_gradient(0)
