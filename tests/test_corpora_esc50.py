"""ESC-50: folds, the order of the classes, ESC-10, and what is said of a wrong folder."""

from pathlib import Path

import pytest
from corpora_files import ESC50, by_key, place, write_texts

from melstream.tools.corpora import Clip, esc50

FILES = ["audio/1-100032-A-0.wav", "audio/5-198411-E-20.wav", "audio/2-104105-B-19.wav"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_texts(place(tmp_path / "ESC-50-master", *FILES), ESC50)


def test_rows_become_clips_with_their_class_and_fold(root: Path) -> None:
    listing = esc50.scan(root)
    assert listing.label_names == ("dog", "chirping_birds", "thunderstorm", "crying_baby")
    assert listing.splits == ("fold-1", "fold-2", "fold-3", "fold-4", "fold-5")
    clips = by_key(listing)
    assert clips["5-198411-E-20"] == Clip(
        "5-198411-E-20", FILES[1], (3,), FILES[1], duration_s=5.0, split=4
    )
    assert clips["1-100038-A-14"].path is None
    assert clips["1-100038-A-14"].source == "1-100038-A-14"
    assert listing.n_ignored == {}


def test_esc10_is_a_set_of_its_own_classes(root: Path) -> None:
    listing = esc50.scan(root, esc10=True)
    assert listing.label_names == ("dog", "crying_baby")
    assert {key: clip.labels for key, clip in by_key(listing).items()} == {
        "1-100032-A-0": (0,),
        "5-9032-A-0": (0,),
        "5-198411-E-20": (1,),
    }
    assert listing.n_ignored == {}


def test_a_converted_file_is_found_and_others_are_counted(root: Path) -> None:
    place(root, "audio/1-100032-A-0.flac", "audio/1-100038-A-14.ogg", "audio/9-1-A-0.wav")
    listing = esc50.scan(root)
    clips = by_key(listing)
    assert clips["1-100032-A-0"].source == "audio/1-100032-A-0.wav"  # the published suffix
    assert clips["1-100038-A-14"].source == "audio/1-100038-A-14.ogg"
    assert listing.n_ignored == {"unlisted": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (
            "ESC-50-master/audio",
            r"holds meta/esc50\.csv, found none in .*, but in .*/ESC-50-master",
        ),
        ("ESC-50-master/meta", r"but in .*/ESC-50-master: give that folder"),
        (".", r"but in .*/ESC-50-master: give that folder"),
        ("ESC-50-master/nothing", r"found nothing at .*/nothing"),
        ("ESC-50-master/meta/esc50.csv", r"found a file at .*/esc50\.csv"),
    ],
)
def test_a_folder_beside_the_right_one_is_told(
    folder: str, message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        esc50.scan(tmp_path / folder)


def test_files_of_another_name_are_an_error(tmp_path: Path) -> None:
    root = write_texts(place(tmp_path, "audio/dog.wav"), ESC50)
    message = r"none of the 1 audio files .* audio/1-100032-A-0\.wav .*, found audio/dog\.wav"
    with pytest.raises(ValueError, match=message):
        esc50.scan(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("category", "class", r"line 1: .* each once; found .*, without 'category'$"),
        ("fold,target", "target,target", r"line 1: the header must name .* each once"),
        ("1-100032-A-0.wav,1,", "1-100032-A-0.wav,6,", r"line 2: `fold` .* 1\.\.5; found '6'"),
        ("5,20,", "5,x,", "line 6: `target` must be a whole number, 0 or more; found 'x'"),
        ("5-9032-A-0.wav,5,0,dog", "5-9032-A-0.wav,5,0,cat", "line 4: .* found 'dog' and 'cat'"),
        ("5-9032-A-0.wav", "1-100032-A-0.wav", "line 4: .* stands on line 2 too"),
        (",9032,A", ",9032", r"line 4: a row must have 7 fields \(filename, .*\), found 6"),
        ("dog,True", "dog,yes", "line 2: `esc10` must be True or False, found 'yes'"),
        ("1-100032", '"1-100032', "line 2: not a row of a table"),
        (ESC50["meta/esc50.csv"], "", "line 1: .*; found none"),
        (ESC50["meta/esc50.csv"].split("\n", 1)[1], "", "must list clips below its header"),
    ],
)
def test_broken_metadata_is_an_error_with_the_line(
    old: str, new: str, message: str, root: Path
) -> None:
    text = ESC50["meta/esc50.csv"]
    assert old in text
    (root / "meta/esc50.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        esc50.scan(root)


@pytest.mark.parametrize("change", ["\ufeff{}", "{}\n\n"], ids=["bom", "blank lines"])
def test_metadata_is_read_as_other_programs_save_it(change: str, root: Path) -> None:
    listing = esc50.scan(root)
    text = change.format(ESC50["meta/esc50.csv"]).replace("\n", "\r\n")
    (root / "meta/esc50.csv").write_bytes(text.encode())
    assert esc50.scan(root) == listing
