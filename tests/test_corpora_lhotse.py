"""lhotse: manifests that lhotse wrote become clips, labels and events."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lhotse as real_lhotse
import numpy as np
import pytest
import soundfile
from corpora_files import LHOTSE, RECORDING, by_key, cut_line, place, write_texts
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from melstream.tools.corpora import Clip, lhotse

INFO = soundfile.info(RECORDING)
DURATION_S = INFO.frames / INFO.samplerate


def segment(number: int, recording_id: str, start: float, end: float, **fields: Any) -> Any:
    return SupervisionSegment(
        id=f"s{number}", recording_id=recording_id, start=start, duration=end - start, **fields
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return place(tmp_path / "audio", "a.wav", "b.wav")


@pytest.fixture
def cuts(root: Path) -> CutSet:
    """Two recordings: one with a label, one with events."""
    one, other = (Recording.from_file(root / name).to_cut() for name in ("a.wav", "b.wav"))
    one.supervisions = [segment(0, "a", 0, DURATION_S, text="tom", custom={"tag": "drum;low"})]
    other.supervisions = [
        segment(1, "b", 0.1, 0.3, text="hit", custom={"tag": "drum"}),
        segment(2, "b", 0.25, DURATION_S, text="decay"),
    ]
    return CutSet.from_cuts([one, other])


def save(manifest: Any, path: Path) -> Path:
    manifest.to_file(path)
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_whole_recordings_become_clips_with_labels_and_events(
    name: str, cuts: CutSet, root: Path, tmp_path: Path
) -> None:
    listing = lhotse.scan(save(cuts, tmp_path / name))
    assert listing.label_names == ("decay", "hit", "tom")
    path = str(root / "a.wav")
    one, other = by_key(listing)["a"], by_key(listing)["b"]
    assert one == Clip("a", path, (2,), path, 0.0, pytest.approx(DURATION_S))
    assert other.labels == (0, 1)
    assert other.events == ((0.1, 0.3, 1), (0.25, pytest.approx(DURATION_S), 0))
    assert (one.offset_s, other.offset_s) == (None, None)


def test_windows_of_lhotse_are_cut_out_of_the_file(cuts: CutSet, tmp_path: Path) -> None:
    windows = cuts.cut_into_windows(duration=0.2).to_eager()
    listing = lhotse.scan(save(windows, tmp_path / "cuts.jsonl.gz"))
    clips = by_key(listing)
    assert len(clips) == len(list(windows)) == 10
    for cut in windows:
        clip = clips[cut.id]
        assert (clip.offset_s, clip.duration_s) == (cut.start, cut.duration)
        assert clip.start_s == cut.start
    # "hit" is heard from 0.1 to 0.3: in the second half of one window, the first of the next.
    hit = listing.label_names.index("hit")
    times = {key: e[:2] for key, clip in clips.items() for e in clip.events if e[2] == hit}
    assert times == {"b-0": (0.1, 0.2), "b-1": (0.0, 0.1)}
    # "tom" and, after its start, "decay" span their windows.
    assert [clips[f"a-{n}"].events for n in range(5)] == [()] * 5
    assert clips["b-2"].labels == (listing.label_names.index("decay"),)
    assert clips["b-2"].events == ()


def test_what_is_cut_is_what_lhotse_loads(cuts: CutSet, tmp_path: Path) -> None:
    windows = cuts.cut_into_windows(duration=0.2).to_eager()
    listing = lhotse.scan(save(windows, tmp_path / "cuts.jsonl.gz"))
    clip, cut = by_key(listing)["b-1"], windows["b-1"]
    assert clip.path
    assert clip.offset_s is not None
    assert clip.duration_s is not None
    start, n = round(clip.offset_s * INFO.samplerate), round(clip.duration_s * INFO.samplerate)
    samples, _ = soundfile.read(clip.path, start=start, frames=n, dtype="float32")
    np.testing.assert_array_equal(samples, cut.load_audio()[0])


def test_recordings_and_supervisions_are_joined(cuts: CutSet, root: Path, tmp_path: Path) -> None:
    recordings = RecordingSet.from_recordings(cut.recording for cut in cuts)
    supervisions = SupervisionSet.from_segments(s for cut in cuts for s in cut.supervisions)
    folder = tmp_path / "manifests"
    folder.mkdir()
    save(recordings, folder / "drums_recordings_train.jsonl.gz")
    save(supervisions, folder / "drums_supervisions_train.jsonl.gz")
    expected = lhotse.scan(save(cuts, tmp_path / "cuts.jsonl"))
    assert lhotse.scan(folder) == expected
    named = {"supervisions": Path("drums_supervisions_train.jsonl.gz")}
    assert lhotse.scan(folder / "drums_recordings_train.jsonl.gz", **named) == expected
    named |= {"recordings": Path("drums_recordings_train.jsonl.gz")}
    assert lhotse.scan(folder, **named) == expected
    alone = lhotse.scan(folder / "drums_recordings_train.jsonl.gz")
    assert alone.label_names == ()
    assert [clip.labels for clip in alone.clips] == [(), ()]

    save(recordings.filter(lambda recording: recording.id == "a"), folder / "one.jsonl")
    message = r"has 1 other recordings, such as 'b'; `lhotse fix`"
    with pytest.raises(ValueError, match=message):
        lhotse.scan(folder / "one.jsonl", **{"supervisions": named["supervisions"]})


def test_labels_come_from_any_field(cuts: CutSet, tmp_path: Path) -> None:
    path = save(cuts, tmp_path / "cuts.jsonl")
    for name in ("tag", "custom.tag"):
        listing = lhotse.scan(path, label_field=name, label_separator=";")
        assert listing.label_names == ("drum", "low")
        assert by_key(listing)["a"].labels == (0, 1)
    message = r"`--label-field` .*, found 'tags' in none of 3; they have custom\.tag, text\. `--unl"
    with pytest.raises(ValueError, match=message):
        lhotse.scan(path, label_field="tags")
    assert lhotse.scan(path, unlabelled=True).label_names == ()


def test_a_list_of_labels_gives_the_order(cuts: CutSet, tmp_path: Path) -> None:
    path = save(cuts, tmp_path / "cuts.jsonl")
    labels = tmp_path / "labels.txt"
    labels.write_text("tom\nhit\ndecay\n")
    assert lhotse.scan(path, labels=labels).label_names == ("tom", "hit", "decay")
    labels.write_text("tom\nhits\ndecay\n")
    with pytest.raises(ValueError, match=r"line 2: .* found 'hit' \(close: 'hits'\)"):
        lhotse.scan(path, labels=labels)
    with pytest.raises(ValueError, match="`--labels` and `--unlabelled` exclude each other"):
        lhotse.scan(path, labels=labels, unlabelled=True)


def test_transcripts_are_no_classes(
    cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lhotse, "MAX_CLASSES", 2)
    with pytest.raises(ValueError, match=r"must be classes, found 3 .* 'text', such as 'decay'"):
        lhotse.scan(save(cuts, tmp_path / "cuts.jsonl"))


def test_a_custom_field_gives_the_split(cuts: CutSet, tmp_path: Path) -> None:
    for cut in cuts:
        cut.custom = {"fold": f"fold-{cut.id}"}
    listing = lhotse.scan(save(cuts, tmp_path / "cuts.jsonl"), split_field="fold")
    assert listing.splits == ("fold-a", "fold-b")
    assert [clip.split for clip in listing.clips] == [0, 1]


def test_a_missing_file_is_listed_and_none_at_all_is_an_error(
    cuts: CutSet, root: Path, tmp_path: Path
) -> None:
    path = save(cuts, tmp_path / "cuts.jsonl")
    (root / "a.wav").unlink()
    assert [(c.path is None, c.source) for c in lhotse.scan(path).clips] == [
        (True, "a"),
        (False, str(root / "b.wav")),
    ]
    (root / "b.wav").unlink()
    with pytest.raises(
        ValueError, match=r"none of the 2 files .*, looked for .*/a\.wav .*`--root`"
    ):
        lhotse.scan(path)


def test_all_channels_of_a_recording_are_taken(tmp_path: Path) -> None:
    noise = np.random.default_rng(8).uniform(-0.5, 0.5, (1_600, 2))
    soundfile.write(tmp_path / "stereo.wav", noise, 16_000)
    cut = Recording.from_file(tmp_path / "stereo.wav").to_cut()
    listing = lhotse.scan(save(CutSet.from_cuts([cut]), tmp_path / "cuts.jsonl"))
    assert [clip.key for clip in listing.clips] == ["stereo"]
    left = MonoCut("left", 0.0, cut.duration, channel=0, recording=cut.recording)
    with pytest.raises(ValueError, match=r"'left' must take all channels .* \[0, 1\]; found \[0\]"):
        lhotse.scan(save(CutSet.from_cuts([left]), tmp_path / "left.jsonl"))


def test_cuts_that_are_no_part_of_a_plain_file_are_errors(
    cuts: CutSet, root: Path, tmp_path: Path
) -> None:
    cut, other = list(cuts)
    url, memory = (Recording.from_file(root / "a.wav") for _ in range(2))
    url.sources[0].type, url.sources[0].source = "url", "https://example.org/a.wav"
    memory.sources[0].type, memory.sources[0].source = "memory", "UklGRg=="
    cases = [
        (cut.perturb_speed(0.9), r"'a_sp0\.9' must be as in its file, found Speed"),
        (cut.mix(other), "a cut of one recording or a recording is required, found a MixedCut"),
        (memory.to_cut(), "'a' must be one file, found sources of type memory"),
        (url.to_cut(), "'a' must be one file, found sources of type url"),
        (MonoCut("bare", 0.0, 1.0, channel=0), "'bare' must have a recording, found features"),
    ]
    for number, (changed, message) in enumerate(cases):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(cut_line("first", str(root / "b.wav"), label="x"))
        with path.open("a") as file:
            file.write(json.dumps(changed.to_dict()) + "\n")
        with pytest.raises(ValueError, match=f"line 2: .*{message}"):
            lhotse.scan(path)
    resampled = CutSet.from_cuts([cut.resample(16_000)])  # the build resamples in any case
    assert len(lhotse.scan(save(resampled, tmp_path / "resampled.jsonl")).clips) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{}\n", r"line 1: not an item of a lhotse manifest \(.*"),
        (LHOTSE["cuts.jsonl"] + "not json\n", "line 3: not an item of a lhotse manifest"),
        (LHOTSE["cuts.jsonl"] * 2, r"line 3: every id must stand once, 'b\.1' stands on line 1"),
        ("\n", r"cuts\.jsonl must hold a lhotse manifest, found no line in it"),
    ],
)
def test_a_broken_manifest_is_an_error_with_the_line(
    lines: str, message: str, tmp_path: Path
) -> None:
    root = write_texts(place(tmp_path, "a/1.flac", "b/1.wav"), {"cuts.jsonl": lines})
    with pytest.raises(ValueError, match=message):
        lhotse.scan(root / "cuts.jsonl", root=root)


def test_a_manifest_cut_short_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(LHOTSE["cuts.jsonl"].encode())
    (tmp_path / "cuts.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(ValueError, match=r"cuts\.jsonl\.gz is damaged after line \d"):
        lhotse.scan(tmp_path, root=tmp_path)


def test_which_manifest_must_be_clear(cuts: CutSet, tmp_path: Path) -> None:
    one = save(cuts, tmp_path / "cuts_train.jsonl.gz")
    save(cuts, tmp_path / "cuts_test.jsonl.gz")
    with pytest.raises(ValueError, match=r"holds 2 manifests of cuts: cuts_test.* name one"):
        lhotse.scan(tmp_path)
    with pytest.raises(ValueError, match="`--recordings` goes with a folder as the source"):
        lhotse.scan(one, recordings=one)
    with pytest.raises(ValueError, match=r"`--supervisions` .*, found no nowhere\.jsonl, nor one"):
        lhotse.scan(one, supervisions=Path("nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"line 1: a supervision is required|goes with recordings"):
        lhotse.scan(one, supervisions=one)
    yaml = save(cuts, tmp_path / "all.yaml")
    with pytest.raises(
        ValueError, match=r"must be \.jsonl .*`lhotse copy all\.yaml all\.jsonl\.gz`"
    ):
        lhotse.scan(yaml)


def test_the_help_does_not_wait_for_lhotse() -> None:
    code = (
        "import sys, melstream.tools.corpora as c; c.find_corpora(); print('lhotse' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-Ic", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
    assert real_lhotse.CutSet is CutSet  # this one is lhotse's, not the corpus of that name
