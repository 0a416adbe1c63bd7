"""Drawing gradient estimates, on several processes if wanted. What is drawn depends on the seeds alone."""

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
from sb3_pg.diagnose.policies import Task, number_of_environments
from sb3_pg.vpg.vpg import VPG


class Estimates(NamedTuple):
    """
    Independent gradient estimates.

    :param gradients: ``[B, P]``, of the parameters that act on the policy; float32, as they were computed
    :param steps: ``[B]``, environment steps in each
    """

    gradients: npt.NDArray[np.float32]
    steps: npt.NDArray[np.int64]


class Job(NamedTuple):
    """
    A piece of work for one process.

    :param estimator: what to draw
    :param seeds: one for each estimate
    """

    estimator: Estimator
    seeds: Sequence[int]


class Sampler:
    """
    Draws gradient estimates for one policy. Two estimators that are given the same seeds see the same episodes.

    :param task: policy and environment
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.env = task.make_environments(number_of_environments(task.n_episodes))
        self._estimator: Estimator | None = None

    def model(self, estimator: Estimator) -> VPG:
        """
        :param estimator: what the model is to compute
        :return: the policy in a ``VPG`` with these options; the last one is kept
        :raises ValueError: VPG rejects them
        """
        if estimator != self._estimator:
            options = estimator.options(self.task.discount_gradient)
            self._model = self.task.make_model(self.env, n_episodes=self.task.n_episodes, **options)
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
            # An environment goes on when it has delivered its episodes; what comes after them is not used.
            quota = self.task.n_episodes // self.env.num_envs
            used = (lengths[n : n + quota] for n, lengths in zip(before, self._episode_lengths(), strict=True))
            steps[row] = sum(sum(lengths) for lengths in used)
        return Estimates(gradients, steps)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _episode_lengths(self) -> list[list[int]]:
        """Lengths of all the episodes that each environment has finished."""
        lengths: list[list[int]] = self.env.env_method("get_episode_lengths")
        return lengths


def concatenate(parts: Sequence[Estimates]) -> Estimates:
    """
    :param parts: one or more
    :return: all of them
    """
    return Estimates(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: sums then have one order, and small tensors are fastest that way."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(before)


def run_jobs(sampler: Sampler, jobs: Sequence[Job], n_jobs: int) -> Generator[Estimates, None, None]:
    """
    Do all jobs, in this process or on several others.

    :param sampler: does them in this process, and tells the others what to do
    :param jobs: what is to be drawn
    :param n_jobs: number of processes
    :return: the results, in the order of the jobs
    """
    if n_jobs == 1:
        yield from map(sampler.draw, jobs)
        return
    # spawn: a fork would copy the threads' locks of torch, but not the threads.
    executor = ProcessPoolExecutor(n_jobs, get_context("spawn"), _start_worker, (CloudpickleWrapper(sampler.task),))
    try:
        yield from executor.map(_work, jobs)
    finally:
        executor.shutdown(cancel_futures=True)


# The sampler of a worker process.
_worker: list[Sampler] = []


def _start_worker(task: Any) -> None:
    # Ctrl-C goes to the parent, which keeps what has been measured and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    _worker.append(Sampler(task.var))


def _work(job: Job) -> Estimates:
    return _worker[0].draw(job)


def _acting_columns(model: VPG) -> npt.NDArray[np.bool_]:
    """``[n_parameters]``, whether each entry of a flat gradient belongs to a parameter that acts on the policy."""
    actor = set(map(id, parameter_groups(model.policy).actor))
    return np.concatenate([np.full(p.numel(), id(p) in actor) for p in model.policy.parameters()])
