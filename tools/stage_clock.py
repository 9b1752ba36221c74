"""How long each stage of a piece of work takes, in all."""

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


class StageClock:
    """Add up the seconds spent in each named stage.

    >>> clock = StageClock()
    >>> with clock("decode"):
    ...     pass
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the block for ``stage``, also if it ends with an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed

    def iterate(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """Pass items on, counting for ``stage`` the time that each takes to come."""
        while True:
            with self(stage):
                item = next(items, None)
            if item is None:
                return
            yield item
