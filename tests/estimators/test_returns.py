"""Returns and advantages: values computed by hand, slow references, identities, cut trajectories, invalid input."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_pg.estimators import returns

Array = npt.NDArray[Any]
NAN = float("nan")
PROPERTY = settings(max_examples=60, deadline=None)

# The positional arguments of each function, in the documented order.
CASES = {
    "lambda_returns": "rewards next_values terminated truncated gamma lambda_",
    "gae": "rewards values next_values terminated truncated gamma lambda_",
    "n_step_returns": "rewards next_values terminated truncated gamma n",
    "reward_to_go": "rewards terminated truncated gamma",
    "reward_to_go, bootstrapped": "rewards terminated truncated gamma next_values",
    "total_returns": "rewards terminated truncated gamma",
    "retrace_returns": "rewards q_values next_state_values importance_ratios terminated truncated gamma lambda_",
}
BOOTSTRAPPED = ["lambda_returns", "gae", "n_step_returns", "reward_to_go, bootstrapped", "retrace_returns"]
FLOATS = ("rewards", "values", "next_values", "q_values", "next_state_values", "importance_ratios")
LINEAR = FLOATS[:-1]  # results are linear in these together
FLAGS = ("terminated", "truncated")


@dataclass(frozen=True)
class Rollout:
    """All arrays that estimators take, each ``[T, N]``."""

    rewards: Array
    values: Array
    next_values: Array
    q_values: Array
    next_state_values: Array
    importance_ratios: Array
    terminated: Array
    truncated: Array

    @property
    def done(self) -> Array:
        return np.asarray(self.terminated | self.truncated)

    def map(self, function: Callable[[Array], Array]) -> "Rollout":
        return Rollout(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def rows(self, start: int | None = None, stop: int | None = None) -> "Rollout":
        return self.map(lambda array: array[start:stop])

    def env(self, i: int) -> "Rollout":
        return self.map(lambda array: array[:, i : i + 1])


@dataclass(frozen=True)
class Parameters:
    """All numbers that estimators take."""

    gamma: float
    lambda_: float = 1.0
    n: int | np.integer[Any] = 1


def compute(case: str, rollout: Rollout, parameters: Parameters, module: ModuleType = returns) -> Array:
    """Call the function of a case with its positional arguments."""
    function = getattr(module, case.split(",")[0])
    source = {**vars(rollout), **vars(parameters)}
    return np.asarray(function(*(source[name] for name in CASES[case].split())))


def join(first: Rollout, second: Rollout, axis: int) -> Rollout:
    pairs = {field.name: (getattr(first, field.name), getattr(second, field.name)) for field in fields(first)}
    return Rollout(**{name: np.concatenate(pair, axis=axis) for name, pair in pairs.items()})


def with_last_row(array: Array, row: Array) -> Array:
    return np.concatenate([array[:-1], row[None].astype(array.dtype)])


def make_rollout(terminated: Array, truncated: Array, dtype: npt.DTypeLike, seed: int) -> Rollout:
    """
    Random numbers for the given flags: ``values[t + 1] == next_values[t]`` within an episode, next values of terminated
    steps NaN, and all arrays read-only, so that an estimator that writes into its input fails.
    """
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=terminated.shape).astype(dtype) for name in FLOATS}
    arrays["importance_ratios"] = np.exp(arrays["importance_ratios"])
    done = terminated | truncated
    arrays["values"][1:] = np.where(done[:-1], arrays["values"][1:], arrays["next_values"][:-1])
    arrays["next_values"][terminated] = NAN
    arrays["next_state_values"][terminated] = NAN
    arrays["q_values"][0] = NAN  # the action values and ratios of row 0 are not used
    arrays["importance_ratios"][0] = NAN
    for array in (*arrays.values(), terminated, truncated):
        array.setflags(write=False)
    return Rollout(**arrays, terminated=terminated, truncated=truncated)


def tolerance(rollout: Rollout) -> float:
    """
    A generous bound on the rounding error: a result is a sum of at most 3 (T + 1) terms, none of them larger than the
    largest entry (all factors are in [0, 1]), each rounded at most 4 (T + 1) times.
    """
    largest = max(1.0, *(float(np.nanmax(np.abs(getattr(rollout, name)), initial=0.0)) for name in LINEAR))
    return 48 * (len(rollout.rewards) + 1) ** 2 * largest * float(np.finfo(rollout.rewards.dtype).eps)


def assert_close(actual: Array, expected: Array, rollout: Rollout) -> None:
    """Equal up to rounding, without NaN, in the dtype of the rewards."""
    assert actual.dtype == rollout.rewards.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance(rollout), equal_nan=False)


def steps_left(done: Array) -> Array:
    """Number of steps up to the end of the episode or the array, including this one."""
    left = np.ones(done.shape, dtype=int)
    for t in reversed(range(len(done) - 1)):
        left[t] += np.where(done[t], 0, left[t + 1])
    return left


@st.composite
def rollouts(draw: st.DrawFn, min_steps: int = 1, max_steps: int = 18, n_envs: int | None = None) -> Rollout:
    """Any pattern of terminations and truncations, including both at once, in float32 and float64."""
    shape = (draw(st.integers(min_steps, max_steps)), n_envs or draw(st.integers(1, 3)))
    flags = draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3])))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return make_rollout((flags & 1) > 0, (flags & 2) > 0, dtype, draw(st.integers(0, 2**32 - 1)))


UNIT_INTERVAL = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]), st.floats(0, 1))
PARAMETERS = st.builds(Parameters, gamma=UNIT_INTERVAL, lambda_=UNIT_INTERVAL, n=st.integers(1, 20))


# ------------------------------------------------------------------------------------------------ values computed by hand

# Two environments, four steps. Environment 0 terminates at t = 1 and is cut by the end of the array at t = 3. Environment 1
# is truncated at t = 2 and cut at t = 3. With gamma = lambda = 1/2 every number below is exact in binary.
HALF = Parameters(gamma=0.5, lambda_=0.5, n=2)


def hand_rollout(dtype: npt.DTypeLike) -> Rollout:
    columns = {
        "rewards": ([1, 2, 3, 4], [1, 0, 2, 4]),
        "values": ([2, 8, 6, 4], [6, 6, 4, 10]),
        "next_values": ([8, NAN, 4, 16], [6, 4, 12, 2]),
        "next_state_values": ([8, NAN, 4, 16], [6, 4, 12, 2]),
        "q_values": ([NAN, 4, 100, 8], [NAN, 5, 4, 7]),
        "importance_ratios": ([NAN, 0.5, 100, 4], [NAN, 2, 0.5, 1]),
    }
    flags = {"terminated": ([0, 1, 0, 0], [0, 0, 0, 0]), "truncated": ([0, 0, 0, 0], [0, 0, 1, 0])}
    return Rollout(
        **{name: np.array(pair, dtype=dtype).T for name, pair in columns.items()},
        **{name: np.array(pair, dtype=bool).T for name, pair in flags.items()},
    )


BY_HAND = {
    # G_t = r_t + 1/2 (1/2 v_{t+1} + 1/2 G_{t+1}) inside an episode.
    # env 0: G_3 = 4 + 16/2 (cut) = 12, G_2 = 3 + (4/2 + 12/2)/2 = 7, G_1 = 2 (terminated), G_0 = 1 + (8/2 + 2/2)/2
    # env 1: G_3 = 4 + 2/2 (cut) = 5, G_2 = 2 + 12/2 (truncated) = 8, G_1 = 0 + (4/2 + 8/2)/2 = 3, G_0 = 1 + (6/2 + 3/2)/2
    "lambda_returns": ([3.5, 2, 7, 12], [3.25, 3, 8, 5]),
    # A_t = delta_t + 1/4 A_{t+1} inside an episode.
    # env 0: delta = 1 + 4 - 2 = 3, 2 - 8 = -6, 3 + 2 - 6 = -1, 4 + 8 - 4 = 8; A_3 = 8, A_2 = -1 + 2, A_1 = -6, A_0 = 3 - 1.5
    # env 1: delta = 1 + 3 - 6 = -2, 0 + 2 - 6 = -4, 2 + 6 - 4 = 4, 4 + 1 - 10 = -5; A_1 = -4 + 1 = -3, A_0 = -2 - 0.75
    "gae": ([1.5, -6, 1, 8], [-2.75, -3, 4, -5]),
    # env 0: 1 + 2/2 (terminated); 2; 3 + 4/2 + 16/4 (the cut is 2 steps ahead); 4 + 16/2
    # env 1: 1 + 0/2 + 4/4; 0 + 2/2 + 12/4; 2 + 12/2 (truncated); 4 + 2/2
    "n_step_returns": ([2, 2, 9, 12], [2, 4, 8, 5]),
    # env 0: 1 + 2/2; 2; 3 + 4/2; 4        env 1: 1 + 0/2 + 2/4; 0 + 2/2; 2; 4
    "reward_to_go": ([2, 2, 5, 4], [1.5, 1, 2, 4]),
    # env 0: 2; 2; 5 + 16/4; 4 + 16/2      env 1: 1.5 + 12/8; 1 + 12/4; 2 + 12/2; 4 + 2/2
    "reward_to_go, bootstrapped": ([2, 2, 9, 12], [3, 4, 8, 5]),
    # the episodes of env 0 are rows 0-1 and 2-3, those of env 1 rows 0-2 and 3
    "total_returns": ([2, 2, 5, 5], [1.5, 1.5, 1.5, 4]),
    # G_t = r_t + 1/2 (V'_t + c_{t+1} (G_{t+1} - Q_{t+1})) inside an episode, c = 1/2 min(1, rho).
    # env 0: c_1 = 1/4, c_3 = 1/2: G_3 = 4 + 16/2 = 12, G_2 = 3 + (4 + (12 - 8)/2)/2, G_1 = 2, G_0 = 1 + (8 + (2 - 4)/4)/2
    # env 1: c_1 = 1/2, c_2 = 1/4: G_3 = 4 + 2/2, G_2 = 2 + 12/2, G_1 = (4 + (8 - 4)/4)/2 = 2.5, G_0 = 1 + (6 + (2.5 - 5)/2)/2
    "retrace_returns": ([4.75, 2, 6, 12], [3.375, 2.5, 8, 5]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_values_computed_by_hand(case: str, dtype: npt.DTypeLike) -> None:
    expected = np.array(BY_HAND[case], dtype=dtype).T
    np.testing.assert_array_equal(compute(case, hand_rollout(dtype), HALF), expected, strict=True)


def test_n_step_returns_by_hand_for_other_look_aheads() -> None:
    # One episode of rewards 1, 2, 4, 8 cut at the end; next values 16, 32, 64, 128; gamma = 1/2.
    rewards, next_values = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([[16.0], [32.0], [64.0], [128.0]])
    going = np.zeros((4, 1), dtype=bool)
    one, three, four = (returns.n_step_returns(rewards, next_values, going, going, 0.5, n)[:, 0] for n in (1, 3, 4))
    np.testing.assert_array_equal(one, [1 + 8, 2 + 16, 4 + 32, 8 + 64])
    # 1 + 2/2 + 4/4 + 64/8; 2 + 4/2 + 8/4 + 128/8; then only 2 and 1 rewards are left: 4 + 8/2 + 128/4; 8 + 128/2
    np.testing.assert_array_equal(three, [11, 22, 40, 72])
    # 1 + 2/2 + 4/4 + 8/8 + 128/16
    np.testing.assert_array_equal(four, [12, 22, 40, 72])


def test_terminated_takes_precedence_if_both_flags_are_set() -> None:
    both = np.array([[True], [False]])
    rollout = replace(make_rollout(both, both, np.float64, seed=0), rewards=np.array([[2.0], [3.0]]))
    parameters = Parameters(gamma=0.5, lambda_=0.5, n=2)
    for case in ["lambda_returns", "n_step_returns", "reward_to_go, bootstrapped", "retrace_returns"]:
        assert compute(case, rollout, parameters)[0, 0] == 2.0


def test_episode_start_rows_by_hand() -> None:
    done = np.array([[0, 1], [1, 0], [0, 0], [0, 1]], dtype=bool)
    np.testing.assert_array_equal(returns.episode_start_rows(done), [[0, 0], [0, 1], [2, 1], [2, 1]])


# ------------------------------------------------------------------------------------------------------ slow references


@pytest.mark.parametrize("case", CASES)
@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_equals_the_slow_reference(case: str, rollout: Rollout, parameters: Parameters) -> None:
    assert_close(compute(case, rollout, parameters), compute(case, rollout, parameters, references), rollout)


@PROPERTY
@given(rollout=rollouts())
def test_episode_start_rows_equal_the_slow_reference(rollout: Rollout) -> None:
    np.testing.assert_array_equal(returns.episode_start_rows(rollout.done), references.episode_start_rows(rollout.done))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_steps", [127, 128, 129])
def test_equals_the_slow_reference_on_a_long_rollout(case: str, n_steps: int) -> None:
    rng = np.random.default_rng(n_steps)
    terminated, truncated = rng.random((2, n_steps, 1)) < 0.01
    rollout, parameters = make_rollout(terminated, truncated, np.float64, seed=n_steps), Parameters(0.99, 0.97, n=70)
    assert_close(compute(case, rollout, parameters), compute(case, rollout, parameters, references), rollout)


# ----------------------------------------------------------------------------------------------------------- identities


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS, other=st.integers(0, 99))
def test_gae_is_the_lambda_return_minus_the_value(rollout: Rollout, parameters: Parameters, other: int) -> None:
    # This holds for any values, even if they contradict next_values.
    values = np.random.default_rng(other).normal(size=rollout.rewards.shape).astype(rollout.rewards.dtype)
    for critic in (rollout, replace(rollout, values=values)):
        assert_close(compute("gae", critic, parameters), compute("lambda_returns", critic, parameters) - critic.values, critic)


@PROPERTY
@given(rollout=rollouts(), gamma=UNIT_INTERVAL)
def test_lambda_one_is_the_bootstrapped_reward_to_go(rollout: Rollout, gamma: float) -> None:
    to_go = compute("reward_to_go, bootstrapped", rollout, Parameters(gamma))
    assert_close(compute("lambda_returns", rollout, Parameters(gamma, lambda_=1.0)), to_go, rollout)


@PROPERTY
@given(rollout=rollouts(), gamma=UNIT_INTERVAL)
def test_lambda_zero_and_n_one_are_the_one_step_target(rollout: Rollout, gamma: float) -> None:
    target = rollout.rewards + gamma * np.where(rollout.terminated, 0, rollout.next_values)
    parameters = Parameters(gamma, lambda_=0.0, n=1)
    for case in ["lambda_returns", "n_step_returns"]:
        assert_close(compute(case, rollout, parameters), target, rollout)
    assert_close(compute("gae", rollout, parameters), target - rollout.values, rollout)
    retrace_target = rollout.rewards + gamma * np.where(rollout.terminated, 0, rollout.next_state_values)
    assert_close(compute("retrace_returns", rollout, parameters), retrace_target, rollout)


@PROPERTY
@given(rollout=rollouts(), gamma=UNIT_INTERVAL, excess=st.sampled_from([0, 1, 10**12]))
def test_n_of_at_least_t_is_lambda_one(rollout: Rollout, gamma: float, excess: int) -> None:
    n_step = compute("n_step_returns", rollout, Parameters(gamma, n=len(rollout.rewards) + excess))
    assert_close(n_step, compute("lambda_returns", rollout, Parameters(gamma, lambda_=1.0)), rollout)


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_the_lambda_return_averages_the_n_step_returns(rollout: Rollout, parameters: Parameters) -> None:
    # (1 - lambda) sum_{n<T} lambda^(n-1) G^(n) + lambda^(T-1) G^(T), because G^(n) stays G^(m) from the end of the episode on.
    n_steps, lambda_ = len(rollout.rewards), parameters.lambda_
    weights = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, n_steps)] + [lambda_ ** (n_steps - 1)]
    n_step = [compute("n_step_returns", rollout, replace(parameters, n=n)) for n in range(1, n_steps + 1)]
    average = sum(weight * column for weight, column in zip(weights, n_step, strict=True))
    assert_close(compute("lambda_returns", rollout, parameters), np.asarray(average), rollout)


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_gamma_zero_leaves_the_rewards(rollout: Rollout, parameters: Parameters) -> None:
    parameters = replace(parameters, gamma=0.0)
    for case in set(CASES) - {"gae", "total_returns"}:
        np.testing.assert_array_equal(compute(case, rollout, parameters), rollout.rewards, strict=True)
    np.testing.assert_array_equal(compute("gae", rollout, parameters), rollout.rewards - rollout.values, strict=True)
    first_rewards = np.take_along_axis(rollout.rewards, references.episode_start_rows(rollout.done), axis=0)
    np.testing.assert_array_equal(compute("total_returns", rollout, parameters), first_rewards, strict=True)


@PROPERTY
@given(rollout=rollouts(), gamma=UNIT_INTERVAL)
def test_the_total_return_is_the_first_reward_to_go_of_its_episode(rollout: Rollout, gamma: float) -> None:
    total, to_go = (compute(case, rollout, Parameters(gamma)) for case in ("total_returns", "reward_to_go"))
    starts = np.concatenate([np.ones_like(rollout.done[:1]), rollout.done[:-1]])
    assert_close(total[starts], to_go[starts], rollout)
    same_episode = ~starts[1:]
    np.testing.assert_array_equal(total[1:][same_episode], total[:-1][same_episode])


@PROPERTY
@given(rollout=rollouts(), gamma=UNIT_INTERVAL)
def test_no_bootstrap_equals_values_of_zero(rollout: Rollout, gamma: float) -> None:
    zeros = replace(rollout, next_values=np.zeros_like(rollout.rewards))
    with_zeros = compute("reward_to_go, bootstrapped", zeros, Parameters(gamma))
    np.testing.assert_array_equal(compute("reward_to_go", rollout, Parameters(gamma)), with_zeros, strict=True)


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_retrace_does_not_distinguish_ratios_above_one(rollout: Rollout, parameters: Parameters) -> None:
    ratios = rollout.importance_ratios
    clipped = replace(rollout, importance_ratios=np.minimum(ratios, 1))
    raised = replace(rollout, importance_ratios=np.where(ratios >= 1, np.inf, ratios))
    expected = compute("retrace_returns", rollout, parameters)
    for same in (clipped, raised):
        np.testing.assert_array_equal(compute("retrace_returns", same, parameters), expected, strict=True)


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_retrace_on_policy_is_the_lambda_return(rollout: Rollout, parameters: Parameters) -> None:
    # rho = 1 and V'_t = Q(s_{t+1}, a_{t+1}): on-policy, with the value estimated by the action taken.
    on_policy = replace(
        rollout,
        importance_ratios=np.ones_like(rollout.rewards),
        q_values=rollout.values,
        next_state_values=rollout.next_values,
    )
    assert_close(compute("retrace_returns", on_policy, parameters), compute("lambda_returns", on_policy, parameters), rollout)


@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS)
def test_retrace_with_ratios_of_zero_is_the_one_step_target(rollout: Rollout, parameters: Parameters) -> None:
    impossible = replace(rollout, importance_ratios=np.zeros_like(rollout.rewards))
    target = compute("retrace_returns", rollout, replace(parameters, lambda_=0.0))
    assert_close(compute("retrace_returns", impossible, parameters), target, rollout)


@pytest.mark.parametrize("case", CASES)
@PROPERTY
@given(rollout=rollouts(), parameters=PARAMETERS, other=st.integers(0, 99), scale=st.integers(-3, 3))
def test_linear_in_rewards_and_values(case: str, rollout: Rollout, parameters: Parameters, other: int, scale: int) -> None:
    second = make_rollout(rollout.terminated, rollout.truncated, rollout.rewards.dtype, other)
    second = replace(second, importance_ratios=rollout.importance_ratios)
    combined = replace(rollout, **{name: scale * getattr(rollout, name) + getattr(second, name) for name in LINEAR})
    expected = scale * compute(case, rollout, parameters) + compute(case, second, parameters)
    atol = tolerance(combined) + abs(scale) * tolerance(rollout) + tolerance(second)
    np.testing.assert_allclose(compute(case, combined, parameters), expected, rtol=0, atol=atol)


def endless_rollout(gamma: float) -> Rollout:
    """Reward 1 at every step, truncated at random, with the exact critic ``1 / (1 - gamma)``."""
    truncated = np.random.default_rng(0).random((300, 2)) < 0.05
    one, worth = np.ones(truncated.shape), np.full(truncated.shape, 1 / (1 - gamma))
    return Rollout(one, worth, worth, worth, worth, 2 * one, np.zeros_like(truncated), truncated)


@pytest.mark.parametrize("case", BOOTSTRAPPED)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_a_constant_reward_is_worth_the_geometric_series(case: str, gamma: float) -> None:
    rollout = endless_rollout(gamma)
    expected = np.zeros_like(rollout.values) if case == "gae" else rollout.values
    result = compute(case, rollout, Parameters(gamma, lambda_=0.9, n=7))
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_a_constant_reward_without_bootstrap_is_worth_a_finite_series(gamma: float) -> None:
    rollout = endless_rollout(gamma)
    left = steps_left(rollout.done)
    to_go, total = (compute(case, rollout, Parameters(gamma)) for case in ("reward_to_go", "total_returns"))
    np.testing.assert_allclose(to_go, (1 - gamma**left) / (1 - gamma), rtol=1e-9)
    lengths = np.take_along_axis(left, references.episode_start_rows(rollout.done), axis=0)
    np.testing.assert_allclose(total, (1 - gamma**lengths) / (1 - gamma), rtol=1e-9)


# ------------------------------------------------------------------------------------------ cut and joined trajectories


@pytest.mark.parametrize("case", CASES)
@PROPERTY
@given(rollout=rollouts(n_envs=3), parameters=PARAMETERS)
def test_environments_are_independent(case: str, rollout: Rollout, parameters: Parameters) -> None:
    whole = compute(case, rollout, parameters)
    for i in range(3):
        assert_close(whole[:, i : i + 1], compute(case, rollout.env(i), parameters), rollout)


@pytest.mark.parametrize("case", CASES)
@PROPERTY
@given(first=rollouts(n_envs=2, max_steps=9), seed=st.integers(0, 99), data=st.data(), parameters=PARAMETERS)
def test_a_done_separates_joined_trajectories(
    case: str, first: Rollout, seed: int, data: st.DataObject, parameters: Parameters
) -> None:
    # The results of both halves are unchanged, since the first one ends with a done.
    ended = data.draw(hnp.arrays(bool, 2), label="terminated rather than truncated")
    terminated, truncated = with_last_row(first.terminated, ended), with_last_row(first.truncated, ~ended)
    first = make_rollout(terminated, truncated, first.rewards.dtype, seed)
    flags = np.random.default_rng(seed).random((2, 7, 2)) < 0.1
    second = make_rollout(flags[0], flags[1], first.rewards.dtype, seed + 1)
    # Row 0 of the second half has NaN action values, which are never read there; inside an array they must be numbers.
    inside = replace(
        second, q_values=np.nan_to_num(second.q_values), importance_ratios=np.nan_to_num(second.importance_ratios)
    )
    joined = join(first, inside, axis=0)
    alone = [compute(case, half, parameters) for half in (first, second)]
    assert_close(compute(case, joined, parameters), np.concatenate(alone), joined)


def halves(rollout: Rollout, data: st.DataObject) -> tuple[int, Rollout, Rollout]:
    cut = data.draw(st.integers(1, len(rollout.rewards) - 1), label="cut")
    return cut, rollout.rows(stop=cut), rollout.rows(start=cut)


@PROPERTY
@given(rollout=rollouts(min_steps=2), gamma=UNIT_INTERVAL, data=st.data())
def test_a_cut_bootstraps_with_the_return_of_the_second_half(rollout: Rollout, gamma: float, data: st.DataObject) -> None:
    _, first, second = halves(rollout, data)
    parameters = Parameters(gamma, lambda_=1.0, n=len(rollout.rewards))
    for case in ["lambda_returns", "n_step_returns", "reward_to_go, bootstrapped"]:
        after = compute(case, second, parameters)
        bootstrap = np.where(first.done[-1], first.next_values[-1], after[0])
        before = compute(case, replace(first, next_values=with_last_row(first.next_values, bootstrap)), parameters)
        assert_close(np.concatenate([before, after]), compute(case, rollout, parameters), rollout)


@PROPERTY
@given(rollout=rollouts(min_steps=2), gamma=UNIT_INTERVAL, data=st.data())
def test_a_cut_without_bootstrap_loses_only_the_second_half(rollout: Rollout, gamma: float, data: st.DataObject) -> None:
    cut, first, second = halves(rollout, data)
    before, after = (compute("reward_to_go", half, Parameters(gamma)) for half in (first, second))
    left = steps_left(first.done)
    reaches_the_cut = (left + np.arange(cut)[:, None] == cut) & ~first.done[-1]
    lost = np.where(reaches_the_cut, gamma**left * after[0], 0)
    assert_close(compute("reward_to_go", rollout, Parameters(gamma)), np.concatenate([before + lost, after]), rollout)


@PROPERTY
@given(rollout=rollouts(min_steps=2), parameters=PARAMETERS, data=st.data())
def test_lambda_returns_and_gae_continue_across_a_cut(rollout: Rollout, parameters: Parameters, data: st.DataObject) -> None:
    _, first, second = halves(rollout, data)
    after, lambda_ = compute("lambda_returns", second, parameters), parameters.lambda_
    mixture = (1 - lambda_) * first.next_values[-1] + lambda_ * after[0]
    bootstrap = np.where(first.done[-1], first.next_values[-1], mixture)
    first = replace(first, next_values=with_last_row(first.next_values, bootstrap))
    for case in ["lambda_returns", "gae"]:
        halved = np.concatenate([compute(case, half, parameters) for half in (first, second)])
        assert_close(halved, compute(case, rollout, parameters), rollout)


@PROPERTY
@given(rollout=rollouts(min_steps=2), parameters=PARAMETERS, data=st.data())
def test_retrace_returns_continue_across_a_cut(rollout: Rollout, parameters: Parameters, data: st.DataObject) -> None:
    _, first, second = halves(rollout, data)
    after = compute("retrace_returns", second, parameters)
    trace = parameters.lambda_ * np.minimum(second.importance_ratios[0], 1)
    continued = first.next_state_values[-1] + trace * (after[0] - second.q_values[0])
    bootstrap = np.where(first.done[-1], first.next_state_values[-1], continued)
    first = replace(first, next_state_values=with_last_row(first.next_state_values, bootstrap))
    before = compute("retrace_returns", first, parameters)
    assert_close(np.concatenate([before, after]), compute("retrace_returns", rollout, parameters), rollout)


@PROPERTY
@given(rollout=rollouts(min_steps=2), parameters=PARAMETERS, data=st.data())
def test_n_step_returns_continue_across_a_cut(rollout: Rollout, parameters: Parameters, data: st.DataObject) -> None:
    cut, first, second = halves(rollout, data)
    whole, n = compute("n_step_returns", rollout, parameters), parameters.n
    assert_close(whole[cut:], compute("n_step_returns", second, parameters), rollout)
    for distance in range(1, cut + 1):  # of the row to the cut
        if distance < n:
            beyond = compute("n_step_returns", second, replace(parameters, n=n - distance))[0]
            bootstrap = np.where(first.done[-1], first.next_values[-1], beyond)
        else:
            bootstrap = first.next_values[-1]
        half = replace(first, next_values=with_last_row(first.next_values, bootstrap))
        assert_close(whole[cut - distance], compute("n_step_returns", half, parameters)[cut - distance], rollout)


# -------------------------------------------------------------------------------------------------------- invalid input

ARRAY_ARGUMENTS = [(case, name) for case, names in CASES.items() for name in names.split() if name in FLOATS + FLAGS]


def reject(case: str, rollout: Rollout, match: str, parameters: Parameters = HALF) -> None:
    with pytest.raises(ValueError, match=match):
        compute(case, rollout, parameters)


@pytest.mark.parametrize(("case", "name"), ARRAY_ARGUMENTS)
def test_a_wrong_rank_or_shape_is_rejected(case: str, name: str) -> None:
    rollout = hand_rollout(np.float64)
    array = getattr(rollout, name)
    for wrong in (array[:, 0], array[..., None], np.array(array[0, 0]), array.tolist()):
        reject(case, replace(rollout, **{name: wrong}), rf"{name} .*\[T, N\]")
    # If the shape of rewards is wrong, the message names the first of the other arrays.
    for wrong in (array[1:], array[:, :1], array[:1], array.T[:, :2]):
        reject(
            case, replace(rollout, **{name: wrong}), "shape of rewards" if name == "rewards" else f"{name} .*shape of rewards"
        )


@pytest.mark.parametrize("case", CASES)
def test_an_empty_array_is_rejected(case: str) -> None:
    rollout = hand_rollout(np.float64)
    reject(case, rollout.rows(stop=0), "rewards .*non-empty")
    reject(case, rollout.map(lambda array: array[:, :0]), "rewards .*non-empty")


@pytest.mark.parametrize(("case", "name"), ARRAY_ARGUMENTS)
def test_a_wrong_dtype_is_rejected(case: str, name: str) -> None:
    rollout = hand_rollout(np.float64)
    array = np.nan_to_num(getattr(rollout, name))
    if name in FLAGS:
        for wrong in (array.astype(np.float64), array.astype(np.int64)):
            reject(case, replace(rollout, **{name: wrong}), f"{name} .*bool")
        return
    for wrong in (array.astype(np.int64), array > 0, array.astype(object), array.astype(complex)):
        reject(case, replace(rollout, **{name: wrong}), f"{name} .*floating point")
    if name != "rewards":  # the rewards set the dtype, the others must share it
        reject(case, replace(rollout, **{name: array.astype(np.float32)}), f"{name} .*dtype of rewards")


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case, names in CASES.items() for name in ("gamma", "lambda_") if name in names.split()]
)
@pytest.mark.parametrize("wrong", [-0.01, 1.01, NAN, float("inf"), -float("inf")])
def test_a_factor_outside_the_unit_interval_is_rejected(case: str, name: str, wrong: float) -> None:
    reject(case, hand_rollout(np.float64), name, Parameters(**{**vars(HALF), name: wrong}))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 2.0, True, None, "2"])
def test_a_look_ahead_that_is_not_a_positive_integer_is_rejected(wrong: Any) -> None:
    reject("n_step_returns", hand_rollout(np.float64), "n must be", replace(HALF, n=wrong))


def test_a_numpy_integer_is_a_valid_look_ahead() -> None:
    expected = np.array(BY_HAND["n_step_returns"]).T
    np.testing.assert_array_equal(compute("n_step_returns", hand_rollout(np.float64), replace(HALF, n=np.int64(2))), expected)


def test_a_negative_importance_ratio_is_rejected() -> None:
    rollout = hand_rollout(np.float64)
    ratios = rollout.importance_ratios.copy()
    ratios[2, 1] = -0.5
    reject("retrace_returns", replace(rollout, importance_ratios=ratios), "importance_ratios")
