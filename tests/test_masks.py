"""Masks and distractors against naive loops, and against fairseq's formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melstream.pipeline import masks
from melstream.pipeline.draws import below, derive_key, draw, draws, permutation
from melstream.pipeline.masks import MaskConfig, count_masked, draw_distractors, draw_masks

KEYS = draws(derive_key(7), np.arange(64))
SHARE_TOLERANCE = 0.01  # of a step share averaged over thousands of draws


def fairseq_mask(n_steps: int, share: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """fairseq's static masks: floor(share * n / length + U(0, 1)) spans, at least two."""
    n_spans = max(2, int(share * n_steps / length + rng.random()))
    starts = rng.choice(n_steps - length + 1, min(n_spans, n_steps - length + 1), replace=False)
    mask = np.zeros(n_steps, bool)
    for start in starts:
        mask[start : start + length] = True
    return mask


@pytest.mark.parametrize("n_steps", [10, 25, 50, 125, 250])
@pytest.mark.parametrize(("share", "length"), [(0.3, 3), (0.65, 10), (0.5, 1)])
def test_the_masked_share_is_fairseqs(n_steps: int, share: float, length: int) -> None:
    if length >= n_steps:
        return
    rng = np.random.default_rng(0)
    expected = np.mean([fairseq_mask(n_steps, share, length, rng).sum() for _ in range(3_000)])
    counted = count_masked(n_steps, MaskConfig(share=share, mask_length=length))
    assert abs(counted - expected) <= 0.5 + SHARE_TOLERANCE * n_steps


def test_the_papers_setting_masks_27_percent() -> None:
    assert count_masked(125, MaskConfig()) == 34
    assert count_masked(250, MaskConfig()) == 68


def naive_mask(n_steps: int, width: int, n_masked: int, length: int, key: np.uint64) -> list[bool]:
    """Draw spans one by one, from the same counters, until enough steps are masked."""
    length = min(length, n_steps)
    starts = list(range(n_steps - length + 1))
    mask = [False] * width
    i = 0
    while sum(mask) < n_masked:
        j = i + int(below(draw(key, i), len(starts) - i))
        starts[i], starts[j] = starts[j], starts[i]
        for step in range(starts[i], starts[i] + length):
            if sum(mask) < n_masked:
                mask[step] = True
        i += 1
    return mask


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    mask_length=st.integers(1, 12),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**31),
)
def test_masks_equal_the_naive_loop_never_on_padding_equal_counts(
    lengths: list[int], mask_length: int, share: float, seed: int
) -> None:
    n_steps = np.array(lengths, np.int32)
    config = MaskConfig(share=share, mask_length=mask_length)
    n_masked = count_masked(int(n_steps.min()), config)
    keys = draws(derive_key(seed), np.arange(len(lengths)))
    width = int(n_steps.max()) + 3
    arguments = {"width": width, "n_masked": n_masked, "mask_length": mask_length, "keys": keys}
    mask = draw_masks(n_steps, **arguments)
    assert (mask.sum(1) == n_masked).all()
    for row, steps in enumerate(lengths):
        assert not mask[row, steps:].any()
        assert mask[row].tolist() == naive_mask(steps, width, n_masked, mask_length, keys[row])


def test_the_kernels_give_the_same_as_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    n_steps = np.array([9, 30, 17], np.int32)
    compiled, plain = np.zeros((2, 3, 30), bool)
    masks._draw_masks(n_steps, 5, 3, KEYS[:3], compiled)
    with np.errstate(over="ignore"):
        masks._draw_masks.py_func(n_steps, 5, 3, KEYS[:3], plain)
    np.testing.assert_array_equal(compiled, plain)
    one, other = np.empty((2, 3, 5, 7), np.int32)
    masks._draw_distractors(KEYS[:3], one)
    monkeypatch.setattr(masks, "_times", lambda a, b: np.uint32(a) * np.uint32(b))
    monkeypatch.setattr(masks, "_right", lambda bits, n: np.uint32(bits) >> np.uint32(n))
    with np.errstate(over="ignore"):
        masks._draw_distractors.py_func(KEYS[:3], other)
    np.testing.assert_array_equal(one, other)


def test_every_step_is_masked_about_equally_often_away_from_the_borders() -> None:
    keys = draws(derive_key(3), np.arange(20_000))
    n_steps = np.full(len(keys), 50, np.int32)
    share = draw_masks(n_steps, width=50, n_masked=14, mask_length=3, keys=keys).mean(0)
    assert abs(share[5:45].mean() - 14 / 50) < 0.02
    assert share[5:45].std() < SHARE_TOLERANCE


def test_masked_steps_stand_in_spans() -> None:
    keys = draws(derive_key(4), np.arange(2_000))
    n_steps = np.full(len(keys), 100, np.int32)
    mask = draw_masks(n_steps, width=100, n_masked=27, mask_length=3, keys=keys)
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int), axis=1)
    run_lengths = np.flatnonzero(edges.ravel() == -1) - np.flatnonzero(edges.ravel() == 1)
    assert (run_lengths < 3).mean() < 0.12  # only the last span of a sample is ever cut
    assert run_lengths.mean() > 3


def test_distractors_are_other_masked_steps_drawn_evenly() -> None:
    distractors = draw_distractors(10, 400, KEYS)
    assert distractors.shape == (64, 10, 400)
    assert distractors.dtype == np.int32
    for place in range(10):
        counts = np.bincount(distractors[:, place].ravel(), minlength=10)
        assert counts[place] == 0
        others = np.delete(counts, place) / counts.sum()
        np.testing.assert_allclose(others, 1 / 9, atol=SHARE_TOLERANCE)


def test_draws_of_a_sample_do_not_depend_on_its_neighbours() -> None:
    n_steps = np.array([30, 40, 50], np.int32)
    arguments = {"width": 50, "n_masked": 8, "mask_length": 3}
    together = draw_masks(n_steps, keys=KEYS[:3], **arguments)
    alone = draw_masks(n_steps[1:2], keys=KEYS[1:2], **arguments)
    np.testing.assert_array_equal(together[1:2], alone)
    np.testing.assert_array_equal(
        draw_distractors(8, 9, KEYS)[5:6], draw_distractors(8, 9, KEYS[5:6])
    )


def test_a_clip_too_short_to_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 latent steps, found 1"):
        count_masked(1, MaskConfig())
    with pytest.raises(ValueError, match="`n_masked` must be at least 2"):
        draw_distractors(1, 10, KEYS)
    with pytest.raises(ValueError, match="`n_steps` must be in"):
        draw_masks(np.array([3], np.int32), width=10, n_masked=4, mask_length=2, keys=KEYS[:1])


def test_draws_are_splitmix64() -> None:
    """Reference: the first outputs of SplitMix64 seeded with 1234567 (Vigna's splitmix64.c)."""
    key = np.uint64(1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(draw(key, i)) for i in range(3)] == expected


def test_permutation_is_one_and_depends_on_its_key() -> None:
    one, other = permutation(derive_key(1), 100), permutation(derive_key(2), 100)
    assert sorted(one.tolist()) == list(range(100))
    assert (one != other).any()
