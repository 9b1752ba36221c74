"""Run an iterator ahead of its consumer, in one thread, and end cleanly."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(source: Iterator[T], n_ahead: int) -> Generator[T]:
    """Yield what ``source`` yields, computed up to ``n_ahead`` items ahead.

    The thread ends when the source does, when it raises (the error surfaces here), and when
    the consumer stops early: on ``break``, on an exception, on Ctrl-C.

    Args:
        source: the iterator to run in the thread.
        n_ahead: items kept ready, at least 1.

    Yields:
        the items, in order.
    """
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=n_ahead)
    stopped = threading.Event()

    def put(kind: str, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:  # carried over to the consumer's thread
            put("error", error)

    thread = threading.Thread(target=work, name="melstream-prefetch", daemon=True)
    try:
        thread.start()
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        if thread.is_alive():  # Ctrl-C may come before it has started
            thread.join()
