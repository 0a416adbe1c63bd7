"""Repairs of SB3's collection that all our algorithms need."""

from stable_baselines3.common.base_class import BaseAlgorithm


class RepairedAlgorithm(BaseAlgorithm):
    """SB3's base class with two repairs."""

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout goes beyond the steps asked for, and a linear learning rate would turn negative there.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def _forget_observation(self) -> None:
        """After a callback's stop: the environments have taken a step that is not stored, the next ``learn()`` resets them."""
        self._last_obs = None
