"""The order is a pure function: every sample once, the same batches for every world size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline.order import EvaluationOrder, OrderConfig, TrainingOrder
from melstream.shards.index import Index


def make_index(shard_sizes: list[int], sample_bytes: int = 1_000) -> Index:
    n = sum(shard_sizes)
    return Index(
        {
            "shard": np.repeat(np.arange(len(shard_sizes), dtype=np.int32), shard_sizes),
            "n_frames": np.full(n, 10, np.int32),
            "logmel_size": np.full(n, sample_bytes, np.int64),
            "json_size": np.zeros(n, np.int64),
        }
    )


def make_order(
    shard_sizes: list[int], *, fingerprint: str = "f", **config: object
) -> TrainingOrder:
    settings = {"global_batch_size": 8, "n_streams": 8} | config
    return TrainingOrder(make_index(shard_sizes), fingerprint, OrderConfig.model_validate(settings))


def epoch_rows(order: TrainingOrder, epoch: int, world_size: int = 1) -> np.ndarray:
    """The rows of an epoch, as the ranks together serve them."""
    first = epoch * order.steps_per_epoch
    batches = []
    for step in range(first, first + order.steps_per_epoch):
        ranks = [order.rows(step, rank=r, world_size=world_size) for r in range(world_size)]
        batches.append(np.stack(ranks, 1).reshape(-1))
    return np.concatenate(batches)


@settings(deadline=None, max_examples=60)
@given(
    shard_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    shuffle_bytes=st.sampled_from([1, 20_000, 10**9]),
    batch_size=st.sampled_from([1, 2, 8]),
)
def test_every_sample_is_served_once_per_epoch(
    shard_sizes: list[int], seed: int, shuffle_bytes: int, batch_size: int
) -> None:
    n = sum(shard_sizes)
    if n < batch_size:
        return
    order = make_order(
        shard_sizes,
        seed=seed,
        shuffle_bytes=shuffle_bytes,
        global_batch_size=batch_size,
        n_streams=8,
    )
    for epoch in (0, 3):
        rows = epoch_rows(order, epoch)
        assert len(rows) == n - n % batch_size
        assert len(set(rows.tolist())) == len(rows)
        assert rows.min() >= 0
        assert rows.max() < n


@pytest.mark.parametrize("shuffle_bytes", [8_000, 10**9])
def test_global_batches_do_not_depend_on_the_world_size(shuffle_bytes: int) -> None:
    order = make_order([30, 50, 20, 33], shuffle_bytes=shuffle_bytes)
    alone = epoch_rows(order, 1)
    for world_size in (2, 4, 8):
        np.testing.assert_array_equal(epoch_rows(order, 1, world_size), alone)


def test_a_rank_reads_its_own_streams_only() -> None:
    order = make_order([40] * 8, shuffle_bytes=1)
    seen = [
        {
            row
            for step in range(order.steps_per_epoch)
            for row in order.rows(step, rank=r, world_size=4)
        }
        for r in range(4)
    ]
    assert all(not seen[a] & seen[b] for a in range(4) for b in range(a))


def test_a_stream_stays_inside_its_window() -> None:
    """Samples of one stream are shuffled over a window of bytes, not over the epoch."""
    order = make_order([100] * 8, n_streams=8, shuffle_bytes=8 * 20_000, global_batch_size=8)
    rows = epoch_rows(order, 0).reshape(-1, 8)
    for stream in rows.T:
        shards_at_once = [len(set((stream[i : i + 20] // 100).tolist())) for i in range(80)]
        assert max(shards_at_once) <= 3
        assert (np.diff(stream) != 1).mean() > 0.5


def test_a_set_that_fits_the_budget_is_shuffled_as_a_whole() -> None:
    rows = epoch_rows(make_order([512]), 0)
    place = np.argsort(rows)
    assert abs(np.corrcoef(place, np.arange(512))[0, 1]) < 0.15


def test_epochs_and_seeds_differ() -> None:
    order = make_order([64, 64])
    assert (epoch_rows(order, 0) != epoch_rows(order, 1)).any()
    assert (epoch_rows(order, 0) != epoch_rows(make_order([64, 64], seed=1), 0)).any()


def test_resume_goes_on_from_every_step_twice_in_a_row() -> None:
    """N steps equal k steps, a resume, and N - k steps, across the end of an epoch."""
    n_steps = 2 * make_order([20, 20]).steps_per_epoch + 1
    whole = [make_order([20, 20]).rows(step).tolist() for step in range(n_steps)]
    for first in range(n_steps):
        for second in range(first, n_steps):
            state = make_order([20, 20]).state(first)
            step = make_order([20, 20]).resume(state)
            middle = [make_order([20, 20]).rows(s).tolist() for s in range(step, second)]
            last = make_order([20, 20]).resume(make_order([20, 20]).state(second))
            rest = [make_order([20, 20]).rows(s).tolist() for s in range(last, n_steps)]
            assert whole[:first] + middle + rest == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "g"}, "fingerprint: saved 'f', now 'g'"),
        ({"seed": 5}, "seed: saved 0, now 5"),
        ({"global_batch_size": 4}, "global_batch_size: saved 8, now 4"),
        ({"n_streams": 16}, "n_streams: saved 8, now 16"),
    ],
)
def test_a_changed_data_set_or_setting_is_refused_with_both_values(
    change: dict[str, object], message: str
) -> None:
    state = make_order([40]).state(3)
    with pytest.raises(ValueError, match=message):
        make_order([40], **change).resume(state)


def test_wrap_fills_the_last_batch_from_the_start_of_the_epoch() -> None:
    order = make_order([21], tail="wrap")
    rows = epoch_rows(order, 0)
    assert len(rows) == 24
    assert rows[21:].tolist() == rows[:3].tolist()
    assert set(rows.tolist()) == set(range(21))


def test_too_few_samples_for_a_batch_say_what_to_change() -> None:
    with pytest.raises(ValueError, match='lower it, or set tail = "wrap"'):
        make_order([5])


def test_a_world_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="`world_size` must divide"):
        make_order([40]).rows(0, rank=0, world_size=3)


def test_only_the_chosen_rows_take_part() -> None:
    rows = np.arange(0, 100, 3)
    config = OrderConfig(global_batch_size=4, tail="wrap")
    order = TrainingOrder(make_index([50, 50]), "f", config, rows)
    assert set(epoch_rows(order, 0).tolist()) == set(rows.tolist())


def test_evaluation_serves_each_sample_once_over_ranks_and_marks_the_rest() -> None:
    order = EvaluationOrder(21, 8)
    rows = [
        row
        for step in range(order.steps_per_epoch)
        for rank in range(4)
        for row in order.rows(step, rank=rank, world_size=4)
    ]
    assert sorted(row for row in rows if row >= 0) == list(range(21))
    assert rows.count(-1) == 3
