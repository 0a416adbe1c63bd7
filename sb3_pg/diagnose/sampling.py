"""Sampling of gradient estimates, optionally in several processes. The estimates depend on the seeds alone."""

import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_pg.common.networks import parameter_groups
from sb3_pg.diagnose.estimators import Estimator
from sb3_pg.diagnose.policies import SamplingConfig, number_of_environments
from sb3_pg.vpg.vpg import VPG


class Estimates(NamedTuple):
    """
    Independent gradient estimates.

    :param gradients: ``[B, P]``, with respect to the parameters of the actor, float32
    :param steps: ``[B]``, environment steps of each estimate
    """

    gradients: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]


class Job(NamedTuple):
    """
    Work package for one process.

    :param estimator: the estimator
    :param seeds: seed of each estimate
    """

    estimator: Estimator
    seeds: Sequence[int]


class Sampler:
    """
    Draws gradient estimates for one policy. Estimators with the same seeds see the same episodes.

    :param config: policy and environment
    """

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self.env = config.make_environments(number_of_environments(config.n_episodes))
        self._estimator: Estimator | None = None

    def model(self, estimator: Estimator) -> VPG:
        """
        :param estimator: the estimator
        :return: a ``VPG`` with the policy and the options of the estimator; the last model is cached
        :raises ValueError: VPG rejects the options
        """
        if estimator != self._estimator:
            options = estimator.options(self.config.discount_gradient)
            self._model = self.config.make_model(self.env, n_episodes=self.config.n_episodes, **options)
            self._estimator = estimator
        return self._model

    def draw(self, job: Job) -> Estimates:
        """
        :param job: estimator and seeds
        :return: one estimate for each seed
        """
        model = self.model(job.estimator)
        acts = _acting_columns(model)
        gradients = np.empty((len(job.seeds), int(acts.sum())), dtype=np.float32)
        steps = np.empty(len(job.seeds), dtype=np.int64)
        for row, seed in enumerate(job.seeds):
            before = [len(lengths) for lengths in self._episode_lengths()]
            model.set_random_seed(seed)
            gradients[row] = model.estimate_gradient(1)[0, acts]
            # An environment continues after its share of the episodes; later episodes are not used.
            quota = self.config.n_episodes // self.env.num_envs
            used = (lengths[n : n + quota] for n, lengths in zip(before, self._episode_lengths(), strict=True))
            steps[row] = sum(sum(lengths) for lengths in used)
        return Estimates(gradients, steps)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _episode_lengths(self) -> list[list[int]]:
        """Lengths of all finished episodes of each environment."""
        lengths: list[list[int]] = self.env.env_method("get_episode_lengths")
        return lengths


def concatenate(parts: Sequence[Estimates]) -> Estimates:
    """
    :param parts: one or more sets of estimates
    :return: the concatenated estimates
    """
    return Estimates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread: sums have a fixed order, and small tensors are fastest."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(before)


def run_jobs(sampler: Sampler, jobs: Sequence[Job], n_jobs: int) -> Generator[Estimates, None, None]:
    """
    Run all jobs, in this process or in worker processes.

    :param sampler: sampler of this process, whose configuration is sent to the workers
    :param jobs: jobs to run
    :param n_jobs: number of processes
    :return: the results, in the order of the jobs
    """
    if n_jobs == 1:
        yield from map(sampler.draw, jobs)
        return
    # spawn: a fork would copy the locks of torch's threads, but not the threads.
    executor = ProcessPoolExecutor(n_jobs, get_context("spawn"), _start_worker, (CloudpickleWrapper(sampler.config),))
    try:
        yield from executor.map(_work, jobs)
    finally:
        executor.shutdown(cancel_futures=True)


# Sampler of a worker process.
_worker: list[Sampler] = []


def _start_worker(config: Any) -> None:
    # Ctrl-C is handled by the parent process, which keeps the results and terminates the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    _worker.append(Sampler(config.var))


def _work(job: Job) -> Estimates:
    return _worker[0].draw(job)


def _acting_columns(model: VPG) -> npt.NDArray[np.bool_]:
    """Mask ``[n_parameters]`` of the entries of a flat gradient that belong to parameters of the actor."""
    actor = set(map(id, parameter_groups(model.policy).actor))
    return np.concatenate([np.full(p.numel(), id(p) in actor) for p in model.policy.parameters()])
