"""`--retry-failed`: what a finished data set lacks is added, and no kill on the way loses it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import content, plan_of, silent

from melstream.shards.dataset import Dataset, open_dataset
from melstream.shards.errors import DatasetError
from melstream.shards.manifest import Manifest
from melstream.shards.spec import FeatureSpec
from melstream.shards.storage import open_storage
from melstream.shards.verify import find_problems
from melstream.tools.build import build
from melstream.tools.build_plan import Plan, make_plan
from melstream.tools.build_retry import retry_failed
from melstream.tools.build_workers import run_here

CODED = FeatureSpec(storage_dtype="uint8")


def run(plan: Plan, out: Path) -> Dataset:
    build(plan, open_storage(out), run_here, silent)
    return open_dataset(out)


def sources(dataset: Dataset) -> list[str]:
    return sorted(dataset.read_info(row).source for row in range(len(dataset)))


def with_bad_files(corpus: Path) -> dict[Path, bytes]:
    """Break three files; return what they held."""
    files = sorted(corpus.rglob("*.flac"))[::4]
    held = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(held[path][:2_000])
    return held


def retry(plan: Plan, out: Path) -> Manifest:
    report = retry_failed(plan, open_storage(out), run_here, silent)
    assert report.manifest is not None
    return report.manifest


def test_what_was_rejected_and_is_mended_is_added(corpus: Path, tmp_path: Path) -> None:
    held = with_bad_files(corpus)
    out = tmp_path / "out" / "train"
    before = run(plan_of(corpus), out)
    tars = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert before.manifest.n_rejects == {"undecodable": 3}
    (first, *others), (*_, last) = list(held), list(held)
    for path in (first, last):
        path.write_bytes(held[path])
    manifest = retry(plan_of(corpus), out)
    assert manifest.n_rejects == {"undecodable": 1}
    assert manifest.n_samples == 11
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")}.items() > tars.items()
    dataset = open_dataset(out)
    assert not any(find_problems(dataset, full=True))
    assert sources(dataset)[-1].endswith(".flac")
    for path in others:
        path.write_bytes(held[path])
    assert retry(plan_of(corpus), out).n_rejects == {}
    whole = run(plan_of(corpus), tmp_path / "whole" / "train")
    added = open_dataset(out)
    assert added.manifest.ids_hash == whole.manifest.ids_hash
    np.testing.assert_allclose(added.manifest.band_mean, whole.manifest.band_mean, rtol=1e-9)
    np.testing.assert_allclose(added.manifest.band_std, whole.manifest.band_std, rtol=1e-6)
    assert build(plan_of(corpus), open_storage(out), run_here, silent).new == ()


@pytest.mark.parametrize(
    "at",
    ["write_tables", "write_manifest", "measure_coverage", "_place_shards", "remove_leftovers"],
)
def test_a_retry_that_was_interrupted_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    held = with_bad_files(corpus)
    for name in ("one", "two"):
        run(plan_of(corpus), tmp_path / name / "train")
    for path, payload in held.items():
        path.write_bytes(payload)
    plan = plan_of(corpus)
    retry(plan, tmp_path / "one" / "train")

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"melstream.tools.build_assemble.{at}", killed)
    with pytest.raises(KeyboardInterrupt):
        retry(plan, tmp_path / "two" / "train")
    monkeypatch.undo()
    retry(plan, tmp_path / "two" / "train")
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_retry_with_other_settings_is_refused(corpus: Path, tmp_path: Path) -> None:
    with_bad_files(corpus)
    run(plan_of(corpus), tmp_path / "out")
    with pytest.raises(
        DatasetError, match=r"was built with, found --min-seconds \S+ \(was 0.025\)"
    ):
        retry(plan_of(corpus, min_duration_s=0.5), tmp_path / "out")
    with pytest.raises(DatasetError, match="found --features with storage_dtype"):
        retry(plan_of(corpus, features=CODED), tmp_path / "out")
    with pytest.raises(DatasetError, match=r"found --keep-audio True \(was False\)"):
        retry(plan_of(corpus, keep_audio=True), tmp_path / "out")
    with pytest.raises(DatasetError, match="build one with"):
        retry(plan_of(corpus), tmp_path / "nothing")


def test_nothing_to_retry_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    run(plan_of(corpus), tmp_path / "out")
    before = content(tmp_path / "out")
    retry(plan_of(corpus), tmp_path / "out")
    assert content(tmp_path / "out") == before


def with_missing(plan: Plan) -> Plan:
    """The same corpus, whose metadata lists a clip more."""
    clip = dataclasses.replace(plan.listing.clips[0], key="zzz", source="zzz", path=None)
    listing = dataclasses.replace(plan.listing, clips=(*plan.listing.clips, clip))
    return make_plan(listing, plan.settings)


def test_what_is_still_missing_is_counted_once(corpus: Path, tmp_path: Path) -> None:
    held = with_bad_files(corpus)
    out = tmp_path / "out"
    run(with_missing(plan_of(corpus)), out)
    for path, payload in held.items():
        path.write_bytes(payload)
    for _ in range(2):
        assert retry(with_missing(plan_of(corpus)), out).n_rejects == {"missing": 1}
        lines = (out / "rejects.jsonl").read_text().splitlines()
        assert [json.loads(line)["key"] for line in lines] == ["zzz"]


def test_clips_of_the_set_whose_files_are_gone_stay_in_it(corpus: Path, tmp_path: Path) -> None:
    held = with_bad_files(corpus)
    out = tmp_path / "out"
    plan = plan_of(corpus)
    run(plan, out)
    for path in sorted(corpus.rglob("*.flac")):
        if path in held:
            path.write_bytes(held[path])
        else:
            path.unlink()
    clips = tuple(
        clip if (corpus / str(clip.path)) in held else dataclasses.replace(clip, path=None)
        for clip in plan.listing.clips
    )
    plan = make_plan(dataclasses.replace(plan.listing, clips=clips), plan.settings)
    manifest = retry(plan, out)
    assert (manifest.n_samples, manifest.n_rejects) == (12, {})
    coverage = json.loads((out / "coverage.json").read_text())
    assert coverage["total"]["n_written"] == 12
    assert coverage["written_hash"] == manifest.ids_hash


def test_files_that_are_new_are_added_too(corpus: Path, tmp_path: Path) -> None:
    run(plan_of(corpus), tmp_path / "out")
    first = next(corpus.rglob("0.flac"))
    (first.parent / "new.flac").write_bytes(first.read_bytes())
    assert retry(plan_of(corpus), tmp_path / "out").n_samples == 13


def test_a_retry_given_up_leaves_no_shard_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = with_bad_files(corpus)
    out = tmp_path / "out" / "train"
    run(plan_of(corpus), out)
    before = content(out)
    for path, payload in held.items():
        path.write_bytes(payload)

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("melstream.tools.build_assemble.concatenate", killed)
    with pytest.raises(KeyboardInterrupt):
        retry(plan_of(corpus), out)
    monkeypatch.undo()
    assert len(open_dataset(out)) == 9  # as it was, all the while
    (problem,) = [p for p in find_problems(open_dataset(out), full=True) if p]
    assert "is no shard of this data set" in str(problem)
    for path in held:
        path.write_bytes(path.read_bytes()[:2_000])
    assert build(plan_of(corpus), open_storage(out), run_here, silent).new == ()
    assert content(out) == before


def test_a_recording_cut_off_on_its_way_keeps_its_windows(tmp_path: Path, corpus: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 16_000)
    path = corpus / "noise" / "long.flac"
    path.parent.mkdir()
    soundfile.write(path, noise, 16_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 5])
    settings = {"window_s": 1.0}
    dataset = run(plan_of(corpus, **settings), tmp_path / "out")
    n_windows = sum(source == "noise/long.flac" for source in sources(dataset))
    assert n_windows in (2, 3)
    (line,) = [
        line
        for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
        if "truncated" in line
    ]
    assert json.loads(line)["key"].endswith(f"-{1_000 * n_windows:08d}")
    coverage = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert coverage["total"]["n_rejected"] == 0
    path.write_bytes(whole)
    assert retry(plan_of(corpus, **settings), tmp_path / "out").n_samples == len(dataset)
