"""
Faster implementations of the updates. :func:`select` is the only entry point: it returns an object with the steps of an
update, or ``None``.

The algorithms can be understood without this package. The environment variable ``SB3_PG_FAST=0``, or :func:`disabled`,
turns it off.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg.fast.envs import quick_copies
from sb3_pg.fast.guard import Originals, Selection
from sb3_pg.fast.threads import blas_threads

SelfAccelerated = TypeVar("SelfAccelerated", bound="Accelerated")

_enabled: ContextVar[bool] = ContextVar("sb3_pg_fast", default=os.environ.get("SB3_PG_FAST", "1") != "0")


class FastPath(Protocol):
    """Interface of a fast path to :class:`Accelerated`, besides the steps themselves."""

    #: Methods of the algorithm that it replaces: a subclass that overrides one of them uses the reference.
    replaces: ClassVar[tuple[str, ...]]
    #: Attributes of the algorithm on which :meth:`build` depends.
    options: ClassVar[tuple[str, ...]]
    #: Methods of the networks on which it relies: if one of them is patched, the reference is used.
    originals: Originals

    @classmethod
    def build(cls, algorithm: Any) -> "FastPath | None":
        """The fast path of an unmodified algorithm; ``None`` if its networks are not supported."""


class Accelerated(BaseAlgorithm):
    """An algorithm with a fast path, named in the class statement: ``class VPG(Accelerated, ..., fast_path=...)``."""

    _fast_path_class: ClassVar[type[FastPath]]
    _reference_steps: ClassVar[dict[str, object]]
    _selection: Selection | None = None

    def __init_subclass__(cls, fast_path: type[FastPath] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if fast_path is not None:  # keep the original methods, to detect later changes
            cls._fast_path_class = fast_path
            cls._reference_steps = {name: getattr(cls, name) for name in fast_path.replaces}

    def learn(self: SelfAccelerated, *args: Any, **kwargs: Any) -> SelfAccelerated:
        """As in SB3, with quick copies of the environments' outputs, and with torch's number of threads for numpy."""
        with ExitStack() as stack:
            if _enabled.get() and self.env is not None:
                stack.enter_context(quick_copies(self.env))
                stack.enter_context(blas_threads())
            return super().learn(*args, **kwargs)  # type: ignore[safe-super]  # SB3's class that follows has one

    def _fast_path(self) -> Any:
        return select(self)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_selection"]


def select(algorithm: Accelerated) -> Any:
    """
    :param algorithm: algorithm
    :return: an object with the steps of its update, equal to the reference up to rounding; ``None``: use the reference
    """
    if not _enabled.get():
        return None
    selection = algorithm._selection
    if selection is None or not selection.is_current(algorithm):
        selection = Selection(algorithm, algorithm._fast_path_class, algorithm._reference_steps)
        algorithm._selection = selection
    return selection.path


@contextmanager
def disabled() -> Iterator[None]:
    """Use the reference path within the block, in this thread."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)
