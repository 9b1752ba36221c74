"""What a build can be asked for: parts, windows, splits, kept audio, codes, another try."""

import dataclasses
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from broken_files import write_broken_files
from conftest import SPEC, content, plan_of, silent
from crashing_path import CrashingPath

from melstream.pipeline.logmel import LogMel
from melstream.pipeline.waveform import load_waveform
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import REASONS, DatasetError
from melstream.shards.spec import FeatureSpec
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.tools.build import Part, build, locked
from melstream.tools.build_plan import Plan, PlanSettings, make_plan
from melstream.tools.build_workers import run_here, run_jobs
from melstream.tools.corpora import folder
from melstream.tools.coverage import Counts, read_total

CODED = FeatureSpec(storage_dtype="uint8")


def run(plan: Plan, out: Path) -> Dataset:
    build(plan, open_storage(out), run_here, silent)
    return open_dataset(out)


def sources(dataset: Dataset) -> list[str]:
    return sorted(dataset.read_info(row).source for row in range(len(dataset)))


# --- parts


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_built_one_by_one_give_the_bytes_of_one_build(
    corpus: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    plan = plan_of(corpus, max_shard_samples=2)
    run(plan, tmp_path / "whole" / "train")
    storage = open_storage(tmp_path / "parts" / "train")
    reports = [build(plan, storage, run_here, silent, Part(i, 3)) for i in order]
    assert [report.manifest is None for report in reports] == [True, True, False]
    assert reports[0].n_shards_left == plan.n_shards - len(reports[0].new)
    assert sum(len(report.new) for report in reports) == plan.n_shards
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_part_that_was_lost_is_made_good_by_a_build_of_the_whole(
    corpus: Path, tmp_path: Path
) -> None:
    plan = plan_of(corpus, max_shard_samples=2)
    storage = open_storage(tmp_path / "out")
    first = build(plan, storage, run_here, silent, Part(1, 2))
    report = build(plan, storage, run_here, silent)
    assert report.manifest is not None
    assert len(report.new) == plan.n_shards - len(first.new)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`--part` must be i/n with i from 1 to n"):
        Part.parse(text)


def test_parts_of_unlike_numbers_are_not_built_at_once(corpus: Path, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    with (
        locked(storage, "part-1-of-2"),
        pytest.raises(DatasetError, match="another process is building"),
    ):
        build(plan_of(corpus), storage, run_here, silent)
    with locked(storage, "part-1-of-2"):
        build(plan_of(corpus), storage, run_here, silent, Part(2, 2))
    assert build(plan_of(corpus), storage, run_here, silent).manifest is not None


# --- crashes and full disks


def test_a_file_that_kills_its_decoder_costs_that_file_only(corpus: Path, tmp_path: Path) -> None:
    for name in ("crash 1.flac", "crash 2.flac"):
        shutil.copyfile(next(corpus.rglob("0.flac")), next(corpus.iterdir()) / name)
    plan = plan_of(corpus, max_shard_samples=7)
    listing = dataclasses.replace(plan.listing, root=CrashingPath(corpus))
    plan = dataclasses.replace(plan, listing=listing)
    report = build(plan, open_storage(tmp_path / "out"), lambda jobs: run_jobs(jobs, 2), silent)
    assert report.manifest is not None
    assert report.manifest.n_rejects == {"crashed": 2}
    assert report.manifest.n_samples == 12
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert sorted(Path(json.loads(line)["source"]).name for line in lines) == [
        "crash 1.flac",
        "crash 2.flac",
    ]
    assert not any(find_problems(open_dataset(tmp_path / "out"), full=True))


def test_a_file_that_hangs_its_decoder_costs_that_file_only(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melstream.tools.build_workers.STALL_S", 5.0)
    shutil.copyfile(next(corpus.rglob("0.flac")), next(corpus.iterdir()) / "hang.flac")
    plan = plan_of(corpus)
    listing = dataclasses.replace(plan.listing, root=CrashingPath(corpus))
    plan = dataclasses.replace(plan, listing=listing)
    report = build(plan, open_storage(tmp_path / "out"), lambda jobs: run_jobs(jobs, 1), silent)
    assert report.manifest is not None
    assert report.manifest.n_rejects == {"crashed": 1}
    assert report.manifest.n_samples == 12


FULL_DISK = """
import resource, signal, sys
from melstream.tools.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()),) * 2)
main()
"""


def test_a_full_disk_is_an_error_that_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "full" / "train"
    plan = plan_of(corpus, max_shard_samples=2)
    last = plan.clips(plan.n_shards - 1)[-1]
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * 16_000)
    soundfile.write(corpus / str(last.path), noise, 16_000)
    plan = plan_of(corpus, max_shard_samples=2)
    run(plan, tmp_path / "whole" / "train")
    arguments = ["build", "folder", str(corpus), "--out", str(out), "--shard-samples", "2"]
    limit = "200000"  # bytes: all shards fit but the last
    process = subprocess.run(
        [sys.executable, "-Ic", FULL_DISK, *arguments, "--jobs", "1", limit],
        capture_output=True,
        check=False,
    )
    assert process.returncode == 1
    assert b"File too large" in process.stderr
    assert b"Traceback" not in process.stderr
    assert not (out / "dataset.json").exists()
    assert not list(out.glob("*.partial"))
    report = build(plan, open_storage(out), run_here, silent)
    assert len(report.new) < plan.n_shards
    assert content(out) == content(tmp_path / "whole" / "train")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- windows


@pytest.fixture
def long_recording(tmp_path: Path) -> Path:
    """4.7 s of noise that grows louder, and a silent third second."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 4 * 22_050 + 15_435) * np.linspace(0.01, 0.2, 4 * 22_050 + 15_435)
    noise[2 * 22_050 : 3 * 22_050] = 0
    path = tmp_path / "long" / "noise" / "rising.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, noise, 22_050)
    return path


def test_windows_are_the_segments_of_the_recording(long_recording: Path, tmp_path: Path) -> None:
    dataset = run(plan_of(long_recording.parents[1], window_s=1.0), tmp_path / "out")
    assert dataset.manifest.n_rejects == {"silent": 1}
    assert len(dataset) == 4
    logmel = LogMel(SPEC)
    for row in range(len(dataset)):
        info = dataset.read_info(row)
        assert info.start_s is not None
        audio = load_waveform(long_recording, SPEC, start_s=info.start_s, duration_s=1.0)
        expected = logmel(audio.waveform).astype(np.float16)
        np.testing.assert_array_equal(dataset.read_stored(row), expected)
        assert dataset.key(row).endswith(f"-{round(1000 * info.start_s):08d}")
    starts = sorted(dataset.read_info(row).start_s or 0.0 for row in range(len(dataset)))
    assert starts == [0.0, 1.0, 3.0, 4.0]
    assert dataset.index.duration_s.min() == pytest.approx(0.7, abs=1e-3)
    (reject,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["key"].endswith("-00002000")


def test_a_recording_of_which_nothing_is_left_is_one_reject(
    long_recording: Path, tmp_path: Path
) -> None:
    soundfile.write(long_recording.parent / "zero.wav", np.zeros(22_050 * 3), 22_050)
    dataset = run(plan_of(long_recording.parents[1], window_s=1.0), tmp_path / "out")
    assert dataset.manifest.n_rejects == {"silent": 2}
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in lines} == {"noise/rising.wav", "noise/zero.wav"}


def test_a_short_rest_is_counted_and_no_sample_is_made_of_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 4 + 800)
    path = tmp_path / "long" / "noise" / "a.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, noise, 16_000)
    dataset = run(plan_of(tmp_path / "long", window_s=2.0), tmp_path / "out")
    assert len(dataset) == 2
    assert dataset.manifest.n_rejects == {"tail": 1}
    assert read_total(dataset.storage) == Counts(1, 1, 1, 0, 0)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_whole_video_under_the_name_of_a_clip_gives_no_window(
    tmp_path: Path, subtype: str
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 5)
    (tmp_path / "in" / "noise").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "noise" / "twice.wav", noise[: 16_000 * 4], 16_000)
    noise[16_000 * 4 :] = np.nan if subtype == "FLOAT" else noise[16_000 * 4 :]
    soundfile.write(tmp_path / "in" / "noise" / "video.wav", noise, 16_000, subtype=subtype)
    listing = folder.scan(tmp_path / "in")
    clips = tuple(dataclasses.replace(clip, duration_s=2.0) for clip in listing.clips)
    listing = dataclasses.replace(listing, clips=clips)
    settings = PlanSettings(corpus="folder", features=SPEC, window_s=1.0)
    dataset = run(make_plan(listing, settings), tmp_path / "out")
    assert sources(dataset) == ["noise/twice.wav"] * 4
    assert dataset.manifest.n_rejects == {"mis_sized": 1}
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["key"] in {clip.key for clip in clips}
    assert "must have about 2 s by the metadata, found over 4 s" in found["message"]
    assert read_total(dataset.storage) == Counts(2, 2, 1, 0, 1)


def test_a_window_with_a_broken_sample_costs_that_window(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 6).astype(np.float32)
    noise[20_000] = np.nan
    path = tmp_path / "long" / "noise" / "a.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, noise, 16_000, subtype="FLOAT")
    dataset = run(plan_of(tmp_path / "long", window_s=1.0), tmp_path / "out")
    assert len(dataset) == 5
    assert dataset.manifest.n_rejects == {"not_finite": 1}


def test_strong_labels_are_cut_with_the_windows(long_recording: Path, tmp_path: Path) -> None:
    listing = folder.scan(long_recording.parents[1])
    events = ((0.5, 1.0, 0), (1.0, 1.0, 0), (1.5, 3.5, 0))
    clips = (dataclasses.replace(listing.clips[0], events=events),)
    settings = PlanSettings(corpus="folder", features=SPEC, window_s=1.0)
    plan = make_plan(dataclasses.replace(listing, clips=clips), settings)
    dataset = run(plan, tmp_path / "out")
    found = {dataset.read_info(row).start_s: dataset.read_info(row).events for row in range(4)}
    assert found == {
        0.0: ((0.5, 1.0, "noise"),),
        1.0: ((0.0, 0.0, "noise"), (0.5, 1.0, "noise")),
        3.0: ((0.0, 0.5, "noise"),),
        4.0: (),
    }


def test_segments_of_one_file_stand_together_and_hold_what_was_asked_for(
    long_recording: Path, tmp_path: Path
) -> None:
    (whole,) = folder.scan(long_recording.parents[1]).clips
    listing = folder.scan(long_recording.parents[1])
    cut = [(0.25, 0.5), (3.5, 1.0), (4.2, 2.0), (9.0, 1.0)]
    clips = tuple(
        dataclasses.replace(
            whole, key=f"part-{n}", offset_s=start, start_s=start, duration_s=length
        )
        for n, (start, length) in enumerate(cut)
    )
    plan = make_plan(
        dataclasses.replace(listing, clips=clips), PlanSettings(corpus="folder", features=SPEC)
    )
    dataset = run(plan, tmp_path / "out")
    assert [dataset.key(row) for row in range(3)] == ["part-0", "part-1", "part-2"]
    np.testing.assert_allclose(dataset.index.duration_s, [0.5, 1.0, 0.5], atol=1e-3)
    assert dataset.manifest.n_rejects == {"past_end": 1}


# --- splits and limits


def test_splits_are_kept_and_can_be_chosen(corpus: Path, tmp_path: Path) -> None:
    listing = folder.scan(corpus)
    clips = tuple(
        dataclasses.replace(clip, split=n % 3 - 1) for n, clip in enumerate(listing.clips)
    )
    listing = dataclasses.replace(listing, clips=clips, splits=("fold-1", "fold-2"))
    settings = PlanSettings(corpus="folder", features=SPEC)
    dataset = run(make_plan(listing, settings), tmp_path / "all")
    assert dataset.manifest.split_names == ("fold-1", "fold-2")
    for row in range(len(dataset)):
        split = {clip.key: clip.split for clip in clips}[dataset.key(row)]
        assert dataset.index.split[row] == split
        assert dataset.read_info(row).split == (None if split < 0 else f"fold-{split + 1}")
    chosen = PlanSettings(corpus="folder", features=SPEC, splits=("fold-2",))
    one = run(make_plan(listing, chosen), tmp_path / "one")
    assert len(one) == 4
    assert set(one.index.split.tolist()) == {1}
    wrong = PlanSettings(corpus="folder", features=SPEC, splits=("fold-3",))
    with pytest.raises(ValueError, match="must be one of fold-1, fold-2; found 'fold-3'"):
        make_plan(listing, wrong)
    with pytest.raises(ValueError, match="this corpus has no splits of its own"):
        make_plan(folder.scan(corpus), chosen)


def test_a_limit_takes_a_part_of_what_the_whole_build_would(corpus: Path, tmp_path: Path) -> None:
    few = run(plan_of(corpus, limit=5), tmp_path / "few")
    assert len(few) == 5
    assert set(sources(few)) < set(sources(run(plan_of(corpus), tmp_path / "all")))


# --- how samples are stored


def test_codes_take_half_the_bytes_and_stay_within_their_bound(
    corpus: Path, tmp_path: Path
) -> None:
    exact = run(plan_of(corpus), tmp_path / "float16")
    coded = run(plan_of(corpus, features=CODED), tmp_path / "uint8")
    code = coded.manifest.code
    assert code is not None
    assert code == CODED.code
    half_precision = 2.0**-11 * 18.5  # how far float16 rounds the largest log-mels
    for row in range(len(exact)):
        assert coded.read_stored(row).dtype == np.uint8
        difference = np.abs(coded.read_logmel(row) - exact.read_logmel(row))
        assert difference.max() <= code.max_error + half_precision
    assert coded.index.logmel_size.sum() < 0.52 * exact.index.logmel_size.sum()
    np.testing.assert_allclose(
        coded.manifest.band_mean, exact.manifest.band_mean, atol=code.max_error
    )
    assert not any(find_problems(coded, full=True))


@pytest.mark.parametrize("features", [SPEC, CODED])
def test_kept_audio_gives_the_features_again(
    corpus: Path, tmp_path: Path, features: FeatureSpec
) -> None:
    """They are made of what 16 bits hold, so value by value."""
    dataset = run(plan_of(corpus, keep_audio=True, features=features), tmp_path / "out")
    assert dataset.manifest.has_audio
    logmel, code = LogMel(SPEC), dataset.manifest.code
    for row in range(len(dataset)):
        flac = io.BytesIO(dataset.read_member(row, "flac"))
        waveform, rate = soundfile.read(flac, dtype="float32")
        assert rate == SPEC.sample_rate
        again = logmel(waveform)
        again = again.astype(np.float16) if code is None else code.encode(again)
        np.testing.assert_array_equal(again, dataset.read_stored(row))
    assert not any(find_problems(dataset, full=True))


def test_audio_that_16_bits_cannot_hold_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "in" / "quiet" / "a.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.full(16_000, 1e-6, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(path.with_name("b.wav"), np.full(16_000, 0.1, np.float32), 16_000)
    assert len(run(plan_of(tmp_path / "in"), tmp_path / "features")) == 2
    dataset = run(plan_of(tmp_path / "in", keep_audio=True), tmp_path / "audio")
    assert len(dataset) == 1
    assert dataset.manifest.n_rejects == {"silent": 1}


# --- quality


def test_exact_duplicates_have_one_hash_across_names_and_formats(
    corpus: Path, tmp_path: Path
) -> None:
    source = next(corpus.rglob("0.flac"))
    samples, rate = soundfile.read(source, dtype="int32")
    soundfile.write(source.parent / "copy.wav", samples, rate, subtype="PCM_24")
    dataset = run(plan_of(corpus), tmp_path / "out")
    hashes, counts = np.unique(dataset.index.audio_hash, return_counts=True)
    twins = np.flatnonzero(dataset.index.audio_hash == hashes[counts == 2][0])
    assert {Path(dataset.read_info(row).source).name for row in twins} == {"0.flac", "copy.wav"}


# --- broken files


def test_two_hundred_broken_files_end_no_build_and_each_has_a_reason(
    corpus: Path, tmp_path: Path
) -> None:
    (corpus / "broken").mkdir()
    broken = write_broken_files(corpus / "broken")
    assert len(broken) == 200
    report = build(
        plan_of(corpus), open_storage(tmp_path / "out"), lambda jobs: run_jobs(jobs, 2), silent
    )
    assert report.manifest is not None
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    rejects = {json.loads(line)["source"]: json.loads(line) for line in lines}
    assert len(rejects) > 120
    assert {reject["reason"] for reject in rejects.values()} <= set(REASONS) - {"failed"}
    assert all(reject["message"] for reject in rejects.values())
    written = set(sources(open_dataset(tmp_path / "out")))
    files = {str(path.relative_to(corpus)) for path in corpus.rglob("*") if path.is_file()}
    listed = {clip.source for clip in plan_of(corpus).listing.clips}
    assert written.isdisjoint(rejects)
    assert written | set(rejects) == listed <= files
