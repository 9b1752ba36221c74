"""Log-mels on the fly: of kept audio those that are stored, of others' tars those of the build."""

import io
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_files import write_pyav
from conftest import SPEC, plan_of, silent
from foreign_tars import write_tar
from object_store import Bucket

from melstream.pipeline.audio_logmels import AudioConfig, AudioLogMels, AudioSample, pad_logmels
from melstream.pipeline.length_order import LengthConfig, LengthOrder
from melstream.pipeline.logmel import LogMel
from melstream.pipeline.order import OrderConfig, TrainingOrder
from melstream.pipeline.parallel_map import parallel_map
from melstream.pipeline.raw_audio import kept_audio, tar_audio
from melstream.pipeline.waveform import load_waveform
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, ShardError
from melstream.shards.spec import PRESETS, FeatureSpec
from melstream.shards.storage import open_storage
from melstream.tools.build import build
from melstream.tools.build_workers import run_here

pytest_plugins = ["object_store"]

STRICT = AudioConfig(max_rejects=0, n_threads=2)
LENIENT = AudioConfig(max_rejects=1, n_threads=2)
RATE = 22_050


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("melstream-map")] == []


@pytest.fixture(scope="module")
def kept(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """``kept(features)``: shipped recordings with their audio, built once."""
    root = tmp_path_factory.mktemp("kept")
    source = root / "in" / "class"
    source.mkdir(parents=True)
    for path in sorted((recordings / "eval").glob("*/*.flac"))[:6]:
        (source / path.name).write_bytes(path.read_bytes())

    def of(features: FeatureSpec = SPEC) -> Dataset:
        out = root / features.storage_dtype
        if not out.exists():
            plan = plan_of(root / "in", keep_audio=True, features=features)
            build(plan, open_storage(out), run_here, silent)
        return open_dataset(out)

    return of


@pytest.mark.parametrize("features", [SPEC, FeatureSpec(storage_dtype="uint8")])
def test_kept_audio_gives_the_stored_log_mels(
    kept: Callable[..., Dataset], features: FeatureSpec
) -> None:
    dataset = kept(features)
    code = features.code
    samples = list(AudioLogMels(features, STRICT)(kept_audio(dataset)))
    assert [sample.row for sample in samples] == list(range(len(dataset)))
    for sample in samples:
        found = sample.logmel.astype(np.float16) if code is None else code.encode(sample.logmel)
        np.testing.assert_array_equal(found, dataset.read_stored(sample.row))
        assert sample.key == dataset.key(sample.row)
        assert sample.info == json.loads(dataset.read_member(sample.row, "json"))


def test_kept_audio_gives_other_features_in_the_order_of_training(
    kept: Callable[..., Dataset],
) -> None:
    dataset, spec = kept(), PRESETS["kaldi128"]
    order = TrainingOrder(dataset.index, "f", OrderConfig(global_batch_size=2))
    rows = np.concatenate([order.rows(step) for step in range(3)]).tolist()
    samples = AudioLogMels(spec, STRICT)(kept_audio(dataset, rows))
    for row, sample in zip(rows, samples, strict=True):
        waveform, _ = soundfile.read(io.BytesIO(dataset.read_member(row, "flac")), dtype="float32")
        np.testing.assert_array_equal(sample.logmel, LogMel(spec)(waveform))


def test_kept_audio_is_batched_by_length(kept: Callable[..., Dataset]) -> None:
    dataset = kept()
    longest = int(dataset.index.n_frames.max())
    config = LengthConfig(global_batch_frames=2 * longest, n_lanes=1)
    order = LengthOrder(dataset.index, dataset.manifest.fingerprint, config)
    steps = [order.rows(step) for step in range(2 * order.steps_per_epoch)]
    clips = AudioLogMels(SPEC, STRICT)(kept_audio(dataset, np.concatenate(steps).tolist()))
    for rows in steps:
        batch = list(itertools.islice(clips, len(rows)))
        logmel, n_frames = pad_logmels([clip.logmel for clip in batch])
        assert [clip.row for clip in batch] == rows.tolist()
        assert n_frames.tolist() == dataset.index.n_frames[rows].tolist()
        assert logmel.shape[0] * logmel.shape[1] <= 2 * longest


def test_kept_audio_is_checked(kept: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = kept()
    for name, _ in dataset.storage.list():
        open_storage(tmp_path / "copy").write(name, dataset.storage.read(name))
    offset, size = dataset.member_span(1, "flac")
    path = tmp_path / "copy" / dataset.manifest.shards[0].name
    content = bytearray(path.read_bytes())
    content[offset + size // 2] ^= 1
    path.write_bytes(content)
    copy = open_dataset(tmp_path / "copy")
    stage = AudioLogMels(SPEC, LENIENT)
    with pytest.raises(ShardError, match=f"the payload of {copy.key(1)} is not the one"):
        list(stage(kept_audio(copy)))


def test_a_data_set_without_audio_says_how_to_get_one(small_dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="built with `--keep-audio`, it holds no waveforms"):
        kept_audio(small_dataset)


# --- tars made elsewhere


def encoded(number: int, kind: str, duration_s: float = 0.5) -> bytes:
    """A tone in stereo."""
    t = np.arange(round(RATE * duration_s)) / RATE
    tone = (0.3 * np.sin(2 * np.pi * (200 + 100 * number) * t)).astype(np.float32)
    buffer = io.BytesIO()
    subtype = "MPEG_LAYER_III" if kind == "MP3" else None
    soundfile.write(buffer, np.stack([tone, tone], 1), RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def members(numbers: range) -> list[tuple[str, bytes]]:
    """Samples in three formats, with a text that nobody asks for."""
    found = []
    for n in numbers:
        kind = ("FLAC", "WAV", "MP3")[n % 3]
        found.append((f"set.1/clip{n}.json", json.dumps({"label": f"tone {n}"}).encode()))
        found.append((f"set.1/clip{n}.audio.{kind.lower()}", encoded(n, kind)))
        found.append((f"set.1/clip{n}.txt", b"a tone"))
    return found


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars of three samples."""
    for tar in range(2):
        write_tar(tmp_path / "tars" / f"{tar}.tar", members(range(3 * tar, 3 * tar + 3)))
    return tmp_path / "tars"


def test_tars_give_what_their_files_would_give(tars: Path, tmp_path: Path) -> None:
    samples = list(AudioLogMels(SPEC, STRICT)(tar_audio(tars)))
    assert [sample.key for sample in samples] == [f"set.1/clip{n}" for n in range(6)]
    for n, sample in enumerate(samples):
        path = tmp_path / f"whatever.{n}"
        path.write_bytes(encoded(n, ("FLAC", "WAV", "MP3")[n % 3]))
        waveform = load_waveform(path, SPEC).waveform
        np.testing.assert_array_equal(sample.logmel, LogMel(SPEC)(waveform))
        assert sample.info == {"label": f"tone {n}"}
        assert (sample.shard, sample.row) == (f"{n // 3}.tar", -1)


def test_formats_that_only_ffmpeg_reads_are_read(tmp_path: Path) -> None:
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32)[:, None] / 3
    m4a = write_pyav(tmp_path / "a.m4a", tone, RATE, "mp4", "aac").read_bytes()
    write_tar(tmp_path / "a.tar", [("a.m4a", m4a)])
    (sample,) = AudioLogMels(SPEC, STRICT)(tar_audio(tmp_path))
    assert len(sample.logmel) == pytest.approx(101, abs=6)


def test_every_format_of_a_build_is_found_in_tars(tmp_path: Path) -> None:
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32) / 3
    soundfile.write(tmp_path / "a.w64", tone, RATE)
    write_tar(tmp_path / "a.tar", [("a.w64", (tmp_path / "a.w64").read_bytes())])
    (sample,) = AudioLogMels(SPEC, STRICT)(tar_audio(tmp_path))
    assert len(sample.logmel) == 101


def test_ranks_share_the_tars(tars: Path) -> None:
    stage = AudioLogMels(SPEC, STRICT)
    ranks = [[s.shard for s in stage(tar_audio(tars, rank=r, world_size=2))] for r in range(2)]
    assert ranks == [["0.tar"] * 3, ["1.tar"] * 3]


def test_an_object_store_gives_the_same(tars: Path, bucket: Bucket) -> None:
    storage = bucket.open()
    for path in tars.iterdir():
        storage.write(path.name, path.read_bytes())
    stage = AudioLogMels(SPEC, STRICT)
    for local, remote in zip(stage(tar_audio(tars)), stage(tar_audio(storage)), strict=True):
        assert local.key == remote.key
        np.testing.assert_array_equal(local.logmel, remote.logmel)
    with pytest.raises(ShardError, match=r"/absent.tar is missing"):
        list(tar_audio(storage, ["absent.tar"]))


@pytest.mark.parametrize("n_cut", [512, 1_024, 10_000])
def test_a_tar_that_is_cut_is_an_error(tars: Path, n_cut: int) -> None:
    """webdataset takes it for a shorter one."""
    path = tars / "1.tar"
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: (len(content) - n_cut) // 512 * 512])
    with pytest.raises(ShardError, match=r"1.tar is cut"):
        list(AudioLogMels(SPEC, STRICT)(tar_audio(tars)))


def test_what_cannot_be_a_sample_is_counted_with_its_reason(
    tars: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = io.BytesIO()
    soundfile.write(quiet, np.zeros(RATE), RATE, format="WAV")
    bad = [
        ("short.wav", encoded(1, "WAV", 0.01)),
        ("silent.wav", quiet.getvalue()),
        ("cut.flac", encoded(1, "FLAC")[:-4_000]),
        ("text.mp3", b"no audio"),
        ("none.json", b"{}"),
        ("empty.wav", b""),
    ]
    write_tar(tars / "2.tar", bad)
    stage = AudioLogMels(SPEC, LENIENT)
    with caplog.at_level(logging.WARNING):
        assert len(list(stage(tar_audio(tars)))) == 6
    assert stage.counts.n_samples == 6
    reasons = ["too_short", "silent", "truncated", "undecodable", "missing", "empty"]
    assert stage.counts.n_rejects == dict.fromkeys(reasons, 1)
    assert "clip left out (silent): 2.tar, key silent: sound is required" in caplog.text
    assert all("melstream-" not in record.message for record in caplog.records)


def test_too_many_rejects_end_the_run(tmp_path: Path) -> None:
    good, bad = encoded(1, "WAV"), encoded(1, "WAV", 0.01)
    write_tar(tmp_path / "a.tar", [("good.wav", good), ("bad.wav", bad)])
    stage = AudioLogMels(SPEC, AudioConfig(max_rejects=0.25, n_threads=1))
    with pytest.raises(
        DatasetError,
        match=r"1 of 2 clips \(50.0%\) cannot be samples, more than the allowed 25.0%: "
        r"1 too_short; last: a.tar, key bad: at least 0.025 s are required, found",
    ):
        list(stage(tar_audio(tmp_path)))


def test_a_run_that_goes_wrong_does_not_go_on_to_its_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"{n}.wav", b"") for n in range(300)])
    stage = AudioLogMels(SPEC, AudioConfig(n_threads=1))
    with pytest.raises(DatasetError, match="100 of 100 clips"):
        list(stage(tar_audio(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([("a.wav", b"1"), ("a.flac", b"2")], r'must have one audio member, .* audio_field="wav"'),
        ([("a.wav", b"1"), ("a.wav", b"2")], "found `wav` twice in a"),
        ([("a.json", b"{"), ("a.wav", b"2")], "the json of a must be JSON"),
        ([("a.json", b"1" * (2**20 + 1)), ("a.wav", b"2")], "at most 1048576 bytes"),
    ],
)
def test_a_sample_that_is_not_clear_is_an_error(
    tmp_path: Path, content: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "a.tar", content)
    with pytest.raises(ShardError, match=message):
        list(tar_audio(tmp_path))


def test_the_audio_field_can_be_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.mix.wav", encoded(1, "WAV")), ("a.dry.wav", b"")])
    (sample,) = AudioLogMels(SPEC, STRICT)(tar_audio(tmp_path, audio_field="mix.wav"))
    assert len(sample.logmel) == 51


def test_a_folder_without_tars_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must hold tars, found none"):
        tar_audio(tmp_path)


# --- threads and batches


def test_a_batch_is_padded_with_zeros(tars: Path) -> None:
    clips = list(itertools.islice(AudioLogMels(SPEC, STRICT)(tar_audio(tars)), 2))
    logmel, n_frames = pad_logmels([clips[0].logmel[:30], clips[1].logmel])
    assert n_frames.tolist() == [30, 51]
    np.testing.assert_array_equal(logmel[0, :30], clips[0].logmel[:30])
    assert not logmel[0, 30:].any()
    np.testing.assert_array_equal(logmel[1], clips[1].logmel)


def test_no_file_is_left_when_the_consumer_stops(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    samples = AudioLogMels(SPEC, STRICT)(tar_audio(tars))
    assert isinstance(next(samples), AudioSample)
    assert list((tmp_path / "temporary").iterdir())
    samples.close()  # type: ignore[attr-defined]
    assert not list((tmp_path / "temporary").iterdir())


def test_results_keep_their_order_and_few_are_ahead() -> None:
    first_may_end = threading.Event()
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(20):
            taken.append(n)
            yield n

    def wait_for_others(n: int) -> int:
        if n == 0:
            first_may_end.wait(10)
        elif n == 3:
            first_may_end.set()
        return n

    results = parallel_map(wait_for_others, items(), n_threads=2, n_ahead=4)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert list(results) == list(range(1, 20))


def test_an_error_comes_at_its_turn() -> None:
    def fail(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    results: Any = parallel_map(fail, range(9), n_threads=2, n_ahead=6)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
