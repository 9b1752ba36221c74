"""SIGTERM and Ctrl-C ask a run to stop; it writes a checkpoint first, unless asked twice.

A second Ctrl-C stops at once: whoever presses it again sits there and waits. A second SIGTERM
changes nothing: schedulers repeat theirs, and mean the same.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def catch_signals(say: Callable[[], object]) -> Iterator[list[int]]:
    """Collect SIGTERM and the first SIGINT instead of dying of them.

    Args:
        say: answers the first SIGINT.

    Yields:
        The numbers of the signals received so far; empty while nobody asked to stop.

    Raises:
        KeyboardInterrupt: at the second SIGINT, unless somebody outside handles it otherwise.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            with suppress(RuntimeError):  # the signal came amid a write to the same stream
                say()

    before = {
        int(number): signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
