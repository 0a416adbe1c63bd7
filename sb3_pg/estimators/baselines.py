"""Critic-free baselines and normalisation in pure numpy.

The baseline of an episode is computed from the *other* episodes of the batch only, so the score-function estimator stays
unbiased. Leaving out only the sample itself is not enough: the other steps of its episode depend on its actions.
"""

import numpy as np
import numpy.typing as npt

from sb3_pg.estimators.returns import BoolArray, FloatArray, episode_start_rows

IntArray = npt.NDArray[np.intp]

# Scores that cancel leave a float32 rounding error of about 1e-8: its square is treated as zero. The threshold must not
# depend on the episode's own scores, which would bias its baseline.
SMALLEST_SQUARE = 1e-12


def episode_ids(terminated: BoolArray, truncated: BoolArray) -> IntArray:
    """
    Number the episodes of a rollout from 0, environment by environment, in chronological order.

    :param terminated: ``[T, N]``, bool
    :param truncated: ``[T, N]``, bool
    :return: ``[T, N]``; row 0 starts a new episode in each environment
    :raises ValueError: wrong or different shapes
    """
    if terminated.shape != truncated.shape or terminated.ndim != 2:
        raise ValueError(f"terminated and truncated must both be [T, N], got {terminated.shape} and {truncated.shape}")
    starts = episode_start_rows(terminated | truncated)
    begins = starts == np.arange(len(starts), dtype=np.intp)[:, None]
    return (np.cumsum(begins.T.ravel()) - 1).reshape(begins.T.shape).T


def leave_one_out_mean(weights: FloatArray, episodes: IntArray, n_episodes: int) -> FloatArray:
    """
    Mean weight over all steps of the other episodes, for each step.

    :param weights: ``[S]``, one per step
    :param episodes: ``[S]``, the episode of each step, in ``[0, n_episodes)``
    :param n_episodes: number of episodes K, at least 2, each with at least one step
    :return: ``[S]``
    :raises ValueError: fewer than two episodes, an episode without steps, or weights that are not floating point
    """
    _check_episodes(n_episodes)
    if weights.ndim != 1 or weights.shape != episodes.shape or not np.issubdtype(weights.dtype, np.floating):
        raise ValueError(
            f"weights must be floating point, one per entry of episodes {episodes.shape}, got {weights.dtype} {weights.shape}"
        )
    counts = np.bincount(episodes, minlength=n_episodes)
    if len(counts) != n_episodes or np.any(counts == 0):
        raise ValueError(f"episodes must contain every number in [0, {n_episodes}) and no other")
    # float64: the sum over the other episodes is a difference of two sums.
    sums = np.bincount(episodes, weights=weights, minlength=n_episodes)
    means = (sums.sum() - sums) / (counts.sum() - counts)
    result: FloatArray = means[episodes].astype(weights.dtype)
    return result


def leave_one_out_mean_per_episode(episode_returns: FloatArray) -> FloatArray:
    """
    Mean return of the other episodes, for each episode.

    :param episode_returns: ``[K]``, K at least 2
    :return: ``[K]``
    :raises ValueError: fewer than two episodes
    """
    return leave_one_out_mean(episode_returns, np.arange(len(episode_returns)), len(episode_returns))


def optimal_baseline(estimates: FloatArray, scores: FloatArray) -> FloatArray:
    """
    The constant that minimises the variance of the gradient estimate, separately for each parameter ``i``:
    ``b_i = E[x_i g_i] / E[g_i^2]``, both expectations estimated from the other episodes. For the total return,
    ``x = R g``, this is the classical ``E[g_i^2 R] / E[g_i^2]`` (Peters & Schaal 2008, section 3.2).

    :param estimates: ``[K, P]``, gradient estimate x of each episode, without baseline
    :param scores: ``[K, P]``, sum of scores g that multiplies the baseline in each episode
    :return: ``[K, P]``; 0 where the scores of the other episodes vanish
    :raises ValueError: fewer than two episodes, or different shapes
    """
    _check_episodes(len(estimates))
    if estimates.ndim != 2 or estimates.shape != scores.shape:
        raise ValueError(f"estimates and scores must both be [K, P], got {estimates.shape} and {scores.shape}")
    products, squares = estimates * scores, scores * scores
    numerator, denominator = _sum_of_others(products), _sum_of_others(squares)
    return np.divide(numerator, denominator, out=np.zeros_like(estimates), where=denominator > SMALLEST_SQUARE)


def standardize(weights: FloatArray) -> FloatArray:
    """
    Shift and scale to mean 0 and (sample) standard deviation 1.

    :param weights: any shape, at least two entries
    :return: the same shape
    :raises ValueError: fewer than two entries
    """
    if weights.size < 2:
        raise ValueError("standardizing needs at least two values: collect more steps or do not normalise advantages")
    # In float64: the float32 mean of equal weights differs from them by a rounding error, which the division would amplify.
    exact = weights.astype(np.float64)
    normalised: FloatArray = ((exact - exact.mean()) / (exact.std(ddof=1) + 1e-8)).astype(weights.dtype)
    return normalised


def _sum_of_others(terms: FloatArray) -> FloatArray:
    """
    Sum over the other rows, for each row, as (sum of the rows before) + (sum of the rows after): a difference of sums would
    not be exactly zero where it should be, and a sum of squares could turn negative.
    """
    before, after = np.zeros_like(terms), np.zeros_like(terms)
    before[1:] = np.cumsum(terms, axis=0)[:-1]
    after[:-1] = np.cumsum(terms[::-1], axis=0)[::-1][1:]
    return before + after


def _check_episodes(n_episodes: int) -> None:
    if n_episodes < 2:
        raise ValueError(f"a leave-one-out baseline needs at least two episodes, got {n_episodes}")
