"""`--retry-failed`: what a finished data set lacks is added, and no kill on the way loses it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import content, plan_of, silent
from test_cli import run as type_in

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
from melstream.tools.coverage import Counts, read_total

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


def killed(*arguments: object, **options: object) -> None:
    """Stand for a function in which the process dies."""
    raise KeyboardInterrupt


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

    monkeypatch.setattr("melstream.tools.build_assemble.concatenate", killed)
    with pytest.raises(KeyboardInterrupt):
        retry(plan_of(corpus), out)
    monkeypatch.undo()
    assert len(open_dataset(out)) == 9  # as it was, all the while
    (problem,) = [p for p in find_problems(open_dataset(out), full=True) if p]
    assert "is no shard of this data set" in str(problem)
    assert "run it again to complete it" in str(problem)
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
    tars = {tar.name: tar.read_bytes() for tar in (tmp_path / "out").glob("*.tar")}
    for payload in (whole[: len(whole) // 5], whole):  # worse than before, then mended
        path.write_bytes(payload)
        manifest = retry(plan_of(corpus, **settings), tmp_path / "out")
        assert read_total(dataset.storage) == Counts(13, 13, 13, 0, 0)
    fresh = run(plan_of(corpus, **settings), tmp_path / "fresh" / "out").manifest
    assert (manifest.ids_hash, manifest.n_rejects) == (fresh.ids_hash, fresh.n_rejects)
    assert content(tmp_path / "out").items() > tars.items()
    assert not any(find_problems(open_dataset(tmp_path / "out"), full=True))
    before = content(tmp_path / "out")
    retry(plan_of(corpus, **settings), tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_a_window_that_no_better_file_mends_is_not_tried_again(
    tmp_path: Path, corpus: Path
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * 16_000 + 800)
    noise[16_000:32_000] = 0
    soundfile.write(next(corpus.iterdir()) / "long.wav", noise, 16_000)
    dataset = run(plan_of(corpus, window_s=1.0), tmp_path / "out")
    assert {"silent", "tail"} <= set(dataset.manifest.n_rejects)
    before = content(tmp_path / "out")
    retry(plan_of(corpus, window_s=1.0), tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_a_clip_whose_name_goes_on_as_another_is_no_window_of_it(
    tmp_path: Path, corpus: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.flac").write_bytes(next(corpus.rglob("0.flac")).read_bytes())
    (flat / "a-1.flac").write_bytes(b"no audio")
    run(plan_of(flat, window_s=1.0), tmp_path / "out")
    plan = plan_of(flat, window_s=1.0)
    (record,) = retry_failed(plan, open_storage(tmp_path / "out"), run_here, silent).new
    assert record.n_clips == 1


def test_other_options_of_the_corpus_are_refused(corpus: Path, tmp_path: Path) -> None:
    with_bad_files(corpus)
    run(plan_of(corpus, corpus_options={"whole-videos": True, "id-column": "a"}), tmp_path / "out")
    message = r"found --id-column b \(was a\), --whole-videos not given \(was True\); repeat"
    with pytest.raises(DatasetError, match=message):
        retry(plan_of(corpus, corpus_options={"id-column": "b"}), tmp_path / "out")


def test_the_command_keeps_the_options_of_the_corpus_but_for_files_and_defaults(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "clips.csv"
    rows = [f"{path.relative_to(corpus)},a" for path in sorted(corpus.rglob("*.flac"))]
    table.write_text("\n".join(["path,tag", *rows]))
    built = ["build", "csv", table, "--root", corpus, "--path-column", "path", "--out", "out"]

    def melstream(*options: str) -> tuple[int, str]:
        arguments = [*built, "--label-column", "tag", "--jobs", "1", *options]
        code, _, error = type_in(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        return code, error

    monkeypatch.chdir(tmp_path)
    assert melstream()[0] == 0
    kept = open_dataset(tmp_path / "out").manifest.build.corpus_options
    assert kept == {"label-column": "tag"}
    code, error = melstream("--retry-failed", "--id-column", "path")
    assert code == 2
    assert "found --id-column path (was not given); repeat the options" in error
    assert melstream("--retry-failed")[0] == 0


def test_options_that_an_older_version_did_not_keep_are_not_compared(
    corpus: Path, tmp_path: Path
) -> None:
    held = with_bad_files(corpus)
    run(plan_of(corpus), tmp_path / "out")
    assert b"corpus_options" not in (tmp_path / "out" / "dataset.json").read_bytes()
    assert not any(find_problems(open_dataset(tmp_path / "out"), full=True))
    for path, payload in held.items():
        path.write_bytes(payload)
    manifest = retry(plan_of(corpus, corpus_options={"id-column": "a"}), tmp_path / "out")
    assert manifest.build.corpus_options == {"id-column": "a"}
    assert open_dataset(tmp_path / "out").manifest == manifest


@pytest.mark.parametrize("change", [{"labels": ()}, {"split": 0}])
def test_clips_with_other_labels_or_splits_are_refused(
    corpus: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    plan = plan_of(corpus)
    listing = dataclasses.replace(plan.listing, splits=("test",))
    run(make_plan(listing, plan.settings), tmp_path / "out")
    first, *others = listing.clips
    clips = (dataclasses.replace(first, **change), *others)
    changed = make_plan(dataclasses.replace(listing, clips=clips), plan.settings)
    with pytest.raises(DatasetError, match=rf"of 1 clip .* others now, such as {first.key}; build"):
        retry(changed, tmp_path / "out")


def copied(path: Path, suffix: str) -> Path:
    """The same recording in a file that differs by its suffix only."""
    copy = path.with_suffix(suffix)
    soundfile.write(copy, *soundfile.read(path))
    return copy


@pytest.mark.parametrize("window_s", [None, 1.0])
def test_a_file_beside_which_another_suffix_arrives_is_not_written_twice(
    corpus: Path, tmp_path: Path, window_s: float | None
) -> None:
    files = sorted(corpus.rglob("*.flac"))
    files[1].write_bytes(files[1].read_bytes()[:2_000])
    whole = run(plan_of(corpus, window_s=window_s), tmp_path / "out")
    before = set(sources(whole))
    soundfile.write(files[0].with_suffix(".wav"), np.full(8_000, 0.1), 16_000)
    soundfile.write(files[1].with_suffix(".wav"), np.full(8_000, 0.1), 16_000)
    manifest = retry(plan_of(corpus, window_s=window_s), tmp_path / "out")
    assert manifest.n_samples == len(whole) + 2
    assert manifest.n_rejects == whole.manifest.n_rejects == {"undecodable": 1}
    added = open_dataset(tmp_path / "out")
    new = sorted(set(sources(added)) - before)
    assert new == sorted(str(f.relative_to(corpus).with_suffix(".wav")) for f in files[:2])
    assert read_total(added.storage) == Counts(14, 14, 13, 0, 1)


def test_a_file_whose_sibling_is_gone_is_not_written_twice(corpus: Path, tmp_path: Path) -> None:
    sibling = copied(sorted(corpus.rglob("*.flac"))[0], ".wav")
    whole = run(plan_of(corpus), tmp_path / "out")
    sibling.unlink()
    before = content(tmp_path / "out")
    retry(plan_of(corpus), tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert len(whole) == 13


def test_clips_that_the_corpus_no_longer_has_are_accounted_for(
    corpus: Path, tmp_path: Path
) -> None:
    held = list(with_bad_files(corpus))
    run(plan_of(corpus), tmp_path / "out")
    good = [path for path in sorted(corpus.rglob("*.flac")) if path not in held]
    for path in [*good[1:], held[0]]:
        path.unlink()
    copied(good[0], ".wav").rename(good[0].with_name("new.wav"))
    for path in {path.parent for path in [*good, *held]}:
        (path / "short.wav").write_bytes(b"")  # the class stays
    manifest = retry(plan_of(corpus), tmp_path / "out")
    coverage = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert coverage["total"]["n_written"] == manifest.n_samples == 10
    assert coverage["total"]["n_rejected"] == sum(manifest.n_rejects.values())
    assert manifest.n_rejects["undecodable"] == 3
    assert coverage["written_hash"] == manifest.ids_hash
    assert sum(row["n_written"] for row in coverage["classes"]) == 10


def test_a_bad_file_that_is_gone_is_counted_as_missing_only(corpus: Path, tmp_path: Path) -> None:
    held = list(with_bad_files(corpus))
    plan = plan_of(corpus)
    run(plan, tmp_path / "out")
    held[0].unlink()
    source = str(held[0].relative_to(corpus))
    clips = [
        dataclasses.replace(clip, path=None) if clip.source == source else clip
        for clip in plan.listing.clips
    ]
    listing = dataclasses.replace(plan.listing, clips=tuple(clips))
    manifest = retry(make_plan(listing, plan.settings), tmp_path / "out")
    assert manifest.n_rejects == {"missing": 1, "undecodable": 2}
    assert read_total(open_storage(tmp_path / "out")) == Counts(12, 11, 9, 1, 2)


@pytest.mark.parametrize("at", ["write_manifest", "remove_leftovers", "write_card"])
def test_what_describes_the_set_changes_after_its_manifest(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    held = with_bad_files(corpus)
    out = tmp_path / "out"
    run(plan_of(corpus), out)
    before = content(out)
    for path, payload in held.items():
        path.write_bytes(payload)

    monkeypatch.setattr(f"melstream.tools.build_assemble.{at}", killed)
    with pytest.raises(KeyboardInterrupt):
        retry(plan_of(corpus), out)
    monkeypatch.undo()
    names = ("rejects.jsonl", "coverage.json", "missing.txt", "README.md")
    assert all(content(out)[name] == before[name] for name in names)
    assert (content(out)["dataset.json"] == before["dataset.json"]) == (at == "write_manifest")
    assert retry(plan_of(corpus), out).n_samples == 12
    assert read_total(open_storage(out)) == Counts(12, 12, 12, 0, 0)
    assert (out / "rejects.jsonl").read_bytes() == b""
    assert b"Every clip of the corpus is in the set" in (out / "README.md").read_bytes()
    assert not (out / ".build").exists()
