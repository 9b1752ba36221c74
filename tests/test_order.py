"""The order is a pure function: every sample once, the same batches for every world size."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from melstream.pipeline.draws import derive_key, permutation
from melstream.pipeline.order import EvaluationOrder, OrderConfig, TrainingOrder
from melstream.pipeline.weights import WeightConfig, epoch_counts, expected_counts, sample_weights
from melstream.shards.index import Index

N_CLASSES = 5
WEIGHTS = WeightConfig()


def make_index(shard_sizes: list[int], sample_bytes: int | np.ndarray = 1_000) -> Index:
    """One label per sample; half of the samples have class 0, a quarter class 1, and so on."""
    n = sum(shard_sizes)
    label = np.minimum(np.random.default_rng(n).geometric(0.5, n) - 1, N_CLASSES - 1)
    return Index(
        {
            "shard": np.repeat(np.arange(len(shard_sizes), dtype=np.int32), shard_sizes),
            "n_frames": np.full(n, 10, np.int32),
            "logmel_size": np.zeros(n, np.int64) + sample_bytes,
            "json_size": np.zeros(n, np.int64),
            "label_indptr": np.arange(n + 1),
            "label_ids": label.astype(np.int32),
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
    assume(n >= batch_size)
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


def naive_epoch(index: Index, config: OrderConfig, epoch: int) -> list[int]:
    """The rows of an unweighted epoch, sample by sample."""
    sizes = (index.logmel_size + index.json_size).tolist()
    shards = sorted(set(index.shard.tolist()))
    shuffled = permutation(derive_key(config.seed, epoch, 0), len(shards))
    laid = [row for s in shuffled for row in np.flatnonzero(index.shard == shards[s]).tolist()]
    if sum(sizes) <= config.shuffle_bytes:
        return [laid[i] for i in permutation(derive_key(config.seed, epoch, 1), len(laid))]
    window_bytes = max(1, config.shuffle_bytes // config.n_streams)
    streams = []
    for stream, cut in enumerate(np.array_split(laid, config.n_streams)):
        rank = permutation(derive_key(config.seed, epoch, 2, stream), len(cut)).tolist()
        windows: dict[int, list[tuple[int, int]]] = {}
        total = 0
        for place, row in enumerate(cut.tolist()):
            total += sizes[row]
            windows.setdefault(total // window_bytes, []).append((rank[place], row))
        for held in windows.values():
            assert sum(sizes[row] for _, row in held) < window_bytes + max(sizes)
        streams.append([row for held in windows.values() for _, row in sorted(held)])
    n_streams = config.n_streams
    return [streams[p % n_streams][p // n_streams] for p in range(len(laid))]


@settings(deadline=None, max_examples=60)
@given(
    shard_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
    n_streams=st.sampled_from([1, 3, 8, 64]),
    shuffle_bytes=st.sampled_from([1, 3_000, 100_000]),
)
def test_an_epoch_is_that_of_a_naive_loop(
    shard_sizes: list[int], seed: int, n_streams: int, shuffle_bytes: int
) -> None:
    """Shards permuted, cut into streams, shuffled in windows that are bounded in bytes."""
    sizes = np.random.default_rng(seed).integers(1, 5_000, sum(shard_sizes))
    index = make_index(shard_sizes, sizes)
    config = OrderConfig(
        seed=seed, global_batch_size=1, n_streams=n_streams, shuffle_bytes=shuffle_bytes
    )
    assert epoch_rows(TrainingOrder(index, "f", config), 2).tolist() == naive_epoch(
        index, config, 2
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("tail", ["drop", "wrap"])
@pytest.mark.parametrize("shuffle_bytes", [8_000, 10**9])
def test_global_batches_do_not_depend_on_the_world_size(
    shuffle_bytes: int, tail: str, weights: WeightConfig | None
) -> None:
    order = make_order([30, 50, 20, 33], shuffle_bytes=shuffle_bytes, tail=tail, weights=weights)
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


def test_many_ranks_fetch_little_beyond_their_share() -> None:
    """256 ranks, each in blocks of 1 MiB: at most 1.1 times the bytes it serves."""
    n, n_ranks, n_bytes, in_shard = 2**18, 256, 100_000, 2_000
    sizes = [in_shard] * (n // in_shard) + [n % in_shard]
    config = OrderConfig(global_batch_size=2_048, n_streams=n_ranks, shuffle_bytes=2**30)
    order = TrainingOrder(make_index(sizes, n_bytes), "f", config)
    rows = epoch_rows(order, 0)
    assert sorted(rows.tolist()) == list(range(n))
    for rank in range(n_ranks):
        served = rows[rank::n_ranks]
        assert len(served) == n // n_ranks
        first = served % in_shard * n_bytes
        touched = np.concatenate([first // 2**20, (first + n_bytes - 1) // 2**20])
        blocks = np.unique(np.tile(served // in_shard, 2) * 2**20 + touched)
        assert len(blocks) * 2**20 <= 1.1 * len(served) * n_bytes


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


def as_saved(state: dict[str, object]) -> dict[str, object]:
    """What a checkpoint gives back."""
    return json.loads(json.dumps(state))


def served(order: TrainingOrder, first: int, last: int, world_size: int) -> list[list[int]]:
    """The global batches of some steps, put together from the ranks'."""
    return [
        np.stack([order.rows(step, rank=r, world_size=world_size) for r in range(world_size)], 1)
        .reshape(-1)
        .tolist()
        for step in range(first, last)
    ]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("tail", ["drop", "wrap"])
def test_resume_goes_on_from_every_step_twice_in_a_row(
    tail: str, weights: WeightConfig | None
) -> None:
    """N steps equal k steps, a resume, and N - k, at the end of an epoch, on other ranks too."""
    settings = {"tail": tail, "weights": weights}
    n_steps = 2 * make_order([20, 21], **settings).steps_per_epoch + 1
    whole = served(make_order([20, 21], **settings), 0, n_steps, 1)
    for first in range(n_steps):
        order = make_order([20, 21], **settings)
        step = order.resume(as_saved(make_order([20, 21], **settings).state(first)))
        for second in range(first, n_steps):
            middle = served(order, step, second, 2)
            last = make_order([20, 21], **settings).resume(as_saved(order.state(second)))
            rest = served(order, last, n_steps, 4)
            assert whole[:first] + middle + rest == whole


def test_resume_needs_no_replay() -> None:
    """A step far ahead costs two epochs at most, whatever came before."""
    order = make_order([20, 20])
    step = order.resume(order.state(10**12))
    assert step == 10**12
    assert len(order.rows(step)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "g"}, "fingerprint: saved 'f', now 'g'"),
        ({"seed": 5}, "seed: saved 0, now 5"),
        ({"global_batch_size": 4}, "global_batch_size: saved 8, now 4"),
        ({"n_streams": 16}, "n_streams: saved 8, now 16"),
        ({"tail": "wrap"}, "tail: saved 'drop', now 'wrap'"),
        ({"shuffle_bytes": 7}, f"shuffle_bytes: saved {2**30}, now 7"),
        ({"weights": WEIGHTS}, r"weights: saved None, now \{'formula': 'inverse'"),
    ],
)
def test_a_changed_data_set_or_setting_is_refused_with_both_values(
    change: dict[str, object], message: str
) -> None:
    state = make_order([40]).state(3)
    with pytest.raises(ValueError, match=message):
        make_order([40], **change).resume(state)


def test_other_rows_or_labels_are_refused() -> None:
    config = OrderConfig(global_batch_size=4)
    rows, others = np.arange(0, 40, 2), np.arange(1, 40, 2)
    state = TrainingOrder(make_index([40]), "f", config, rows).state(1)
    with pytest.raises(ValueError, match=r"rows: saved '\w{16}', now '\w{16}'"):
        TrainingOrder(make_index([40]), "f", config, others).resume(state)
    index, config = make_index([40]), OrderConfig(global_batch_size=4, weights=WEIGHTS)
    state = TrainingOrder(index, "f", config).state(1)
    index.label_ids[:] = index.label_ids[::-1].copy()
    with pytest.raises(ValueError, match=r"expected_counts: saved '\w{16}', now '\w{16}'"):
        TrainingOrder(index, "f", config).resume(state)


@settings(deadline=None, max_examples=60)
@given(
    shard_sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 100),
    shuffle_bytes=st.sampled_from([1, 3_000, 10**9]),
    tail=st.sampled_from(["drop", "wrap"]),
)
def test_a_weighted_epoch_serves_each_sample_as_often_as_its_count_says(
    shard_sizes: list[int], seed: int, epoch: int, shuffle_bytes: int, tail: str
) -> None:
    n = sum(shard_sizes)
    assume(tail == "wrap" or n >= 8)
    settings = {"seed": seed, "shuffle_bytes": shuffle_bytes, "tail": tail}
    order = make_order(shard_sizes, weights=WEIGHTS, **settings)
    assert order.steps_per_epoch == make_order(shard_sizes, **settings).steps_per_epoch
    weights = sample_weights(make_index(shard_sizes), WEIGHTS)
    counts = epoch_counts(expected_counts(weights), seed=seed, epoch=epoch)
    rows = epoch_rows(order, epoch)
    n_served = np.bincount(rows, minlength=n)
    total = counts.sum()
    if total >= len(rows):
        assert (n_served <= counts).all()
    else:
        assert (n_served >= counts).all()
        assert rows[total:].tolist() == np.resize(rows[:total], len(rows))[total:].tolist()


def test_a_weighted_stream_keeps_to_a_few_shards_and_spreads_copies() -> None:
    """The one clip of a rare class stands 25 times, neither in a row nor outside its shard."""
    index = make_index([1_000] * 8)
    index.label_ids[:] = 0
    index.label_ids[3_500] = 1
    settings = {"global_batch_size": 2, "n_streams": 2, "shuffle_bytes": 2 * 20_000}
    config = OrderConfig(weights=WeightConfig(max_repeats=25), **settings)
    rows = epoch_rows(TrainingOrder(index, "f", config), 0)
    assert rows.tolist().count(3_500) == 25
    for stream in rows.reshape(-1, 2).T:
        windows = [stream[i : i + 20] for i in range(0, len(stream) - 20, 20)]
        assert max(len(set((window // 1_000).tolist())) for window in windows) <= 2
        assert max((window == 3_500).sum() for window in windows) <= 6


def test_the_order_of_two_million_samples_is_small() -> None:
    """Memory in proportion: under 50 bytes a sample, so 100 MB for two million."""
    n = 200_000
    index = make_index([1_000] * 200)
    for weights in (None, WEIGHTS):
        config = OrderConfig(global_batch_size=64, weights=weights, shuffle_bytes=2**20)
        TrainingOrder(index, "f", config).rows(0)  # compiles
        tracemalloc.start()
        order = TrainingOrder(index, "f", config)
        order.rows(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50 * n


def test_rows_in_disorder_are_refused() -> None:
    with pytest.raises(ValueError, match="`rows` must be ascending, found 3 after 5"):
        TrainingOrder(make_index([40]), "f", OrderConfig(global_batch_size=1), np.array([1, 5, 3]))


def test_a_rank_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`rank` must be in 0..world_size-1 \(0..3\), found 4"):
        make_order([40]).rows(0, rank=4, world_size=4)


def test_there_is_one_source() -> None:
    for order in (make_order([40]), EvaluationOrder(np.arange(40), 8)):
        assert order.sources(1, rank=1, world_size=2).tolist() == [0] * 4


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
    with pytest.raises(
        ValueError, match=r"`world_size` must divide .* found 3; take a divisor of 8"
    ):
        make_order([40]).rows(0, rank=0, world_size=3)


def test_only_the_chosen_rows_take_part() -> None:
    rows = np.arange(0, 100, 3)
    config = OrderConfig(global_batch_size=4, tail="wrap")
    order = TrainingOrder(make_index([50, 50]), "f", config, rows)
    assert set(epoch_rows(order, 0).tolist()) == set(rows.tolist())


def test_evaluation_serves_each_sample_once_over_ranks_and_marks_the_rest() -> None:
    order = EvaluationOrder(np.arange(21), 8)
    rows = [
        row
        for step in range(order.steps_per_epoch)
        for rank in range(4)
        for row in order.rows(step, rank=rank, world_size=4)
    ]
    assert sorted(row for row in rows if row >= 0) == list(range(21))
    assert rows.count(-1) == 3


def test_evaluation_ranks_read_ranges_and_one_rank_reads_in_stored_order() -> None:
    order = EvaluationOrder(np.arange(30), 8)
    steps = range(order.steps_per_epoch)
    assert np.concatenate([order.rows(s) for s in steps])[:30].tolist() == list(range(30))
    for rank in range(4):
        rows = np.concatenate([order.rows(s, rank=rank, world_size=4) for s in steps])
        assert (np.diff(rows[rows >= 0]) == 1).all()


def test_evaluation_serves_only_the_rows_it_is_given() -> None:
    order = EvaluationOrder(np.array([2, 3, 5, 7, 11]), 4)
    rows = [order.rows(s, rank=r, world_size=2).tolist() for r in range(2) for s in range(2)]
    assert rows == [[2, 3], [5, 7], [11, -1], [-1, -1]]


def test_evaluation_refuses_a_world_size_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"must divide `global_batch_size` \(8\), found 3"):
        EvaluationOrder(np.arange(30), 8).rows(0, world_size=3)
