"""The numbers of a shuffle agree with scipy's, with simulation, and with what they mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from melstream.pipeline.mixture import MixtureOrder
from melstream.pipeline.order import EvaluationOrder, OrderConfig, TrainingOrder
from melstream.pipeline.shuffle_quality import measure_shuffle, rank_correlation
from melstream.shards.index import Index


def make_index(n_shards: int, shard_size: int) -> Index:
    n = n_shards * shard_size
    return Index(
        {
            "shard": np.repeat(np.arange(n_shards, dtype=np.int32), shard_size),
            "n_frames": np.full(n, 10, np.int32),
            "logmel_size": np.full(n, 1_000, np.int64),
            "json_size": np.zeros(n, np.int64),
        }
    )


def make_order(index: Index, **config: object) -> TrainingOrder:
    settings = {"global_batch_size": 16, "n_streams": 16} | config
    return TrainingOrder(index, "f", OrderConfig.model_validate(settings))


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(-5, 5)), min_size=3, max_size=40))
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rank_correlation(first, second) == 0.0
    else:
        expected = float(spearmanr(first, second).statistic)
        assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)


def test_stored_order_has_correlation_one() -> None:
    index = make_index(8, 50)
    quality = measure_shuffle(EvaluationOrder(np.arange(400), 16), [index.shard])
    assert quality.rank_correlation == pytest.approx(1.0)
    assert quality.shards_per_batch < 1.5 < 6 < quality.ideal_shards_per_batch


def test_a_whole_shuffle_reaches_the_ideal() -> None:
    index = make_index(20, 50)
    quality = measure_shuffle(make_order(index), [index.shard])
    assert abs(quality.rank_correlation) < 0.15
    assert quality.shards_per_batch == pytest.approx(quality.ideal_shards_per_batch, abs=0.5)


def test_one_stream_with_a_small_window_serves_shard_after_shard() -> None:
    index = make_index(20, 50)
    narrow = make_order(index, n_streams=1, shuffle_bytes=10_000)
    quality = measure_shuffle(narrow, [index.shard])
    assert quality.shards_per_batch < 2
    assert quality.ideal_shards_per_batch > 10
    streams = measure_shuffle(make_order(index, shuffle_bytes=10_000), [index.shard])
    assert streams.shards_per_batch > 10


def test_the_ideal_is_what_random_batches_have() -> None:
    index = make_index(6, 4)
    quality = measure_shuffle(make_order(index, global_batch_size=8), [index.shard])
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.permutation(index.shard)[:8].tolist())) for _ in range(4_000)]
    assert quality.ideal_shards_per_batch == pytest.approx(np.mean(drawn), abs=0.05)


def test_the_shards_of_a_mixture_are_told_apart() -> None:
    index = make_index(2, 64)
    parts = [make_order(index), make_order(index)]
    quality = measure_shuffle(MixtureOrder(parts, [1, 1]), [index.shard, index.shard])
    assert 3 < quality.shards_per_batch <= 4


def test_some_steps_are_measured_alone() -> None:
    index = make_index(4, 64)
    quality = measure_shuffle(make_order(index), [index.shard], first_step=5, n_steps=1)
    assert 1 <= quality.shards_per_batch <= 4
    with pytest.raises(ValueError, match=r"`n_steps` must be at least 1 .* found 0"):
        measure_shuffle(make_order(index), [index.shard], n_steps=0)
