"""Fetch numbered pieces in a few threads, ahead of their use, in bounded memory.

A piece is *held* while somebody uses it, *idle* when nobody does, and dropped when its room
is needed: what no coming step asks for first, least recently used first. What is held and
what is idle stay together under the bound, at every moment.

Steps to come are pulled from an iterator, as far ahead as their bytes allow, and their
pieces fetched in that order. What somebody waits for goes first.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..shards.storage import StorageError

Bytes = npt.NDArray[np.uint8]
Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a step to come asks for.

    Args:
        pieces: their numbers.
        n_bytes: of the samples it reads.
    """

    pieces: Sequence[int]
    n_bytes: int


@dataclass(slots=True, eq=False)
class Slot:
    """A piece that is wanted, being fetched, or here.

    Attributes:
        number: of the piece.
        data: its bytes; None until they are here.
        error: why they cannot be had.
        n_holds: how many use it, or wait for it.
        is_started: a thread fetches it, or has; its room is taken.
    """

    number: int
    data: Bytes | None = None
    error: BaseException | None = None
    n_holds: int = 0
    is_started: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it is here and nobody uses it."""
        return self.data is not None and not self.n_holds


class Fetcher:
    """Pieces at hand, the threads that fetch them, and what they fetch ahead.

    Args:
        load: returns the bytes of a piece; called from several threads.
        n_bytes: of every piece, int64.
        max_bytes: most bytes of pieces at once.
        max_pieces: tells the most pieces to keep, unless more are held at once.
        n_threads: pieces fetched at once.
        wait_s: longest time to wait for room that others hold, in seconds.
    """

    def __init__(
        self,
        load: Callable[[int], Bytes],
        n_bytes: npt.NDArray[np.int64],
        *,
        max_bytes: int,
        max_pieces: Callable[[], int],
        n_threads: int,
        wait_s: float,
    ) -> None:
        self._load, self._n_bytes = load, n_bytes
        self._max_bytes, self._max_pieces = max_bytes, max_pieces
        self._n_threads, self._wait_s = n_threads, wait_s
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._slots: dict[int, Slot] = {}  # least recently used first
        self._demanded: deque[Slot] = deque()
        self._held_bytes = self._started_bytes = self._n_started = 0
        self._plan: _Plan | None = None

    def hold(self, numbers: Sequence[int]) -> list[Slot]:
        """Wait until pieces are here, and keep them here.

        Args:
            numbers: of the pieces, each once.

        Raises:
            StorageError: they do not fit under the bound, or not beside what others still hold
                after ``wait_s``.
            ValueError: this is closed.
        """
        with self._changed:
            self._start()
            self._wait_for_room(numbers)  # while the plan still keeps what is fetched of them
            if self._plan is not None:
                self._plan.arrive()
            slots = self._demand(numbers)
            try:
                for slot in slots:
                    while slot.data is None and slot.error is None:
                        self._changed.wait()
                        self._check_open()
                    if slot.error is not None:
                        raise slot.error
            except BaseException:
                self._let_go(slots)
                raise
            return slots

    def release(self, slots: Sequence[Slot]) -> None:
        """Say that pieces are not used any more."""
        with self._changed:
            self._let_go(slots)

    def plan(self, steps: Iterator[PlannedStep], ahead_bytes: int) -> None:
        """Fetch ahead what the next calls of ``hold`` will ask for; replaces an older plan.

        Args:
            steps: one for each call of ``hold``, in order; read in the threads.
            ahead_bytes: how far to look ahead, in bytes of samples.
        """
        with self._changed:
            self._start()
            self._plan = _Plan(steps, ahead_bytes)
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads, each after the request it is in, and drop what is idle."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._slots.clear()
        self._plan = None

    def abandon(self) -> None:
        """Drop all pieces; in a forked process, where a thread of the parent may have the lock."""
        self._slots.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("a source of shards must be open, this one is closed; open a new one")

    def _start(self) -> None:
        self._check_open()
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name="melstream-fetch", daemon=True)
                for _ in range(self._n_threads)
            ]
            for thread in self._threads:
                thread.start()

    def _demand(self, numbers: Sequence[int]) -> list[Slot]:
        slots = [self._slots.get(number) or Slot(number) for number in numbers]
        self._held_bytes += self._new_bytes(numbers)
        for slot in slots:
            slot.n_holds += 1
            self._slots.pop(slot.number, None)
            self._slots[slot.number] = slot  # now the most recently used
            if not slot.is_started and slot.n_holds == 1:
                self._demanded.append(slot)
        self._changed.notify_all()
        return slots

    def _wait_for_room(self, numbers: Sequence[int]) -> None:
        """Wait until pieces fit beside what is held."""
        n_bytes = int(self._n_bytes[list(numbers)].sum())

        def have_room() -> bool:
            return self._is_closed or self._held_bytes + self._new_bytes(numbers) <= self._max_bytes

        if n_bytes > self._max_bytes or not self._changed.wait_for(have_room, self._wait_s):
            raise StorageError(
                f"a batch needs {len(numbers)} pieces of shards at once, {n_bytes} bytes, and "
                f"{self._held_bytes} are in use, `memory_bytes` allows {self._max_bytes}; raise "
                "it, or lower the order's `shuffle_bytes` or `piece_bytes`"
            )
        self._check_open()

    def _new_bytes(self, numbers: Sequence[int]) -> int:
        """Return the bytes of those pieces that nobody holds."""
        held = self._slots
        new = [n for n in numbers if n not in held or not held[n].n_holds]
        return int(self._n_bytes[new].sum())

    def _let_go(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.n_holds -= 1
            if not slot.n_holds:
                self._held_bytes -= self._size(slot)
                if not slot.is_started:
                    self._forget(slot)
        self._changed.notify_all()

    def _work(self) -> None:
        """Run jobs until the end; what is chosen and noted is under the lock, the rest not."""
        while True:
            with self._changed:
                job = self._next_job()
                while job is None and not self._is_closed:
                    self._changed.wait()
                    job = self._next_job()
            if job is None or self._is_closed:
                return
            job()

    def _next_job(self) -> Job | None:
        while self._demanded and not self._is_wanted(self._demanded[0]):
            self._demanded.popleft()
        if self._demanded:
            slot = self._demanded[0]
            if not self._make_room(slot, for_holder=True):
                return None  # until what is fetched ahead just now is here, and can be dropped
            self._demanded.popleft()
            return self._started(slot)
        plan = self._plan
        if plan is None:
            return None
        while plan.pieces:
            number = plan.pieces[0]
            if number not in self._slots and plan.coming[number]:
                slot = Slot(number)
                if not self._make_room(slot, for_holder=False):
                    return None
                plan.pieces.popleft()
                self._slots[number] = slot
                return self._started(slot)
            plan.pieces.popleft()
        return (lambda: self._pull(plan)) if plan.take_turn() else None

    def _is_wanted(self, slot: Slot) -> bool:
        return bool(slot.n_holds) and not slot.is_started

    def _started(self, slot: Slot) -> Job:
        slot.is_started = True
        self._started_bytes += self._size(slot)
        self._n_started += 1
        return lambda: self._fetch(slot)

    def _fetch(self, slot: Slot) -> None:
        data, error = None, None
        try:
            data = self._load(slot.number)
        except BaseException as caught:  # carried over to whoever waits for it
            error = caught
        with self._changed:
            slot.data, slot.error = data, error
            del data
            if error is not None:
                self._drop(slot)  # who asks again has it fetched again
            self._changed.notify_all()

    def _pull(self, plan: "_Plan") -> None:
        """Ask a plan for its next step, which may take long."""
        step = error = None
        try:
            step = next(plan.steps, None)
        except BaseException as caught:  # carried over to whoever asks for the step
            error = caught
        with self._changed:
            plan.add(step)
            plan.error = error
            self._changed.notify_all()

    def _make_room(self, slot: Slot, *, for_holder: bool) -> bool:
        """Drop idle pieces until one more fits; what is to come is dropped for a holder only."""
        size = self._size(slot)
        while self._started_bytes + size > self._max_bytes or self._n_started >= self._max_pieces():
            victim = self._find_victim(for_holder)
            if victim is None:
                return for_holder and self._started_bytes + size <= self._max_bytes
            self._drop(victim)
        return True

    def _find_victim(self, for_holder: bool) -> Slot | None:
        """Return the piece to drop: one that no coming step needs, else the one needed last."""
        plan, slots = self._plan, self._slots.values()
        free = next((s for s in slots if s.is_idle and not (plan and plan.coming[s.number])), None)
        if plan is None or free is not None or not for_holder:
            return free
        place = plan.first_uses()
        idle = (slot for slot in slots if slot.is_idle)
        return max(idle, key=lambda slot: place[slot.number], default=None)

    def _drop(self, slot: Slot) -> None:
        slot.data = None  # now: a thread that fetched it may know the slot for a while yet
        self._started_bytes -= self._size(slot)
        self._n_started -= 1
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        if self._slots.get(slot.number) is slot:
            del self._slots[slot.number]

    def _size(self, slot: Slot) -> int:
        return int(self._n_bytes[slot.number])


class _Plan:
    """Steps to come: those pulled from the iterator and not asked for yet.

    Attributes:
        pieces: numbers still to be fetched ahead, in the order of their first use.
        coming: how many of the pulled steps ask for a piece.
        error: what the iterator raised.
    """

    def __init__(self, steps: Iterator[PlannedStep], ahead_bytes: int) -> None:
        self.steps = steps
        self.pieces: deque[int] = deque()
        self.coming: Counter[int] = Counter()
        self.error: BaseException | None = None
        self._ahead_bytes = ahead_bytes
        self._pulled: deque[PlannedStep] = deque()
        self._pulled_bytes = 0
        self._n_late = 0  # steps asked for before they were pulled
        self._is_idle = True  # nobody asks the iterator

    def take_turn(self) -> bool:
        """Tell whether one more step may be pulled; if so, nobody else may until ``add``."""
        if not self._is_idle or self._pulled_bytes >= self._ahead_bytes:
            return False
        self._is_idle = False
        return True

    def add(self, step: PlannedStep | None) -> None:
        """Note a step that was pulled; None at the end of all steps."""
        if step is None:
            return  # and nobody takes a turn again
        self._is_idle = True
        if self._n_late:
            self._n_late -= 1
            return
        self._pulled.append(step)
        self._pulled_bytes += step.n_bytes
        self.coming.update(step.pieces)
        self.pieces.extend(step.pieces)

    def arrive(self) -> None:
        """Note that the next step is asked for; raise what the iterator raised instead of it."""
        if not self._pulled:
            if self.error is not None:
                raise self.error
            self._n_late += 1
            return
        step = self._pulled.popleft()
        self._pulled_bytes -= step.n_bytes
        self.coming.subtract(step.pieces)

    def first_uses(self) -> dict[int, int]:
        """Return, for each coming piece, the place of the first pulled step that needs it."""
        places: dict[int, int] = {}
        for place, step in enumerate(self._pulled):
            for number in step.pieces:
                places.setdefault(number, place)
        return places
