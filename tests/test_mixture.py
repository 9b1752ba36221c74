"""A mixture is a pure function: exact shares, own epochs, own streams, any world size."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from melstream.pipeline.mixture import MixtureOrder
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.weights import WeightConfig
from melstream.shards.index import Index

LANE_LEAD = 12  # measured: 9.6 samples at most, ten sets, 1,024 lanes; 4 with up to five sets
SIZES, SHARES = (90, 200, 41), (3.0, 2.0, 1.0)


def make_part(n_samples: int, *, fingerprint: str = "f", **config: object) -> TrainingOrder:
    index = Index(
        {
            "shard": (np.arange(n_samples) // 20).astype(np.int32),
            "n_frames": np.full(n_samples, 10, np.int32),
            "logmel_size": np.full(n_samples, 1_000, np.int64),
            "json_size": np.zeros(n_samples, np.int64),
            "label_indptr": np.arange(n_samples + 1),
            "label_ids": (np.arange(n_samples) % 7 // 5).astype(np.int32),
        }
    )
    settings = {"global_batch_size": 8, "n_streams": 8, "shuffle_bytes": 8_000} | config
    return TrainingOrder(index, fingerprint, OrderConfig.model_validate(settings))


def make_mixture(
    sizes: tuple[int, ...] = SIZES, shares: tuple[float, ...] = SHARES, **config: object
) -> MixtureOrder:
    parts = [make_part(n, fingerprint=f"set {i}", **config) for i, n in enumerate(sizes)]
    return MixtureOrder(parts, shares)


def served(order: MixtureOrder, first: int, last: int, world_size: int = 1) -> list[list[int]]:
    """(set, row) of the global batches, put together from the ranks', as one number each."""
    batches = []
    for step in range(first, last):
        ranks = [
            order.rows(step, rank=r, world_size=world_size)
            + 1_000 * order.sources(step, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        batches.append(np.stack(ranks, 1).reshape(-1).tolist())
    return batches


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    batch_size=st.sampled_from([1, 4, 8, 24, 96]),
    n_streams=st.sampled_from([1, 8, 12, 32]),
)
def test_every_share_is_within_one_sample_after_every_batch(
    asked: list[int], batch_size: int, n_streams: int
) -> None:
    order = make_mixture(
        (100,) * len(asked),
        tuple(map(float, asked)),
        global_batch_size=batch_size,
        n_streams=n_streams,
        tail="wrap",
    )
    n_served = np.zeros(len(asked), np.int64)
    for step in range(60):
        wanted = np.array(asked) / sum(asked) * step * batch_size
        assert (np.abs(n_served - wanted) < 1).all()
        np.testing.assert_array_equal(order.served(step), n_served)
        n_served += np.bincount(order.sources(step), minlength=len(asked))


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    n_lanes=st.sampled_from([1, 2, 6, 16, 64]),
    first=st.integers(0, 10**7),
)
def test_each_set_is_walked_through_once_with_all_lanes_in_step(
    asked: list[int], n_lanes: int, first: int
) -> None:
    """Places of a set are never met twice, keep their lane, and trail by a few samples only."""
    order = make_mixture(
        (100,) * len(asked),
        tuple(map(float, asked)),
        global_batch_size=n_lanes,
        n_streams=n_lanes,
        tail="wrap",
    )
    places = np.arange(first * n_lanes, (first + 300) * n_lanes)
    sources, own = order._table.look_up(places)
    np.testing.assert_array_equal(own % n_lanes, places % n_lanes)
    shares = np.array(order.shares)
    lead = own // n_lanes - shares[sources] * (places // n_lanes)
    assert np.abs(lead).max() < LANE_LEAD
    for source in range(len(asked)):
        mine = own[sources == source]
        assert len(np.unique(mine)) == len(mine)


def test_every_sample_is_served_once_per_epoch_of_its_set() -> None:
    """Whole epochs: the places of a set, put in order, are its own order's epochs."""
    order = make_mixture(tail="wrap")
    n_steps = 400
    for source, part in enumerate(order.parts):
        rows = []
        for step in range(n_steps):
            sources, places = order._table.look_up(np.arange(8 * step, 8 * step + 8))
            here = sources == source
            found = order.rows(step)[here].tolist()
            rows += list(zip(places[here].tolist(), found, strict=True))
        rows.sort()
        n_whole = int(order.part_epochs(n_steps)[source])
        assert n_whole >= 2
        alone = [row for step in range(n_whole * part.steps_per_epoch) for row in part.rows(step)]
        assert [row for _, row in rows[: len(alone) - 64]] == alone[:-64]


@pytest.mark.parametrize("weights", [None, WeightConfig()])
def test_global_batches_do_not_depend_on_the_world_size(weights: WeightConfig | None) -> None:
    order = make_mixture(weights=weights)
    alone = served(order, 0, 120)
    for world_size in (2, 4, 8):
        assert served(order, 0, 120, world_size) == alone


def test_a_rank_reads_its_own_streams_of_every_set_only() -> None:
    order = make_mixture((160, 320), (2.0, 1.0))
    for step in (0, 7, 33):
        for rank in range(4):
            sources = order.sources(step, rank=rank, world_size=4)
            rows = order.rows(step, rank=rank, world_size=4)
            for source, row in zip(sources, rows, strict=True):
                part = order.parts[source]
                epoch = int(order.part_epochs(step)[source])
                first = epoch * part.steps_per_epoch
                own = [
                    part.rows(s, rank=rank, world_size=4)
                    for s in range(first, first + 2 * part.steps_per_epoch)
                ]
                assert row in np.concatenate(own)


def test_resume_goes_on_from_every_step_twice_in_a_row_on_other_ranks() -> None:
    n_steps = 24
    whole = served(make_mixture(), 0, n_steps)
    for first in range(0, n_steps, 3):
        order = make_mixture()
        step = order.resume(json.loads(json.dumps(make_mixture().state(first))))
        for second in range(first, n_steps, 5):
            middle = served(order, step, second, 2)
            last = make_mixture().resume(json.loads(json.dumps(order.state(second))))
            assert whole[:first] + middle + served(order, last, n_steps, 4) == whole


def test_resume_needs_no_replay() -> None:
    order = make_mixture()
    far = 10**12
    assert order.resume(order.state(far)) == far
    assert len(order.rows(far)) == 8
    np.testing.assert_allclose(order.served(far) / (8 * far), order.shares, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "data set 0: seed: saved 0, now 5"),
        ({"global_batch_size": 16}, "data set 2: global_batch_size: saved 8, now 16"),
        ({"sizes": (90, 201, 41)}, "data set 1: n_samples: saved 200, now 201"),
        ({"shares": (3.0, 2.0, 2.0)}, r"shares: saved \[3.0, 2.0, 1.0\], now \[3.0, 2.0, 2.0\]"),
        ({"weights": WeightConfig()}, "data set 0: weights: saved None, now"),
        ({"sizes": (90, 200), "shares": (3.0, 2.0)}, "number of data sets: saved 3, now 2"),
    ],
)
def test_a_changed_set_share_or_setting_is_refused_with_both_values(
    change: dict[str, object], message: str
) -> None:
    state = make_mixture().state(3)
    with pytest.raises(ValueError, match=message):
        make_mixture(**change).resume(state)  # type: ignore[arg-type]


def test_another_data_set_is_refused_and_has_another_fingerprint() -> None:
    parts = [make_part(40, fingerprint=name) for name in "ab"]
    others = [make_part(40, fingerprint=name) for name in "ac"]
    first, second = MixtureOrder(parts, [1, 1]), MixtureOrder(others, [1, 1])
    with pytest.raises(ValueError, match="data set 1: fingerprint: saved 'b', now 'c'"):
        second.resume(first.state(0))
    fingerprints = {
        order.fingerprint
        for order in (first, second, MixtureOrder(parts, [1, 2]), MixtureOrder(parts[::-1], [1, 1]))
    }
    assert len(fingerprints) == 4
    assert MixtureOrder(parts, [1, 1]).fingerprint == first.fingerprint


def test_a_mixture_of_one_set_is_that_set() -> None:
    order, part = make_mixture((90,), (0.3,)), make_part(90)
    for step in range(30):
        np.testing.assert_array_equal(order.rows(step), part.rows(step))


def test_positions_name_each_sample_of_an_epoch_once() -> None:
    order = make_mixture()
    assert order.steps_per_epoch == sum(SIZES) // 8
    positions = [order.positions(step) for step in range(order.steps_per_epoch)]
    assert np.concatenate(positions).tolist() == list(range(order.steps_per_epoch * 8))
    assert order.epoch_of(order.steps_per_epoch) == 1
    assert order.positions(order.steps_per_epoch, rank=1, world_size=2).tolist() == [1, 3, 5, 7]


@settings(deadline=None, max_examples=40)
@given(asked=st.lists(st.floats(1e-5, 1e5), min_size=2, max_size=5))
def test_odd_shares_are_rounded_to_a_ten_thousandth_and_no_set_is_lost(
    asked: list[float],
) -> None:
    shares = np.array(make_mixture((20,) * len(asked), tuple(asked)).shares)
    assert math.isclose(shares.sum(), 1)
    assert shares.min() > 0
    np.testing.assert_allclose(shares, np.array(asked) / sum(asked), atol=4e-4)


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="found 2 shares for 3 data sets"):
        make_mixture(SIZES, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"`shares` must be above 0 and finite, found 0\.0"):
        make_mixture(SIZES, (1.0, 0.0, 2.0))


def test_parts_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="same `seed`, found 0 for data set 0 and 1 for data set"):
        MixtureOrder([make_part(40), make_part(40, seed=1)], [1, 1])


def test_a_world_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="`world_size` must divide"):
        make_mixture().rows(0, world_size=3)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_small_sets_stand_as_often_as_large_ones(sizes: list[int], seed: int) -> None:
    """Shares count, not sizes: a set of one clip has its share of every batch."""
    assume(len(sizes) > 1)
    order = make_mixture(tuple(sizes), (1.0,) * len(sizes), seed=seed, tail="wrap")
    n_served = np.bincount(np.concatenate([order.sources(step) for step in range(30)]))
    assert n_served.max() - n_served.min() < 2
