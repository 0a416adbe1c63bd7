"""The tiny environments and the exact answers are themselves checked: by hand, against SB3, and one road against the other."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    MatchEnv,
    QuadraticEnv,
    TabularEnv,
    TabularMDP,
    TabularVecEnv,
    bandit,
    cancelling_rewards,
    chain,
    endless,
    layered_mdp,
    quota_trap,
    random_mdp,
)
from exact import (
    Episodes,
    EpisodeTerms,
    batch_estimates,
    batch_moments,
    enumerate_episodes,
    episode_terms,
    episode_weights,
    expected_gradient,
    expected_weights,
    flat_gradient,
    objective,
    objective_gradient,
    optimal_values,
    policy_log_probs,
    policy_values,
    score_table,
    visitation,
    z_scores,
)
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv


def softmax_policy(mdp: TabularMDP, seed: int | None = 0) -> tuple[th.Tensor, th.Tensor]:
    """``(theta, log_probs)``, both ``[S, A]``: one logit each, random, or all zero with ``seed=None``."""
    shape = (mdp.n_states, mdp.n_actions)
    logits = np.zeros(shape) if seed is None else np.random.default_rng(seed).normal(size=shape)
    theta = th.tensor(logits, requires_grad=True)
    return theta, th.log_softmax(theta, dim=1)


def listed(mdp: TabularMDP, seed: int | None = 0) -> tuple[Episodes, np.ndarray, th.Tensor, th.Tensor]:
    """``(episodes, scores, theta, log_probs)`` of a softmax policy."""
    theta, log_probs = softmax_policy(mdp, seed)
    return enumerate_episodes(mdp, log_probs.detach().exp().numpy()), score_table(log_probs, [theta]), theta, log_probs


# --------------------------------------------------------------------------------------------------------------- envs


@pytest.mark.parametrize("mdp", [bandit(0.0, 1.0), chain(3), endless(4), random_mdp(0, horizon=5)])
def test_tabular_env_is_a_gymnasium_env(mdp: TabularMDP) -> None:
    check_gymnasium(TabularEnv(mdp), skip_render_check=True)
    check_sb3(TabularEnv(mdp))


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_match_env_pays_one_for_the_right_action_and_nothing_for_the_opposite(observation: str, action: str) -> None:
    env = MatchEnv(observation, action, length=6)
    check_sb3(env, warn=False)
    lows, highs = {"discrete": (0, 1), "multi_discrete": ([0, 0], [1, 2])}.get(action, ([-1, -1], [1, 1]))
    if action == "multi_binary":
        lows = [0, 0]
    answers = [np.array(lows, dtype=env.action_space.dtype), np.array(highs, dtype=env.action_space.dtype)]
    obs, _ = env.reset(seed=3)
    seen = set()
    for t in range(6):
        leaf = obs["image" if observation == "dict_image" else "vector"] if isinstance(obs, dict) else obs
        bit = int(np.max(leaf) > 0)
        seen.add(bit)
        obs, reward, terminated, truncated, _ = env.step(answers[bit if t % 2 == 0 else 1 - bit])
        assert reward == (1.0 if t % 2 == 0 else 0.0)
        assert (terminated, truncated) == (t == 5, False)
    assert seen == {0, 1}


def test_match_env_can_truncate() -> None:
    env = MatchEnv(length=1, truncate=True)
    env.reset(seed=0)
    assert env.step(np.int64(0))[2:4] == (False, True)


def test_vec_env_agrees_with_sb3_dummy_vec_env_on_everything_but_the_random_numbers() -> None:
    mdp = chain(3)  # deterministic: whatever the seeds, both must produce the same
    ours = TabularVecEnv(mdp, 2, seed=1)
    theirs = DummyVecEnv([lambda: Monitor(TabularEnv(mdp)) for _ in range(2)])
    theirs.seed(1)
    assert ours.reset().tolist() == np.asarray(theirs.reset()).tolist()
    for actions in [[1, 1], [1, 0], [1, 1], [0, 0], [1, 1]]:
        left, right = ours.step(np.array(actions)), theirs.step(np.array(actions))
        for mine, other in zip(left[:3], right[:3], strict=True):
            assert np.asarray(mine).tolist() == np.asarray(other).tolist()
            assert np.asarray(mine).dtype == np.asarray(other).dtype
        for info, other_info in zip(left[3], right[3], strict=True):
            for statistics in (info.get("episode", {}), other_info.get("episode", {})):
                statistics.pop("t", None)
            assert info == other_info


def test_vec_env_cuts_at_the_horizon_and_says_so() -> None:
    env = TabularVecEnv(endless(3), 2, seed=0)
    env.reset()
    for t in range(6):
        obs, rewards, dones, infos = env.step(np.zeros(2, dtype=np.int64))
        last = t % 3 == 2
        assert dones.tolist() == [last, last]
        assert rewards.tolist() == [1.0, 1.0]
        assert [info["TimeLimit.truncated"] for info in infos] == [last, last]
        assert all((info["episode"]["r"], info["episode"]["l"]) == (3.0, 3) for info in infos if last)
        assert isinstance(obs, np.ndarray)
        assert obs.shape == (2,)


def test_vec_env_repeats_itself_when_seeded_and_only_then() -> None:
    def run(seed: int) -> list[list[int]]:
        env.seed(seed)
        return [np.asarray(obs).tolist() for obs in [env.reset(), *(env.step(actions)[0] for _ in range(5))]]

    env, actions = TabularVecEnv(random_mdp(0), 100), np.zeros(100, dtype=np.int64)
    assert run(5) == run(5) != run(6)
    assert env.reset().tolist() != env.reset().tolist()


@pytest.mark.parametrize("fast", [True, False], ids=["TabularVecEnv", "TabularEnv"])
def test_sampled_frequencies_are_the_probabilities_of_the_mdp(fast: bool) -> None:
    mdp, n_envs, n_steps = random_mdp(1, horizon=4), 50 if fast else 2, 400 if fast else 4000
    env = TabularVecEnv(mdp, n_envs, seed=0) if fast else DummyVecEnv([lambda: TabularEnv(mdp) for _ in range(n_envs)])
    env.seed(0)
    rng = np.random.default_rng(0)
    starts, counts = np.zeros(mdp.n_states), np.zeros(mdp.transition.shape)
    states = np.asarray(env.reset())
    for _ in range(n_steps):
        actions = rng.integers(mdp.n_actions, size=n_envs)
        obs, rewards, dones, infos = env.step(actions)
        obs = np.asarray(obs)
        after = np.array([info.get("terminal_observation", o) for info, o in zip(infos, obs, strict=True)])
        assert np.allclose(rewards, mdp.rewards[states, actions, after])
        assert np.all(dones | ~mdp.terminal[after])
        np.add.at(counts, (states, actions, after), 1)
        np.add.at(starts, obs[dones], 1)
        states = obs
    for observed, probability in [
        (starts, mdp.initial),
        *zip(counts.reshape(-1, 4), mdp.transition.reshape(-1, 4), strict=True),
    ]:
        error = np.sqrt(observed.sum() * probability * (1 - probability))
        assert np.all(np.abs(observed - observed.sum() * probability) <= 5 * error + 1e-9)


def test_an_mdp_that_makes_no_sense_is_rejected() -> None:
    mdp = bandit(0.0, 1.0)
    with pytest.raises(ValueError, match="sum to one"):
        TabularMDP(mdp.initial, 0.5 * mdp.transition, mdp.rewards, mdp.terminal)
    with pytest.raises(ValueError, match=r"rewards must be"):
        TabularMDP(mdp.initial, mdp.transition, np.zeros(2), mdp.terminal)


# ------------------------------------------------------------------------------------------------------- known answers


def test_chain_value_is_gamma_to_the_distance() -> None:
    assert np.allclose(optimal_values(chain(5), 0.9), [0.9**4, 0.9**3, 0.9**2, 0.9, 1, 0])
    assert np.allclose(optimal_values(chain(5), 0.5), [0.1, 0.125, 0.25, 0.5, 1, 0])  # there leaving is better: 0.5^4 < 0.1


def test_endless_value_needs_the_bootstrap() -> None:
    gamma, limit = 0.9, 7
    mdp = endless(limit)
    theta, log_probs = softmax_policy(mdp)
    probs = log_probs.detach().exp().numpy()
    truth = np.full(mdp.n_states, 1 / (1 - gamma))
    assert np.allclose(expected_weights(mdp, probs, gamma, values=truth), 1 / (1 - gamma))
    assert np.isclose(objective(mdp, log_probs, gamma).item(), (1 - gamma**limit) / (1 - gamma))
    assert np.allclose(objective_gradient(mdp, log_probs, [theta], gamma), 0)


def test_bandit_gradient_by_hand() -> None:
    theta, log_probs = softmax_policy(bandit(1.0, 3.0, 8.0), seed=None)
    gradient = objective_gradient(bandit(1.0, 3.0, 8.0), log_probs, [theta], 0.3)
    assert np.allclose(gradient, [(1 - 4) / 3, (3 - 4) / 3, (8 - 4) / 3, 0, 0, 0])


def test_quota_trap_turns_from_a_quarter_down_to_a_fifth_up() -> None:
    mdp = quota_trap()
    episodes, scores, theta, log_probs = listed(mdp, seed=None)
    assert np.isclose(objective_gradient(mdp, log_probs, [theta], 1.0)[0], -0.25)
    one_episode = episode_terms(episodes, scores, 1.0, "total_return")
    per_step = batch_estimates(one_episode, np.arange(len(episodes.lengths))[:, None], "per_step")
    assert np.isclose((episodes.probability @ per_step)[0], 0.2)
    assert set(episodes.lengths.tolist()) == {1, 10}


@pytest.mark.parametrize("target", [0.5, -2.0])
def test_quadratic_objective_by_quadrature(target: float) -> None:
    """J of a linear Gaussian policy, integrated over the environment's own rewards, is the closed form of the docstring."""
    env, slope, sigma = QuadraticEnv(dim=1, target=target), 0.3, 0.7
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
    total, seeds = 0.0, {-1.0: 0.0, 1.0: 0.0}
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        rewards = [env.step((slope * obs + sigma * z).astype(np.float64))[1] for z in nodes]
        seeds[float(obs[0])] = float(node_weights @ rewards / node_weights.sum())
    total = 0.5 * sum(seeds.values())
    assert np.isclose(total, -((slope - target) ** 2) - sigma**2, rtol=1e-5)
    check_sb3(env, warn=False)


# --------------------------------------------------------------------- dynamic programming, enumeration, differences

SMALL = {
    "time limit": random_mdp(3, stop=0.2, horizon=3),
    "layers": layered_mdp(4, depth=3),
    "cancelling": cancelling_rewards(),
    "trap": quota_trap(4),
}


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("name", SMALL)
def test_three_roads_to_the_gradient_of_the_objective(name: str, gamma: float) -> None:
    mdp = SMALL[name]
    episodes, scores, theta, log_probs = listed(mdp)
    assert np.isclose(episodes.probability.sum(), 1)
    by_autograd = objective_gradient(mdp, log_probs, [theta], gamma)
    returns = episode_weights(episodes, "total_return", gamma)[:, 0]
    assert np.isclose(objective(mdp, log_probs, gamma).item(), episodes.probability @ returns)

    by_visitation = expected_gradient(mdp, log_probs, [theta], gamma, discount_gradient=True)
    by_enumeration = batch_moments(episode_terms(episodes, scores, gamma, "total_return"), 1).mean
    step = 1e-5
    by_differences = np.zeros(theta.numel())
    for i in range(theta.numel()):
        shift = step * th.eye(theta.numel(), dtype=th.float64)[i].reshape(theta.shape)
        up, down = (objective(mdp, th.log_softmax(theta + sign * shift, 1), gamma).item() for sign in (1, -1))
        by_differences[i] = (up - down) / (2 * step)
    assert np.abs(by_autograd).max() > 0.05
    assert np.allclose(by_autograd, by_visitation, atol=1e-12)
    assert np.allclose(by_autograd, by_enumeration, atol=1e-12)
    assert np.allclose(by_autograd, by_differences, atol=1e-8)


ESTIMATORS: list[dict[str, Any]] = [
    {"estimator": "reward_to_go"},
    {"estimator": "gae", "lambda_": 1.0},
    {"estimator": "gae", "lambda_": 0.6},
    {"estimator": "gae", "lambda_": 0.0},
    {"estimator": "n_step", "return_steps": 1},
    {"estimator": "n_step", "return_steps": 2},
    {"estimator": "n_step", "return_steps": 9},
]


@pytest.mark.parametrize("with_critic", [True, False])
@pytest.mark.parametrize("discount_gradient", [True, False])
@pytest.mark.parametrize("options", ESTIMATORS, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_expectation_by_recursion_is_that_by_enumeration(
    name: str, options: dict[str, Any], discount_gradient: bool, with_critic: bool
) -> None:
    mdp, gamma = SMALL[name], 0.8
    episodes, scores, theta, log_probs = listed(mdp)
    values = np.random.default_rng(0).normal(size=mdp.n_states) if with_critic else np.zeros(mdp.n_states)
    terms = episode_terms(episodes, scores, gamma, discount_gradient=discount_gradient, values=values, **options)
    recursion = {key: value for key, value in options.items() if key != "estimator"}
    expected = expected_gradient(mdp, log_probs, [theta], gamma, discount_gradient, values=values, **recursion)
    assert np.allclose(batch_moments(terms, 1).mean, expected, atol=1e-12)


@pytest.mark.parametrize("options", ESTIMATORS, ids=str)
def test_without_a_time_limit_it_is_the_limit_of_late_ones(options: dict[str, Any]) -> None:
    """Cycles: a linear solve. The same MDP cut so late that nobody gets there must agree."""
    endless_mdp, cut_mdp = random_mdp(5), random_mdp(5, horizon=400)
    theta, log_probs = softmax_policy(endless_mdp)
    values = np.random.default_rng(0).normal(size=endless_mdp.n_states)
    recursion = {key: value for key, value in options.items() if key != "estimator"}
    for discount_gradient in (True, False):
        solved, cut = (
            expected_gradient(mdp, log_probs, [theta], 0.9, discount_gradient, values=values, **recursion)
            for mdp in (endless_mdp, cut_mdp)
        )
        assert np.allclose(solved, cut, atol=1e-10)
    solved, cut = (objective_gradient(mdp, log_probs, [theta], 0.9) for mdp in (endless_mdp, cut_mdp))
    assert np.allclose(solved, cut, atol=1e-10)
    assert np.allclose(solved, expected_gradient(endless_mdp, log_probs, [theta], 0.9, discount_gradient=True))


def test_a_policy_that_knows_the_time() -> None:
    """``[T, S, A]`` tables: on a two-step problem with a new logit for each step, by hand."""
    mdp = endless(2, n_states=1)
    reward = TabularMDP(mdp.initial, mdp.transition, np.array([[0.0, 1.0]]), mdp.terminal, 2)
    theta = th.zeros(2, 1, 2, dtype=th.float64, requires_grad=True)
    gradient = objective_gradient(reward, th.log_softmax(theta, 2), [theta], 0.5)
    assert np.allclose(gradient, [-0.25, 0.25, -0.125, 0.125])


def test_visitation_of_a_chain_by_hand() -> None:
    probs = np.full((4, 2), 0.5)
    assert np.allclose(visitation(chain(3), probs), [[1, 0.5, 0.25, 0]])
    assert np.allclose(visitation(chain(3), probs, 0.5), [[1, 0.25, 0.0625, 0]])


def test_a_true_critic_makes_every_estimator_unbiased_and_a_wrong_one_does_not() -> None:
    mdp, gamma = layered_mdp(0, depth=3), 0.9
    theta, log_probs = softmax_policy(mdp)
    probs = log_probs.detach().exp().numpy()
    truth = np.sum(probs * expected_weights(mdp, probs, gamma)[0], axis=1)
    unbiased = expected_gradient(mdp, log_probs, [theta], gamma)
    for options in ESTIMATORS[1:]:
        recursion = {key: value for key, value in options.items() if key != "estimator"}
        assert np.allclose(expected_gradient(mdp, log_probs, [theta], gamma, values=truth, **recursion), unbiased)
        wrong = expected_gradient(mdp, log_probs, [theta], gamma, values=truth + np.arange(len(truth)), **recursion)
        whole_episode = options.get("lambda_") == 1.0 or options.get("return_steps") == 9
        assert np.allclose(wrong, unbiased) == whole_episode


# ---------------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("estimator", ["total_return", "reward_to_go"])
@pytest.mark.parametrize(("baseline", "k"), [("mean", 2), ("optimal", 2), ("mean", 3), ("optimal", 3)])
def test_baselines_from_the_other_episodes_are_unbiased(estimator: str, baseline: str, k: int) -> None:
    mdp, gamma = layered_mdp(2, depth=2), 0.8
    episodes, scores, _, _ = listed(mdp)
    for discount_gradient in (False, True) if estimator == "reward_to_go" else (False,):
        terms = episode_terms(episodes, scores, gamma, estimator, discount_gradient)
        assert np.allclose(batch_moments(terms, k, baseline).mean, batch_moments(terms, 1).mean, atol=1e-10)


def test_a_mean_with_the_own_episode_shrinks_the_gradient_by_one_kth() -> None:
    """E[g_i R_i] enters the baseline with weight 1/K, so exactly (1 - 1/K) of the gradient is left."""
    episodes, scores, _, _ = listed(layered_mdp(2, depth=2))
    terms = episode_terms(episodes, scores, 0.8, "total_return")
    for k in (2, 3):
        assert np.allclose(batch_moments(terms, k, "mean_with_own").mean, (1 - 1 / k) * batch_moments(terms, 1).mean)


@pytest.mark.parametrize("k", [2, 3])
def test_variance_of_the_mean_baseline_is_that_of_a_u_statistic(k: int) -> None:
    """
    With R_j averaged over the others the estimate is the U-statistic of h(i, j) = (x_i + x_j - g_i R_j - g_j R_i) / 2,
    whose variance is 2 / (K (K-1)) [2 (K-2) Var E[h|i] + Var h] (Hoeffding 1948).
    """
    episodes, scores, _, _ = listed(layered_mdp(2, depth=2))
    terms = episode_terms(episodes, scores, 0.8, "total_return")
    x, g, levels, p = terms.estimates, terms.scores, terms.level_sums, terms.probability
    kernel = (x[:, None] + x[None] - g[:, None] * levels[None, :, None] - g[None] * levels[:, None, None]) / 2
    conditional = np.einsum("j,ijp->ip", p, kernel)
    mean = p @ conditional
    first, second = p @ (conditional - mean) ** 2, np.einsum("i,j,ijp->p", p, p, (kernel - mean) ** 2)
    variance = 2 / (k * (k - 1)) * (2 * (k - 2) * first + second)
    assert np.allclose(batch_moments(terms, k, "mean").variance, variance)


def test_moments_of_a_mean_of_independent_estimates() -> None:
    """The closed form for no baseline against the sum over all batches (which ``per_step`` takes; here K = steps)."""
    episodes, scores, _, _ = listed(bandit(0.0, 1.0, 5.0))
    terms = episode_terms(episodes, scores, 1.0, "total_return")
    closed, summed = batch_moments(terms, 3), batch_moments(terms, 3, "per_step")
    for field in ("mean", "variance", "fourth"):
        assert np.allclose(getattr(closed, field), getattr(summed, field))


def test_optimal_baseline_by_hand() -> None:
    """Two episodes, two parameters: b_1 = x_2 g_2 / g_2^2 = x_2 / g_2, and 0 where g_2 = 0."""
    x, g = np.array([[6.0, 5.0], [8.0, 0.0]]), np.array([[3.0, 1.0], [2.0, 0.0]])
    terms = EpisodeTerms(x, g, np.zeros(2), np.ones(2), np.ones(2), np.ones(2) / 2)
    estimate = batch_estimates(terms, np.array([[0, 1]]), "optimal")
    assert np.allclose(estimate, [[((6 - 4 * 3) + (8 - 2 * 2)) / 2, ((5 - 0 * 1) + (0 - 5 * 0)) / 2]])


def test_mean_baseline_pools_the_steps_of_the_others() -> None:
    """Levels 1 + 2 over two steps and 6 over one: the third episode's baseline is 9 / 3, not the mean of 1.5 and 6."""
    terms = EpisodeTerms(
        np.zeros((3, 1)), np.array([[0.0], [0.0], [3.0]]), np.array([3.0, 6, 0]), np.array([2.0, 1, 1]), *[np.ones(3)] * 2
    )
    assert np.allclose(batch_estimates(terms, np.array([[0, 1, 2]]), "mean"), -3.0)


def test_the_usual_orderings_of_variance_and_their_counterexamples() -> None:
    def total_variance(mdp: TabularMDP, estimator: str, baseline: str = "none", k: int = 2) -> float:
        episodes, scores, _, _ = listed(mdp, seed=None)
        return float(batch_moments(episode_terms(episodes, scores, 1.0, estimator), k, baseline).variance.sum())

    usual = endless(4)
    assert total_variance(usual, "reward_to_go") < 0.8 * total_variance(usual, "total_return")
    cancel = cancelling_rewards()
    assert total_variance(cancel, "total_return") < 0.5 * total_variance(cancel, "reward_to_go")
    shifted = bandit(10.0, 12.0)
    assert total_variance(shifted, "total_return", "mean") < 0.1 * total_variance(shifted, "total_return")
    # Score times reward is 1/2 for both arms. The baseline makes it (1 - R_1 R_2) / 2, 0 or 1 with equal odds: variance
    # 1/4 for each of the two logits.
    symmetric = bandit(1.0, -1.0)
    assert total_variance(symmetric, "total_return") < 1e-12
    assert np.isclose(total_variance(symmetric, "total_return", "mean"), 0.5)


def test_enumeration_gives_up_on_cycles() -> None:
    with pytest.raises(ValueError, match="horizon or no cycles"):
        enumerate_episodes(random_mdp(0), np.full((4, 2), 0.5), max_length=5)


# ------------------------------------------------------------------------------------------------------ SB3's policies


def test_policy_tables_are_what_sb3_computes() -> None:
    mdp = random_mdp(0)
    env = TabularEnv(mdp)
    policy = ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[4])
    log_probs = policy_log_probs(policy, mdp)
    assert np.allclose(log_probs.detach().exp().sum(1), 1)
    distribution = policy.get_distribution(th.tensor([2]))
    assert np.isclose(log_probs[2, 1].item(), distribution.log_prob(th.tensor([1])).item())
    assert np.isclose(policy_values(policy, mdp)[1], policy.predict_values(th.tensor([1])).item())


def test_flat_gradient_keeps_the_order_and_fills_with_zeros() -> None:
    a, b, c, d = (th.tensor(value, requires_grad=True) for value in ([1.0, 2.0], [3.0], [4.0, 5.0], [6.0]))
    b.requires_grad_(False)
    assert flat_gradient((a * c).sum(), [c, d, b, a]).tolist() == [1, 2, 0, 0, 4, 5]


# ---------------------------------------------------------------------------------------------------------- statistics


def test_z_scores_by_hand_and_for_constants() -> None:
    estimates = np.array([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [3.0, 2.0]])
    error = np.sqrt(4 / 3) / 2
    assert np.allclose(z_scores(estimates, np.array([1.0, 2.0])), [1 / error, 0])
    assert z_scores(estimates, np.array([2.0, 2.01]))[1] < -100
