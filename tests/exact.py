"""
Exact gradients, expectations and variances of policy-gradient estimators on a :class:`envs.TabularMDP`.

There are two independent methods. *Dynamic programming* over (t, s): with d_t(s) the probability to be in s at step t
and q_t(s, a) the expected weight of a step before its baseline, an estimator whose baseline does not depend on the action
has the expectation

    sum_t c_t sum_s d_t(s) sum_a grad pi(a|s) q_t(s, a),   c_t = gamma^t (``discount_gradient``) or 1.

*Enumeration* lists every episode with its probability and evaluates the estimator on each of them (or on each tuple of K of
them), from the definitions, without recursion; it also gives the variances.

A policy is a tensor of log-probabilities ``[S, A]`` (or ``[T, S, A]``) with its graph, together with the parameters it
depends on. Gradients point in ascent direction, flattened in the order of the parameters, zero for unused parameters.
Symbols: S states, A actions, T steps, P parameters, M episodes listed, K episodes of a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch as th
from envs import TabularMDP
from stable_baselines3.common.policies import ActorCriticPolicy

# ---------------------------------------------------------------------------------------------------------- policies


def policy_log_probs(policy: ActorCriticPolicy, mdp: TabularMDP) -> th.Tensor:
    """
    log pi(a|s) of an SB3 policy whose observations are the states' numbers.

    :param policy: policy with ``evaluate_actions``
    :param mdp: gives S and A
    :return: ``[S, A]``, float64, with graph
    """
    states = th.arange(mdp.n_states).repeat_interleave(mdp.n_actions)
    actions = th.arange(mdp.n_actions).repeat(mdp.n_states)
    log_probs: th.Tensor = policy.evaluate_actions(states, actions)[1]
    # The rows sum to one up to float32 rounding; make it float64 rounding.
    return th.log_softmax(log_probs.double().reshape(mdp.n_states, mdp.n_actions), dim=1)


def policy_values(policy: ActorCriticPolicy, mdp: TabularMDP) -> np.ndarray:
    """
    V(s) of an SB3 policy's critic.

    :param policy: policy with ``predict_values``
    :param mdp: gives S
    :return: ``[S]``, float64
    """
    with th.no_grad():
        return np.asarray(policy.predict_values(th.arange(mdp.n_states)).double().flatten().numpy())


def flat_gradient(scalar: th.Tensor, parameters: Iterable[th.Tensor]) -> np.ndarray:
    """
    Gradient of a scalar as one vector.

    :param scalar: scalar to differentiate; its graph is kept
    :param parameters: parameters to differentiate with respect to, in this order
    :return: ``[P]``, float64, zero where ``scalar`` does not depend on a parameter
    """
    parameters = list(parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = iter(th.autograd.grad(scalar, trained, retain_graph=True, allow_unused=True))
    parts = [next(gradients) if parameter.requires_grad else None for parameter in parameters]
    filled = [th.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
    return np.asarray(th.cat([part.double().flatten() for part in filled]).numpy())


def score_table(log_probs: th.Tensor, parameters: Iterable[th.Tensor]) -> np.ndarray:
    """
    grad log pi(a|s) for every state and action.

    :param log_probs: ``[S, A]`` with graph
    :param parameters: P parameters in all
    :return: ``[S, A, P]``
    """
    parameters = list(parameters)
    return np.stack([np.stack([flat_gradient(entry, parameters) for entry in row]) for row in log_probs])


# ------------------------------------------------------------------------------------------------ dynamic programming


def _alive_transition(mdp: TabularMDP) -> np.ndarray:
    """``[S, A, S]`` transition probabilities to states where the episode goes on; zero rows for terminal states."""
    return np.asarray(mdp.transition * ~mdp.terminal * ~mdp.terminal[:, None, None])


def _mean_rewards(mdp: TabularMDP) -> np.ndarray:
    """``[S, A]`` expected reward of a state and action; zero for terminal states."""
    return np.asarray(np.sum(mdp.transition * mdp.rewards, axis=2) * ~mdp.terminal[:, None])


def objective(mdp: TabularMDP, log_probs: th.Tensor, gamma: float) -> th.Tensor:
    """
    J = E[sum_t gamma^t r_t], differentiable: V_t(s) = sum_a pi(a|s) [r(s, a) + gamma sum_s' P(s'|s, a) V_{t+1}(s')] with
    V_horizon = 0, or the solution of V = r_pi + gamma P_pi V without a time limit.

    :param mdp: the process; without a horizon it must terminate almost surely (or gamma < 1)
    :param log_probs: ``[S, A]``, or ``[T, S, A]`` with T = horizon
    :param gamma: discount
    :return: scalar, float64, with graph
    """
    transition, rewards = th.as_tensor(_alive_transition(mdp)), th.as_tensor(_mean_rewards(mdp))
    initial, probs = th.as_tensor(mdp.initial), log_probs.double().exp()
    if mdp.horizon is None:
        markov = th.einsum("sa,sap->sp", probs, transition)
        values: th.Tensor = th.linalg.solve(th.eye(mdp.n_states).double() - gamma * markov, (probs * rewards).sum(1))
        return th.dot(initial, values)
    values = th.zeros(mdp.n_states).double()
    for step_probs in reversed(probs.expand(mdp.horizon, mdp.n_states, mdp.n_actions)):
        values = (step_probs * (rewards + gamma * transition @ values)).sum(1)
    return th.dot(initial, values)


def objective_gradient(mdp: TabularMDP, log_probs: th.Tensor, parameters: Iterable[th.Tensor], gamma: float) -> np.ndarray:
    """
    The true gradient of the discounted objective (option 2): autograd through :func:`objective`.

    :param mdp: the process
    :param log_probs: ``[S, A]`` or ``[T, S, A]`` with graph
    :param parameters: P parameters in all
    :param gamma: discount
    :return: ``[P]``
    """
    return flat_gradient(objective(mdp, log_probs, gamma), parameters)


def expected_weights(
    mdp: TabularMDP,
    probs: np.ndarray,
    gamma: float,
    lambda_: float = 1.0,
    return_steps: int | None = None,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """
    q_t(s, a): the expected return of a step, given state and action, with a fixed critic ``values``:

        q_t(s, a) = r(s, a) + gamma sum_s' P(s'|s, a) [(1 - l) V(s') + l sum_a' pi(a'|s') q_{t+1}(s', a')],

    summed over non-terminal s', l = ``lambda_`` except at the truncated last step, where l = 0. With ``return_steps``
    l = 1 until n steps were summed, then 0. Without ``values`` the critic is zero: reward-to-go, nothing bootstrapped.

    :param mdp: the process
    :param probs: ``[S, A]`` pi(a|s)
    :param gamma: discount
    :param lambda_: mixing of the lambda-return
    :param return_steps: n of the n-step return (then ``lambda_`` is not used)
    :param values: ``[S]`` critic
    :return: ``[T, S, A]`` with T = horizon, or ``[1, S, A]`` without one, the same at each step
    """
    transition, rewards = gamma * _alive_transition(mdp), _mean_rewards(mdp)
    critic = np.zeros(mdp.n_states) if values is None else values
    bootstrapped = rewards + transition @ critic

    def back(q: np.ndarray, mix: float) -> np.ndarray:
        return np.asarray(rewards + transition @ ((1 - mix) * critic + mix * np.sum(probs * q, axis=1)))

    if return_steps is not None:
        # look_ahead[t] is the q of step t with the number of steps summed so far; each round adds one.
        look_ahead = [bootstrapped for _ in range(mdp.horizon or 1)]
        for _ in range(return_steps - 1):
            next_q = look_ahead[1:] if mdp.horizon else look_ahead
            look_ahead = [back(q, 1.0) for q in next_q] + ([bootstrapped] if mdp.horizon else [])
        return np.stack(look_ahead)
    if mdp.horizon is None:
        return _stationary_weights(transition, rewards, critic, probs, lambda_)[None]
    backwards = [bootstrapped]
    for _ in range(mdp.horizon - 1):
        backwards.append(back(backwards[-1], lambda_))
    return np.stack(backwards[::-1])


def _stationary_weights(
    transition: np.ndarray, rewards: np.ndarray, critic: np.ndarray, probs: np.ndarray, lambda_: float
) -> np.ndarray:
    """Fixed point of q = r + gamma P [(1 - lambda) V + lambda pi q], by its state values u = pi q."""
    constant = rewards + (1 - lambda_) * transition @ critic
    markov = np.einsum("sa,sap->sp", probs, transition)
    state_values = np.linalg.solve(np.eye(len(critic)) - lambda_ * markov, np.sum(probs * constant, axis=1))
    return np.asarray(constant + lambda_ * transition @ state_values)


def visitation(mdp: TabularMDP, probs: np.ndarray, discount: float = 1.0) -> np.ndarray:
    """
    discount^t d_t(s), d_t the probability that the episode is in state s at step t; summed over t without a horizon,
    where it is (I - discount P_pi^T)^{-1} mu.

    :param mdp: the process; without a horizon it must terminate almost surely (or discount < 1)
    :param probs: ``[S, A]`` pi(a|s)
    :param discount: factor per step
    :return: ``[T, S]`` with T = horizon, or ``[1, S]`` without one
    """
    markov = discount * np.einsum("sa,sap->sp", probs, _alive_transition(mdp))
    if mdp.horizon is None:
        return np.asarray(np.linalg.solve(np.eye(mdp.n_states) - markov.T, mdp.initial)[None])
    rows = [mdp.initial]
    for _ in range(mdp.horizon - 1):
        rows.append(rows[-1] @ markov)
    return np.stack(rows)


def expected_gradient(
    mdp: TabularMDP,
    log_probs: th.Tensor,
    parameters: Iterable[th.Tensor],
    gamma: float,
    discount_gradient: bool = False,
    lambda_: float = 1.0,
    return_steps: int | None = None,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """
    Expectation of sum_t c_t grad log pi(a_t|s_t) G_t for the returns of :func:`expected_weights`, by visitation
    probabilities. Baselines that do not depend on the episode's actions do not change it. With the default returns this
    is the expression of option 1, or with ``discount_gradient`` the same number as :func:`objective_gradient`.

    :param mdp: the process
    :param log_probs: ``[S, A]`` with graph
    :param parameters: P parameters in all
    :param gamma: discount of the returns
    :param discount_gradient: whether c_t is gamma^t rather than 1
    :param lambda_: see :func:`expected_weights`
    :param return_steps: see :func:`expected_weights`
    :param values: ``[S]`` critic; None for no critic at all
    :return: ``[P]``
    """
    probs = log_probs.detach().exp().numpy()
    q = expected_weights(mdp, probs, gamma, lambda_, return_steps, values)
    state_weights = visitation(mdp, probs, gamma if discount_gradient else 1.0)
    # Without a horizon q is the same at each step, so only the sum of the visitation over t matters.
    table = np.einsum("ts,tsa->sa", state_weights, q)
    return flat_gradient((log_probs.exp() * th.as_tensor(table)).sum(), parameters)


def optimal_values(mdp: TabularMDP, gamma: float) -> np.ndarray:
    """
    Value of the best policy by value iteration (time-independent problems only).

    :param mdp: the process, without a horizon
    :param gamma: discount
    :return: ``[S]``
    :raises ValueError: if the MDP has a horizon
    """
    if mdp.horizon is not None:
        raise ValueError("with a time limit the optimal value depends on the step")
    values = np.zeros(mdp.n_states)
    for _ in range(10_000):
        values = np.max(_mean_rewards(mdp) + gamma * _alive_transition(mdp) @ values, axis=1)
    return values


# -------------------------------------------------------------------------------------------------------- enumeration


@dataclass(frozen=True, eq=False)
class Episodes:
    """
    Every episode of an MDP, padded to the longest, T steps.

    :param probability: ``[M]``, sums to one
    :param states: ``[M, T]``
    :param actions: ``[M, T]``
    :param rewards: ``[M, T]``, zero after the end
    :param next_states: ``[M, T]``
    :param lengths: ``[M]``
    :param terminated: ``[M]`` True if the MDP ended, False if the time limit cut the episode
    """

    probability: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_states: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray


Path = list[tuple[int, int, float, int]]
"""One episode: (state, action, reward, next state) of each step."""


def pack_episodes(mdp: TabularMDP, paths: list[Path], probability: np.ndarray | None = None) -> Episodes:
    """
    Arrays of listed or recorded episodes.

    :param mdp: says which last states are terminal
    :param paths: M episodes
    :param probability: ``[M]``, all the same by default
    :return: the arrays
    """
    n, longest = len(paths), max(len(path) for path in paths)
    states, actions, next_states = (np.zeros((n, longest), dtype=np.int64) for _ in range(3))
    rewards = np.zeros((n, longest))
    for m, path in enumerate(paths):
        for t, step in enumerate(path):
            states[m, t], actions[m, t], rewards[m, t], next_states[m, t] = step
    lengths = np.array([len(path) for path in paths])
    terminated = mdp.terminal[next_states[np.arange(n), lengths - 1]]
    chances = np.full(n, 1 / n) if probability is None else probability
    return Episodes(chances, states, actions, rewards, next_states, lengths, terminated)


def _paths(mdp: TabularMDP, probs: np.ndarray, max_length: int) -> Iterator[tuple[float, Path]]:
    """All (probability, [(state, action, reward, next state), ...]) by depth-first search."""
    stack: list[tuple[float, int, Path]] = [(float(p), s, []) for s, p in enumerate(mdp.initial) if p > 0]
    while stack:
        probability, state, path = stack.pop()
        if path and (mdp.terminal[state] or len(path) == mdp.horizon):
            yield probability, path
            continue
        if len(path) >= max_length:
            raise ValueError(f"an episode can last more than {max_length} steps: give the MDP a horizon or no cycles")
        for action, next_state in product(range(mdp.n_actions), range(mdp.n_states)):
            factor = float(probs[state, action] * mdp.transition[state, action, next_state])
            if factor > 0:
                step = (state, action, float(mdp.rewards[state, action, next_state]), next_state)
                stack.append((probability * factor, next_state, [*path, step]))


def enumerate_episodes(mdp: TabularMDP, probs: np.ndarray, max_length: int = 32) -> Episodes:
    """
    List every episode that can happen.

    :param mdp: the process
    :param probs: ``[S, A]`` pi(a|s)
    :param max_length: maximum length of an episode
    :return: the episodes
    :raises ValueError: if an episode can be longer than ``max_length``
    """
    found = list(_paths(mdp, probs, max_length))
    return pack_episodes(mdp, [path for _, path in found], np.array([chance for chance, _ in found]))


def _look_ahead(episodes: Episodes, m: int, t: int, n: int, gamma: float, values: np.ndarray | None) -> float:
    """sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n}), stopping at the end of episode m, where V counts only if it was cut."""
    length = int(episodes.lengths[m])
    n = min(n, length - t)
    total = sum(gamma**k * float(episodes.rewards[m, t + k]) for k in range(n))
    if values is None or (t + n == length and episodes.terminated[m]):
        return total
    return total + gamma**n * float(values[episodes.next_states[m, t + n - 1]])


def episode_weights(
    episodes: Episodes,
    estimator: str,
    gamma: float,
    lambda_: float | None = None,
    return_steps: int | None = None,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """
    The weight of every step of every episode before its baseline, from the definitions: ``total_return``,
    ``reward_to_go``, ``n_step``, and ``gae`` as the lambda-return
    (1 - lambda) sum_n lambda^(n-1) G^(n) + lambda^(L-1) G^(L), L steps to the end.

    :param episodes: M episodes
    :param estimator: one of the four names
    :param gamma: discount
    :param lambda_: lambda of ``gae``
    :param return_steps: look-ahead of ``n_step``
    :param values: ``[S]`` critic, None for no bootstrap at all
    :return: ``[M, T]``, zero after the end
    :raises ValueError: if the estimator's own option is missing or its name unknown
    """
    weights = np.zeros_like(episodes.rewards)
    for m, length in enumerate(episodes.lengths.tolist()):
        for t in range(length):
            if estimator == "total_return":
                weights[m, t] = _look_ahead(episodes, m, 0, length, gamma, None)
            elif estimator == "reward_to_go":
                weights[m, t] = _look_ahead(episodes, m, t, length, gamma, values)
            elif estimator == "n_step" and return_steps is not None:
                weights[m, t] = _look_ahead(episodes, m, t, return_steps, gamma, values)
            elif estimator == "gae" and lambda_ is not None:
                left = length - t
                returns = [_look_ahead(episodes, m, t, n, gamma, values) for n in range(1, left + 1)]
                mixed = sum((1 - lambda_) * lambda_ ** (n - 1) * returns[n - 1] for n in range(1, left))
                weights[m, t] = mixed + lambda_ ** (left - 1) * returns[-1]
            else:
                raise ValueError(f"unknown estimator {estimator!r}, or lambda_ / return_steps missing")
    return weights


@dataclass(frozen=True, eq=False)
class EpisodeTerms:
    """
    Per-episode terms of a batch estimate.

    :param estimates: ``[M, P]`` x = sum_t c_t grad log pi w_t, without the batch baseline
    :param scores: ``[M, P]`` g = sum_t c_t grad log pi, the factor of a constant baseline
    :param level_sums: ``[M]`` sums that the mean baseline averages: the return (``total_return``) or the sum of the weights
    :param level_counts: ``[M]`` number of terms in that sum: 1 or the length
    :param lengths: ``[M]`` steps
    :param probability: ``[M]``
    """

    estimates: np.ndarray
    scores: np.ndarray
    level_sums: np.ndarray
    level_counts: np.ndarray
    lengths: np.ndarray
    probability: np.ndarray


def episode_terms(
    episodes: Episodes,
    scores: np.ndarray,
    gamma: float,
    estimator: str,
    discount_gradient: bool = False,
    lambda_: float | None = None,
    return_steps: int | None = None,
    values: np.ndarray | None = None,
) -> EpisodeTerms:
    """
    Terms of every episode. A critic ``values`` is both bootstrap and baseline: its V(s_t) is subtracted.

    :param episodes: M episodes
    :param scores: ``[S, A, P]`` of :func:`score_table`
    :param gamma: discount
    :param estimator: see :func:`episode_weights`
    :param discount_gradient: whether c_t is gamma^t rather than 1
    :param lambda_: see :func:`episode_weights`
    :param return_steps: see :func:`episode_weights`
    :param values: ``[S]`` critic
    :return: the terms
    """
    weights = episode_weights(episodes, estimator, gamma, lambda_, return_steps, values)
    steps = np.arange(weights.shape[1])
    factors = (steps < episodes.lengths[:, None]) * (gamma if discount_gradient else 1.0) ** steps
    advantages = weights if values is None else weights - values[episodes.states]
    table = scores[episodes.states, episodes.actions]  # [M, T, P]
    whole = estimator == "total_return"
    return EpisodeTerms(
        estimates=np.einsum("mt,mtp->mp", factors * advantages, table),
        scores=np.einsum("mt,mtp->mp", factors, table),
        level_sums=weights[:, 0] if whole else weights.sum(axis=1),
        level_counts=np.ones(len(weights)) if whole else episodes.lengths.astype(float),
        lengths=episodes.lengths,
        probability=episodes.probability,
    )


def batch_estimates(terms: EpisodeTerms, batches: np.ndarray, baseline: str = "none") -> np.ndarray:
    """
    The estimate that each batch of K episodes gives, (1/K) sum_i (x_i - b_i g_i) with b_i from the other episodes:

    - ``mean``: their sum of levels over the number of levels;
    - ``optimal``: sum_j x_j g_j / sum_j g_j^2 per parameter, 0 where 0/0;
    - ``none``: 0.

    Two wrong ones serve as negative controls: ``mean_with_own`` (episode i is in its own baseline), ``per_step`` (no
    baseline, divided by the number of steps instead of K).

    :param terms: terms of M episodes
    :param batches: ``[B, K]`` numbers of episodes
    :param baseline: one of the five names
    :return: ``[B, P]``
    :raises ValueError: if the name is unknown
    """
    x, g = terms.estimates[batches], terms.scores[batches]  # [B, K, P]
    if baseline == "per_step":
        return np.asarray(x.sum(axis=1) / terms.lengths[batches].sum(axis=1, keepdims=True))
    if baseline == "none":
        return np.asarray(x.mean(axis=1))
    if baseline == "optimal":
        products, squares = _others(x * g), _others(g * g)
        level = np.divide(products, squares, out=np.zeros_like(products), where=squares > 1e-12)
        return np.asarray((x - level * g).mean(axis=1))
    sums, counts = terms.level_sums[batches], terms.level_counts[batches]  # [B, K]
    if baseline == "mean":
        level = _others(sums) / _others(counts)
    elif baseline == "mean_with_own":
        level = np.broadcast_to(sums.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True), sums.shape)
    else:
        raise ValueError(f"unknown baseline {baseline!r}")
    return np.asarray((x - level[:, :, None] * g).mean(axis=1))


def _others(terms: np.ndarray) -> np.ndarray:
    """Sum over the other entries of axis 1, for each entry, summed without it (subtraction would leave a rounding error)."""
    size = terms.shape[1]
    return np.stack([np.delete(terms, i, axis=1).sum(axis=1) for i in range(size)], axis=1)


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Exact moments of a batch estimate, per parameter.

    :param mean: ``[P]``
    :param variance: ``[P]``
    :param fourth: ``[P]`` fourth central moment
    """

    mean: np.ndarray
    variance: np.ndarray
    fourth: np.ndarray

    def variance_error(self, n: int) -> np.ndarray:
        """Standard deviation of the sample variance of n estimates, sqrt((m4 - (n-3)/(n-1) m2^2) / n)."""
        return np.sqrt(np.maximum(self.fourth - (n - 3) / (n - 1) * self.variance**2, 0) / n)


def _moments(estimates: np.ndarray, probability: np.ndarray) -> Moments:
    mean = probability @ estimates
    deviations = (estimates - mean) ** 2
    return Moments(mean, probability @ deviations, probability @ deviations**2)


def batch_moments(terms: EpisodeTerms, n_episodes: int, baseline: str = "none") -> Moments:
    """
    Exact moments of :func:`batch_estimates`: for ``none`` those of the mean of K independent terms,

        m2 / K and (m4 + 3 (K - 1) m2^2) / K^3,

    otherwise by summing over all M^K batches.

    :param terms: terms of M episodes
    :param n_episodes: K
    :param baseline: see :func:`batch_estimates`
    :return: the moments
    :raises ValueError: if there are more than two million batches
    """
    k = n_episodes
    if baseline == "none":
        one = _moments(terms.estimates, terms.probability)
        return Moments(one.mean, one.variance / k, (one.fourth + 3 * (k - 1) * one.variance**2) / k**3)
    m = len(terms.probability)
    if m**k > 2_000_000:
        raise ValueError(f"{m} episodes make {m**k} batches of {k}: too many to enumerate")
    batches = np.stack(np.unravel_index(np.arange(m**k), (m,) * k), axis=1)
    return _moments(batch_estimates(terms, batches, baseline), terms.probability[batches].prod(axis=1))


# --------------------------------------------------------------------------------------------------------- statistics


def z_scores(estimates: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """
    Distance of the mean of independent estimates from its expectation, in standard errors.

    :param estimates: ``[B, P]``
    :param expected: ``[P]``
    :return: ``[P]``; the standard error is at least 1e-5 of the largest number, because of float32 rounding errors in
        parameters whose estimates all agree
    """
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    floor = 1e-5 * max(float(np.abs(estimates).max()), float(np.abs(expected).max()), 1e-6)
    return np.asarray((estimates.mean(axis=0) - expected) / np.maximum(error, floor))
