"""numpy's BLAS has torch's number of threads within a block, and its own again after the last one."""

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


def of_blas() -> int:
    """
    :return: number of threads of the BLAS, as this thread sees it
    """
    numbers = {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"}
    if not numbers:
        pytest.skip("threadpoolctl does not find numpy's BLAS")
    assert len(numbers) == 1
    return numbers.pop()  # type: ignore[no-any-return]  # threadpoolctl is untyped


def set_blas(number: int) -> None:
    """
    :param number: of threads of the BLAS, until somebody sets another
    """
    for library in threads._libraries():
        threads._set(library, number)


@pytest.fixture(autouse=True)
def three_for_torch() -> Iterator[None]:
    """Three threads for torch, two for the BLAS."""
    before = th.get_num_threads(), of_blas()
    th.set_num_threads(3)
    set_blas(2)
    yield
    th.set_num_threads(before[0])
    set_blas(before[1])
    assert not threads._limits


def test_a_block_has_torchs_number() -> None:
    with blas_threads():
        assert of_blas() == 3
    assert of_blas() == 2


def test_the_number_is_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), blas_threads():
        raise KeyError
    assert of_blas() == 2


def test_nested_blocks_follow_torch_and_restore_at_the_end() -> None:
    with blas_threads():
        th.set_num_threads(1)
        with blas_threads():
            assert of_blas() == 1
        assert of_blas() == 1
    assert of_blas() == 2


def test_a_number_set_by_somebody_else_within_the_block_stays() -> None:
    with blas_threads():
        set_blas(1)
        assert of_blas() == 1
    assert of_blas() == 1


class Workers:
    """
    Threads that open and close a block each, on command.

    :param n: number of threads
    """

    def __init__(self, n: int) -> None:
        self.threads = [ThreadPoolExecutor(1) for _ in range(n)]
        self.blocks: list[AbstractContextManager[None]] = [blas_threads() for _ in range(n)]

    def do(self, thread: int, what: Callable[..., Any], *args: Any) -> Any:
        """
        :param thread: number of the thread
        :param what: function
        :param args: its arguments
        :return: its result, in that thread
        """
        return self.threads[thread].submit(what, *args).result(timeout=30)

    def enter(self, thread: int) -> None:
        """
        :param thread: number of the thread whose block begins
        """
        self.do(thread, self.blocks[thread].__enter__)

    def leave(self, thread: int) -> None:
        """
        :param thread: number of the thread whose block ends
        """
        self.do(thread, self.blocks[thread].__exit__, None, None, None)


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Three threads that have not begun."""
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
        assert of_blas() == 3
        workers.leave(thread)
    assert of_blas() == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_block_that_begins_after_another_ended_still_counts(order: Sequence[int], workers: Workers) -> None:
    """Blocks 0 and 1 overlap, 2 begins when one of them has ended, and the other ends before it."""
    first, second = order
    workers.enter(0)
    workers.enter(1)
    workers.leave(first)
    workers.enter(2)
    workers.leave(second)
    assert of_blas() == 3
    workers.leave(2)
    assert of_blas() == 2


def test_the_limits_of_others_work_in_other_threads_afterwards(workers: Workers) -> None:
    """OpenBLAS is not reserved for a thread of ours."""
    workers.enter(0)
    workers.leave(0)

    def limited() -> int:
        with threadpool_limits(1, user_api="blas"):
            return of_blas()

    assert workers.do(1, limited) == 1
    assert of_blas() == 2


class PerThread:
    """A library whose number of threads belongs to the thread that sets it, as of MKL."""

    internal_api = "mkl"

    def __init__(self) -> None:
        self.numbers = threading.local()

    @property
    def num_threads(self) -> int:
        """As threadpoolctl has it."""
        return getattr(self.numbers, "number", 8)

    def set_num_threads(self, number: int) -> None:
        """
        :param number: for this thread
        """
        self.numbers.number = number


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_where_the_number_belongs_to_a_thread_each_restores_its_own(
    order: Sequence[int], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_without_a_known_blas_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_libraries", lambda: ())
    with blas_threads():
        assert of_blas() == 2
