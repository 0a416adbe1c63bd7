"""Critic-free baselines: values computed by hand, slow references, identities, independence of the own episode."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_pg.estimators import baselines
from sb3_pg.estimators.returns import total_returns

Array = npt.NDArray[Any]
PROPERTY = settings(max_examples=100, deadline=None)
DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)


def frozen(array: Array) -> Array:
    """Read-only, so that a function that writes into its input fails."""
    array.setflags(write=False)
    return array


def assert_close(actual: Array, expected: Array, largest: float, dtype: npt.DTypeLike) -> None:
    """Equal up to the rounding of a short sum of numbers no larger than ``largest``."""
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1000 * largest * float(np.finfo(actual.dtype).eps))


@st.composite
def steps_of_episodes(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Weights and episode numbers of steps, in any order; at least two episodes, each with at least one step."""
    n_episodes = draw(st.integers(2, 6))
    more = draw(st.lists(st.integers(0, n_episodes - 1), max_size=20))
    episodes = np.array(draw(st.permutations(list(range(n_episodes)) + more)), dtype=np.intp)
    weights = np.random.default_rng(draw(SEEDS)).normal(size=len(episodes)).astype(draw(DTYPES))
    return frozen(weights), frozen(episodes), n_episodes


@st.composite
def estimates_and_scores(draw: st.DrawFn) -> tuple[Array, Array]:
    """``[K, P]`` estimates and scores; some scores are exactly zero, as for features that an episode never visits."""
    shape = (draw(st.integers(2, 7)), draw(st.integers(1, 4)))
    met = draw(hnp.arrays(bool, shape, elements=st.sampled_from([True, True, False])))
    rng, dtype = np.random.default_rng(draw(SEEDS)), draw(DTYPES)
    # Away from zero, so that no quotient is ill-conditioned.
    scores = np.where(met, rng.choice([-1, 1], size=shape) * rng.uniform(0.5, 2, size=shape), 0).astype(dtype)
    return frozen(rng.normal(size=shape).astype(dtype)), frozen(scores)


# ------------------------------------------------------------------------------------------------------------- episodes


def test_episode_ids_by_hand() -> None:
    # Env 0 terminates at t = 1 and is cut at the end, env 1 is truncated at t = 2, env 2 does not end, env 3 ends with both
    # flags at t = 0 and with a termination in the last row, after which no episode begins.
    terminated = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=bool)
    truncated = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    ids = baselines.episode_ids(terminated, truncated)
    np.testing.assert_array_equal(ids.T, [[0, 0, 1, 1], [2, 2, 2, 3], [4, 4, 4, 4], [5, 6, 6, 6]])
    assert np.issubdtype(ids.dtype, np.integer)


def test_a_done_in_the_last_row_starts_no_episode() -> None:
    ended = np.array([[False, False], [True, True]])
    for terminated, truncated in ((ended, ~ended & False), (~ended & False, ended)):
        np.testing.assert_array_equal(baselines.episode_ids(terminated, truncated), [[0, 1], [0, 1]])


FLAGS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8).flatmap(
    lambda shape: hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 0, 1, 2, 3]))
)


@PROPERTY
@given(flags=FLAGS, seed=SEEDS)
def test_episode_ids_equal_the_slow_reference(flags: Array, seed: int) -> None:
    terminated, truncated = frozen((flags & 1) > 0), frozen((flags & 2) > 0)
    ids = baselines.episode_ids(terminated, truncated)
    np.testing.assert_array_equal(ids, references.episode_ids(terminated, truncated))
    # Consistent with returns.py: the undiscounted sum over an episode is its total return.
    rewards = np.random.default_rng(seed).normal(size=flags.shape)
    sums = np.array([rewards[ids == k].sum() for k in range(ids.max() + 1)])
    np.testing.assert_allclose(sums[ids], total_returns(rewards, terminated, truncated, 1.0), atol=1e-12)


# ------------------------------------------------------------------------------------------------------- leave one out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leave_one_out_means_by_hand(dtype: npt.DTypeLike) -> None:
    # Episode 0 has weights 2 and 4, episode 1 has 9, episode 2 has 1, 3 and 8, in mixed order.
    weights, episodes = np.array([2, 1, 9, 4, 3, 8], dtype=dtype), np.array([0, 2, 1, 0, 2, 2])
    # 0: (9 + 12) / 4 = 5.25; 1: (6 + 12) / 5 = 3.6; 2: (6 + 9) / 3 = 5. Every step counts once, also of longer episodes.
    expected = np.array([5.25, 5, 3.6, 5.25, 5, 5], dtype=dtype)
    result = baselines.leave_one_out_mean(weights, episodes, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-6, strict=True)
    # Of the returns 2, 4, 9: (4 + 9) / 2, (2 + 9) / 2, (2 + 4) / 2
    result = baselines.leave_one_out_mean_per_episode(np.array([2, 4, 9], dtype=dtype))
    np.testing.assert_array_equal(result, np.array([6.5, 5.5, 3], dtype=dtype), strict=True)


@PROPERTY
@given(steps=steps_of_episodes())
def test_leave_one_out_mean_equals_the_slow_reference(steps: tuple[Array, Array, int]) -> None:
    weights, episodes, n_episodes = steps
    expected = references.leave_one_out_mean(weights, episodes)
    result = baselines.leave_one_out_mean(weights, episodes, n_episodes)
    assert_close(result, expected, float(np.abs(weights).max()), weights.dtype)


@PROPERTY
@given(n_episodes=st.integers(2, 20), dtype=DTYPES, seed=SEEDS)
def test_leave_one_out_mean_per_episode_equals_the_slow_reference(n_episodes: int, dtype: npt.DTypeLike, seed: int) -> None:
    episode_returns = frozen(np.random.default_rng(seed).normal(size=n_episodes).astype(dtype))
    expected = references.leave_one_out_mean(episode_returns, np.arange(n_episodes))
    result = baselines.leave_one_out_mean_per_episode(episode_returns)
    assert_close(result, expected, float(np.abs(episode_returns).max()), dtype)


@PROPERTY
@given(steps=steps_of_episodes(), data=st.data(), change=st.floats(-1e3, 1e3))
def test_the_mean_baseline_does_not_depend_on_its_own_episode(
    steps: tuple[Array, Array, int], data: st.DataObject, change: float
) -> None:
    weights, episodes, n_episodes = steps
    own = episodes == data.draw(st.integers(0, n_episodes - 1), label="own episode")
    changed = np.where(own, weights * change + change, weights).astype(weights.dtype)
    before, after = (baselines.leave_one_out_mean(w, episodes, n_episodes) for w in (weights, changed))
    largest = max(float(np.abs(weights).max()), 1.0) * max(1.0, abs(change))
    assert_close(after[own], before[own], largest, weights.dtype)
    # It is the same for every step of the episode, and the baselines of all other episodes change.
    assert np.ptp(before[own]) == 0
    moved = abs(float(changed[own].astype(float).sum() - weights[own].astype(float).sum())) / len(weights)
    shift = np.abs(after[~own].astype(float) - before[~own])
    assert np.all(shift >= moved - 1000 * largest * float(np.finfo(weights.dtype).eps))


@PROPERTY
@given(steps=steps_of_episodes(), constant=st.integers(-8, 8))
def test_the_mean_of_equal_weights_is_that_weight(steps: tuple[Array, Array, int], constant: int) -> None:
    weights, episodes, n_episodes = steps
    equal = np.full_like(weights, constant)
    np.testing.assert_array_equal(baselines.leave_one_out_mean(equal, episodes, n_episodes), equal, strict=True)


@pytest.mark.parametrize("n_episodes", [0, 1])
def test_a_mean_over_other_episodes_needs_two_episodes(n_episodes: int) -> None:
    with pytest.raises(ValueError, match="two episodes"):
        baselines.leave_one_out_mean(np.ones(n_episodes), np.zeros(n_episodes, dtype=int), n_episodes)
    with pytest.raises(ValueError, match="two episodes"):
        baselines.leave_one_out_mean_per_episode(np.ones(n_episodes))


@pytest.mark.parametrize(
    ("n_weights", "episodes", "n_episodes"),
    [
        (3, [0, 0, 0], 2),  # episode 1 has no step
        (3, [0, 2, 2], 3),  # episode 1 has no step
        (3, [0, 1, 2], 2),  # a number too large
        (3, [0, 1, -1], 2),  # a negative number
        (2, [0, 1, 1], 2),  # fewer weights than numbers
        (4, [0, 1, 1], 2),  # more weights than numbers
        (0, [], 2),  # no step at all
    ],
)
def test_invalid_episode_numbers_are_rejected(n_weights: int, episodes: list[int], n_episodes: int) -> None:
    with pytest.raises(ValueError, match=r"episodes|length|negative"):
        baselines.leave_one_out_mean(np.ones(n_weights), np.array(episodes, dtype=np.intp), n_episodes)


# ------------------------------------------------------------------------------------------------------------- optimal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimal_baseline_by_hand(dtype: npt.DTypeLike) -> None:
    # Three episodes, two parameters. First parameter: x = 4, 6, 2 and g = 2, 1, -1, so x g = 8, 6, -2 and g^2 = 4, 1, 1:
    # b = (6 - 2) / (1 + 1), (8 - 2) / (4 + 1), (8 + 6) / (4 + 1). Second: g = 0, 0, 2 and x = 1, 5, 6: x g = 0, 0, 12:
    # b = 12 / 4, 12 / 4, and 0 / 0 = 0 for the last episode.
    estimates, scores = np.array([[4, 1], [6, 5], [2, 6]], dtype=dtype), np.array([[2, 0], [1, 0], [-1, 2]], dtype=dtype)
    expected = np.array([[2, 3], [6 / 5, 3], [14 / 5, 0]], dtype=dtype)
    np.testing.assert_allclose(baselines.optimal_baseline(estimates, scores), expected, rtol=1e-6, strict=True)


@PROPERTY
@given(batch=estimates_and_scores())
def test_optimal_baseline_equals_the_slow_reference(batch: tuple[Array, Array]) -> None:
    estimates, scores = batch
    result = baselines.optimal_baseline(estimates, scores)
    # The denominators are 0 or at least 1/4 (one score of 1/2).
    assert_close(result, references.optimal_baseline(estimates, scores), 4 * float(np.abs(estimates).max()), estimates.dtype)


@PROPERTY
@given(batch=estimates_and_scores())
def test_optimal_baseline_minimises_the_squares_of_the_other_episodes(batch: tuple[Array, Array]) -> None:
    estimates, scores = batch[0].astype(float), batch[1].astype(float)
    result = baselines.optimal_baseline(estimates, scores)
    for k, p in np.ndindex(result.shape):
        x, g = np.delete(estimates[:, p], k), np.delete(scores[:, p], k)
        # lstsq returns the solution of least norm, which is 0 where every score is 0.
        best = np.linalg.lstsq(g[:, None], x, rcond=None)[0]
        np.testing.assert_allclose(result[k, p], best[0], rtol=1e-9, atol=1e-9)


@PROPERTY
@given(batch=estimates_and_scores(), reward=st.integers(-8, 8))
def test_equal_returns_are_their_own_optimal_baseline(batch: tuple[Array, Array], reward: int) -> None:
    _, scores = batch
    result = baselines.optimal_baseline(reward * scores, scores)
    others_met = (scores != 0).sum(axis=0) - (scores != 0) > 0
    assert_close(result, np.where(others_met, reward, 0), 8.0, scores.dtype)


@PROPERTY
@given(batch=estimates_and_scores(), power=st.integers(-3, 3))
def test_the_optimal_baseline_scales_with_estimates_and_against_scores(batch: tuple[Array, Array], power: int) -> None:
    estimates, scores = batch
    factor = estimates.dtype.type(2.0**power)  # a power of two: exact
    result = baselines.optimal_baseline(estimates, scores)
    np.testing.assert_array_equal(baselines.optimal_baseline(factor * estimates, scores), factor * result)
    np.testing.assert_array_equal(baselines.optimal_baseline(estimates, factor * scores), result / factor)


@PROPERTY
@given(batch=estimates_and_scores(), data=st.data(), change=st.sampled_from([0.0, -3.0, 1e6, 1e12]))
def test_the_optimal_baseline_does_not_depend_on_its_own_episode(
    batch: tuple[Array, Array], data: st.DataObject, change: float
) -> None:
    # Exactly, however large the own episode is: a difference of sums would lose precision.
    estimates, scores = batch
    own = data.draw(st.integers(0, len(estimates) - 1), label="own episode")
    changed_estimates, changed_scores = estimates.copy(), scores.copy()
    changed_estimates[own] = change * estimates[own] + change
    changed_scores[own] = change * scores[own] - change
    before = baselines.optimal_baseline(estimates, scores)
    after = baselines.optimal_baseline(changed_estimates, changed_scores)
    np.testing.assert_array_equal(after[own], before[own])


def test_an_optimal_baseline_needs_two_episodes() -> None:
    for n_episodes in (0, 1):
        with pytest.raises(ValueError, match="two episodes"):
            baselines.optimal_baseline(np.ones((n_episodes, 3)), np.ones((n_episodes, 3)))


# --------------------------------------------------------------------------------------------------------- standardize


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardize_by_hand(dtype: npt.DTypeLike) -> None:
    # 1, 2, 6: mean 3, squared deviations 4, 1, 9, sample variance 14 / 2 = 7
    expected = np.array([[-2, -1, 3]], dtype=dtype) / np.sqrt(np.array(7, dtype=dtype))
    result = baselines.standardize(np.array([[1, 2, 6]], dtype=dtype))
    np.testing.assert_allclose(result, expected, rtol=1e-6, strict=True)


def test_standardize_handles_a_deviation_of_zero() -> None:
    np.testing.assert_array_equal(baselines.standardize(np.full((3, 2), 5.0)), np.zeros((3, 2)))
    # -1e-8, 1e-8: deviation sqrt(2) 1e-8, and 1e-8 is added to it: 1 / (1 + sqrt 2)
    result = baselines.standardize(np.array([-1e-8, 1e-8]))
    np.testing.assert_allclose(result, np.array([-1, 1]) / (1 + np.sqrt(2)), rtol=1e-9)


@PROPERTY
@given(shape=hnp.array_shapes(min_dims=1, max_dims=2, min_side=2, max_side=9), dtype=DTYPES, seed=SEEDS)
def test_standardized_weights_have_mean_zero_and_deviation_one(
    shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int
) -> None:
    # Distinct integers: their deviation is at least sqrt(1/2), whatever the draw.
    weights = frozen(np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(dtype))
    result = baselines.standardize(weights)
    assert result.shape == weights.shape
    assert result.dtype == weights.dtype
    # Over all entries at once, not column by column; the sample deviation divides by the size minus 1.
    eps = float(np.finfo(result.dtype).eps)
    assert abs(float(result.sum())) < 1000 * weights.size * eps
    np.testing.assert_allclose(float((result.astype(float) ** 2).sum()), weights.size - 1, rtol=1e-7 + 1000 * eps)
    np.testing.assert_array_equal(np.argsort(result, axis=None), np.argsort(weights, axis=None))


@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (0, 3)])
def test_standardize_needs_two_entries(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        baselines.standardize(np.ones(shape))


@pytest.mark.parametrize("value", [0.1, 1000.3])
def test_standardized_constants_are_zero(value: float) -> None:
    assert np.abs(baselines.standardize(np.full(100, value, dtype=np.float32))).max() < 1e-6


def test_integers_and_wrong_shapes_are_rejected() -> None:
    with pytest.raises(ValueError, match="floating point"):
        baselines.leave_one_out_mean_per_episode(np.array([1, 2, 4]))
    with pytest.raises(ValueError, match=r"\[K, P\]"):
        baselines.optimal_baseline(np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        baselines.episode_ids(np.zeros((3, 2), dtype=bool), np.zeros((3, 1), dtype=bool))
