"""Hindsight relabelling: choice of goals and n-step returns, as functions of numpy arrays."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

# Without `random`, whose goals do not come from the transition's own episode.
EPISODE_STRATEGIES = ("future", "final", "episode")


def goal_offsets(strategy: str, elapsed: IntArray, remaining: IntArray, rng: np.random.Generator) -> IntArray:
    """
    Choose the state of the same episode whose achieved goal becomes the desired one (Andrychowicz et al. 2017, section 4.5).

    For step t of an episode with states s_0 to s_T, ``future`` draws from s_{t+1} to s_T, ``final`` takes s_T, and
    ``episode`` draws from s_1 to s_T.

    :param strategy: one of ``EPISODE_STRATEGIES``
    :param elapsed: ``[B]``, t
    :param remaining: ``[B]``, T - t, at least 1
    :param rng: random number generator
    :return: ``[B]``, offset of the chosen state from s_t in steps; zero or negative for s_t or an earlier state
    """
    if strategy == "future":
        return rng.integers(1, remaining + 1)
    if strategy == "final":
        return remaining
    return rng.integers(1, elapsed + remaining + 1) - elapsed


def segment_returns(
    rewards: FloatArray, terminated: BoolArray, lengths: IntArray, gamma: float
) -> tuple[FloatArray, IntArray, BoolArray]:
    """
    n-step returns without bootstrap value: ``sum_{k<m} gamma^k r_k``, where a segment of m steps ends at the first
    termination or at its length.

    :param rewards: ``[B, n]``; entries beyond the length of a segment are ignored
    :param terminated: ``[B, n]``, whether the step terminated the episode
    :param lengths: ``[B]``, steps until the end of the segment or of its episode, from 1 to n
    :param gamma: discount factor
    :return: the sums ``[B]``, the numbers of steps m ``[B]``, and whether the segment ended with a termination ``[B]``
    """
    n = rewards.shape[1]
    inside = np.arange(n) < lengths[:, None]
    ends = terminated & inside
    terminal: BoolArray = np.asarray(ends.any(axis=1))
    steps = np.where(terminal, ends.argmax(axis=1) + 1, lengths)
    discounts = (gamma ** np.arange(n)).astype(rewards.dtype)
    counted = np.where(np.arange(n) < steps[:, None], rewards, 0)
    return counted @ discounts, steps, terminal
