"""Repairs of SB3's base class that all our algorithms need."""

import contextlib
import io
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg.common.vec_envs import quick_copies

SelfRepaired = TypeVar("SelfRepaired", bound="RepairedAlgorithm")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Put Ctrl-C off until the end of the block, when it does what it would have done. PyTorch's writer of zip files would turn
    ``KeyboardInterrupt`` into a ``RuntimeError``, with which a training ends that should have been saved.

    Only the main thread gets signals; in another one, and where Ctrl-C is ignored, this does nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    frames: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: frames.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if frames:
            handler(signal.SIGINT, frames[0])


@contextlib.contextmanager
def written_whole(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[str | Path | io.BufferedIOBase]:
    """
    Write a file beside its place and rename it at the end, so that an earlier file of that name stays whole until then. Ctrl-C
    has to wait until it is written.

    :param path: of the file, named as SB3's functions would; an open file is passed on as it is
    :param suffix: added to a name that has none
    :return: where to write
    """
    if isinstance(path, io.BufferedIOBase):
        with uninterrupted():
            yield path
        return
    final = Path(path) if Path(path).suffix else Path(f"{path}.{suffix}")
    if final.is_dir():
        final = Path(f"{final}_2")
    part = final.with_name(f"{final.name}.part")
    with uninterrupted():
        try:
            yield part
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)


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
        with written_whole(path, "zip") as part:
            super().save(part, exclude, include)
