"""Batches by length are a pure function: bounded, each sample once, alike on all world sizes."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from melstream.pipeline.length_order import LengthConfig, LengthOrder, padded_share
from melstream.pipeline.loader import Loader, LoaderConfig
from melstream.pipeline.masks import MaskConfig, count_masked
from melstream.pipeline.order import Order, OrderConfig, TrainingOrder
from melstream.pipeline.weights import WeightConfig
from melstream.shards.dataset import Dataset
from melstream.shards.index import Index

BOUND = 20_000  # frames
SMALL = 40_000  # bytes: a pool of about 5 % of ``long_index``


def make_index(shard_sizes: list[int], *, seed: int = 0) -> Index:
    """Lengths as sound effects have them: many short ones, a few long ones."""
    n = sum(shard_sizes)
    n_frames = np.clip(np.exp(np.random.default_rng(seed).normal(5, 1, n)), 5, 2_000)
    return Index(
        {
            "shard": np.repeat(np.arange(len(shard_sizes), dtype=np.int32), shard_sizes),
            "n_frames": n_frames.astype(np.int32),
            "logmel_size": n_frames.astype(np.int64),
            "json_size": np.zeros(n, np.int64),
            "label_indptr": np.arange(n + 1),
            "label_ids": (np.arange(n) % 5 == 0).astype(np.int32),
        }
    )


def long_index() -> Index:
    return make_index([100] * 40)


def make_order(index: Index, *, fingerprint: str = "f", **settings: Any) -> LengthOrder:
    chosen = {"global_batch_frames": BOUND, "n_streams": 8} | settings
    return LengthOrder(index, fingerprint, LengthConfig.model_validate(chosen))


def steps_of(order: Order, epoch: int) -> range:
    first = epoch * order.steps_per_epoch
    return range(first, first + order.steps_per_epoch)


def epoch_rows(order: Order, epoch: int) -> np.ndarray:
    return np.concatenate([order.rows(step) for step in steps_of(order, epoch)])


def global_batch(order: Order, step: int, world_size: int) -> list[int]:
    """The batch of a step, put together from the ranks'."""
    ranks = [order.rows(step, rank=r, world_size=world_size) for r in range(world_size)]
    return np.stack(ranks, axis=1).reshape(-1).tolist()


@given(
    shard_sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    shuffle_bytes=st.sampled_from([1, 5_000, 10**9]),
    n_lanes=st.sampled_from([1, 2, 8]),
    tail=st.sampled_from(["drop", "wrap"]),
)
def test_every_sample_is_served_once_and_the_bound_is_kept(
    shard_sizes: list[int], seed: int, shuffle_bytes: int, n_lanes: int, tail: str
) -> None:
    n = sum(shard_sizes)
    assume(n >= n_lanes)
    index = make_index(shard_sizes, seed=seed)
    order = make_order(index, seed=seed, shuffle_bytes=shuffle_bytes, n_lanes=n_lanes, tail=tail)
    for epoch in (0, 3):
        for step in steps_of(order, epoch):
            for rank in range(n_lanes):
                n_frames = index.n_frames[order.rows(step, rank=rank, world_size=n_lanes)]
                assert len(n_frames) == len(order.rows(step)) // n_lanes > 0
            n_frames = index.n_frames[order.rows(step)]
            assert len(n_frames) * n_frames.max() <= BOUND
        n_served = np.bincount(epoch_rows(order, epoch), minlength=n)
        rest = -n % n_lanes if tail == "wrap" else -(n % n_lanes)
        assert n_served.max() <= 1 + (rest > 0)
        assert n_served.sum() <= n + rest
        assert epoch or n_served.sum() == n + rest


@pytest.mark.parametrize("shuffle_bytes", [SMALL, 10**9])
def test_later_epochs_leave_nothing_out_either(shuffle_bytes: int) -> None:
    """They have the steps of the first epoch, and some to spare."""
    order = make_order(long_index(), shuffle_bytes=shuffle_bytes)
    for epoch in range(12):
        assert set(epoch_rows(order, epoch).tolist()) == set(range(4_000))


@pytest.mark.parametrize("shuffle_bytes", [SMALL, 10**9])
@pytest.mark.parametrize("weights", [None, WeightConfig()])
def test_global_batches_do_not_depend_on_the_world_size(
    shuffle_bytes: int, weights: WeightConfig | None
) -> None:
    order = make_order(make_index([90, 200, 77]), shuffle_bytes=shuffle_bytes, weights=weights)
    for step in steps_of(order, 1):
        alone = order.rows(step).tolist()
        for world_size in (2, 4, 8):
            assert global_batch(order, step, world_size) == alone


def test_resume_goes_on_from_every_step_on_other_ranks_too() -> None:
    index = make_index([50, 70, 60])
    whole = make_order(index, shuffle_bytes=5_000)
    n_steps = 2 * whole.steps_per_epoch + 1
    batches = [whole.rows(step).tolist() for step in range(n_steps)]
    for first in range(n_steps):
        state = json.loads(json.dumps(make_order(index, shuffle_bytes=5_000).state(first)))
        order = make_order(index, shuffle_bytes=5_000)
        step = order.resume(state)
        rest = [global_batch(order, s, 4) for s in range(step, n_steps)]
        assert batches[:first] + rest == batches


def test_resume_needs_no_replay() -> None:
    order = make_order(make_index([50, 70]))
    step = order.resume(order.state(10**12))
    assert step == 10**12
    assert len(order.rows(step)) >= 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "g"}, "fingerprint: saved 'f', now 'g'"),
        ({"seed": 5}, "seed: saved 0, now 5"),
        ({"global_batch_frames": 30_000}, "global_batch_frames: saved 20000, now 30000"),
        ({"n_lanes": 4}, "n_lanes: saved 8, now 4"),
        ({"max_frames": 999}, "max_frames: saved 6000, now 999"),
    ],
)
def test_a_changed_data_set_or_setting_is_refused_with_both_values(
    change: dict[str, Any], message: str
) -> None:
    state = make_order(make_index([90])).state(3)
    with pytest.raises(ValueError, match=message):
        make_order(make_index([90]), **change).resume(state)


def test_the_state_of_an_order_without_lengths_is_refused() -> None:
    index = make_index([90])
    plain = TrainingOrder(index, "f", OrderConfig(global_batch_size=8, n_streams=8))
    with pytest.raises(ValueError, match="global_batch_frames: saved None, now 20000"):
        make_order(index).resume(plain.state(3))


@pytest.mark.parametrize(("shuffle_bytes", "most"), [(2 * SMALL, 0.2), (10**9, 0.1)])
def test_far_less_is_padded_than_in_random_batches(shuffle_bytes: int, most: float) -> None:
    index = long_index()
    plain = TrainingOrder(index, "f", OrderConfig(global_batch_size=64, n_streams=8))
    order = make_order(index, shuffle_bytes=shuffle_bytes, n_lanes=2, global_batch_frames=5_000)
    for world_size in (1, 2):
        assert padded_share(order, index.n_frames, world_size=world_size) < most
        assert padded_share(plain, index.n_frames, world_size=world_size) > 0.6


def test_the_padded_share_is_that_of_a_naive_loop() -> None:
    index = make_index([90])
    order = make_order(index)
    padded, total = 0, 0
    for step in steps_of(order, 1):
        for rank in range(2):
            lengths = [
                min(int(index.n_frames[row]), 300)
                for row in order.rows(step, rank=rank, world_size=2)
            ]
            padded += sum(max(lengths) - length for length in lengths)
            total += max(lengths) * len(lengths)
    found = padded_share(order, index.n_frames, epoch=1, world_size=2, max_frames=300)
    assert found == pytest.approx(padded / total)


def test_lengths_are_grouped_inside_a_window_of_shards() -> None:
    """A rank reads its own range of shards, a few at a time."""
    index = long_index()
    order = make_order(index, shuffle_bytes=SMALL)
    seen = []
    for rank in range(8):
        shards = [
            index.shard[order.rows(step, rank=rank, world_size=8)] for step in steps_of(order, 0)
        ]
        seen.append(set(np.concatenate(shards).tolist()))
        n_steps = order.steps_per_epoch
        at_once = [
            len(set(np.concatenate(shards[at : at + n_steps // 20]).tolist()))
            for at in range(0, n_steps, n_steps // 20)
        ]
        assert max(at_once) <= 3
    assert all(len(shards) <= 6 for shards in seen)
    assert sum(len(shards) for shards in seen) <= 40 + 7


def test_steps_and_what_is_in_them_differ_from_epoch_to_epoch() -> None:
    index = long_index()
    order = make_order(index)
    correlations = []
    for epoch in range(8):
        n_frames = [int(index.n_frames[order.rows(step)].max()) for step in steps_of(order, epoch)]
        correlations.append(np.corrcoef(np.log(n_frames), np.arange(len(n_frames)))[0, 1])
    assert abs(np.mean(correlations)) < 0.15
    batches = [
        {frozenset(order.rows(step).tolist()) for step in steps_of(order, epoch)}
        for epoch in (0, 1)
    ]
    assert not batches[0] & batches[1]


def test_positions_name_each_sample_of_an_epoch_once() -> None:
    """Crops and masks are drawn by them."""
    order = make_order(make_index([90, 60]))
    positions = np.concatenate([order.positions(step) for step in steps_of(order, 2)])
    assert sorted(positions.tolist()) == list(range(144))
    assert not order.sources(3).any()
    assert order.epoch_of(2 * order.steps_per_epoch) == 2


def test_only_the_chosen_rows_take_part() -> None:
    rows = np.arange(0, 150, 3)
    config = LengthConfig(global_batch_frames=BOUND, tail="wrap")
    order = LengthOrder(make_index([90, 60]), "f", config, rows)
    assert set(epoch_rows(order, 1).tolist()) == set(rows.tolist())


def test_a_rare_class_is_served_more_often() -> None:
    index = long_index()
    order = make_order(index, weights=WeightConfig())
    share = np.mean(index.label_ids[epoch_rows(order, 0)])
    assert share == pytest.approx(0.5, abs=0.02)


def test_the_masked_share_is_the_full_one() -> None:
    """A batch masks as many steps of each clip as its shortest one allows."""
    index = long_index()
    plain = TrainingOrder(index, "f", OrderConfig(global_batch_size=64, n_streams=8))
    assert masked_share(make_order(index), index) > 0.24
    assert masked_share(plain, index) < 0.1


def masked_share(order: Order, index: Index) -> float:
    masked, total = 0, 0
    for step in steps_of(order, 0):
        n_steps = index.n_frames[order.rows(step)] // 4
        masked += count_masked(max(2, int(n_steps.min())), MaskConfig()) * len(n_steps)
        total += int(n_steps.sum())
    return masked / total


def test_a_loader_serves_whole_samples_of_a_data_set(small_dataset: Dataset) -> None:
    config = LengthConfig(global_batch_frames=400, n_lanes=2)
    order = LengthOrder(small_dataset.index, small_dataset.manifest.fingerprint, config)
    loader = Loader(small_dataset, order, LoaderConfig(stride=1), rank=1, world_size=2)
    for step, batch in enumerate(loader.batches(0, order.steps_per_epoch)):
        rows = order.rows(step, rank=1, world_size=2)
        assert batch.rows.tolist() == rows.tolist()
        assert batch.n_frames.tolist() == small_dataset.index.n_frames[rows].tolist()
        assert batch.logmel.shape[0] * batch.logmel.shape[1] <= 200


def test_a_bound_that_holds_no_sample_per_lane_says_what_to_change() -> None:
    index = make_index([90])
    longest = int(index.n_frames.max())
    with pytest.raises(
        ValueError, match=rf"a sample per lane, 8 x {longest} = {8 * longest}, found 100; raise it"
    ):
        make_order(index, global_batch_frames=100)
    make_order(index, global_batch_frames=100, max_frames=12)


def test_too_few_samples_and_lanes_that_do_not_fit_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"number of samples \(5\), found 8; lower it, or set"):
        make_order(make_index([5]))
    with pytest.raises(ValidationError, match=r"a multiple of `n_lanes` \(8\), found 12"):
        make_order(make_index([90]), n_streams=12)
    with pytest.raises(ValueError, match=r"must divide `n_lanes` \(8\), found 3"):
        make_order(make_index([90])).rows(0, world_size=3)
