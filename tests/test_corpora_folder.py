"""Folder: the first folder level is the class."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import corpora_files
import pytest
from corpora_files import RECORDING, by_key

from melstream.tools.corpora import folder


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """``place("a/b.wav", ...)``: put a clip at each path under one folder; the folder."""
    return lambda *names: corpora_files.place(tmp_path / "audio", *names)


def test_the_recordings_that_ship_share_their_classes(recordings: Path) -> None:
    train, evaluation = (folder.scan(recordings / split) for split in ("train", "eval"))
    assert train.label_names == evaluation.label_names
    clip = next(clip for clip in evaluation.clips if clip.source == "tom/drum_tom_lo_soft.flac")
    assert clip.key.startswith("tom_drum_tom_lo_soft-")
    assert clip.labels == (train.label_names.index("tom"),)


def test_the_first_folder_level_is_the_class(place: Callable[..., Path]) -> None:
    root = place("dog/2024/may/1.wav", "dog/1.wav", "Cat & co, indoors/1.wav")
    listing = folder.scan(root)
    assert listing.label_names == ("Cat & co, indoors", "dog")
    assert {clip.source: clip.labels for clip in listing.clips} == {
        "dog/2024/may/1.wav": (1,),
        "dog/1.wav": (1,),
        "Cat & co, indoors/1.wav": (0,),
    }


def test_names_that_differ_by_suffix_or_case_or_dots_stay_apart(
    place: Callable[..., Path],
) -> None:
    names = ["a/x.wav", "a/x.flac", "a/X.wav", "a/x.1.wav", "a/x.2.wav", "a/x_1.wav", "b/x.wav"]
    assert len(by_key(folder.scan(place(*names)))) == len(names)


def test_a_key_does_not_depend_on_the_suffix(place: Callable[..., Path], tmp_path: Path) -> None:
    (before,) = folder.scan(place("a/take 1.wav")).clips
    (tmp_path / "audio/a/take 1.wav").rename(tmp_path / "audio/a/take 1.flac")
    (after,) = folder.scan(tmp_path / "audio").clips
    assert before.key == after.key


def test_files_without_any_class_folder_have_no_labels(place: Callable[..., Path]) -> None:
    listing = folder.scan(place("one.wav", "two.OGG", "three.txt"))
    assert listing.label_names == ()
    assert {key: clip.labels for key, clip in by_key(listing).items()} == {"one": (), "two": ()}
    assert listing.n_ignored == {"no audio": 1}


def test_files_beside_class_folders_are_an_error_unless_unlabelled(
    place: Callable[..., Path],
) -> None:
    root = place("dog/1.wav", "stray.wav")
    with pytest.raises(ValueError, match=r"found 1 of 2 directly in .*'stray.wav'.*--unlabelled"):
        folder.scan(root)
    listing = folder.scan(root, unlabelled=True)
    assert listing.label_names == ()
    assert [clip.labels for clip in listing.clips] == [(), ()]


def test_a_list_of_labels_gives_the_order_and_may_name_more(
    place: Callable[..., Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("siren\n\ndog\ncat\n")
    listing = folder.scan(place("dog/1.wav"), labels=labels)
    assert listing.label_names == ("siren", "dog", "cat")
    assert listing.clips[0].labels == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bass\nsnare\n",
            r"must be named in .*labels.txt \(2 names\), found 'basss' \(close: 'bass'\)",
        ),
        ("snare\n", r"found 'basss'; rename the folder or add a line"),
        ("bass\nsnare\nbass\n", r"labels.txt, line 3: .* found 'bass' on line 1 too"),
        ("\n", r"labels.txt must hold one class name a line, found none"),
    ],
)
def test_a_wrong_list_of_labels_is_an_error(
    text: str, message: str, place: Callable[..., Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(ValueError, match=message):
        folder.scan(place("basss/1.wav"), labels=labels)


def test_wrong_options_are_errors(place: Callable[..., Path], tmp_path: Path) -> None:
    root = place("dog/1.wav")
    with pytest.raises(ValueError, match="exclude each other"):
        folder.scan(root, labels=tmp_path, unlabelled=True)
    with pytest.raises(ValueError, match=r"found no .*nowhere\.txt"):
        folder.scan(root, labels=tmp_path / "nowhere.txt")


def test_names_that_are_not_utf_8_are_kept_apart_and_can_be_stored(
    place: Callable[..., Path],
) -> None:
    root = place("plain/1.wav")
    for name in (b"t\xe9st/k\xfcl.wav", b"t\xe9st/k\xf6l.wav"):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(RECORDING, path)
    listing = folder.scan(root)
    assert listing.label_names == ("plain", r"t\xe9st")
    assert len(by_key(listing)) == 3
    for clip in listing.clips:
        clip.source.encode()  # would raise on a surrogate
        assert clip.path
        assert (root / clip.path).is_file()


def test_links_are_followed_and_a_loop_ends(place: Callable[..., Path], tmp_path: Path) -> None:
    root = place("dog/1.wav")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "2.wav").symlink_to(root / "dog" / "1.wav")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(root / "dog" / "1.wav", tmp_path / "1.wav")
    elsewhere.mkdir()
    shutil.move(tmp_path / "1.wav", elsewhere / "1.wav")
    (root / "cat").symlink_to(elsewhere)
    listing = folder.scan(root)
    assert [(c.source, c.path is None) for c in sorted(listing.clips, key=lambda c: c.source)] == [
        ("cat/1.wav", False),
        ("dog/2.wav", True),  # its target moved: listed, so that the build counts it as missing
    ]
