"""Do one thing to many, several at once: here in threads; cluster.mapping does the same on Ray.

What is done is a function of its item alone and runs with a single-threaded BLAS, so that the numbers are the same bits
wherever it runs and however many run beside it. (Fits this small are also twice as fast on one thread as on two.)
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def ignore(_: int) -> None:
    """Nobody wants to know how far it is."""


class Mapper(Protocol):
    """Where work on many items is done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[int], None] = ignore
    ) -> list[Result]:
        """What the function makes of each item, in order.

        Args:
            function: depends on nothing but its item, and may run in another process: what it refers to must pickle.
            on_done: called with the number of items done since the last call.
        """


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[int], None] = ignore
) -> list[Result]:
    """As `Mapper`, in threads of this process."""

    def do(item: Item) -> Result:
        result = function(item)
        on_done(1)
        return result

    with one_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(do, items))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra computes with one thread here, and in threads that begin meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that begin take this over
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
