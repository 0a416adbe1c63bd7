"""The measurement of gradient estimators: its statistics, exact answers on tiny MDPs, and what the command line does."""

import csv
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import MatchEnv, TabularEnv, TabularMDP, bandit, layered_mdp
from exact import (
    batch_estimates,
    enumerate_episodes,
    episode_terms,
    expected_gradient,
    policy_log_probs,
    policy_values,
    score_table,
)
from stable_baselines3 import A2C, DDPG, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pg import VPG
from sb3_pg.diagnose import DEFAULT_ESTIMATORS, Estimator, Measurement, measure
from sb3_pg.diagnose.__main__ import main
from sb3_pg.diagnose.moments import Interval, Reference, off_diagonal_mean, summarize
from sb3_pg.diagnose.policies import SamplingConfig, number_of_environments, saved_policy
from sb3_pg.diagnose.sampling import Estimates, Job, Sampler

GAMMA = 0.8
N_EPISODES = 3


def make_env(mdp: TabularMDP) -> Callable[[], TabularEnv]:
    """
    Turn an MDP into what ``measure`` takes, in a form that other processes can take too.

    :param mdp: the process
    :return: function that makes the environment
    """
    return functools.partial(TabularEnv, mdp)


def row_of(rows: Sequence[Measurement], name: str) -> Measurement:
    """
    Find a measurement.

    :param rows: all of them
    :param name: of the estimator
    :return: the one
    """
    return next(row for row in rows if f"{row.estimator}+{row.baseline}" == name)


# ---------------------------------------------------------------------------------------------------------- statistics


def by_definition(estimates: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """
    The point estimates of ``summarize`` in double loops over pairs of different estimates.

    :param estimates: ``[B, P]``
    :param reference: ``[M, P]``
    :return: by the names of the summary
    """

    def squared_norm(rows: np.ndarray) -> float:
        return float(np.mean([x @ y for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]))

    variance = float(np.var(estimates, axis=0, ddof=1).sum())
    mean = reference.mean(axis=0)
    squared_bias = squared_norm(estimates) + squared_norm(reference)
    squared_bias -= 2 * float(np.mean([x @ y for x in estimates for y in reference]))
    return {
        "variance": variance,
        "snr": squared_norm(estimates) / variance,
        "cosine": float(np.mean([x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in estimates])),
        "bias": np.sqrt(max(squared_bias, 0) / squared_norm(reference)),
    }


@pytest.mark.parametrize(("shift", "dtype"), [(0.0, np.float64), (2.0, np.float64), (2.0, np.float32)])
def test_summary_agrees_with_the_definitions(shift: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    reference = (rng.normal(size=(30, 5)) + 1).astype(dtype)
    estimates = (rng.normal(size=(12, 5)) + np.array([1 + shift, 1, 1, 1, 1])).astype(dtype)
    summary = summarize(estimates, Reference(reference), rng)
    expected = by_definition(estimates.astype(float), reference.astype(float))
    assert {name: number.value for name, number in summary._asdict().items()} == pytest.approx(expected, rel=1e-6)


def test_summary_by_hand() -> None:
    # Two estimates (3, 1) and (1, 1): covariance 2 in the first parameter, x . y = 4. The reference is (1, 0), exactly.
    summary = summarize(np.array([[3.0, 1.0], [1.0, 1.0]]), Reference(np.array([[1.0, 0.0]] * 3)), np.random.default_rng(0))
    assert summary.variance.value == pytest.approx(2)
    assert summary.snr.value == pytest.approx(4 / 2)
    assert summary.cosine.value == pytest.approx((3 / np.sqrt(10) + 1 / np.sqrt(2)) / 2)
    assert summary.bias.value == pytest.approx(np.sqrt(4 - 2 * 2 + 1))


def test_wide_estimates_are_multiplied_in_blocks() -> None:
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(6, 150_000)).astype(np.float32)
    summary = summarize(wide, Reference(wide[::-1]), rng)
    assert summary.variance.value == pytest.approx(np.var(wide.astype(float), axis=0, ddof=1).sum())


def test_a_bootstrap_sample_pairs_no_estimate_with_itself() -> None:
    data = np.random.default_rng(2).normal(size=(4, 3))
    drawn = [0, 0, 1, 3, 3, 3]
    pairs = [data[i] @ data[j] for i in drawn for j in drawn if i != j]
    counts = np.bincount(drawn, minlength=4)[None].astype(float)
    assert off_diagonal_mean(data @ data.T, counts) == pytest.approx([np.mean(pairs)])


def test_intervals_have_the_width_that_theory_gives() -> None:
    # For normal data the sample variance has the standard deviation sigma^2 sqrt(2 / (B - 1)).
    rng = np.random.default_rng(3)
    estimates = rng.normal(size=(600, 1)) + 4
    summary = summarize(estimates, Reference(estimates + 0.5), rng)
    half = 1.96 * np.sqrt(2 / 599) * summary.variance.value
    assert summary.variance.high - summary.variance.value == pytest.approx(half, rel=0.4)
    assert summary.variance.value - summary.variance.low == pytest.approx(half, rel=0.4)
    # |x - r| / |r| with the mean distance 0.5, both means uncertain by 1 / sqrt(600).
    assert summary.bias.high - summary.bias.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 600) / 4.5, rel=0.4)


def test_no_variance_and_no_gradient() -> None:
    rng = np.random.default_rng(4)
    constant = summarize(np.ones((5, 2)), Reference(np.ones((5, 2))), rng)
    assert constant.variance == Interval(0, 0, 0)
    assert np.isnan(constant.snr.value)
    assert constant.cosine.value == pytest.approx(1)
    nothing = summarize(np.zeros((5, 2)), Reference(np.zeros((5, 2))), rng)
    assert nothing.cosine.value == 0
    assert Reference(np.zeros((5, 2))).accuracy == 0
    with pytest.raises(ValueError, match="at least two estimates, got 1: raise n_batches"):
        summarize(np.ones((1, 2)), Reference(np.ones((5, 2))), rng)


def test_accuracy_of_the_reference() -> None:
    # Gradient of length 2, noise of unit variance in each of 50 parameters: |r|^2 is 4 + 50 / M on average.
    rng = np.random.default_rng(5)
    data = rng.normal(size=(40, 50))
    data[:, 0] += 2
    true = data.mean(axis=0)[0] / np.linalg.norm(data.mean(axis=0))
    assert Reference(data).accuracy == pytest.approx(true, abs=0.15)
    assert Reference(data).accuracy == pytest.approx(np.sqrt(4 / (4 + 50 / 40)), abs=0.15)


# -------------------------------------------------------------------------------------------------------- exact answers


@pytest.fixture(scope="module")
def mdp() -> TabularMDP:
    """
    Make an MDP of two steps: the first action leads to state 1 or 2, with rewards 1 and -1 for any second action.

    :return: the MDP
    """
    transition = np.zeros((4, 2, 4))
    transition[0, [0, 1], [1, 2]] = 1
    transition[1:, :, 3] = 1
    rewards = np.zeros((4, 2))
    rewards[1], rewards[2] = 1, -1
    return TabularMDP(np.array([1.0, 0, 0, 0]), transition, rewards, np.array([False, False, False, True]))


@pytest.fixture(scope="module")
def model(mdp: TabularMDP, tmp_path_factory: pytest.TempPathFactory) -> tuple[VPG, Path]:
    """
    Make a model with the uniform policy and a critic that takes state 1 for state 2.

    :param mdp: what it acts in
    :param tmp_path_factory: pytest's own
    :return: the model, and the file it is saved in
    """
    options: dict[str, Any] = {"n_steps": 4, "device": "cpu", "policy_kwargs": {"net_arch": {"vf": []}}}
    vpg = VPG("LinearPolicy", TabularEnv(mdp), gamma=GAMMA, **options)
    with th.no_grad():
        for parameter in vpg.policy.parameters():
            parameter.zero_()
        vpg.policy.value_net.weight[0, 1:3] = th.tensor([-1.0, 1.0])
    path = tmp_path_factory.mktemp("model") / "model.zip"
    vpg.save(path)
    return vpg, path


class Exact:
    """
    Exact moments of a batch estimate, over all batches of episodes.

    :param mdp: the process
    :param policy: the policy in it
    :param name: name of the estimator
    :param discount_gradient: whether step t is weighed by ``gamma^t``
    """

    def __init__(self, mdp: TabularMDP, policy: Any, name: str, discount_gradient: bool) -> None:
        estimator = Estimator.parse(name)
        log_probs, parameters = policy_log_probs(policy, mdp), list(policy.parameters())
        scores = score_table(log_probs, parameters)
        terms = episode_terms(
            enumerate_episodes(mdp, log_probs.detach().exp().numpy()),
            scores,
            GAMMA,
            estimator.weight,
            discount_gradient=discount_gradient and estimator.weight != "total_return",
            lambda_=estimator.parameter,
            return_steps=int(estimator.parameter) if estimator.weight == "n_step" and estimator.parameter else None,
            values=policy_values(policy, mdp) if estimator.baseline == "value" else None,
        )
        m = len(terms.probability)
        batches = np.stack(np.unravel_index(np.arange(m**N_EPISODES), (m,) * N_EPISODES), axis=1)
        baseline = "none" if estimator.baseline == "value" else estimator.baseline
        self.estimates = batch_estimates(terms, batches, baseline)  # [M^K, P]
        self.probability = terms.probability[batches].prod(axis=1)
        self.gradient = expected_gradient(mdp, log_probs, parameters, GAMMA, discount_gradient)
        self.mean = self.probability @ self.estimates
        self.squared_distances = np.sum((self.estimates - self.mean) ** 2, axis=1)
        self.variance = float(self.probability @ self.squared_distances)

    def spread(self, values: np.ndarray) -> float:
        """
        Standard deviation over the batches.

        :param values: ``[M^K]``
        :return: the number
        """
        return float(np.sqrt(self.probability @ (values - self.probability @ values) ** 2))

    def cosines(self) -> np.ndarray:
        """
        Cosine between each estimate and the gradient.

        :return: ``[M^K]``, 0 for estimates of length 0
        """
        lengths = np.linalg.norm(self.estimates, axis=1) * np.linalg.norm(self.gradient)
        products = self.estimates @ self.gradient
        return np.asarray(np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 1e-12))


def test_the_exact_numbers_by_hand(mdp: TabularMDP, model: tuple[VPG, Path]) -> None:
    # The score of each step has length 1: two logits of +-1/2, as weights and as biases. In the first step it is multiplied by
    # +gamma or -gamma after just those actions that make the product constant: that is the gradient, of length gamma. Looking
    # one step ahead, the critic turns its sign, and lambda = 1/2 makes it zero. In the second step the scores are mere noise,
    # times the reward +-1, or +-2 when the critic is subtracted.
    expected = {
        "total_return+none": (1, 0),
        "reward_to_go+none": (1, 0),
        "reward_to_go+value": (4, 0),
        "n_step:1+value": (4, 2),
        "gae:0.5+value": (4, 1),
    }
    for name, (noise, bias) in expected.items():
        exact = Exact(mdp, model[0].policy, name, True)
        assert exact.variance == pytest.approx(GAMMA**2 * noise / N_EPISODES), name
        assert np.linalg.norm(exact.gradient) == pytest.approx(GAMMA), name
        assert np.linalg.norm(exact.mean - exact.gradient) == pytest.approx(bias * GAMMA, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("discount_gradient", [True, False])
def test_measured_moments_are_the_exact_ones(mdp: TabularMDP, model: tuple[VPG, Path], discount_gradient: bool) -> None:
    names = [name for name in DEFAULT_ESTIMATORS if discount_gradient or not name.startswith("total_return")]
    names[-2:] = ["n_step:1+value", "gae:0.5+value"]
    n, m = 160, 320
    rows = measure(
        make_env(mdp),
        model[1],
        estimators=names,
        n_batches=n,
        reference_batches=m,
        n_episodes=N_EPISODES,
        discount_gradient=discount_gradient,
        seed=11,
    )
    reference = Exact(mdp, model[0].policy, "reward_to_go+mean", discount_gradient)
    scale = np.linalg.norm(reference.gradient)
    reference_error = 5 * np.sqrt(reference.variance / m)
    for row, name in zip(rows, names, strict=True):
        exact = Exact(mdp, model[0].policy, name, discount_gradient)
        error = 5 * exact.spread(exact.squared_distances) / np.sqrt(n)
        assert abs(row.variance.value - exact.variance) < error, name
        assert error < 0.5 * exact.variance, f"{name}: the test says nothing"
        # Lengths of means deviate by no more than the means do.
        mean_error = 5 * np.sqrt(exact.variance / n)
        length = np.sqrt(max(row.snr.value, 0) * row.variance.value)
        assert abs(length - np.linalg.norm(exact.mean)) < mean_error, name
        # The direction of the reference is off by at most the angle whose sine is its error over its length.
        direction_error = 5 * exact.spread(exact.cosines()) / np.sqrt(n) + reference_error / scale
        assert abs(row.cosine.value - exact.probability @ exact.cosines()) < direction_error, name
        bias, bias_error = np.linalg.norm(exact.mean - exact.gradient) / scale, (mean_error + reference_error) / scale
        assert abs(row.bias.value - bias) < bias_error, name
        assert bias < 1e-6 or bias > bias_error, f"{name}: the test cannot detect this bias"


def test_all_estimators_see_the_same_episodes(mdp: TabularMDP, model: tuple[VPG, Path]) -> None:
    names = [*DEFAULT_ESTIMATORS, "gae:1+value"]
    rows = measure(make_env(mdp), model[1], estimators=names, n_batches=6, n_episodes=N_EPISODES)
    assert len({row.steps for row in rows}) == 1
    # lambda = 1 is the reward-to-go.
    same, other = row_of(rows, "gae:1+value"), row_of(rows, "reward_to_go+value")
    assert same.variance == pytest.approx(other.variance, rel=1e-4)
    assert same.cosine == pytest.approx(other.cosine, rel=1e-4)


def test_steps_are_those_of_the_episodes_in_the_estimate() -> None:
    # Two environments with episodes of random length: additional steps of the faster one do not count.
    config = SamplingConfig(make_env(layered_mdp(0)), {}, None, "LinearPolicy", {}, False, -1, {}, 0.9, 2, True)
    sampler = Sampler(config._replace(parameters=VPG("LinearPolicy", TabularEnv(layered_mdp(0))).policy.state_dict()))
    estimates = sampler.draw(Job(Estimator("reward_to_go", "none"), range(40)))
    log = [e.get_episode_lengths() for e in sampler.env.unwrapped.envs]  # type: ignore[attr-defined]  # DummyVecEnv
    assert len(log[0]) + len(log[1]) > 2 * 40
    assert set(estimates.steps) == {2, 3, 4}
    sampler.close()


def test_one_step_is_the_same_for_both_returns() -> None:
    rows = measure(
        make_env(bandit(0.0, 1.0)), estimators=["total_return+none", "reward_to_go+none"], n_batches=5, n_episodes=2
    )
    assert rows[0].variance == rows[1].variance
    assert rows[0].cosine == rows[1].cosine


# ---------------------------------------------------------------------------------------------------------- measurement


@functools.cache
def small(**overrides: Any) -> tuple[Measurement, ...]:
    """
    Measure quickly on CartPole; each call only once.

    :param overrides: other arguments
    :return: the measurements
    """
    names = ("total_return+mean", "reward_to_go+optimal", "reward_to_go+value", "n_step:5+value")
    defaults = {"estimators": names, "n_batches": 4, "n_episodes": 4, "critic_steps": 0, "seed": 3}
    return tuple(measure("CartPole-v1", **{**defaults, **overrides}))


def test_the_seed_determines_everything() -> None:
    again = measure(
        "CartPole-v1",
        estimators=("total_return+mean", "reward_to_go+optimal", "reward_to_go+value", "n_step:5+value"),
        n_batches=4,
        n_episodes=4,
        critic_steps=0,
        seed=3,
    )
    assert tuple(again) == small()
    assert {row.variance for row in small(seed=4)}.isdisjoint(row.variance for row in small())


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes() -> None:
    assert small(n_jobs=2) == small()


def test_fitting_the_critic_leaves_the_policy_alone() -> None:
    fitted = small(critic_steps=2000)
    for name in ("total_return+mean", "reward_to_go+optimal"):
        assert row_of(fitted, name) == row_of(small(), name)
    with_critic, without = row_of(fitted, "reward_to_go+value"), row_of(small(), "reward_to_go+value")
    assert with_critic.critic_steps == 2048  # whole rollouts
    assert without.critic_steps == 0
    assert with_critic.variance.value < without.variance.value
    assert with_critic.critic_explained_variance is not None
    assert without.critic_explained_variance is not None
    assert with_critic.critic_explained_variance > without.critic_explained_variance + 0.05
    assert row_of(fitted, "total_return+mean").critic_explained_variance is None


def test_number_of_estimates() -> None:
    rows = small(n_batches=None, budget=1000, estimators=("reward_to_go+none",))
    assert 1 < rows[0].n_batches < 50
    assert rows[0].n_batches * rows[0].steps == pytest.approx(1000, rel=0.5)
    assert rows[0].reference_batches == 4 * rows[0].n_batches
    with pytest.raises(ValueError, match="budget=30 is too small for two estimates of 4 episodes"):
        small(n_batches=None, budget=30)


def test_total_return_only_with_the_same_target() -> None:
    options: dict[str, Any] = {"n_batches": 2, "n_episodes": 2, "critic_steps": 0, "estimators": None}
    usual = small(discount_gradient=False, **options)
    assert {row.estimator for row in usual} == {"reward_to_go", "n_step:5", DEFAULT_ESTIMATORS[-1].partition("+")[0]}
    assert len(small(discount_gradient=False, gamma=1.0, **options)) == len(DEFAULT_ESTIMATORS)
    assert {row.baseline for row in small(**{**options, "n_episodes": 1})} == {"none", "value"}
    with pytest.raises(ValueError, match=r"total return .* leave it out, or use discount_gradient=True or gamma=1"):
        small(discount_gradient=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"estimators": ("nonsense",)}, "'nonsense' is unknown: .*The defaults are total_return.none, "),
        ({"estimators": ("reward_to_go+median",)}, "is unknown"),
        ({"estimators": ("reward_to_go:3+mean",)}, "takes no number"),
        ({"estimators": ("n_step+value",)}, "needs its return_steps after a colon: for example n_step:5.value"),
        ({"estimators": ("gae:high+value",)}, "needs its gae_lambda"),
        ({"estimators": ("gae:1.5+value",)}, r"gae_lambda=1.5 must lie in \[0, 1\]"),
        ({"estimators": ("total_return+value",)}, "cannot subtract a state value"),
        ({"estimators": ("gae:0.9+mean",)}, "bootstraps with a critic"),
        ({"estimators": ("reward_to_go+mean",), "n_episodes": 1}, "n_episodes must be at least 2"),
        ({"estimators": ("reward_to_go+mean", "reward_to_go+mean")}, "none twice"),
        ({"estimators": ()}, "at least one"),
        ({"budget": 100}, "n_batches=4 and budget=100 are mutually exclusive"),
        ({"n_batches": 1}, "n_batches=1 must be at least 2"),
        ({"n_episodes": 0}, "n_episodes=0 must be"),
        ({"gamma": 1.1}, "gamma=1.1 must lie"),
        ({"n_jobs": 0}, "n_jobs=0 must be at least 1"),
        ({"policy": "NoPolicy"}, "NoPolicy"),
    ],
)
def test_wrong_arguments(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**overrides)


@pytest.mark.parametrize(
    ("observation", "action"),
    [("box", "box"), ("dict", "discrete"), ("image", "multi_discrete"), ("discrete", "multi_binary")],
)
def test_every_kind_of_space(observation: str, action: str) -> None:
    row = measure(
        MatchEnv,
        env_kwargs={"observation": observation, "action": action, "truncate": True},
        estimators=["reward_to_go+mean"],
        n_batches=2,
        reference_batches=2,
        n_episodes=2,
    )[0]
    assert row.variance.value > 0
    assert row.steps == 2 * 4


def test_environments_for_an_estimate() -> None:
    assert [number_of_environments(n) for n in (1, 7, 10, 16, 17, 60)] == [1, 7, 10, 16, 1, 15]


# --------------------------------------------------------------------------------------------------------- saved models


def empty_config(env: str) -> SamplingConfig:
    """
    Describe what to sample, without policy.

    :param env: id of the environment
    :return: a configuration without policy
    """
    return SamplingConfig(env, {}, None, "", {}, False, -1, {}, 0.99, 4, True)


@pytest.mark.parametrize("algorithm", [VPG, A2C, PPO])
def test_saved_models(algorithm: Any, tmp_path: Path) -> None:
    saved = algorithm("MlpPolicy", "CartPole-v1", gamma=0.9, device="cpu", policy_kwargs={"net_arch": [8]})
    saved.save(tmp_path / "model.zip")
    found = saved_policy(empty_config("CartPole-v1"), tmp_path / "model.zip", None)
    assert found.label == "model.zip"
    assert found.has_critic
    assert found.config.gamma == 0.9
    state = {name: tensor.numpy() for name, tensor in saved.policy.state_dict().items()}
    np.testing.assert_equal(found.config.parameters, state)
    rebuilt = found.config.make_model(found.config.make_environments(1))
    observations, actions = th.randn(5, 4), th.tensor([0, 1, 0, 1, 1])
    for ours, theirs in zip(*(m.policy.evaluate_actions(observations, actions) for m in (rebuilt, saved)), strict=True):
        th.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_critic_is_used_only_for_its_own_discount(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    VPG("MlpPolicy", "CartPole-v1", device="cpu").save(path)
    assert not saved_policy(empty_config("CartPole-v1"), path, 0.5).has_critic
    VPG("MlpPolicy", "CartPole-v1", device="cpu", advantage_estimator="reward_to_go", baseline="none", n_episodes=1).save(path)
    assert not saved_policy(empty_config("CartPole-v1"), path, None).has_critic


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    VPG("MlpPolicy", "CartPole-v1", device="cpu").save(path)
    with pytest.raises(ValueError, match=r"model.zip does not fit Pendulum-v1: Observation spaces"):
        measure("Pendulum-v1", path, n_batches=2)
    with pytest.raises(ValueError, match="policy='MlpPolicy' is for a new policy"):
        measure("CartPole-v1", path, policy="MlpPolicy", n_batches=2)
    DDPG("MlpPolicy", "Pendulum-v1", device="cpu", buffer_size=1).save(path)
    with pytest.raises(ValueError, match="holds a TD3Policy, but an actor-critic policy is needed"):
        measure("Pendulum-v1", path, n_batches=2)


def test_normalised_observations(tmp_path: Path) -> None:
    normalize = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    statistics: Any = normalize.obs_rms
    statistics.mean[:], statistics.var[:] = [0.1, 0.2, 0.3, 0.4], 0.01
    path = tmp_path / "vecnormalize.pkl"
    normalize.save(str(path))
    before = path.read_bytes()
    normalised = small(vec_normalize=path)
    assert {row.variance for row in normalised}.isdisjoint(row.variance for row in small())
    assert path.read_bytes() == before


# --------------------------------------------------------------------------------------------------------- command line


ARGUMENTS = ["--env", "CartPole-v1", "--n-batches", "3", "--n-episodes", "2", "--n-jobs", "1", "--critic-steps", "0"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.png"
    assert main([*ARGUMENTS, "-o", str(output), "--env-kwargs", "render_mode:None", "--gamma", "0.9"]) == 0
    printed = capsys.readouterr().out
    assert "CartPole-v1, new MlpPolicy, gamma = 0.9, with gamma^t before step t" in printed
    assert "critic: untrained" in printed
    assert f"Figure: {output}" in printed
    with output.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {f"{row['estimator']}+{row['baseline']}" for row in rows} == set(DEFAULT_ESTIMATORS)
    variances = [float(row["variance"]) for row in rows]
    assert variances == sorted(variances, reverse=True)
    assert all(float(row["variance_low"]) <= float(row["variance_high"]) for row in rows)
    table = printed[printed.index("estimator ") :].splitlines()
    assert [line.split()[:2] for line in table[2 : 2 + len(rows)]] == [[row["estimator"], row["baseline"]] for row in rows]
    assert [float(line.split()[2]) for line in table[2 : 2 + len(rows)]] == pytest.approx(variances, rel=1e-3)
    picture = output.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_without_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "sb3_pg.diagnose.plot", raising=False)
    output = tmp_path / "out.png"
    assert main([*ARGUMENTS, "--estimators", "reward_to_go+none", "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert "reward_to_go  none" in captured.out
    assert "pip install 'sb3-pg[plots]'" in captured.err
    assert output.with_suffix(".csv").exists()
    assert not output.exists()


def test_interrupting_keeps_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Sampler.draw

    def interrupted(self: Sampler, job: Job) -> Estimates:
        if job.estimator == Estimator("reward_to_go", "mean"):
            raise KeyboardInterrupt
        return draw(self, job)

    monkeypatch.setattr(Sampler, "draw", interrupted)
    output = tmp_path / "out.png"
    arguments = [*ARGUMENTS, "--n-episodes", "5", "--estimators", "reward_to_go+none", "reward_to_go+mean", "gae+value"]
    assert main([*arguments, "-o", str(output)]) == 130
    assert "stopped, 1 estimators are finished" in capsys.readouterr().err
    with output.with_suffix(".csv").open(newline="") as file:
        assert [row["baseline"] for row in csv.DictReader(file)] == ["none"]
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "CartPol-v1"], "environment 'CartPol-v1': .*[Dd]id you mean: `CartPole`"),
        (["--env", "CartPole-v1", "--estimators", "gea"], "The defaults are total_return"),
        (["--env", "CartPole-v1", "--model", "no_such_model.zip"], "no_such_model.zip"),
        (["--env", "CartPole-v1", "-o", "out.csv"], "must end in one of .*png"),
        (["--env", "CartPole-v1", "-o", "no_such_folder/out.png"], "there is no folder no_such_folder"),
        (["--env", "CartPole-v1", "--n-batches", "5", "--budget", "5"], "not allowed with"),
        (["--env", "CartPole-v1", "--env-kwargs", "gravity"], "must have the form key:value"),
    ],
)
def test_command_line_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--n-jobs", "1"])
    assert error.value.code == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(message, printed), printed
