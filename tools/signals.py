"""SIGTERM and SIGINT ask a run to stop; it writes a checkpoint first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them.

    Yields:
        The numbers of the signals received so far; empty while nobody asked to stop.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
