"""Pieces are fetched in the order of their use, in bounded memory, and errors arrive."""

import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from melstream.pipeline.fetcher import Fetcher, PlannedStep
from melstream.shards.storage import StorageError

HANG_S = 60.0  # after which another thread or process is taken to hang


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name == "melstream-fetch"] == []


class Loads:
    """Pieces of 10 bytes; notes which were loaded, and the most bytes alive at once."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.n_alive = self.most_alive = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> np.ndarray:
        data = np.full(10, number, np.uint8)
        weakref.finalize(data, self._note, -1)
        self._note(1)
        self.numbers.append(number)
        return data

    def _note(self, change: int) -> None:
        with self._lock:
            self.n_alive += change
            self.most_alive = max(self.most_alive, self.n_alive)


def make_fetcher(
    load: Callable[[int], np.ndarray],
    n_pieces: int = 8,
    *,
    max_pieces: int = 100,
    n_threads: int = 1,
    wait_s: float = HANG_S,
) -> Fetcher:
    return Fetcher(
        load,
        np.full(1_000, 10, np.int64),
        max_bytes=10 * n_pieces,
        max_pieces=lambda: max_pieces,
        n_threads=n_threads,
        wait_s=wait_s,
    )


def plan_of(steps: list[list[int]]) -> Iterator[PlannedStep]:
    return iter([PlannedStep(step, 5 * len(step)) for step in steps])


@pytest.mark.parametrize("n_threads", [1, 4])
def test_memory_is_bounded_and_every_piece_loaded_once(n_threads: int) -> None:
    loads = Loads()
    fetcher = make_fetcher(loads, n_threads=n_threads)
    steps = [[n, n + 1, n + 2] for n in range(200)]
    fetcher.plan(plan_of(steps), 10_000)  # further than memory allows
    for step in steps:
        slots = fetcher.hold(step)
        assert [slot.data is not None and int(slot.data[0]) for slot in slots] == [
            number % 256 for number in step
        ]
        fetcher.release(slots)
        del slots
    fetcher.close()
    assert sorted(loads.numbers) == list(range(202))
    assert loads.most_alive <= 8


def test_a_piece_that_is_dropped_is_gone_whoever_knows_its_slot() -> None:
    loads = Loads()
    fetcher = make_fetcher(loads, n_pieces=1)
    slots = fetcher.hold([0])
    fetcher.release(slots)
    assert slots[0].data is not None
    fetcher.release(fetcher.hold([1]))
    assert slots[0].data is None
    assert loads.n_alive == 1
    fetcher.close()


def test_pieces_are_fetched_in_the_order_of_their_first_use_and_only_so_far() -> None:
    loads, ends = Loads(), threading.Event()

    def steps() -> Iterator[PlannedStep]:
        yield PlannedStep([5, 3], 10)
        yield PlannedStep([3, 4], 10)
        yield PlannedStep([9], 10)
        ends.set()  # asked for once more: three steps are not enough for 31 bytes
        yield PlannedStep([7], 10)
        raise AssertionError("asked too far ahead")

    fetcher = make_fetcher(loads)
    fetcher.plan(steps(), 31)
    assert ends.wait(HANG_S)
    fetcher.release(fetcher.hold([5, 3]))
    fetcher.close()
    assert loads.numbers[:4] == [5, 3, 4, 9]


def test_what_fails_ahead_is_tried_again_when_it_is_needed() -> None:
    failed, attempts = threading.Event(), []

    def load(number: int) -> np.ndarray:
        attempts.append(number)
        if len(attempts) == 1:
            failed.set()
            raise StorageError("down")
        return np.zeros(10, np.uint8)

    fetcher = make_fetcher(load)
    fetcher.plan(plan_of([[1], [2]]), 100)
    assert failed.wait(HANG_S)
    while 2 not in attempts:  # the thread has noted the failure before it goes on
        pass
    fetcher.release(fetcher.hold([1]))
    fetcher.close()
    assert attempts == [1, 2, 1]


def test_an_error_reaches_everybody_who_waits() -> None:
    def load(number: int) -> np.ndarray:
        raise StorageError(f"down {number}")

    fetcher = make_fetcher(load)
    for _ in range(2):
        with pytest.raises(StorageError, match="down 1"):
            fetcher.hold([1, 2])
    fetcher.close()


def test_an_error_of_the_plan_reaches_the_step_it_is_for() -> None:
    def steps() -> Iterator[PlannedStep]:
        yield PlannedStep([1], 10)
        raise KeyError("no step")

    fetcher = make_fetcher(Loads())
    fetcher.plan(steps(), 100)

    def go_on() -> None:
        for _ in range(10**6):  # the plan may come late, then for a later step
            fetcher.release(fetcher.hold([1]))

    with pytest.raises(KeyError, match="no step"):
        go_on()
    fetcher.close()


def test_more_than_fits_at_once_is_refused() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=3)
    with pytest.raises(StorageError, match=r"`memory_bytes` allows 30; raise it"):
        fetcher.hold([1, 2, 3, 4])
    fetcher.release(fetcher.hold([2, 3, 4]))
    fetcher.close()


def test_room_that_nobody_gives_back_is_waited_for_so_long_and_no_longer() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=3, wait_s=0.001)
    slots = fetcher.hold([1, 2])
    with pytest.raises(StorageError, match=r"3 pieces .* 30 bytes, and 20 are in use"):
        fetcher.hold([2, 3, 4])
    fetcher.release(slots)
    fetcher.release(fetcher.hold([2, 3, 4]))
    fetcher.close()


def test_room_that_another_thread_gives_back_is_waited_for() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=3)
    slots = fetcher.hold([1, 2])
    releasing = threading.Thread(target=fetcher.release, args=[slots])
    with fetcher._changed:  # it gets its turn once we wait
        releasing.start()
        fetcher.release(fetcher.hold([2, 3, 4]))
    releasing.join(HANG_S)
    fetcher.close()


def test_more_pieces_than_may_be_kept_can_be_held() -> None:
    fetcher = make_fetcher(Loads(), n_pieces=30, max_pieces=4)
    fetcher.release(fetcher.hold(list(range(20))))
    fetcher.close()


def test_closing_ends_who_waits() -> None:
    started, go_on = threading.Event(), threading.Event()

    def load(number: int) -> np.ndarray:
        started.set()
        assert go_on.wait(HANG_S)
        return np.zeros(10, np.uint8)

    fetcher = make_fetcher(load)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            fetcher.hold([1, 2])
        except ValueError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert started.wait(HANG_S)
    closing = threading.Thread(target=fetcher.close)
    closing.start()
    waiting.join(HANG_S)
    go_on.set()
    closing.join(HANG_S)
    assert ["must be open" in str(error) for error in errors] == [True]


def test_four_threads_share_a_fetcher() -> None:
    loads = Loads()
    fetcher = make_fetcher(loads, n_pieces=16, n_threads=3)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            step = rng.choice(40, 4, replace=False).tolist()
            slots = fetcher.hold(step)
            wrong.extend(
                number
                for number, slot in zip(step, slots, strict=True)
                if slot.data is None or slot.data[0] != number
            )
            fetcher.release(slots)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    fetcher.close()
    assert wrong == []
