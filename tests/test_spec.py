"""The feature spec: its checks, its arithmetic, its hash."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from melstream.shards.errors import DatasetError
from melstream.shards.spec import PRESETS, FeatureSpec

GOLDEN_HASHES = {"conformer64": "d4a53b2b13cde6a4", "kaldi128": "5430cd73bc367272"}


def test_the_presets_keep_their_hashes() -> None:
    """A changed hash makes every data set and checkpoint of its users unreadable."""
    assert {name: spec.hash for name, spec in PRESETS.items()} == GOLDEN_HASHES


def test_each_field_changes_the_hash() -> None:
    others = {
        "sample_rate": 32_000,
        "n_fft": 1024,
        "win_length": 401,
        "hop_length": 161,
        "n_mels": 65,
        "fmin": 20.5,
        "fmax": 7999.0,
        "window": "povey",
        "preemphasis": 0.97,
        "remove_dc": True,
        "framing": "snip",
        "mel_scale": "slaney",
        "mel_triangles": "mel",
        "log_floor": 1e-9,
        "resampler_quality": "VHQ",
    }
    assert {*others, "storage_dtype", "resampler"} == set(FeatureSpec.model_fields)
    hashes = {FeatureSpec.model_validate({name: other}).hash for name, other in others.items()}
    assert len(hashes | {FeatureSpec().hash}) == len(others) + 1


def test_the_hash_survives_json_and_integer_spelling() -> None:
    spec = PRESETS["kaldi128"]
    assert FeatureSpec.model_validate_json(spec.model_dump_json()).hash == spec.hash
    assert FeatureSpec(fmin=20, fmax=8000).hash == FeatureSpec().hash


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_fft": 511}, "`n_fft` must be even, found 511"),
        ({"win_length": 513}, r"`win_length` must be at most n_fft \(512\), found 513"),
        ({"win_length": 1, "hop_length": 1}, "`win_length` must be at least 2 with window 'hann'"),
        ({"win_length": 2, "hop_length": 2, "window": "povey"}, "at least 3 with window 'povey'"),
        ({"hop_length": 401}, r"`hop_length` must be at most win_length \(400\)"),
        ({"fmax": 8001}, "`fmin` < `fmax` <= 8000 Hz .* found fmin=20, fmax=8001"),
        ({"fmin": 9000}, "`fmin` < `fmax` <= 8000 Hz"),
        ({"sample_rate": 8000}, "`fmin` < `fmax` <= 4000 Hz"),
        ({"window": "hamming"}, "'hann', 'hann_symmetric' or 'povey'"),
        ({"storage_dtype": "float32"}, "'float16'"),
        ({"log_floor": 0.0}, "greater than or equal to"),
        ({"log_floor": math.inf}, "finite"),
        ({"log_floor": 1e39}, "less than or equal to"),
        ({"num_mel_bins": 64}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureSpec.model_validate(fields)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FeatureSpec().n_mels = 80  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("framing", ["center", "snip"])
@pytest.mark.parametrize("win_length", [159, 400, 401])
def test_n_frames_is_what_can_be_counted(framing: str, win_length: int) -> None:
    spec = FeatureSpec.model_validate(
        {"framing": framing, "win_length": win_length, "hop_length": 100}
    )
    pad = spec.n_fft // 2 if framing == "center" else 0
    length = spec.n_fft if framing == "center" else win_length
    for n_samples in (0, 1, 99, 100, 101, 158, 159, 160, 399, 400, 401, 499, 500, 501, 12_345):
        starts = np.arange(0, n_samples + 2 * pad - length + 1, spec.hop_length)
        assert spec.n_frames(n_samples) == len(starts), n_samples


def test_n_frames_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="`n_samples` must be 0 or more, found -1"):
        FeatureSpec().n_frames(-1)


def test_frames_have_a_rate_and_a_duration() -> None:
    spec = FeatureSpec(sample_rate=22_050, hop_length=256)
    assert spec.frame_rate_hz == 22_050 / 256
    assert spec.duration_s(100) == pytest.approx(100 / spec.frame_rate_hz)


def test_different_features_are_an_error_that_shows_both() -> None:
    PRESETS["conformer64"].require_same(FeatureSpec(), "data/train")
    with pytest.raises(DatasetError) as error:
        FeatureSpec().require_same(FeatureSpec(hop_length=200, window="povey"), "data/train")
    assert "data/train has hop_length=200, window='povey'" in str(error.value)
    assert "required is hop_length=160, window='hann'" in str(error.value)
    assert "n_mels" not in str(error.value)


def test_how_log_mels_are_stored_is_no_other_feature() -> None:
    spec = FeatureSpec()
    assert spec.differing(FeatureSpec(storage_dtype="uint8", fmin=30.0)) == ["fmin"]
    assert spec.differing(FeatureSpec(storage_dtype="uint8")) == []
