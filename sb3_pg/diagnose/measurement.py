"""The measurement: the same episodes for all estimators, and a reference gradient from many other episodes."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.utils import LinearSchedule

from sb3_pg.diagnose.estimators import DEFAULT_ESTIMATORS, Estimator
from sb3_pg.diagnose.moments import Reference, summarize
from sb3_pg.diagnose.policies import Environment, Policy, SamplingConfig, env_name, new_policy, saved_policy, state_arrays
from sb3_pg.diagnose.results import Measurement
from sb3_pg.diagnose.sampling import Estimates, Job, Sampler, concatenate, one_thread, run_jobs
from sb3_pg.vpg.vpg import VPG

# Environment steps per estimator, and the maximum number of estimates where episodes are short.
DEFAULT_BUDGET = 200_000
_MAX_DEFAULT_BATCHES = 200
# With fewer estimates the variance would be too uncertain.
_MIN_DEFAULT_BATCHES = 20
# Estimates of the reference gradient for each estimate of an estimator.
REFERENCE_FACTOR = 4
# The reference must be unbiased in all cases. The optimal baseline is a ratio of sums over the other episodes, whose
# denominator can be close to zero if there are only a few.
_REFERENCES = (
    (5, Estimator("reward_to_go", "optimal")),
    (2, Estimator("reward_to_go", "mean")),
    (1, Estimator("reward_to_go", "none")),
)
# Environment steps on which a critic is fitted, by VPG's own code.
DEFAULT_CRITIC_STEPS = 20_480
_CRITIC_ENVIRONMENTS = 8
_CRITIC_OPTIONS = {
    "learning_rate": 0.0,
    "n_steps": 128,
    # Decreasing, so that the noise of the targets averages out, but not to zero: a single rollout would not learn at all.
    "value_learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
    "n_value_updates": 50,
    "value_batch_size": 256,
}
# The critic is evaluated on held-out whole episodes.
_CRITIC_TEST_OPTIONS = {
    "learning_rate": 0.0,
    "n_episodes": 5 * _CRITIC_ENVIRONMENTS,
    "advantage_estimator": "reward_to_go",
    "n_value_updates": 0,
}
_PILOT_BATCHES = 4
# Number of jobs per estimator, for the processes and the progress bar.
_CHUNKS = 20
# Spawn keys of the seeds for each kind of experience: no two share an episode.
_PILOT, _CRITIC, _CRITIC_TEST, _REFERENCE, _MEASURED, _BOOTSTRAP = range(6)

Progress = Callable[[str, int, int], None]


def measure(
    env: Environment,
    model: str | Path | None = None,
    *,
    estimators: Sequence[str] | None = None,
    n_batches: int | None = None,
    budget: int | None = None,
    reference_batches: int | None = None,
    n_episodes: int = 10,
    gamma: float | None = None,
    discount_gradient: bool = True,
    critic_steps: int | None = None,
    policy: str | None = None,
    vec_normalize: str | Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    progress: Progress | None = None,
    on_result: Callable[[Measurement], None] | None = None,
) -> list[Measurement]:
    """
    Measure the quality of policy-gradient estimators: variance, signal-to-noise ratio, bias, and direction.

    All estimators see the same episodes, so their estimates take the same number of environment steps. The reference gradient
    is the mean of many reward-to-go estimates with a leave-one-out baseline, which are unbiased, from other episodes. A critic
    is fitted on yet other episodes. Random generators are re-seeded. Episodes must end: an environment without end needs a
    ``TimeLimit`` wrapper.

    :param env: id of the environment, or a function that makes it
    :param model: zip file of a saved VPG, A2C, PPO, ...; ``None``: a new policy
    :param estimators: names such as ``reward_to_go+mean``, ``n_step:5+value``, ``gae:0.97+value``; ``None``: the default
        estimators. With ``gamma < 1`` and without ``discount_gradient``, those of the total return are left out, because they
        estimate another gradient
    :param n_batches: number of estimates per estimator; ``None``: as many as the budget allows
    :param budget: environment steps per estimator; if neither this nor ``n_batches`` is given, 200,000 steps, but between 20
        and 200 estimates
    :param reference_batches: number of estimates whose mean is the reference, ``None``: four times ``n_batches``
    :param n_episodes: episodes per estimate
    :param gamma: discount factor, ``None``: that of the model, 0.99 for a new policy
    :param discount_gradient: measure estimators of the gradient of ``E[sum_t gamma^t r_t]``; otherwise of the usual expression
        without the factor ``gamma^t`` of step t
    :param critic_steps: environment steps on which the critic is fitted, ``None``: 20,480, or 0 if a saved model has a
        critic for this ``gamma``
    :param policy: alias of a new policy, such as ``"LinearPolicy"``; ``None``: by the observation space
    :param vec_normalize: file with the statistics of the ``VecNormalize`` wrapper that a saved model was trained with
    :param env_kwargs: keyword arguments of the environment
    :param seed: seed of all random generators
    :param n_jobs: number of processes, without influence on the results
    :param progress: called with a description of the current step, the amount of work done, and the total amount
    :param on_result: called with each measurement as soon as it is available
    :return: one measurement for each estimator
    :raises ValueError: conflicting or invalid options, or a model that does not fit the environment
    """
    if model is not None and policy is not None:
        raise ValueError(f"policy={policy!r} is for a new policy, and model={str(model)!r} has its own: leave out one of them")
    if n_batches is not None and budget is not None:
        raise ValueError(f"n_batches={n_batches} and budget={budget} are mutually exclusive: leave out one of them")
    _check_minima(
        n_batches=(n_batches, 2),
        budget=(budget, 1),
        reference_batches=(reference_batches, 2),
        n_episodes=(n_episodes, 1),
        critic_steps=(critic_steps, 0),
        seed=(seed, 0),
        n_jobs=(n_jobs, 1),
    )
    config = SamplingConfig(
        env=env,
        env_kwargs=dict(env_kwargs or {}),
        vec_normalize=None if vec_normalize is None else Path(vec_normalize),
        policy_class="",
        policy_kwargs={},
        use_sde=False,
        sde_sample_freq=-1,
        parameters={},
        gamma=0.99 if gamma is None else gamma,
        n_episodes=n_episodes,
        discount_gradient=discount_gradient,
    )
    with one_thread():
        subject = new_policy(config, policy, seed) if model is None else saved_policy(config, Path(model), gamma)
        chosen = _choose(estimators, subject.config)
        run = _MeasurementRun(subject, chosen, critic_steps, seed, n_jobs, progress or _no_progress)
        results = []
        for result in run.run(n_batches, budget, reference_batches):
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


class _MeasurementRun:
    """
    One call of :func:`measure`.

    :param policy: the policy to be measured
    :param estimators: the estimators
    :param critic_steps: environment steps on which the critic is fitted, ``None``: as needed
    :param seed: seed of all random generators
    :param n_jobs: number of processes
    :param progress: see :func:`measure`
    """

    def __init__(
        self,
        policy: Policy,
        estimators: Sequence[Estimator],
        critic_steps: int | None,
        seed: int,
        n_jobs: int,
        progress: Progress,
    ) -> None:
        self.policy, self.estimators = policy, estimators
        self.seed, self.n_jobs, self.progress = seed, n_jobs, progress
        self.reference = next(estimator for least, estimator in _REFERENCES if policy.config.n_episodes >= least)
        wanted = (0 if policy.has_critic else DEFAULT_CRITIC_STEPS) if critic_steps is None else critic_steps
        self.uses_critic = any(estimator.baseline == "value" for estimator in estimators)
        self.critic_steps = wanted if self.uses_critic else 0
        self.explained_variance: float | None = None

    def run(self, n_batches: int | None, budget: int | None, reference_batches: int | None) -> Iterator[Measurement]:
        """Measure the estimators one after the other."""
        sampler = Sampler(self.policy.config)
        try:
            for estimator in self.estimators:
                sampler.model(estimator)  # raises before any work is done if VPG rejects the combination
            if n_batches is None:
                n_batches = self._number_of_batches(sampler, budget)
            m_batches = REFERENCE_FACTOR * n_batches if reference_batches is None else reference_batches
            if self.uses_critic:
                sampler.close()
                sampler = Sampler(self._with_critic())
            yield from self._measure(sampler, n_batches, m_batches)
        finally:
            sampler.close()

    def _measure(self, sampler: Sampler, n_batches: int, m_batches: int) -> Iterator[Measurement]:
        plan = [(self.reference, _REFERENCE, m_batches), *((e, _MEASURED, n_batches) for e in self.estimators)]
        jobs = [self._jobs(*item) for item in plan]
        # Closes the generator, and with it the processes, even if the caller stops early.
        with closing(run_jobs(sampler, [job for piece in jobs for job in piece], self.n_jobs)) as results:
            reference = Reference(self._gather(islice(results, len(jobs[0])), "reference gradient", m_batches).gradients)
            for estimator, piece in zip(self.estimators, jobs[1:], strict=True):
                estimates = self._gather(islice(results, len(piece)), estimator.name, n_batches)
                yield self._describe(estimator, estimates, reference)

    def _describe(self, estimator: Estimator, estimates: Estimates, reference: Reference) -> Measurement:
        config = self.policy.config
        uses_critic = estimator.baseline == "value"
        summary = summarize(estimates.gradients, reference, np.random.default_rng([self.seed, _BOOTSTRAP]))
        return Measurement(
            env=env_name(config.env),
            policy=self.policy.label,
            estimator=estimator.weight_name,
            baseline=estimator.baseline,
            **summary._asdict(),
            gamma=config.gamma,
            discount_gradient=config.discount_gradient,
            n_episodes=config.n_episodes,
            n_batches=len(estimates.steps),
            steps=float(estimates.steps.mean()),
            critic_steps=self.critic_steps if uses_critic else 0,
            critic_explained_variance=self.explained_variance if uses_critic else None,
            reference_batches=len(reference.estimates),
            reference_accuracy=reference.accuracy,
            seed=self.seed,
        )

    def _gather(self, results: Iterator[Estimates], name: str, total: int) -> Estimates:
        parts, done = [], 0
        self.progress(name, done, total)
        for part in results:
            parts.append(part)
            done += len(part.steps)
            self.progress(name, done, total)
        return concatenate(parts)

    def _jobs(self, estimator: Estimator, stream: int, n_batches: int) -> list[Job]:
        seeds = [self._seed(stream, index) for index in range(n_batches)]
        size = math.ceil(n_batches / _CHUNKS)
        return [Job(estimator, seeds[start : start + size]) for start in range(0, n_batches, size)]

    def _seed(self, stream: int, index: int) -> int:
        return int(np.random.SeedSequence(self.seed, spawn_key=(stream, index)).generate_state(1)[0] >> 1)

    def _number_of_batches(self, sampler: Sampler, budget: int | None) -> int:
        """Number of estimates within the budget, from the episode lengths of a few pilot estimates."""
        seeds = [self._seed(_PILOT, index) for index in range(_PILOT_BATCHES)]
        self.progress("length of episodes", 0, _PILOT_BATCHES)
        steps = sampler.draw(Job(self.reference, seeds)).steps.mean()
        self.progress("length of episodes", _PILOT_BATCHES, _PILOT_BATCHES)
        if budget is None:
            return int(np.clip(DEFAULT_BUDGET // steps, _MIN_DEFAULT_BATCHES, _MAX_DEFAULT_BATCHES))
        if budget < 2 * steps:
            raise ValueError(
                f"budget={budget} is too small for two estimates of {self.policy.config.n_episodes} episodes, which take "
                f"about {steps:.0f} steps each: raise budget, or lower n_episodes"
            )
        return int(budget // steps)

    def _with_critic(self) -> SamplingConfig:
        """Fit the critic if necessary, on experience of its own, and evaluate it."""
        config = self.policy.config
        env = config.make_environments(_CRITIC_ENVIRONMENTS)
        try:
            if self.critic_steps > 0:
                self.progress("critic", 0, self.critic_steps)
                model = self._learn(config.make_model(env, **_CRITIC_OPTIONS), _CRITIC, self.critic_steps)
                self.critic_steps = model.num_timesteps
                self.progress("critic", self.critic_steps, self.critic_steps)
                config = config._replace(parameters=state_arrays(model))
            model = self._learn(config.make_model(env, **_CRITIC_TEST_OPTIONS), _CRITIC_TEST, 1)
            self.explained_variance = float(model.logger.name_to_value["train/explained_variance"])
        finally:
            env.close()
        return config

    def _learn(self, model: VPG, stream: int, steps: int) -> VPG:
        """Train with learning rate 0: the policy does not change, nor does the critic if both share an optimizer."""
        model.set_random_seed(self._seed(stream, 0))
        # No log output, which would clear the logger.
        return model.learn(steps, log_interval=sys.maxsize)


def _no_progress(what: str, done: int, total: int) -> None:
    del what, done, total


def _choose(names: Sequence[str] | None, config: SamplingConfig) -> list[Estimator]:
    """
    :raises ValueError: an unknown or repeated name, no name at all, or a total return that estimates another gradient
    """
    same_target = config.discount_gradient or config.gamma == 1
    if names is None:
        chosen = [Estimator.parse(name) for name in DEFAULT_ESTIMATORS]
        return [
            estimator
            for estimator in chosen
            if (same_target or estimator.weight != "total_return")
            and (config.n_episodes > 1 or estimator.baseline not in ("mean", "optimal"))
        ]
    chosen = [Estimator.parse(name) for name in names]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"estimators={list(names)} must contain at least one name, and none twice")
    if not same_target and any(estimator.weight == "total_return" for estimator in chosen):
        raise ValueError(
            "the total return estimates the gradient of the discounted objective, the others do not with "
            f"discount_gradient=False and gamma={config.gamma}: leave it out, or use discount_gradient=True or gamma=1"
        )
    return chosen


def _check_minima(**numbers: tuple[int | None, int]) -> None:
    for name, (value, minimum) in numbers.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value} must be at least {minimum}")
