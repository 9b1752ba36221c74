"""VGGSound: names of files and times in them, videos that give two clips, whole videos."""

from pathlib import Path

import pytest
from corpora_files import VGGSOUND, by_key, place, write_texts

from melstream.tools.corpora import Clip, vggsound

TEXT = VGGSOUND["vggsound.csv"]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return write_texts(tmp_path, VGGSOUND) / "vggsound.csv"


def test_rows_become_clips_with_their_class_and_split(tmp_path: Path) -> None:
    root = write_texts(place(tmp_path, "video/--56QUhyDQM_000185.mp4"), VGGSOUND)
    listing = vggsound.scan(root)  # vggsound.csv is in it
    assert listing.label_names == (
        "people marching",
        "playing violin, fiddle",
        "waterfall burbling",
    )
    assert listing.splits == ("train", "test")
    clips = by_key(listing)
    assert clips["--56QUhyDQM_000185"] == Clip(
        "--56QUhyDQM_000185",
        "video/--56QUhyDQM_000185.mp4",
        (1,),
        "video/--56QUhyDQM_000185.mp4",
        start_s=185.0,
        duration_s=10.0,
        split=0,
    )
    assert clips["---g-f_I2yQ_000001"].split == 1
    assert clips["FwVYUHKoLtQ_000120"].source == "FwVYUHKoLtQ_000120"


@pytest.mark.parametrize(
    "name",
    [
        "--0PQM4-hqg_000030.mp4",
        "--0PQM4-hqg_000030.wav",
        "Y--0PQM4-hqg_000030.flac",
        "--0PQM4-hqg_30.wav",
        "--0PQM4-hqg_30.0-40.0.wav",
        "waterfall burbling/--0PQM4-hqg_30000_40000.mp4",
        "--0PQM4-hqg.webm",
        "A title, of sorts [--0PQM4-hqg].webm",
    ],
)
def test_every_layout_finds_the_clip(name: str, tmp_path: Path, metadata: Path) -> None:
    listing = vggsound.scan(place(tmp_path / "clips", name), metadata=metadata)
    clip = by_key(listing)["--0PQM4-hqg_000030"]
    assert (clip.source, clip.offset_s) == (name, None)
    assert listing.n_ignored == {}


def test_two_clips_of_one_video_are_told_by_their_times(tmp_path: Path, metadata: Path) -> None:
    names = ["FwVYUHKoLtQ_000034.wav", "FwVYUHKoLtQ_000120.wav", "FwVYUHKoLtQ_000500.wav"]
    listing = vggsound.scan(place(tmp_path / "clips", *names), metadata=metadata)
    clips = by_key(listing)
    assert [clips[name[:-4]].source for name in names[:2]] == names[:2]
    assert listing.n_ignored == {"mistimed": 1}


def test_a_file_that_may_be_either_clip_is_not_used(tmp_path: Path, metadata: Path) -> None:
    root = place(tmp_path / "clips", "FwVYUHKoLtQ.wav", "--0PQM4-hqg.wav", "other.wav")
    listing = vggsound.scan(root, metadata=metadata)
    assert [clip.key for clip in listing.clips if clip.path] == ["--0PQM4-hqg_000030"]
    assert listing.n_ignored == {"unlisted": 2}


def test_a_whole_video_is_cut_once_for_each_of_its_clips(tmp_path: Path, metadata: Path) -> None:
    root = place(tmp_path / "clips", "FwVYUHKoLtQ.wav", "--0PQM4-hqg_000030.wav", "--0PQM4-hqg.wav")
    listing = vggsound.scan(root, metadata=metadata, whole_videos=True)
    found = {c.key: (c.source, c.offset_s, c.duration_s) for c in listing.clips if c.path}
    assert found == {
        "--0PQM4-hqg_000030": ("--0PQM4-hqg_000030.wav", None, 10.0),
        "FwVYUHKoLtQ_000034": ("FwVYUHKoLtQ.wav", 34.0, 10.0),
        "FwVYUHKoLtQ_000120": ("FwVYUHKoLtQ.wav", 120.0, 10.0),
    }
    assert listing.n_ignored == {"duplicate": 1}


def test_of_several_files_the_one_with_times_is_taken(tmp_path: Path, metadata: Path) -> None:
    names = ["a/--0PQM4-hqg.wav", "b/--0PQM4-hqg_000030.wav", "c/--0PQM4-hqg_000030.wav"]
    listing = vggsound.scan(place(tmp_path / "clips", *names), metadata=metadata)
    assert by_key(listing)["--0PQM4-hqg_000030"].source == names[1]
    assert listing.n_ignored == {"duplicate": 2}


def test_absent_metadata_and_files_of_another_set_are_errors(
    tmp_path: Path, metadata: Path
) -> None:
    root = place(tmp_path / "clips", "other.wav", "--0PQM4-hqg_000999.wav")
    message = r"none of the 2 audio files .*vggsound\.csv: 1 have an id .*, 1 other times"
    with pytest.raises(ValueError, match=message):
        vggsound.scan(root, metadata=metadata)
    with pytest.raises(ValueError, match=r"`--metadata` must be a CSV file, found no .*nowhere"):
        vggsound.scan(root, metadata=tmp_path / "nowhere.csv")
    metadata.unlink()
    with pytest.raises(ValueError, match=r"folder that holds vggsound\.csv, found in .*: --0PQ"):
        vggsound.scan(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-hqg,30", "-hqg,30.5", "line 2: `start` must be a whole number, .*; found '30.5'"),
        ("---g-f_I2yQ", "#NAME?", "line 1: a YouTube id has 11 characters .*, found '#NAME"),
        ("waterfall burbling,train", "train", "line 2: a row must hold .*, found 3 fields"),
        ('"playing violin, fiddle"', "playing violin, fiddle", "line 3: .* found 5 fields"),
        (",test", ",valid", "line 1: a label and one of train, test are required, .* 'valid'"),
        ("FwVYUHKoLtQ,120", "FwVYUHKoLtQ,34", "line 5: .* 'FwVYUHKoLtQ_000034' .* line 4 too"),
        (TEXT, "\n", r"vggsound\.csv must list clips, found none"),
    ],
)
def test_broken_metadata_is_an_error_with_the_line(
    old: str, new: str, message: str, tmp_path: Path, metadata: Path
) -> None:
    assert old in TEXT
    metadata.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        vggsound.scan(place(tmp_path / "clips", "--0PQM4-hqg.wav"), metadata=metadata)
