"""What all our algorithms change in SB3's base class."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg.common.files import atomic_write
from sb3_pg.fast.envs import quick_copies

SelfRepaired = TypeVar("SelfRepaired", bound="RepairedAlgorithm")


class RepairedAlgorithm(BaseAlgorithm):
    """SB3's base class with repairs."""

    def learn(self: SelfRepaired, *args: Any, **kwargs: Any) -> SelfRepaired:
        """
        As in SB3, without slow copies of what the environments return.

        :param args: as in SB3
        :param kwargs: likewise
        :return: itself
        :raises ValueError: there are no environments, since the model was loaded without
        """
        if self.env is None:
            raise ValueError("there is no environment to learn in: call set_env() first, or load the model with env=...")
        # Here and not around each rollout: off-policy algorithms have one for every step.
        with quick_copies(self.env):
            return super().learn(*args, **kwargs)  # type: ignore[safe-super]  # SB3's class that follows has one

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the steps asked for, and a linear learning rate would turn negative there.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _forget_observation(self) -> None:
        """After a callback's stop: the environments have taken a step that is not stored, the next ``learn()`` resets them."""
        self._last_obs = None

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. A process that is killed in the middle leaves the model that was there before.

        :param path: file to write; ``.zip`` is added to a name without suffix
        :param exclude: names of attributes to leave out, besides those that always are
        :param include: names of attributes to save although they are left out by default
        """
        # SB3 writes in place, and the best model so far would be lost.
        with atomic_write(path, "zip") as part:
            super().save(part, exclude, include)
