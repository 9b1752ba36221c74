"""The benchmark of the loader runs, and says what it measured; how fast is not tested."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_sample, write_dataset
from object_store import Bucket
from typer.testing import CliRunner

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import MelstreamError
from melstream.shards.storage import open_storage
from melstream.tools import bench_versus
from melstream.tools.bench_versus import Contender, LoaderSpeed
from melstream.tools.cli import app
from melstream.tools.fixed_clips import copy_clips
from melstream.tools.peer_loaders import read_clips

pytest_plugins = ["object_store"]

QUICK = ("--seconds", 0.1, "--batch-size", 8)


def run(*arguments: object) -> str:
    command = ["bench", "loader", *map(str, arguments)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.slow
def test_rates_headspace_and_shuffle_are_measured(small_dataset: Dataset) -> None:
    found = json.loads(run(small_dataset.url, *QUICK, "--preset", "tiny", "--json"))
    assert (found["n_samples"], found["batch_size"], found["crop_frames"]) == (60, 8, 49)
    for kind in ("plain", "masked"):
        rate = found[kind]
        padded_bytes = 52 * 64 * 2  # 49 frames, and up to a multiple of the stride
        assert rate["bytes_per_s"] == pytest.approx(padded_bytes * rate["clips_per_s"])
        assert rate["first_batch_s"] > 0
    assert found["copy_share"] == found["plain"]["bytes_per_s"] / found["copy_bytes_per_s"]
    assert found["headspace"]["gain"] > 0
    assert 0 <= found["headspace"]["wait_share"] <= 1
    assert 1 <= found["shuffle"]["shards_per_batch"] <= 5
    assert found["vs"] == []


def test_every_line_says_what_it_means(small_dataset: Dataset) -> None:
    text = run(small_dataset.url, *QUICK, "--preset", "none", "--crop-seconds", 0.2)
    for words in ("first batch", "share of copying", "with masks", "0 = whole", "peak memory"):
        assert words in text
    assert "headspace" not in text


def test_clips_too_short_for_a_mask_are_left_out(tmp_path: Path) -> None:
    frames = [6, 7, 8, *[20] * 9]
    samples = [make_sample(number, n_frames=n) for number, n in enumerate(frames)]
    found = json.loads(
        run(write_dataset(tmp_path / "set", [samples]).url, *QUICK, "--preset", "none", "--json")
    )
    assert (found["n_samples"], found["crop_frames"]) == (10, 20)
    short = write_dataset(tmp_path / "short", [samples[:2]])
    with pytest.raises(ValueError, match=r"must have 8 frames for a mask, the longest of .* has 7"):
        run(short.url, *QUICK)


def test_an_unknown_model_is_refused(small_dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"`--preset` must be one of tiny, .*, found 'huge'"):
        run(small_dataset.url, "--preset", "huge")


def test_a_data_set_in_an_object_store_is_read_through_a_cache(
    bucket: Bucket, tmp_path: Path
) -> None:
    local = write_dataset(tmp_path / "local", [[make_sample(n) for n in range(12)]])
    storage = bucket.open()
    for name, _ in open_storage(local.url).list():
        storage.write(name, open_storage(local.url).read(name))
    options = (*QUICK, "--preset", "none", "--json")
    found = json.loads(run(storage.url, *options, "--cache", tmp_path / "cache"))
    assert found["plain"]["clips_per_s"] > 0
    assert list((tmp_path / "cache").rglob("*.piece"))


def test_copied_clips_have_one_length_and_are_those_of_the_data_set(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    storage = open_storage(tmp_path / "clips")
    clips = copy_clips(small_dataset, storage, n_frames=50, max_clips=10)
    assert len(clips) == 10
    for row in range(10):  # sample n has 20 + n frames
        assert clips.key(row) == small_dataset.key(30 + row)
        expected = small_dataset.read_stored(30 + row)[:50]
        np.testing.assert_array_equal(clips.read_stored(row), expected)
        assert clips.read_member(row, "json") == small_dataset.read_member(30 + row, "json")
    with pytest.raises(ValueError, match="no clip has 80 frames; lower --crop-seconds"):
        copy_clips(small_dataset, open_storage(tmp_path / "none"), n_frames=80, max_clips=1)


def test_the_peers_read_the_clips_without_us(small_dataset: Dataset) -> None:
    shards = [small_dataset.folder / shard.name for shard in small_dataset.manifest.shards]
    found = [clip for shard in shards for clip in read_clips(shard)]
    assert [clip["key"] for clip in found] == [small_dataset.key(row) for row in range(60)]
    for row, clip in enumerate(found):
        np.testing.assert_array_equal(clip["logmel"], small_dataset.read_stored(row))
        assert json.loads(clip["json"])["labels"] == [f"class {row % 3}"]


def test_a_contender_whose_workers_hang_is_ended_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_versus, "ANSWER_S", 1.0)
    hang = "import os, time; os.fork(); time.sleep(999)"  # both keep the pipe open
    contender = Contender("hangs", (sys.executable, "-Ic", hang))
    with (
        pytest.raises(MelstreamError, match="hangs ended, or gave no answer in 1 s"),
        bench_versus._start(contender),
    ):
        pass


def test_the_speed_of_a_loader_is_the_median_of_its_rounds() -> None:
    assert LoaderSpeed("ours", 0, (3.0, 100.0, 5.0)).median == 5.0


@pytest.mark.slow
def test_loaders_that_are_installed_are_timed_over_the_same_clips(
    small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_versus, "TURN_S", 0.01)
    found = json.loads(run(small_dataset.url, *QUICK, "--preset", "none", "--vs", "--json"))
    names = [speed["name"].split()[0] for speed in found["vs"]]
    assert names[:3] == ["melstream,", "melstream,", "plain"]
    assert {"webdataset", "lhotse"} <= set(names)
    assert all(speed["median"] > 0 for speed in found["vs"])
    assert open_dataset(small_dataset.url).manifest == small_dataset.manifest
