"""Torch's number of threads for numpy's BLAS, to which ``torch.set_num_threads`` does not apply."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch as th
from threadpoolctl import LibController, ThreadpoolController  # type: ignore[import-untyped]  # it has no type hints


@dataclass
class _Limit:
    """The number of threads of one library while blocks are active."""

    before: int  # restored at the end
    ours: int  # the latest one set here
    n_blocks: int = 0


_lock = threading.Lock()
# Keyed by library, and by thread if each thread has its own number.
_limits: dict[tuple[LibController, int | None], _Limit] = {}


@functools.cache  # scanning the shared libraries of the process takes milliseconds
def _libraries() -> tuple[LibController, ...]:
    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)


def _is_per_thread(library: LibController) -> bool:
    # MKL_Set_Num_Threads_Local and omp_set_num_threads: the number only applies to the calling thread.
    return library.internal_api == "mkl" or (
        library.internal_api == "openblas" and getattr(library, "threading_layer", "") == "openmp"
    )


def _set(library: LibController, n_threads: int) -> None:
    if library.num_threads == n_threads:
        return
    library.set_num_threads(n_threads)
    # threadpoolctl 3.8 ignores all threads but the first one that set OpenBLAS. The last block may end in another thread.
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread()


@contextmanager
def blas_threads() -> Iterator[None]:
    """
    Set numpy's BLAS to torch's number of threads within the block.

    Blocks may be nested, and may overlap in several threads: the last one to end restores the number that the first one found.
    A number set by other code in between is kept.
    """
    keys = [(library, threading.get_ident() if _is_per_thread(library) else None) for library in _libraries()]
    with _lock:
        for key in keys:
            library = key[0]
            limit = _limits.setdefault(key, _Limit(library.num_threads, library.num_threads))
            limit.n_blocks += 1
            _set(library, th.get_num_threads())
            limit.ours = library.num_threads
    try:
        yield
    finally:
        with _lock:
            for key in keys:
                limit = _limits[key]
                limit.n_blocks -= 1
                if limit.n_blocks == 0:
                    del _limits[key]
                    if key[0].num_threads == limit.ours:
                        _set(key[0], limit.before)
