"""UrbanSound8K: ten folds, the classes' numbers, where an excerpt stands in its recording."""

from pathlib import Path

import pytest
from corpora_files import URBANSOUND8K, by_key, place, write_texts

from melstream.tools.corpora import Clip, urbansound8k

FILES = ["audio/fold5/100263-2-0-117.wav", "audio/fold10/100648-1-0-0.wav"]
TEXT = URBANSOUND8K["metadata/UrbanSound8K.csv"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_texts(place(tmp_path / "UrbanSound8K", *FILES), URBANSOUND8K)


def test_rows_become_clips_with_their_times_and_fold(root: Path) -> None:
    listing = urbansound8k.scan(root)
    assert listing.label_names == ("air_conditioner", "car_horn", "children_playing", "dog_bark")
    assert listing.splits == tuple(f"fold-{fold}" for fold in range(1, 11))
    clips = by_key(listing)
    assert clips["100263-2-0-117"] == Clip(
        "100263-2-0-117", FILES[0], (2,), FILES[0], start_s=58.5, duration_s=4.0, split=4
    )
    assert (clips["100648-1-0-0"].duration_s, clips["100648-1-0-0"].split) == (0.648525, 9)
    assert clips["100032-3-0-0"].path is None


def test_a_file_in_another_fold_is_not_the_clip(root: Path) -> None:
    (root / FILES[1]).rename(root / "audio/fold5/100648-1-0-0.wav")
    listing = urbansound8k.scan(root)
    assert by_key(listing)["100648-1-0-0"].path is None
    assert listing.n_ignored == {"unlisted": 1}


def test_the_folder_of_a_fold_is_two_levels_too_deep(root: Path) -> None:
    with pytest.raises(ValueError, match=r"but in .*/UrbanSound8K: give that folder"):
        urbansound8k.scan(root / "audio" / "fold5")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classID", "class_id", "line 1: .* without 'classID' .close: 'class', 'class_id'"),
        (",1,5,3,", ",1,11,3,", r"line 2: `fold` must be a whole number, one of 1\.\.10; found"),
        (",1,5,3,", ",1,5,10,", r"line 2: `classID` must be a whole number, one of 0\.\.9; found"),
        ("58.5,62.5", "62.5,58.5", "line 3: `end` must be after `start`, found '62.5' to '58.5'"),
        ("58.5", "x", "line 3: `start` must be a time in seconds, 0 or more; found 'x'"),
        ("58.5", "-1", "line 3: `start` must be a time in seconds, 0 or more; found '-1'"),
        ("dog_bark", "", "line 2: class 3 must have one name, found '' and ''"),
    ],
)
def test_broken_metadata_is_an_error_with_the_line(
    old: str, new: str, message: str, root: Path
) -> None:
    assert old in TEXT
    (root / "metadata/UrbanSound8K.csv").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        urbansound8k.scan(root)
