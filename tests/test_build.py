"""A build is whole, restartable and explained, on real recordings and on bad input."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import zarr
from conftest import SPEC, content, plan_of, read_with_webdataset

from melstream.pipeline.decode import decode
from melstream.pipeline.logmel import LogMel
from melstream.pipeline.waveform import load_waveform
from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError, MelstreamError
from melstream.shards.manifest import Manifest
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.tools import build_assemble, build_workers
from melstream.tools.build import BuildReport, build
from melstream.tools.build_plan import Plan, PlanSettings, make_plan
from melstream.tools.build_workers import run_jobs
from melstream.tools.corpora import folder
from melstream.tools.corpora.corpus import Clip
from melstream.tools.coverage import Counts, read_total


def run(plan: Plan, out: Path, n_jobs: int = 0) -> Manifest:
    return run_reported(plan, out, n_jobs)[0]


def run_reported(plan: Plan, out: Path, n_jobs: int = 0) -> tuple[Manifest, BuildReport]:
    report = build(
        plan, open_storage(out), lambda jobs: run_jobs(jobs, n_jobs), lambda done, note: None
    )
    assert report.manifest is not None
    return report.manifest, report


def test_the_shipped_recordings_become_a_whole_data_set(
    built: Callable[[str], Dataset], recordings: Path
) -> None:
    dataset = built("train")
    files = sorted((recordings / "train").glob("*/*.flac"))
    assert len(dataset) == len(files)
    assert dataset.manifest.n_rejects == {}
    assert dataset.manifest.label_names == tuple(sorted({path.parent.name for path in files}))
    assert list(find_problems(dataset, full=True)) == [None] * len(dataset.manifest.shards)
    sources = {dataset.read_info(row).source for row in range(len(dataset))}
    assert sources == {str(path.relative_to(recordings / "train")) for path in files}


def test_plain_webdataset_reads_what_a_build_wrote(built: Callable[[str], Dataset]) -> None:
    dataset = built("eval")
    read = read_with_webdataset(dataset)
    assert [sample["__key__"] for sample in read] == [
        k.decode() for k in dataset.index.sample_keys()
    ]
    for row, sample in enumerate(read):
        np.testing.assert_array_equal(sample["logmel.npy"], dataset.read_logmel(row))
        names = [dataset.manifest.label_names[i] for i in dataset.index.labels(row)]
        assert sample["json"]["labels"] == names


def test_features_and_statistics_equal_those_computed_from_the_files(
    built: Callable[[str], Dataset], recordings: Path
) -> None:
    dataset = built("eval")
    logmel = LogMel(SPEC)
    values = []
    for row in range(len(dataset)):
        info = dataset.read_info(row)
        audio = load_waveform(recordings / "eval" / info.source, SPEC)
        expected = logmel(audio.waveform).astype(np.float16)
        np.testing.assert_array_equal(dataset.read_logmel(row), expected)
        assert info.duration_s == pytest.approx(audio.duration_s)
        values.append(expected.astype(np.float64))
    stacked = np.concatenate(values)
    np.testing.assert_allclose(dataset.manifest.band_mean, stacked.mean(0), rtol=1e-9)
    np.testing.assert_allclose(dataset.manifest.band_std, stacked.std(0), rtol=1e-6)


def test_the_number_of_processes_does_not_change_a_byte(corpus: Path, tmp_path: Path) -> None:
    plan = plan_of(corpus, max_shard_samples=3)
    run(plan, tmp_path / "one" / "train")
    _, report = run_reported(plan, tmp_path / "two" / "train", n_jobs=2)
    assert len(report.new) == plan.n_shards >= 4
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_second_run_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    plan = plan_of(corpus)
    run(plan, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    _, report = run_reported(plan_of(corpus), tmp_path / "out")
    assert report.new == ()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    plan = plan_of(corpus, max_shard_samples=3)
    run(plan, tmp_path / "whole" / "train")
    out = tmp_path / "broken" / "train"
    done = 0

    def dying(job: object, on_clip: Callable[[int], None]) -> object:
        nonlocal done
        if done == stop_after:
            raise KeyboardInterrupt
        done += 1
        return original(job, on_clip)

    original = build_workers.build_shard
    monkeypatch.setattr(build_workers, "build_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        run(plan, out)
    with pytest.raises(DatasetError, match="unfinished build"):
        open_dataset(out)
    monkeypatch.undo()
    assert len(run_reported(plan, out)[1].new) == plan.n_shards - stop_after
    assert content(out) == content(tmp_path / "whole" / "train")


def test_a_build_killed_while_the_set_is_assembled_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(corpus, max_shard_samples=3)
    run(plan, tmp_path / "whole" / "train")
    out = tmp_path / "broken" / "train"

    def killed(storage: object, manifest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_assemble, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        run(plan, out)
    monkeypatch.undo()
    (out / "dataset.json.4711.partial").write_text("{ half a mani")
    assert run_reported(plan, out)[1].new == ()
    assert content(out) == content(tmp_path / "whole" / "train")


def test_an_output_folder_with_another_data_set_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plan_of(corpus), out)
    before = content(out)
    (corpus / "extra").mkdir()
    shutil.copyfile(next(corpus.rglob("*.flac")), corpus / "extra" / "new.flac")
    message = r"holds another data set \(\d+ samples\), built of other files .* --retry-failed"
    with pytest.raises(DatasetError, match=message):
        run(plan_of(corpus), out)
    message = r"built with other options: now --features with n_mels 128 \(was 64\).*; choose"
    with pytest.raises(DatasetError, match=message):
        run(plan_of(corpus, features=PRESETS["kaldi128"]), out)
    assert content(out) == before


def test_an_output_folder_with_something_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"must be new or empty, found thesis.tex"):
        run(plan_of(corpus), out)
    assert content(out) == {"thesis.tex": b"precious"}


@pytest.fixture
def bad_corpus(corpus: Path) -> Path:
    """The good recordings and one of everything that can be wrong with a file."""
    bad = corpus / "bad"
    bad.mkdir()
    good = next(corpus.rglob("0.flac"))
    (bad / "truncated.flac").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (bad / "empty.wav").write_bytes(b"")
    (bad / "text.wav").write_text("this is no audio\n" * 100)
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(bad / "short.wav", noise[:480], 48_000)
    soundfile.write(bad / "silent.wav", np.zeros(48_000), 48_000)
    broken = noise.astype(np.float32)
    broken[100] = np.nan
    soundfile.write(bad / "nan.wav", broken, 48_000, subtype="FLOAT")
    broken[100] = 1e30  # finite, but its power is not
    soundfile.write(bad / "huge.wav", broken, 48_000, subtype="FLOAT")
    return corpus


def test_each_bad_file_is_a_counted_reject_and_nothing_else_is_lost(
    bad_corpus: Path, tmp_path: Path
) -> None:
    manifest = run(plan_of(bad_corpus), tmp_path / "out")
    reasons = {"truncated", "empty", "undecodable", "too_short", "silent", "not_finite"}
    assert manifest.n_rejects == dict.fromkeys(sorted(reasons), 1) | {"not_finite": 2}
    assert manifest.n_samples == 12
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    rejects = {json.loads(line)["source"]: json.loads(line) for line in lines}
    expected = {
        "bad/truncated.flac": "truncated",
        "bad/empty.wav": "empty",
        "bad/text.wav": "undecodable",
        "bad/short.wav": "too_short",
        "bad/silent.wav": "silent",
        "bad/nan.wav": "not_finite",
        "bad/huge.wav": "not_finite",
    }
    assert {source: reject["reason"] for source, reject in rejects.items()} == expected
    assert all(reject["message"] for reject in rejects.values())
    assert "bad" in open_dataset(tmp_path / "out").manifest.label_names


@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 44_100, 96_000])
def test_any_rate_and_number_of_channels_becomes_the_same_features(
    tmp_path: Path, sample_rate: int, n_channels: int
) -> None:
    time = np.arange(sample_rate) / sample_rate
    tone = 0.25 * np.sin(2 * np.pi * 1_000 * time)
    path = tmp_path / "corpus" / "tone" / "a.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.tile(tone[:, None], n_channels), sample_rate)
    run(plan_of(tmp_path / "corpus"), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    info = dataset.read_info(0)
    assert (info.sample_rate, info.n_channels) == (sample_rate, n_channels)
    assert info.duration_s == pytest.approx(1.0, abs=1e-3)
    assert info.rms_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.2)
    logmel = dataset.read_logmel(0)
    assert logmel.shape == (101, 64)
    loudest = logmel[20:80].astype(np.float32).mean(0).argmax()
    reference = LogMel(SPEC)(
        0.25 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000).astype("f4")
    )
    assert loudest == reference[20:80].mean(0).argmax()


def test_a_corpus_of_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "bad" / "text.wav"
    path.parent.mkdir(parents=True)
    path.write_text("no audio")
    with pytest.raises(
        MelstreamError, match=r"not one of 1 clips became a sample \(1 undecodable\)"
    ):
        run(plan_of(tmp_path / "corpus"), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_shard_of_rejects_only_leaves_no_gap_in_the_names(
    bad_corpus: Path, tmp_path: Path
) -> None:
    run(plan_of(bad_corpus, max_shard_samples=1), tmp_path / "train")
    dataset = open_dataset(tmp_path / "train")
    assert [shard.name for shard in dataset.manifest.shards] == [
        f"train-{number:06d}.tar" for number in range(12)
    ]
    assert list(find_problems(dataset, full=True)) == [None] * 12


def test_missing_clips_are_counted_and_named(corpus: Path, tmp_path: Path) -> None:
    listing = folder.scan(corpus)
    gone = Clip(key="zzz", path=None, labels=(0,), source="zzz")
    listing = replace(listing, clips=(*listing.clips, gone), n_unlisted=3)
    plan = make_plan(listing, PlanSettings(corpus="folder", features=SPEC))
    manifest = run(plan, tmp_path / "out")
    assert manifest.n_rejects == {"missing": 1}
    assert manifest.n_ignored == {"unlisted": 3}
    total = read_total(open_storage(tmp_path / "out"))
    assert total is not None
    assert (total.n_missing, total.rejected_share) == (1, 0.0)
    assert '"key":"zzz"' in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_shards_are_cut_by_bytes_too(corpus: Path) -> None:
    files = {clip.key: clip.path for clip in folder.scan(corpus).clips}
    plan = plan_of(corpus, max_shard_bytes=60_000)
    assert plan.n_shards > 1
    for shard in range(plan.n_shards):
        clips = plan.clips(shard)
        n_file_bytes = sum((corpus / files[clip.key]).stat().st_size for clip in clips)
        size = n_file_bytes / 60_000 * 12_800 + 2_048 * len(clips)
        assert size <= 60_000 or len(clips) == 1


def test_the_plan_spreads_each_class_over_the_shards(recordings: Path) -> None:
    plan = plan_of(recordings / "train", max_shard_samples=20)
    for shard in range(plan.n_shards):
        assert len({clip.labels for clip in plan.clips(shard)}) >= 4


def test_a_bad_file_whose_name_is_not_utf8_is_a_reject_too(corpus: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (corpus / "bad").mkdir()
    (corpus / "bad" / name).write_text("no audio")
    manifest = run(plan_of(corpus), tmp_path / "out")
    assert manifest.n_rejects == {"undecodable": 1}
    assert "caf\\xe9" in json.loads((tmp_path / "out" / "rejects.jsonl").read_text())["message"]


def test_an_error_nobody_foresaw_is_a_reject_with_its_words(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(path: Path) -> object:
        if path.name == "3.flac":
            raise ZeroDivisionError("what a strange file")
        return decode(path)

    monkeypatch.setattr("melstream.tools.build_shard.decode", odd)
    manifest = run(plan_of(corpus), tmp_path / "out")
    assert manifest.n_rejects == {"failed": 1}
    message = json.loads((tmp_path / "out" / "rejects.jsonl").read_text())["message"]
    assert message == "ZeroDivisionError: what a strange file"


def test_a_clip_too_short_for_one_frame_is_a_reject(corpus: Path, tmp_path: Path) -> None:
    soundfile.write(next(corpus.iterdir()) / "blip.wav", np.full(200, 0.1), 16_000)
    settings = {"features": PRESETS["kaldi128"], "min_duration_s": 0.01, "max_shard_samples": 1}
    manifest = run(plan_of(corpus, **settings), tmp_path / "out")
    assert manifest.n_rejects == {"too_short": 1}
    assert manifest.n_samples == 12


def test_a_whole_video_under_the_name_of_a_clip_is_a_reject(corpus: Path, tmp_path: Path) -> None:
    listing = folder.scan(corpus)
    clips = [
        replace(clip, duration_s=1e-3 if n == 5 else 60.0) for n, clip in enumerate(listing.clips)
    ]
    listing = replace(listing, clips=tuple(clips))
    plan = make_plan(listing, PlanSettings(corpus="folder", features=SPEC))
    assert run(plan, tmp_path / "out").n_rejects == {"mis_sized": 1}


def test_a_file_that_is_gone_when_it_is_read_is_missing(corpus: Path, tmp_path: Path) -> None:
    plan = plan_of(corpus)
    gone = plan.listing.clips[3]
    (corpus / gone.source).unlink()
    assert run(plan, tmp_path / "out").n_rejects == {"missing": 1}
    assert read_total(open_storage(tmp_path / "out")) == Counts(12, 11, 11, 1, 0)
    assert (tmp_path / "out" / "missing.txt").read_text() == f"{gone.source}\n"


def test_an_altered_index_is_found(corpus: Path, tmp_path: Path) -> None:
    run(plan_of(corpus), tmp_path / "out")
    index = zarr.open_group(tmp_path / "out" / "index.zarr", mode="r+")
    index["label_ids"][...] = index["label_ids"][...][::-1]
    first, *rest = find_problems(open_dataset(tmp_path / "out"), full=False)
    assert "column `label_ids` of the index is damaged (its hash differs)" in str(first)
    assert rest == [None]
