"""Changes to SB3's base class that all algorithms share."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg.common.files import atomic_write


class PolicyGradientAlgorithm(BaseAlgorithm):
    """SB3's base class with crash-safe files, learning rates that never turn negative, and clear errors."""

    def _fast_path(self) -> Any:
        """
        An object that implements the steps of this algorithm's update, equal up to rounding; ``None``: the algorithm's own
        methods are used. Queried before every rollout and every update.
        """
        return None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.env is None:
            raise ValueError("the model has no environment: call set_env() first, or load the model with env=...")
        return super()._setup_learn(*args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may exceed the requested steps, where a linear learning rate would turn negative.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _forget_observation(self) -> None:
        """After a callback stopped training, the last step is not stored: the next ``learn()`` resets the environments."""
        self._last_obs = None

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. If the process is killed while saving, an existing file stays intact.

        :param path: file to write; ``.zip`` is appended if it has no suffix
        :param exclude: names of attributes to exclude in addition to the default ones
        :param include: names of attributes to save although they are excluded by default
        """
        # SB3 writes in place.
        with atomic_write(path, "zip") as part:
            super().save(part, exclude, include)
