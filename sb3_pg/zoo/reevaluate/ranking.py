"""Rank trials by the rewards of fresh seeds, with bootstrap intervals: pure numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_BOOTSTRAP = 10_000
# With fewer seeds the resampled means have no spread.
MIN_SEEDS = 2


@dataclass(frozen=True)
class Row:
    """
    A ranked trial.

    :param rank: rank, 1 is the best
    :param trial: number of the trial
    :param value: value in the study
    :param mean: mean reward over the seeds
    :param low: lower end of the 95% interval of the mean
    :param high: upper end of the 95% interval of the mean
    :param median: median over the seeds
    :param min: lowest reward of a seed
    :param max: highest reward of a seed
    :param p_winner_higher: bootstrap probability that the winner's mean is higher than this one's; ties count half
    :param rewards: mean reward of the final policy of each seed
    """

    rank: int
    trial: int
    value: float
    mean: float
    low: float
    high: float
    median: float
    min: float
    max: float
    p_winner_higher: float
    rewards: dict[int, float]


def bootstrap_means(rewards: Sequence[float]) -> npt.NDArray[np.float64]:
    """
    :param rewards: ``[S]``, mean reward of each seed
    :return: ``[N_BOOTSTRAP]``, means of S draws with replacement; a function of the rewards alone
    """
    drawn = np.random.default_rng(0).integers(len(rewards), size=(N_BOOTSTRAP, len(rewards)))
    means: npt.NDArray[np.float64] = np.asarray(rewards, dtype=np.float64)[drawn].mean(axis=1)
    return means


def probability_higher(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    """
    :param ours: ``[B]``, resampled means of one trial
    :param theirs: ``[B]``, resampled means of another trial
    :return: share of all pairs in which ours is higher; ties count half
    """
    ordered = np.sort(theirs)
    below = np.searchsorted(ordered, ours, side="left") + np.searchsorted(ordered, ours, side="right")
    return float(below.mean() / 2 / len(theirs))


def rank(values: Mapping[int, float], rewards: Mapping[int, Mapping[int, float]]) -> list[Row]:
    """
    :param values: trial -> value in the study, best first
    :param rewards: trial -> seed -> mean reward of the final policy
    :return: trials with at least two seeds, highest mean first; ties in the order of the study
    """
    ranked = [trial for trial in values if len(rewards.get(trial, {})) >= MIN_SEEDS]
    ranked.sort(key=lambda trial: -np.mean(list(rewards[trial].values())))
    means = {trial: bootstrap_means(list(rewards[trial].values())) for trial in ranked}
    rows = []
    for place, trial in enumerate(ranked, start=1):
        reached = list(rewards[trial].values())
        low, high = np.percentile(means[trial], [2.5, 97.5])
        rows.append(
            Row(
                rank=place,
                trial=trial,
                value=values[trial],
                mean=float(np.mean(reached)),
                low=float(low),
                high=float(high),
                median=float(np.median(reached)),
                min=min(reached),
                max=max(reached),
                p_winner_higher=probability_higher(means[ranked[0]], means[trial]),
                rewards=dict(rewards[trial]),
            )
        )
    return rows
