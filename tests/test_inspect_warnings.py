"""Each planted fault gives its warning, with numbers and a remedy; a clean set gives none."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_sample, write_dataset

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.storage import open_storage
from melstream.shards.writer import Sample
from melstream.tools.inspect import inspect_dataset
from melstream.tools.inspection import Finding
from melstream.tools.selection import Bound, Selection
from melstream.tools.subset import subset

N = 400
SPLITS = ("train", "eval")

Fault = Callable[[list[Sample]], list[Sample]]


def clean() -> list[Sample]:
    """400 samples of four classes, a fifth of them held out."""
    samples = [make_sample(n, n_frames=2, label_ids=(n % 4,)) for n in range(N)]
    return [replace(sample, split=int(n % 5 == 4)) for n, sample in enumerate(samples)]


def change(sample: Sample, **figures: Any) -> Sample:
    return replace(sample, info=sample.info.model_copy(update=figures))


def write(path: Path, samples: Sequence[Sample], n_classes: int = 4, **fields: Any) -> Dataset:
    shards = [samples[start : start + 50] for start in range(0, len(samples), 50)]
    return write_dataset(path, shards, n_classes, SPLITS, **fields)


def duplicated(samples: list[Sample]) -> list[Sample]:
    """3 % of the set have the audio of another one of their split."""
    for n in range(0, 60, 5):
        samples[n] = change(samples[n], audio_hash=samples[n + 1].info.audio_hash)
    return samples


def silent(samples: list[Sample]) -> list[Sample]:
    return [change(s, silence_share=0.99) if n % 20 == 0 else s for n, s in enumerate(samples)]


def narrow(samples: list[Sample]) -> list[Sample]:
    return [change(s, bandwidth_hz=3_900.0) if n // 4 % 2 else s for n, s in enumerate(samples)]


def leaking(samples: list[Sample]) -> list[Sample]:
    """Two held-out samples have the audio of one that is trained on."""
    for n in (4, 9):
        samples[n] = change(samples[n], audio_hash=samples[n + 1].info.audio_hash)
    return samples


def rare_class(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label_ids=(int(n == 0),)) for n, s in enumerate(samples)]


def unlabelled(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label_ids=()) if n % 50 == 0 else s for n, s in enumerate(samples)]


def clipped(samples: list[Sample]) -> list[Sample]:
    return [change(s, clipped_share=0.02) if n % 5 < 2 else s for n, s in enumerate(samples)]


def with_offset(samples: list[Sample]) -> list[Sample]:
    return [change(s, dc_offset=-0.05) if n % 4 == 0 else s for n, s in enumerate(samples)]


FAULTS: dict[str, tuple[Fault, str]] = {
    "duplicates": (duplicated, r"12 samples \(3 %\) have exactly the audio of another"),
    "silent": (silent, r"20 samples \(5 %\) are nearly silent"),
    "narrow_band": (narrow, r"200 samples \(50 %\) have no sound above 6,000 Hz"),
    "leak": (
        leaking,
        r"2 clips of split eval have the same audio as some of split train, such as clip-0004",
    ),
    "imbalance": (rare_class, r"399 times the clips of the smallest \(399 and 1\)"),
    "unlabelled": (unlabelled, r"8 samples \(2 %\) have no label"),
    "clipped": (clipped, r"160 samples \(40 %\) are overdriven"),
    "dc_offset": (with_offset, r"100 samples \(25 %\) are off zero"),
}


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def test_a_clean_set_gives_no_warning(tmp_path: Path) -> None:
    assert inspect_dataset(write(tmp_path / "set", clean())).warnings == ()


@pytest.mark.parametrize("code", FAULTS)
def test_one_fault_gives_one_warning(tmp_path: Path, code: str) -> None:
    plant, message = FAULTS[code]
    n_classes = 2 if code == "imbalance" else 4
    warnings = inspect_dataset(write(tmp_path / "set", plant(clean()), n_classes)).warnings
    assert codes(warnings) == [code]
    assert_says(warnings[0], message)


def assert_says(finding: Finding, message: str) -> None:
    assert re.search(message, finding.message), finding.message
    assert len(finding.remedy) > 20


def test_a_class_without_clips_is_named(tmp_path: Path) -> None:
    warnings = inspect_dataset(write(tmp_path / "set", clean(), 5)).warnings
    assert codes(warnings) == ["empty_classes"]
    assert_says(warnings[0], r"1 of 5 classes have no clip: class 4")


def halved(samples: list[Sample]) -> list[list[Sample]]:
    shards = [samples[start : start + 50] for start in range(0, N, 50)]
    return [*shards[:3], shards[3][:25], *shards[4:]]


def test_a_shard_of_half_size_is_named(tmp_path: Path) -> None:
    warnings = inspect_dataset(write_dataset(tmp_path / "set", halved(clean()), 4, SPLITS)).warnings
    assert codes(warnings) == ["short_shards"]
    assert_says(warnings[0], r"1 of 8 shards .* median of 50: train-000003.tar \(25\)")


def test_many_rejects_are_told(tmp_path: Path) -> None:
    rejects = {"missing": 300, "undecodable": 30, "silent": 5}
    found = inspect_dataset(write(tmp_path / "set", clean(), n_rejects=rejects))
    assert codes(found.warnings) == ["rejects"]
    assert_says(found.warnings[0], r"35 files \(8 %\) could not .* undecodable \(30\)")
    assert [r.reason for r in found.rejects] == ["missing", "undecodable", "silent"]


def with_coverage(dataset: Dataset, n_rejected: int) -> Dataset:
    """A data set whose files were listed, and some of them rejected."""
    counts = {"n_listed": 20, "n_present": 20, "n_written": 20 - n_rejected}
    total = counts | {"n_missing": 0, "n_rejected": n_rejected}
    dataset.storage.write("coverage.json", json.dumps({"total": total}).encode())
    return dataset


def test_rejected_files_are_not_mixed_with_windows(tmp_path: Path) -> None:
    rejects = {"silent": 59, "tail": 3, "undecodable": 2}
    found = inspect_dataset(with_coverage(write(tmp_path / "set", clean(), n_rejects=rejects), 2))
    assert codes(found.warnings) == ["rejects"]
    assert_says(
        found.warnings[0],
        r"^2 files \(10 %\) could not be used, for these reasons, windows of other files counted "
        r"too: silent \(59\), undecodable \(2\)$",
    )


def test_files_that_were_gone_are_not_called_rejected(tmp_path: Path) -> None:
    """Older versions counted files that vanished during a build as rejected."""
    dataset = write(tmp_path / "set", clean(), n_rejects={"missing": 5})
    assert inspect_dataset(with_coverage(dataset, 5)).warnings == ()


def test_a_band_that_hardly_changes_is_told(tmp_path: Path) -> None:
    std = np.full(64, 3.0)
    std[60:] = 0.0
    found = inspect_dataset(write(tmp_path / "set", clean(), band_std=tuple(std)))
    assert codes(found.warnings) == ["dead_bands"]
    assert_says(found.warnings[0], r"4 of 64 mel bands hardly change: 60 \(6,7")


def test_all_faults_at_once_give_all_warnings(tmp_path: Path) -> None:
    samples = clean()
    for plant in (narrow, silent, duplicated, leaking):
        samples = plant(samples)
    dataset = write_dataset(tmp_path / "set", halved(samples), 5, SPLITS)
    assert set(codes(inspect_dataset(dataset).warnings)) == {
        "leak",
        "duplicates",
        "silent",
        "narrow_band",
        "empty_classes",
        "short_shards",
    }


def test_windows_of_one_recording_in_two_splits_are_a_leak(tmp_path: Path) -> None:
    samples = [
        replace(sample, key=f"clip-{n // 4:04d}-{n % 4:08d}") for n, sample in enumerate(clean())
    ]
    dataset = write(tmp_path / "set", samples)
    assert inspect_dataset(dataset).leaks == ()
    build = dataset.manifest.build.model_copy(update={"window_s": 10.0})
    (leak,) = inspect_dataset(write(tmp_path / "windows", samples, build=build)).leaks
    assert (leak.kind, leak.one, leak.other, leak.n_samples) == ("recording", "eval", "train", 80)


@pytest.mark.parametrize(
    ("fault", "selection"),
    [
        (duplicated, Selection(drops_duplicates=True)),
        (silent, Selection(bounds=(Bound.parse("silence_share<0.95"),))),
        (narrow, Selection(bounds=(Bound.parse("bandwidth_hz>6000"),))),
    ],
)
def test_a_remedy_works(tmp_path: Path, fault: Fault, selection: Selection) -> None:
    dataset = write(tmp_path / "set", fault(clean()))
    (warning,) = inspect_dataset(dataset).warnings
    assert str(selection).replace("--where ", "") in warning.remedy.replace('"', "")
    mended = subset(dataset, open_storage(tmp_path / "new"), selection, lambda done, note: None)
    assert inspect_dataset(open_dataset(mended.url)).warnings == ()
