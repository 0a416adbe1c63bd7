"""numpy's BLAS uses torch's number of threads within blocks, and its previous number afterwards."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch as th
from threadpoolctl import ThreadpoolController, threadpool_limits  # type: ignore[import-untyped]  # it has no type hints

from sb3_pg.fast import threads
from sb3_pg.fast.threads import blas_threads


def blas_number() -> int:
    """
    :return: number of threads of the BLAS in this thread
    """
    numbers = {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}
    if not numbers:
        pytest.skip("threadpoolctl does not find numpy's BLAS")
    assert len(numbers) == 1
    return numbers.pop()  # type: ignore[no-any-return]  # threadpoolctl is untyped


def set_blas(number: int) -> None:
    """
    :param number: new number of threads of the BLAS
    """
    for library in threads._libraries():
        threads._set(library, number)


@pytest.fixture(autouse=True)
def three_for_torch() -> Iterator[None]:
    """Three threads for torch, two for the BLAS."""
    before = th.get_num_threads(), blas_number()
    th.set_num_threads(3)
    set_blas(2)
    yield
    th.set_num_threads(before[0])
    set_blas(before[1])
    assert not threads._limits


def test_a_block_uses_torchs_number() -> None:
    with blas_threads():
        assert blas_number() == 3
    assert blas_number() == 2


def test_the_number_is_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), blas_threads():
        raise KeyError
    assert blas_number() == 2


def test_nested_blocks_update_the_number_and_restore_it_at_the_end() -> None:
    with blas_threads():
        th.set_num_threads(1)
        with blas_threads():
            assert blas_number() == 1
        assert blas_number() == 1
    assert blas_number() == 2


def test_a_number_set_by_other_code_within_the_block_is_kept() -> None:
    with blas_threads():
        set_blas(1)
        assert blas_number() == 1
    assert blas_number() == 1


class Workers:
    """
    Threads that each enter and leave a block on command.

    :param n: number of threads
    """

    def __init__(self, n: int) -> None:
        self.threads = [ThreadPoolExecutor(1) for _ in range(n)]
        self.blocks: list[AbstractContextManager[None]] = [blas_threads() for _ in range(n)]

    def do(self, thread: int, function: Callable[..., Any], *args: Any) -> Any:
        """
        :param thread: index of the thread
        :param function: function to call in that thread
        :param args: its arguments
        :return: its result
        """
        return self.threads[thread].submit(function, *args).result(timeout=30)

    def enter(self, thread: int) -> None:
        """
        :param thread: index of the thread that enters its block
        """
        self.do(thread, self.blocks[thread].__enter__)

    def leave(self, thread: int) -> None:
        """
        :param thread: index of the thread that leaves its block
        """
        self.do(thread, self.blocks[thread].__exit__, None, None, None)


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Three threads outside of their blocks."""
    workers = Workers(3)
    yield workers
    for thread in workers.threads:
        thread.shutdown()


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_last_of_overlapping_blocks_restores(order: Sequence[int], workers: Workers) -> None:
    for thread in range(3):
        workers.enter(thread)
    for thread in order:
        assert blas_number() == 3
        workers.leave(thread)
    assert blas_number() == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_block_entered_after_another_ended_delays_restoring(order: Sequence[int], workers: Workers) -> None:
    """Blocks 0 and 1 overlap; block 2 begins after one of them has ended, and ends after the other."""
    first, second = order
    workers.enter(0)
    workers.enter(1)
    workers.leave(first)
    workers.enter(2)
    workers.leave(second)
    assert blas_number() == 3
    workers.leave(2)
    assert blas_number() == 2


def test_threadpool_limits_work_in_other_threads_afterwards(workers: Workers) -> None:
    """OpenBLAS is not bound to the thread of a block."""
    workers.enter(0)
    workers.leave(0)

    def limited() -> int:
        with threadpool_limits(1, user_api="blas"):
            return blas_number()

    assert workers.do(1, limited) == 1
    assert blas_number() == 2


class PerThread:
    """A library with a separate number of threads in each thread, as MKL."""

    internal_api = "mkl"

    def __init__(self) -> None:
        self.numbers = threading.local()

    @property
    def num_threads(self) -> int:
        """As in threadpoolctl."""
        return getattr(self.numbers, "number", 8)

    def set_num_threads(self, number: int) -> None:
        """
        :param number: number in the calling thread
        """
        self.numbers.number = number


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_thread_restores_its_own_number(order: Sequence[int], workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    library = PerThread()
    monkeypatch.setattr(threads, "_libraries", lambda: (library,))

    def number() -> int:
        return library.num_threads

    for thread in range(3):
        workers.enter(thread)
    open_blocks = set(range(3))
    for thread in order:
        workers.leave(thread)
        open_blocks.remove(thread)
        assert [workers.do(i, number) for i in range(3)] == [3 if i in open_blocks else 8 for i in range(3)]


def test_an_unknown_blas_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_libraries", lambda: ())
    with blas_threads():
        assert blas_number() == 2
