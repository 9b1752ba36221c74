"""Pictures of a page's clips: what is loud where, and where the ticks stand."""

import io

import numpy as np
import pytest
from PIL import Image

from melstream.pipeline.logmel import LogMel
from melstream.shards.spec import PRESETS
from melstream.tools.pages.spectrogram import hz_ticks, spectrogram_png

SPEC = PRESETS["conformer64"]


def test_a_tone_stands_at_its_frequency_and_its_time() -> None:
    times = np.arange(2 * SPEC.sample_rate) / SPEC.sample_rate
    waveform = np.where(times < 1, 0, np.sin(2 * np.pi * 2_000 * times)).astype(np.float32)
    logmel = LogMel(SPEC)(waveform)
    picture = Image.open(io.BytesIO(spectrogram_png(logmel, low=-18, high=8)))
    assert picture.size == (len(logmel), SPEC.n_mels)
    light = np.asarray(picture.convert("L"), int)
    n_columns = light.shape[1]
    assert light[:, : n_columns // 2 - 3].max() < 10
    heights = dict(hz_ticks(SPEC))
    row = int(light[:, 3 * n_columns // 4].argmax())
    assert 100 * (1 - (row + 0.5) / SPEC.n_mels) == pytest.approx(heights["2k"], abs=1)


def test_a_long_clip_keeps_its_proportions() -> None:
    logmel = np.zeros((1_000, 4), np.float32)
    logmel[750:] = 1
    picture = Image.open(io.BytesIO(spectrogram_png(logmel, low=0, high=1)))
    assert picture.size == (320, 4)
    light = np.asarray(picture.convert("L"), int)[0]
    assert (light[:239] == light[0]).all()
    assert (light[241:] == light[-1]).all()
    assert light[-1] > light[0] + 200


def test_ticks_are_apart_and_inside() -> None:
    for preset in PRESETS.values():
        heights = [height for _, height in hz_ticks(preset)]
        assert len(heights) >= 4
        assert min(np.diff(heights)) >= 10
        assert 0 <= heights[0] < heights[-1] <= 100
