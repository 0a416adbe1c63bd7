"""Common code of the scripts that plot learning curves."""

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.callbacks import BaseCallback

FloatArray = npt.NDArray[np.float64]


class EpisodeRecorder(BaseCallback):
    """Record the reward of each training episode, and the number of steps at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.steps.append(self.num_timesteps)
                self.rewards.append(info["episode"]["r"])
        return True


def section_means(steps: npt.NDArray[np.int64], rewards: FloatArray, n_timesteps: int, n_sections: int) -> FloatArray:
    """
    Average rewards over sections of equal length.

    :param steps: ``[E]``, number of steps at the end of each episode, ascending
    :param rewards: ``[E]``, reward of each episode
    :param n_timesteps: total length of all sections; later episodes are ignored
    :param n_sections: number of sections
    :return: ``[n_sections]``, mean rewards; a section without episodes repeats the previous mean, or NaN
    """
    bounds = np.linspace(0, n_timesteps, n_sections + 1)
    means = np.full(n_sections, np.nan)
    for i in range(n_sections):
        inside = (steps > bounds[i]) & (steps <= bounds[i + 1])
        means[i] = rewards[inside].mean() if inside.any() else means[max(i - 1, 0)]
    return means
