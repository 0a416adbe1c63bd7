"""File writing that is safe against crashes and Ctrl-C."""

import contextlib
import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def defer_sigint() -> Iterator[None]:
    """
    Defer Ctrl-C until the end of the block. PyTorch's zip writer would turn ``KeyboardInterrupt`` into a ``RuntimeError``, and
    the training run would end without being saved.

    Only the main thread receives signals. In any other thread, and where Ctrl-C is ignored, this does nothing.
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
def atomic_write(path: str | Path | io.BufferedIOBase, suffix: str) -> Iterator[str | Path | io.BufferedIOBase]:
    """
    Write to a temporary file and rename it at the end, so that an existing file stays intact until then. Ctrl-C is deferred
    until the file is written.

    :param path: path of the file, which gets its suffix as in SB3; an open file is passed through
    :param suffix: suffix to append if the path has none
    :return: path or open file to write to
    """
    if isinstance(path, io.BufferedIOBase):
        with defer_sigint():
            yield path
        return
    final = Path(path) if Path(path).suffix else Path(f"{path}.{suffix}")
    if final.is_dir():
        final = Path(f"{final}_2")
    part = final.with_name(f"{final.name}.part")
    with defer_sigint():
        try:
            yield part
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)
