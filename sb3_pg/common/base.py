"""What all our algorithms change in SB3's base class."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg.common.files import atomic_write


class PolicyGradientAlgorithm(BaseAlgorithm):
    """SB3's base class with files that survive a crash, learning rates that never turn negative, and clear errors."""

    def _fast_path(self) -> Any:
        """
        An object with the same steps as this algorithm's update, equal up to rounding, or ``None``: the steps are the methods
        of the algorithm itself. Asked before every rollout and every update.
        """
        return None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.env is None:
            raise ValueError("there is no environment to learn in: call set_env() first, or load the model with env=...")
        return super()._setup_learn(*args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the requested steps, and a linear learning rate would turn negative there.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _forget_observation(self) -> None:
        """After a callback's stop the latest step of the environments is not stored: the next ``learn()`` resets them."""
        self._last_obs = None

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. If the process is killed meanwhile, an earlier file of that name stays intact.

        :param path: file to write; ``.zip`` is appended to a name without suffix
        :param exclude: names of attributes to leave out, besides those that always are
        :param include: names of attributes to save although they are left out by default
        """
        # SB3 writes in place.
        with atomic_write(path, "zip") as part:
            super().save(part, exclude, include)
