"""Speech Commands: words by folder, two splits by list, noise left out."""

from pathlib import Path

import pytest
from corpora_files import SPEECHCOMMANDS, by_key, place, write_texts

from melstream.tools.corpora import Clip, speechcommands

FILES = [
    "bed/026290a7_nohash_0.wav",
    "bed/0c40e715_nohash_0.wav",
    "bed/0c40e715_nohash_1.wav",
    "zero/0c40e715_nohash_0.wav",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_texts(place(tmp_path / "speech_commands_v0.02", *FILES), SPEECHCOMMANDS)


def test_files_become_clips_with_their_word_and_split(root: Path) -> None:
    listing = speechcommands.scan(root)
    assert listing.label_names == ("bed", "zero")
    assert listing.splits == ("train", "validation", "test")
    assert {key: (clip.labels, clip.split) for key, clip in by_key(listing).items()} == {
        "bed_026290a7_nohash_0": ((0,), 1),
        "bed_0c40e715_nohash_0": ((0,), 2),
        "bed_0c40e715_nohash_1": ((0,), 0),
        "zero_026290a7_nohash_1": ((1,), 1),
        "zero_0c40e715_nohash_0": ((1,), 0),  # one name in two words
    }
    assert by_key(listing)["zero_026290a7_nohash_1"] == Clip(
        "zero_026290a7_nohash_1", None, (1,), "zero_026290a7_nohash_1", split=1
    )


def test_noise_and_other_files_are_counted(root: Path) -> None:
    place(root, "_background_noise_/pink_noise.wav", "bed/mine.wav", "bed/more/a_nohash_0.wav")
    place(root, "_silence_/0c40e715_nohash_0.wav", "0c40e715_nohash_0.wav")
    listing = speechcommands.scan(root)
    assert listing.n_ignored == {"unlisted": 5}
    assert listing.label_names == ("bed", "zero")


def test_converted_files_stay_in_their_split(root: Path) -> None:
    (root / FILES[1]).rename(root / "bed/0c40e715_nohash_0.flac")
    clip = by_key(speechcommands.scan(root))["bed_0c40e715_nohash_0"]
    assert (clip.source, clip.split) == ("bed/0c40e715_nohash_0.flac", 2)


def test_the_folder_of_a_word_is_one_level_too_deep(root: Path) -> None:
    with pytest.raises(ValueError, match=r"but in .*/speech_commands_v0\.02: give that folder"):
        speechcommands.scan(root / "bed")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("validation_list.txt", "bed/mine.wav", "line 3: expected <word>/<speaker>_nohash_<n>"),
        ("validation_list.txt", "bed/026290a7_nohash_0.wav", "line 3: .* stands on line 1 too"),
        ("testing_list.txt", "zero/026290a7_nohash_1.wav", r"line 2: .* in validation_list\.txt"),
    ],
)
def test_a_broken_list_is_an_error_with_the_line(
    name: str, line: str, message: str, root: Path
) -> None:
    (root / name).write_text(f"{SPEECHCOMMANDS[name]}{line}\n")
    with pytest.raises(ValueError, match=f"{name}, {message}"):
        speechcommands.scan(root)
