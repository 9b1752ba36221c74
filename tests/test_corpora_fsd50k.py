"""FSD50K: three splits of two folders, the vocabulary's order, several labels a clip."""

from pathlib import Path

import pytest
from corpora_files import FSD50K, by_key, place, write_texts

from melstream.tools.corpora import Clip, fsd50k

FILES = ["FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/99.wav", "FSD50K.eval_audio/37199.wav"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_texts(place(tmp_path / "FSD50K", *FILES), FSD50K)


def test_rows_become_clips_with_their_labels_and_split(root: Path) -> None:
    listing = fsd50k.scan(root)
    assert listing.label_names[2:] == ("Acoustic_guitar", "Music")
    assert listing.label_ids == ("/m/07q2z82", "/m/0mkg", "/m/042v_gx", "/m/04rlf")
    assert listing.splits == ("train", "val", "eval")
    clips = by_key(listing)
    assert clips["64760"] == Clip("64760", FILES[0], (2, 3), FILES[0], split=0)
    assert clips["16399"] == Clip("16399", None, (1, 3), "16399", split=0)
    assert {key: clip.split for key, clip in clips.items()} == {
        "64760": 0,
        "16399": 0,
        "99": 1,
        "37199": 2,
        "175151": 2,
    }


def test_a_clip_of_development_is_not_one_of_evaluation(root: Path) -> None:
    place(root, "FSD50K.eval_audio/64760.wav")
    assert fsd50k.scan(root).n_ignored == {"unlisted": 1}


def test_one_part_alone_can_be_built(tmp_path: Path) -> None:
    root = write_texts(place(tmp_path, "FSD50K.eval_audio/37199.wav"), FSD50K)
    listing = fsd50k.scan(root)
    assert [clip.key for clip in listing.clips if clip.path] == ["37199"]


@pytest.mark.parametrize("name", FSD50K)
def test_absent_metadata_is_named(name: str, root: Path) -> None:
    (root / name).unlink()
    with pytest.raises(ValueError, match=f"must be the folder that holds {name}, found in"):
        fsd50k.scan(root)


def test_the_folder_of_one_part_is_one_level_too_deep(root: Path) -> None:
    with pytest.raises(ValueError, match=r"but in .*/FSD50K: give that folder"):
        fsd50k.scan(root / "FSD50K.dev_audio")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dev", "mids,split", "mids,part", "dev.csv, line 1: .* without 'split'"),
        ("dev", ",val", ",valid", "dev.csv, line 4: `split` must be train or val, found 'valid'"),
        ("dev", "\n99,", "\n64760,", "dev.csv, line 4: .* '64760' stands on line 2 too"),
        (
            "dev",
            "Music,Accordion",
            "Music,Acordion",
            r"line 3: .* class of .*vocabulary\.csv \(4 names\), found 'Acordion' \(close: 'Acc",
        ),
        (
            "eval",
            '"Acoustic_guitar,Music"',
            "Acoustic_guitar,Music",
            "eval.csv, line 2: .* found 4",
        ),
        ("eval", "175151,Music", "175151,", "eval.csv, line 3: every label .*, found ''"),
        ("vocabulary", "1,Accordion", "2,Accordion", "line 2: expected index 1, .*; found '2,Acc"),
        ("vocabulary", "3,Music", "3,Accordion", "line 4: expected .* a name not seen before"),
    ],
)
def test_broken_metadata_is_an_error_with_the_line(
    name: str, old: str, new: str, message: str, root: Path
) -> None:
    path = f"FSD50K.ground_truth/{name}.csv"
    assert old in FSD50K[path]
    (root / path).write_text(FSD50K[path].replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        fsd50k.scan(root)
