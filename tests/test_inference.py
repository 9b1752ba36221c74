"""A model folder takes files and waveforms, and gives what the pipeline's features would."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from melstream.model import (
    AudioEncoder,
    AudioModel,
    CheckpointError,
    EncoderConfig,
    FeatureConfig,
    Tagger,
    TaggerConfig,
    TorchLogMel,
    load,
)
from melstream.pipeline.logmel import LogMel
from melstream.pipeline.waveform import load_waveform
from melstream.shards.spec import PRESETS, FeatureSpec
from melstream.tools.model_folder import ModelCard, write_model

LOGMEL_TOLERANCE = 1e-3  # float32 FFTs of two kinds; pre-emphasis leaves little power down low
TOLERANCE = 2e-3  # that, behind two conformer blocks; bands without sound hold rounding errors
SPEC = PRESETS["conformer64"]
CONFIG = EncoderConfig(latent_dim=16, dim=16, n_layers=2, n_heads=2, ffn_dim=32, kernel_size=3)
SPECS = {
    **PRESETS,
    "slaney": FeatureSpec(mel_scale="slaney", window="hann_symmetric", fmin=50, fmax=7000),
    "odd sizes": FeatureSpec(n_fft=1024, win_length=501, hop_length=123),
    "snip": FeatureSpec(framing="snip", remove_dc=True, preemphasis=0.97, n_fft=400),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    encoder = AudioEncoder(CONFIG)
    encoder.normalizer.set_statistics(torch.full((64,), -9.0), torch.full((64,), 4.0))
    common = {"encoder": CONFIG, "features": SPEC, "crop_s": 1.0, "trained_on": (), "steps": 1}
    write_model(root / "encoder", encoder.state_dict(), ModelCard(kind="encoder", **common))
    options = TaggerConfig()
    tagger = Tagger(encoder, options, 3)
    card = ModelCard(kind="tagger", tagger=options, label_names=("a", "b", "c"), **common)
    write_model(root / "tagger", tagger.state_dict(), card)
    return root


@pytest.fixture(scope="module")
def files(recordings: Path) -> list[Path]:
    return sorted((recordings / "eval").glob("*/*.flac"))[:4]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("n_samples", [400, 560, 16_123])
def test_logmels_are_those_of_the_pipeline(name: str, n_samples: int) -> None:
    spec = SPECS[name]
    waveform = np.random.default_rng(0).normal(0, 0.1, max(n_samples, spec.win_length))
    waveform = waveform.astype(np.float32)
    ours = TorchLogMel(FeatureConfig(**spec.model_dump()))(torch.from_numpy(waveform)[None])
    np.testing.assert_allclose(ours[0], LogMel(spec)(waveform), atol=LOGMEL_TOLERANCE)


def test_a_files_embedding_is_that_of_the_pipelines_features(
    folders: Path, files: list[Path]
) -> None:
    model = load(folders / "encoder")
    found = model.embed(files)
    for number, path in enumerate(files):
        logmel = torch.from_numpy(LogMel(SPEC)(load_waveform(path, SPEC).waveform))[None]
        with torch.inference_mode():
            context, _ = model.encoder(logmel)
        torch.testing.assert_close(found.frames[number], context[0], atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(found.clips[number], found.frames[number].mean(dim=0))
    assert found.frame_rate_hz == 25.0


def test_sounds_do_not_depend_on_their_company(folders: Path, files: list[Path]) -> None:
    model = load(folders / "tagger")
    together = model.tag(files, batch_size=3)
    for number, path in enumerate(files):
        alone = model.tag(path)
        torch.testing.assert_close(alone.scores[0], together.scores[number], atol=1e-5, rtol=1e-5)


def test_a_waveform_in_stereo_at_another_rate_is_its_file(folders: Path, tmp_path: Path) -> None:
    waveform = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 44_100)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", waveform.T, 44_100, subtype="FLOAT")
    model = load(folders / "tagger")
    of_file = model.tag(tmp_path / "a.wav").scores
    assert torch.equal(model.tag(waveform, 44_100).scores, of_file)
    assert torch.equal(model.tag([torch.from_numpy(waveform)], 44_100).scores, of_file)


def test_long_sounds_are_cut_into_windows(folders: Path) -> None:
    model = load(folders / "encoder")
    waveform = np.random.default_rng(2).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    found = model.embed(waveform, 16_000, window_s=2.0)
    parts = [waveform[:32_000], waveform[32_000:64_000], waveform[64_000:]]
    required = model.embed(parts, 16_000)
    torch.testing.assert_close(found.frames[0], torch.cat(required.frames), atol=1e-5, rtol=1e-5)
    assert len(found.frames[0]) == 125


@pytest.mark.parametrize("hides_padding", [True, False])
def test_an_embedding_does_not_depend_on_what_else_is_asked_for(hides_padding: bool) -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(CONFIG.model_copy(update={"hides_padding": hides_padding}))
    features = FeatureConfig.model_validate(
        SPEC.model_dump(include=set(FeatureConfig.model_fields))
    )
    model = AudioModel(encoder, None, features, ())
    waveform = np.random.default_rng(2).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    alone = model.embed(waveform[:16_000], 16_000)
    beside = model.embed([waveform, waveform[:16_000]], 16_000)
    torch.testing.assert_close(beside.clips[1], alone.clips[0], atol=1e-5, rtol=1e-5)


def test_scores_of_windows_are_weighted_by_length(folders: Path) -> None:
    model = load(folders / "tagger")
    waveform = np.random.default_rng(2).normal(0, 0.1, 3 * 16_000).astype(np.float32)
    found = model.tag(waveform, 16_000, window_s=2.0).scores[0]
    first, second = model.tag([waveform[:32_000], waveform[32_000:]], 16_000).scores
    torch.testing.assert_close(found, (201 * first + 101 * second) / 302)


def test_a_taggers_embeddings_come_with_its_tags(folders: Path, files: list[Path]) -> None:
    found = load(folders / "tagger").embed(files)
    assert found.tags is not None
    assert torch.equal(found.tags.scores, load(folders / "tagger").tag(files).scores)
    assert load(folders / "encoder").embed(files).tags is None


def test_top_names_the_best_classes(folders: Path) -> None:
    tags = load(folders / "tagger").tag(np.ones(400, np.float32), 16_000)
    ((best, score), *others) = tags.top(3)[0]
    assert score == float(tags.scores.max())
    assert {best, *(name for name, _ in others)} == {"a", "b", "c"}


def test_a_run_folder_will_do(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "encoder", tmp_path / "run" / "model")
    assert isinstance(load(tmp_path / "run"), AudioModel)


@pytest.mark.parametrize(
    ("sound", "sample_rate", "match"),
    [
        ([], 16_000, "at least one file or waveform"),
        (np.zeros(400, np.float32), None, "`sample_rate` of the waveforms is required"),
        (np.zeros(400, np.float32), 0, "`sample_rate` must be above 0 Hz, found 0"),
        (np.zeros(399, np.float32), 16_000, "at least 400 samples at 16000 Hz"),
        (np.full(400, np.nan, np.float32), 16_000, "sound 0: finite samples required"),
        (np.zeros((400, 65), np.float32), 16_000, r"found float32 of shape \(400, 65\)"),
        (np.zeros(400, np.int16), 16_000, "must be floating.*int16.*; divide"),
        (np.zeros((3, 400)), 16_000, r"must have shape .*\(3, 400\); .* give a batch as a list"),
        (np.full(400, 900.0), 16_000, r"sound 0: samples in \[-1, 1\] .* a peak of 900; divide"),
        ("nowhere.wav", None, "nowhere.wav must be a file, found none"),
    ],
)
def test_what_is_no_sound_is_refused(
    folders: Path, sound: object, sample_rate: int | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        load(folders / "encoder").embed(sound, sample_rate)  # type: ignore[arg-type]


def test_an_encoder_does_not_tag(folders: Path) -> None:
    with pytest.raises(ValueError, match="must be a tagger, found an encoder"):
        load(folders / "encoder").tag(np.zeros(400, np.float32), 16_000)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"finished, found no model\.json there"):
        load(tmp_path)


def test_a_codec_that_is_not_known_gets_a_remedy(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "sound.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(ValueError, match=r"libsndfile reads.*ffmpeg -i .*sound.m4a sound.wav"):
        load(folders / "encoder").embed(tmp_path / "sound.m4a")
