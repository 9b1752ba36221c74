"""Call a function on each item in a few threads, and give the results in the items' order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_cores() -> int:
    """Count the cores this process may use: a pinned job has fewer than its machine."""
    return len(os.sched_getaffinity(0))


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_threads: int, n_ahead: int
) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order, computed ahead in threads.

    Items are taken from their iterator in the caller's thread, as they are needed. What an
    item's call raises, is raised at its turn. The threads end with the generator: at its end,
    on an error, and when the consumer stops early.

    Args:
        function: releases the GIL, or the threads gain nothing.
        items: taken one by one, ``n_ahead`` at most before their turn.
        n_threads: threads that call it.
        n_ahead: items in work or waiting for their turn, at most: the bound of the memory.

    Yields:
        the results.

    >>> list(parallel_map(abs, range(-3, 3), n_threads=2, n_ahead=4))
    [3, 2, 1, 0, 1, 2]
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="melstream-map")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
