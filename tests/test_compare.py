"""Two data sets side by side: each number equals a naive one, each leak is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from zlib import crc32

import numpy as np
import pytest
from conftest import make_sample, write_dataset

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.keys import window_key
from melstream.shards.manifest import write_manifest
from melstream.shards.spec import PRESETS
from melstream.shards.storage import open_storage
from melstream.tools.compare import compare, inspect_against
from melstream.tools.inspect_leaks import _hashed, is_shared
from melstream.tools.inspection import Comparison, Drift
from melstream.tools.merge import merge
from melstream.tools.selection import Selection
from melstream.tools.subset import subset


def drift(found: Comparison, name: str) -> Drift:
    return next(one for one in found.drifts if one.name == name)


@pytest.fixture(scope="module")
def found(built: Callable[[str], Dataset]) -> Comparison:
    return compare(built("train"), built("eval"))


def largest_gap(one: np.ndarray, two: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance, by its definition."""
    return max(abs(np.mean(one <= at) - np.mean(two <= at)) for at in np.concatenate([one, two]))


@pytest.mark.parametrize("name", ["rms_dbfs", "bandwidth_hz", "duration_s", "silence_share"])
def test_columns_differ_by_the_largest_gap(
    found: Comparison, built: Callable[[str], Dataset], name: str
) -> None:
    sides = [built(split).index.column(name) for split in ("train", "eval")]
    assert drift(found, name).value == pytest.approx(largest_gap(*sides), abs=1e-12)


def test_bands_differ_by_the_effect_of_the_frames(
    found: Comparison, built: Callable[[str], Dataset]
) -> None:
    one, two = (
        np.concatenate([d.read_logmel(row) for row in range(len(d))]).astype(np.float64)
        for d in (built("train"), built("eval"))
    )
    pooled = np.sqrt((len(one) * one.var(0) + len(two) * two.var(0)) / (len(one) + len(two)))
    effects = (one.mean(0) - two.mean(0)) / pooled
    np.testing.assert_allclose(found.band_effects, effects, atol=1e-9)
    assert drift(found, "bands").value == pytest.approx(np.abs(effects).mean())


def test_class_shares_differ_by_half_the_sum_of_differences(
    found: Comparison, built: Callable[[str], Dataset]
) -> None:
    shares = []
    for split in ("train", "eval"):
        dataset = built(split)
        ids, names = dataset.index.label_ids, dataset.manifest.label_names
        shares.append({name: np.mean(ids == i) for i, name in enumerate(names)})
    names = shares[0].keys() | shares[1].keys()
    gaps = {name: abs(shares[0].get(name, 0) - shares[1].get(name, 0)) for name in names}
    assert drift(found, "class_shares").value == pytest.approx(sum(gaps.values()) / 2)
    assert gaps[found.class_drifts[0].name] == pytest.approx(max(gaps.values()))
    assert found.leaks == ()


def test_a_set_is_the_same_as_itself(built: Callable[[str], Dataset]) -> None:
    found = compare(built("eval"), built("eval"))
    assert {one.verdict for one in found.drifts} == {"same"}
    assert max(one.value for one in found.drifts) == 0
    assert [(leak.kind, leak.n_samples) for leak in found.leaks] == [("key", 24), ("audio", 24)]


@pytest.mark.parametrize(
    ("shift_db", "verdict"), [(0.0, "same"), (1.75, "small"), (3.25, "moderate"), (6.0, "large")]
)
def test_a_shift_of_the_level_is_judged_by_its_effect(
    tmp_path: Path, shift_db: float, verdict: str
) -> None:
    normal = NormalDist()
    sets = []
    for name, shift in (("one", 0.0), ("two", shift_db)):
        levels = [-20 + shift + 5 * normal.inv_cdf((n + 0.5) / 600) for n in range(600)]
        samples = [make_sample(n, n_frames=1) for n in range(600)]
        samples = [
            replace(s, info=s.info.model_copy(update={"rms_dbfs": level}))
            for s, level in zip(samples, levels, strict=True)
        ]
        sets.append(write_dataset(tmp_path / name, [samples]))
    found = drift(compare(*sets), "rms_dbfs")
    assert found.verdict == verdict, found


def test_shared_keys_and_audio_are_warnings(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", [[make_sample(n) for n in range(40)]])
    samples = [make_sample(n) for n in range(38, 50)]  # two keys, with their audio
    for place, original in ((4, 7), (6, 7)):
        info = samples[place].info.model_copy(update={"audio_hash": f"{original:016x}"})
        samples[place] = replace(samples[place], info=info)
    held_out = write_dataset(tmp_path / "eval", [samples])
    found = inspect_against(held_out, train)
    assert found.comparison is not None
    leaks = {leak.kind: (leak.n_samples, leak.examples) for leak in found.comparison.leaks}
    assert leaks == {
        "key": (2, ("clip-0038", "clip-0039")),
        "audio": (4, ("clip-0038", "clip-0039", "clip-0042", "clip-0044")),
    }
    told = {warning.code: warning for warning in found.warnings}
    assert {"leak_key", "leak_audio"} <= told.keys()
    assert (
        f"4 clips of {held_out.url} have the same audio as some of {train.url}, such"
        in told["leak_audio"].message
    )
    assert "melstream subset TRAIN --out NEW --not-in EVAL" in told["leak_audio"].remedy
    new = open_storage(tmp_path / "new")
    mended = subset(train, new, Selection(not_in=held_out.url), lambda done, note: None)
    assert mended.manifest.n_samples == 40 - 3  # clip 7 stands there twice, under other keys
    again = inspect_against(open_dataset(mended.url), held_out)
    assert not [warning for warning in again.warnings if warning.code.startswith("leak")]


def named(
    path: Path, keys: list[str], *, window_s: float | None, corpus: str = "folder"
) -> Dataset:
    """Write a set of samples whose audio nobody shares; windows start where their key says."""
    samples = []
    for key in keys:
        sample = make_sample(len(samples))
        place = float(key.rpartition("-")[2]) / 1_000 if window_s else np.nan
        told = {"audio_hash": f"{crc32(f'{path.name}/{key}'.encode()):016x}", "start_s": place}
        samples.append(replace(sample, key=key, info=sample.info.model_copy(update=told)))
    dataset = write_dataset(path, [samples])
    build = dataset.manifest.build.model_copy(update={"window_s": window_s, "corpus": corpus})
    write_manifest(dataset.storage, dataset.manifest.model_copy(update={"build": build}))
    return open_dataset(path)


def recordings_shared(one: Dataset, other: Dataset) -> int:
    found = {leak.kind: leak.n_samples for leak in compare(one, other).leaks}
    assert "key" not in found
    assert "audio" not in found
    return found.get("recording", 0)


def test_windows_are_of_their_recording_also_beside_whole_clips(tmp_path: Path) -> None:
    long = "r" * 85  # stands shortened in the keys of its windows
    keys = [window_key(name, 1_000 * second) for name in ("a", long) for second in (0, 10, 20)]
    windows = named(tmp_path / "windows", [*keys, "b-00000000"], window_s=10.0)
    whole = named(tmp_path / "whole", ["a", long, "c"], window_s=None)
    assert recordings_shared(windows, whole) == 6
    assert recordings_shared(whole, windows) == 2
    assert is_shared(whole, windows).tolist() == [True, True, False]
    others = named(tmp_path / "others", ["c-00000000", "d-00010000"], window_s=5.0)
    merge([windows, others], open_storage(tmp_path / "joined"), lambda *_: None)
    joined = open_dataset(tmp_path / "joined")
    assert joined.manifest.build.window_s is None
    assert recordings_shared(joined, whole) == 7
    again = named(tmp_path / "again", ["song-20190101", "song-20190102"], window_s=None)
    merge([again, others], open_storage(tmp_path / "merged"), lambda *_: None)
    merged = open_dataset(tmp_path / "merged")
    assert recordings_shared(merged, named(tmp_path / "song", ["song"], window_s=None)) == 0


@pytest.mark.parametrize("window_s", [None, 5.0])
def test_clips_of_one_video_are_a_leak_between_corpora(
    tmp_path: Path, window_s: float | None
) -> None:
    ids = [f"-AAAAAAAA_{number}" for number in range(3)]
    ending = "" if window_s is None else "-00000000"
    audioset = named(tmp_path / "a", ids, window_s=None, corpus="audioset")
    names = [f"{ytid}_000030{ending}" for ytid in ids[1:]]
    vggsound = named(tmp_path / "v", names, window_s=window_s, corpus="subset of vggsound")
    assert recordings_shared(vggsound, audioset) == 2
    assert recordings_shared(audioset, vggsound) == 2


def test_excerpts_of_one_freesound_recording_are_a_leak_between_corpora(tmp_path: Path) -> None:
    def of(corpus: str, *keys: str) -> Dataset:
        return named(tmp_path / corpus, [*keys], window_s=None, corpus=corpus)

    excerpts = of("esc50", "1-100032-A-0", "1-100032-B-0", "2-100210-A-36")
    slices = of("urbansound8k", "100032-3-0-0", "100648-1-0-0")
    whole = of("fsd50k", "100210", "64760")
    assert recordings_shared(excerpts, slices) == 2
    assert recordings_shared(excerpts, whole) == recordings_shared(whole, excerpts) == 1
    assert recordings_shared(slices, whole) == 0
    merge([excerpts, slices], open_storage(tmp_path / "merged"), lambda *_: None)
    assert recordings_shared(open_dataset(tmp_path / "merged"), whole) == 1


def test_other_features_are_told_and_bands_left_out(
    built: Callable[[str], Dataset], tmp_path: Path
) -> None:
    spec = PRESETS["conformer64"].model_copy(update={"fmin": 50.0})
    samples = [[make_sample(n) for n in range(5)]]
    other = write_dataset(tmp_path / "other", samples, features=spec, feature_hash=spec.hash)
    found = compare(built("eval"), other)
    assert found.band_effects is None
    assert "fmin 20.0 and 50.0" in drift(found, "features").detail
    assert not [one for one in found.drifts if one.name == "bands"]


def test_names_become_the_same_numbers_however_they_are_padded() -> None:
    names = np.array([f"{'ab' * (n % 20)}{n}" for n in range(5_000)], "S")
    hashes = _hashed(names)
    assert len(np.unique(hashes)) == 5_000
    np.testing.assert_array_equal(_hashed(names.astype("S89")), hashes)
